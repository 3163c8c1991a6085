"""How much of the margins the features explain on prompts that they were not fitted on, what of that is length, and whether a margin
says more than its sign.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmpo.pipeline.metrics import NORMAL
from mmpo.train.advise.evidence import Evidence
from mmpo.train.advise.intervals import widened
from mmpo.train.advise.measure import Fold, Split

DRAWS = 1000
LEAST_LEAD = 0.0005
"""A share of the variance that is 0 in points with one decimal, as it is printed."""
_DECAYS = np.geomspace(1e-6, 10, 15)


def margin_sums(found: Evidence, values: Sequence[np.ndarray], splits: Sequence[Split], groups: int) -> np.ndarray:
    """Squares of signed margins of test pairs by group: left unexplained, and all; and the same on validation, shape (4, groups).

    Ridge regression of m on features(chosen) − features(rejected), without a constant, so that swapping a pair changes nothing and
    the levels of prompts do not count; its decay is chosen on the validation prompts. values: the features on each split.
    """
    sums = np.zeros((4, groups))
    group, margin = found.pair_group, found.margin
    for features, split in zip(values, splits, strict=True):
        x = (features[found.chosen] - features[found.rejected]).astype(np.float64)
        train, choose, judge = (mask[group] for mask in (split.train, split.validation, split.test))
        moments, axes = np.linalg.eigh(x[train].T @ x[train] / max(train.sum(), 1))
        right = axes.T @ (x[train].T @ margin[train]) / max(train.sum(), 1)
        weights = axes @ (right[:, None] / (np.maximum(moments, 0)[:, None] + _DECAYS))
        tried = ((x[choose] @ weights - margin[choose][:, None]) ** 2).sum(axis=0)
        best = weights[:, int(np.argmin(tried))]
        for at, mask in ((0, judge), (2, choose)):
            off = (margin[mask] - x[mask] @ best) ** 2
            sums[at] += np.bincount(group[mask], off, groups)
            sums[at + 1] += np.bincount(group[mask], margin[mask] ** 2, groups)
    return sums


def r2(
    sums: np.ndarray, other: np.ndarray | None = None, seed: int = 0, graders: np.ndarray | None = None, tried: int = 1
) -> list[float]:
    """[value, low, high] of the explained share of test margins, or of its difference to another's; groups are drawn. tried: how many such
    intervals shall hold together, 95% of the time. Margins that differ by their unit alone differ by 0, not by rounding.

    Below 0 where the margins are foretold worse than by saying 0 of each pair. graders: a number for each group, (groups,); then it is the
    mean of the shares of each, weighted by their groups: without it graders on a larger scale would speak for all.
    """
    weights = np.random.default_rng([seed, 11]).standard_exponential((DRAWS, sums.shape[1]))
    parts = [np.arange(sums.shape[1])] if graders is None else [np.flatnonzero(graders == one) for one in np.unique(graders)]

    def of(given: np.ndarray) -> tuple[float, np.ndarray]:
        value, drawn, size = 0.0, np.zeros(DRAWS), 0
        for part in parts:
            mine = given[:, part]
            if mine[1].sum() > 0:
                many, count = weights[:, part] @ mine.T, int((mine[1] > 0).sum())
                value, drawn, size = (
                    value + count * (1 - mine[0].sum() / mine[1].sum()),
                    drawn + count * (1 - many[:, 0] / many[:, 1]),
                    size + count,
                )
        return value / max(size, 1), drawn / max(size, 1)

    value, drawn = of(sums[:2])
    groups = int((sums[1] > 0).sum())
    if other is not None:
        less, less_drawn = of(other[:2])
        value, drawn = value - less, drawn - less_drawn
    return [float(round(v, 9)) + 0.0 for v in (value, *_ends(value, drawn, groups, 0.025 / tried))]


def _ends(value: float, drawn: np.ndarray, groups: int, tail: float = 0.025) -> list[float]:
    """Low and high of what was drawn with random weights of groups, as far off the value as of so few it should be."""
    return [value + (float(end) - value) * widened(groups) / NORMAL for end in np.quantile(drawn, (tail, 1 - tail))]


def beyond_sign(found: Evidence, folds: Sequence[Fold], seed: int = 0) -> list[float]:
    """[value, low, high] of the rank correlation, over untied test pairs, of the margin with the logit of Bradley–Terry, which never saw
    a margin: 0 where the size of a margin says nothing that its sign does not.
    """
    from scipy.stats import rankdata

    rows = np.concatenate([fold.rows for fold in folds])
    logits, margin = np.concatenate([fold.logits for fold in folds]), found.margin[rows]
    a, b = (rankdata(v) - (len(v) + 1) / 2 for v in (logits, margin))
    _, group = np.unique(found.pair_group[rows], return_inverse=True)
    sums = np.stack([np.bincount(group, v) for v in (np.ones_like(a), a, b, a * a, b * b, a * b)])
    weights = np.random.default_rng([seed, 13]).standard_exponential((DRAWS, sums.shape[1]))

    def of(total: np.ndarray) -> np.ndarray:
        n, x, y, xx, yy, xy = total
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.nan_to_num((xy - x * y / n) / np.sqrt((xx - x * x / n) * (yy - y * y / n)))

    value = float(of(sums.sum(axis=1)))
    low, high = _ends(value, of(sums @ weights.T), sums.shape[1])
    return [value, max(low, -1.0), min(high, 1.0)]


def longest_wins(found: Evidence) -> float:
    """Share of untied pairs whose chosen completion is the longer one; equal lengths count ½."""
    size = lengths(found)
    gap = size[found.chosen[found.decided]] - size[found.rejected[found.decided]]
    return float(np.where(gap == 0, 0.5, gap > 0).mean())


def lengths(found: Evidence) -> np.ndarray:
    """Of every completion the logarithm of 1 + its characters, (completions,)."""
    return np.log1p(np.array([len(text) for text in found.texts], dtype=np.float64))
