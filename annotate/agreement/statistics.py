"""Agreement in signed margins: Krippendorff's α, rank correlation and accuracy, with bootstrap intervals. numpy only.

A unit is an unordered pair of completions, so a margin m of it is as well −m of the pair called the other way round. Every unit enters in
both orientations: which completion is called first then changes nothing. (On the graded human pairs of RAGChecker the usual α of the
same grades is .72 in the order of the file and .38 with the better answer named first; in both orientations it is .72 either way.)
Nothing is doubled in memory: over both orientations the mean is 0 and a rank is that of |m| with the sign of m.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mmpo.annotate.agreement.patterns import Patterns, patterns
from mmpo.pipeline.logistic import Floats

__all__ = ["ALPHAS", "OF_TWO", "agreement_of_all", "agreement_of_two", "rank_correlation"]

LEVEL = (0.025, 0.975)
Statistic = Callable[["Patterns", Floats], Floats]


def _alpha(units: Patterns, weight: Floats, moments: tuple[Floats, Floats]) -> Floats:
    """1 − observed/expected disagreement; over both orientations of n values the expected one is 4·Σv²/(2n − 1). NaN: all are ties."""
    disagreement, squares = moments
    n = weight @ units.size
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1 - ((weight * disagreement).sum(axis=1) / n) / (4 * (weight * squares).sum(axis=1) / (2 * n - 1))


def alpha_interval(units: Patterns, weight: Floats) -> Floats:
    """Krippendorff's α of the margins themselves, shape (draws,); 1 is full agreement, 0 chance."""
    return _alpha(units, weight, units.moments)


def alpha_ordinal(units: Patterns, weight: Floats) -> Floats:
    """Krippendorff's α of the margins' order, shape (draws,).

    His ordinal distance between two values, (Σ of counts between them − half of both ends)², is the squared difference of mid-ranks.
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

    Returns units, prompts, decided (units that neither calls a tie), and accuracy, spearman, alpha_nominal (on the sign), alpha_ordinal and
    alpha_interval, each with its 95% percentile interval under NAME_95. None: not defined, e.g. where every margin is 0.
    """
    units = np.repeat(np.arange(len(a)), 2)
    found = patterns(units, np.stack([a, b], axis=1).ravel(), np.repeat(prompt, 2))
    decided = int(((a != 0) & (b != 0)).sum())
    return {"units": len(a), "prompts": found.prompts, "decided": decided, **_measured(found, OF_TWO, bootstrap, seed)}


def agreement_of_all(unit: np.ndarray, value: np.ndarray, prompt: np.ndarray, bootstrap: int, seed: int) -> dict[str, Any]:
    """How far any number of raters agree, shape (values,) each, sorted by unit: units and prompts with two raters or more, and the α."""
    # Equal sets of values are one pattern, whoever gave which.
    order = np.lexsort((value, unit))
    found = patterns(unit[order], value[order], prompt[order])
    return {"units": len(found.prompt), "prompts": found.prompts, **_measured(found, ALPHAS, bootstrap, seed)}


def _measured(units: Patterns, statistics: Mapping[str, Statistic], bootstrap: int, seed: int) -> dict[str, Any]:
    """Each statistic and its interval; no interval from one prompt, whose resamples are all the same."""
    result: dict[str, Any] = {}
    for name in statistics:
        result |= {name: None, f"{name}_95": None}
    if not len(units.size):
        return result
    for name, statistic in statistics.items():
        value = float(statistic(units, units.counts())[0])
        result[name] = None if np.isnan(value) else value
    draws: dict[str, list[Floats]] = {name: [] for name in statistics}
    for weight in units.resampled(bootstrap, seed) if units.prompts > 1 else ():
        for name, statistic in statistics.items():
            draws[name].append(statistic(units, weight))
    for name, chunks in draws.items():
        found = np.concatenate([*chunks, np.zeros(0)])
        found = found[np.isfinite(found)]
        if len(found) and result[name] is not None:
            result[f"{name}_95"] = [float(bound) for bound in np.quantile(found, LEVEL)]
    return result
