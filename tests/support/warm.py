"""Scripts that train, each in a process of its own that is forked from one which has imported torch and transformers already.

A process that begins from nothing imports for longer than what most tests do in it takes.
"""

import atexit
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

IMPORTED = [
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "mmpo.cli.main",
    "mmpo.train.training.run",
    "mmpo.train.training.trainer",
]
AT_IMPORT = {
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "PYTHONWARNINGS": "ignore::FutureWarning",
}
"""What is read when these are imported."""


def _script(code: str, arguments: tuple[str, ...], own: dict[str, str], out: Path) -> None:
    """In the new process: as `python -c CODE ARGUMENTS` with this environment."""
    for number, name in ((1, "out"), (2, "err")):
        with open(f"{out}.{name}", "wb") as file:
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(own)
    sys.argv = ["-c", *arguments]
    try:
        exec(compile(code, "<string>", "exec"), vars(sys.modules["__main__"]))
    finally:
        atexit._run_exitfuncs()


class Warm:
    """A script that runs, as subprocess.Popen has it."""

    def __init__(self, code: str, arguments: tuple[str, ...], own: dict[str, str], out: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(IMPORTED)
        self.out, self.args = out, ["-c", code, *arguments]
        self.process = context.Process(target=_script, args=(code, arguments, own, out))
        with pytest.MonkeyPatch.context() as patch:
            for name, value in AT_IMPORT.items():
                patch.setenv(name, value)
            self.process.start()

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Waits for its end; what it said. Raises subprocess.TimeoutExpired."""
        self.process.join(timeout)
        if self.process.is_alive():
            raise subprocess.TimeoutExpired(self.args, timeout)
        out, err = (Path(f"{self.out}.{name}").read_text(encoding="utf-8") for name in ("out", "err"))
        return out, err

    @property
    def returncode(self) -> Any:
        """The exit status; below 0 the signal that ended it."""
        return self.process.exitcode

    def kill(self) -> None:
        """Ends it."""
        self.process.kill()
        self.process.join()
