"""The first half of a build: one chunk of input, read in a format, counted and spilled."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from mmpo.pipeline.build.options import BuildOptions, source_options
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.grades.statistics import GradeStatistics, grade_statistics
from mmpo.pipeline.sources import Collected, get_source
from mmpo.pipeline.sources.collect import collect_parts
from mmpo.pipeline.storage.accounting import RowAccounting
from mmpo.pipeline.storage.chunks import Chunk
from mmpo.pipeline.storage.inputs import InputFile
from mmpo.pipeline.storage.spill import write_spill


@dataclass
class Read:
    """What reading a chunk left: its spills, its rejects, and the statistics of its grades."""

    spills: list[Path] = field(default_factory=list)
    rejects: list[Path] = field(default_factory=list)
    statistics: GradeStatistics = field(default_factory=GradeStatistics)
    lines: int = 0
    limited: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    accounting: RowAccounting = field(default_factory=RowAccounting)


def read_chunk(chunk: Chunk, options: BuildOptions, folder: Path, index: int, partitions: int) -> Read:
    """Read one chunk into spill files, part by part: a compressed file is one chunk however large it is."""
    result = Read()
    for number, part in enumerate(collect_parts(chunk, get_source(options.format), source_options(options))):
        result.lines += part.lines
        result.limited += part.limited
        result.statistics.add(grade_statistics(part.feedback))
        _count(part, result)
        name = f"{index:06d}-{number:06d}"
        if part.feedback.num_rows:
            result.spills.append(folder / f"{name}.arrow")
            write_spill(part.feedback, result.spills[-1], partitions)
        if part.rejects.num_rows:
            result.rejects.append(folder / f"{name}.rejects.parquet")
            pq.write_table(part.rejects, result.rejects[-1])
    return result


def _count(part: Collected, result: Read) -> None:
    """Enter a part into the counts of its chunk."""
    by_unit: dict[str, dict[str, int]] = {}
    for unit, reason in zip(part.rejects["unit"].to_pylist(), part.rejects["reason"].to_pylist(), strict=True):
        reasons = by_unit.setdefault(unit, {})
        reasons[reason] = reasons.get(reason, 0) + 1
        result.reasons[reason] = result.reasons.get(reason, 0) + 1
    count, counts = result.accounting.count, part.counts
    count("source", "line", into=part.lines, out=part.lines - part.dropped, dropped=by_unit.get("line"))
    count("source", "prompt", created=counts["prompt"], out=counts["prompt"])
    lost = by_unit.get("completion", {})
    created = counts["completion"] + counts["merged"] + sum(lost.values())
    count("source", "completion", created=created, out=counts["completion"], merged=counts["merged"], dropped=lost)
    lost = by_unit.get("grade", {})
    count("source", "grade", created=counts["grade"] + sum(lost.values()), out=counts["grade"], dropped=lost)


def check_rejects(reads: Sequence[Read], limit: float, files: Sequence[InputFile]) -> None:
    """Refuse an input of which too many lines are unreadable or invalid, naming the reason that leads."""
    lines, limited = sum(read.lines for read in reads), sum(read.limited for read in reads)
    if not lines:
        raise UserError(f"{files[0].name}{' and the other inputs hold' if len(files) > 1 else ' holds'} no rows")
    if limited <= limit * lines:
        return
    reasons: dict[str, int] = {}
    for read in reads:
        for reason, n in read.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + n
    shown = ", ".join(f"{reason} {n:,}" for reason, n in sorted(reasons.items(), key=lambda item: -item[1])[:4])
    example = next((pq.read_table(path).slice(0, 1).to_pylist()[0] for read in reads for path in read.rejects), {})
    where = f" First: {example['file']}, line {example['row']}: {example['reason']}" if example else ""
    evidence = f" {example['evidence']}" if example.get("evidence") else ""
    raise UserError(
        f"{limited:,} of {lines:,} lines ({limited / lines:.1%}) are unreadable or invalid, more than --max-rejects {limit:g} allows: "
        f"{shown}.{where}{evidence}. Mend the input, or raise --max-rejects"
    )
