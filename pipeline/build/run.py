"""`build`: feedback files to a dataset folder, in bounded memory, on all cores, whole or not at all.

First every chunk of input is read, surveyed and spilled by the hash of its prompts; then every lane of partitions is merged, scored,
paired and written. Both halves run the same on one core and on many, and the result does not depend on how many there are.
"""

import dataclasses
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmpo.pipeline.accounting import Ledger
from mmpo.pipeline.build.decide import decide
from mmpo.pipeline.build.options import BuildOptions, check_build_options
from mmpo.pipeline.build.pair_stage import LaneResult, Plan, lane_orders, lane_sample, lane_variance, run_lane
from mmpo.pipeline.build.read_stage import Read, check_rejects, read_chunk
from mmpo.pipeline.build.workers import Runner, running
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.grades.flatten import sample_share, wants_orders
from mmpo.pipeline.grades.position_bias import position_biases
from mmpo.pipeline.grades.rater_effects import fit_rater_effects
from mmpo.pipeline.grades.rater_sample import RaterSample
from mmpo.pipeline.grades.rules import PairRules
from mmpo.pipeline.grades.statistics import GradeStatistics
from mmpo.pipeline.pairs.splits import check_shares
from mmpo.pipeline.progress import Progress
from mmpo.pipeline.storage.chunks import InputFile, input_bytes, plan, resolve_inputs
from mmpo.pipeline.storage.dataset import card, check_out, replacing, write_manifest
from mmpo.pipeline.storage.files import digest
from mmpo.pipeline.tables import REJECTS, SPLITS

__all__ = ["BuildOptions", "build", "check_build_options"]

CHUNK_BYTES = 8 << 20
PARTITION_BYTES = 8 << 20
PARALLEL_FROM_BYTES = 8 << 20
EXPANSION = {"parquet": 6, "arrow": 2}


def _partitions(files: Sequence[InputFile]) -> int:
    size = 0
    for file in files:
        packed = 4 if file.path.endswith((".gz", ".zst")) else EXPANSION.get(file.kind, 1)
        size += input_bytes([file]) * packed
    return max(1, min(4096, math.ceil(size / PARTITION_BYTES)))


def build(
    sources: Sequence[str | Path] | str | Path,
    out: str | Path,
    *,
    options: BuildOptions,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Build a dataset folder from feedback files.

    sources: files, folders, globs or Hub datasets in `options.format`. out: the folder, written whole or not at all; an older
    dataset of mmpo there is replaced. progress: called with (stage, done, all) after each part.
    Returns {"out", "prompts", "pairs": {"train", "validation", "test"}, "rejected": {reason: n}}, and where there are any
    "position_bias" and "rater_effects" as the manifest holds them (`rules.PairRules.learned`).
    Raises UserError for everything that the user can mend.
    """
    check_build_options(options)
    out = Path(out)
    check_out(out)
    files = resolve_inputs([sources] if isinstance(sources, (str, Path)) else list(sources), options.format)
    chunks = plan(files, CHUNK_BYTES)
    partitions = _partitions(files)
    workers = options.workers or (os.cpu_count() or 1 if input_bytes(files) >= PARALLEL_FROM_BYTES else 1)
    workers = max(1, min(workers, max(len(chunks), partitions)))
    told = progress or (lambda stage, done, total: None)
    with replacing(out) as folder:
        scratch = folder / "spill"
        scratch.mkdir()
        with running(workers) as run:
            reads: list[Read] = []
            for read in run(read_chunk, [(chunk, options, scratch, i, partitions) for i, chunk in enumerate(chunks)]):
                reads.append(read)
                told("read", len(reads), len(chunks))
            check_rejects(reads, options.max_rejects, files)
            lanes = _lanes(partitions)
            decided = _decide(options, reads, folder, scratch, out, files)
            decided = (
                decided if options.feedback_only else _learned(decided, run, lanes, weighted=options.rater_weights == "fitted")
            )
            results: list[LaneResult] = []
            for result in run(run_lane, [(decided, i, lane) for i, lane in enumerate(lanes)]):
                results.append(result)
                told("write", len(results), len(lanes))
        return _finish(options, reads, results, decided, folder, out, files)


def _lanes(partitions: int) -> list[list[int]]:
    """Partitions in contiguous lanes, as many as depend on the input alone, so that the files come out the same everywhere."""
    count = min(partitions, 4 + partitions // 64)
    bounds = [round(i * partitions / count) for i in range(count + 1)]
    return [list(range(low, high)) for low, high in zip(bounds[:-1], bounds[1:], strict=True)]


def _learned(plan: Plan, run: Runner, lanes: Sequence[Sequence[int]], *, weighted: bool) -> Plan:
    """The plan with what passes over all grades find: position biases, rater effects, within-pair variances, each given the former."""

    def with_rules(plan: Plan, **found: Any) -> Plan:
        return dataclasses.replace(plan, rules=dataclasses.replace(plan.rules, **found))

    if wants_orders(plan.rules, plan.groups):
        parts = run(lane_orders, [(plan, lane) for lane in lanes])
        plan = with_rules(plan, position=position_biases(part for lane in parts for part in lane))
    if plan.rules.merge_raters == "rater-effects":
        share = sample_share(plan.groups, plan.survey)
        sample = RaterSample.joined(list(run(lane_sample, [(plan, lane, share) for lane in lanes])))
        plan = with_rules(plan, effects=fit_rater_effects(sample, centered=plan.rules.evidence == "ratings", weighted=weighted))
    if len({group.rater for group in plan.groups}) > 1:
        plan = dataclasses.replace(plan, pooled=_pool(run(lane_variance, [(plan, lane) for lane in lanes])))
    return dataclasses.replace(plan, metadata={**plan.metadata, **plan.rules.learned()})


def _pool(parts: Any) -> dict[str, float]:
    total: dict[str, tuple[float, int]] = {}
    for part in parts:
        for source, (squares, degrees) in part.items():
            before = total.get(source, (0.0, 0))
            total[source] = (before[0] + squares, before[1] + degrees)
    return {source: squares / degrees for source, (squares, degrees) in sorted(total.items())}


def _decide(
    options: BuildOptions, reads: Sequence[Read], folder: Path, scratch: Path, out: Path, files: Sequence[InputFile]
) -> Plan:
    """Everything that depends on the whole input: evidence, scales, normalisation, score. Raises UserError."""
    found = GradeStatistics()
    for read in reads:
        found.add(read.found)
    groups, rules = ([], PairRules()) if options.feedback_only else decide(found, options)
    scales = sorted({(group.low, group.high) for group in groups}, key=str)
    recipe = {key: value for key, value in dataclasses.asdict(options).items() if key != "workers"}
    inputs = [{"name": file.name, "digest": digest(file.path)} for file in files]
    metadata = {"recipe": recipe, "inputs": inputs, "scales": scales, "normalisation": options.normalise}
    spills = [path for read in reads for path in read.spills]
    return Plan(
        spills, folder, scratch, options.feedback_only, rules, options.normalise, options.kinds, options.raters, options.aspects,
        groups, found, check_shares(options.split), {}, metadata,
    )  # fmt: skip


def _finish(
    options: BuildOptions,
    reads: Sequence[Read],
    results: Sequence[LaneResult],
    decided: Plan,
    folder: Path,
    out: Path,
    files: Sequence[InputFile],
) -> dict[str, Any]:
    """Number the files, join the rejects, write manifest and card; the summary."""
    ledger = Ledger()
    for part in (*reads, *results):
        ledger.add(part.ledger)
    names = ("feedback",) if options.feedback_only else SPLITS
    rows = {name: sum(result.rows.get(name, 0) for result in results) for name in names}
    if not options.feedback_only:
        ledger.count("split", "pair", into=sum(rows.values()), out=sum(rows.values()))
    ledger.check()
    dropped = ledger.dropped()
    if not sum(rows.values()):
        told = ", ".join(f"{reason} {n:,}" for reason, n in list(dropped.items())[:4]) or "no grades"
        kind = "prompt" if options.feedback_only else "pair"
        raise UserError(f"--out {out}: the dataset would hold no {kind}; nothing was written. Left out: {told}")
    for name in names:
        paths = [path for result in results for path in result.files.get(name, [])]
        for number, path in enumerate(paths):
            path.rename(path.with_name(f"part-{number:05d}.parquet"))
    _join_rejects(
        [*(path for read in reads for path in read.rejects), *(result.rejects for result in results)], folder / "rejects.parquet"
    )
    shutil.rmtree(decided.scratch)
    held = [name for name in names if rows[name]]
    recipe = decided.metadata["recipe"]
    (folder / "README.md").write_text(card(held, rows, recipe, feedback=options.feedback_only), encoding="utf-8")
    prompts = sum(result.prompts for result in results)
    kind = "feedback" if options.feedback_only else "pairs"
    variances = {"pooled_variance": decided.pooled} if decided.pooled else {}
    write_manifest(
        folder, {"kind": kind, **decided.metadata, **variances, "prompts": prompts, "rows": rows, "counts": ledger.as_json()}
    )
    pairs = {} if options.feedback_only else rows
    return {"out": str(out), "prompts": prompts, "pairs": pairs, "rejected": dropped, **decided.rules.learned()}


def _join_rejects(paths: Sequence[Path | None], out: Path) -> None:
    with pq.ParquetWriter(out, REJECTS, compression="zstd") as writer:
        for path in paths:
            if path is not None:
                with pq.ParquetFile(path) as part:
                    for batch in part.iter_batches():
                        writer.write_table(pa.Table.from_batches([batch]).cast(REJECTS))
