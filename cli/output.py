"""What the commands say: JSON on standard output when asked for, everything else on standard error."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

__all__ = ["console", "plain", "print_json", "print_table", "progress_of", "say", "shown"]

LINE_EVERY_SECONDS = 10.0


def console() -> Console:
    """Standard error: colours and bars on a terminal, plain lines elsewhere."""
    width = None if sys.stderr.isatty() else 200
    return Console(file=sys.stderr, highlight=False, width=width)


def say(message: str) -> None:
    """One line on standard error."""
    print(message, file=sys.stderr, flush=True)


@contextmanager
def progress_of(command: str) -> Iterator[Callable[[str, int, int], None]]:
    """A function to call with (stage, parts done, parts in all): a bar on a terminal, elsewhere a line every ten seconds."""
    if not sys.stderr.isatty():
        told = time.monotonic()

        def line(stage: str, done: int, total: int) -> None:
            nonlocal told
            if time.monotonic() - told >= LINE_EVERY_SECONDS:
                told = time.monotonic()
                say(f"{command}: {stage} {done:,} of {total:,} parts")

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def move(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(f"{command}: {stage}", total=total)
            bars.update(tasks[stage], completed=done)

        yield move


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on standard output; numbers that JSON has no word for become null or the string "inf"."""
    text = orjson.dumps(plain(value), option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS, default=str)
    sys.stdout.write(text.decode() + "\n")
    sys.stdout.flush()


def plain(value: Any) -> Any:
    """The value with infinite numbers as the string "inf"; orjson writes NaN as null."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return "inf" if isinstance(value, float) and value == math.inf else value


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table on standard error; numbers are right-aligned. Text from data is printed as it is, never as markup."""
    if title:
        say(title)
    table = Table(show_edge=False, pad_edge=False)
    for index, name in enumerate(columns):
        number = any(isinstance(row[index], int | float) for row in rows)
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_escape(shown(value)) for value in row))
    console().print(table)


def _escape(text: str) -> str:
    return text.replace("[", "\\[")


def shown(value: Any) -> str:
    """A value for a table: four significant decimals, a dash where there is none.

    >>> shown(0.123456), shown(None), shown(1200)
    ('0.1235', '–', '1,200')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}" if abs(value) < 1000 else f"{value:,.0f}"
