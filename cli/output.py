"""What the commands say: JSON on standard output when asked for, everything else on standard error."""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmpo.pipeline.errors import printable
from mmpo.pipeline.progress import is_quiet, say

AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as JSON on standard output.")]


def console() -> Console:
    """Standard error: colours and bars on a terminal, plain lines elsewhere."""
    width = None if sys.stderr.isatty() else 200
    return Console(file=sys.stderr, highlight=False, width=width)


def print_json(value: Mapping[str, Any], wanted: bool = True) -> None:
    """One JSON object on standard output, if it is wanted; numbers that JSON has no word for become null or the string "inf"."""
    if not wanted:
        return
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
    if is_quiet():
        return
    if title:
        say(title)
    table = Table(show_edge=False, pad_edge=False)
    for index, name in enumerate(columns):
        number = any(isinstance(row[index], int | float) for row in rows)
        table.add_column(Text(name), justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(shown(value), None)) for value in row))
    console().print(table)


def print_rows(
    title: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str] | None = None, most: int | None = None
) -> None:
    """The rows' values under the headings of `columns` (key → heading; else the keys), at most `most` rows; nothing without rows.

    An interval (KEY_95) stands beside its value.
    """
    if not rows:
        return
    columns = columns or {key: key for key in rows[0]}
    print_table(title, list(columns.values()), [[_with_interval(row, key) for key in columns] for row in rows[:most]])
    if most and len(rows) > most:
        say(f"… and {len(rows) - most:,} more: --json has all")


def _with_interval(row: Mapping[str, Any], key: str) -> Any:
    interval = row.get(f"{key}_95")
    return row.get(key) if interval is None else f"{row[key]:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


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
