"""Whether the factor analysis of raters is worth its trouble: which scales let the others foretell a left-out rater's grades?

An unreliable rater's grades, divided by its small true scale, are right on the mean and noisier than ever. Where few raters grade an item
that costs more than it gains; divided by their standard deviation such grades come out small, as they should. How many raters an item has
and what shape grades have is no part of the model of `rater_scales`, so the grades themselves are asked.
"""

import numpy as np

__all__ = ["deviations_foretell_better"]

LEAST_GAIN = 0.01
"""Correlation by which standard deviations have to be better before the model gives way. No proof is asked for: where data are too few for
one, an unreliable rater's scale may be anything, and dividing by it is the costlier mistake.
"""


def deviations_foretell_better(
    item: np.ndarray, rater: np.ndarray, value: np.ndarray, scale: np.ndarray, weight: np.ndarray, deviation: np.ndarray
) -> bool:
    """Whether grades over the raters' standard deviations foretell a left-out rater's grade better than weighted ones over their scales.

    item, rater, value (without biases): shape (grades,), as in `rater_scales.rater_scales`; scale, weight, deviation: shape (raters,), > 0,
    weight ≥ 0. The grade of each rater in its own standard deviations is set against the mean of the others' grades of the item: the
    correlation over all grades counts, so no unit has an advantage.
    """
    size = np.sqrt(np.bincount(rater, weights=value**2) / np.maximum(np.bincount(rater), 1))
    standard = np.where((size > 0)[rater], value / np.where(size > 0, size, 1.0)[rater], 0.0)
    simple = _correlation(standard, _others(item, value / deviation[rater], np.ones(len(value))))
    return simple - _correlation(standard, _others(item, value / scale[rater], weight[rater])) > LEAST_GAIN


def _others(item: np.ndarray, value: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The weighted mean of the others' grades of each grade's item, 0 where they have no weight."""
    total = np.bincount(item, weights=weight)[item] - weight
    heard = total > 1e-9
    return np.where(heard, (np.bincount(item, weights=weight * value)[item] - weight * value) / np.where(heard, total, 1.0), 0.0)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Of two quantities about 0; 0 where one is always 0."""
    squares = float(a @ a) * float(b @ b)
    return float(a @ b) / squares**0.5 if squares else 0.0
