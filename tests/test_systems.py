"""Other systems and older environments, as far as one machine can test them: what is imported, what is packed, what is asked for."""

import asyncio
import os
import signal
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from contextlib import nullcontext
from pathlib import Path

import pytest

from mmpo.annotate.asking.run import interrupts
from mmpo.annotate.client import Stop

ROOT = Path(__file__).resolve().parent.parent
POSIX_ONLY = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix_ipc", "syslog", "readline")
BLOCKED = """
import importlib.abc, json, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in NAMES:
            raise ModuleNotFoundError("no module of POSIX's: " + name, name=name)
NAMES = set(json.loads(sys.argv[1]))
for name in NAMES:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Blocked())
from importlib import import_module
wrong = []
for module in json.loads(sys.argv[2]):
    try:
        import_module(module)
    except ModuleNotFoundError as error:
        if error.name in NAMES:
            wrong.append(f"{module}: {error}")
print(json.dumps(wrong))
"""
LIGHT = ("pipeline", "annotate", "cli")
"""train's modules import torch and transformers, which import what they like."""


@pytest.mark.slow
def test_no_module_of_ours_needs_posix_when_it_is_imported() -> None:
    """Those of the libraries below us are imported before: Windows has its own of them."""
    import json

    paths = [path for folder in LIGHT for path in (ROOT / folder).rglob("*.py") if path.stem != "__main__"]
    named = ["mmpo." + ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in sorted(paths)]
    ours = [name for name in named if not name.startswith("mmpo.annotate.argilla_server")]
    below = "import argilla, datasets, filelock, httpx, openai, pandas, pyarrow.dataset, rich.console, typer\n"
    words = [sys.executable, "-c", below + BLOCKED, json.dumps(POSIX_ONLY), json.dumps(ours)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []
    assert len(ours) > 100


def test_train_imports_nothing_of_posix_itself() -> None:
    """By its text, since importing it imports much else."""
    import ast

    for path in (ROOT / "train").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not set(names) & set(POSIX_ONLY), path


def test_lower_bounds_are_no_higher_than_what_is_tested_together() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in line]
    pins = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *(one for name in ("judge", "argilla", "language", "train") for one in extras[name])]
    requirements = [Requirement(one) for one in asked]
    assert [str(one) for one in requirements if not one.specifier.contains(pins[canonicalize_name(one.name)])] == []
    assert {str(one) for one in requirements if not any(part.operator == ">=" for part in one.specifier)} == set()


@pytest.mark.slow
def test_a_source_distribution_builds_a_whole_wheel(tmp_path: Path) -> None:
    """In a clean folder, with nothing of the checkout, not even what is left of an earlier build in it."""

    def built(what: str, source: Path, out: str) -> Path:
        words = [sys.executable, "-m", "build", f"--{what}", "--no-isolation", "--outdir", str(tmp_path / out), str(source)]
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        [made] = (tmp_path / out).iterdir()
        return made

    with tarfile.open(built("sdist", ROOT, "sdist")) as archive:
        archive.extractall(tmp_path / "clean", filter="data")
    [clean] = (tmp_path / "clean").iterdir()
    inside = {name for name in zipfile.ZipFile(built("wheel", clean, "wheel")).namelist() if ".dist-info/" not in name}
    folders = ("pipeline", "annotate", "train", "cli")
    ours = {path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()}
    names = {f"mmpo/{path.as_posix()}" for path in ours if path.suffix != ".pyc"}
    assert inside == names | {"mmpo/__init__.py", "mmpo/py.typed"}  # the last two stand in pipeline/package


class LoopOfWindows(asyncio.SelectorEventLoop):
    add_signal_handler = asyncio.AbstractEventLoop.add_signal_handler  # as those of Windows have it


def test_judges_stop_gently_where_event_loops_take_no_signals() -> None:
    """The first interrupt is noted and told, the second one leaves; afterwards the handler is the one that was there."""
    told: list[str] = []

    async def ask(stop: Stop, interrupted: int) -> None:
        with interrupts(stop, told.append):
            for _ in range(interrupted):
                signal.raise_signal(signal.SIGINT)
                await asyncio.sleep(0.01)

    before = signal.getsignal(signal.SIGINT)
    for count in (1, 2):
        stop = Stop()
        leaves = pytest.raises(KeyboardInterrupt) if count == 2 else nullcontext()
        with leaves, asyncio.Runner(loop_factory=LoopOfWindows) as runner:
            runner.run(ask(stop, count))
        assert stop.reason == "interrupted" and signal.getsignal(signal.SIGINT) is before
    assert told == ["stopping"] * 2
