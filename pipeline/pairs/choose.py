"""From FEEDBACK to PAIRS: a pure function of a batch of whole prompts.

Ratings give every completion a score, and pairs are chosen among the scored completions; comparisons give the compared pairs
themselves. Margins, their standard errors and the raters' votes come out beside them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from mmpo.pipeline.arrow import codes, flat, offsets_of, parents, ranges
from mmpo.pipeline.grades.aggregate import Grades, merge_raters
from mmpo.pipeline.grades.flatten import RaterValues, rater_values
from mmpo.pipeline.grades.normalise import NORMALISATIONS
from mmpo.pipeline.grades.rules import PairRules
from mmpo.pipeline.margins import margin_standard_error
from mmpo.pipeline.pairs.filters import filtered
from mmpo.pipeline.pairs.strategies import STRATEGIES
from mmpo.pipeline.pairs.table import ChosenPairs


class OwnGaps(NamedTuple):
    """Raters' own gaps for pairs, shape (gaps,), sorted by pair; variance of the gap, NaN: unknown; weight 1 unless raters differ."""

    pair: np.ndarray
    gap: np.ndarray
    variance: np.ndarray
    kind: np.ndarray
    weight: np.ndarray


def own_gaps(grades: Grades, first: np.ndarray, second: np.ndarray) -> OwnGaps:
    """Each rater's own gap first - second, for the raters who graded both.

    grades: sorted by item and rater, one a rater and item. first, second: items, shape (pairs,).
    """
    raters = int(grades.rater.max()) + 1 if len(grades.rater) else 1
    key = grades.item * raters + grades.rater
    starts = np.searchsorted(grades.item, first, side="left")
    sizes = np.searchsorted(grades.item, first, side="right") - starts
    pair = np.repeat(np.arange(len(first)), sizes)
    left = ranges(starts, sizes)
    wanted = second[pair] * raters + grades.rater[left]
    right = np.minimum(np.searchsorted(key, wanted), max(len(key) - 1, 0))
    both = key[right] == wanted if len(key) else np.zeros(0, dtype=bool)
    pair, left, right = pair[both], left[both], right[both]
    gap = grades.value[left] - grades.value[right]
    return OwnGaps(pair, gap, grades.variance[left] + grades.variance[right], grades.kind[left], _weights(grades)[left])


def _weights(grades: Grades) -> np.ndarray:
    return np.ones(len(grades.value)) if grades.weight is None else grades.weight


class _Candidates(NamedTuple):
    """Pairs before any is left out, arrays of shape (pairs,), positions in the batch; score: NaN where pairs were compared."""

    values: RaterValues
    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    score_chosen: np.ndarray
    score_rejected: np.ndarray
    margin: np.ndarray
    gaps: OwnGaps


def _rated(table: pa.Table, rules: PairRules) -> _Candidates:
    """Every completion gets a score; the strategy chooses among those that have one."""
    values = rater_values(table, rules)
    grades = values.grades
    completions = flat(table["completions"])
    prompt = parents(offsets_of(completions))
    scores = np.full(len(prompt), np.nan)
    items, merged = merge_raters(grades, rules.merge_raters)
    scores[items] = merged
    if within_prompt := NORMALISATIONS[rules.normalise].within_prompt:
        scores = within_prompt(scores, prompt)
        own = within_prompt(grades.value, grades.prompt, grades.rater)
        grades = replace(grades, value=own, variance=np.full_like(own, np.nan))
    known = np.flatnonzero(np.isfinite(scores))
    order = known[np.lexsort((known, -scores[known], prompt[known]))]
    sizes = np.bincount(prompt[order], minlength=table.num_rows)
    ids = completions.flatten().field("id").take(pa.array(order))
    better, worse = STRATEGIES[rules.strategy].pairs(np.cumsum(sizes) - sizes, sizes, ids, rules.seed)
    chosen, rejected = order[better], order[worse]
    gaps = own_gaps(grades, chosen, rejected)
    score_chosen, score_rejected = scores[chosen], scores[rejected]
    return _Candidates(values, prompt[chosen], chosen, rejected, score_chosen, score_rejected, score_chosen - score_rejected, gaps)


def _compared(table: pa.Table, rules: PairRules) -> _Candidates:
    """The compared pairs that have a value; of a tie the smaller id is chosen."""
    values = rater_values(table, rules)
    grades, first, second = values.grades, values.given.first, values.given.second
    items, margin = merge_raters(grades, rules.merge_raters)
    first_wins = margin >= 0
    chosen, rejected = np.where(first_wins, first[items], second[items]), np.where(first_wins, second[items], first[items])
    place = np.full(len(first), -1)
    place[items] = np.arange(len(items))
    pair = place[grades.item]
    gaps = OwnGaps(pair, np.where(first_wins[pair], grades.value, -grades.value), grades.variance, grades.kind, _weights(grades))
    none = np.full(len(chosen), np.nan)
    return _Candidates(values, _prompts(table, chosen), chosen, rejected, none, none, np.abs(margin), gaps)


_CANDIDATES = {"ratings": _rated, "comparisons": _compared}


def within_pair_variance(table: pa.Table, rules: PairRules) -> dict[str, tuple[float, int]]:
    """By source: the (weighted) sum of squared deviations of raters' own gaps from their pair's mean, and its degrees of freedom.

    Taken over every pair of completions that two or more raters graded, whatever the strategy keeps.
    """
    found = _CANDIDATES[rules.evidence](table, replace(rules, strategy="all"))
    n, _, squares = _deviations(found.gaps, len(found.prompt))
    source, names = codes(flat(table["source"]))
    by_source: dict[str, tuple[float, int]] = {}
    for code, name in enumerate(names):
        chosen = (source[found.prompt] == code) & (n >= 2)
        if chosen.any():
            by_source[name] = (float(squares[chosen].sum()), int((n[chosen] - 1).sum()))
    return by_source


def _deviations(gaps: OwnGaps, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each pair: how many raters, their weight, and the weighted sum of squared deviations from the weighted mean."""
    n = np.bincount(gaps.pair, minlength=size)
    weight = np.bincount(gaps.pair, weights=gaps.weight, minlength=size)
    mean = np.bincount(gaps.pair, weights=gaps.gap * gaps.weight, minlength=size) / np.where(n > 0, weight, 1.0)
    return n, weight, np.bincount(gaps.pair, weights=gaps.weight * (gaps.gap - mean[gaps.pair]) ** 2, minlength=size)


def choose_pairs(table: pa.Table, rules: PairRules, pooled: Mapping[str, float]) -> ChosenPairs:
    """The pairs of a batch, by the rules. pooled: each source's within-pair variance, where known."""
    found = _CANDIDATES[rules.evidence](table, rules)
    size, values = len(found.prompt), found.values
    pairs = ChosenPairs(
        found.prompt, found.chosen, found.rejected, found.score_chosen, found.score_rejected, found.margin,
        *_uncertainty(table, found.prompt, found.gaps, pooled), *_kinds(found.gaps, values.given.kinds, size),
        created=size, used_grades=len(values.grades.value), dropped_grades=values.dropped,
    )  # fmt: skip
    if rules.evidence == "comparisons":
        # compared pairs that no grade is left of count as made and dropped; the smaller id stands for the chosen one
        for reason, items in values.lost.items():
            if len(items):
                first, second = values.given.first[items], values.given.second[items]
                pairs.created += len(items)
                pairs.dropped[f"{reason}_pair"] = len(items)
                pairs.left_out.append((f"{reason}_pair", _prompts(table, first), first, second))
    return filtered(table, pairs, rules)


def _prompts(table: pa.Table, completion: np.ndarray) -> np.ndarray:
    return np.searchsorted(offsets_of(flat(table["completions"])), completion, side="right") - 1


def _uncertainty(
    table: pa.Table, prompt: np.ndarray, gaps: OwnGaps, pooled: Mapping[str, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """margin_se (NaN: unknown), raters that prefer the chosen one (ties count half, rounded down), raters.

    With weights, variances are those of a rater of weight 1, and the variance of the mean is 1/Σ weight of it where it else is 1/n.
    """
    size = len(prompt)
    n, weight, squares = _deviations(gaps, size)
    s2 = np.where(n > 1, squares / np.maximum(n - 1, 1), np.nan)
    source, names = codes(flat(table["source"]))
    s0 = np.array([pooled.get(name, np.nan) for name in names] or [np.nan])[source][prompt]
    own = np.sqrt(np.bincount(gaps.pair, weights=gaps.variance, minlength=size))
    votes = np.bincount(gaps.pair, weights=(gaps.gap > 0) + 0.5 * (gaps.gap == 0), minlength=size)
    se = np.full(size, np.nan)
    known = n > 0
    se[known] = margin_standard_error(n[known], s2[known], s0[known], np.where(n == 1, own, np.nan)[known])
    weighed = known & ~((n == 1) & np.isnan(s0))  # a judge's own spread needs no weight
    se[weighed] *= np.sqrt(n[weighed] / weight[weighed])
    return se, np.floor(votes).astype(np.int32), n.astype(np.int32)


def _kinds(gaps: OwnGaps, kinds: Sequence[str], size: int) -> tuple[np.ndarray, list[str]]:
    """The kind of a pair's raters, or "mixed"; of a pair that no rater graded whole, "mixed" unless all grades are of one kind."""
    names = [*kinds, "mixed"]
    if len(kinds) == 1:
        return np.zeros(size, dtype=np.int64), names
    least, largest = np.full(size, len(kinds)), np.full(size, -1)
    np.minimum.at(least, gaps.pair, gaps.kind)
    np.maximum.at(largest, gaps.pair, gaps.kind)
    return np.where(least == largest, least, len(kinds)), names
