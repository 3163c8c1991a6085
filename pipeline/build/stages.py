"""The second half of a build: a shard of prompts read back, merged, paired and written, split by split."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmpo.pipeline.arrow import flat, narrow, offsets_of, row_sums, to_numpy, without_texts
from mmpo.pipeline.build.mixture import (
    Batches,
    EarlierSources,
    Shared,
    SourceMargins,
    as_first_written,
    drawn,
    in_one_table,
    joined_feedback,
    named,
    namesakes,
)
from mmpo.pipeline.build.prompt_filters import STAGE, LookedAt, look_at_shard, read_dropped, without_dropped
from mmpo.pipeline.build.resolve import ResolvedBuild, merged_grades
from mmpo.pipeline.build.summary import Example, sides_of, with_examples
from mmpo.pipeline.filters import PromptRules
from mmpo.pipeline.grades.answers import DIFFERS, Answers, drop_thinking
from mmpo.pipeline.grades.rules import PairRules
from mmpo.pipeline.pairs.choose import choose_pairs
from mmpo.pipeline.pairs.splits import check_one_value, split_of_positions, split_positions
from mmpo.pipeline.pairs.strategies import STRATEGIES
from mmpo.pipeline.pairs.table import ChosenPairs, pairs_table
from mmpo.pipeline.storage.accounting import RowAccounting
from mmpo.pipeline.storage.dataset import PartWriter, repeating
from mmpo.pipeline.storage.files import FileDigest
from mmpo.pipeline.storage.spill import Extent, SpillPlan, even_bounds, positions_of, read_spills
from mmpo.pipeline.tables import MESSAGE_KEYS, REJECTS, REPLY_KEYS, SPLITS

BATCH_BYTES = 64 << 20
"""Output text of a batch, before dictionaries and compression: it becomes one row group."""
MOST_FIRST = 50_000
"""First user messages that a shard tells of, unless splits go by prompts: they are counted where a split is empty."""
MANY_PAIRS = 100_000
"""Of a prompt: more are told. All pairs of a prompt are in memory at once."""


@dataclass(frozen=True)
class Shard:
    """What a source spilled of a range of positions, which one process works on: its place among as many `shards`, and the spill files'
    extents. units: equal parts of the range that sums over grades are made of, fixed by the input; plan: how much is read at a time."""

    number: int
    extents: Sequence[Extent]
    units: int
    plan: SpillPlan

    @property
    def name(self) -> str:
        """How the names of its files begin."""
        return f"shard{self.number:05d}"

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(one.end - one.start for one in self.extents)


@dataclass
class ShardResult:
    """What a shard wrote: files and rows by split, digests by "split/file", counts, its files of rejects, and what the summary of the build
    is made of.

    examples: its two pairs of the largest margins, of two prompts; ties, rounded_ties, unwitnessed: pairs of margin 0, those of
    them whose values differ by less than the rounding step, and pairs of 0 raters; ties_at_ends: those whose scores
    are both at the same end of the range of scores; same_answers: pairs whose replies differ in nothing but the key (of DIFFERS);
    first_messages: where distinct first user messages would fall in [0, 1), and sides: on which sides (a bit each) prompts of each came to
    lie. many: pairs, completions and ids of prompts with more than MANY_PAIRS. by_source, shared: of a build of several sources, what each
    gave and what they have in common.
    """

    files: dict[str, list[Path]] = field(default_factory=dict)
    digests: dict[str, FileDigest] = field(default_factory=dict)
    rows: Counter[str] = field(default_factory=Counter)
    prompts: int = 0
    accounting: RowAccounting = field(default_factory=RowAccounting)
    rejects: list[Path] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    ties: int = 0
    rounded_ties: int = 0
    unwitnessed: int = 0
    ties_at_ends: int = 0
    same_answers: Counter[str] = field(default_factory=Counter)
    first_messages: np.ndarray = field(default_factory=lambda: np.zeros(0))
    sides: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int8))
    many: list[tuple[int, int, str]] = field(default_factory=list)
    by_source: dict[str, SourceMargins] = field(default_factory=dict)
    shared: Shared = field(default_factory=Shared)


def splits_of(build: ResolvedBuild) -> tuple[str, ...]:
    """The folders that a build writes."""
    return ("feedback",) if build.options.feedback_only else SPLITS


def collect_from(build: ResolvedBuild, shard: Shard, function: Callable[[pa.Table, PairRules], Any]) -> list[Any]:
    """What the function returns for the merged grades (without texts) of each unit of the shard."""
    texts = build.options.thinking == "drop"  # by which replies are told apart
    found = _rows([build], [shard], RowAccounting(), texts=texts)
    tables = (_merged(without_texts(rows) if texts else rows, build, RowAccounting()) for [rows] in found)
    return [function(table, build.rules) for table in _by_unit(tables, shard)]


def _by_unit(tables: Iterable[pa.Table], shard: Shard) -> Iterator[pa.Table]:
    """Rows of ascending positions, cut at the units' bounds instead of where they were."""
    bounds, waiting, current = even_bounds(shard.plan.shards * shard.units), [], 0
    for table in tables:
        unit = np.searchsorted(bounds, positions_of(flat(table["prompt_id"])), side="right")
        for low, high in pairwise([0, *(np.flatnonzero(np.diff(unit)) + 1).tolist(), len(unit)]):
            if waiting and high > low and unit[low] != current:
                yield pa.concat_tables(waiting).combine_chunks()
                waiting = []
            if high > low:
                waiting.append(table.slice(low, high - low))
                current = unit[low]
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def filter_shard(builds: Sequence[ResolvedBuild], shards: Sequence[Shard], rules: PromptRules, scratch: Path) -> LookedAt:
    """Look at the prompts of a shard, and leave in the scratch folder which of them are left out and what others are compared by."""
    return look_at_shard(_rows(builds, shards, RowAccounting()), builds, rules, scratch / shards[0].name)


def _rows(
    builds: Sequence[ResolvedBuild], shards: Sequence[Shard], accounting: RowAccounting, *, texts: bool = True
) -> Iterator[list[pa.Table]]:
    """What the spills of every source hold of the shard, in groups of whole prompts; nothing of it is held on to here."""
    plan = shards[0].plan
    for found in read_spills([shard.extents for shard in shards], plan.group, plan.folder, texts=texts):
        for place, build in enumerate(builds):
            found[place] = _without_thinking(build, accounting, found[place])
        yield found
        del found


def _merged(rows: pa.Table, build: ResolvedBuild, accounting: RowAccounting) -> pa.Table:
    """The rows merged to one row per prompt, by ascending positions, which for ids of ours is their order."""
    merged = merged_grades(rows, build, accounting)
    positions = positions_of(flat(merged["prompt_id"]))
    if len(positions) and (positions[1:] < positions[:-1]).any():
        merged = merged.take(pa.array(np.argsort(positions, kind="stable"))).combine_chunks()
    return merged


def _without_thinking(build: ResolvedBuild, accounting: RowAccounting, rows: pa.Table) -> pa.Table:
    """The rows without thinking, where that is dropped."""
    if build.options.thinking == "keep" and build.mixed is None:
        return rows
    rows, gone = drop_thinking(rows) if build.options.thinking == "drop" else (rows, 0)
    left = sum(len(flat(rows[name]).flatten()) for name in ("ratings", "comparisons"))
    dropped = {"identical_answers": gone} if gone else {}
    accounting.count("answers", "grade", into=left + gone, out=left, dropped=dropped)
    return rows


def write_shard(
    builds: Sequence[ResolvedBuild],
    shards: Sequence[Shard],
    folder: Path,
    scratch: Path,
    metadata: dict[str, Any],
    left_out: Path | None = None,
) -> ShardResult:
    """Write the shard's part of the dataset into the folder, rejects into the scratch folder; metadata goes into every file. builds,
    shards: of every source, each shard of the same partitions. left_out: the file of DROPPED of prompts that filters leave out.
    """
    first, dropped = builds[0], read_dropped(left_out) if left_out else None
    result, names = ShardResult(), splits_of(first)
    writers = {name: PartWriter(folder / name, shards[0].name, metadata) for name in names}
    rejects, of_prompts = (_Rejects(scratch / f"{shards[0].name}.{name}.parquet") for name in ("rejects", "prompts"))
    waiting: dict[str, list[list[pa.Table]]] = {name: [[] for _ in builds] for name in names}
    written, batch = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    alike = namesakes(builds) if first.options.feedback_only else set()

    def flush(name: str) -> None:
        batches = [
            (build, pa.concat_tables(tables).combine_chunks())
            for build, tables in zip(builds, waiting[name], strict=True)
            if tables
        ]
        waiting[name] = [[] for _ in builds]
        if batches and first.options.feedback_only:
            whole = batches[0][1] if first.mixed is None else joined_feedback(batches, alike, result.accounting)
            table = narrow(whole, first.keys)
        elif batches:
            table = _pairs_of_all(batches, name, result, rejects, writers[name])
        if batches:
            writers[name].write(table)
            result.rows[name] += table.num_rows
            result.prompts += table.num_rows if first.options.feedback_only else len(pc.unique(flat(table["prompt_id"])))

    def take(rows: list[pa.Table]) -> None:
        check_one_value(rows[0] if len(rows) == 1 else pa.concat_tables(rows).combine_chunks(), first.options.split_by)
        merged = [_merged(rows.pop(0), build, result.accounting) for build in builds]  # one after the other is let go
        if first.mixed is not None:
            merged = [drawn(one, build, result.accounting) for one, build in zip(merged, builds, strict=True)]
        if dropped is not None:
            kept, lost = zip(*(without_dropped(one, dropped, result.accounting) for one in merged), strict=True)
            merged, lost = list(kept), pa.concat_tables(lost).combine_chunks()
            of_prompts.add("prompt", STAGE, *(flat(lost[name]) for name in ("reason", "prompt_id", "evidence")))
        sides = [_sides(one, first, result) if len(names) > 1 else np.zeros(one.num_rows, dtype=np.int64) for one in merged]
        for index, name in enumerate(names):
            parts = [one.filter(pa.array(side == index)).combine_chunks() for one, side in zip(merged, sides, strict=True)]
            for pieces, number, end in _pieces(parts, builds, written[name]):
                written[name] = end
                if number != batch[name]:
                    flush(name)
                    batch[name] = number
                for tables, piece in zip(waiting[name], pieces, strict=True):
                    tables += [piece] if piece.num_rows else []

    for rows in _rows(builds, shards, result.accounting):
        take(rows)
    for name in names:
        flush(name)
        writers[name].close()
        result.files[name] = writers[name].paths
        result.digests |= writers[name].digests
    result.rejects = [path for path in (of_prompts.close(), rejects.close()) if path]
    return result


def _sides(merged: pa.Table, build: ResolvedBuild, result: ShardResult) -> np.ndarray:
    """The split of each prompt; which splits its first user message now lies in is noted."""
    positions = split_positions(merged)
    by = build.options.split_by
    side = split_of_positions(positions if by == "first-message" else split_positions(merged, by), build.options.split)
    found = sides_of(
        np.concatenate([result.first_messages, positions]), np.concatenate([result.sides, (1 << side).astype(np.int8)])
    )
    result.first_messages, result.sides = found if by == "prompt" else (one[:MOST_FIRST] for one in found)
    return side


def _pieces(tables: Sequence[pa.Table], builds: Sequence[ResolvedBuild], written: int) -> Iterator[tuple[list[pa.Table], int, int]]:
    """The tables of all sources in slices of the same prompts, each with the number of the batch that it belongs to and how many bytes of
    output there are with it. A batch has about BATCH_BYTES of it (one prompt may have more), and depends on the prompts alone: written is
    the output of all before these tables.
    """
    sizes = [_output_bytes(table, build) for table, build in zip(tables, builds, strict=True)]
    numbers = [np.arange(len(size)) for size in sizes]  # of prompts, in the order in which all tables have them
    if len(tables) > 1:
        positions = [positions_of(flat(table["prompt_id"])) for table in tables]
        numbers = np.split(
            np.unique(np.concatenate(positions), return_inverse=True)[1], np.cumsum([len(one) for one in positions])[:-1]
        )
    size = np.bincount(np.concatenate(numbers), np.concatenate(sizes)).astype(np.int64)
    ends = written + np.cumsum(size)
    batch = ends // BATCH_BYTES
    cuts = [0, *(np.flatnonzero(np.diff(batch)) + 1).tolist(), len(size)] if len(size) else []
    for low, high in pairwise(cuts):
        of = [np.searchsorted(number, (low, high)).tolist() for number in numbers]
        yield [table.slice(a, b - a) for table, (a, b) in zip(tables, of, strict=True)], int(batch[low]), int(ends[high - 1])


def _output_bytes(table: pa.Table, build: ResolvedBuild) -> np.ndarray:
    """About how many bytes of text each prompt's rows will have, shape (rows,)."""
    prompts, completions = flat(table["prompt"]), flat(table["completions"])
    prompt = row_sums(prompts, pc.binary_length(prompts.flatten().field("content")))
    texts = row_sums(completions, pc.binary_length(completions.flatten().field("text")))
    for column, total, names in ((prompts, prompt, MESSAGE_KEYS), (completions, texts, REPLY_KEYS)):
        for key in set(names) & set(build.keys):
            total += row_sums(column, pc.fill_null(pc.binary_length(column.flatten().field(key)), 0))
    n = np.diff(offsets_of(completions))
    if build.options.feedback_only:
        return prompt + texts + 200
    pairs = n * (n - 1) // 2 if STRATEGIES[build.rules.strategy].every_pair else n
    if build.rules.max_per_prompt:
        pairs = np.minimum(pairs, build.rules.max_per_prompt)
    output = pairs * (prompt + 2 * texts // np.maximum(n, 1) + 200) + 200
    return np.maximum(output, prompt + texts)  # which has to wait for its batch


def _pairs_of_all(batches: Batches, split: str, result: ShardResult, rejects: "_Rejects", writer: PartWriter) -> pa.Table:
    """The PAIRS rows of all sources' batches of the same prompts."""
    if batches[0][0].mixed is None:
        return _pairs(*batches[0], result, rejects, writer)
    earlier, tables = EarlierSources(batches, result.shared), []
    for build, batch in as_first_written(batches):
        tables.append(named(_pairs(build, batch, result, rejects, None, earlier), build))
        result.by_source.setdefault(build.name, SourceMargins()).count(split, tables[-1])
    return in_one_table(tables)


def _pairs(
    build: ResolvedBuild,
    batch: pa.Table,
    result: ShardResult,
    rejects: "_Rejects",
    writer: PartWriter | None,
    earlier: EarlierSources | None = None,
) -> pa.Table:
    """The PAIRS rows of a batch, as the writer takes them where it is given; what is dropped is counted and kept as rejects."""
    pairs = choose_pairs(batch, build.rules, build.pooled)
    if earlier is not None:
        pairs = pairs.without("in_earlier_source", earlier.has(batch, pairs))
    if build.times != 1:
        moved = ("quality_margin", "margin_se", "score_chosen", "score_rejected")
        pairs = replace(pairs, **{name: getattr(pairs, name) * build.times for name in moved})
    grades = len(flat(batch[build.rules.evidence]).flatten())
    count = result.accounting.count
    merged = grades - pairs.used_grades - sum(pairs.dropped_grades.values())
    count("score", "grade", into=grades, out=pairs.used_grades, merged=merged, dropped=pairs.dropped_grades)
    count("pair", "pair", created=pairs.created, out=pairs.created)
    count("filter", "pair", into=pairs.created, out=len(pairs.prompt), dropped=pairs.dropped)
    several = np.diff(offsets_of(flat(batch["completions"]))) > 1
    of_prompt = np.bincount(pairs.prompt, minlength=batch.num_rows)
    has_pair = of_prompt > 0
    for row in np.flatnonzero(of_prompt > MANY_PAIRS).tolist():
        completions = len(batch["completions"][row])
        result.many.append((int(of_prompt[row]), completions, batch["prompt_id"][row].as_py()))
    lost = {"single_completion": ~several, "no_pair": several & ~has_pair}
    dropped = {reason: int(mask.sum()) for reason, mask in lost.items() if mask.any()}
    count("pair", "prompt", into=batch.num_rows, out=int(has_pair.sum()), dropped=dropped)
    for reason, mask in lost.items():
        rejects.add("prompt", "pair", reason, flat(batch["prompt_id"]).filter(pa.array(mask)))
    rejects.add_pairs(batch, pairs)
    if writer is not None and writer.repeating is None and len(pairs.prompt):
        writer.repeating = repeating(int(has_pair.sum()), len(pairs.prompt))
    table = pairs_table(batch, pairs, build.keys, repeating=writer is not None and bool(writer.repeating))
    result.examples = with_examples(result.examples, table)
    result.ties += int((pairs.quality_margin == 0).sum())
    result.rounded_ties += int(pairs.rounded_ties.sum())
    if build.rules.evidence == "ratings" and (ends := build.score_range()):
        result.ties_at_ends += int((np.isin(to_numpy(flat(table["score_chosen"])), ends) & (pairs.quality_margin == 0)).sum())
    result.unwitnessed += int((pairs.raters == 0).sum())
    if build.options.graded_part == "all":
        same = Answers(batch).same(pairs.chosen, pairs.rejected)
        result.same_answers.update({name: int((same == code).sum()) for code, name in enumerate(DIFFERS, 1)})
    return table


class _Rejects:
    """A shard's REJECTS rows, in a file of their own that comes into being with the first row."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writer: pq.ParquetWriter | None = None

    def add(self, unit: str, stage: str, reason: str | pa.Array, ids: pa.Array, evidence: pa.Array | None = None) -> None:
        """Rows of these prompts' ids, one per unit left out, for one reason or for one each."""
        if not len(ids):
            return
        size = len(ids)
        columns = {name: pa.repeat(pa.scalar(text), size) for name, text in (("unit", unit), ("stage", stage))}
        columns["reason"] = pa.repeat(pa.scalar(reason), size) if isinstance(reason, str) else reason
        columns |= {"prompt_id": ids} | ({} if evidence is None else {"evidence": evidence})
        arrays = [columns[f.name] if f.name in columns else pa.nulls(size, f.type) for f in REJECTS]
        if self.writer is None:
            self.writer = pq.ParquetWriter(self.path, REJECTS, compression="zstd")
        self.writer.write_table(pa.Table.from_arrays(arrays, schema=REJECTS))

    def add_pairs(self, batch: pa.Table, pairs: ChosenPairs) -> None:
        """Pairs that a filter left out, with the ids of their completions."""
        ids, completions = flat(batch["prompt_id"]), flat(batch["completions"]).flatten().field("id")
        for reason, prompt, chosen, rejected, details in pairs.left_out:
            more = '"}' if details is None else pa.array(['",' + orjson.dumps(one).decode()[1:] for one in details], pa.string())
            evidence = pc.binary_join_element_wise(
                '{"chosen_id":"', completions.take(pa.array(chosen)), '","rejected_id":"',
                completions.take(pa.array(rejected)), more, "",
            )  # fmt: skip
            self.add("pair", "filter", reason, ids.take(pa.array(prompt)), evidence)

    def close(self) -> Path | None:
        """Finish the file; its path, or None where nothing was rejected."""
        if self.writer is None:
            return None
        self.writer.close()
        return self.path
