"""What a source of feedback is, the options that all share, and the loop over a chunk's rows that reads it into FEEDBACK."""

import gc
import json
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from mmpo.pipeline.errors import UserError, nearest, unknown_name
from mmpo.pipeline.metrics import SUITES, no_suite
from mmpo.pipeline.sources.builder import KINDS, LARGEST, BadRow, FeedbackBuilder
from mmpo.pipeline.storage.rows import Chunk, OnReject, rows, size_of, table
from mmpo.pipeline.tables import REJECTS

CLIP = 16.0
"""Where log-odds end unless the user says otherwise: σ(16) differs from 1 by 1e-7."""
RowParser = Callable[[Mapping[str, Any], FeedbackBuilder], None]
"""Adds one input row to a builder; raises BadRow where the whole row can't be used."""
NumberedRow = tuple[int, Mapping[str, Any]]
"""A row and its 1-based number in its file."""
PLACE = "\0row"
"""The key under which what `joined` puts into a row keeps the number of its own row."""


@dataclass(frozen=True)
class RowReader:
    """The parser of one file's rows. layout: what a row is; columns: column (or path) → the field that is read from it; unused: the
    columns that no field is read from.
    """

    parse: RowParser
    layout: str
    columns: Mapping[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()

    def __call__(self, row: Mapping[str, Any], out: FeedbackBuilder) -> None:
        self.parse(row, out)


@dataclass(frozen=True)
class FormatSample:
    """An example of a format: a file's text, or rows of JSON lines; and the options that read it."""

    title: str
    content: str | tuple[Mapping[str, Any], ...]
    options: str = ""

    @property
    def text(self) -> str:
        """The file's text."""
        if isinstance(self.content, str):
            return self.content
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.content)

    def command(self, format: str) -> str:
        """The command that builds it."""
        return " ".join(f"mmpo build FILE --format {format} {self.options} --out pairs".split())


@dataclass(frozen=True)
class SourceOptions:
    """What the user may say about a source; picklable.

    columns: field → column, for the formats without fixed columns. scale: (low, high) of the scores.
    fix_known_defects: repair known defects of the format, counted, instead of dropping what has them.
    rater: name of the rater where the rows give none (default: the file's name without suffixes). kind: human, ai or
    reward_model where the rows do not say (default: the source's). need_scores: rows without a score are wrong. keep: columns whose
    values stay with the prompt, in `extra`; a row without one is wrong. decimal: the decimal mark of numbers written as text (default:
    "." in CSV, else text is no number). na: texts that stand for no value. gap_of: what a winner in words is worth as a gap. clip: where
    a source's transform of its grades ends (None: nowhere). encoding: of text files (default: UTF-8, or what a byte-order mark
    says). sep: the separator of CSV (default: found in the header). sheet: of an
    Excel workbook (default: the only one). bare_prompts: rows of generic files may hold a
    prompt and no reply.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    scale: tuple[float, float] | None = None
    fix_known_defects: bool = False
    rater: str | None = None
    kind: str | None = None
    need_scores: bool = True
    keep: tuple[str, ...] = ()
    decimal: str | None = None
    na: tuple[str, ...] = ()
    gap_of: Mapping[str, float] = field(default_factory=dict)
    clip: float | None = CLIP
    encoding: str | None = None
    sep: str | None = None
    sheet: str | None = None
    bare_prompts: bool = False


Unfolded = Iterator[tuple[int, Mapping[str, Any] | BadRow]]
"""The rows inside a file's row, each with how many rows it stands behind the first where the file numbers them so (else 0); a BadRow is
counted as dropped by its name."""
Unfold = Callable[[Mapping[str, Any], SourceOptions, Callable[[str], None]], Unfolded]
"""unfold(row, options, count): what a tool's export keeps inside one row, such as the answers to a task. count: as FeedbackBuilder.count.
Raises BadRow for the whole row, UserError (without the file's name) for the whole file."""


@dataclass(frozen=True)
class Source:
    """A format that feedback comes in; one entry of `sources.SOURCES`.

    parse(row, out, options) adds one row. prepare(columns, options, file), where given, replaces it: it looks at the
    columns once per file and returns the parser of its rows. requires: sets of columns of which one must be there.
    fields: the names that `--columns` may map. scaled: whether `--scale` means something. named: whether the user may
    name rater and kind. clipped: whether `--clip` means something. table: reads a whole table into FEEDBACK at once instead.
    samples: examples of what it reads, one a layout. evidence, score: what --from auto and --score auto stand for.
    aspects: whose names aspects have where the user's own set-up gives them. range: its grades'
    scale; direction: which end is better; licence: what its publishers say; traps: name → what reads it wrongly, each with a test.
    alone: whether it is thought of only where a file has no other columns than those that `requires` names.
    joined: makes rows that stand for themselves
    of a whole file's rows, or says why not; such files are not cut in chunks.
    export: how a file of it is made or which of a tool's files it is, said where columns are missing.
    typed: column → what it holds besides text (bool, float, list), of columns of CSV that are in no sample.
    unfold: takes a file's row apart into the rows that are read; folded: sets of columns by which the file's own row is known.
    """

    name: str
    summary: str
    parse: Callable[[Mapping[str, Any], FeedbackBuilder, SourceOptions], None] | None = None
    prepare: Callable[[Collection[str], SourceOptions, str], RowReader] | None = None
    requires: tuple[frozenset[str], ...] = ()
    fields: tuple[str, ...] = ()
    scaled: bool = False
    named: bool = True
    table: Callable[[pa.Table, str], pa.Table] | None = None
    clipped: bool = False
    samples: tuple[FormatSample, ...] = ()
    unfold: Unfold | None = None
    folded: tuple[frozenset[str], ...] = ()
    evidence: str = "auto"
    score: str = "overall"
    aspects: str = ""
    alone: bool = False
    range: str = ""
    direction: str = ""
    licence: str = ""
    export: str = ""
    traps: Mapping[str, str] = field(default_factory=dict)
    typed: Mapping[str, type] = field(default_factory=dict)
    joined: Callable[[Iterable[NumberedRow]], Iterable[tuple[int, Mapping[str, Any] | BadRow]]] | None = None

    @property
    def terms(self) -> str:
        """The licence, or, of a tool's export, whose it is; nothing of formats that hold whatever one likes."""
        return self.licence or ("that of the texts that were graded; an export states none" if self.direction else "")

    def parser(self, columns: Collection[str], options: SourceOptions, file: str) -> RowReader:
        """The parser for a file with these columns. Raises UserError naming the columns missing and those present."""
        if self.prepare:
            return self.prepare(columns, options, file)
        self.check(columns, file)
        parse = self.parse
        assert parse is not None
        return RowReader(lambda row, out: parse(row, out, options), self.name)

    def check(self, columns: Collection[str], file: str) -> None:
        """Raise UserError where none of the required sets of columns is there."""
        present = set(columns)
        if self.requires and not any(need <= present for need in self.requires):
            need = min(self.requires, key=lambda names: (len(names - present), -len(names & present)))
            raise missing_columns(file, f"format {self.name!r}", sorted(need - present), columns, self.export)


def column_sets(*sets: str) -> tuple[frozenset[str], ...]:
    """Sets of columns, each given as their names with spaces between, for `Source.requires`."""
    return tuple(frozenset(names.split()) for names in sets)


def missing_columns(file: str, needs: str, missing: Collection[str], present: Collection[str], hint: str = "") -> UserError:
    """The error for a file without the columns that `needs` needs; it says which format would fit."""
    from mmpo.pipeline.sources import fitting

    kind = next((kind for kind in ("csv", "parquet") if f".{kind}" in Path(file).suffixes), "jsonl")
    others = [kind if name == "jsonl" else name for name in fitting(present) if repr(name) not in needs]
    told = ", ".join(repr(name) for name in sorted(present) if "[]." not in name) or "none"
    inside = ", ".join(repr(name) for name in sorted(present) if "[]." in name)
    parted = {name: name.partition(" (for ") for name in missing}
    quoted = {name: f"{column!r}{meaning}{field}" for name, (column, meaning, field) in parted.items()}
    close = {name: nearest(column, present) for name, (column, _, _) in parted.items()}
    meant = "; ".join(f"{found!r} for {quoted[name]}" for name, found in close.items() if found)
    return UserError(
        f"{file}: {needs} needs the column{'s' if len(missing) > 1 else ''} {', '.join(quoted.values())}. "
        f"Columns present: {told}{f' (inside: {inside})' if inside else ''}."
        + (f" Did you mean {meant}?" if meant else "")
        + (f" They fit --format {' or '.join(others)}." if others else "")
        + (f" {hint}" if hint else "")
    )


def check_options(source: Source, options: SourceOptions) -> None:
    """Refuse options that the source has no use for or whose values are wrong. Raises UserError."""
    if options.columns and not source.fields:
        raise UserError(f"format {source.name!r} has fixed columns; --columns is for {_formats(lambda other: bool(other.fields))}")
    for name in options.columns:
        if source.fields and name not in source.fields:
            raise unknown_name("field in --columns", name, source.fields)
    if options.kind is not None and options.kind not in KINDS:
        raise unknown_name("kind", options.kind, KINDS)
    _check_cells(source, options)
    for name, given in (("rater", options.rater), ("kind", options.kind)):
        if given is not None and not source.named:
            raise UserError(f"format {source.name!r} says itself who graded; it takes no {name}, but was given {given!r}")
    if options.scale is None:
        return
    if source.fields and not source.scaled:
        raise UserError(f"format {source.name!r} takes no --scale")
    low, high = options.scale
    if not low < high or max(-low, high) > LARGEST:
        raise UserError(f"--scale {low:g}:{high:g}: the first number must be the smaller, both finite, such as 1:10")
    if not source.scaled:
        raise UserError(f"format {source.name!r} has a scale of its own; --scale is for {_formats(lambda other: other.scaled)}")


def _check_cells(source: Source, options: SourceOptions) -> None:
    """Of the options that say what stands in a file's cells."""
    cells = {"--na": options.na, "--gap-of": options.gap_of}
    for flag, given in cells.items():
        if given and not source.fields:
            raise UserError(f"format {source.name!r} takes no {flag}; it is for {_formats(lambda other: bool(other.fields))}")
    if options.decimal not in (None, *DECIMALS):
        raise UserError(f"--decimal {options.decimal!r}: the decimal mark is one of {' '.join(DECIMALS)}")
    if options.clip not in (None, CLIP) and not source.clipped:
        raise UserError(f"format {source.name!r} clips nothing; --clip is for {_formats(lambda other: other.clipped)}")


def _formats(wanted: Callable[[Source], bool]) -> str:
    from mmpo.pipeline.sources import SOURCES

    return ", ".join(name for name, source in SOURCES.items() if wanted(source))


@lru_cache(maxsize=64)
def stem(file: str | None) -> str:
    """A file's name without folder and suffixes, the rater where nobody is named.

    >>> stem("graded/answers.jsonl.gz")
    'answers'
    """
    name = Path(file or "unknown").name
    return name.split(".")[0] or name


DECIMALS = (".", ",")
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
        try:
            part.prepared = source.parser(columns, options, chunk.name) if looked_at else RowReader(_refusing(), source.name)
        except UserError as error:
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
