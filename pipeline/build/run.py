"""`build`: feedback files to a dataset folder, in bounded memory, on all cores, whole or not at all.

First every chunk of input is read and spilled by the hash of its prompts; then every shard of partitions is merged, scored, paired and
written. Both halves run the same on one core and on many, and the result does not depend on how many there are.
"""

import dataclasses
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmpo.pipeline.build.mixed import MixedSource
from mmpo.pipeline.build.mixture import Shared, SourceMargins, figures_of, mixture_metadata, mixture_warnings
from mmpo.pipeline.build.options import BuildOptions, sources_of
from mmpo.pipeline.build.prompt_filters import compare_shards
from mmpo.pipeline.build.resolve import ResolvedBuild, prompt_rules, resolve_build, with_learned
from mmpo.pipeline.build.stages import (
    Read,
    Shard,
    ShardResult,
    check_grades,
    check_rejects,
    collect_from,
    filter_shard,
    read_chunk,
    splits_of,
    write_shard,
)
from mmpo.pipeline.build.summary import (
    doubtful_raters,
    largest,
    left_out,
    rater_warnings,
    reading_warnings,
    same_answer_warnings,
    saturation_warnings,
    sides_of,
    warnings_of,
)
from mmpo.pipeline.build.workers import running
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.filters import check_tokenizer, tokenizer_file
from mmpo.pipeline.grades.statistics import GradeStatistics
from mmpo.pipeline.progress import Progress
from mmpo.pipeline.sources import get_source
from mmpo.pipeline.storage.accounting import RowAccounting
from mmpo.pipeline.storage.dataset import card, check_out, replacing, write_manifest
from mmpo.pipeline.storage.files import digest
from mmpo.pipeline.storage.inputs import input_bytes, resolve_inputs
from mmpo.pipeline.storage.rows import plan
from mmpo.pipeline.storage.text_files import InputFile
from mmpo.pipeline.tables import REJECTS

CHUNK_BYTES = 8 << 20
PARTITION_BYTES = 8 << 20
PARALLEL_FROM_BYTES = 8 << 20
EXPANSION = {"parquet": 6, "arrow": 2}


def _partitions(files: Sequence[InputFile], partition_bytes: int) -> int:
    size = 0
    for file in files:
        packed = 4 if file.path.endswith((".gz", ".zst")) else EXPANSION.get(file.kind, 1)
        size += input_bytes([file]) * packed
    return max(1, min(4096, math.ceil(size / partition_bytes)))


def build(
    sources: Sequence[str | Path] | str | Path,
    out: str | Path,
    *,
    options: BuildOptions,
    progress: Progress | None = None,
    partition_bytes: int = PARTITION_BYTES,
) -> dict[str, Any]:
    """Build a dataset folder from feedback files.

    sources: files, folders, globs or Hub datasets in `options.format`; none where `options.sources` names several. out: the folder,
    written whole or not at all; an older dataset of mmpo there is replaced. progress: called with (stage, done, all) after each part.
    partition_bytes: input that is merged and paired at a time; memory grows with it, the pairs stay the same.
    Returns {"out", "prompts", "pairs": {"train", "validation", "test"}, "rejected": {reason: n}, "repaired": {reason: n}, "warnings":
    sentences}; of pairs also "examples": two of them in words, [{"better", "worse", "margin"}], "unwitnessed": how many have no rater who
    graded both sides, and "rounded_ties": how many are ties of values that differ by less than the rounding step, "ties_at_ends": how
    many have both scores at the same end of their range (None: it has no ends); "saturated": grades at the ends of their scales
    (`resolve.saturated`); and where there are any "position_bias" and "rater_effects" as the manifest holds them
    (`rules.PairRules.learned`); of several sources "by_source" and "gamma_auto" (`mixture.figures_of`).
    Raises UserError for everything that the user can mend.
    """
    out = Path(out)
    check_out(out)
    rules = prompt_rules(options)
    given = [sources] if isinstance(sources, (str, Path)) else list(sources)
    if given and options.sources:
        raise UserError(
            f"sources are named twice: {given[0]}, and in `sources` (--sources), which gives each its own format; name them there"
        )
    named: list[tuple[MixedSource | None, BuildOptions]] = [*sources_of(options)] or [(None, options)]
    tokenizers = _tokenizers([own for _, own in named])
    files = []
    for source, own in named:
        with _of_source(source):
            files.append(resolve_inputs(source.inputs if source else given, own.format, encoding=own.encoding, separator=own.sep))
    every = [file for some in files for file in some]
    chunks = [
        (chunk, own, place)
        for place, ((_, own), some) in enumerate(zip(named, files, strict=True))
        for chunk in plan(some, CHUNK_BYTES, whole=get_source(own.format).joined is not None)
    ]
    partitions = _partitions(every, partition_bytes)
    workers = options.workers or (os.cpu_count() or 1 if input_bytes(every) >= PARALLEL_FROM_BYTES else 1)
    workers = max(1, min(workers, max(len(chunks), partitions)))
    with replacing(out) as folder:
        scratch = folder / "spill"
        scratch.mkdir()
        with running(workers) as run:

            def done(stage: str, work: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
                for number, result in enumerate(run(work, tasks), 1):
                    yield result
                    if progress:
                        progress(stage, number, len(tasks))

            tasks = [(chunk, own, scratch, number, partitions) for number, (chunk, own, _) in enumerate(chunks)]
            found: list[list[Read]] = [[] for _ in named]
            for read, (_, _, place) in zip(done("read", read_chunk, tasks), chunks, strict=True):
                found[place].append(read)
            keys = tuple(sorted({key for reads in found for read in reads for key in read.keys}))
            builds, shards = [], []
            for (source, own), some, reads in zip(named, files, found, strict=True):
                mine = _shards(partitions, [path for read in reads for path in read.spills])

                with _of_source(source):
                    builds.append(_resolve(source, own, some, reads, keys, run, mine))
                shards.append(mine)
            metadata = _provenance(options, dict(zip((source.name if source else "" for source, _ in named), files, strict=True)))
            metadata |= mixture_metadata(builds) | rules.metadata() | tokenizers
            if rules.any:
                tasks = [(builds, several, rules, scratch) for several in zip(*shards, strict=True)]
                compare_shards(list(done("filter", filter_shard, tasks)), rules)
            tasks = [(builds, several, folder, scratch, metadata) for several in zip(*shards, strict=True)]
            results = list(done("write", write_shard, tasks))
        return _finish(builds, found, results, metadata, folder, scratch, out)


@contextmanager
def _of_source(source: MixedSource | None) -> Iterator[None]:
    """Errors within are those of one of several sources, and say so."""
    try:
        yield
    except UserError as error:
        raise (error if source is None else UserError(f"source {source.name!r}: {error}")) from None


def _resolve(
    source: MixedSource | None,
    options: BuildOptions,
    files: Sequence[InputFile],
    reads: Sequence[Read],
    keys: tuple[str, ...],
    run: Callable[..., Any],
    shards: Sequence[Shard],
) -> ResolvedBuild:
    """What the whole input of a source decides. Raises UserError where too little of it can be used."""
    check_rejects(reads, options.max_rejects, files, _rejects(reads))
    statistics = GradeStatistics()
    for read in reads:
        statistics.add(read.statistics)
    if not options.feedback_only:
        check_grades(reads, statistics, _rejects(reads))

    def collect(resolved: ResolvedBuild, function: Callable[..., Any]) -> Iterator[Any]:
        for results in run(collect_from, [(resolved, shard, function) for shard in shards]):
            yield from results

    return with_learned(replace(resolve_build(statistics, options), keys=keys, mixed=source), collect)


def _rejects(reads: Sequence[Read]) -> Iterator[pa.Table]:
    return (pq.read_table(path) for read in reads for path in read.rejects)


def _shards(partitions: int, spills: Sequence[Path]) -> list[Shard]:
    """Contiguous partitions, in as many shards as depend on the input alone, so that the files come out the same everywhere."""
    count = min(partitions, 4 + partitions // 64)
    bounds = [round(i * partitions / count) for i in range(count + 1)]
    return [Shard(number, range(bounds[number], bounds[number + 1]), spills) for number in range(count)]


def _provenance(options: BuildOptions, files: Mapping[str, Sequence[InputFile]]) -> dict[str, Any]:
    unused = {"workers"} | (set() if options.sources or get_source(options.format).clipped else {"clip"})
    unused |= set() if options.sources else {"sources"}
    recipe = {key: value for key, value in dataclasses.asdict(options).items() if key not in unused}
    inputs = [
        {"name": file.name, "digest": digest(file.path)}
        | ({"revision": file.revision} if file.revision else {})
        | ({"source": source} if source else {})
        for source, some in files.items()
        for file in some
    ]
    return {"recipe": recipe, "inputs": inputs}


def _tokenizers(options: Sequence[BuildOptions]) -> dict[str, Any]:
    """Which tokenizers tokens are counted by, each of one file. Raises UserError where one can't be read."""
    names = dict.fromkeys(str(one.tokenizer) for one in options if one.tokenizer is not None)
    for name in names:
        check_tokenizer(name)
    files = dict.fromkeys(str(tokenizer_file(name)) for name in names)
    return {"tokenizers": [{"name": name, "digest": digest(name)} for name in files]} if files else {}


def _finish(
    builds: Sequence[ResolvedBuild],
    found: Sequence[Sequence[Read]],
    results: Sequence[ShardResult],
    metadata: dict[str, Any],
    folder: Path,
    scratch: Path,
    out: Path,
) -> dict[str, Any]:
    """Number the files, join the rejects, write manifest and card; the summary. found: what was read of each build's source."""
    first, reads = builds[0], [read for some in found for read in some]
    feedback_only, names = first.options.feedback_only, splits_of(first)
    accounting = RowAccounting()
    for part in (*reads, *results):
        accounting.add(part.accounting)
    rows = {name: sum(result.rows[name] for result in results) for name in names}
    if not feedback_only:
        accounting.count("split", "pair", into=sum(rows.values()), out=sum(rows.values()))
    accounting.check()
    dropped = accounting.dropped()
    if not sum(rows.values()):
        unit = "prompt" if feedback_only else "pair"
        raise UserError(
            f"--out {out}: the dataset would hold no {unit}; nothing was written. Left out: {left_out(dropped) or 'no grades'}"
        )
    digests = {}
    for name in names:
        written = [(path, result.digests[f"{name}/{path.name}"]) for result in results for path in result.files[name]]
        for number, (path, one) in enumerate(written):
            digests[f"{name}/part-{number:05d}.parquet"] = one
            path.rename(path.with_name(f"part-{number:05d}.parquet"))
    rejects = [*(path for read in reads for path in read.rejects), *(result.rejects for result in results)]
    _join_rejects([path for path in rejects if path], folder / "rejects.parquet")
    shutil.rmtree(scratch)
    held = [name for name in names if rows[name]]
    by_source = {} if first.mixed is None or feedback_only else _by_source(builds, results)
    told = card(held, rows, metadata["recipe"], feedback=feedback_only, sources=by_source)
    (folder / "README.md").write_text(told, encoding="utf-8")
    prompts = sum(result.prompts for result in results)
    pooled = {_of(build, source): value for build in builds for source, value in build.pooled_variance().items()}
    variances = {"pooled_variance": pooled} if any(build.pooled for build in builds) else {}
    said = {"warnings": []} if feedback_only else _said(builds, rows, results)
    if by_source:
        shared = Shared()
        for result in results:
            shared.add(result.shared)
        said["warnings"] += mixture_warnings(by_source["by_source"], shared)
        by_source["shared"] = vars(shared)
    said["warnings"] += saturation_warnings(metadata["saturated"])
    for build, some in zip(builds, found, strict=True):
        noted = sum((read.noted for read in some), Counter())
        unused = {k: v for read in some for k, v in read.unused.items()}
        lines = sum(read.lines for read in some)
        said["warnings"] += [_of(build, line) for line in reading_warnings(noted, unused, build.options, lines)]
    counts = {"prompts": prompts, "rows": rows, "counts": accounting.as_json(), **by_source, **said}
    write_manifest(folder, {"kind": "feedback" if feedback_only else "pairs", **metadata, **variances, **counts}, digests)
    return {
        "out": str(out),
        "prompts": prompts,
        "pairs": {} if feedback_only else rows,
        "rejected": dropped,
        "repaired": accounting.repaired(),
        **{key: metadata[key] for key in ("position_bias", "rater_effects") if key in metadata},
        "saturated": metadata["saturated"],
        **by_source,
        **said,
    }


def _of(build: ResolvedBuild, text: str) -> str:
    """What is said of one of several sources, with its name."""
    return f"{build.name}: {text}" if build.mixed else text


def _by_source(builds: Sequence[ResolvedBuild], results: Sequence[ShardResult]) -> dict[str, Any]:
    """{"by_source", "gamma_auto"}, of `figures_of`."""
    found: dict[str, SourceMargins] = {}
    for result in results:
        for name, one in result.by_source.items():
            found.setdefault(name, SourceMargins()).add(one)
    figures, gamma = figures_of(builds, found)
    return {"by_source": figures, "gamma_auto": gamma}


def _said(builds: Sequence[ResolvedBuild], rows: Mapping[str, int], results: Sequence[ShardResult]) -> dict[str, Any]:
    """{"examples", "unwitnessed", "warnings"}, of the whole build."""
    names = ("unwitnessed", "ties", "rounded_ties", "ties_at_ends")
    unwitnessed, ties, rounded_ties, ties_at_ends = (sum(getattr(result, name) for result in results) for name in names)
    lies = sides_of(*(np.concatenate([getattr(result, name) for result in results]) for name in ("first_messages", "sides")))
    doubtful = {
        f"{name}@{build.name}" if build.mixed else name: one._asdict()
        for build in builds
        for name, one in doubtful_raters(build).items()
    }
    of_raters = [_of(build, line) for build in builds for line in rater_warnings(build)]
    return {
        "examples": [example.as_json() for example in largest([one for result in results for one in result.examples])],
        "unwitnessed": unwitnessed,
        "rounded_ties": rounded_ties,
        "ties_at_ends": ties_at_ends if any(one.rules.evidence == "ratings" and one.score_range() for one in builds) else None,
        "doubtful_raters": doubtful,
        "warnings": [
            *warnings_of(builds[0], rows, ties, unwitnessed, *lies, of_raters),
            *same_answer_warnings(sum((result.same_answers for result in results), Counter()), sum(rows.values())),
        ],
    }


def _join_rejects(paths: Sequence[Path], out: Path) -> None:
    with pq.ParquetWriter(out, REJECTS, compression="zstd") as writer:
        for path in paths:
            with pq.ParquetFile(path) as part:
                for batch in part.iter_batches():
                    writer.write_table(pa.Table.from_batches([batch]).cast(REJECTS))
