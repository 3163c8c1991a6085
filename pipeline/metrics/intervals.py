"""95% intervals by resampling rows, or clusters of rows such as the pairs of a prompt. numpy only; the same draws for the same seed.

There is none of fewer than FEWEST_CLUSTERS: two clusters that are alike would make one of no width.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mmpo.pipeline.margins import Floats
from mmpo.pipeline.metrics.calibration import Parts

DRAWS = 1000
LEVELS = (0.025, 0.975)
NORMAL = 1.959964
"""The 97.5% quantile of the normal distribution."""
FEWEST_CLUSTERS = 5
"""Of fewer the spread says too little, and `student` is off."""
_CHUNK = 4_000_000
"""Numbers that are drawn at once."""


def student(degrees: float) -> float:
    """The 97.5% quantile of Student's t, within .3% from 4 degrees up: expanded about the normal one (Abramowitz and Stegun 26.7.5)."""
    z = NORMAL
    terms = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + sum(term / degrees ** (power + 1) for power, term in enumerate(terms))


def mean_draws(values: Floats, draws: int, rng: np.random.Generator) -> Floats:
    """The mean of the values, shape (rows,), each time that as many of them are drawn with replacement; shape (draws,)."""
    n = len(values)
    step = max(1, _CHUNK // n)
    parts = [values[rng.integers(0, n, (min(step, draws - done), n))].mean(axis=1) for done in range(0, draws, step)]
    return np.concatenate([*parts, np.zeros(0)])


def mean_interval(values: Sequence[float], draws: int = DRAWS, seed: int = 0) -> list[float] | None:
    """The 95% interval of the mean of independent values, such as one of each prompt; None of fewer than FEWEST_CLUSTERS, or of no draws.

    >>> mean_interval([1.0] * 6), mean_interval([1.0, 2.0])
    ([1.0, 1.0], None)
    """
    if len(values) < FEWEST_CLUSTERS or not draws:
        return None
    array = np.asarray(values, dtype=np.float64)
    return interval(mean_draws(array, draws, np.random.default_rng(seed)), float(array.mean()), len(array))


def cluster_counts(clusters: int, draws: int, seed: int, columns: int = 1) -> Iterator[Floats]:
    """How often each cluster is in a sample of as many clusters, drawn with replacement: chunks of shape (some draws, clusters).

    columns: numbers that the caller keeps for each draw, which bounds a chunk as well.
    """
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // max(clusters, columns, 1))
    for done in range(0, draws, step):
        some = min(step, draws - done)
        drawn = rng.integers(0, clusters, (some, clusters)) + clusters * np.arange(some)[:, None]
        yield np.bincount(drawn.ravel(), minlength=some * clusters).reshape(some, clusters).astype(np.float64)


def part_draws(parts: Mapping[str, Parts], clusters: np.ndarray, draws: int, seed: int) -> dict[str, Floats]:
    """Each measure of samples of the clusters, drawn with replacement, the same samples for all; shape (draws,), NaN where it has no pair.

    clusters: the cluster of each pair, from 0, shape (pairs,). Of fewer than FEWEST_CLUSTERS there are no draws.
    """
    count = int(clusters.max(initial=-1)) + 1
    if count < FEWEST_CLUSTERS or not draws:
        return {name: np.zeros(0) for name in parts}
    columns: list[np.ndarray] = []
    places: dict[str, tuple[int, int]] = {}
    for name, one in parts.items():
        bins = np.zeros(len(clusters), dtype=np.int64) if one.bin is None else one.bin
        size = int(bins.max(initial=0)) + 1
        places[name] = (sum(column.shape[1] for column in columns), size)
        columns.append(np.bincount(clusters * size + bins, one.value, minlength=count * size).reshape(count, size))
        columns.append(np.bincount(clusters, one.weight, minlength=count)[:, None])
    sums = np.concatenate(columns, axis=1)
    found: dict[str, list[Floats]] = {name: [] for name in parts}
    for counts in cluster_counts(count, draws, seed, sums.shape[1]):
        drawn = counts @ sums
        for name, (start, size) in places.items():
            value = drawn[:, start : start + size]
            total = value.sum(axis=1) if parts[name].bin is None else np.abs(value).sum(axis=1)
            with np.errstate(divide="ignore", invalid="ignore"):
                found[name].append(total / drawn[:, start + size])
    return {name: np.concatenate(chunks) for name, chunks in found.items()}


def interval(
    drawn: Floats, value: float | None, clusters: float, centred: bool = False, least: float = -np.inf, most: float = np.inf
) -> list[float] | None:
    """The middle 95% of the draws that there are, widened as Student's t is for so many clusters; None without any, without a value,
    or of fewer clusters than FEWEST_CLUSTERS.

    Samples of C clusters vary by √((C − 1)/C) too little, and few clusters more than a normal distribution says (Hesterberg 2015).
    centred: the draws are moved so that their mean is the value. A calibration error of a sample is above that of what it is drawn from, by
    what few pairs a bin make of noise; the interval is then of the error as measured on so many pairs. least, most: no bound lies
    below, none above.
    """
    drawn = drawn[np.isfinite(drawn)]
    if value is None or not len(drawn) or clusters < FEWEST_CLUSTERS:
        return None
    middle = float(drawn.mean())
    wider = np.sqrt(clusters / (clusters - 1)) * student(clusters - 1) / NORMAL
    low, high = np.quantile((drawn - middle) * wider, LEVELS) + (value if centred else middle)
    return [float(np.clip(bound, least, most)) for bound in (low, high)]


def share_interval(drawn: Floats, value: float | None, clusters: float) -> list[float] | None:
    """`interval` of a share. Where it is 0 or 1 all samples are alike and say nothing: then the exact bound of as many independent
    clusters, .025^(1/C) from the end (Clopper and Pearson 1934).

    >>> [round(bound, 3) for bound in share_interval(np.ones(9), 1.0, 20)]
    [0.832, 1.0]
    """
    found = interval(drawn, value, clusters)
    if found is None or value not in (0.0, 1.0):
        return None if found is None else [max(found[0], 0.0), min(found[1], max(1.0, value))]
    reach = 1.0 - 0.025 ** (1.0 / clusters)
    return [1.0 - reach, 1.0] if value else [0.0, reach]


def ratio_intervals(value: Floats, weight: Floats, shares: bool = True) -> list[list[float] | None]:
    """The 95% interval of Σ value/Σ weight of each column, clusters being what varies; None of fewer clusters with weight than
    FEWEST_CLUSTERS.

    value, weight: sums of each cluster, shape (clusters, columns). By the linearised variance of a ratio with Student's t (Cochran 1977,
    chapter 6): what `part_draws` comes to for many clusters, at the cost of one pass. shares: bounds lie in [0, 1], and where the ratio is
    0 or 1 all clusters are alike and `share_interval`'s exact bound stands.

    >>> ratio_intervals(np.array([[1.0], [2.0], [0.0], [1.0], [2.0]]), np.full((5, 1), 2.0))  # .6 ± t(4)·√(Σ(x − 1.2)²·5/4)/10
    [[0.08..., 1.0]]
    """
    clusters, total = (weight > 0).sum(axis=0), weight.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = value.sum(axis=0) / total
        squares = ((value - ratio * weight) ** 2).sum(axis=0)
        se = np.sqrt(squares * clusters / (clusters - 1)) / total
    found: list[list[float] | None] = []
    for one, error, count in zip(ratio.tolist(), se.tolist(), clusters.tolist()):
        if count < FEWEST_CLUSTERS:
            found.append(None)
        elif shares and one in (0.0, 1.0):
            found.append(share_interval(np.full(2, one), one, count))
        else:
            low, high = one - student(count - 1) * error, one + student(count - 1) * error
            found.append([max(low, 0.0), min(high, 1.0)] if shares else [low, high])
    return found
