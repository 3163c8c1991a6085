"""Equality of grades: values that are compared are rounded to a step of their scale, since equal means differ by 1e-16 as floats.

The step is the largest power of ten ≤ 1e-12 of the scale's width, or of the largest grade where there is no scale: never relative to a
value or a gap, which would make a tie depend on what is compared. A scale far from 0 (a million to a million and one) has no twelve
digits left in a float: its grades are taken from its lower end (`from_origin`) before anything is done to them, so that what they are
divided by magnifies no noise, and the step is as coarse as the digits that were there ask for.
"""

import math

import numpy as np

Step = np.ndarray | float
"""Rounding steps of values, shape (values,), or one for all; 0: not rounded."""

OF_WIDTH, OF_LARGEST = 1e-12, 1e-15
GUARD, OF_WIDTH_AT_MOST = 10, 1e-6
"""How many times a float's digit a step is, since grades such as 1/3 have no last digit; but no more of the width for that alone."""


def step_of(width: float, largest: float) -> float:
    """The rounding step of grades, 0 where all are 0. width: high - low, or the largest |grade| without a scale; largest: |grade|, ≥ 0.

    >>> step_of(9, 10), step_of(0.5, 0.5), step_of(1, 1e6), step_of(0, 0)
    (1e-12, 1e-13, 1e-08, 0.0)
    """
    digits = [math.floor(math.log10(OF_WIDTH * width) + 1e-9)] if width > 0 else []
    if largest > 0:
        last = math.ceil(math.log10(OF_LARGEST * largest) - 1e-9)
        guarded = min(last + round(math.log10(GUARD)), math.floor(math.log10(OF_WIDTH_AT_MOST * width))) if width > 0 else last
        digits += [last, guarded]
    return float(f"1e{max(digits)}") if digits else 0.0


def origin_of(low: np.ndarray | float | None, high: np.ndarray | float | None) -> np.ndarray:
    """What grades of a scale are counted from: its lower end, or 0 where 0 is no further from the scale than the scale is wide.

    >>> origin_of(np.array([1.0, 1e6, -1001.0, np.nan]), np.array([10.0, 1e6 + 1, -1000.0, np.nan])).tolist()
    [0.0, 1000000.0, -1001.0, 0.0]
    """
    low, high = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
    far = np.isfinite(low) & np.isfinite(high) & (low < high) & (np.sign(low) == np.sign(high))
    far &= np.minimum(np.abs(low), np.abs(high)) > high - low
    return np.where(far, low, 0.0)


def from_origin(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The grades less the origin of their scale, to the last digit that they could hold: 1000000.4 of 1000000..1000001 is 0.4.

    values, low, high: shape (values,), NaN: no bound.
    """
    origin = origin_of(low, high)
    far = np.flatnonzero(origin)
    if not len(far):
        return values
    result = values.astype(np.float64, copy=True)
    # a float less one of about its size is exact; what is left of the noise is in the two themselves
    last = 10.0 ** np.ceil(np.log10(OF_LARGEST * np.maximum(np.abs(low[far]), np.abs(high[far]))) - 1e-9)
    result[far] = rounded(values[far] - origin[far], last)
    return result


def rounded(values: np.ndarray, step: Step) -> np.ndarray:
    """The values to the nearest multiple of their step: of one decimal number always the same float, the one nearest to it.

    >>> rounded(np.array([6.999999999999999, 0.1 + 0.2, 5.0]), 1e-12).tolist()
    [7.0, 0.3, 5.0]
    """
    if not isinstance(step, np.ndarray) and 0 < step < 1:
        unit = np.rint(1 / step)
        return np.rint(values * unit) / unit
    step = np.asarray(step, dtype=np.float64)
    fine = (step > 0) & (step < 1)
    # a whole number of steps to a unit is exact where the step is not: 7 is 7e12/1e12
    to_unit = np.where(fine, np.rint(1 / np.where(fine, step, 1.0)), 1.0)
    coarse = np.where(step >= 1, step, 1.0)
    return np.where(step > 0, np.rint(values / coarse * to_unit) / to_unit * coarse, values)


def comparable(values: np.ndarray, step: Step, *groups: np.ndarray) -> np.ndarray:
    """The values rounded; and where noise put values of a group on the two sides of a rounding's edge, both to one side.

    groups: keys of what is compared with one another, shape (values,) each; of their steps the coarsest holds for all.

    >>> comparable(np.array([0.00049999999, 0.00050000001, 0.0006]), 0.001, np.zeros(3)).tolist()
    [0.0, 0.0, 0.001]
    >>> comparable(np.array([9.96, 10.04]), np.array([0.01, 0.1]), np.zeros(2)).tolist()
    [10.0, 10.0]
    """
    if isinstance(step, np.ndarray) and groups:
        of = np.unique(np.stack(groups), axis=1, return_inverse=True)[1].reshape(-1)
        most = np.zeros(int(of.max(initial=-1)) + 1)
        np.maximum.at(most, of, step)
        step = most[of]
    result = rounded(values, step)
    step = np.broadcast_to(step, values.shape)
    edge = np.flatnonzero(np.abs(values - result) > 0.44 * step)
    edge = edge[(step[edge] > 0) & np.isfinite(values[edge])]
    if len(edge) < 2:
        return result
    edge = edge[np.lexsort((values[edge], *(group[edge] for group in groups)))]
    linked = np.diff(values[edge]) < 0.12 * step[edge[1:]]
    for group in groups:
        linked &= group[edge[1:]] == group[edge[:-1]]
    first = np.maximum.accumulate(np.where(np.append(True, ~linked), np.arange(len(edge)), 0))
    result[edge] = result[edge[first]]
    return result


def coarsest(step: Step, starts: np.ndarray) -> Step:
    """The largest step of each run of values."""
    return np.maximum.reduceat(step, starts) if isinstance(step, np.ndarray) and len(starts) else step


def differ(first: np.ndarray, second: np.ndarray | float, step: Step) -> np.ndarray:
    """Whether values that are equal when rounded differ by more than operations on floats of their scale may make."""
    return np.abs(first - second) > np.asarray(step) / 50
