"""How far a long step has come: a bar with rate and time left on a terminal, plain lines elsewhere; always on standard error."""

import os
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from html import escape
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

from mmpo.pipeline.errors import inert, printable

Progress = Callable[[str, int, int], None]
"""What a long step calls from time to time with (stage, done, all)."""

LINE_EVERY_SECONDS = 10.0
RATE_OVER_SECONDS = 300.0
BYTES = "bytes"
"""The unit that is written as in_bytes does."""
WIDE_TERMINAL, WIDE_BAR, NARROW_BAR, BESIDE_BAR = 120, 40, 12, 42
"""Columns from which on the bar is wide; of the bars; and of counts, rate, time left and the spaces between."""
MOST_REASON = 120
"""Characters of the reason for a wait that a line of progress has room for."""


def is_quiet() -> bool:
    """Whether warnings and errors alone are to be said: `-q` of every command, or MMPO_QUIET=1 in the environment."""
    return os.environ.get("MMPO_QUIET", "") not in ("", "0")


def say(message: str, *, always: bool = False) -> None:
    """One line on standard error, made inert; of quiet runs warnings, errors and what is said `always`."""
    if always or not is_quiet() or message.startswith(("warning", "error")):
        print(inert(message), file=sys.stderr, flush=True)


def duration(seconds: float | None) -> str:
    """Seconds in words.

    >>> duration(42), duration(100), duration(4000), duration(None)
    ('42 s', '1 min 40 s', '1 h 06 min', '–')
    """
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def per_second(rate: float) -> str:
    """A rate in words: whole numbers, and two significant digits where it is small.

    >>> per_second(15234.6), per_second(4.27), per_second(0.0361)
    ('15,235', '4.3', '0.036')
    """
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def in_bytes(size: float) -> str:
    """A number of bytes in words.

    >>> in_bytes(999), in_bytes(1_500_000), in_bytes(64.2e9)
    ('999 B', '1.5 MB', '64 GB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if size >= 9.95 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def waiting(seconds: float, why: str) -> str:
    """Until when nothing happens, and why, in words.

    >>> waiting(90.0, "too many requests").split(": ")
    ['waiting until ...', 'too many requests']
    """
    until = time.strftime("%H:%M:%S", time.localtime(time.time() + seconds))
    return f"waiting until {until}: {printable(why, MOST_REASON)}"


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text(_rate(task, self.unit))


class _Detail(ProgressColumn):
    """What of a task's detail has room behind the bar, so that it pushes nothing away."""

    def __init__(self, console: Console, bar: int) -> None:
        super().__init__()
        self.console, self.bar = console, bar

    def render(self, task: Task) -> Text:
        text = Text(task.fields["detail"], no_wrap=True)
        text.truncate(max(0, self.console.width - self.bar - len(task.description) - BESIDE_BAR), overflow="ellipsis")
        return text


class ProgressReporter(AbstractContextManager["ProgressReporter"]):
    """Shows how much of each stage is done. A context manager, or to be closed by `close`.

    title: begins every line, for instance the command. unit: what is counted, in the plural; BYTES in words. seconds: the least time
    between two plain lines. What is done when a stage is first told of counts as done before: rate and time left are those of the rest.

    >>> with ProgressReporter("build", "parts") as report:
    ...     report("reading", 3, 10)
    """

    def __init__(self, title: str, unit: str, *, seconds: float = LINE_EVERY_SECONDS) -> None:
        self.title, self.unit, self.seconds = title, unit, seconds
        self._began = time.monotonic()
        self._said: dict[str, float] = {}
        self._terminal = sys.stderr.isatty() and not is_quiet()
        count = DownloadColumn() if unit == BYTES else MofNCompleteColumn()
        console = Console(file=sys.stderr, highlight=False)
        bar = WIDE_BAR if console.width >= WIDE_TERMINAL else NARROW_BAR
        self._bars = Bars(
            TextColumn("{task.description}", markup=False), BarColumn(bar), count, _Rate(unit), TimeRemainingColumn(),
            _Detail(console, bar), console=console, transient=True, redirect_stdout=False,
            speed_estimate_period=RATE_OVER_SECONDS, disable=not self._terminal,
        )  # fmt: skip
        self._tasks: dict[str, Task] = {}
        self._cell = None if self._terminal or is_quiet() or not in_notebook() else _Cell()

    def __call__(self, stage: str, done: int, total: int, detail: str = "") -> None:
        """So much of a stage is done. stage: what is being done, empty where there is only one; detail: what else is to be shown."""
        if not self._tasks:
            self._bars.start()
        if stage not in self._tasks:
            self._bars.add_task(f"{self.title}: {stage}" if stage else self.title, total=total, completed=done, detail=detail)
            self._tasks[stage] = self._bars.tasks[-1]
        task = self._tasks[stage]
        self._bars.update(task.id, completed=done, total=total, detail=detail)
        now = time.monotonic()
        if self._cell is not None:
            self._cell.show(self._bars.tasks, self.unit)
        elif not self._terminal and now - self._said.get(stage, self._began) >= self.seconds:
            self._said[stage] = now
            say(f"{task.description}: {_told(task, self.unit)}")

    def close(self) -> None:
        """Takes the bars away."""
        if self._tasks and not self._bars.disable:  # rich before 14.3 ends the line of disabled bars, too
            self._bars.stop()
        if self._cell is not None:
            self._cell.clear()

    def __exit__(self, *error: object) -> None:
        self.close()


def _told(task: Task, unit: str) -> str:
    """How far a task has come, its rate, the time left and its detail, in words."""
    done, total = int(task.completed), int(task.total or 0)
    counted = f"{in_bytes(done)} of {in_bytes(total)}" if unit == BYTES else f"{done:,} of {total:,} {unit}"
    left = f"{duration(task.time_remaining)} left" if task.time_remaining else ""
    return ", ".join(part for part in (counted, _rate(task, unit), left, task.fields["detail"]) if part)


def _rate(task: Task, unit: str) -> str:
    if not task.speed:
        return ""
    if unit == BYTES:
        return f"{in_bytes(task.speed)}/s"
    return f"{per_second(task.speed)} {unit}/s"


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return "ipykernel" in sys.modules and type(shell).__name__ == "ZMQInteractiveShell"


class _Cell:
    """Bars below a notebook's cell, drawn anew a few times a second and taken away at the end; no widgets are needed."""

    EVERY_SECONDS = 0.2

    def __init__(self) -> None:
        self._handle: Any = None
        self._drawn = 0.0

    def show(self, tasks: Iterable[Task], unit: str) -> None:
        if time.monotonic() - self._drawn < self.EVERY_SECONDS:
            return
        self._drawn = time.monotonic()
        lines = []
        for task in tasks:
            bar = f"<progress value='{task.completed}' max='{task.total or 0}'></progress>"
            lines.append(f"<div>{escape(task.description)} {bar} {escape(_told(task, unit))}</div>")
        self._draw("".join(lines))

    def clear(self) -> None:
        if self._handle is not None:
            self._draw("")

    def _draw(self, html: str) -> None:
        display = sys.modules["IPython"].display
        if self._handle is None:
            self._handle = display.display(display.HTML(html), display_id=True)
        else:
            self._handle.update(display.HTML(html))
