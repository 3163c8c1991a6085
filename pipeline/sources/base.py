"""What a source of feedback is, the options that all share, and what is refused of them."""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from mmpo.pipeline.errors import UserError, nearest, unknown_name
from mmpo.pipeline.sources.builder import KINDS, LARGEST, BadRow, FeedbackBuilder

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
    if kind == "csv" and len(present) == 1 and (marks := set("|;,\t:") & set(*present)):
        hint = f"The cells are parted by {' or '.join(map(repr, sorted(marks)))}, it seems: --sep names the separator."
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
