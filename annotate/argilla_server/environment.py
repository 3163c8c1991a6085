"""The private environment of Argilla's server: its pins clash with ours, so it gets one of its own, made on first use and kept.

It lies in the user's cache folder, or where MMPO_ARGILLA_ENV says. Its name holds a digest of the pins: other pins, another
environment.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from math import inf
from pathlib import Path

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.storage import file_lock, text_digest

SERVER_VERSION = "2.8.0"
REQUIREMENTS = (f"argilla-server=={SERVER_VERSION}", "requests", "fakeredis")
PINS = Path(__file__).with_name("constraints.txt")
MARKER = "mmpo-complete"
UNFINISHED = "mmpo-unfinished"
MEASURED = "about 600 MB, half a minute on a fast line"
TAIL_LINES = 12


def digest_of_pins() -> str:
    """Eight hex digits of the pins, the comments left out."""
    lines = (line for line in PINS.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#"))
    return text_digest("\n".join(lines), size=4)


def environment_folder() -> Path:
    """Where the environment is or will be; nothing is touched."""
    given = os.environ.get("MMPO_ARGILLA_ENV")
    if given:
        return Path(given).expanduser().absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "mmpo" / f"argilla-server-{SERVER_VERSION}-{digest_of_pins()}"


def python_of(folder: Path) -> Path:
    """The Python of an environment."""
    return folder / "bin" / "python"


def is_complete(folder: Path) -> bool:
    """Whether the environment was made to the end, with these pins, and its Python is still there."""
    marker = folder / MARKER
    # The Python is a link to the one it was made with, which an upgrade may have taken away.
    return python_of(folder).exists() and marker.is_file() and marker.read_text(encoding="utf-8").strip() == digest_of_pins()


def ensure(agree: Callable[[str], bool]) -> Path:
    """The folder of a complete environment, made first where there is none.

    agree: asked once, with one sentence that says what would be made, how large and where; False ends it. Two that ask at the same
    time make one environment. Raises UserError where agree says no, where the folder holds something else, or where the
    installation fails (with the end of pip's output; nothing half-made is left).
    """
    folder = environment_folder()
    if is_complete(folder):
        return folder
    check_ours(folder, (MARKER, UNFINISHED), str(folder), "name a folder that is new or empty in MMPO_ARGILLA_ENV")
    if not agree(f"Argilla's server {SERVER_VERSION} needs an environment of its own ({MEASURED}) in {folder}."):
        raise UserError(f"Argilla's server was not installed; say yes, or --yes, to install it into {folder}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Whoever makes the same environment is waited for, for as long as that takes.
    with file_lock(folder.with_name(folder.name + ".lock"), "", seconds=inf) as lock:
        if not is_complete(folder):
            assert lock is not None
            _make(folder, lock)
    return folder


def check_ours(folder: Path, ours: Iterable[str], shown: str, advice: str) -> None:
    """Raise UserError, naming the folder as `shown`, where it is a file or holds files and none of `ours` among them."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{shown} is a file; {advice}")
    if folder.is_dir() and any(folder.iterdir()) and not any((folder / name).exists() for name in ours):
        raise UserError(f"{shown} holds other files; {advice}")


def _make(folder: Path, lock: int) -> None:
    """A virtual environment can't be moved, so it is made where it stays, and the marker is written last."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / UNFINISHED).touch()
    pip = (str(python_of(folder)), "-I", "-m", "pip", "install", "-q", "--no-input", "--disable-pip-version-check")
    try:
        _run((_base_python(), "-I", "-m", "venv", str(folder)), lock)
        _run((*pip, "-c", str(PINS), *REQUIREMENTS), lock)
        (folder / MARKER).write_text(digest_of_pins() + "\n", encoding="utf-8")
        (folder / UNFINISHED).unlink()
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _base_python() -> str:
    """The Python that the pins were tested with where there is one, else our own."""
    return sys.executable if sys.version_info[:2] == (3, 11) else shutil.which("python3.11") or sys.executable


def _run(command: tuple[str, ...], lock: int) -> None:
    """Runs a command that holds the lock too: where we are killed it works on, and nobody else may begin before it ends."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    options = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "check": False, "pass_fds": (lock,)}
    done: subprocess.CompletedProcess[str] = subprocess.run(command, env=environment, **options)
    if done.returncode != 0:
        lines = (done.stdout + done.stderr).strip().splitlines()
        said = "\n".join(lines[-TAIL_LINES:])
        raise UserError(
            f"Argilla's server could not be installed; {command[0]} says:\n{said}\n"
            "Check that the package index can be reached and that the disk has 1 GB free, then give the same command again. "
            "(Pins are tested with Python 3.11.)"
        )
