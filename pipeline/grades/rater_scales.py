"""The scales and reliabilities of raters from how they vary together: a factor analysis with one factor, the item.

A rater's scale is its standard deviation times its reliability, the correlation of its grades with the item. The standard deviation alone
would take noise for scale; a regression on the mean of the others would take their noise for signal. The correlation of two raters holds no
noise of either: cor(r, s) = reliability_r · reliability_s. So of three raters reliability_r² = cor(r, s)·cor(r, t)/cor(s, t); of more, all
such triads at once by least squares (Harman and Jones 1966, "minres"), each weighted by the items shared. The diagonal is never read.

The two factors are shrunk apart, each by how certain it is. Standard deviations are soon known; reliabilities are not, least of all where
grades have heavy tails. Where nothing shows that reliabilities differ, scales are as the standard deviations.
"""

from typing import NamedTuple

import numpy as np

from mmpo.pipeline.grades.rater_shrinkage import sampling_variances, shrunk

__all__ = ["LEAST_SCALE", "LEAST_SHARED", "MOST_SCALED", "Scales", "rater_scales"]

LEAST_SHARED = 20
"""Items shared with other raters from which on a rater gets a scale of its own, and can be found to give no signal."""

MOST_SCALED = 2000
"""Raters with a scale of their own, at most: those who share most; their covariances are a dense matrix."""

ITERATIONS = 200
RELIABILITY = (0.01, 0.995)
LEAST_SCALE = 0.1


class Scales(NamedTuple):
    """log_scale: shape (raters,), sum 0 over those that have one, 0 for the others, shrunk.

    log_deviation: of the standard deviation, likewise; against_others: log_scale against the mean of the others', inf for raters without a
    scale; noise: variance of a grade's noise once its scale is taken out, NaN for raters without a scale.
    """

    log_scale: np.ndarray
    log_deviation: np.ndarray
    against_others: np.ndarray
    noise: np.ndarray


def rater_scales(item: np.ndarray, rater: np.ndarray, value: np.ndarray, cluster: np.ndarray, raters: int) -> Scales:
    """Scales of raters who share items, directly or through others.

    item: sorted; rater: < raters; value: grades without the raters' biases; cluster: grades of one number may depend on each other, those
    of an item have the same; all of shape (grades,), each item with two raters or more.
    """
    scaled = _with_scale(rater, raters)
    result = Scales(np.zeros(raters), np.zeros(raters), np.full(raters, np.inf), np.full(raters, np.nan))
    while True:
        code = np.full(raters, -1)
        code[scaled] = np.arange(len(scaled))
        inside = code[rater] >= 0
        who, graded, grade = code[rater[inside]], item[inside], value[inside]
        shared, covariance = _covariances(graded, who, grade, len(scaled))
        mean, deviation = _moments(who, grade, len(scaled))
        usable = (deviation > 0) & shared.any(axis=1)
        if usable.all():
            break
        scaled = scaled[usable]
    if len(scaled) < 2:
        return result
    raw = _reliabilities(covariance / np.outer(deviation, deviation), shared)
    z = (grade - mean[who]) / deviation[who]
    of_deviation, of_reliability = sampling_variances(graded, who, z, cluster[inside], raw, shared)
    reliability = np.clip(shrunk(raw, of_reliability), *RELIABILITY)
    deviations = shrunk(np.log(deviation), of_deviation)
    logs = np.log(reliability) + deviations
    items = np.exp(2 * logs.mean())
    logs -= logs.mean()
    result.log_scale[scaled] = logs
    result.log_deviation[scaled] = deviations - deviations.mean()
    result.against_others[scaled] = logs * len(logs) / (len(logs) - 1)
    result.noise[scaled] = items * (1 / reliability**2 - 1)
    return result


def _with_scale(rater: np.ndarray, raters: int) -> np.ndarray:
    counts = np.bincount(rater, minlength=raters)
    order = np.lexsort((np.arange(raters), -counts))[:MOST_SCALED]
    return np.sort(order[counts[order] >= LEAST_SHARED])


def _moments(rater: np.ndarray, value: np.ndarray, raters: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each rater's grades."""
    n = np.bincount(rater, minlength=raters)
    mean = np.bincount(rater, weights=value, minlength=raters) / np.maximum(n, 1)
    return mean, np.sqrt(np.bincount(rater, weights=(value - mean[rater]) ** 2, minlength=raters) / np.maximum(n - 1, 1))


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


def _reliabilities(correlation: np.ndarray, shared: np.ndarray) -> np.ndarray:
    """The correlation of each rater's grades with the item, shape (raters,).

    Two raters, or raters without any triad, can't be told apart: all get the same one, so that their scales are as their standard
    deviations (the reduced major axis).
    """
    linked = (shared > 0).astype(np.float64)
    if not ((linked @ linked) * linked).any():
        common = np.sqrt(np.clip((shared * correlation).sum() / shared.sum(), RELIABILITY[0] ** 2, RELIABILITY[1] ** 2))
        return np.full(len(shared), common)
    start = np.sqrt(np.clip((shared * correlation).sum(axis=1) / shared.sum(axis=1), 0.01, 0.9))
    return _minres(correlation, shared, start)


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
