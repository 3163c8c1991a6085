"""A first look at files before they are built: what is recognised of their columns, how rows are read, and which values are wrong."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from mmpo.pipeline.arrow import narrow, with_texts
from mmpo.pipeline.build.options import BuildOptions, source_options
from mmpo.pipeline.build.resolve import saturated
from mmpo.pipeline.build.summary import reading_warnings, saturation_warnings
from mmpo.pipeline.errors import UserError, unknown_name
from mmpo.pipeline.grades import grade_statistics
from mmpo.pipeline.metrics import no_suite
from mmpo.pipeline.sources import SOURCES, BadRow, FeedbackBuilder, Source, SourceOptions, fitting, get_source, told_wide
from mmpo.pipeline.sources.collect import HEAD_ROWS, collect_parts, columns_of, head_of, read_rows, table_inside
from mmpo.pipeline.storage.inputs import resolve_inputs
from mmpo.pipeline.storage.rows import Chunk, plan, rows

PEEKED_CHARS = 4 << 20
SHOWN_ROWS = 3
MOST_VALUES = 20


def peek(sources: Sequence[str | Path], options: BuildOptions) -> dict[str, Any]:
    """What a build would read of the first file, from its first four million characters; nothing is written.

    Returns {"file", "lines" (read), "columns": {column: field that is read from it, or None}, "layout": what a row is, "rows": three
    FEEDBACK rows as read, "raters": {rater: grades}, "bad_values": {reason: {what was wrong, with the option that would read it: rows}},
    "warnings": as a build's}. Raises UserError as a build does.
    """
    chunk = _first(sources, options.format, options.encoding, options.sep, options.sheet)
    source = get_source(options.format)
    reading = source_options(options)
    part = next(collect_parts(chunk, source, reading, PEEKED_CHARS))
    _, head = head_of(read_rows(chunk, source, reading, lambda *_: None, lambda _: None), source)
    columns: dict[str, str | None] = {**part.columns} or dict.fromkeys(name for row in head for name in row)
    columns |= dict.fromkeys(part.unused) if part.columns else _asked(source, reading, chunk, head)
    graded, statistics = Counter[str](), grade_statistics(part.feedback)
    for name in ("ratings", "comparisons"):
        graded.update(part.feedback[name].combine_chunks().flatten().field("rater").to_pylist())
    shown = narrow(with_texts(part.feedback).slice(0, SHOWN_ROWS))
    shown = shown.select(
        [name for name in shown.column_names if name in ("prompt", "completions", "ratings", "comparisons", "tools")]
    )
    return {
        "file": chunk.name,
        "lines": part.lines,
        "columns": columns,
        "layout": part.layout or source.name,
        "rows": shown.to_pylist(),
        "raters": dict(graded.most_common()),
        "bad_values": _bad_values(part.rejects),
        "warnings": saturation_warnings(saturated(statistics.groups, statistics))
        + reading_warnings(part.noted, {}, options, part.lines),
    }


class _Recorded(Mapping[str, Any]):
    """A row that keeps what it was asked for."""

    def __init__(self, row: Mapping[str, Any], asked: dict[str, str]) -> None:
        self.row, self.asked = row, asked

    def __getitem__(self, name: str) -> Any:
        value = self.row[name]
        self.asked[name] = name
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self.row)

    def __len__(self) -> int:
        return len(self.row)


def _asked(source: Source, options: SourceOptions, chunk: Chunk, head: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The columns that a format with columns of its own asks the first rows for."""
    if not head:
        return {}
    if source.table:
        return {name: name for row in head for name in row}
    asked: dict[str, str] = {}
    parse = source.parser(columns_of(head), options, chunk.name)
    for row in head:
        out = FeedbackBuilder(source.name)
        out.at(chunk.name, 1)
        with suppress(BadRow):
            parse(_Recorded(row, asked), out)
    return asked


def _bad_values(rejects: pa.Table) -> dict[str, dict[str, int]]:
    found: dict[str, Counter[str]] = {}
    for reason, evidence in zip(rejects["reason"].to_pylist(), rejects["evidence"].to_pylist(), strict=True):
        told = orjson.loads(evidence) if evidence else {}
        hint = told.pop("hint", None)
        value = ", ".join(f"{name} {value}" for name, value in told.items())
        found.setdefault(reason, Counter())[f"{value} ({hint})" if hint else value] += 1
    return {reason: dict(values.most_common(MOST_VALUES)) for reason, values in found.items()}


def _first(sources: Sequence[str | Path], format: str, encoding: str | None, sep: str | None, sheet: str | None) -> Chunk:
    files = resolve_inputs(sources, format, encoding=encoding, separator=sep, sheet=sheet, look=True)
    chunks = plan(files[:1], whole=format != "" and get_source(format).joined is not None)
    if not chunks:
        raise UserError(f"{files[0].name}: holds no rows")
    return chunks[0]


def check_format(
    sources: Sequence[str | Path],
    format: str | None,
    *,
    encoding: str | None = None,
    sep: str | None = None,
    sheet: str | None = None,
    columns: bool = False,
) -> str:
    """The format: the one that is named, or, of files that only one fits, that one; files whose columns are named are csv, jsonl or
    parquet by what they are. columns: whether they are. Raises UserError where it is unknown, or missing and not plain to see, naming the
    formats that the columns of the first file fit.
    """
    if format and (format in SOURCES or ":" in format):
        return format
    chunk = _first(sources, "", encoding, sep, sheet)
    kind = {"json": "jsonl", "arrow": "parquet", "eval": "inspect"}.get(chunk.file.kind, chunk.file.kind)
    if columns and not format:
        return kind
    lost: list[str] = []
    reading = rows(chunk, lambda _, reason, evidence: lost.append(f"{reason} {evidence.get('hint', '')}".strip()))
    head = [row for _, row in islice(reading, HEAD_ROWS)]
    if lost and not head:
        raise UserError(f"{chunk.name}: none of its rows can be read: {lost[0]}")
    present = columns_of(head)
    fits = [kind if name == "jsonl" else name for name in fitting(present)]
    if len(fits) == 1 and not format:
        return fits[0]
    told = ", ".join(repr(name) for name in present if "[]." not in name) or "none"
    first = f"{unknown_name('format', format, SOURCES)}." if format else "--format is missing."
    otherwise = f"fit none of the {len(SOURCES)} formats as they are (`mmpo formats` lists them)"
    if wide := told_wide(present, f"--format {kind} "):
        otherwise += f". {wide}"
    else:
        otherwise += f"; columns of any names are read by --format {kind} --columns prompt=COLUMN,completion=COLUMN,score=COLUMN"
    advice = f"fit --format {' or '.join(fits)}" if fits else otherwise
    if not fits and kind == "jsonl" and (inside := table_inside(head)[0]):
        advice = f"fit no format. {inside}"
    raise no_suite(chunk.name, next(iter(head), {}), UserError(f"{first} The columns of {chunk.name} ({told}) {advice}"))
