"""Which pairs are left out, and why: FILTERS. Adding one: a function and a line there."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmpo.pipeline.arrow import flat, row_sums
from mmpo.pipeline.grades.answers import Answers
from mmpo.pipeline.grades.rules import PairRules
from mmpo.pipeline.pairs.agreement import rater_missing, raters_disagree
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
    of_prompt = row_sums(prompts, pc.utf8_length(prompts.flatten().field("content")))
    of_text = np.asarray(pc.utf8_length(flat(table["completions"]).flatten().field("text")))
    longest = np.maximum.reduce([of_prompt[pairs.prompt], of_text[pairs.chosen], of_text[pairs.rejected]])
    return longest > rules.max_chars


def _small_margin(table: pa.Table, pairs: ChosenPairs, rules: PairRules) -> np.ndarray:
    """Pairs of a margin below the least that is wanted."""
    return pairs.quality_margin < rules.min_margin


def _few_raters(table: pa.Table, pairs: ChosenPairs, rules: PairRules) -> np.ndarray:
    """Pairs that fewer raters graded both sides of than are wanted."""
    return pairs.raters < rules.min_raters


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


def _thinking_only(table: pa.Table, pairs: ChosenPairs, rules: PairRules) -> np.ndarray:
    """Pairs with a reply that is thinking without an answer, where the answer is what counts."""
    if rules.graded_part == "all" and rules.thinking == "keep":
        return np.zeros(len(pairs.prompt), dtype=bool)
    missing = Answers(table).missing()
    return missing[pairs.chosen] | missing[pairs.rejected]


def _identical_answers(table: pa.Table, pairs: ChosenPairs, rules: PairRules) -> np.ndarray:
    """Pairs of replies that differ in their thinking or in the white space around them alone, where the grades are of the answers."""
    if rules.graded_part == "all":
        return np.zeros(len(pairs.prompt), dtype=bool)
    return Answers(table).same(pairs.chosen, pairs.rejected) > 0


FILTERS: dict[str, Callable[[pa.Table, ChosenPairs, PairRules], np.ndarray]] = {
    "thinking_only": _thinking_only,
    "identical_answers": _identical_answers,
    "tie": _tie,
    "over_long": _over_long,
    "min_raters": _few_raters,
    "rater_missing": rater_missing,
    "raters_disagree": raters_disagree,
    "min_margin": _small_margin,
    "max_per_prompt": _over_the_cap,
}
"""By reason: (FEEDBACK batch, pairs left so far, rules) → mask of the pairs to leave out, shape (pairs,). They run in this order."""


def filtered(table: pa.Table, pairs: ChosenPairs, rules: PairRules) -> ChosenPairs:
    """The pairs that the rules keep; `dropped` and `left_out` of the result say what was left out and why."""
    for reason, out_of in FILTERS.items():
        pairs = pairs.without(reason, out_of(table, pairs, rules))
    return pairs
