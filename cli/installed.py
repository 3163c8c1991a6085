"""What mmpo stands on: the packages that its own metadata names, which of them are installed, by extra; none of them is imported."""

import platform
import re
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version

ADDS = {
    "": "build, validate, report, gamma, export, push, pull",
    "judge": "judge, generate, calibrate, evaluate mt-bench",
    "argilla": "argilla serve, push, pull, status",
    "train": "train, evaluate, score, advise, models on this machine",
    "excel": "workbooks of Excel (.xlsx)",
    "language": "build --language",
    "ray": "builds, and models that score or write candidates, on several machines",
}
"""What each extra is for; "": without any."""


@cache
def requirements() -> dict[str, dict[str, str]]:
    """Extra → package → the condition on its version, as the installed metadata has it; "" is the core.

    >>> "numpy" in requirements()[""], "torch" in requirements()["train"]
    (True, True)
    """
    found: dict[str, dict[str, str]] = {extra: {} for extra in ADDS}
    try:
        lines = requires("mmpo") or ()
    except PackageNotFoundError:
        lines = ()
    for line in lines:
        wanted, _, condition = line.partition(";")
        extra = found_extra[1] if (found_extra := re.search(r"extra\s*==\s*['\"]([\w.-]+)['\"]", condition)) else ""
        name = re.match(r"[\w.-]+", wanted)
        if extra in found and name and name[0] != "mmpo":
            found[extra][name[0]] = re.sub(r"^\[[^]]*\]", "", wanted.strip()[name.end() :]).strip(" ()")
    return found


def version_of(package: str) -> str | None:
    """The installed version, None where it is not installed.

    >>> version_of("no-such-package") is None
    True
    """
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """mmpo, Python and every package below that is installed → version."""
    names = {name: None for packages in requirements().values() for name in packages}
    found = {"mmpo": version_of("mmpo") or "(not installed)", "python": platform.python_version()}
    return found | {name: told for name in sorted(names) if (told := version_of(name)) is not None}
