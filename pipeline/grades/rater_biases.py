"""Raters' biases: least squares over the items they share, shrunk."""

from collections.abc import Callable

import numpy as np

__all__ = ["rater_biases"]

ITERATIONS = 200


def rater_biases(item: np.ndarray, rater: np.ndarray, value: np.ndarray, coefficient: np.ndarray, raters: int) -> np.ndarray:
    """Biases by least squares with a free value for every item, shrunk to 0 by empirical Bayes (method of moments).

    item, rater: numbers; value: grades; coefficient: how often the rater's bias is in the grade (1, or -1 to 1 for gaps); all of shape
    (grades,), each item with two raters or more. Shape (raters,). Where all coefficients are 1 a constant in all biases is free; the
    smallest biases are taken.
    """
    k = np.bincount(item)

    def within(x: np.ndarray) -> np.ndarray:
        return x - (np.bincount(item, weights=x) / k)[item]

    def by_rater(x: np.ndarray) -> np.ndarray:
        return np.bincount(rater, weights=coefficient * x, minlength=raters)

    def normal(bias: np.ndarray) -> np.ndarray:
        return by_rater(within(coefficient * bias[rater]))

    information = by_rater(coefficient * (1 - 1 / k[item]))
    free = information > 0
    if free.sum() < 1:
        return np.zeros(raters)
    right = by_rater(within(value))
    nothing = 1e-12 * float(np.linalg.norm(by_rater(np.abs(value))))  # what rounding leaves where raters agree
    raw = _solved(normal, right, nothing)
    left = within(value - coefficient * raw[rater])
    noise = float((left**2).sum()) / max(len(item) - len(k) - int(free.sum()), 1)
    real = float((raw[free] ** 2 - noise / information[free]).sum()) / max(int(free.sum()) - 1, 1)
    if real <= 0:
        return np.zeros(raters)
    return _solved(lambda bias: normal(bias) + noise / real * bias, right, nothing)


def _solved(normal: Callable[[np.ndarray], np.ndarray], right: np.ndarray, nothing: float) -> np.ndarray:
    """normal(x) = right by conjugate gradients from 0: of a singular system (biases plus any constant) the smallest solution.

    nothing: the length of a residual that counts as 0.
    """
    x, residual = np.zeros_like(right), right.copy()
    direction, size = residual.copy(), float(residual @ residual)
    for _ in range(ITERATIONS):
        image = normal(direction)
        curvature = float(direction @ image)
        if size <= nothing**2 or curvature <= 0:
            break
        step = size / curvature
        x, residual = x + step * direction, residual - step * image
        size, before = float(residual @ residual), size
        direction = residual + size / before * direction
    return x
