"""The pairs of a split, read and checked."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmpo.pipeline.arrow import to_numpy
from mmpo.pipeline.contract import key_faults
from mmpo.pipeline.errors import UserError, unknown_name
from mmpo.pipeline.options import options_from
from mmpo.pipeline.progress import say
from mmpo.pipeline.storage import MANIFEST, about_part, batches, on_disk, part_schema, read_manifest, read_parts, split_files
from mmpo.pipeline.tables import FEEDBACK, MESSAGE_KEYS, PAIRS, TOOLS, keys_of, with_keys
from mmpo.train.data.rendering import numbered
from mmpo.train.messages import is_first_process, warn
from mmpo.train.objective import TERMS, reads_targets
from mmpo.train.options import TrainOptions

Counts = dict[str, int]

SCORES = ("score_chosen", "score_rejected")
IDS, TEXTS = ("prompt_id", "chosen_id", "rejected_id"), ("prompt", "chosen", "rejected")
_FILLED = (*IDS, *TEXTS, "quality_margin")
_AGAIN = "build the dataset again from its sources with `mmpo build`"


def pair_files(data: str | Path, split: str) -> list[Path]:
    """The Parquet files of a split of a dataset folder, or the one file that is named.

    Raises UserError, with what is there, where there is none, for a dataset of another schema version, and for
    FEEDBACK.
    """
    path = on_disk(data)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"no dataset at {path}: give a folder made by `mmpo build` or a Parquet file of pairs")
    if (path / MANIFEST).is_file() and read_manifest(path).get("kind") == "feedback":
        raise UserError(f"{path} {_feedback(path)}")
    files = split_files(path, split)
    if not files:
        present = sorted(child.name for child in path.iterdir() if any(child.glob("*.parquet")))
        raise UserError(f"{path} has no split {split!r}; it has: {', '.join(present) or 'no pairs at all'}")
    return files


def _of_pairs(files: Sequence[Path]) -> Sequence[Path]:
    """The files, none of which holds FEEDBACK. Raises UserError."""
    for file in files:
        names = part_schema(file).names
        if set(FEEDBACK.names) <= set(names) and not set(PAIRS.names) <= set(names):
            raise UserError(f"{file} {_feedback(file)}")
    return files


def _unread(file: Path) -> set[str]:
    """Fields of the messages of a file of pairs that nothing here reads."""
    messages = (part_schema(file).field(name).type for name in ("prompt", "chosen", "rejected"))
    kinds = [kind.value_type for kind in messages if hasattr(kind, "value_type")]
    return {field.name for kind in kinds if pa.types.is_struct(kind) for field in kind.fields} - {"role", "content", *MESSAGE_KEYS}


def _feedback(path: Path) -> str:
    return (
        "holds FEEDBACK (one row per prompt, with its grades), and training reads PAIRS: make them with "
        f"`mmpo build {quote(str(path))} --format feedback --out PAIRS`"
    )


def check_rows(table: pa.Table, where: str) -> None:
    """Raises UserError, with how many rows and the first one (from 0), where a row can't be trained on or measured.

    That is: no id, no message, a message without text, or a margin that is no finite number of at least 0.
    """
    for _ in _checked([table], where):
        pass


def _checked(batches: Iterable[pa.Table], where: str) -> Iterator[pa.Table]:
    """The batches as they come, and at their end what `check_rows` refuses of all of them."""
    faults: dict[str, list[np.ndarray]] = {}
    rows = 0
    for batch in batches:
        yield batch
        for what, bad in _faults(batch):
            seen = faults.setdefault(what, [])
            seen.append(rows + np.flatnonzero(bad))
        rows += batch.num_rows
    if not rows:
        raise UserError(f"{where} holds no pairs (0 rows): name a split with pairs, or {_AGAIN}")
    for what, places in faults.items():
        if count := sum(map(len, places)):
            first = next(int(one[0]) for one in places if len(one))
            raise UserError(f"{where}: {count} of {rows} rows {what} (the first: row {first}); {_AGAIN}")


def _faults(table: pa.Table) -> Iterator[tuple[str, np.ndarray]]:
    """What may be wrong with rows, and which of them are, in the order in which it is told."""
    for name in _FILLED:
        yield f"have no {name}", pc.is_null(table[name]).to_numpy()
    for name in TEXTS:
        yield f"have no message in {name}", pc.equal(pc.list_value_length(table[name]), 0).to_numpy()
        parts, bad = pc.list_flatten(table[name]), np.zeros(table.num_rows, dtype=bool)
        for part in ("role", "content"):
            bad[pc.list_parent_indices(table[name]).filter(pc.is_null(pc.struct_field(parts, part))).to_numpy()] = True
        yield f"have a message without role or text in {name}", bad
    for _, words, bad in key_faults(table):
        yield f"can't be used: {words}", bad
    margin = table["quality_margin"].to_numpy()
    wrong = ~np.isfinite(margin) | (margin < 0)
    yield "have a quality_margin that is no finite number of at least 0", wrong


def check_margins(margin: np.ndarray, terms: Sequence[str], target: str) -> None:
    """Raises UserError where no pair has a winner (shape (pairs,), all 0) and so nothing can be learnt.

    terms: the names of the objective's. The target `measured` comes from votes: with it mmpo can learn from ties.
    """
    if (margin > 0).any() or (target == "measured" and reads_targets(terms)):
        return
    means = "so that every target is .5 at any gamma" if reads_targets(terms) else "so that none says which completion is better"
    if all(TERMS[name].needs_winner for name in terms):
        means = "and this objective leaves ties out"
    raise UserError(
        f"all {len(margin)} pairs are ties: their quality_margin is 0, {means}, and there is nothing to learn. See `mmpo validate`; "
        "build with other scores (--score, --normalise), or train on votes with --loss mmpo --target measured --gamma 1 "
        "(a number, which is then of no use)"
    )


def check_scores(table: pa.Table, terms: Sequence[str], where: str) -> None:
    """Raises UserError, for an objective with a term of all completions of a prompt, unless each completion has one score."""
    listed = [name for name in terms if TERMS[name].listed is not None]
    if not listed:
        return
    scores = np.concatenate([to_numpy(table[name]) for name in SCORES])
    _, codes = numbered(pa.chunked_array([*table["chosen_id"].chunks, *table["rejected_id"].chunks], pa.string()))
    _, first = np.unique(codes, return_index=True)
    for bad, what in (
        (np.isnan(scores), "without a score of their own, as comparisons give them"),
        (
            ~np.isclose(scores, scores[first[codes]], rtol=1e-9, atol=1e-12),
            "with another score than the same completion has elsewhere",
        ),
    ):
        if bad.any():
            at = int(bad.argmax()) % table.num_rows
            raise UserError(
                f"{where}: {int(bad.sum())} of {len(bad)} sides of pairs are completions {what} (score_chosen, score_rejected; the first: "
                f"prompt_id {table['prompt_id'][at]}), and {listed[0]} needs one score of every completion. Take a loss of pairs, such as "
                "--loss mmpo, or build the pairs from ratings of single completions"
            )


def read_pairs(data: str | Path, split: str, *, texts: bool = True) -> pa.Table:
    """The pairs of one split of a dataset folder, or all pairs of one Parquet file. Without `texts` the messages are checked and left out:
    `text_batches` reads them. Raises UserError with what is there, and for whatever can't be trained on.
    """
    files, where = pair_files(data, split), str(data) if Path(data).is_file() else f"{Path(data) / split}"
    if texts:
        table = read_parts(_of_pairs(files), nullable=None).replace_schema_metadata(None)
    else:
        names = [name for name in PAIRS.names if name not in (*TEXTS, TOOLS)]
        table = pa.concat_tables([batch.select(names) for batch in _checked(_batches(files), where)]).combine_chunks()
        pa.default_memory_pool().release_unused()  # what the texts took
    if unread := sorted(set().union(*map(_unread, files))):
        warn(
            [
                f"{data} ({split}): messages carry {', '.join(unread)}, which is left out (read: role, content, {', '.join(MESSAGE_KEYS)})"
            ]
        )
    if texts:
        check_rows(table, where)
    return table


def text_batches(data: str | Path, split: str) -> Iterator[pa.Table]:
    """The ids and the messages of the same pairs, a few thousand at a time."""
    for batch in _batches(pair_files(data, split)):
        yield batch.select([name for name in (*IDS, *TEXTS, TOOLS) if name in batch.column_names])


def _batches(files: Sequence[Path]) -> Iterator[pa.Table]:
    keys = {key for file in _of_pairs(files) for key in keys_of(part_schema(file))}
    return (pa.Table.from_batches([batch]) for batch in batches(files, rows=4096, schema=with_keys(PAIRS, keys), nullable=None))


def with_graded_part(options: TrainOptions, data: str | Path | None = None, trained: str | None = None) -> TrainOptions:
    """The options with a graded part and what becomes of thinking: what was given; else what the dataset says that its grades are of, else
    `trained` (what a model to be measured was trained by), else all. Where these disagree it is said."""
    data = options.data if data is None else data
    said = _graded_part_of(data)
    part = options.graded_part or said or trained or "all"
    if said not in (None, part):
        warn([f"--graded-part {part} is used, while {data} says that its grades are of: {said}"])
    if trained not in (None, part):
        warn([f"what is measured are grades of: {part}; the model was trained by grades of: {trained}"])
    return of_part(options, part)


def of_part(options: TrainOptions, part: Any) -> TrainOptions:
    """The options with this graded part, and with what becomes of thinking where that was not given."""
    usual = "drop" if options.kind == "reward" and part == "answer" else "keep"
    return replace(options, graded_part=part, thinking=options.thinking or usual)


def _graded_part_of(data: str | Path) -> str | None:
    """What the grades of a dataset are of, as it says itself; None where it does not."""
    path = on_disk(data)
    about: Mapping[str, object] = {}
    if (path / MANIFEST).is_file():
        about = read_manifest(path)
    elif path.suffix == ".parquet" and path.is_file():
        about = about_part(part_schema(path), path)
    recipe = about.get("recipe")
    part = recipe.get("graded_part") if isinstance(recipe, dict) else None
    return part if part in ("answer", "all") else None


def with_source_weights(options: TrainOptions) -> TrainOptions:
    """The options with the weights of the sources that the dataset was mixed of, unless others are given; which is said."""
    path = on_disk(options.data) / MANIFEST
    if options.source_weights or not path.is_file():
        return options
    given = read_manifest(path.parent).get("by_source", {})
    weights = {name: float(one.get("weight", 1.0)) for name, one in given.items() if one.get("train")}
    if set(weights.values()) <= {1.0}:
        return options
    if is_first_process():
        told = ",".join(f"{name}={weight:g}" for name, weight in weights.items() if weight != 1)
        say(f"{options.data} was mixed with weights, which are used: --source-weights {told}")
    return replace(options, source_weights=weights)


def check_sources(table: pa.Table, source_weights: Mapping[str, float]) -> None:
    """Raises UserError for a weight that is no finite number of at least 0, or that names no source of the table, and where
    every source has weight 0.
    """
    options_from(TrainOptions, {"kind": "policy", "source_weights": source_weights})
    known = sorted(set(table["source"].to_pylist()), key=str)
    for name in source_weights:
        if name not in known:
            several = "; pairs fed by several sources carry a name of their own, such as 'a + b'"
            raise UserError(f"source_weights: {unknown_name('source', name, map(str, known))}{several}")
    if known and all(source_weights.get(name) == 0 for name in known):
        raise UserError(
            f"source_weights: every source of the {table.num_rows} pairs has weight 0 ({', '.join(map(str, known))}), so that none is "
            "left to train on: give one of them a weight above 0"
        )
