"""Progress of a long step: plain lines where nobody watches, bars on a terminal, and nothing on standard output."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from importlib.metadata import version

import pytest

from mmpo.pipeline.progress import BYTES, ProgressReporter

RICH = tuple(map(int, version("rich").split(".")[:2]))
STEPS = """
import time
from mmpo.pipeline.progress import ProgressReporter
with ProgressReporter("build", "parts", seconds=0.0) as report:
    for done in range(40, 101, 20):
        report("[red]reading", done, 100, "7 failed")
        time.sleep(0.2)
        print("result")
"""


def test_plain_lines_say_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressReporter("judge", "requests", seconds=0.0) as report:
        for done in (1000, 1001, 1003):
            report("a", done, 2000, "3 retried")
        report("", 1, 1)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and len(lines) == 4
    assert lines[0] == "judge: a: 1,000 of 2,000 requests, 3 retried"
    assert (
        lines[2].startswith("judge: a: 1,003 of 2,000 requests, ") and "requests/s, " in lines[2] and " left, 3 retried" in lines[2]
    )
    assert lines[3] == "judge: 1 of 1 requests"


def test_bytes_are_told_in_their_units(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressReporter("build", BYTES, seconds=0.0) as report:
        for done in range(3):
            report("read", (1 + done) * 10**9, 64 * 10**9)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "build: read: 1.0 GB of 64 GB"
    assert lines[2].startswith("build: read: 3.0 GB of 64 GB, ") and "B/s, " in lines[2] and lines[2].endswith(" left")


def test_plain_lines_come_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressReporter("build", "parts") as report:
        for done in range(100):
            report("reading", done, 100)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_and_standard_output_stays_ours() -> None:
    leader, follower = pty.openpty()
    command = [sys.executable, "-c", STEPS]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "160"}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=follower, text=True, env=environment, check=True)
    os.close(follower)
    shown = os.read(leader, 1 << 16).decode()
    os.close(leader)
    assert done.stdout == "result\n" * 4
    assert "build: [red]reading" in shown and "100/100" in shown and "7 failed" in shown and "parts/s" in shown


def seen_at(columns: int, code: str) -> str:
    """What a program writes on standard error, a terminal of so many columns."""
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")} | {"TERM": "xterm"}
    with subprocess.Popen([sys.executable, "-c", code], stderr=side, env=environment) as process:
        os.close(side)
        found = b""
        with suppress(OSError):  # how the end of a terminal is told
            while part := os.read(main, 4096):
                found += part
    os.close(main)
    assert process.returncode == 0
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", found.decode()).replace("\r", "\n")


def test_a_narrow_terminal_shows_how_far_it_is_and_of_the_rest_what_fits() -> None:
    code = "from mmpo.pipeline.progress import ProgressReporter as P\nwith P('reward', 'steps') as p:\n    p('', 7, 320, 'loss 0.69 ' * 30)"
    lines = [line for line in seen_at(80, code).split("\n") if "7/320" in line]
    assert lines and all(line.startswith("reward") and "loss 0.69" in line and len(line) <= 80 for line in lines)


@pytest.mark.skipif(RICH < (14, 3), reason="rich before 14.3 may make a column narrower than its word")
def test_tables_cut_no_word_on_a_narrow_terminal() -> None:
    code = (
        "from mmpo.cli.output import print_rows\n"
        "print_rows('', [{'name': 'anna', **{f'measured_figure_{n}': 0.5 + n for n in range(9)}}])"
    )
    told = seen_at(60, code)
    assert max(map(len, told.split("\n"))) <= 60
    assert told.split().count("measured") == told.split().count("figure") == 9 and told.count("anna") > 1
