"""Units of signed margins as patterns: equal units are counted, ranked in both orientations, and resampled by prompt.

A *pattern* is the values that the raters of one unit gave. Statistics are functions of how often each pattern occurs, so that a bootstrap
draw is a row of weights, and graded scales cost what their few patterns cost, however many units there are.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mmpo.pipeline.logistic import Floats

__all__ = ["Patterns", "Ranking", "patterns", "signed_ranks"]

CELLS = 2_000_000
"""Numbers that a chunk of resamples holds at once."""


@dataclass(frozen=True)
class Patterns:
    """Units with equal values count as one pattern. value: shape (values,), pattern by pattern, `size` of each, starting at `start`.

    prompt: shape (units,), the prompt of each unit, pattern by pattern, starting at `unit_start`; prompts: how many there are.
    """

    value: Floats
    size: np.ndarray
    start: np.ndarray
    prompt: np.ndarray
    unit_start: np.ndarray
    prompts: int

    @cached_property
    def of_value(self) -> np.ndarray:
        """The pattern of each value, shape (values,)."""
        return np.repeat(np.arange(len(self.size)), self.size)

    @cached_property
    def ranking(self) -> "Ranking":
        """All values ranked with one another."""
        return Ranking.of(self.value, self.of_value)

    @cached_property
    def rankings(self) -> tuple["Ranking", "Ranking"]:
        """Of units of two values: the first ones and the second ones, each ranked among themselves."""
        first, second = (Ranking.of(self.value[place::2], np.arange(len(self.size))) for place in (0, 1))
        return first, second

    @cached_property
    def moments(self) -> tuple[Floats, Floats]:
        """`disagreement` of the values themselves."""
        return self.disagreement(self.value)

    def disagreement(self, value: Floats) -> tuple[Floats, Floats]:
        """Of each unit of k values: Σ over ordered pairs of (v − v')²/(k − 1) = 2k·Σ(v − mean)²/(k − 1), and Σv².

        value: shape (..., values), in the place of the patterns' own. Returns two of shape (..., patterns).
        """
        squares = np.add.reduceat(value**2, self.start, axis=-1)
        if (self.size == 2).all():
            return 2 * (value[..., 0::2] - value[..., 1::2]) ** 2, squares
        mean = np.add.reduceat(value, self.start, axis=-1) / self.size
        deviation = np.add.reduceat((value - np.take(mean, self.of_value, axis=-1)) ** 2, self.start, axis=-1)
        return 2 * self.size * deviation / (self.size - 1), squares

    def counts(self) -> Floats:
        """How often each pattern occurs, shape (1, patterns)."""
        return np.diff(np.append(self.unit_start, len(self.prompt)))[None].astype(np.float64)

    def resampled(self, times: int, seed: int) -> Iterator[Floats]:
        """How often each pattern occurs where prompts (not units) are drawn with replacement: chunks of shape (draws, patterns)."""
        rng = np.random.default_rng(seed)
        step = max(1, CELLS // max(len(self.prompt), len(self.value), self.prompts))
        for done in range(0, times, step):
            draws = min(step, times - done)
            drawn = rng.integers(0, self.prompts, (draws, self.prompts)) + self.prompts * np.arange(draws)[:, None]
            weights = np.bincount(drawn.ravel(), minlength=draws * self.prompts).reshape(draws, self.prompts)
            yield np.add.reduceat(weights[:, self.prompt], self.unit_start, axis=1).astype(np.float64)


def patterns(unit: np.ndarray, value: np.ndarray, prompt: np.ndarray) -> Patterns:
    """The patterns of flat values, all arguments of shape (values,), sorted by unit; a unit needs two values or more to count."""
    start = np.flatnonzero(np.append(True, unit[1:] != unit[:-1])) if len(unit) else np.zeros(0, dtype=np.int64)
    size = np.diff(np.append(start, len(unit)))
    start, size = start[size > 1], size[size > 1]
    values, code = np.unique(value, return_inverse=True)
    pattern = np.zeros(len(start), dtype=np.int64)
    for place in range(int(size.max(initial=0))):
        at = np.minimum(start + place, len(unit) - 1)
        token = np.where(size > place, code[at] + 1, 0)
        pattern = np.unique(pattern * (len(values) + 1) + token, return_inverse=True)[1]
    order = np.lexsort((start, pattern))
    first = np.flatnonzero(np.append(True, np.diff(pattern[order]) != 0)) if len(order) else np.zeros(0, dtype=np.int64)
    kept = order[first]
    at = np.repeat(start[kept] - (np.cumsum(size[kept]) - size[kept]), size[kept]) + np.arange(int(size[kept].sum()))
    number, of_unit = np.unique(prompt[start], return_inverse=True)
    return Patterns(value[at], size[kept], np.cumsum(size[kept]) - size[kept], of_unit[order], first, len(number))


@dataclass(frozen=True)
class Ranking:
    """How to rank values by size under any weights. owner: of each value in the order of size, the pattern that it belongs to; start: where
    each distinct size begins in that order; number: which distinct size each value has; sign: of each value.
    """

    sign: Floats
    owner: np.ndarray
    start: np.ndarray
    number: np.ndarray

    @classmethod
    def of(cls, value: Floats, owner: np.ndarray) -> "Ranking":
        """The ranking of values, shape (values,), of the patterns `owner`."""
        size = np.abs(value)
        order = np.argsort(size, kind="stable")
        start = np.flatnonzero(np.append(True, np.diff(size[order]) != 0))
        number = np.empty(len(value), dtype=np.int64)
        number[order] = np.repeat(np.arange(len(start)), np.diff(np.append(start, len(value))))
        return cls(np.sign(value), owner[order], start, number)

    def ranks(self, weight: Floats) -> Floats:
        """Signed ranks, shape (draws, values), from how often each pattern occurs, shape (draws, patterns)."""
        counts = np.add.reduceat(weight[:, self.owner], self.start, axis=1)
        return self.sign * np.take(np.cumsum(counts, axis=1) - counts / 2, self.number, axis=1)


def signed_ranks(value: Floats, weight: Floats) -> Floats:
    """Each value's mid-rank over both orientations, less the mean rank: 0 for a tie, odd in the value.

    value: shape (values,); weight: shape (draws, values), how often each occurs. Returns shape (draws, values): the sign of the value times
    (all ties + all that are smaller in size + half of those of the same size).

    >>> signed_ranks(np.array([0.0, 0.5, -0.5, 3.0]), np.ones((1, 4))).tolist()
    [[0.0, 2.0, -2.0, 3.5]]
    """
    return Ranking.of(value, np.arange(len(value))).ranks(weight)
