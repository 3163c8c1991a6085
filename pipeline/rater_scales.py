"""The scales and reliabilities of raters from how they vary together: a factor analysis with one factor, the item.

A regression of one rater on the mean of the others would take the others' noise for signal and find every scale too small. The covariance
of two raters holds no noise of either: cov(r, s) = scale_r · scale_s · V, with V the variance of the items. So of three raters
scale_r² ∝ cov(r, s)·cov(r, t)/cov(s, t); of more, all such triads at once by least squares over the correlations (Harman and Jones 1966,
"minres"), each weighted by the items shared. The diagonal, which noise inflates, is never read.
"""

from typing import NamedTuple

import numpy as np

__all__ = ["LEAST_SHARED", "MOST_SCALED", "Scales", "rater_scales"]

LEAST_SHARED = 20
"""Items shared with other raters from which on a rater gets a scale of its own, and can be found to give no signal."""

MOST_SCALED = 2000
"""Raters with a scale of their own, at most: those who share most; their covariances are a dense matrix."""

ITERATIONS = 200
RELIABILITY = (0.01, 0.995)
TRUSTED = 0.9
"""A reliability above is not believed when it says how certain itself is: an estimate at the edge of 1 would have no variance at all."""

LEAST_SCALE = 0.1


class Scales(NamedTuple):
    """log_scale: shape (raters,), sum 0 over those that have one, 0 for the others, shrunk.

    against_others: before shrinkage, against the mean of the others', inf for raters without a scale; noise: variance of a grade's noise
    once its scale is taken out, NaN for raters without a scale.
    """

    log_scale: np.ndarray
    against_others: np.ndarray
    noise: np.ndarray


def rater_scales(item: np.ndarray, rater: np.ndarray, value: np.ndarray, raters: int, independent: float = 1.0) -> Scales:
    """Scales of raters who share items, directly or through others.

    item: sorted; rater: < raters; value: grades without the raters' biases; all of shape (grades,), each item with two raters or more.
    independent: the share of grades that the others don't determine.
    """
    scaled = _with_scale(rater, raters)
    result = Scales(np.zeros(raters), np.full(raters, np.inf), np.full(raters, np.nan))
    while True:
        code = np.full(raters, -1)
        code[scaled] = np.arange(len(scaled))
        inside = code[rater] >= 0
        shared, covariance = _covariances(item[inside], code[rater[inside]], value[inside], len(scaled))
        deviation = _deviations(code[rater[inside]], value[inside], len(scaled))
        usable = (deviation > 0) & shared.any(axis=1)
        if usable.all():
            break
        scaled = scaled[usable]
    if len(scaled) < 2:
        return result
    correlation = covariance / np.outer(deviation, deviation)
    counts = np.bincount(code[rater[inside]], minlength=len(scaled))
    reliability, uncertain = _reliabilities(correlation, shared, counts)
    uncertain /= independent
    logs = np.log(reliability * deviation)
    items = np.exp(2 * logs.mean())
    logs -= logs.mean()
    result.log_scale[scaled] = _shrunk(logs, uncertain)
    result.against_others[scaled] = logs * len(logs) / (len(logs) - 1)
    result.noise[scaled] = items * (1 / reliability**2 - 1)
    return result


def _with_scale(rater: np.ndarray, raters: int) -> np.ndarray:
    counts = np.bincount(rater, minlength=raters)
    order = np.lexsort((np.arange(raters), -counts))[:MOST_SCALED]
    return np.sort(order[counts[order] >= LEAST_SHARED])


def _deviations(rater: np.ndarray, value: np.ndarray, raters: int) -> np.ndarray:
    n = np.bincount(rater, minlength=raters)
    mean = np.bincount(rater, weights=value, minlength=raters) / np.maximum(n, 1)
    return np.sqrt(np.bincount(rater, weights=(value - mean[rater]) ** 2, minlength=raters) / np.maximum(n - 1, 1))


def _covariances(item: np.ndarray, rater: np.ndarray, value: np.ndarray, raters: int) -> tuple[np.ndarray, np.ndarray]:
    """Items shared by each two raters, and the covariance of their grades there, both of shape (raters, raters), diagonal 0.

    Grades are sorted by item: the grade `lag` places further is of the same item or there is none, so no loop over items is needed.
    """
    sums = np.zeros((4, raters * raters))
    for lag in range(1, len(item)):
        same = np.flatnonzero(item[lag:] == item[:-lag])
        if not len(same):
            break
        x, y = value[same], value[same + lag]
        key = rater[same] * raters + rater[same + lag]
        for index, weights in enumerate((None, x, y, x * y)):
            sums[index] += np.bincount(key, weights=weights, minlength=raters * raters)
    n, first, second, product = sums.reshape(4, raters, raters)
    n, first, second, product = n + n.T, first + second.T, second + first.T, product + product.T
    enough = np.maximum(n, 2)
    return np.where(n > 1, n, 0.0), np.where(n > 1, (product - first * second / enough) / (enough - 1), 0.0)


def _reliabilities(correlation: np.ndarray, shared: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The correlation of each rater's grades with the item, and the sampling variance of the logarithm of scale. n: a rater's grades.

    Two raters, or raters without any triad, can't be told apart: all get the same one, so that their scales are as their standard
    deviations (the reduced major axis). The variance is that of a slope on the item, (1/reliability² - 1)/n, over the square of the
    reliability of what the others say of it; in simulations within a third of what it should be, from 3 to 30 raters.
    """
    linked = (shared > 0).astype(np.float64)
    if not ((linked @ linked) * linked).any():
        common = np.sqrt(np.clip((shared * correlation).sum() / shared.sum(), RELIABILITY[0] ** 2, RELIABILITY[1] ** 2))
        return np.full(len(n), common), 1 / (2 * n)
    start = np.sqrt(np.clip((shared * correlation).sum(axis=1) / shared.sum(axis=1), 0.01, 0.9))
    reliability = _minres(correlation, shared, start)
    trusted = np.minimum(reliability, TRUSTED)
    information = trusted**2 / (1 - trusted**2)
    others = shared @ information / n
    return reliability, 1 / (information * n * (others / (1 + others)) ** 2)


def _minres(correlation: np.ndarray, shared: np.ndarray, reliability: np.ndarray) -> np.ndarray:
    """Least squares of correlation ≈ reliability_r · reliability_s off the diagonal, one rater at a time given the others.

    The geometric mean of old and new: all at once, a common factor in all of them would turn over at every step.
    """
    for _ in range(ITERATIONS):
        best = (shared * correlation) @ reliability / (shared @ reliability**2)
        new = np.clip(np.sqrt(reliability * np.maximum(best, RELIABILITY[0] ** 2)), *RELIABILITY)
        change = np.abs(new - reliability).max()
        reliability = new
        if change < 1e-12:
            break
    return reliability


def _shrunk(logs: np.ndarray, uncertain: np.ndarray) -> np.ndarray:
    """Logarithms shrunk to 0 by empirical Bayes: what varies beyond sampling (method of moments) is taken for real; sum 0 again."""
    real = max(0.0, float((logs**2).sum() / (len(logs) - 1) - uncertain.mean()))
    shrunk = logs * real / (real + uncertain)
    return shrunk - shrunk.mean()
