"""Judges that answer a pair in both orders: their position bias, and one grade out of two orders.

The model, in gap units: shown first, a completion that is better by m gets the gap m + b + e, where b is the judge's position bias (> 0:
it prefers what is shown first) and e noise of one answer, of variance t². With g1 and g2 the gaps towards the same completion when it
was shown first and second,

    (g1 + g2)/2 = m + (e1 - e2)/2     the margin: b has cancelled, its variance is t²/2
    h = (g1 - g2)/2 = b + (e1 + e2)/2 the order gap: b is its mean, and t²/2 its variance

so the spread of h about b is that of the margin. Without taking b away it would be overstated: the mean of h² is b² + t²/2.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fractions import Fraction
from itertools import product
from typing import NamedTuple

import numpy as np

from mmpo.pipeline.grades.aggregate import FlatGrades, Grades, merge_repeats, runs

PRIOR_DEGREES = 4.0
"""How many degrees of freedom the group's variance of h counts for beside a pair's own; margin_se shrinks by as many."""


class PositionBias(NamedTuple):
    """What a rater's both-order pairs of an aspect say. bias: mean of h, in gap units; pairs: how many, ≥ 1.

    variance: of h about the bias (pairs - 1 below), NaN for one pair; it is the order noise's part in a two-order margin's variance.
    """

    bias: float
    pairs: int
    variance: float

    def as_json(self) -> dict[str, float | int | None]:
        """{"bias", "pairs", "order_sd"}, as the manifest keeps it."""
        known = bool(np.isfinite(self.variance))
        return {"bias": self.bias, "pairs": self.pairs, "order_sd": float(np.sqrt(self.variance)) if known else None}


class OrderTotals(NamedTuple):
    """Count, sum and sum of squares of h, exact: parts add up to the same whatever the parts are."""

    pairs: int
    total: Fraction
    squares: Fraction


def exact_sum(values: np.ndarray) -> Fraction:
    """The sum of finite floats without any rounding, so that it does not depend on their order or on how they are cut.

    >>> exact_sum(np.array([1e100, 1.0, -1e100])) == 1
    True
    """
    mantissa, exponent = np.frexp(values)
    digits = (mantissa * 2.0**53).astype(np.int64)
    result = Fraction(0)
    for power in np.unique(exponent).tolist():
        these = digits[exponent == power]
        whole = (int((these >> 26).sum()) << 26) + int((these & (2**26 - 1)).sum())
        result += Fraction(whole) * Fraction(2) ** (power - 53)
    return result


class _Answers(NamedTuple):
    """A rater's grades of an item and aspect in one or both orders. orders: one grade per order, sorted; the rest of shape (answers,).

    starts: where each answer's orders begin; gap: h, NaN where there is one order only; by_machine: whether the rater is no person;
    group: the rater's and aspect's place in `keys`, a list of (rater, aspect).
    """

    orders: Grades
    starts: np.ndarray
    gap: np.ndarray
    by_machine: np.ndarray
    group: np.ndarray
    keys: list[tuple[str, str]]


def _answers(flat: FlatGrades) -> _Answers:
    orders = merge_repeats(flat.grades)
    starts, sizes = runs(orders.item, orders.rater, orders.aspect)
    both = sizes == 2
    gap = np.full(len(starts), np.nan)
    # of two orders the second is the one where the item's first half was shown first
    gap[both] = (orders.value[starts[both] + 1] - orders.value[starts[both]]) / 2
    machine = np.array([kind != "human" for kind in flat.kinds] or [False])[orders.kind]
    by_machine = np.logical_and.reduceat(machine, starts) if len(starts) else np.zeros(0, dtype=bool)
    group = orders.rater[starts] * len(flat.aspects) + orders.aspect[starts]
    return _Answers(orders, starts, gap, by_machine, group, list(product(flat.raters, flat.aspects)))


def order_totals(flat: FlatGrades) -> dict[tuple[str, str], OrderTotals]:
    """By rater and aspect: the order gaps of the pairs that a machine (no person) answered in both orders."""
    answers = _answers(flat)
    used = answers.by_machine & np.isfinite(answers.gap)
    gaps, group = answers.gap[used], answers.group[used]
    result: dict[tuple[str, str], OrderTotals] = {}
    for code in np.unique(group).tolist():
        these = gaps[group == code]
        result[answers.keys[code]] = OrderTotals(len(these), exact_sum(these), exact_sum(these * these))
    return result


def position_biases(parts: Iterable[Mapping[tuple[str, str], OrderTotals]]) -> dict[tuple[str, str], PositionBias]:
    """The position bias of each (rater, aspect) with any both-order pair, from the totals of all parts of the input, sorted."""
    whole: defaultdict[tuple[str, str], list[OrderTotals]] = defaultdict(list)
    for part in parts:
        for key, totals in part.items():
            whole[key].append(totals)
    result: dict[tuple[str, str], PositionBias] = {}
    for key, several in sorted(whole.items()):
        pairs, total, squares = map(sum, zip(*several))
        about = max(squares - total * total / pairs, Fraction(0))  # h·h is rounded, so that equal gaps may leave less than 0
        result[key] = PositionBias(float(total / pairs), pairs, float(about / (pairs - 1)) if pairs > 1 else float("nan"))
    return result


def merge_orders(flat: FlatGrades, biases: Mapping[tuple[str, str], PositionBias], one_order: str) -> tuple[Grades, np.ndarray]:
    """One grade per item, rater and aspect out of its orders, and the items of the grades left out, shape (left out,).

    An order asked several times is averaged by itself first. With s1², s2² the answers' own variances and v0 the group's variance of h:

    both orders          value (g1 + g2)/2, variance (s1² + s2²)/4 + (4·v0 + (h - b)²)/5: the pair's own (h - b)² has one degree of
                         freedom, and is shrunk to v0 as by four more
    one order, where the rater answered others in both:  "drop" leaves the grade out, since the bias would stay in it; "keep" takes b
                         away: variance s² + 2·v0, since one order's noise t² is twice v0
    one order, where it answered none in both (people, judges asked once):  as it is; coefficient ±1 says what its bias would add

    Unknown parts of a variance are left out of the sum; it is NaN where none is known.
    """
    answers = _answers(flat)
    merged = answers.orders.mean_of_runs(answers.starts)
    table = np.array([biases.get(key, (np.nan, 0, np.nan)) for key in answers.keys]).reshape(-1, 3)
    bias, pairs, order_variance = table[answers.group].T
    known, both = answers.by_machine & (pairs > 0), np.isfinite(answers.gap)
    value, variance = merged.value.copy(), merged.variance.copy()
    sign = (
        np.where(answers.orders.shown[answers.starts] == 1, 1.0, -1.0) if answers.orders.shown is not None else np.ones(len(value))
    )

    two, one = both & known, ~both & known
    shrunk = (PRIOR_DEGREES * order_variance[two] + (answers.gap[two] - bias[two]) ** 2) / (PRIOR_DEGREES + 1)
    variance[two] = _known_sum(variance[two], shrunk)
    value[one] -= (sign * bias)[one]
    variance[one] = _known_sum(variance[one], 2 * order_variance[one])
    merged = replace(merged, value=value, variance=variance, coefficient=np.where(both | known, 0.0, sign))
    if one_order == "keep":
        return merged, merged.item[:0]
    return merged.take(~one), merged.item[one]


def _known_sum(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The sum of two arrays where NaN counts as nothing, unless both are."""
    return np.where(np.isnan(first), second, np.where(np.isnan(second), first, first + second))
