"""The second half of a build: one lane of partitions, from spilled FEEDBACK rows to the Parquet files of each split."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmpo.pipeline.accounting import Ledger
from mmpo.pipeline.arrow import LARGE_FEEDBACK, flat, lists, narrow, offsets_of
from mmpo.pipeline.grades.flatten import orders_of, rater_sample
from mmpo.pipeline.grades.merge import merge_prompts
from mmpo.pipeline.grades.normalise import normalise
from mmpo.pipeline.grades.position_bias import OrderTotals
from mmpo.pipeline.grades.rater_sample import RaterSample
from mmpo.pipeline.grades.rules import Margins, PairRules
from mmpo.pipeline.grades.select import select_grades
from mmpo.pipeline.grades.statistics import GradeGroup, GradeStatistics
from mmpo.pipeline.pairs.choose import choose_pairs, within_pair_variance
from mmpo.pipeline.pairs.splits import split_of_prompts
from mmpo.pipeline.pairs.table import pairs_table
from mmpo.pipeline.storage.dataset import PartWriter
from mmpo.pipeline.storage.spill import read_partition
from mmpo.pipeline.tables import FEEDBACK, REJECTS, SPLITS

__all__ = ["LaneResult", "Plan", "lane_orders", "lane_sample", "lane_variance", "merged_partition", "run_lane"]

BATCH_BYTES = 64 << 20
"""Output text of a batch, before dictionaries and compression: it becomes one row group."""


@dataclass(frozen=True)
class Plan:
    """Everything that a lane needs to know, decided before the first one runs; picklable."""

    spills: Sequence[Path]
    folder: Path
    scratch: Path
    feedback_only: bool
    rules: PairRules
    normalisation: str
    kinds: tuple[str, ...] | None
    raters: tuple[str, ...] | None
    aspects: tuple[str, ...] | None
    groups: Sequence[GradeGroup]
    survey: GradeStatistics
    shares: tuple[float, float, float]
    pooled: dict[str, float]
    metadata: dict[str, Any]


@dataclass
class LaneResult:
    """What a lane wrote: files and rows by split, counts, and its file of rejects."""

    files: dict[str, list[Path]] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    prompts: int = 0
    ledger: Ledger = field(default_factory=Ledger)
    rejects: Path | None = None


def merged_partition(plan: Plan, partition: int, ledger: Ledger, *, texts: bool = True) -> pa.Table:
    """A partition's rows, narrowed to the chosen evidence, normalised, and merged to one row a prompt.

    texts: False leaves prompts, texts and notes empty, for passes that only look at grades.
    """
    rows = read_partition(plan.spills, partition)
    rows = rows if texts else _without_texts(rows)
    if not plan.feedback_only:
        other = "comparisons" if plan.rules.evidence == "ratings" else "ratings"
        unused = len(flat(rows[other]).flatten())
        before = len(flat(rows[plan.rules.evidence]).flatten())
        rows, left_out = select_grades(rows, plan.rules.evidence, kinds=plan.kinds, raters=plan.raters, aspects=plan.aspects)
        not_chosen = {"grade_not_chosen": unused + left_out} if unused + left_out else {}
        ledger.count("evidence", "grade", into=before + unused, out=before - left_out, dropped=not_chosen)
        rows = normalise(rows, plan.rules.evidence, plan.normalisation, plan.groups, plan.survey)
    merged, counts = merge_prompts(rows)
    completions = len(flat(merged["completions"]).flatten())
    ledger.count("merge", "prompt", into=rows.num_rows, out=merged.num_rows, merged=counts["prompt"])
    ledger.count("merge", "completion", into=completions + counts["completion"], out=completions, merged=counts["completion"])
    return merged


def _without_texts(rows: pa.Table) -> pa.Table:
    """FEEDBACK rows with the same ids and grades, but nothing to read."""
    size = rows.num_rows
    columns = dict(zip(rows.column_names, map(flat, rows.columns), strict=True))
    columns["prompt"] = lists(np.zeros(size, dtype=np.int64), columns["prompt"].flatten().slice(0, 0))
    columns["extra"] = pa.nulls(size, columns["extra"].type)
    for name, text in (("completions", "text"), ("ratings", "note"), ("comparisons", "note")):
        column = columns[name]
        inner = column.flatten()
        fields = [inner.type.field(i) for i in range(inner.type.num_fields)]
        arrays = [pa.nulls(len(inner), f.type) if f.name == text else inner.field(f.name) for f in fields]
        columns[name] = lists(offsets_of(column)[:-1], pa.StructArray.from_arrays(arrays, fields=fields))
    return pa.Table.from_arrays([columns[name] for name in LARGE_FEEDBACK.names], schema=LARGE_FEEDBACK)


def _grades_of(plan: Plan, partitions: Sequence[int]) -> Iterator[pa.Table]:
    return (merged_partition(plan, partition, Ledger(), texts=False) for partition in partitions)


def lane_orders(plan: Plan, partitions: Sequence[int]) -> list[dict[tuple[str, str], OrderTotals]]:
    """The lane's share of what raters' answers in both orders say of their position bias."""
    return [orders_of(table) for table in _grades_of(plan, partitions)]


def lane_sample(plan: Plan, partitions: Sequence[int], share: float) -> RaterSample:
    """The lane's share of the grades that raters are compared by; `share` of the prompts are in the sample."""
    return RaterSample.joined([rater_sample(table, plan.rules, share) for table in _grades_of(plan, partitions)])


def lane_variance(plan: Plan, partitions: Sequence[int]) -> dict[str, tuple[float, int]]:
    """The lane's share of each source's pooled within-pair variance: squared deviations and degrees of freedom."""
    total: dict[str, tuple[float, int]] = {}
    for table in _grades_of(plan, partitions):
        for source, (squares, degrees) in within_pair_variance(table, plan.rules).items():
            before = total.get(source, (0.0, 0))
            total[source] = (before[0] + squares, before[1] + degrees)
    return total


def run_lane(plan: Plan, lane: int, partitions: Sequence[int]) -> LaneResult:
    """Write the lane's part of the dataset."""
    result = LaneResult()
    names = ("feedback",) if plan.feedback_only else SPLITS
    writers = {name: PartWriter(plan.folder / name, f"lane{lane:05d}", plan.metadata) for name in names}
    rejects = _Rejects(plan.scratch / f"lane{lane:05d}.rejects.parquet")
    waiting: dict[str, list[pa.Table]] = {name: [] for name in names}
    held = dict.fromkeys(names, 0)

    def flush(name: str) -> None:
        if waiting[name]:
            batch = pa.concat_tables(waiting[name]).combine_chunks()
            table = narrow(batch, FEEDBACK) if plan.feedback_only else _pairs(plan, batch, result, rejects)
            writers[name].write(table)
            result.rows[name] = result.rows.get(name, 0) + table.num_rows
            result.prompts += batch.num_rows if plan.feedback_only else len(pc.unique(flat(table["prompt_id"])))
            waiting[name], held[name] = [], 0

    for partition in partitions:
        merged = merged_partition(plan, partition, result.ledger)
        side = np.zeros(merged.num_rows, dtype=np.int64) if plan.feedback_only else split_of_prompts(merged, plan.shares)
        for index, name in enumerate(names):
            part = merged.filter(pa.array(side == index)).combine_chunks()
            for piece, size in _pieces(part, plan):
                waiting[name].append(piece)
                held[name] += size
                if held[name] >= BATCH_BYTES:
                    flush(name)
    for name in names:
        flush(name)
        writers[name].close()
        result.files[name] = writers[name].paths
    result.rejects = rejects.close()
    return result


def _pieces(table: pa.Table, plan: Plan) -> list[tuple[pa.Table, int]]:
    """The table in slices whose output has at most BATCH_BYTES (one prompt may have more), each with that size."""
    if not table.num_rows:
        return []
    size = _output_bytes(table, plan)
    at = np.cumsum(size) // BATCH_BYTES
    cuts = [0, *(np.flatnonzero(np.diff(at)) + 1).tolist(), table.num_rows]
    return [(table.slice(a, b - a), int(size[a:b].sum())) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]


def _output_bytes(table: pa.Table, plan: Plan) -> np.ndarray:
    """About how many bytes of text each prompt's rows will have, shape (rows,)."""
    prompts, completions = flat(table["prompt"]), flat(table["completions"])
    prompt = _text_bytes(prompts, "content")
    texts = _text_bytes(completions, "text")
    n = np.diff(offsets_of(completions))
    if plan.feedback_only:
        return prompt + texts + 200
    pairs = n * (n - 1) // 2 if plan.rules.strategy in ("all", "stratified") else n
    if plan.rules.max_per_prompt:
        pairs = np.minimum(pairs, plan.rules.max_per_prompt)
    return pairs * (prompt + 2 * texts // np.maximum(n, 1) + 200) + 200


def _text_bytes(column: pa.ListArray, name: str) -> np.ndarray:
    lengths = np.asarray(pc.binary_length(column.flatten().field(name))).astype(np.int64)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    return np.diff(ends[offsets_of(column)])


def _pairs(plan: Plan, batch: pa.Table, result: LaneResult, rejects: "_Rejects") -> pa.Table:
    """The PAIRS rows of a batch; what it drops is counted and kept as rejects."""
    margins = choose_pairs(batch, plan.rules, plan.pooled)
    grades = len(flat(batch[plan.rules.evidence]).flatten())
    without_part = {reason: n for (unit, reason), n in margins.dropped.items() if unit == "grade"}
    dropped = {reason: n for (unit, reason), n in margins.dropped.items() if unit == "pair"}
    count = result.ledger.count
    count("score", "grade", into=grades, out=margins.used_grades, merged=grades - margins.used_grades - sum(without_part.values()),
          dropped=without_part)  # fmt: skip
    count("pair", "pair", created=margins.created, out=margins.created)
    count("filter", "pair", into=margins.created, out=len(margins.prompt), dropped=dropped)
    sizes = np.diff(offsets_of(flat(batch["completions"])))
    has_pair = np.zeros(batch.num_rows, dtype=bool)
    has_pair[margins.prompt] = True
    single, none = sizes < 2, (sizes >= 2) & ~has_pair
    lost = {reason: int(mask.sum()) for reason, mask in (("single_completion", single), ("no_pair", none)) if mask.any()}
    count("pair", "prompt", into=batch.num_rows, out=int(has_pair.sum()), dropped=lost)
    ids = flat(batch["prompt_id"])
    rejects.prompts(ids.filter(pa.array(single)), "pair", "single_completion")
    rejects.prompts(ids.filter(pa.array(none)), "pair", "no_pair")
    rejects.pairs(batch, margins)
    return pairs_table(batch, margins)


class _Rejects:
    """A lane's REJECTS rows, in a file of their own that comes into being with the first row."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writer: pq.ParquetWriter | None = None

    def _write(self, unit: str, stage: str, reason: str, ids: pa.Array, evidence: pa.Array | None) -> None:
        if not len(ids):
            return
        size = len(ids)
        constant = [pa.repeat(pa.scalar(text), size) for text in (unit, stage, reason)]
        rest = [pa.nulls(size, pa.string()), pa.nulls(size, pa.int64()), ids]
        table = pa.Table.from_arrays(
            [*constant, *rest, pa.nulls(size, pa.string()) if evidence is None else evidence], schema=REJECTS
        )
        if self.writer is None:
            self.writer = pq.ParquetWriter(self.path, REJECTS, compression="zstd")
        self.writer.write_table(table)

    def prompts(self, ids: pa.Array, stage: str, reason: str) -> None:
        """Prompts of which no pair came."""
        self._write("prompt", stage, reason, ids, None)

    def pairs(self, batch: pa.Table, margins: Margins) -> None:
        """Pairs that a filter left out, with the ids of their completions."""
        ids, completions = flat(batch["prompt_id"]), flat(batch["completions"]).flatten().field("id")
        for reason, prompt, chosen, rejected in margins.evidence:
            evidence = pc.binary_join_element_wise(
                '{"chosen_id":"', completions.take(pa.array(chosen)), '","rejected_id":"',
                completions.take(pa.array(rejected)), '"}', "",
            )  # fmt: skip
            self._write("pair", "filter", reason, ids.take(pa.array(prompt)), evidence)

    def close(self) -> Path | None:
        """Finish the file; its path, or None where nothing was rejected."""
        if self.writer is None:
            return None
        self.writer.close()
        return self.path
