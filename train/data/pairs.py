"""Pairs as what trains: prompts, each with its rendered completions and all its pairs.

A completion that takes part in many pairs is rendered, stored and later computed once.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from mmpo.pipeline.arrow import to_numpy
from mmpo.pipeline.errors import UserError
from mmpo.train.data.read import SCORES, check_sources
from mmpo.train.data.render import Rendered, Renderer
from mmpo.train.data.rendering import Names
from mmpo.train.data.token_store import TokenStore, completions_of
from mmpo.train.objective import TERMS, LevelTarget, targets

Counts = dict[str, int]


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


def weighted_pairs(table: pa.Table, source_weights: Mapping[str, float], *, checked: bool = True) -> pa.Table:
    """The pairs of sources whose weight is above 0. Raises UserError as `check_sources` does, unless it is not `checked`."""
    if checked:
        check_sources(table, source_weights)
    return usable_pairs(table, ties=True, source_weights=source_weights)[0]


def _kept(table: pa.Table, mask: np.ndarray) -> tuple[pa.Table, int]:
    return table.filter(pa.array(mask, pa.bool_())), int((~mask).sum())


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
    """The outcome of `prepare`: in pairs = kept pairs + dropped by reason, and what rendering changed. largest: the largest token id of all
    completions, known without another look at them."""

    prompts: list[PromptPairs]
    counts: Counts
    largest: int


def prepare(
    table: pa.Table,
    p: np.ndarray,
    renderer: Renderer,
    weight: str = "pair",
    source_weights: Mapping[str, float] | None = None,
    *,
    texts: Callable[[], Iterable[pa.Table]] | None = None,
    store: TokenStore | None = None,
) -> Prepared:
    """Renders every prompt and completion of a PAIRS table once and groups the pairs by prompt.

    `p`: targets, shape (pairs,). `weight`: "pair" gives every pair 1, "prompt" 1 / (kept pairs of its prompt);
    `source_weights` multiply it, a source that they don't name by 1. `texts`: reads the messages, which the table then need not have;
    `store`: where the ids are kept. Prompts come in the order of their ids, so that
    the order of the table's rows has no influence. Raises UserError where an id stands for two texts.
    """
    names = Names.of(table)
    found = completions_of(
        names, texts or (lambda: (table.slice(row, 4096) for row in range(0, table.num_rows, 4096))), renderer, store
    )
    rendered, sides = found.items, names.sides
    whole = np.array([item is not None for item in rendered], dtype=bool)
    margin, scores = to_numpy(table["quality_margin"]), np.full(len(rendered), np.nan)
    for side, name in enumerate(SCORES if set(SCORES) <= set(table.column_names) else ()):
        scores[sides[:, side]] = to_numpy(table[name])
    factor = np.array([(source_weights or {}).get(name, 1.0) for name in table["source"].to_pylist()], dtype=np.float64)
    order = np.argsort(names.prompt_of, kind="stable")
    bounds = np.searchsorted(names.prompt_of[order], np.arange(len(names.prompts) + 1))
    kept: list[PromptPairs] = []
    dropped: Counter[str] = Counter()
    for number, identity in enumerate(names.prompts.to_pylist()):
        rows = order[bounds[number] : bounds[number + 1]]
        if not found.written[number]:
            dropped["prompt_not_rendered"] += len(rows)
            continue
        usable = whole[sides[rows]].all(axis=1)
        dropped["completion_not_rendered"] += int((~usable).sum())
        rows = rows[usable]
        if (equal := found.same[sides[rows, 0]] == found.same[sides[rows, 1]]).any():
            dropped.update(_why_equal(rendered[c] for c in pair) for pair in sides[rows[equal]])
            rows = rows[~equal]
        if not len(rows):
            continue
        used, places = np.unique(sides[rows], return_inverse=True)
        chosen, rejected = places.reshape(len(rows), 2).T
        kept.append(
            PromptPairs(
                prompt_id=identity,
                completions=[item for c in used if (item := rendered[c]) is not None],
                chosen=chosen,
                rejected=rejected,
                p=p[rows],
                margin=margin[rows],
                weight=factor[rows] if weight == "pair" else factor[rows] / len(rows),
                rows=rows,
                scores=scores[used],
            )
        )
    counts = {"pairs": sum(len(item.rows) for item in kept), "prompts": len(kept), **dropped, **renderer.counts}
    if counts["pairs"] + sum(dropped.values()) != table.num_rows:
        raise RuntimeError(f"pairs do not balance: {table.num_rows} in, {counts}")
    return Prepared(kept, {name: count for name, count in counts.items() if count}, found.largest)


def _why_equal(pair: Iterable[Rendered | None]) -> str:
    """Under which name a pair is left out because its completions are the same tokens, so that its z could only be 0."""
    return "truncated_to_equal" if any(item is not None and item.truncated for item in pair) else "equal_after_rendering"


def prepare_pairs(
    table: pa.Table,
    renderer: Renderer,
    target: str | LevelTarget,
    gamma: float,
    ties: bool = True,
    weight: str = "pair",
    source_weights: Mapping[str, float] | None = None,
    **how: Any,
) -> Prepared:
    """The usable pairs of a PAIRS table with their targets, rendered; the counts say what became of every pair.

    target, gamma: as `targets` takes them; ties: as `usable_pairs` does; weight, source_weights, texts, store: as `prepare` does.
    """
    used, dropped = usable_pairs(table, ties=ties, source_weights=source_weights)
    p, about_targets = targets(target, used, gamma)
    prepared = prepare(used, p, renderer, weight, source_weights, **how)
    return replace(prepared, counts={"pairs_in": table.num_rows, **dropped, **about_targets, **prepared.counts})


def check_prompt_scores(prompts: Sequence[PromptPairs], terms: Sequence[str], where: str) -> None:
    """`check_scores` of prepared prompts, whose `scores` may be missing or hold NaN."""
    listed = [name for name in terms if TERMS[name].listed is not None]
    without = [prompt for prompt in prompts if prompt.scores is None or not np.isfinite(prompt.scores).all()] if listed else []
    if without:
        raise UserError(
            f"{where}: {len(without)} of {len(prompts)} prompts have completions without a score (`scores`; the first: prompt_id "
            f"{without[0].prompt_id}), and {listed[0]} needs one score of every completion. Take a loss of pairs, such as loss='mmpo', or "
            "prepare pairs that have scores"
        )
