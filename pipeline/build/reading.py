"""The first half of a build: chunks of input read, counted and spilled; an input is refused of which too little can be used."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmpo.pipeline.build.options import BuildOptions, source_options
from mmpo.pipeline.build.summary import left_out
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.grades.statistics import NO_GRADES, GradeStatistics, grade_statistics
from mmpo.pipeline.sources import Collected, get_source
from mmpo.pipeline.sources.collect import collect_parts, uncollected
from mmpo.pipeline.storage.accounting import RowAccounting
from mmpo.pipeline.storage.rows import Chunk
from mmpo.pipeline.storage.spill import Extent, SpillPlan, joined_extents, write_spill
from mmpo.pipeline.storage.text_files import InputFile
from mmpo.pipeline.tables import REPAIR, held_keys

PART_CHARS = 16 << 20
"""Text of a part: rows are objects of Python until it is whole."""


@dataclass
class Read:
    """What reading chunks left: by shard its spills, its rejects, and the statistics of its grades. noted: what was noted of rows that were
    kept; unused: file → its columns that are not read; keys: those of OPTIONAL_KEYS that it holds.
    """

    spills: dict[int, list[Extent]] = field(default_factory=dict)
    rejects: list[Path] = field(default_factory=list)
    statistics: GradeStatistics = field(default_factory=GradeStatistics)
    lines: int = 0
    limited: int = 0
    limited_reasons: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)
    unused: dict[str, tuple[str, ...]] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)
    accounting: RowAccounting = field(default_factory=RowAccounting)

    def add(self, other: "Read") -> None:
        """Take in what the next chunk left. Floating-point sums depend on the order, and chunks on the input alone."""
        for shard, extents in other.spills.items():
            self.spills[shard] = joined_extents([*self.spills.get(shard, []), *extents])
        self.rejects += other.rejects
        self.statistics.add(other.statistics)
        self.lines += other.lines
        self.limited += other.limited
        self.limited_reasons += other.limited_reasons
        self.noted += other.noted
        self.unused |= other.unused
        self.keys |= other.keys
        self.accounting.add(other.accounting)

    @property
    def spilled(self) -> int:
        """Bytes on disk."""
        return sum(one.end - one.start for extents in self.spills.values() for one in extents)


@uncollected()
def read_chunks(chunks: Sequence[Chunk], options: BuildOptions, spill: SpillPlan, index: int) -> list[Read]:
    """Read chunks, part by part, and spill what they hold in runs; what each left, the spills with the last. index: of the first chunk,
    which files of rejects are named by. A compressed file is one chunk however large it is.
    """
    reading, result, run = source_options(options), [Read() for _ in chunks], _Run(spill)
    for place, (chunk, read) in enumerate(zip(chunks, result, strict=True)):
        for number, part in enumerate(collect_parts(chunk, get_source(options.format), reading, PART_CHARS)):
            read.lines += part.lines
            read.limited += part.limited
            read.limited_reasons.update(part.limited_reasons)
            read.noted.update(part.noted)
            unused = tuple(name for name in part.unused if name not in reading.keep)
            if unused and chunk.first:
                read.unused[chunk.name] = unused
            read.keys.update(held_keys(part.feedback))
            read.statistics.add(grade_statistics(part.feedback))
            _count(part, read)
            if part.rejects.num_rows:
                read.rejects.append(spill.folder / f"{index + place:06d}-{number:06d}.rejects.parquet")
                pq.write_table(part.rejects, read.rejects[-1])
            run.add(part.feedback)
    run.write()
    if result:
        result[-1].spills = run.spills
    return result


class _Run:
    """Rows that are spilled together."""

    def __init__(self, spill: SpillPlan) -> None:
        self.plan, self.spills = spill, {}
        self.waiting: list[pa.Table] = []
        self.size = 0

    def add(self, rows: pa.Table) -> None:
        """Takes rows; writes what waits where that is enough."""
        self.waiting.append(rows)
        self.size += rows.nbytes
        if self.size >= self.plan.run:
            self.write()

    def write(self) -> None:
        """Spills what waits."""
        if self.size:
            rows, self.waiting, self.size = pa.concat_tables(self.waiting).combine_chunks(), [], 0
            for shard, extent in write_spill(rows, self.plan.folder, self.plan.shards, self.plan.cells).items():
                self.spills[shard] = joined_extents([*self.spills.get(shard, []), extent])


def _count(part: Collected, result: Read) -> None:
    """Enter a part into the counts of its chunk."""
    by_unit: defaultdict[str, Counter[str]] = defaultdict(Counter)
    repaired: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for unit, stage, reason in zip(*(part.rejects[name].to_pylist() for name in ("unit", "stage", "reason")), strict=True):
        (repaired if stage == REPAIR else by_unit)[unit][reason] += 1
    count, counts = result.accounting.count, part.counts
    count("source", "line", into=part.lines, out=part.lines - part.dropped, dropped=by_unit["line"])
    for unit, merged in (("prompt", 0), ("completion", counts["merged"]), ("grade", 0)):
        lost = by_unit[unit]
        count("source", unit, created=counts[unit] + merged + lost.total(), out=counts[unit], merged=merged, dropped=lost)
    for unit in by_unit.keys() - {"line", *counts}:  # what formats of the user's own call otherwise
        count("source", unit, created=by_unit[unit].total(), dropped=by_unit[unit])
    for unit, reasons in repaired.items():
        count("source", unit, repaired=reasons)


def check_rejects(parts: Sequence[Read | Collected], limit: float, files: Sequence[InputFile], rejects: Iterable[pa.Table]) -> None:
    """Refuse an input of which too many lines are unreadable or invalid, or all, with the first line of the reason that leads."""
    lines, limited = sum(part.lines for part in parts), sum(part.limited for part in parts)
    if not lines:
        raise UserError(f"{files[0].name}{' and the other inputs hold' if len(files) > 1 else ' holds'} no rows")
    if limited <= limit * lines and limited < lines:
        return
    too_many = f", more than --max-rejects {limit:g} allows" if limited > limit * lines else ""
    raised = ", or raise --max-rejects" if limited < lines else ": nothing of it is left, whatever --max-rejects allows"
    reasons = sum((part.limited_reasons for part in parts), Counter()).most_common(4)
    shown = ", ".join(f"{reason} {n:,}" for reason, n in reasons)
    raise UserError(
        f"{limited:,} of {lines:,} lines ({limited / lines:.1%}) are unreadable or invalid{too_many}: "
        f"{shown}.{_first(reasons[0][0], rejects)}. Mend the input{raised}"
    )


def _first(reason: str, rejects: Iterable[pa.Table]) -> str:
    """Where something was first left out for this reason, and why in particular, as the end of a message; "" where no table says."""
    found = (table.filter(pc.equal(table["reason"], reason)) for table in rejects)
    example = next((table.slice(0, 1).to_pylist()[0] for table in found if table.num_rows), None)
    if example is None:
        return ""
    details = orjson.loads(example["evidence"] or "{}")
    hint = details.pop("hint", None)
    evidence = (f" {orjson.dumps(details).decode()}" if details else "") + (f": {hint}" if hint else "")
    return f" First: {example['file']}, line {example['row']}: {reason}{evidence}"


def check_grades(parts: Sequence[Read], statistics: GradeStatistics, rejects: Iterable[pa.Table]) -> None:
    """Refuse an input that no grade is left of, with what was left out of it and why."""
    if statistics.groups:
        return
    accounting = RowAccounting()
    for part in parts:
        accounting.add(part.accounting)
    lines = accounting.entries["source", "line"]
    if not (dropped := accounting.dropped()):
        raise UserError(NO_GRADES)
    raise none_left(
        "no grade of the input is left, so that there are no pairs", dropped, lines.dropped.total(), lines.into, rejects
    )


def none_left(what: str, dropped: Mapping[str, int], lost: int, lines: int, rejects: Iterable[pa.Table]) -> UserError:
    """The error of an input of which too much was left out. what: what is lacking; dropped: how much for what reason, at least one;
    lost: how many of the lines; rejects: tables of REJECTS."""
    reason = min(dropped, key=lambda name: (-dropped[name], name))
    return UserError(f"{what} ({lost:,} of {lines:,} lines left out). Left out: {left_out(dropped)}.{_first(reason, rejects)}")
