"""Raters' own gaps for pairs, and what they say of a margin's standard error: of the mean of raters and of their median."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mmpo.pipeline.arrow import ranges
from mmpo.pipeline.grades.aggregate import RATER_MERGERS, Grades
from mmpo.pipeline.grades.rounding import rounded
from mmpo.pipeline.margins import margin_standard_error, median_standard_error


class PooledVariance(NamedTuple):
    """A source's variances within pairs, over raters: of their own gaps, and of the middles of their two scores; NaN: unknown. grid: how
    far apart neighbouring grades of it are."""

    gaps: float = float("nan")
    middles: float = float("nan")
    grid: float = 0.0


LEAST_DEGREES = 4
"""A pooled variance counts as four degrees of freedom beside a pair's own (`margin_standard_error`): one of fewer is not worth as much."""


def pooled_variance(squares: np.ndarray, grid: float = 0.0) -> PooledVariance:
    """From sums of squared deviations of gaps and of middles, and degrees of freedom, shape (3,); unknown where these are fewer than
    LEAST_DEGREES, or where raters have never differed: that would be certainty, which no number of raters gives."""
    gaps, middles, degrees = squares.tolist()
    return PooledVariance(gaps / degrees, middles / degrees, grid) if degrees >= LEAST_DEGREES and gaps > 0 else PooledVariance()


class OwnGaps(NamedTuple):
    """Raters' own gaps for pairs, shape (gaps,), sorted by pair; variance of the gap, NaN: unknown; weight 1 unless raters differ.

    middle: the mean of the rater's two scores, NaN where the pair was compared.
    """

    pair: np.ndarray
    gap: np.ndarray
    middle: np.ndarray
    variance: np.ndarray
    kind: np.ndarray
    weight: np.ndarray

    def one_each(self, pairs: int) -> bool:
        """Whether each of so many pairs has one gap."""
        return len(self.pair) == pairs and bool((self.pair[1:] > self.pair[:-1]).all())


def own_gaps(grades: Grades, first: np.ndarray, second: np.ndarray) -> OwnGaps:
    """Each rater's own gap first - second, for the raters who graded both.

    grades: sorted by item and rater, one a rater and item. first, second: items, shape (pairs,).
    """
    raters = int(grades.rater.max()) + 1 if len(grades.rater) else 1
    key = grades.item * raters + grades.rater
    starts = np.searchsorted(grades.item, np.arange(max(first.max(initial=0), second.max(initial=0)) + 2))
    sizes = np.diff(starts)
    if sizes.max() > 1:
        pair = np.repeat(np.arange(len(first)), sizes[first])
        left = ranges(starts[first], sizes[first])
        wanted = second[pair] * raters + grades.rater[left]
        right = np.minimum(np.searchsorted(key, wanted), max(len(key) - 1, 0))
        both = key[right] == wanted if len(key) else np.zeros(0, dtype=bool)
    else:  # of one grade an item its place is known
        pair, left, right = np.arange(len(first)), starts[first], starts[second]
        both = sizes[first] & sizes[second] > 0
        both[both] = grades.rater[left[both]] == grades.rater[right[both]]
    if not both.all():
        pair, left, right = pair[both], left[both], right[both]
    value = grades.value
    step = np.maximum(grades.step[left], grades.step[right]) if isinstance(grades.step, np.ndarray) else grades.step
    gap = rounded(value[left] - value[right], step)
    middle = (grades.value[left] + grades.value[right]) / 2
    return OwnGaps(pair, gap, middle, grades.variance[left] + grades.variance[right], grades.kind[left], weights_of(grades)[left])


MOST_GRADES = 1000
"""Of a source that are told apart: where there are more, any number may be a grade."""


def distinct_grades(gaps: OwnGaps) -> np.ndarray:
    """The smallest MOST_GRADES + 1 grades that there are, so that those of all parts are those of the whole: scores, or gaps."""
    compared = np.isnan(gaps.middle)
    half = np.where(compared, 0.0, gaps.gap / 2)
    middle = np.where(compared, gaps.gap, gaps.middle)
    return np.unique(np.concatenate([middle - half, middle + half]))[: MOST_GRADES + 1]


def grid_of(grades: np.ndarray) -> float:
    """The smallest difference of two of the `distinct_grades` that is more than rounding of floats; 0: any number may be a grade."""
    apart = np.diff(grades)
    apart = apart[apart > 1e-9 * apart.max(initial=0.0)]
    return float(apart.min()) if len(apart) and len(grades) <= MOST_GRADES else 0.0


def weights_of(grades: Grades) -> np.ndarray:
    """What each grade counts for, shape (grades,)."""
    return np.ones(len(grades.value)) if grades.weight is None else grades.weight


def deviations(gaps: OwnGaps, values: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each pair: how many raters, their weight, and the weighted sum of squared deviations of the values from their weighted mean."""
    n = np.bincount(gaps.pair, minlength=size)
    weight = np.bincount(gaps.pair, weights=gaps.weight, minlength=size)
    mean = np.bincount(gaps.pair, weights=values * gaps.weight, minlength=size) / np.where(n > 0, weight, 1.0)
    squares = np.bincount(gaps.pair, weights=gaps.weight * (values - mean[gaps.pair]) ** 2, minlength=size)
    return n, weight, np.where(squares > weight * (1e-12 * mean) ** 2, squares, 0.0)  # 0.1 thrice has a mean of 0.10000000000000002


def _of_the_mean(gaps: OwnGaps, pooled: np.ndarray, pooled_middles: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """With weights, variances are those of a rater of weight 1, and the variance of the mean is 1/Σ weight of it where it else is 1/n."""
    size = len(pooled)
    if gaps.one_each(size):
        return np.where(np.isnan(pooled), np.sqrt(gaps.variance), np.sqrt(pooled) * np.sqrt(1 / gaps.weight))
    n, weight, squares = deviations(gaps, gaps.gap, size)
    s2 = np.where(n > 1, squares / np.maximum(n - 1, 1), np.nan)
    own = np.sqrt(np.bincount(gaps.pair, weights=gaps.variance, minlength=size))
    se, known = np.full(size, np.nan), n > 0
    se[known] = margin_standard_error(n[known], s2[known], pooled[known], np.where(n == 1, own, np.nan)[known])
    weighed = known & ~((n == 1) & np.isnan(pooled))  # a judge's own spread needs no weight
    se[weighed] *= np.sqrt(n[weighed] / weight[weighed])
    return se


def _of_the_median(gaps: OwnGaps, pooled: np.ndarray, pooled_middles: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Of one or two raters the median is the mean."""
    se = _of_the_mean(gaps, pooled, pooled_middles, grid)
    n = np.bincount(gaps.pair, minlength=len(pooled))
    starts = np.cumsum(n) - n
    for raters in np.unique(n[n > 2]).tolist():
        of = np.flatnonzero(n == raters)
        own = starts[of][:, None] + np.arange(raters)
        se[of] = median_standard_error(gaps.gap[own], gaps.middle[own], pooled[of], pooled_middles[of], grid[of])
    return se


MARGIN_ERRORS: dict[str, Callable[[OwnGaps, np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    name: _of_the_median if name == "median" else _of_the_mean for name in RATER_MERGERS
}
"""By the merger of raters: (own gaps, the source's `PooledVariance`, shape (pairs,) each) → margin_se, NaN: unknown."""
