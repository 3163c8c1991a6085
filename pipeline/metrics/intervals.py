"""95% intervals by resampling rows, or clusters of rows such as the pairs of a prompt. numpy only; the same draws for the same seed."""

from collections.abc import Iterator

import numpy as np

from mmpo.pipeline.margins import Floats

DRAWS = 1000
LEVELS = (0.025, 0.975)
_CHUNK = 4_000_000
"""Numbers that are drawn at once."""


def mean_draws(values: Floats, draws: int, rng: np.random.Generator) -> Floats:
    """The mean of the values, shape (rows,), each time that as many of them are drawn with replacement; shape (draws,)."""
    n = len(values)
    step = max(1, _CHUNK // n)
    parts = [values[rng.integers(0, n, (min(step, draws - done), n))].mean(axis=1) for done in range(0, draws, step)]
    return np.concatenate([*parts, np.zeros(0)])


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


def bounds(drawn: Floats) -> list[float] | None:
    """The bounds of the middle 95% of the draws; None without any."""
    return np.quantile(drawn, LEVELS).tolist() if len(drawn) else None
