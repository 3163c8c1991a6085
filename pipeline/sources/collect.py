"""One chunk of a file, in a format, as FEEDBACK: the loop over rows that every source shares."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import pyarrow as pa

from mmpo.pipeline.builder import BadRow, FeedbackBuilder
from mmpo.pipeline.read import Chunk, rows, table
from mmpo.pipeline.sources.source import Source, SourceOptions, check_options
from mmpo.pipeline.tables import REJECTS

__all__ = ["Collected", "collect"]

HEAD_ROWS = 20


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
    """Read a chunk. Rows that can't be used are in `rejects`, with their reason.

    Raises UserError: wrong options, missing columns (judged on the first 20 rows of a file), truncated or damaged
    files.
    """
    check_options(source, options)
    if source.table:
        return _collect_table(chunk, source)
    out = FeedbackBuilder(source.name)
    lines = dropped = 0

    def unreadable(number: int, reason: str, evidence: Mapping[str, Any]) -> None:
        nonlocal lines, dropped
        lines += 1
        dropped += 1
        out.at(chunk.name, number)
        out.reject(reason, evidence=evidence)

    found = rows(chunk, unreadable)
    head = list(islice(found, HEAD_ROWS))
    if head:
        # Rows of JSON may leave out what is null, so one row alone says little.
        columns = dict.fromkeys(name for _, row in head for name in row)
        parse = source.parser(columns, options, chunk.name)
        for number, row in chain(head, found):
            lines += 1
            out.at(chunk.name, number)
            try:
                parse(row, out)
            except BadRow as error:
                dropped += 1
                out.drop(error)
    return Collected(out.finish(), out.rejects_table(), lines, dropped, len(out.limited_rows), out.counts)


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
