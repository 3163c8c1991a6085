"""What Python shows of results: summaries that are dicts and print as a line, and tables in a line; in notebooks a small table of HTML."""

from collections import Counter
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mmpo.pipeline.errors import printable

COLUMNS = (
    "prompt", "chosen", "rejected", "quality_margin", "margin_se", "raters", "completions", "ratings", "comparisons",
)  # fmt: skip
SHOWN_ROWS, SHOWN_CHARS, MOST_NAMED = 3, 160, 6


class Summary(dict[str, Any]):
    """What a step returns: a dict, which prints as one line and shows itself as a table in notebooks; `dict(summary)` prints all of it.

    >>> Summary(out="pairs", prompts=2, pairs={"train": 3, "test": 1}, rejected={"tie": 1}, warnings=[])
    Pairs: 3 train, 1 test; 2 prompts; left out: tie 1; out: pairs
    >>> Summary(out="pairs")["out"]
    'pairs'
    """

    def __repr__(self) -> str:
        return line_of(self)

    def _repr_html_(self) -> str:
        rows = [(key, _short(value)) for key, value in self.items() if value not in (None, {}, [])]
        return _html(line_of(self), ("", ""), rows)


def line_of(summary: Mapping[str, Any]) -> str:
    """A summary in a line: splits and what was left out by name, else what is a number, a text or true."""
    if isinstance(pairs := summary.get("pairs"), Mapping):
        parts = [f"Pairs: {_counted(pairs)}"]
        parts += [f"{summary['prompts']:,} prompts"] if isinstance(summary.get("prompts"), int) else []
        parts += [f"left out: {_named(summary['rejected'])}"] if summary.get("rejected") else []
        parts += [f"{len(summary['warnings'])} warnings"] if summary.get("warnings") else []
        return "; ".join([*parts, *([f"out: {summary['out']}"] if "out" in summary else [])])
    if isinstance(checks := summary.get("checks"), list):
        counts = Counter(check["status"] for check in checks)
        wrong = [check["name"] for check in checks if check["status"] == "fail"]
        return (
            f"{'Sound' if summary.get('ok') else 'Not sound'}: {_named(counts)}{'; failed: ' + ', '.join(wrong) if wrong else ''}"
        )
    plain = {key: value for key, value in summary.items() if isinstance(value, bool | int | float | str)}
    shown = ", ".join(f"{key} {_value(value)}" for key, value in list(plain.items())[:MOST_NAMED])
    return f"{shown}{f', … ({len(summary)} in all)' if len(summary) > min(len(plain), MOST_NAMED) else ''}"


def table_line(table: pa.Table) -> str:
    """FEEDBACK or PAIRS in a line; of another table its size.

    >>> table_line(pa.table({"a": [1, 2]}))
    'Table: 2 rows of a'
    """
    if "quality_margin" in table.column_names:
        margins = table["quality_margin"]
        if not table.num_rows:
            return "Pairs: none"
        low, high = pc.min_max(margins).as_py().values()
        prompts, ties = pc.count_distinct(table["prompt_id"]).as_py(), pc.sum(pc.equal(margins, 0)).as_py() or 0
        told = f"margins {_value(low)} to {_value(high)}, {_value(pc.mean(margins).as_py())} in the mean"
        return f"Pairs: {table.num_rows:,} of {prompts:,} prompts; {told}; {ties:,} ties"
    if "completions" in table.column_names:
        counts = {
            name: pc.sum(pc.list_value_length(table[name])).as_py() or 0 for name in ("completions", "ratings", "comparisons")
        }
        raters = {rater for name in ("ratings", "comparisons") for rater in pc.unique(_inside(table[name], "rater")).to_pylist()}
        told = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
        return f"Feedback: {table.num_rows:,} prompts; {told} by {_named_of(sorted(filter(None, raters)))}"
    return f"Table: {table.num_rows:,} rows of {', '.join(table.column_names)}"


class InShort:
    """Something in a line, and in notebooks as a small table."""

    def __init__(self, line: str, columns: Iterable[str] = (), rows: Iterable[Iterable[Any]] = ()) -> None:
        self.line, self.columns, self.rows = line, tuple(columns), [tuple(row) for row in rows]

    def __repr__(self) -> str:
        return self.line

    def _repr_html_(self) -> str:
        return _html(self.line, self.columns, self.rows)


def shown_table(table: pa.Table) -> InShort:
    """A table's line, and its first rows with texts cut short."""
    kept = [name for name in COLUMNS if name in table.column_names] or table.column_names
    rows = table.select(kept).slice(0, SHOWN_ROWS).to_pylist()
    return InShort(table_line(table), kept, [[_short(value) for value in row.values()] for row in rows])


def _inside(column: pa.ChunkedArray, field: str) -> pa.ChunkedArray:
    return pc.struct_field(pc.list_flatten(column), field)


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _named(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _named_of(names: list[str]) -> str:
    if len(names) > MOST_NAMED:
        return f"{len(names):,} raters"
    return ", ".join(printable(name, 40) for name in names) or "nobody"


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)


def _short(value: Any) -> str:
    if value in (None, [], {}, ""):
        return "–"
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        texts = [one.get("content") or one.get("text") or _named_pair(one) for one in value[:SHOWN_ROWS]]
        value = " / ".join(texts) + (f" / … {len(value)} in all" if len(value) > SHOWN_ROWS else "")
    return printable(" ".join(str(_value(value) if not isinstance(value, Mapping) else _pairs_of(value)).split()), SHOWN_CHARS)


def _named_pair(one: Mapping[str, Any]) -> str:
    graded = one.get("score", one.get("gap"))
    return (
        f"{one.get('rater')} {_value(graded)}"
        if "rater" in one
        else ", ".join(f"{key} {_value(value)}" for key, value in one.items())
    )


def _pairs_of(value: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_value(one)}" for key, one in value.items())


def _html(line: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A line and a table, everything escaped: what stands in it comes from data."""
    head = "".join(f"<th style='text-align:left'>{escape(name)}</th>" for name in columns) if any(columns) else ""
    cells = "".join(
        "<tr>" + "".join(f"<td style='text-align:left'>{escape(str(one))}</td>" for one in row) + "</tr>" for row in rows
    )
    table = f"<table>{f'<thead><tr>{head}</tr></thead>' if head else ''}<tbody>{cells}</tbody></table>" if cells else ""
    return f"<p>{escape(line)}</p>{table}"
