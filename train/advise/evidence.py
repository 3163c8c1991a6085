"""What is advised on, as arrays: every completion once, pairs as places of two completions, margins, prompts that stay on one side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmpo.pipeline.arrow import flat, to_numpy
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.pairs import first_user_messages
from mmpo.train.data import check_rows

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

    Raises UserError for rows that can't be used (as training does), and where nothing can be split or learnt: one prompt, only ties.
    """
    check_rows(table, where)
    counts = {"prompts_in": len(pc.unique(flat(table["prompt_id"]))), "pairs_in": table.num_rows}
    table = _drawn(table, seed)
    _, first, prompt_of_pair = _coded(table["prompt_id"].to_pylist())
    both = [*table["chosen_id"].to_pylist(), *table["rejected_id"].to_pylist()]
    ids, place, codes = _coded(both)
    rows, side = place % table.num_rows, place // table.num_rows
    texts = [
        _text(table["rejected" if at else "chosen"][int(row)].as_py()) for row, at in zip(rows.tolist(), side.tolist(), strict=True)
    ]
    scores = np.concatenate([to_numpy(table["score_chosen"]), to_numpy(table["score_rejected"])]).astype(np.float64)[place]
    prompts = table["prompt"].take(pa.array(first))
    _, _, group = _coded(first_user_messages(flat(prompts)))
    numbers = {name: _numbers(table[name]) for name in ("quality_margin", "margin_se", "preferring", "raters")}
    found = Evidence(
        prompts=prompts.to_pylist(),
        texts=texts,
        ids=ids,
        prompt_of=prompt_of_pair[rows],
        group=group,
        chosen=codes[: table.num_rows],
        rejected=codes[table.num_rows :],
        margin=numbers["quality_margin"],
        margin_se=numbers["margin_se"],
        preferring=np.nan_to_num(numbers["preferring"]),
        raters=np.nan_to_num(numbers["raters"]),
        scores=scores,
        source=np.array(table["source"].to_pylist(), dtype=object),
    )
    counts |= {"prompts": len(first), "pairs": table.num_rows, "ties": int((~found.decided).sum()), "completions": len(texts)}
    counts["prompts_not_drawn"] = counts["prompts_in"] - counts["prompts"]
    return found, counts


def check_evidence(found: Evidence, where: str, least: int) -> None:
    """Raises UserError where there is nothing to compare on prompts of its own: too few prompts, no margins, one text."""
    groups = len(np.unique(found.pair_group))
    if not found.decided.any():
        raise UserError(
            f"{where}: all {len(found.margin)} pairs are ties (constant scores): no margin says anything of direction. "
            "Build with other scores (--score, --normalise), or gather more grades"
        )
    if groups < least:
        raise UserError(
            f"{where} has {groups} prompt{'s' * (groups != 1)} with pairs: settings are chosen on some prompts and judged on others, which "
            f"takes {least} at least. Give more prompts"
        )


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    return column.cast(pa.float64()).to_numpy()


def _text(messages: list[dict[str, str]]) -> str:
    return "\n".join(message["content"] for message in messages)


def _coded(values: Sequence[str]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Sorted distinct values, where each is first, and each place's code."""
    names, first, codes = np.unique(np.array(values, dtype=object), return_index=True, return_inverse=True)
    return names.tolist(), first, codes.reshape(-1)


def _drawn(table: pa.Table, seed: int) -> pa.Table:
    """Whole prompts drawn at random, so that neither completions nor pairs are more than a short look reads."""
    _, _, codes = _coded(table["prompt_id"].to_pylist())
    completions = np.array([*table["chosen_id"].to_pylist(), *table["rejected_id"].to_pylist()], dtype=object)
    _, owner = np.unique(completions, return_index=True)
    pairs, texts = np.bincount(codes), np.bincount(codes[owner % table.num_rows], minlength=int(codes.max()) + 1)
    if len(owner) <= MOST_COMPLETIONS and table.num_rows <= MOST_PAIRS:
        return table
    order = np.random.default_rng(seed).permutation(len(pairs))
    fits = (np.cumsum(pairs[order]) <= MOST_PAIRS) & (np.cumsum(texts[order]) <= MOST_COMPLETIONS)
    fits[0] = True
    keep = np.zeros(len(pairs), dtype=bool)
    keep[order[fits]] = True
    return table.filter(pa.array(keep[codes]))
