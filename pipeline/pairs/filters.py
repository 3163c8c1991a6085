"""Leaving pairs out: ties, over-long texts, small margins and the cap, each counted and kept by reason. Adding one: a line in FILTERS."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmpo.pipeline.arrow import flat, offsets_of
from mmpo.pipeline.grades.rules import PairRules
from mmpo.pipeline.pairs.strategies import STRATEGIES, pair_hash
from mmpo.pipeline.pairs.table import ChosenPairs


def _tie(table: pa.Table, pairs: ChosenPairs, rules: PairRules) -> np.ndarray:
    """Pairs of margin 0, where ties are to be dropped."""
    return (pairs.quality_margin == 0) & (rules.ties == "drop")


def _over_long(table: pa.Table, pairs: ChosenPairs, rules: PairRules) -> np.ndarray:
    """Pairs with more characters than allowed in the prompt (all its messages) or in a completion."""
    if rules.max_chars is None:
        return np.zeros(len(pairs.prompt), dtype=bool)
    prompts = flat(table["prompt"])
    ends = np.concatenate([[0], np.cumsum(np.asarray(pc.utf8_length(prompts.flatten().field("content"))))])
    of_prompt = np.diff(ends[offsets_of(prompts)])
    of_text = np.asarray(pc.utf8_length(flat(table["completions"]).flatten().field("text")))
    longest = np.maximum.reduce([of_prompt[pairs.prompt], of_text[pairs.chosen], of_text[pairs.rejected]])
    return longest > rules.max_chars


def _small_margin(table: pa.Table, pairs: ChosenPairs, rules: PairRules) -> np.ndarray:
    """Pairs of a margin below the least that is wanted."""
    return pairs.quality_margin < rules.min_margin


def _over_the_cap(table: pa.Table, pairs: ChosenPairs, rules: PairRules) -> np.ndarray:
    """Pairs beyond the largest number of pairs that a prompt may have."""
    strategy, out = STRATEGIES[rules.strategy], np.zeros(len(pairs.prompt), dtype=bool)
    most = rules.max_per_prompt or strategy.most
    if most is None:
        return out
    crowded = np.flatnonzero(np.bincount(pairs.prompt, minlength=1)[pairs.prompt] > most)
    ids = flat(table["completions"]).flatten().field("id")
    names = (ids.take(pa.array(side[crowded])).to_pylist() for side in (pairs.chosen, pairs.rejected))
    hashes = np.array([pair_hash(rules.seed, *pair) for pair in zip(*names, strict=True)], dtype="S16")
    # numpy strips trailing NULs of bytes when it compares; two hashes that differ in nothing else do not occur
    rank = np.argsort(np.argsort(hashes, kind="stable"), kind="stable")
    out[crowded] = ~strategy.capped(pairs.prompt[crowded], pairs.quality_margin[crowded], rank, most)
    return out


FILTERS: dict[str, Callable[[pa.Table, ChosenPairs, PairRules], np.ndarray]] = {
    "tie": _tie,
    "over_long": _over_long,
    "min_margin": _small_margin,
    "max_per_prompt": _over_the_cap,
}
"""By reason: (FEEDBACK batch, pairs left so far, rules) → mask of the pairs to leave out, shape (pairs,). They run in this order."""


def filtered(table: pa.Table, pairs: ChosenPairs, rules: PairRules) -> ChosenPairs:
    """The pairs that the rules keep; `dropped` and `left_out` of the result say what was left out and why."""
    for reason, out_of in FILTERS.items():
        pairs = pairs.without(reason, out_of(table, pairs, rules))
    return pairs
