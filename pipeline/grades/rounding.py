"""Equality of grades: values that are compared are rounded to a step of their scale, since equal means differ by 1e-16 as floats.

The step is the largest power of ten ≤ 1e-12 of the scale's width, or of the largest grade where there is no scale: never relative to a
value or a gap, which would make a tie depend on what is compared. A scale far from 0 (a million to a million and one) has no twelve
digits left in a float: there it is the power of ten from 1e-15 of the largest grade up.
"""

import math

import numpy as np

Step = np.ndarray | float
"""Rounding steps of values, shape (values,), or one for all; 0: not rounded."""

OF_WIDTH, OF_LARGEST = 1e-12, 1e-15


def step_of(width: float, largest: float) -> float:
    """The rounding step of grades, 0 where all are 0. width: high - low, or the largest |grade| without a scale; largest: |grade|, ≥ 0.

    >>> step_of(9, 10), step_of(0.5, 0.5), step_of(1, 1e6), step_of(0, 0)
    (1e-12, 1e-13, 1e-09, 0.0)
    """
    digits = [math.floor(math.log10(OF_WIDTH * width) + 1e-9)] if width > 0 else []
    digits += [math.ceil(math.log10(OF_LARGEST * largest) - 1e-9)] if largest > 0 else []
    return float(f"1e{max(digits)}") if digits else 0.0


def rounded(values: np.ndarray, step: Step) -> np.ndarray:
    """The values to the nearest multiple of their step: of one decimal number always the same float, the one nearest to it.

    >>> rounded(np.array([6.999999999999999, 0.1 + 0.2, 5.0]), 1e-12).tolist()
    [7.0, 0.3, 5.0]
    """
    step = np.asarray(step, dtype=np.float64)
    fine = (step > 0) & (step < 1)
    # a whole number of steps to a unit is exact where the step is not: 7 is 7e12/1e12
    to_unit = np.where(fine, np.rint(1 / np.where(fine, step, 1.0)), 1.0)
    coarse = np.where(step >= 1, step, 1.0)
    return np.where(step > 0, np.rint(values / coarse * to_unit) / to_unit * coarse, values)


def coarsest(step: Step, starts: np.ndarray) -> Step:
    """The largest step of each run of values."""
    return np.maximum.reduceat(step, starts) if isinstance(step, np.ndarray) and len(starts) else step


def differ(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Whether values differ by more than operations on floats of their size may make."""
    return np.abs(first - second) > 4 * OF_LARGEST * np.maximum(np.abs(first), np.abs(second))
