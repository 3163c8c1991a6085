"""What the commands say: JSON on standard output when asked for, everything else on standard error."""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import orjson
import typer
from rich.cells import cell_len
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
    from mmpo.pipeline.storage import plain  # imported here: tables of options need no pyarrow

    text = orjson.dumps(plain(value), option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS, default=str)
    sys.stdout.write(text.decode() + "\n")
    sys.stdout.flush()


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table on standard error; numbers are right-aligned. Text from data is printed as it is, never as markup."""
    if is_quiet():
        return
    if title:
        say(title)
    screen = console()
    headings = [name.replace("_", " ") if sys.stderr.isatty() else name for name in columns]  # which a narrow terminal can break
    numbers = [any(isinstance(row[index], int | float) for row in rows) for index in range(len(columns))]
    cells = [[printable(shown(value), None) for value in row] for row in rows]
    texts = [[heading, *(row[index] for row in cells)] for index, heading in enumerate(headings)]
    least = [max((cell_len(word) for text in column for word in text.split()), default=0) for column in texts]
    most = [max(map(cell_len, column)) for column in texts]
    for block in _blocks(numbers, least, screen.width):
        table = Table(show_edge=False, pad_edge=False)
        widths = _widths([least[index] for index in block], [most[index] for index in block], screen.width)
        for index, width in zip(block, widths, strict=True):
            table.add_column(Text(headings[index]), justify="right" if numbers[index] else "left", overflow="fold", width=width)
        for row in cells:
            table.add_row(*(Text(row[index]) for index in block))
        screen.print(table)


def _widths(least: Sequence[int], most: Sequence[int], width: int) -> list[int | None]:
    """Of columns beside one another: at least their longest words, and of the room that is left most where texts are longest.

    >>> _widths([4, 6], [4, 30], 30), _widths([40], [50], 30)
    ([4, 23], [None])
    """
    widths, room = list(least), width + 3 - sum(one + 3 for one in least)
    if room < 0:
        return [None] * len(widths)  # not to be had: the library cuts words
    for _ in range(room):
        lines = [full / max(now, 1) for full, now in zip(most, widths)]
        if max(lines) <= 1:
            break
        widths[lines.index(max(lines))] += 1
    return list(widths)


def _blocks(numbers: Sequence[bool], least: Sequence[int], width: int) -> list[list[int]]:
    """The columns that stand beside one another without a word being cut, below each other where they don't fit; the first columns, as
    far as they hold names, at most two, stand before each. numbers: of each column, whether it holds some; least: its longest word.

    >>> _blocks([False, True, True], [4, 6, 6], 15), _blocks([False, True, True], [4, 6, 6], 22)
    ([[0, 1], [0, 2]], [[0, 1, 2]])
    """
    names = next((index for index, number in enumerate(numbers[:2]) if number), min(2, len(numbers) - 1)) or 1
    blocks = [list(range(min(names, len(numbers))))]
    for index in range(names, len(numbers)):
        if len(blocks[-1]) > names and sum(least[one] + 3 for one in (*blocks[-1], index)) > width + 3:
            blocks.append(list(range(names)))
        blocks[-1].append(index)
    return blocks


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
