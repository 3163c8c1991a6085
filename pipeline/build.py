"""`build`: feedback files to a dataset folder, in bounded memory, on all cores, whole or not at all.

First every chunk of input is read, surveyed and spilled by the hash of its prompts; then every lane of partitions is merged, scored,
paired and written. Both halves run the same on one core and on many, and the result does not depend on how many there are.
"""

import dataclasses
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmpo.pipeline.choose import STRATEGIES
from mmpo.pipeline.errors import UserError, unknown_name
from mmpo.pipeline.evidence import EVIDENCE, Survey, choose_evidence, survey
from mmpo.pipeline.ledger import Ledger
from mmpo.pipeline.normalise import NORMALISATIONS, check_normalisation
from mmpo.pipeline.pair import PairRules
from mmpo.pipeline.parallel import running
from mmpo.pipeline.read import Chunk, InputFile, digest, input_bytes, plan, resolve_inputs
from mmpo.pipeline.reduce import LaneResult, Plan, lane_variance, run_lane
from mmpo.pipeline.score import check_scales, parse_score
from mmpo.pipeline.sources import SourceOptions, collect, get_source
from mmpo.pipeline.sources.source import check_options
from mmpo.pipeline.spill import write_spill
from mmpo.pipeline.split import check_shares
from mmpo.pipeline.store import card, check_out, replacing, write_manifest
from mmpo.pipeline.tables import REJECTS, SPLITS

__all__ = ["BuildOptions", "build", "check_build_options"]

CHUNK_BYTES = 8 << 20
PARTITION_BYTES = 8 << 20
PARALLEL_FROM_BYTES = 8 << 20
MERGERS = ("mean", "median")
TIES = ("keep", "drop")
EXPANSION = {"parquet": 6, "arrow": 2}


@dataclass(frozen=True)
class BuildOptions:
    """What a build does; the field names are the recipe's keys. `mmpo build --help` explains each."""

    format: str
    columns: Mapping[str, str] = field(default_factory=dict)
    scale: tuple[float, float] | None = None
    fix_known_defects: bool = False
    rater: str | None = None
    kind: str | None = None
    evidence: str = "auto"
    kinds: tuple[str, ...] | None = None
    raters: tuple[str, ...] | None = None
    aspects: tuple[str, ...] | None = None
    normalise: str = "none"
    score: str = "overall"
    merge_raters: str = "mean"
    strategy: str = "all"
    max_per_prompt: int | None = None
    min_margin: float = 0.0
    ties: str = "keep"
    max_chars: int | None = None
    seed: int = 0
    split: tuple[float, float, float] = (0.9, 0.05, 0.05)
    max_rejects: float = 0.01
    feedback_only: bool = False
    workers: int | None = None


def check_build_options(options: BuildOptions) -> None:
    """Refuse values and combinations that cannot work, before anything is read. Raises UserError."""
    for name, given, allowed in (
        ("evidence (--from)", options.evidence, EVIDENCE),
        ("normalisation (--normalise)", options.normalise, NORMALISATIONS),
        ("way to merge raters (--raters)", options.merge_raters, MERGERS),
        ("strategy", options.strategy, tuple(STRATEGIES)),
        ("--ties", options.ties, TIES),
    ):
        if given not in allowed:
            raise unknown_name(name, given, allowed)
    for name, number, least in (("max_per_prompt", options.max_per_prompt, 1), ("max_chars", options.max_chars, 1), ("workers", options.workers, 1)):
        if number is not None and number < least:
            raise UserError(f"--{name.replace('_', '-')} {number}: must be {least} or more")
    if not 0 <= options.min_margin < math.inf:
        raise UserError(f"--min-margin {options.min_margin}: must be a number from 0 up")
    if not 0 <= options.max_rejects <= 1:
        raise UserError(f"--max-rejects {options.max_rejects}: must be a share from 0 to 1, such as 0.01 for 1%")
    check_shares(options.split)
    check_options(get_source(options.format), _source_options(options))


def _source_options(options: BuildOptions) -> SourceOptions:
    return SourceOptions(
        columns=dict(options.columns),
        scale=options.scale,
        fix_known_defects=options.fix_known_defects,
        rater=options.rater,
        kind=options.kind,
        need_scores=not options.feedback_only,
    )


@dataclass
class _Read:
    """What reading a chunk left: its spill, its rejects, and what the survey saw."""

    spill: Path | None
    rejects: Path | None
    found: Survey
    lines: int
    dropped: int
    limited: int
    reasons: dict[str, int]
    ledger: Ledger


def _read(chunk: Chunk, options: BuildOptions, folder: Path, index: int, partitions: int) -> _Read:
    """Read one chunk into a spill file."""
    got = collect(chunk, get_source(options.format), _source_options(options))
    ledger = Ledger()
    by_unit: dict[str, dict[str, int]] = {}
    for unit, reason in zip(got.rejects["unit"].to_pylist(), got.rejects["reason"].to_pylist(), strict=True):
        reasons = by_unit.setdefault(unit, {})
        reasons[reason] = reasons.get(reason, 0) + 1
    lines = by_unit.pop("line", {})
    ledger.count("source", "line", into=got.lines, out=got.lines - got.dropped, dropped=lines)
    ledger.count("source", "prompt", created=got.counts["prompt"], out=got.counts["prompt"])
    completions, merged = got.counts["completion"], got.counts["merged"]
    lost = by_unit.get("completion", {})
    ledger.count("source", "completion", created=completions + merged + sum(lost.values()), out=completions, merged=merged, dropped=lost)
    lost = by_unit.get("grade", {})
    ledger.count("source", "grade", created=got.counts["grade"] + sum(lost.values()), out=got.counts["grade"], dropped=lost)
    spill = rejects = None
    if got.feedback.num_rows:
        spill = folder / f"{index:06d}.arrow"
        write_spill(got.feedback, spill, partitions)
    if got.rejects.num_rows:
        rejects = folder / f"{index:06d}.rejects.parquet"
        pq.write_table(got.rejects, rejects)
    reasons = {**lines}
    for unit in by_unit.values():
        for reason, n in unit.items():
            reasons[reason] = reasons.get(reason, 0) + n
    return _Read(spill, rejects, survey(got.feedback), got.lines, got.dropped, got.limited, reasons, ledger)


def _check_rejects(reads: Sequence[_Read], limit: float, files: Sequence[InputFile]) -> None:
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
    told = ", ".join(f"{reason} {n:,}" for reason, n in sorted(reasons.items(), key=lambda item: -item[1])[:4])
    example = next((pq.read_table(read.rejects).slice(0, 1).to_pylist()[0] for read in reads if read.rejects), {})
    where = f" First: {example['file']}, line {example['row']}: {example['reason']}" if example else ""
    evidence = f" {example['evidence']}" if example.get("evidence") else ""
    raise UserError(
        f"{limited:,} of {lines:,} lines ({limited / lines:.1%}) are unreadable or invalid, more than --max-rejects {limit:g} allows: "
        f"{told}.{where}{evidence}. Mend the input, or raise --max-rejects"
    )


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
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Build a dataset folder from feedback files.

    sources: files, folders, globs or Hub datasets in `options.format`. out: the folder, written whole or not at all; an older
    dataset of mmpo there is replaced. progress: called with (stage, done, all) after each part.
    Returns {"out", "prompts", "pairs": {"train", "validation", "test"}, "rejected": {reason: n}}.
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
            reads: list[_Read] = []
            for read in run(_read, [(chunk, options, scratch, i, partitions) for i, chunk in enumerate(chunks)]):
                reads.append(read)
                told("read", len(reads), len(chunks))
            _check_rejects(reads, options.max_rejects, files)
            lanes = _lanes(partitions)
            decided = _decide(options, reads, folder, scratch, out, files)
            if not options.feedback_only and len({group.rater for group in decided.groups}) > 1:
                decided = dataclasses.replace(decided, pooled=_pool(run(lane_variance, [(decided, lane) for lane in lanes])))
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


def _pool(parts: Any) -> dict[str, float]:
    total: dict[str, tuple[float, int]] = {}
    for part in parts:
        for source, (squares, degrees) in part.items():
            before = total.get(source, (0.0, 0))
            total[source] = (before[0] + squares, before[1] + degrees)
    return {source: squares / degrees for source, (squares, degrees) in sorted(total.items())}


def _decide(
    options: BuildOptions, reads: Sequence[_Read], folder: Path, scratch: Path, out: Path, files: Sequence[InputFile]
) -> Plan:
    """Everything that depends on the whole input: evidence, scales, normalisation, score. Raises UserError."""
    found = Survey()
    for read in reads:
        found.add(read.found)
    groups, rules = [], PairRules()
    if not options.feedback_only:
        evidence, groups = choose_evidence(
            found, options.evidence, kinds=options.kinds, raters=options.raters, aspects=options.aspects
        )
        score = parse_score(options.score, sorted({group.aspect for group in groups}))
        check_scales(score, groups, options.normalise)
        check_normalisation(options.normalise, groups, found)
        if evidence == "comparisons" and options.strategy not in ("all", "stratified"):
            raise UserError(
                f"--strategy {options.strategy} needs a score for each completion; the evidence is comparisons, whose pairs are given. "
                "Use all or stratified"
            )
        rules = PairRules(
            evidence=evidence, score=score, merge_raters=options.merge_raters, rank=options.normalise == "rank",
            strategy=options.strategy, max_per_prompt=options.max_per_prompt, min_margin=options.min_margin, ties=options.ties,
            max_chars=options.max_chars, seed=options.seed,
        )  # fmt: skip
    scales = sorted({(group.low, group.high) for group in groups}, key=str)
    recipe = {key: value for key, value in dataclasses.asdict(options).items() if key != "workers"}
    inputs = [{"name": file.name, "digest": digest(file)} for file in files]
    metadata = {"recipe": recipe, "inputs": inputs, "scales": scales, "normalisation": options.normalise}
    spills = [read.spill for read in reads if read.spill]
    return Plan(
        spills, folder, scratch, options.feedback_only, rules, options.normalise, options.kinds, options.raters, options.aspects,
        groups, found, check_shares(options.split), {}, metadata,
    )  # fmt: skip


def _finish(
    options: BuildOptions,
    reads: Sequence[_Read],
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
    _join_rejects([*(read.rejects for read in reads), *(result.rejects for result in results)], folder / "rejects.parquet")
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
    return {"out": str(out), "prompts": prompts, "pairs": pairs, "rejected": dropped}


def _join_rejects(paths: Sequence[Path | None], out: Path) -> None:
    with pq.ParquetWriter(out, REJECTS, compression="zstd") as writer:
        for path in paths:
            if path is not None:
                with pq.ParquetFile(path) as part:
                    for batch in part.iter_batches():
                        writer.write_table(pa.Table.from_batches([batch]).cast(REJECTS))
