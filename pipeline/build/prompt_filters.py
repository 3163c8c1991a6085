"""Prompts that are left out for their texts, before pairs are made: a look at all of them, part by part, and then at what is alike.

`mmpo build` keeps what a part leaves in files, `build_pairs` in memory: of each part a table of DROPPED, and what its other prompts are
compared by (`filters.compared`).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc as ipc

from mmpo.pipeline.arrow import LARGE_FEEDBACK, flat, lists, offsets_of, with_fields
from mmpo.pipeline.build.mixture import drawn
from mmpo.pipeline.build.resolve import ResolvedBuild
from mmpo.pipeline.filters import PromptRules, compared, duplicates, texts_of_prompts
from mmpo.pipeline.grades.merge import merge_prompts
from mmpo.pipeline.pairs import filtered_prompts, first_user_messages, split_of_prompts
from mmpo.pipeline.storage.accounting import RowAccounting

STAGE = "filter_prompts"
DROPPED_SUFFIX = ".dropped.arrow"
DROPPED = pa.schema({name: pa.string() for name in ("prompt_id", "reason", "evidence")})
"""One row per prompt that is left out, ascending by id; evidence: a JSON object."""


def look_at(parts: Sequence[pa.Table], builds: Sequence[ResolvedBuild], rules: PromptRules) -> tuple[pa.Table, dict[str, pa.Table]]:
    """Of FEEDBACK rows of whole prompts, those of each source: what the filters leave out that look at one prompt alone, and what the
    others are compared by, for each of `rules.compares`."""
    options = builds[0].options
    prompts, several = _prompts(parts, builds)
    ids, found = flat(prompts["prompt_id"]), filtered_prompts(prompts, rules)
    dropped = _dropped((ids[row].as_py(), reason, one) for reason, out, details in found for row, one in zip(out.tolist(), details))
    if not rules.compares:
        return dropped, {}
    stays = np.ones(prompts.num_rows, dtype=bool)
    for _, out, _ in found:
        stays[out] = False
    if not options.feedback_only:  # what makes no pair must not stand for others that would
        stays &= np.asarray(pc.is_in(ids, several))
    some = prompts.filter(pa.array(stays)).combine_chunks()
    result = {}
    for name in rules.compares:
        side, texts = np.zeros(some.num_rows, dtype=np.int8), texts_of_prompts(some)
        if name == "splits":
            side = split_of_prompts(some, options.split, options.split_by)
            if options.split_by == "first-message":  # splits go by it, and so does what they may share
                first = pa.array(first_user_messages(flat(some["prompt"])), pa.large_string())
                texts = {
                    "said": first,
                    **dict.fromkeys(("last", "system"), pa.repeat(pa.scalar("", pa.large_string()), len(first))),
                }
        result[name] = compared(flat(some["prompt_id"]), texts, side, rules.similarity, rules.shingle)
    return dropped, result


def _prompts(parts: Sequence[pa.Table], builds: Sequence[ResolvedBuild]) -> tuple[pa.Table, pa.Array]:
    """The rows merged as `merged_grades` and `drawn` do, without grades and with ids in the place of completions' texts; and the ids of
    those that have several completions in a source."""
    found, several = [], []
    for rows, build in zip(parts, builds, strict=True):
        columns = {name: rows[name] for name in rows.column_names}
        for name in ("ratings", "comparisons"):
            columns[name] = lists(np.zeros(rows.num_rows, dtype=np.int64), flat(rows[name]).flatten().slice(0, 0))
        completions = flat(rows["completions"])
        inner = completions.flatten()
        columns["completions"] = lists(offsets_of(completions)[:-1], with_fields(inner, {"text": inner.field("id")}))
        merged = drawn(merge_prompts(pa.table(columns, schema=rows.schema))[0], build, RowAccounting())
        found.append(merged)
        several.append(flat(merged["prompt_id"]).filter(pa.array(np.diff(offsets_of(flat(merged["completions"]))) > 1)))
    prompts = found[0] if len(found) == 1 else merge_prompts(pa.concat_tables(found).combine_chunks())[0]
    return prompts, pa.concat_arrays(several)


def _dropped(found: Iterable[tuple[str, str, dict[str, Any]]]) -> pa.Table:
    rows = sorted((prompt, reason, orjson.dumps(details).decode()) for prompt, reason, details in found)
    return pa.table(list(map(list, zip(*rows))) or [[], [], []], schema=DROPPED)


def with_duplicates(
    dropped: Callable[[int], pa.Table], parts: Mapping[str, Sequence[pa.Table]], rules: PromptRules
) -> Iterator[tuple[int, pa.Table]]:
    """The number of a part and what is left out of it, with the prompts that are too near to others of any part. A part comes once for each
    of `rules.compares`, and `dropped` must by then give what came of it before."""
    gone: list[np.ndarray] = []
    for name in rules.compares:
        tables = parts[name]
        before = np.concatenate(gone) if gone else None
        gone = gone or [np.zeros(table.num_rows, dtype=bool) for table in tables]
        found = duplicates(tables, rules.similarity, across_splits=name == "splits", gone=before)
        for number, (table, some) in enumerate(zip(tables, found, strict=True)):
            gone[number][[one.row for one in some]] = True
            more = _dropped((table["prompt_id"][one.row].as_py(), one.reason, one.details) for one in some)
            yield number, pa.concat_tables([dropped(number), more]).sort_by("prompt_id")


@dataclass(frozen=True)
class LookedAt:
    """What a shard left in files: its tables of DROPPED and of what is compared."""

    dropped: Path
    compared: Mapping[str, Path]


def look_at_shard(parts: Iterable[Sequence[pa.Table]], builds: Sequence[ResolvedBuild], rules: PromptRules, stem: Path) -> LookedAt:
    """`look_at` each part of a shard, whose number the stem of the files names."""
    files = LookedAt(stem.with_suffix(DROPPED_SUFFIX), {name: stem.with_suffix(f".{name}.arrow") for name in rules.compares})
    alone = [DROPPED.empty_table()]
    with ExitStack() as writers:
        open_files: dict[str, ipc.RecordBatchFileWriter] = {}
        for rows in chain(parts, [[LARGE_FEEDBACK.empty_table() for _ in builds]]):  # a shard may hold no prompt, and has its files
            dropped, held = look_at(rows, builds, rules)
            alone.append(dropped)
            for name, table in held.items():
                if name not in open_files:
                    open_files[name] = writers.enter_context(ipc.new_file(str(files.compared[name]), table.schema))
                open_files[name].write_table(table)
    _write(pa.concat_tables(alone), files.dropped)
    return files


def compare_shards(looked: Sequence[LookedAt], rules: PromptRules) -> None:
    """Add to what each shard leaves out the prompts that are too near to others of any shard. Bands are read one at a time."""
    parts = {name: [read_dropped(files.compared[name]) for files in looked] for name in rules.compares}
    for number, table in with_duplicates(lambda number: read_dropped(looked[number].dropped), parts, rules):
        _write(table, looked[number].dropped)


def _write(table: pa.Table, path: Path) -> None:
    path.unlink(missing_ok=True)  # who has it open goes on reading what it was
    with ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


def read_dropped(path: Path) -> pa.Table:
    """What `look_at_shard` and `compare_shards` left in a file."""
    with pa.memory_map(str(path)) as source:
        return ipc.open_file(source).read_all()


def without_dropped(merged: pa.Table, dropped: pa.Table, accounting: RowAccounting) -> tuple[pa.Table, pa.Table]:
    """Merged FEEDBACK without the prompts that are left out, all counted; and the rows of DROPPED that are of it."""
    ids = flat(merged["prompt_id"])
    place = pc.index_in(ids, flat(dropped["prompt_id"]))
    stays = np.asarray(pc.is_null(place))
    found, kept = dropped.take(pc.drop_null(place)), merged.filter(pa.array(stays)).combine_chunks()
    reasons = Counter(found["reason"].to_pylist())
    accounting.count(STAGE, "prompt", into=merged.num_rows, out=kept.num_rows, dropped=reasons)
    for unit, columns in (("completion", ("completions",)), ("grade", ("ratings", "comparisons"))):
        into, out = (sum(len(flat(table[name]).flatten()) for name in columns) for table in (merged, kept))
        lost = {f"{unit}_of_dropped_prompt": into - out} if into > out else {}
        accounting.count(STAGE, unit, into=into, out=out, dropped=lost)
    return kept, found
