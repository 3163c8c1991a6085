"""The command as a process of its own: run to its end, or started, watched and ended; and in this process, where it must refuse."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from folders import contents
from warm import ARGILLA, COMMANDS, TRAINING, Forked

from mmpo.cli.main import run

MAIN = "from mmpo.cli.entry import main; main()"
LIMITED = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0})); "
"""A limit on the size of a file stands for a full disk: writing fails with an OSError in the same places."""


def environment(**more: str) -> dict[str, str]:
    """Of such a process."""
    return {**os.environ, "PYTHONUNBUFFERED": "1", "OPENAI_API_KEY": "sk-test-of-the-run", **more}


Process = subprocess.Popen[str] | Forked
WARM = {"argilla": ARGILLA, **dict.fromkeys(("train", "score", "evaluate", "run", "merge", "advise"), TRAINING)}
"""By a command's first word, where it imports more than others."""


def mmpo(*words: object, disk: int | None = None, timeout: float = 240, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run `mmpo WORDS` to its end. disk: the most bytes that a file may have. options: of `started`, or of subprocess.Popen."""
    with started(*words, code=(LIMITED.format(disk) if disk else "") + MAIN, **options) as process:
        try:
            said = process.communicate(timeout=timeout)
        finally:
            process.kill()
    return subprocess.CompletedProcess(process.args, process.wait(), *said)


def started(*words: object, fresh: bool = False, code: str = MAIN, **options: Any) -> Process:
    """Start `mmpo WORDS`; whoever starts it ends it. It is forked from a process that has imported what such commands do, but from nothing
    with `fresh`, with options of subprocess.Popen but `env` and `cwd`, or where its environment says what imports are like.
    """
    arguments, env, cwd = list(map(str, words)), options.get("env", environment()), options.get("cwd")
    warm = TRAINING if "--local" in arguments else WARM.get(arguments[0] if arguments else "", COMMANDS)
    if fresh or options.keys() - {"env", "cwd"} or warm.differs(env):
        settings: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": env, **options}
        return subprocess.Popen([sys.executable, "-c", code, *arguments], text=True, **settings)
    return warm.begin(code, arguments, env, cwd)


def ended(process: Process) -> str:
    """What it said on standard error, once it has ended."""
    return process.communicate(timeout=60)[1]


def stopped(
    *words: object, when: Callable[[], object], by: int = signal.SIGKILL, after: float = 0.0, **options: Any
) -> "subprocess.CompletedProcess[str]":
    """Start `mmpo WORDS`, signal it `after` seconds after `when` holds, and wait for its end."""
    with started(*words, **options) as process:
        try:
            assert wait_for(when, process), f"it ended before, with {process.poll()}"
            time.sleep(after)
            process.send_signal(by)
            said = process.communicate(timeout=60)
        finally:
            process.kill()
    return subprocess.CompletedProcess(process.args, process.wait(), *said)


def wait_for(holds: Callable[[], object], process: Process | None = None, seconds: float = 240) -> bool:
    """Wait until it holds; False where it does not in so many seconds, or when the process ends before."""
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until or (process is not None and process.poll() is not None):
            return False
        time.sleep(0.005)
    return True


def refused(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The message of a command that must be refused: exit status 2, one message that holds the words, nothing on standard output, and
    nothing changed anywhere in the folder.
    """
    before = contents(folder)
    capsys.readouterr()
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    message = captured.err[captured.err.index("error: ") :]
    for word in words:
        assert word in message, message
    assert contents(folder) == before
    return message


def graded(count: int = 60, answers: int = 3) -> list[dict[str, Any]]:
    """A row per completion, with scores from 1 to 9."""
    return [
        {"prompt": f"Question {i}?", "completion": f"Answer {j} to {i}.", "score": 1 + (3 * i + 2 * j) % 9}
        for i in range(count)
        for j in range(answers)
    ]
