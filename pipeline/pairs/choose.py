"""From FEEDBACK to PAIRS: a pure function of a batch of whole prompts.

Ratings give every completion a score, and pairs are chosen among the scored completions; comparisons give the compared pairs
themselves. Margins, their standard errors and the raters' votes come out beside them.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from mmpo.pipeline.arrow import codes, flat, offsets_of, parents, ranges
from mmpo.pipeline.grades.aggregate import Grades, group_starts, merge_raters
from mmpo.pipeline.grades.flatten import Graded, graded
from mmpo.pipeline.grades.rules import Margins, PairRules
from mmpo.pipeline.margins import margin_standard_error
from mmpo.pipeline.pairs.filters import filtered
from mmpo.pipeline.pairs.strategies import STRATEGIES

__all__ = ["OwnGaps", "choose_pairs", "own_gaps", "within_pair_variance"]


def _scored(table: pa.Table, rules: PairRules) -> tuple[Graded, np.ndarray]:
    """A value a rater and completion, and a score a completion (NaN: none)."""
    result = graded(table, rules)
    items, values = merge_raters(result.grades, rules.merge_raters)
    scores = np.full(int(offsets_of(flat(table["completions"]))[-1]), np.nan)
    scores[items] = values
    if rules.rank:
        prompt = parents(offsets_of(flat(table["completions"])))
        scores = _ranks(scores, prompt)
        own = _ranks(result.grades.value, result.grades.prompt, result.grades.rater)
        result.grades = replace(result.grades, value=own, variance=np.full_like(own, np.nan))
    return result, scores


def _ranks(values: np.ndarray, *groups: np.ndarray) -> np.ndarray:
    """(average rank - 1)/(n - 1) within each group, 1/2 for a group of one; NaN stays NaN and is not ranked."""
    known = np.flatnonzero(np.isfinite(values))
    result = np.full(len(values), np.nan)
    if not len(known):
        return result
    order = known[np.lexsort((values[known], *(g[known] for g in groups)))]
    keys = [g[order] for g in groups]
    starts = group_starts(*keys)
    sizes = np.diff(np.append(starts, len(order)))
    place = np.arange(len(order)) - np.repeat(starts, sizes)
    equal = group_starts(*keys, values[order])
    runs = np.diff(np.append(equal, len(order)))
    average = np.repeat(np.add.reduceat(place.astype(np.float64), equal) / runs, runs)
    n = np.repeat(sizes, sizes)
    result[order] = np.where(n > 1, average / np.maximum(n - 1, 1), 0.5)
    return result


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


def _candidates(table: pa.Table, scores: np.ndarray, rules: PairRules, ids: list[str]) -> tuple[np.ndarray, ...]:
    """Pairs of the chosen strategy: prompt and positions of the better and the worse completion."""
    prompt = parents(offsets_of(flat(table["completions"])))
    known = np.flatnonzero(np.isfinite(scores))
    order = known[np.lexsort((known, -scores[known], prompt[known]))]
    sizes = np.bincount(prompt[order], minlength=table.num_rows)
    starts = np.cumsum(sizes) - sizes
    better, worse = STRATEGIES[rules.strategy][1](starts, sizes, [ids[i] for i in order], rules.seed)
    return prompt[order][better], order[better], order[worse]


def within_pair_variance(table: pa.Table, rules: PairRules) -> dict[str, tuple[float, int]]:
    """By source: the (weighted) sum of squared deviations of raters' own gaps from their pair's mean, and its degrees of freedom.

    Taken over every pair of completions that two or more raters graded, whatever the strategy keeps.
    """
    if rules.evidence == "ratings":
        result, scores = _scored(table, rules)
        prompt, first, second = _candidates(table, scores, PairRules(strategy="all"), [""] * len(scores))
        gaps = own_gaps(result.grades, first, second)
    else:
        grades = graded(table, rules).grades
        gaps = OwnGaps(grades.item, grades.value, grades.variance, grades.kind, _weights(grades))
        prompt = np.zeros(int(gaps.pair.max()) + 1 if len(gaps.pair) else 0, dtype=np.int64)
        prompt[gaps.pair] = grades.prompt
    n, _, squares = _spread(gaps, len(prompt))
    source, names = codes(flat(table["source"]))
    by_source: dict[str, tuple[float, int]] = {}
    for code, name in enumerate(names):
        chosen = (source[prompt] == code) & (n >= 2)
        if chosen.any():
            by_source[name] = (float(squares[chosen].sum()), int((n[chosen] - 1).sum()))
    return by_source


def _spread(gaps: OwnGaps, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each pair: how many raters, their weight, and the weighted sum of squared deviations from the weighted mean."""
    n = np.bincount(gaps.pair, minlength=size)
    weight = np.bincount(gaps.pair, weights=gaps.weight, minlength=size)
    mean = np.bincount(gaps.pair, weights=gaps.gap * gaps.weight, minlength=size) / np.where(n > 0, weight, 1.0)
    return n, weight, np.bincount(gaps.pair, weights=gaps.weight * (gaps.gap - mean[gaps.pair]) ** 2, minlength=size)


def choose_pairs(table: pa.Table, rules: PairRules, pooled: dict[str, float]) -> Margins:
    """The pairs of a batch, by the rules. pooled: each source's within-pair variance, where known."""
    ids: list[str] = flat(table["completions"]).flatten().field("id").to_pylist()
    if rules.evidence == "ratings":
        found, scores = _scored(table, rules)
        prompt, chosen, rejected = _candidates(table, scores, rules, ids)
        margin = scores[chosen] - scores[rejected]
        gaps = own_gaps(found.grades, chosen, rejected)
        score_chosen, score_rejected = scores[chosen], scores[rejected]
    else:
        found = graded(table, rules)
        prompt, chosen, rejected, margin, gaps = _compared(table, found, rules)
        score_chosen = score_rejected = np.full(len(chosen), np.nan)
    result = Margins(
        prompt, chosen, rejected, score_chosen, score_rejected, margin,
        *_uncertainty(table, prompt, gaps, pooled),
        *_kinds(gaps.pair, gaps.kind, found.kinds, len(prompt)),
        created=len(prompt), merged_grades=found.merged, used_grades=len(found.grades.value),
    )  # fmt: skip
    result.dropped = {("grade", reason): n for reason, n in found.dropped.items()}
    if rules.evidence == "comparisons":
        _count_lost(table, found, result)
    return filtered(table, result, rules, ids)


def _compared(table: pa.Table, found: Graded, rules: PairRules) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, OwnGaps]:
    """Prompt, chosen, rejected and margin of the compared pairs that have a value, and the raters' own gaps."""
    grades = found.grades
    items, values = merge_raters(grades, rules.merge_raters)
    first_wins = values >= 0
    chosen = np.where(first_wins, found.first[items], found.second[items])
    rejected = np.where(first_wins, found.second[items], found.first[items])
    place = np.full(len(found.first), -1)
    place[items] = np.arange(len(items))
    pair = place[grades.item]
    gap = np.where(first_wins[pair], grades.value, -grades.value)
    gaps = OwnGaps(pair, gap, grades.variance, grades.kind, _weights(grades))
    return _prompts(table, chosen), chosen, rejected, np.abs(values), gaps


def _prompts(table: pa.Table, completion: np.ndarray) -> np.ndarray:
    return np.searchsorted(offsets_of(flat(table["completions"])), completion, side="right") - 1


def _count_lost(table: pa.Table, found: Graded, result: Margins) -> None:
    """Compared pairs that no grade is left of, as pairs made and dropped; the smaller id stands for the chosen one."""
    for reason, items in found.lost.items():
        if len(items):
            first, second = found.first[items], found.second[items]
            result.created += len(items)
            result.dropped["pair", f"{reason}_pair"] = len(items)
            result.evidence.append((f"{reason}_pair", _prompts(table, first), first, second))


def _uncertainty(
    table: pa.Table, prompt: np.ndarray, gaps: OwnGaps, pooled: dict[str, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """margin_se (NaN: unknown), raters that prefer the chosen one (ties count half, rounded down), raters.

    With weights, variances are those of a rater of weight 1, and the variance of the mean is 1/Σ weight of it where it else is 1/n.
    """
    size = len(prompt)
    n, weight, squares = _spread(gaps, size)
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


def _kinds(pair: np.ndarray, kind: np.ndarray, kinds: Sequence[str], size: int) -> tuple[np.ndarray, list[str]]:
    """The kind of a pair's raters, or "mixed"; of a pair that no rater graded whole, "mixed" unless all grades are of one kind."""
    names = [*kinds, "mixed"]
    if len(kinds) == 1:
        return np.zeros(size, dtype=np.int64), names
    least, largest = np.full(size, len(kinds)), np.full(size, -1)
    np.minimum.at(least, pair, kind)
    np.maximum.at(largest, pair, kind)
    return np.where(least == largest, least, len(kinds)), names
