"""A chunk's rows read into FEEDBACK: its first rows say how, and what can't be used is counted."""

import gc
import json
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any

import pyarrow as pa

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.metrics import SUITES, no_suite
from mmpo.pipeline.sources.base import RowParser, RowReader, Source, SourceOptions, check_options, missing_columns
from mmpo.pipeline.sources.builder import BadRow, FeedbackBuilder
from mmpo.pipeline.storage.rows import Chunk, OnReject, rows, size_of, table
from mmpo.pipeline.tables import REJECTS

HEAD_ROWS, HEAD_ANSWERS = 20, 1000
PART_CHARS = 32 << 20
SAMPLED, ROW_OBJECTS = 16, 500
"""The size of one row in so many stands for all; what a row takes beside its text while it is objects of Python, in characters."""


@dataclass(frozen=True)
class Collected:
    """What a chunk held. feedback: FEEDBACK rows, large text offsets, one an input row, not merged by prompt; a completion's text is null
    where an earlier row of the prompt has the same (`arrow.with_texts`).

    lines: input rows read, blank lines apart. dropped: how many of them gave no FEEDBACK row. limited: how many had
    something that counts against --max-rejects, limited_reasons: what. counts: of prompts, completions, grades and merged completions.
    noted: what was noted of rows that were kept, by name. unused, layout, columns: of `RowReader`, with the chunk's first part.
    """

    feedback: pa.Table
    rejects: pa.Table
    lines: int
    dropped: int
    limited: int
    counts: Mapping[str, int]
    limited_reasons: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)
    unused: tuple[str, ...] = ()
    layout: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def uncollected() -> Iterator[None]:
    """No search for cycles of objects inside: a chunk's rows are millions of objects, none of which is in one."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@uncollected()
def collect(chunk: Chunk, source: Source, options: SourceOptions) -> Collected:
    """Read a chunk whole; see `collect_parts`."""
    [whole] = collect_parts(chunk, source, options, part_chars=sys.maxsize)
    return whole


def collect_parts(chunk: Chunk, source: Source, options: SourceOptions, part_chars: int = PART_CHARS) -> Iterator[Collected]:
    """Read a chunk in parts of about `part_chars` characters each, at least one: compressed files, CSV and row groups of
    Parquet are one chunk however large they are. Rows that can't be used are in `rejects`, with their reason.

    Raises UserError: wrong options, missing columns (judged on a file's first 20 rows), truncated or damaged files.
    """
    check_options(source, options)
    if source.table:
        yield _collect_table(chunk, source)
        return
    if options.decimal and not source.fields and (chunk.kind != "csv" or source.unfold):
        raise UserError(
            f"{chunk.name}: --decimal says how numbers are written in CSV; here format {source.name!r} reads numbers that are none of text"
        )
    if chunk.kind == "csv" and source.fields and options.decimal is None:
        options = replace(options, decimal=".")
    part = _Part(chunk, source, options)
    found = read_rows(chunk, source, options, lambda *told: part.unreadable(*told), lambda name: part.out.count(name))
    head, looked_at = head_of(found, source)
    if head:
        looked_at = _first_rows(chunk, source) or looked_at  # rows of JSON may leave out what is null: one alone says little
        columns = columns_of(looked_at)
        absent = [name for name in options.keep if name not in columns]
        if absent and looked_at:
            raise missing_columns(chunk.name, f"--split-by column:{absent[0]}", absent, columns)
        inside, by_columns = table_inside(looked_at) if chunk.kind in ("lines", "stream", "array") else ("", False)
        if by_columns and source.fields:
            raise UserError(f"{chunk.name}: {inside}")
        try:
            part.prepared = source.parser(columns, options, chunk.name) if looked_at else RowReader(_refusing(), source.name)
        except UserError as error:
            error = UserError(f"{error} {inside}") if inside else error
            raise (error if source.name in SUITES else no_suite(chunk.name, looked_at[0], error)) from None
        parse = _refusing(part.prepared.parse) if source.unfold or source.joined else part.prepared.parse
        late = _LateColumns(part.prepared, columns, source, options, chunk)
        for count, (number, row) in enumerate(chain(head, found)):
            if late.possible and late.any(row):
                parse = late.parser()
            part.add(number, row, parse, options.keep)
            if count % SAMPLED == 0:
                part.chars += (size_of(row) + ROW_OBJECTS) * SAMPLED
                if part.chars >= part_chars:
                    yield part.collected()
                    part = _Part(chunk, source, options)
    yield part.collected()


def table_inside(found: Sequence[Mapping[str, Any]]) -> tuple[str, bool]:
    """What to do with a file's one object that holds a table, in words ("" where it holds none), and whether its values are the columns,
    so that it is no row of any kind; else one of them may be the rows."""
    row = found[0] if len(found) == 1 else {}
    lists = {name: value for name, value in row.items() if isinstance(value, list) and value}
    plain = {len(value) for value in lists.values() if not any(isinstance(one, Mapping | list) for one in value)}
    by_place = [value for value in row.values() if isinstance(value, Mapping) and value and all(map(str.isdecimal, value))]
    split = isinstance(row.get("columns"), list) and isinstance(row.get("data"), list)
    if split or (len(row) > 1 and (len(by_place) == len(row) or (len(lists) == len(row) and len(plain) == 1 and plain != {1}))):
        rows_of = "frame.to_json(FILE, orient='records', lines=True)"
        return (
            f"It is one object that holds a table by its columns, as pandas' to_json() writes it; rows are needed: {rows_of}",
            True,
        )
    inside = [name for name, value in lists.items() if all(isinstance(one, Mapping) for one in value)]
    if len(inside) != 1:
        return "", False
    taken = f"jq -c '.[{json.dumps(inside[0])}][]'"
    return f"It is one object, and its rows lie under {inside[0]!r}, it seems: `{taken}` writes them as lines.", False


def _first_rows(chunk: Chunk, source: Source) -> list[Mapping[str, Any]]:
    """The first rows of the file that a later chunk of JSON lines belongs to; none of other chunks."""
    if chunk.first or chunk.kind != "lines" or source.unfold:
        return []
    return head_of(rows(replace(chunk, offset=0, length=min(chunk.offset, PART_CHARS), first_row=1), lambda *_: None), source)[1]


class _LateColumns:
    """Columns of JSON that only later rows have: read from there on, however the file is cut. Fixed columns are asked of each row."""

    def __init__(self, reader: RowReader, columns: Collection[str], source: Source, options: SourceOptions, chunk: Chunk) -> None:
        from mmpo.pipeline.sources.cells import OURS

        self.reader, self.columns = reader, dict.fromkeys(columns)
        self.possible = bool(source.fields) and not source.unfold and chunk.kind in ("lines", "stream", "array")
        self.source, self.options, self.file = source, options, chunk.name
        self.wanted = " ".join((*source.fields, *OURS.values(), *options.columns.values()))

    def any(self, row: Mapping[str, Any]) -> bool:
        """Whether the row has a column for the first time that the format or --columns name."""
        if row.keys() <= self.columns.keys() and "completions" not in row:
            return False
        more = [name for name in columns_of([row]) if name not in self.columns]
        self.columns |= dict.fromkeys(more)
        return any(name.startswith("completions[].") or name in self.wanted for name in more)

    def parser(self) -> RowParser:
        """The parser of rows with these columns too; the one before where they would make other rows of them."""
        with suppress(UserError):
            found = self.source.parser(self.columns, self.options, self.file)
            self.reader = found if found.layout == self.reader.layout else self.reader
        return self.reader.parse


def read_rows(
    chunk: Chunk, source: Source, options: SourceOptions, on_reject: OnReject, count: Callable[[str], None]
) -> Iterator[tuple[int, Any]]:
    """The rows of a chunk as a source's parser takes them, each with its number, those inside a tool's rows taken out of them; what of
    these is left out is a BadRow. Raises UserError as `storage.rows.rows` and the source's `unfold`."""
    found = rows(chunk, on_reject)
    if chunk.kind == "csv" and not source.fields and not source.unfold:
        from mmpo.pipeline.sources.sheets import typed

        found = typed(found, source, options.decimal or ".")
    if source.joined:
        first = list(islice(found, HEAD_ROWS))
        if first:
            source.check(columns_of([row for _, row in first]), chunk.name)
        found = iter(source.joined(chain(first, found)))
    return found if source.unfold is None else _unfolded(found, source, options, count, chunk.name)


def _unfolded(found: Iterable[tuple[int, Any]], source: Source, options: SourceOptions, count: Any, file: str) -> Iterator[Any]:
    from mmpo.pipeline.sources import fitting

    assert source.unfold is not None
    for number, row in found:
        try:
            for place, inner in source.unfold(row, options, count):
                yield number + place, inner
        except BadRow as error:
            yield number, error
        except UserError as error:
            others = [name for name in fitting(row) if name != source.name]
            advice = f". Its columns fit --format {' or '.join(others)}" if others else ""
            raise UserError(f"{file}, row {number}: {error}{advice}") from None


def _refusing(parse: RowParser | None = None) -> RowParser:
    def read(row: Any, out: FeedbackBuilder) -> None:
        if parse is None or isinstance(row, BadRow):
            raise row
        parse(row, out)

    return read


def head_of(found: Iterator[tuple[int, Any]], source: Source) -> tuple[list[tuple[int, Any]], list[Mapping[str, Any]]]:
    """The first rows of a chunk up to the HEAD_ROWS-th that can be read, and of them those that can; of people's answers more, since a
    question may be answered seldom."""
    most = HEAD_ROWS if source.unfold is None else HEAD_ANSWERS
    head: list[tuple[int, Any]] = []
    looked_at: list[Mapping[str, Any]] = []
    for number, row in found:
        head.append((number, row))
        looked_at += [] if isinstance(row, BadRow) else [row]
        if len(looked_at) == most:
            break
    return head, looked_at


def columns_of(head: list[Mapping[str, Any]]) -> dict[str, None]:
    """The columns of the rows, and what candidates that are objects hold: `completions[].text`."""
    found = dict.fromkeys(name for row in head for name in row)
    if "completions" in found:
        candidates: list[Any] = []
        with suppress(BadRow):  # of a cell that can't be read
            candidates = [one for row in head if isinstance(many := row.get("completions"), list) for one in many]
        found |= dict.fromkeys(f"completions[].{key}" for one in candidates if isinstance(one, Mapping) for key in one)
    return found


class _Part:
    """The rows of a chunk that one builder holds."""

    def __init__(self, chunk: Chunk, source: Source, options: SourceOptions) -> None:
        self.out = FeedbackBuilder(source.name)
        self.cells = (options.decimal or ".") if chunk.kind == "csv" and not source.fields else ""
        self.file = chunk.name
        self.lines = self.dropped = self.chars = 0
        self.prepared: RowReader | None = None

    def unreadable(self, number: int, reason: str, evidence: Mapping[str, Any]) -> None:
        self.lines += 1
        self.dropped += 1
        self.out.at(self.file, number)
        self.out.reject(reason, evidence=evidence)

    def add(self, number: int, row: Mapping[str, Any], parse: RowParser, keep: Sequence[str]) -> None:
        self.lines += 1
        self.out.at(self.file, number)
        try:
            parse(row, self.out)
            for name in keep:
                if row.get(name) is None:
                    raise BadRow("no_split_value", {"column": name})
                self.out.row_extra({name: row[name]})
        except BadRow as error:
            self.dropped += 1
            if self.cells and "hint" not in (error.evidence or {}):
                from mmpo.pipeline.sources.sheets import mended

                if hint := mended(row, self.cells):
                    error.evidence = {**(error.evidence or {}), "hint": hint}
            self.out.drop(error)

    def collected(self) -> Collected:
        out = self.out
        counted = (self.lines, self.dropped, len(out.limited_rows), out.counts)
        known = (self.prepared.unused, self.prepared.layout, self.prepared.columns) if self.prepared else ()
        return Collected(out.finish(repeated=False), out.rejects_table(), *counted, out.limited, out.noted, *known)


def _collect_table(chunk: Chunk, source: Source) -> Collected:
    assert source.table is not None
    whole = table(chunk)
    source.check(whole.column_names, chunk.name)
    feedback = source.table(whole, chunk.name)
    counts = {
        "prompt": feedback.num_rows,
        "completion": len(feedback["completions"].combine_chunks().flatten()),
        "grade": sum(len(feedback[name].combine_chunks().flatten()) for name in ("ratings", "comparisons")),
        "merged": 0,
    }
    return Collected(feedback, REJECTS.empty_table(), whole.num_rows, 0, 0, counts)
