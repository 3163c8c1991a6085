"""The pairs of a split: read and checked, and then as what trains: prompts, each with its rendered completions and all its pairs.

A completion that takes part in many pairs is rendered, stored and later computed once.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmpo.pipeline.arrow import differing_messages, to_numpy
from mmpo.pipeline.contract import key_faults
from mmpo.pipeline.errors import UserError, unknown_name
from mmpo.pipeline.options import options_from
from mmpo.pipeline.progress import say
from mmpo.pipeline.storage import MANIFEST, about_part, part_schema, read_manifest, read_parts, split_files
from mmpo.pipeline.tables import FEEDBACK, MESSAGE_KEYS, PAIRS, TOOLS, without_nulls
from mmpo.train.data.render import Rendered, Renderer
from mmpo.train.messages import is_first_process, warn
from mmpo.train.objective import TERMS, LevelTarget, reads_targets, targets
from mmpo.train.options import TrainOptions

Counts = dict[str, int]

_FILLED = ("prompt_id", "chosen_id", "rejected_id", "prompt", "chosen", "rejected", "quality_margin")
_SCORES = ("score_chosen", "score_rejected")
_AGAIN = "build the dataset again from its sources with `mmpo build`"


def _pair_files(data: str | Path, split: str) -> list[Path]:
    """The Parquet files of a split of a dataset folder, or the one file that is named.

    Raises UserError, with what is there, where there is none, for a dataset of another schema version, and for
    FEEDBACK.
    """
    path = Path(data)
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


def _as_pairs(files: Sequence[Path]) -> pa.Table:
    """Parquet files in the schema of PAIRS. Raises UserError where one is no such table, naming what is wrong."""
    for file in files:
        names = part_schema(file).names
        if set(FEEDBACK.names) <= set(names) and not set(PAIRS.names) <= set(names):
            raise UserError(f"{file} {_feedback(file)}")
    return read_parts(files, nullable=None).replace_schema_metadata(None)


def _unread(file: Path) -> set[str]:
    """Fields of the messages of a file of pairs that nothing here reads."""
    messages = (part_schema(file).field(name).type for name in ("prompt", "chosen", "rejected"))
    kinds = [kind.value_type for kind in messages if hasattr(kind, "value_type")]
    return {field.name for kind in kinds if pa.types.is_struct(kind) for field in kind.fields} - {"role", "content", *MESSAGE_KEYS}


def _feedback(path: Path) -> str:
    return (
        "holds FEEDBACK (one row per prompt, with its grades), and training reads PAIRS: make them with "
        f"`mmpo build {path} --format feedback --out PAIRS`"
    )


def check_rows(table: pa.Table, where: str) -> None:
    """Raises UserError, with how many rows and the first one (from 0), where a row can't be trained on or measured.

    That is: no id, no message, a message without text, or a margin that is no finite number of at least 0.
    """
    if not table.num_rows:
        raise UserError(f"{where} holds no pairs (0 rows): name a split with pairs, or {_AGAIN}")
    for name in _FILLED:
        _refuse(pc.is_null(table[name]).to_numpy(), f"have no {name}", where)
    for name in ("prompt", "chosen", "rejected"):
        _refuse(pc.equal(pc.list_value_length(table[name]), 0).to_numpy(), f"have no message in {name}", where)
        parts, bad = pc.list_flatten(table[name]), np.zeros(table.num_rows, dtype=bool)
        for part in ("role", "content"):
            bad[pc.list_parent_indices(table[name]).filter(pc.is_null(pc.struct_field(parts, part))).to_numpy()] = True
        _refuse(bad, f"have a message without role or text in {name}", where)
    for _, words, bad in key_faults(table):
        _refuse(bad, f"can't be used: {words}", where)
    margin = table["quality_margin"].to_numpy()
    _refuse(~np.isfinite(margin) | (margin < 0), "have a quality_margin that is no finite number of at least 0", where)


def _refuse(bad: np.ndarray, what: str, where: str) -> None:
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise UserError(f"{where}: {int(bad.sum())} of {len(bad)} rows {what} (the first: row {first}); {_AGAIN}")


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
        "build with other scores (--score, --normalise), or train on votes with --loss mmpo --target measured"
    )


def check_scores(table: pa.Table, terms: Sequence[str], where: str) -> None:
    """Raises UserError, for an objective with a term of all completions of a prompt, unless each completion has one score."""
    listed = [name for name in terms if TERMS[name].listed is not None]
    if not listed:
        return
    scores = np.concatenate([to_numpy(table[name]) for name in _SCORES])
    names = [table[name].to_pylist() for name in ("chosen_id", "rejected_id")]
    _, first, codes = _unique([*names[0], *names[1]])
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


def check_prompt_scores(prompts: Sequence["PromptPairs"], terms: Sequence[str], where: str) -> None:
    """`check_scores` of prepared prompts, whose `scores` may be missing or hold NaN."""
    listed = [name for name in terms if TERMS[name].listed is not None]
    without = [prompt for prompt in prompts if prompt.scores is None or not np.isfinite(prompt.scores).all()] if listed else []
    if without:
        raise UserError(
            f"{where}: {len(without)} of {len(prompts)} prompts have completions without a score (`scores`; the first: prompt_id "
            f"{without[0].prompt_id}), and {listed[0]} needs one score of every completion. Take a loss of pairs, such as loss='mmpo', or "
            "prepare pairs that have scores"
        )


def read_pairs(data: str | Path, split: str) -> pa.Table:
    """The pairs of one split of a dataset folder, or all pairs of one Parquet file. Raises UserError with what is
    there, and for whatever can't be trained on.
    """
    files = _pair_files(data, split)
    table = _as_pairs(files)
    if unread := sorted(set().union(*map(_unread, files))):
        warn(
            [
                f"{data} ({split}): messages carry {', '.join(unread)}, which is left out (read: role, content, {', '.join(MESSAGE_KEYS)})"
            ]
        )
    check_rows(table, str(data) if Path(data).is_file() else f"{Path(data) / split}")
    return table


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
    path = Path(data)
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
    path = Path(options.data) / MANIFEST
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


def usable_pairs(table: pa.Table, *, ties: bool, source_weights: Mapping[str, float] | None = None) -> tuple[pa.Table, Counts]:
    """The pairs worth computing: without the sources of weight 0 and, unless `ties`, without those of margin 0.

    Also counts what was left out, each pair under one reason, as "dropped_source_weight" and "dropped_ties".
    """
    counts: Counts = {}
    unused = [name for name, weight in (source_weights or {}).items() if weight == 0]
    if unused:
        table, counts["dropped_source_weight"] = _kept(table, ~np.isin(np.array(table["source"].to_pylist(), dtype=object), unused))
    if not ties:
        table, counts["dropped_ties"] = _kept(table, to_numpy(table["quality_margin"]) > 0)
    return table, counts


def _kept(table: pa.Table, mask: np.ndarray) -> tuple[pa.Table, int]:
    return table.filter(pa.array(mask, pa.bool_())), int((~mask).sum())


# --- prompts with their pairs --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class PromptPairs:
    """One prompt: completions (each once) and pairs of them.

    `chosen` and `rejected` index `completions`; with the targets `p`, the margins, the weights and `rows` (the pairs'
    rows in the table) they have shape (pairs,). `reference` holds the reference's log-probabilities, shape
    (completions,), or None; `scores` the completions' own grades, NaN where there is none, or None.
    """

    prompt_id: str
    completions: Sequence[Rendered]
    chosen: np.ndarray
    rejected: np.ndarray
    p: np.ndarray
    margin: np.ndarray
    weight: np.ndarray
    rows: np.ndarray
    reference: np.ndarray | None = None
    scores: np.ndarray | None = None

    @classmethod
    def without_pairs(cls, prompt_id: str, completions: Sequence[Rendered]) -> "PromptPairs":
        """A prompt whose completions are computed, and no pair of them."""
        none = np.zeros(0)
        return cls(prompt_id, completions, none, none, none, none, none, none)

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        return max(len(item.ids) for item in self.completions)

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return sum(len(item.ids) for item in self.completions)


@dataclass(frozen=True)
class Prepared:
    """The outcome of `prepare`: in pairs = kept pairs + dropped by reason, and what rendering changed."""

    prompts: list[PromptPairs]
    counts: Counts


def prepare(
    table: pa.Table,
    p: np.ndarray,
    renderer: Renderer,
    weight: str = "pair",
    source_weights: Mapping[str, float] | None = None,
) -> Prepared:
    """Renders every prompt and completion of a PAIRS table once and groups the pairs by prompt.

    `p`: targets, shape (pairs,). `weight`: "pair" gives every pair 1, "prompt" 1 / (kept pairs of its prompt);
    `source_weights` multiply it, a source that they don't name by 1. Prompts come in the order of their ids, so that
    the order of the table's rows has no influence. Raises UserError where an id stands for two texts.
    """
    prompt_ids, first, prompt_of = _unique(table["prompt_id"].to_pylist())
    differing = differing_messages(table["prompt"], first[prompt_of])
    _refuse_ambiguous(differing, lambda at: f"the prompt {table['prompt_id'][at]} has two texts (row {at}; ", "rows")
    prompts, tools = messages_at(table["prompt"], first), _tools(table, first, prompt_of)
    texts, sides, owners = _completions(table, prompt_of)
    margin, scores = to_numpy(table["quality_margin"]), np.full(len(texts), np.nan)
    for side, name in enumerate(_SCORES if set(_SCORES) <= set(table.column_names) else ()):
        scores[sides[:, side]] = to_numpy(table[name])
    factor = np.array([(source_weights or {}).get(name, 1.0) for name in table["source"].to_pylist()], dtype=np.float64)
    order = np.argsort(prompt_of, kind="stable")
    bounds = np.searchsorted(prompt_of[order], np.arange(len(prompt_ids) + 1))
    kept: list[PromptPairs] = []
    dropped: Counter[str] = Counter()
    # A Python loop: rendering and tokenising are per text anyway.
    for number, identity in enumerate(prompt_ids):
        rows = order[bounds[number] : bounds[number + 1]]
        prompt = renderer.prompt_ids(prompts[number], tools[number])
        if prompt is None:
            dropped["prompt_not_rendered"] += len(rows)
            continue
        candidates = owners[number]
        rendered = {c: renderer.completion(prompts[number], prompt, texts[c]) for c in candidates}
        usable = np.array([all(rendered[c] is not None for c in sides[row]) for row in rows])
        dropped["completion_not_rendered"] += int((~usable).sum())
        rows = rows[usable]
        equal = np.array([_equal(rendered[sides[row, 0]], rendered[sides[row, 1]]) for row in rows], dtype=object)
        dropped.update(equal[equal != ""].tolist())
        rows = rows[equal == ""]
        if not len(rows):
            continue
        used = set(sides[rows].ravel().tolist())
        place = {c: i for i, c in enumerate(c for c in candidates if c in used)}
        kept.append(
            PromptPairs(
                prompt_id=identity,
                completions=[item for c in place if (item := rendered[c]) is not None],
                chosen=np.array([place[sides[row, 0]] for row in rows]),
                rejected=np.array([place[sides[row, 1]] for row in rows]),
                p=p[rows],
                margin=margin[rows],
                weight=factor[rows] if weight == "pair" else factor[rows] / len(rows),
                rows=rows,
                scores=scores[list(place)],
            )
        )
    counts = {"pairs": sum(len(item.rows) for item in kept), "prompts": len(kept), **dropped, **renderer.counts}
    if counts["pairs"] + sum(dropped.values()) != table.num_rows:
        raise RuntimeError(f"pairs do not balance: {table.num_rows} in, {counts}")
    return Prepared(kept, {name: count for name, count in counts.items() if count})


def _equal(one: Rendered | None, other: Rendered | None) -> str:
    """Under which name a pair is left out because its completions are the same tokens, so that its z could only be 0; else ""."""
    if one is None or other is None or not np.array_equal(one.ids, other.ids):
        return ""
    return "truncated_to_equal" if one.truncated or other.truncated else "equal_after_rendering"


def prepare_pairs(
    table: pa.Table,
    renderer: Renderer,
    target: str | LevelTarget,
    gamma: float,
    ties: bool = True,
    weight: str = "pair",
    source_weights: Mapping[str, float] | None = None,
) -> Prepared:
    """The usable pairs of a PAIRS table with their targets, rendered; the counts say what became of every pair.

    target, gamma: as `targets` takes them; ties: as `usable_pairs` does; weight, source_weights: as `prepare` does.
    """
    used, dropped = usable_pairs(table, ties=ties, source_weights=source_weights)
    p, about_targets = targets(target, used, gamma)
    prepared = prepare(used, p, renderer, weight, source_weights)
    return Prepared(prepared.prompts, {"pairs_in": table.num_rows, **dropped, **about_targets, **prepared.counts})


def messages_at(column: pa.ChunkedArray, places: np.ndarray) -> list[list[dict[str, Any]]]:
    """The messages at these places, as templates take them."""
    found = column.take(pa.array(places)).to_pylist()
    return found if column.type.value_type.num_fields == 2 else [without_nulls(messages) for messages in found]


def _tools(table: pa.Table, first: np.ndarray, prompt_of: np.ndarray) -> list[list[dict[str, Any]] | None]:
    """The tools of each prompt, None where it has none. Raises UserError where rows of a prompt have others."""
    if TOOLS not in table.column_names:
        return [None] * len(first)
    given = table[TOOLS].to_pylist()
    other = np.array([given[row] != given[before] for row, before in enumerate(first[prompt_of])], dtype=bool)
    _refuse_ambiguous(other, lambda at: f"the prompt {table['prompt_id'][at]} offers other tools (row {at}; ", "rows")
    return [None if given[row] is None else json.loads(given[row]) for row in first]


def _completions(table: pa.Table, prompt_of: np.ndarray) -> tuple[list, np.ndarray, list[list[int]]]:
    """All distinct completions: their messages, each pair's two (pairs, 2), and each prompt's completions. prompt_of: a number for
    each row's prompt, (pairs,). Raises UserError where an id stands for completions of two prompts, or for two texts.
    """
    rows, names = table.num_rows, table["prompt_id"]
    _, first, codes = _unique(identities := [*table["chosen_id"].to_pylist(), *table["rejected_id"].to_pylist()])
    texts = pa.chunked_array([*table["chosen"].chunks, *table["rejected"].chunks], table["chosen"].type)
    before, prompts = first[codes], np.tile(prompt_of, 2)

    def two_prompts(at: int) -> str:
        return f"the completion {identities[at]} stands under two prompts, {names[before[at] % rows]} and {names[at % rows]} ("

    _refuse_ambiguous(prompts != prompts[before], two_prompts, "places")
    differing = differing_messages(texts, before)
    _refuse_ambiguous(differing, lambda at: f"the completion {identities[at]} has two texts (row {at % rows}; ", "places")
    owners: list[list[int]] = [[] for _ in range(int(prompt_of.max(initial=-1)) + 1)]
    for completion, place in enumerate(first):
        owners[prompt_of[place % rows]].append(completion)
    # Each column by itself: what is taken from one array may hold 2 GiB of text at most.
    sides = ((table["chosen"], first[first < rows]), (table["rejected"], first[first >= rows] - rows))
    chosen, rejected = (iter(messages_at(*side)) for side in sides)
    messages = [next(chosen if place < rows else rejected) for place in first]
    return messages, codes.reshape(2, rows).T, owners


def _refuse_ambiguous(bad: np.ndarray, found: Callable[[int], str], where: str) -> None:
    """Raises UserError where an id stands for several things. bad: at which places it does; found: says what stands at one."""
    if bad.any():
        raise UserError(
            f"{found(int(bad.argmax()))}{int(bad.sum())} of {len(bad)} {where} are such): an id is that of one prompt, or of one "
            "completion of one prompt. `mmpo validate` lists such pairs; build them again with `mmpo build`"
        )


def _unique(names: Sequence[str]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Sorted distinct names, the place where each is first, and each place's code."""
    values, first, codes = np.unique(np.array(names, dtype=object), return_index=True, return_inverse=True)
    return values.tolist(), first, codes.reshape(-1)
