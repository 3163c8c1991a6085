"""What is advised on: PAIRS or FEEDBACK as arrays, every completion once, pairs as places of two completions; and of FEEDBACK the pairs
that each normalisation makes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from shlex import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmpo.pipeline import BuildOptions, build_pairs, load_feedback, load_pairs
from mmpo.pipeline.api import grades_of
from mmpo.pipeline.arrow import flat, offsets_of, to_numpy
from mmpo.pipeline.errors import UserError, unknown_name
from mmpo.pipeline.pairs import first_user_messages, rater_gaps
from mmpo.pipeline.storage import MANIFEST, name_of, on_disk, part_schema, read_manifest
from mmpo.pipeline.tables import FEEDBACK, PAIRS, metadata
from mmpo.train.data import check_rows, read_pairs

MOST_COMPLETIONS, MOST_PAIRS = 8000, 30000
"""What a look of a minute or two reads; of more, whole prompts are drawn."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """Pairs of completions with their margins.

    prompts: the messages of every prompt; texts: every completion's; prompt_of: each completion's prompt, shape (completions,).
    group: what stays on one side of a split, one number a prompt: prompts that share their first user message. chosen, rejected: places
    in `texts`, shape (pairs,), as are margin (in score units, ≥ 0), margin_se (NaN where unknown), preferring, raters (votes, 0 where
    there are none) and source. scores: of each completion where pairs carry them, else NaN, shape (completions,).
    """

    prompts: Sequence[list[dict[str, str]]]
    prompt_ids: Sequence[str]
    texts: Sequence[str]
    ids: Sequence[str]
    prompt_of: np.ndarray
    group: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    margin: np.ndarray
    margin_se: np.ndarray
    preferring: np.ndarray
    raters: np.ndarray
    scores: np.ndarray
    source: np.ndarray

    @property
    def pair_group(self) -> np.ndarray:
        """The group of each pair's prompt, shape (pairs,)."""
        return self.group[self.prompt_of[self.chosen]]

    @property
    def decided(self) -> np.ndarray:
        """Which pairs are no ties, shape (pairs,)."""
        return self.margin > 0

    def only(self, pairs: np.ndarray) -> Evidence:
        """Some of the pairs, a mask or places, of the same completions."""
        columns = ("chosen", "rejected", "margin", "margin_se", "preferring", "raters", "source")
        return replace(self, **{name: getattr(self, name)[pairs] for name in columns})


def evidence_of(table: pa.Table, where: str, seed: int = 0) -> tuple[Evidence, dict[str, int]]:
    """A PAIRS table as arrays, and counts: prompts, pairs, ties, and those of a large table that were not drawn.

    Pairs come in the order of their ids, so that nothing that is drawn depends on where a row stands: a folder of PAIRS and the FEEDBACK
    that it was built of give the same figures. Raises UserError for rows that can't be used (as training does).
    """
    check_rows(table, where)
    counts = {"prompts_in": len(pc.unique(flat(table["prompt_id"]))), "pairs_in": table.num_rows}
    table = in_order(_drawn(table, seed))
    prompt_ids, first, prompt_of_pair = _coded(table["prompt_id"].to_pylist())
    both = [*table["chosen_id"].to_pylist(), *table["rejected_id"].to_pylist()]
    ids, place, codes = _coded(both)
    rows, side = place % table.num_rows, place // table.num_rows
    texts = [
        _text(table["rejected" if at else "chosen"][int(row)].as_py()) for row, at in zip(rows.tolist(), side.tolist(), strict=True)
    ]
    scores = np.concatenate([to_numpy(table["score_chosen"]), to_numpy(table["score_rejected"])]).astype(np.float64)[place]
    prompts = table["prompt"].take(pa.array(first))
    _, _, group = _coded(first_user_messages(flat(prompts)))
    found = Evidence(
        prompts=prompts.to_pylist(),
        prompt_ids=prompt_ids,
        texts=texts,
        ids=ids,
        prompt_of=prompt_of_pair[rows],
        group=group,
        chosen=codes[: table.num_rows],
        rejected=codes[table.num_rows :],
        scores=scores,
        **_of_pairs(table),
    )
    counts |= {"prompts": len(first), "pairs": table.num_rows, "ties": int((~found.decided).sum()), "completions": len(texts)}
    counts["prompts_not_drawn"] = counts["prompts_in"] - counts["prompts"]
    return found, counts


def _of_pairs(table: pa.Table) -> dict[str, np.ndarray]:
    """The fields of Evidence that a table of PAIRS has for each pair."""
    return {
        "margin": _numbers(table["quality_margin"]),
        "margin_se": _numbers(table["margin_se"]),
        "preferring": np.nan_to_num(_numbers(table["preferring"])),
        "raters": np.nan_to_num(_numbers(table["raters"])),
        "source": np.array(table["source"].to_pylist(), dtype=object),
    }


def check_evidence(found: Evidence, where: str, least: int) -> None:
    """Raises UserError where there is nothing to compare on prompts of its own: too few prompts, no margins, one text."""
    groups = len(np.unique(found.pair_group[found.decided]))
    if not found.decided.any():
        raise UserError(
            f"{where}: all {len(found.margin)} pairs are ties (constant scores): no margin says anything of direction. "
            "Build with other scores (--score, --normalise), or gather more grades"
        )
    if groups < least:
        raise UserError(
            f"{where} has {groups} prompt{'s' * (groups != 1)} with untied pairs (those of one first user message count as one): "
            f"settings are chosen on some prompts and judged on others, which takes {least} at least. Give more prompts"
        )


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    return column.cast(pa.float64()).to_numpy()


def _text(messages: list[dict[str, str]]) -> str:
    return "\n".join(message["content"] for message in messages)


def _coded(values: Sequence[str]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Sorted distinct values, where each is first, and each place's code."""
    names, first, codes = np.unique(np.array(values, dtype=object), return_index=True, return_inverse=True)
    return names.tolist(), first, codes.reshape(-1)


def in_order(table: pa.Table) -> pa.Table:
    """Pairs by the ids of their completions."""
    return table.sort_by([("chosen_id", "ascending"), ("rejected_id", "ascending")])


def _shuffled(prompt_ids: Sequence[str], seed: int) -> np.ndarray:
    """Places of prompts in an order that is drawn by the seed and their ids, wherever they stand."""
    return np.argsort([blake2b(f"{seed}\0{one}".encode(), digest_size=16).hexdigest() for one in prompt_ids])


def _drawn(table: pa.Table, seed: int) -> pa.Table:
    """Whole prompts drawn at random, so that neither completions nor pairs are more than a short look reads."""
    names, _, codes = _coded(table["prompt_id"].to_pylist())
    completions = np.array([*table["chosen_id"].to_pylist(), *table["rejected_id"].to_pylist()], dtype=object)
    _, owner = np.unique(completions, return_index=True)
    pairs, texts = np.bincount(codes), np.bincount(codes[owner % table.num_rows], minlength=int(codes.max()) + 1)
    if len(owner) <= MOST_COMPLETIONS and table.num_rows <= MOST_PAIRS:
        return table
    order = _shuffled(names, seed)
    fits = (np.cumsum(pairs[order]) <= MOST_PAIRS) & (np.cumsum(texts[order]) <= MOST_COMPLETIONS)
    fits[0] = True
    keep = np.zeros(len(pairs), dtype=bool)
    keep[order[fits]] = True
    return table.filter(pa.array(keep[codes]))


# --- from folders, files and FEEDBACK ----------------------------------------------------------------------------------------------

NORMALISED = ("none", "minmax", "zscore", "rank", "prompt-zscore")


@dataclass(frozen=True)
class Given:
    """The data: PAIRS, or FEEDBACK with its pairs by normalisation and, where one can't be had, why. raters: of all FEEDBACK; voters: those
    of them that make no part of the margins.
    """

    kind: str
    where: str
    pairs: Mapping[str, pa.Table]
    refused: Mapping[str, str]
    feedback: pa.Table | None = None
    prompts_in: int = 0
    raters: Sequence[str] = ()
    voters: Sequence[str] = ()

    def votes(self, found: Evidence) -> np.ndarray | None:
        """Of each pair the voters' votes for the chosen completion, a tie being half a vote, and all votes, (pairs, 2); None without."""
        if not self.voters or self.feedback is None:
            return None
        cast = votes_of(self.feedback, self.voters)
        ids = np.array(found.ids, dtype=object)
        keys = zip(ids[found.chosen].tolist(), ids[found.rejected].tolist(), strict=True)
        return np.array([cast.get(key, (0.0, 0.0)) for key in keys], dtype=np.float64).reshape(-1, 2)


def read(data: str | Path | pa.Table, seed: int, voters: Sequence[str] = ()) -> Given:
    """The tables that advice is about. Raises UserError where there are none, naming what was given; and for voters that can't be."""
    table, where = (data, "the table") if isinstance(data, pa.Table) else (_table(on_disk(data)), name_of(data))
    if set(FEEDBACK.names) <= set(table.column_names):
        return of_feedback(table, where, seed, voters)
    if voters:
        raise UserError(
            f"--votes {','.join(voters)}: {where} is no FEEDBACK, so that no rater can be held out of its margins. Give FEEDBACK: "
            "mmpo build SOURCE ... --feedback-only --out FEEDBACK"
        )
    if missing := [name for name in PAIRS.names if name not in table.column_names]:
        raise UserError(
            f"{where} is neither PAIRS nor FEEDBACK: it lacks {', '.join(missing)}. Give a folder that `mmpo build` wrote"
        )
    normalised = str(metadata(table.schema).get("normalisation", "none"))
    return Given("pairs", where, {normalised: table}, {}, prompts_in=0)


def _table(path: Path) -> pa.Table:
    if path.is_dir() and (path / MANIFEST).is_file():
        return load_feedback(path) if read_manifest(path).get("kind") == "feedback" else load_pairs(path)
    if path.is_dir():
        return load_pairs(path)
    if path.is_file() and (path.suffix != ".parquet" or not {"quality_margin", "completions"} & set(part_schema(path).names)):
        raise UserError(
            f"{path} is neither PAIRS nor FEEDBACK: build it first, mmpo build {quote(str(path))} --format FORMAT --feedback-only --out DIR"
        )
    return read_pairs(path, "")


def of_feedback(feedback: pa.Table, where: str, seed: int, voters: Sequence[str] = ()) -> Given:
    """Pairs by each normalisation that the grades allow, of the same completions; of much FEEDBACK from prompts drawn at random. voters:
    raters that are kept out of the margins.
    """
    rows = feedback.num_rows
    raters = sorted({rater for names in _names(feedback).values() for rater in names})
    for voter in voters:
        if voter not in raters:
            raise unknown_name(f"rater of {where}", voter, raters)
    others = [rater for rater in raters if rater not in voters]
    if not others:
        raise UserError(
            f"{where}: --votes names all of its raters ({', '.join(raters)}), so that the votes would be the margins' own. Leave one out "
            "that makes the margins"
        )
    sizes = np.diff(offsets_of(flat(feedback["completions"])))
    if sizes.sum() > MOST_COMPLETIONS:
        order = _shuffled(feedback["prompt_id"].to_pylist(), seed)
        kept = np.cumsum(sizes[order]) <= MOST_COMPLETIONS
        kept[0] = True
        feedback = feedback.take(pa.array(np.sort(order[kept])))
        sizes = np.diff(offsets_of(flat(feedback["completions"])))
    most = None if (sizes * (sizes - 1) // 2).sum() <= MOST_PAIRS else max(10, math.ceil(MOST_PAIRS / max(len(sizes), 1)))
    pairs: dict[str, pa.Table] = {}
    refused: dict[str, str] = {}
    for name in NORMALISED:
        try:
            found = build_pairs(feedback, normalise=name, max_per_prompt=most, seed=seed, raters=others if voters else None)
        except UserError as error:
            refused[name] = str(error)
            continue
        if found.num_rows:
            pairs[name] = found
    if not pairs:
        reasons = "; ".join(dict.fromkeys(refused.values())) or "no prompt has two graded completions"
        raise UserError(f"{where}: no pair comes of this FEEDBACK: {reasons}")
    return Given("feedback", where, pairs, refused, feedback, rows, raters, tuple(dict.fromkeys(voters)))


def _names(feedback: pa.Table) -> dict[str, list[str]]:
    """Who gave each kind of grades."""
    kinds = {kind: flat(feedback[kind]).flatten() for kind in ("ratings", "comparisons")}
    return {kind: pc.unique(grades.field("rater").drop_null()).to_pylist() if len(grades) else [] for kind, grades in kinds.items()}


def votes_of(feedback: pa.Table, voters: Sequence[str]) -> dict[tuple[str, str], tuple[float, float]]:
    """By the ids of two completions, either way round: votes of these raters for the first, a tie being half a vote, and all votes."""
    sums: dict[tuple[str, str], tuple[float, float]] = {}
    for evidence, names in _names(feedback).items():
        for voter in (name for name in voters if name in names):
            merged, resolved = grades_of(feedback, BuildOptions(format="feedback", evidence=evidence, raters=(voter,)))
            gaps = rater_gaps(merged, replace(resolved.rules, strategy="all"))
            for better, worse, gap in zip(gaps.better.tolist(), gaps.worse.tolist(), gaps.gap.tolist(), strict=True):
                vote = 0.5 if gap == 0 else float(gap > 0)
                for key, value in (((better, worse), vote), ((worse, better), 1 - vote)):
                    before = sums.get(key, (0.0, 0.0))
                    sums[key] = (before[0] + value, before[1] + 1)
    return sums


def graders_of(feedback: pa.Table, found: Evidence, voters: Sequence[str] = ()) -> np.ndarray:
    """A number for who graded each group, the source and the raters, (groups,); whoever graded less than a tenth is one together."""
    names, sources = (feedback[column].to_pylist() for column in ("prompt_id", "source"))
    who = {}
    for name, source, *grades in zip(names, sources, *_raters(feedback), strict=True):
        who[name] = (source, *sorted({rater for given in grades for rater in given} - set(voters)))
    of_group = {int(group): who.get(name, ()) for group, name in zip(found.group, found.prompt_ids, strict=True)}
    kinds = sorted(set(of_group.values()), key=str)
    codes = np.array([kinds.index(of_group[group]) for group in range(len(of_group))])
    rare = np.bincount(codes, minlength=len(kinds)) < 0.1 * len(codes)
    return np.where(rare[codes], -1, codes)


def _raters(feedback: pa.Table) -> list[list[list[str]]]:
    """Of each prompt the raters of its ratings, and of its comparisons."""
    return [
        [[grade["rater"] for grade in given or ()] for given in feedback[column].to_pylist()]
        for column in ("ratings", "comparisons")
    ]


def aligned(table: pa.Table, base: Evidence, where: str) -> Evidence:
    """The pairs of another table of the same completions, as places among those of `base`; pairs of others are left out."""
    table = in_order(table)
    place = {identity: index for index, identity in enumerate(base.ids)}
    sides = [np.array([place.get(i, -1) for i in table[name].to_pylist()], dtype=np.int64) for name in ("chosen_id", "rejected_id")]
    known = (sides[0] >= 0) & (sides[1] >= 0)
    if not known.any():
        raise UserError(f"{where}: none of its pairs is of the same completions")
    table = table.filter(pa.array(known))
    scores = np.full(len(base.ids), np.nan)
    for side, name in zip(sides, ("score_chosen", "score_rejected"), strict=True):
        scores[side[known]] = _numbers(table[name])
    return replace(
        base,
        chosen=sides[0][known],
        rejected=sides[1][known],
        scores=scores,
        **_of_pairs(table),
    )
