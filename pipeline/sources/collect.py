"""One chunk of a file, in a format, as FEEDBACK: the loop over rows that every source shares."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import pyarrow as pa

from mmpo.pipeline.sources.base import RowParser, Source, SourceOptions, check_options
from mmpo.pipeline.sources.builder import BadRow, FeedbackBuilder
from mmpo.pipeline.storage.chunks import Chunk, rows, table
from mmpo.pipeline.tables import REJECTS

HEAD_ROWS = 20
PART_CHARS = 32 << 20
# The size of one row in so many stands for all of them.
SAMPLED = 16


@dataclass(frozen=True)
class Collected:
    """What a chunk held. feedback: FEEDBACK rows, large text offsets, one an input row, not merged by prompt.

    lines: input rows read, blank lines apart. dropped: how many of them gave no FEEDBACK row. limited: how many had
    something that counts against --max-rejects. counts: of prompts, completions, grades and merged completions.
    """

    feedback: pa.Table
    rejects: pa.Table
    lines: int
    dropped: int
    limited: int
    counts: Mapping[str, int]


def collect(chunk: Chunk, source: Source, options: SourceOptions) -> Collected:
    """Read a chunk whole; see `collect_parts`."""
    parts = list(collect_parts(chunk, source, options))
    if len(parts) == 1:
        return parts[0]
    return Collected(
        pa.concat_tables([part.feedback for part in parts]),
        pa.concat_tables([part.rejects for part in parts]),
        sum(part.lines for part in parts),
        sum(part.dropped for part in parts),
        sum(part.limited for part in parts),
        {name: sum(part.counts[name] for part in parts) for name in parts[0].counts},
    )


def collect_parts(chunk: Chunk, source: Source, options: SourceOptions, part_chars: int = PART_CHARS) -> Iterator[Collected]:
    """Read a chunk in parts of about `part_chars` characters each, at least one: compressed files, CSV and row groups of
    Parquet are one chunk however large they are. Rows that can't be used are in `rejects`, with their reason.

    Raises UserError: wrong options, missing columns (judged on a file's first 20 rows), truncated or damaged files.
    """
    check_options(source, options)
    if source.table:
        yield _collect_table(chunk, source)
        return
    part = _Part(chunk, source)

    def unreadable(number: int, reason: str, evidence: Mapping[str, Any]) -> None:
        part.unreadable(number, reason, evidence)

    found = rows(chunk, unreadable)
    head = list(islice(found, HEAD_ROWS))
    if head:
        # Rows of JSON may leave out what is null, so one row alone says little.
        columns = dict.fromkeys(name for _, row in head for name in row)
        parse = source.parser(columns, options, chunk.name)
        for count, (number, row) in enumerate(chain(head, found)):
            part.add(number, row, parse)
            if count % SAMPLED == 0:
                part.chars += _chars(row) * SAMPLED
                if part.chars >= part_chars:
                    yield part.collected()
                    part = _Part(chunk, source)
    yield part.collected()


class _Part:
    """The rows of a chunk that one builder holds."""

    def __init__(self, chunk: Chunk, source: Source) -> None:
        self.out = FeedbackBuilder(source.name)
        self.file = chunk.name
        self.lines = self.dropped = self.chars = 0

    def unreadable(self, number: int, reason: str, evidence: Mapping[str, Any]) -> None:
        self.lines += 1
        self.dropped += 1
        self.out.at(self.file, number)
        self.out.reject(reason, evidence=evidence)

    def add(self, number: int, row: Mapping[str, Any], parse: RowParser) -> None:
        self.lines += 1
        self.out.at(self.file, number)
        try:
            parse(row, self.out)
        except BadRow as error:
            self.dropped += 1
            self.out.drop(error)

    def collected(self) -> Collected:
        out = self.out
        return Collected(out.finish(), out.rejects_table(), self.lines, self.dropped, len(out.limited_rows), out.counts)


def _chars(value: Any) -> int:
    """About how much text a value holds."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_chars, value.values()))
    return sum(map(_chars, value)) if isinstance(value, list) else 8


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
