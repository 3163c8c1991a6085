"""From FEEDBACK to PAIRS: a pure function of a batch of whole prompts.

Ratings give every completion a score, and pairs are chosen among the scored completions; comparisons give the compared pairs
themselves. Margins, their standard errors and the raters' votes come out beside them.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from mmpo.pipeline.choose import STRATEGIES
from mmpo.pipeline.columns import codes, flat, offsets_of, parents, ranges, to_numpy
from mmpo.pipeline.filters import filtered
from mmpo.pipeline.margins import margin_standard_error
from mmpo.pipeline.rules import Margins, PairRules
from mmpo.pipeline.score import Grades, group_starts, merge_aspects, merge_raters, merge_repeats

__all__ = ["choose_pairs", "own_gaps", "within_pair_variance"]


def _rating_grades(table: pa.Table) -> tuple[Grades, list[str], list[str]]:
    """Flat ratings of a batch; items are positions among the batch's completions."""
    column = flat(table["ratings"])
    ratings = column.flatten()
    prompt = parents(offsets_of(column))
    base = offsets_of(flat(table["completions"]))[prompt]
    aspect, aspects = codes(ratings.field("aspect"))
    kind, kinds = codes(ratings.field("kind"))
    grades = Grades(
        prompt,
        base + np.asarray(ratings.field("completion")).astype(np.int64),
        codes(ratings.field("rater"))[0],
        aspect,
        kind,
        to_numpy(ratings.field("score")),
        to_numpy(ratings.field("spread")) ** 2,
    )
    return grades, aspects, kinds


def _scored(table: pa.Table, rules: PairRules) -> tuple[Grades, np.ndarray, list[str], dict[str, int], int]:
    """A value a rater and completion, a score a completion (NaN: none), kinds, grades without a part, grades merged."""
    grades, aspects, kinds = _rating_grades(table)
    total = len(grades.value)
    grades, _ = merge_repeats(grades)
    grades, dropped = merge_aspects(grades, rules.score, aspects)
    items, values = merge_raters(grades, rules.merge_raters)
    scores = np.full(int(offsets_of(flat(table["completions"]))[-1]), np.nan)
    scores[items] = values
    if rules.rank:
        prompt = parents(offsets_of(flat(table["completions"])))
        scores = _ranks(scores, prompt)
        own = _ranks(grades.value, grades.prompt, grades.rater)
        grades = replace(grades, value=own, variance=np.full_like(own, np.nan))
    return grades, scores, kinds, dropped, total - sum(dropped.values()) - len(grades.value)


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


def own_gaps(grades: Grades, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Each rater's own gap first - second, for the raters who graded both.

    grades: sorted by item and rater, one a rater and item. first, second: items, shape (pairs,).
    Returns (pair, gap, variance of the gap, kind), shape (gaps,), sorted by pair.
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
    return pair, gap, grades.variance[left] + grades.variance[right], grades.kind[left]


def _candidates(table: pa.Table, scores: np.ndarray, rules: PairRules, ids: list[str]) -> tuple[np.ndarray, ...]:
    """Pairs of the chosen strategy: prompt and positions of the better and the worse completion."""
    prompt = parents(offsets_of(flat(table["completions"])))
    known = np.flatnonzero(np.isfinite(scores))
    order = known[np.lexsort((known, -scores[known], prompt[known]))]
    sizes = np.bincount(prompt[order], minlength=table.num_rows)
    starts = np.cumsum(sizes) - sizes
    better, worse = STRATEGIES[rules.strategy][1](starts, sizes, [ids[i] for i in order], rules.seed)
    return prompt[order][better], order[better], order[worse]


def _compared(table: pa.Table, rules: PairRules) -> tuple[Grades, np.ndarray, np.ndarray, list[str], dict[str, int], int]:
    """Each rater's gap a compared pair; items number the pairs (smaller position, larger position) of the batch."""
    column = flat(table["comparisons"])
    rows = column.flatten()
    prompt = parents(offsets_of(column))
    base = offsets_of(flat(table["completions"]))[prompt]
    first, second = (base + np.asarray(rows.field(n)).astype(np.int64) for n in ("first", "second"))
    low, high = np.minimum(first, second), np.maximum(first, second)
    pairs, item = np.unique(np.stack([low, high]), axis=1, return_inverse=True)
    aspect, aspects = codes(rows.field("aspect"))
    kind, kinds = codes(rows.field("kind"))
    gap = to_numpy(rows.field("gap"))
    value = np.where(first < second, gap, -gap)
    variance = to_numpy(rows.field("spread")) ** 2
    grades = Grades(prompt, item.reshape(-1), codes(rows.field("rater"))[0], aspect, kind, value, variance)
    total = len(value)
    grades, _ = merge_repeats(grades, (first < second).astype(np.int64))
    grades, dropped = merge_aspects(grades, rules.score, aspects)
    return grades, pairs[0], pairs[1], kinds, dropped, total - sum(dropped.values()) - len(grades.value)


def within_pair_variance(table: pa.Table, rules: PairRules) -> dict[str, tuple[float, int]]:
    """By source: the sum of squared deviations of raters' own gaps from their pair's mean, and its degrees of freedom.

    Taken over every pair of completions that two or more raters graded, whatever the strategy keeps.
    """
    if rules.evidence == "ratings":
        grades, scores, _, _, _ = _scored(table, rules)
        size = len(scores)
        prompt, first, second = _candidates(table, scores, PairRules(strategy="all"), [""] * size)
        pair, gap, _, _ = own_gaps(grades, first, second)
    else:
        grades, _, _, _, _, _ = _compared(table, rules)
        pair, gap, prompt = grades.item, grades.value, np.zeros(0, dtype=np.int64)
        prompt = np.zeros(int(pair.max()) + 1 if len(pair) else 0, dtype=np.int64)
        prompt[grades.item] = grades.prompt
    n = np.bincount(pair, minlength=len(prompt))
    mean = np.bincount(pair, weights=gap, minlength=len(prompt)) / np.maximum(n, 1)
    squares = np.bincount(pair, weights=(gap - mean[pair]) ** 2, minlength=len(prompt))
    source, names = codes(flat(table["source"]))
    by_source: dict[str, tuple[float, int]] = {}
    for code, name in enumerate(names):
        chosen = (source[prompt] == code) & (n >= 2)
        if chosen.any():
            by_source[name] = (float(squares[chosen].sum()), int((n[chosen] - 1).sum()))
    return by_source


def choose_pairs(table: pa.Table, rules: PairRules, pooled: dict[str, float]) -> Margins:
    """The pairs of a batch, by the rules. pooled: each source's within-pair variance, where known."""
    ids: list[str] = flat(table["completions"]).flatten().field("id").to_pylist()
    if rules.evidence == "ratings":
        grades, scores, kinds, dropped, merged = _scored(table, rules)
        prompt, chosen, rejected = _candidates(table, scores, rules, ids)
        margin = scores[chosen] - scores[rejected]
        pair, gap, variance, kind = own_gaps(grades, chosen, rejected)
        score_chosen, score_rejected = scores[chosen], scores[rejected]
    else:
        grades, low, high, kinds, dropped, merged = _compared(table, rules)
        items, values = merge_raters(grades, rules.merge_raters)
        first_wins = values >= 0
        chosen = np.where(first_wins, low[items], high[items])
        rejected = np.where(first_wins, high[items], low[items])
        margin = np.abs(values)
        prompt = np.searchsorted(offsets_of(flat(table["completions"])), chosen, side="right") - 1
        place = np.full(len(low), -1)
        place[items] = np.arange(len(items))
        pair = place[grades.item]
        gap = np.where(first_wins[pair], grades.value, -grades.value)
        variance, kind = grades.variance, grades.kind
        score_chosen = score_rejected = np.full(len(chosen), np.nan)
    result = Margins(
        prompt, chosen, rejected, score_chosen, score_rejected, margin,
        *_uncertainty(table, prompt, pair, gap, variance, pooled),
        *_kinds(pair, kind, kinds, len(prompt)),
        created=len(prompt), merged_grades=merged, used_grades=len(grades.value),
    )  # fmt: skip
    result.dropped = {("grade", reason): n for reason, n in dropped.items()}
    return filtered(table, result, rules, ids)


def _uncertainty(
    table: pa.Table, prompt: np.ndarray, pair: np.ndarray, gap: np.ndarray, variance: np.ndarray, pooled: dict[str, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """margin_se (NaN: unknown), raters that prefer the chosen one (ties count half, rounded down), raters."""
    size = len(prompt)
    n = np.bincount(pair, minlength=size)
    mean = np.bincount(pair, weights=gap, minlength=size) / np.maximum(n, 1)
    squares = np.bincount(pair, weights=(gap - mean[pair]) ** 2, minlength=size)
    s2 = np.where(n > 1, squares / np.maximum(n - 1, 1), np.nan)
    source, names = codes(flat(table["source"]))
    s0 = np.array([pooled.get(name, np.nan) for name in names] or [np.nan])[source][prompt]
    own = np.sqrt(np.bincount(pair, weights=variance, minlength=size))
    votes = np.bincount(pair, weights=(gap > 0) + 0.5 * (gap == 0), minlength=size)
    se = np.full(size, np.nan)
    known = n > 0
    se[known] = margin_standard_error(n[known], s2[known], s0[known], np.where(n == 1, own, np.nan)[known])
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
