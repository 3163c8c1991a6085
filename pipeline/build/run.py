"""`build`: feedback files to a dataset folder, in bounded memory, on all cores, whole or not at all.

First every chunk of input is read and spilled by the hash of its prompts; then every shard of partitions is merged, scored, paired and
written. Both halves run the same on one core and on many, and the result does not depend on how many there are.
"""

import dataclasses
import errno
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmpo.pipeline.build.mixed import MixedSource
from mmpo.pipeline.build.mixture import Shared, SourceMargins, figures_of, mixture_metadata, mixture_warnings
from mmpo.pipeline.build.options import BuildOptions, sources_of
from mmpo.pipeline.build.prompt_filters import compare_shards
from mmpo.pipeline.build.reading import Read, check_grades, check_rejects, read_chunks
from mmpo.pipeline.build.resolve import ResolvedBuild, prompt_rules, resolve_build, with_learned
from mmpo.pipeline.build.stages import Shard, ShardResult, collect_from, filter_shard, splits_of, write_shard
from mmpo.pipeline.build.summary import (
    doubtful_raters,
    largest,
    left_out,
    many_pairs_warnings,
    rater_warnings,
    reading_warnings,
    same_answer_warnings,
    saturation_warnings,
    sides_of,
    warnings_of,
)
from mmpo.pipeline.build.workers import (
    CHUNK_BYTES,
    GROUP_BYTES,
    LEAST_SPILL,
    PARTITION_BYTES,
    check_space,
    free_space,
    plan_build,
)
from mmpo.pipeline.engines import ENGINES, Runner
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.filters import check_tokenizer, tokenizer_file
from mmpo.pipeline.interactive import Summary, is_table, refuse_other
from mmpo.pipeline.options import ENGINE_OPTIONS, check_class
from mmpo.pipeline.progress import Progress, in_bytes
from mmpo.pipeline.sources import get_source
from mmpo.pipeline.storage.accounting import RowAccounting
from mmpo.pipeline.storage.dataset import card, check_out, replacing, write_manifest
from mmpo.pipeline.storage.files import Digests, digest, temporary_folder
from mmpo.pipeline.storage.inputs import input_bytes, resolve_inputs
from mmpo.pipeline.storage.objects import name_of
from mmpo.pipeline.storage.rows import Chunk, plan
from mmpo.pipeline.storage.spill import groups_within
from mmpo.pipeline.storage.text_files import InputFile
from mmpo.pipeline.tables import REJECTS

MOST_CHUNKS = 10**6
"""Of a source: files of rejects are numbered by source and chunk."""
REJECTS_ROWS = 65_536
PLAN_FROM_BYTES = 64 << 20
"""Of input: less is built before the plan is read."""
EXPANSION = {"parquet": 6, "arrow": 2}


def _text_bytes(files: Sequence[InputFile]) -> int:
    """About how much text the files hold."""
    packed = (4 if file.path.endswith((".gz", ".zst")) else EXPANSION.get(file.kind, 1) for file in files)
    return sum(input_bytes([file]) * times for file, times in zip(files, packed, strict=True))


def build(
    sources: Sequence[str | Path] | str | Path,
    out: str | Path,
    *,
    options: BuildOptions,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
    partition_bytes: int = PARTITION_BYTES,
    group_bytes: int = GROUP_BYTES,
) -> dict[str, Any]:
    """Build a dataset folder from feedback files.

    sources: files, folders, globs or Hub datasets in `options.format`; none where `options.sources` names several. out: the folder,
    written whole or not at all; an older dataset of mmpo there is replaced. progress: called with (stage, bytes done, bytes in all) after
    each part. say: called with a sentence on what it will take, before anything is read. partition_bytes: input that sums over grades are
    made of; with it the files that are written change, the pairs stay the same. group_bytes: of rows in memory that are merged
    and paired together at most, whatever memory there is; the dataset stays the same.
    Returns {"out", "prompts", "pairs": {"train", "validation", "test"}, "rejected": {reason: n}, "repaired": {reason: n}, "warnings":
    sentences}; of pairs also "examples": two of them in words, [{"better", "worse", "margin"}], "unwitnessed": how many have no rater who
    graded both sides, and "rounded_ties": how many are ties of values that differ by less than the rounding step, "ties_at_ends": how
    many have both scores at the same end of their range (None: it has no ends); "saturated": grades at the ends of their scales
    (`resolve.saturated`); and where there are any "position_bias" and "rater_effects" as the manifest holds them
    (`rules.PairRules.learned`); of several sources "by_source" and "gamma_auto" (`mixture.figures_of`).
    Raises UserError for everything that the user can mend.

    >>> import json, tempfile
    >>> rows = [{"prompt": "Why?", "completion": text, "score": score} for text, score in (("So.", 2), ("Because.", 5))]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "grades.jsonl").write_text("\\n".join(map(json.dumps, rows)))
    ...     build(f"{folder}/grades.jsonl", f"{folder}/pairs", options=BuildOptions(format="jsonl", scale="1:5"))["pairs"]
    {'train': 1, 'validation': 0, 'test': 0}
    """
    if is_table(sources):
        raise UserError(
            "build reads files: read_feedback takes tables, build_pairs makes pairs of them and write_dataset the folder"
        )
    refuse_other(sources)
    check_class(options, BuildOptions)
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
            files.append(
                resolve_inputs(
                    source.inputs if source else given, own.format, encoding=own.encoding, separator=own.sep, sheet=own.sheet
                )
            )
    every = [file for some in files for file in some]
    chunks = [
        plan(some, CHUNK_BYTES, whole=get_source(own.format).joined is not None)
        for (_, own), some in zip(named, files, strict=True)
    ]
    size = input_bytes(every)
    with ENGINES[options.engine](options.workers, options.ray_address) as engine, replacing(out) as folder:
        engine.check([*(file.path for file in every), *(one["name"] for one in tokenizers.get("tokenizers", ()))])
        memory = options.memory, engine.memory
        how = plan_build(size, _text_bytes(every), sum(map(len, chunks)), engine.workers, *memory, partition_bytes, group_bytes)
        with (
            _scratch(options.scratch, folder) as scratch,
            engine.running(how.workers, folder, scratch, how.each) as run,
            Digests(file.path for file in every) as digests,
            _bad_days(scratch, folder),
        ):
            check_disk = check_space if engine.here else _elsewhere
            check_disk(scratch, LEAST_SPILL * how.text, "temporary files")
            if say and size >= PLAN_FROM_BYTES and engine.here:
                say(how.sentence(Path(options.scratch or folder.parent), free_space(scratch)))
            spill = how.spill(scratch)

            def done(stage: str, work: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], sizes: Sequence[int]) -> Iterator[Any]:
                shards = how.shards if work is read_chunks else 0
                for result, end in zip(run(work, tasks, shards=shards), accumulate(sizes), strict=True):
                    yield result, end
                    if progress:
                        progress(stage, end, sum(sizes))

            pieces = [(place, at, some) for place, own in enumerate(chunks) for at, some in _tasks(own, how.task)]
            tasks = [(some, named[place][1], spill, place * MOST_CHUNKS + at) for place, at, some in pieces]
            sizes = [sum(chunk.size for chunk in some) for _, _, some in pieces]
            found, spilled = [Read() for _ in named], 0
            for (reads, end), (place, _, _) in zip(done("read", read_chunks, tasks, sizes), pieces, strict=True):
                if len(tasks) > 1:
                    digests.begin()
                for read in reads:
                    found[place].add(read)
                    spilled += read.spilled
                check_disk(scratch, 0.9 * spilled * (size - end) / max(end, 1), "temporary files")
            keys = tuple(sorted({key for read in found for key in read.keys}))
            builds, of_sources = [], []
            for (source, own), some, read in zip(named, files, found, strict=True):
                mine = [Shard(number, tuple(read.spills.pop(number, ())), how.units, spill) for number in range(how.shards)]
                with _of_source(source):
                    builds.append(_resolve(source, own, some, read, keys, run, mine))
                of_sources.append(mine)
            by_source = dict(zip((source.name if source else "" for source, _ in named), files, strict=True))
            metadata = _provenance(options, by_source, digests)
            metadata |= mixture_metadata(builds) | rules.metadata() | tokenizers
            shards = list(zip(*of_sources, strict=True))
            sizes = [sum(shard.size for shard in several) for several in shards]
            dropped: list[Path | None] = [None] * len(shards)
            if rules.any:
                tasks = [(builds, several, rules, scratch) for several in shards]
                looked = [one for one, _ in done("filter", filter_shard, tasks, sizes)]
                compare_shards(looked, rules)
                dropped = [one.dropped for one in looked]
            tasks = [(builds, several, folder, scratch, metadata, lost) for several, lost in zip(shards, dropped, strict=True)]
            results, written = [], 0
            for (result, end), several in zip(done("write", write_shard, tasks, sizes), shards, strict=True):
                results.append(result)
                written += sum(int(one["bytes"]) for one in result.digests.values())
                run.forget({one.path for shard in several for one in shard.extents})
                rest = spilled - end
                freed = rest if scratch.stat().st_dev == folder.stat().st_dev else 0
                check_space(folder, 0.9 * written * rest / max(end, 1) - freed, "the dataset's files")
            _join_rejects([path for part in (*found, *results) for path in part.rejects], folder / "rejects.parquet")
        return Summary(_finish(builds, found, results, metadata, {"engine": engine.about()}, folder, out))


@contextmanager
def _bad_days(scratch: Path, folder: Path) -> Iterator[None]:
    """A full disk inside is told with what was held, and a process that the system ended with what to do."""
    try:
        yield
    except BrokenProcessPool as error:
        raise UserError(
            "a process of the build was ended from outside, as systems do that run out of memory; nothing was written. Let it take less "
            "(--memory, or fewer --workers) and run it again"
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        temporary, written = _held(scratch), _held(folder)
        written -= temporary if scratch.is_relative_to(folder) else 0
        raise UserError(
            f"the disk is full; nothing was written. Temporary files had {in_bytes(temporary)} in {scratch.parent}, the dataset "
            f"{in_bytes(written)} in {folder.parent}, and more was needed. Free some space, or name a folder on another disk for temporary "
            "files (--scratch)"
        ) from error


def _held(folder: Path) -> int:
    size = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # gone meanwhile
            size += path.stat().st_size
    return size


@contextmanager
def _scratch(given: str | None, folder: Path) -> Iterator[Path]:
    """A folder for temporary files, which goes when the block ends: in the one that is given, else inside `folder`."""
    if given is None:
        scratch = folder / "spill"
        scratch.mkdir()
        yield scratch
        shutil.rmtree(scratch)
        return
    if not Path(given).is_dir():
        raise UserError(f"--scratch {given}: no such folder; name one that is there")
    with temporary_folder(Path(given) / "mmpo-build") as own:
        yield own


def _elsewhere(folder: Path, needed: float, what: str) -> None:
    """Of temporary files that lie on other machines, nothing is known here."""


def _tasks(chunks: Sequence[Chunk], size: int) -> Iterator[tuple[int, Sequence[Chunk]]]:
    """Chunks that follow each other, with the number of the first, of about so many bytes together."""
    for low, high in groups_within(np.array([chunk.size for chunk in chunks]), size):
        yield low, chunks[low:high]


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
    read: Read,
    keys: tuple[str, ...],
    run: Runner,
    shards: Sequence[Shard],
) -> ResolvedBuild:
    """What the whole input of a source decides. Raises UserError where too little of it can be used."""
    check_rejects([read], options.max_rejects, files, _rejects(read))
    if not options.feedback_only:
        check_grades([read], read.statistics, _rejects(read))

    def collect(resolved: ResolvedBuild, function: Callable[..., Any]) -> Iterator[Any]:
        for results in run(collect_from, [(resolved, shard, function) for shard in shards]):
            yield from results

    return with_learned(replace(resolve_build(read.statistics, options), keys=keys, mixed=source), collect)


def _rejects(read: Read) -> Iterator[pa.Table]:
    return (pq.read_table(path) for path in read.rejects)


def _provenance(options: BuildOptions, files: Mapping[str, Sequence[InputFile]], digests: Digests) -> dict[str, Any]:
    unused = {*ENGINE_OPTIONS, "memory", "scratch"}
    unused |= set() if options.sources or get_source(options.format).clipped else {"clip"}
    unused |= set() if options.sources else {"sources"}
    recipe = {key: value for key, value in dataclasses.asdict(options).items() if key not in unused}
    inputs = [
        {"name": file.name, "digest": digests.of(file.path)}
        | ({"revision": file.revision} if file.revision else {})
        | ({"etag": file.etag, "bytes": input_bytes([file])} if file.etag else {})
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
    found: Sequence[Read],
    results: Sequence[ShardResult],
    metadata: dict[str, Any],
    engine: dict[str, Any],
    folder: Path,
    out: Path,
) -> dict[str, Any]:
    """Number the files, write manifest and card; the summary. found: what was read of each build's source."""
    first = builds[0]
    feedback_only, names = first.options.feedback_only, splits_of(first)
    accounting = RowAccounting()
    for part in (*found, *results):
        accounting.add(part.accounting)
    rows = {name: sum(result.rows[name] for result in results) for name in names}
    if not feedback_only:
        accounting.count("split", "pair", into=sum(rows.values()), out=sum(rows.values()))
    accounting.check()
    dropped = accounting.dropped()
    if not sum(rows.values()):
        unit = "prompt" if feedback_only else "pair"
        raise UserError(
            f"--out {name_of(out)}: the dataset would hold no {unit}; nothing was written. Left out: {left_out(dropped) or 'no grades'}"
        )
    digests = {}
    for name in names:
        written = [(path, result.digests[f"{name}/{path.name}"]) for result in results for path in result.files[name]]
        for number, (path, one) in enumerate(written):
            digests[f"{name}/part-{number:05d}.parquet"] = one
            path.rename(path.with_name(f"part-{number:05d}.parquet"))
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
    for build, read in zip(builds, found, strict=True):
        said["warnings"] += [_of(build, line) for line in reading_warnings(read.noted, read.unused, build.options, read.lines)]
    counts = {"prompts": prompts, "rows": rows, "counts": accounting.as_json(), **by_source, **said}
    write_manifest(folder, {"kind": "feedback" if feedback_only else "pairs", **metadata, **engine, **variances, **counts}, digests)
    return {
        "out": name_of(out),
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
            *many_pairs_warnings([one for result in results for one in result.many], sum(rows.values())),
            *same_answer_warnings(sum((result.same_answers for result in results), Counter()), sum(rows.values())),
        ],
    }


def _join_rejects(paths: Sequence[Path], out: Path) -> None:
    """All rows in their order, in row groups that depend on the rows alone."""
    waiting: list[pa.Table] = []
    with pq.ParquetWriter(out, REJECTS, compression="zstd") as writer:
        for path in paths:
            with pq.ParquetFile(path) as part:
                for batch in part.iter_batches(REJECTS_ROWS):
                    waiting.append(pa.Table.from_batches([batch]).cast(REJECTS))
                    if sum(map(len, waiting)) >= REJECTS_ROWS:
                        table = pa.concat_tables(waiting)
                        writer.write_table(table.slice(0, REJECTS_ROWS))
                        waiting = [table.slice(REJECTS_ROWS)]
        if waiting:
            writer.write_table(pa.concat_tables(waiting))
