"""Agreement in signed margins: Krippendorff's α, rank correlation and accuracy, with bootstrap intervals. numpy only.

A unit is an unordered pair of completions, so a margin m of it is as well −m of the pair called the other way round. Every unit
enters in both orientations: which completion is called first then changes nothing. (On the graded human pairs of RAGChecker the
usual α of the same grades is .72 in the order of the file and .38 with the better answer named first; in both orientations it is
.72 either way.) Nothing is doubled in memory: over both orientations the mean is 0 and a rank is that of |m| with the sign of m.

A *pattern* is the values that the raters of one unit gave. Statistics are functions of how often each pattern occurs, so that a
bootstrap draw is a row of weights, and graded scales cost what their few patterns cost, however many units there are.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mmpo.pipeline.grades import run_sizes, runs
from mmpo.pipeline.margins import Floats
from mmpo.pipeline.metrics import FEWEST_CLUSTERS, share_interval

INTERVAL = (0.025, 0.975)
"""The quantiles of the draws that bound a 95% interval."""
ALIKE = 1e-9
"""Draws that differ by no more are alike but for rounding."""
CHUNK_NUMBERS = 2_000_000
"""Numbers that a chunk of resamples holds at once."""


@dataclass(frozen=True)
class Patterns:
    """Units with equal values count as one pattern. value: shape (values,), pattern by pattern, `size` of each, starting at
    `start`.

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
        return run_sizes(self.unit_start, len(self.prompt))[None].astype(np.float64)

    def resampled(self, times: int, seed: int) -> Iterator[Floats]:
        """How often each pattern occurs where prompts (not units) are drawn with replacement: chunks of shape (draws, patterns)."""
        rng = np.random.default_rng(seed)
        step = max(1, CHUNK_NUMBERS // max(len(self.prompt), len(self.value), self.prompts))
        for done in range(0, times, step):
            draws = min(step, times - done)
            drawn = rng.integers(0, self.prompts, (draws, self.prompts)) + self.prompts * np.arange(draws)[:, None]
            weights = np.bincount(drawn.ravel(), minlength=draws * self.prompts).reshape(draws, self.prompts)
            yield np.add.reduceat(weights[:, self.prompt], self.unit_start, axis=1).astype(np.float64)


def patterns(unit: np.ndarray, value: np.ndarray, prompt: np.ndarray) -> Patterns:
    """The patterns of flat values, all arguments of shape (values,), sorted by unit; a unit needs two values or more to count."""
    start, size = runs(unit)
    start, size = start[size > 1], size[size > 1]
    values, code = np.unique(value, return_inverse=True)
    pattern = np.zeros(len(start), dtype=np.int64)
    for place in range(int(size.max(initial=0))):
        at = np.minimum(start + place, len(unit) - 1)
        token = np.where(size > place, code[at] + 1, 0)
        pattern = np.unique(pattern * (len(values) + 1) + token, return_inverse=True)[1]
    order = np.lexsort((start, pattern))
    first, _ = runs(pattern[order])
    kept = order[first]
    at = np.repeat(start[kept] - (np.cumsum(size[kept]) - size[kept]), size[kept]) + np.arange(int(size[kept].sum()))
    number, of_unit = np.unique(prompt[start], return_inverse=True)
    return Patterns(value[at], size[kept], np.cumsum(size[kept]) - size[kept], of_unit[order], first, len(number))


@dataclass(frozen=True)
class Ranking:
    """How to rank values by size under any weights. owner: of each value in the order of size, the pattern that it belongs to;
    start: where each distinct size begins in that order; number: which distinct size each value has; sign: of each value.
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
        start, count = runs(size[order])
        number = np.empty(len(value), dtype=np.int64)
        number[order] = np.repeat(np.arange(len(start)), count)
        return cls(np.sign(value), owner[order], start, number)

    def ranks(self, weight: Floats) -> Floats:
        """Signed ranks, shape (draws, values), from how often each pattern occurs, shape (draws, patterns)."""
        counts = np.add.reduceat(weight[:, self.owner], self.start, axis=1)
        return self.sign * np.take(np.cumsum(counts, axis=1) - counts / 2, self.number, axis=1)


def signed_ranks(value: Floats, weight: Floats) -> Floats:
    """Each value's mid-rank over both orientations, less the mean rank: 0 for a tie, odd in the value.

    value: shape (values,); weight: shape (draws, values), how often each occurs. Returns shape (draws, values): the sign of the
    value times (all ties + all that are smaller in size + half of those of the same size).

    >>> signed_ranks(np.array([0.0, 0.5, -0.5, 3.0]), np.ones((1, 4))).tolist()
    [[0.0, 2.0, -2.0, 3.5]]
    """
    return Ranking.of(value, np.arange(len(value))).ranks(weight)


Statistic = Callable[[Patterns, Floats], Floats]


def _alpha(units: Patterns, weight: Floats, moments: tuple[Floats, Floats]) -> Floats:
    """1 − observed/expected disagreement; over both orientations of n values the expected one is 4·Σv²/(2n − 1). NaN: all are
    ties."""
    disagreement, squares = moments
    n = weight @ units.size
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1 - ((weight * disagreement).sum(axis=1) / n) / (4 * (weight * squares).sum(axis=1) / (2 * n - 1))


def alpha_interval(units: Patterns, weight: Floats) -> Floats:
    """Krippendorff's α of the margins themselves, shape (draws,); 1 is full agreement, 0 chance."""
    return _alpha(units, weight, units.moments)


def alpha_ordinal(units: Patterns, weight: Floats) -> Floats:
    """Krippendorff's α of the margins' order, shape (draws,).

    His ordinal distance between two values, (Σ of counts between them − half of both ends)², is the squared difference of
    mid-ranks.
    """
    return _alpha(units, weight, units.disagreement(units.ranking.ranks(weight)))


def alpha_nominal(units: Patterns, weight: Floats) -> Floats:
    """Krippendorff's α of the verdicts (first better, tie, second better), shape (draws,)."""
    up, down = (np.add.reduceat(mask.astype(np.float64), units.start) for mask in (units.value > 0, units.value < 0))
    tie = units.size - up - down
    observed = weight @ ((units.size**2 - up**2 - down**2 - tie**2) / (units.size - 1))
    n, decided = weight @ units.size, weight @ (up + down)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Both orientations: 2n values, of which `decided` are above 0, as many below, and 2(n − decided) are 0.
        expected = (4 * n**2 - 2 * decided**2 - 4 * (n - decided) ** 2) / (2 * n * (2 * n - 1))
        return 1 - observed / n / expected


def accuracy(units: Patterns, weight: Floats) -> Floats:
    """Of units that neither of two raters calls a tie, the share in which both prefer the same completion, shape (draws,)."""
    product = np.sign(units.value[0::2]) * np.sign(units.value[1::2])
    with np.errstate(divide="ignore", invalid="ignore"):
        return (weight @ (product > 0)) / (weight @ (product != 0))


def spearman(units: Patterns, weight: Floats) -> Floats:
    """Rank correlation of two raters' margins over both orientations, ranks anew for each draw, shape (draws,)."""
    a, b = (ranking.ranks(weight) for ranking in units.rankings)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (weight * a * b).sum(axis=1) / np.sqrt((weight * a * a).sum(axis=1) * (weight * b * b).sum(axis=1))


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's correlation of two signed quantities of the same units over both orientations; None where one is always 0."""
    if not len(a):
        return None
    both = np.stack([a, b], axis=1).ravel().astype(np.float64)
    one = np.repeat(np.arange(len(a)), 2)
    found = patterns(one, both, one)
    value = float(spearman(found, found.counts())[0])
    return None if np.isnan(value) else value


ALPHAS: dict[str, Statistic] = {
    "alpha_nominal": alpha_nominal,
    "alpha_ordinal": alpha_ordinal,
    "alpha_interval": alpha_interval,
}
OF_TWO: dict[str, Statistic] = {"accuracy": accuracy, "spearman": spearman, **ALPHAS}


def agreement_of_two(a: np.ndarray, b: np.ndarray, prompt: np.ndarray, bootstrap: int, seed: int) -> dict[str, Any]:
    """How far two raters agree on the units that both graded: their margins and each unit's prompt, shape (units,).

    Returns units, prompts, decided (units that neither calls a tie), and accuracy, spearman, alpha_nominal (on the sign),
    alpha_ordinal and alpha_interval, each with its 95% interval under NAME_95: percentiles, of an accuracy of 0 or 1
    `share_interval`'s exact bound for as many prompts as have a decided unit. None: not defined, e.g. where every margin is 0; an
    interval also where all draws are alike, which tells nothing of how far the statistic may be off.
    """
    units = np.repeat(np.arange(len(a)), 2)
    found = patterns(units, np.stack([a, b], axis=1).ravel(), np.repeat(prompt, 2))
    decided = int(((a != 0) & (b != 0)).sum())
    return {"units": len(a), "prompts": found.prompts, "decided": decided, **_measured(found, OF_TWO, bootstrap, seed)}


def agreement_of_all(unit: np.ndarray, value: np.ndarray, prompt: np.ndarray, bootstrap: int, seed: int) -> dict[str, Any]:
    """How far any number of raters agree, shape (values,) each, sorted by unit: units and prompts with two raters or more, and the
    α."""
    # Equal sets of values are one pattern, whoever gave which.
    order = np.lexsort((value, unit))
    found = patterns(unit[order], value[order], prompt[order])
    return {"units": len(found.prompt), "prompts": found.prompts, **_measured(found, ALPHAS, bootstrap, seed)}


def _measured(units: Patterns, statistics: Mapping[str, Statistic], bootstrap: int, seed: int) -> dict[str, Any]:
    """Each statistic and its interval; none from few prompts, whose resamples are much the same."""
    result: dict[str, Any] = {}
    for name in statistics:
        result |= {name: None, f"{name}_95": None}
    if not len(units.size):
        return result
    for name, statistic in statistics.items():
        value = float(statistic(units, units.counts())[0])
        result[name] = None if np.isnan(value) else value
    draws: dict[str, list[Floats]] = {name: [] for name in statistics}
    for weight in units.resampled(bootstrap, seed) if units.prompts >= FEWEST_CLUSTERS else ():
        for name, statistic in statistics.items():
            draws[name].append(statistic(units, weight))
    for name, chunks in draws.items():
        found = np.concatenate([*chunks, np.zeros(0)])
        found = found[np.isfinite(found)]
        if not len(found) or result[name] is None:
            continue
        if name == "accuracy" and result[name] in (0.0, 1.0):
            result["accuracy_95"] = share_interval(found, result[name], _decided_prompts(units))
        elif np.ptp(found) > ALIKE:
            result[f"{name}_95"] = [float(bound) for bound in np.quantile(found, INTERVAL)]
    return result


def _decided_prompts(units: Patterns) -> int:
    """How many prompts have a unit that neither of two raters calls a tie."""
    decided = (units.value[0::2] != 0) & (units.value[1::2] != 0)
    return len(np.unique(units.prompt[np.repeat(decided, run_sizes(units.unit_start, len(units.prompt)))]))
