"""How severe each rater is: its scores beside those that others gave the same completions. Ratings only; a margin has no level."""

from typing import Any

import numpy as np

from mmpo.annotate.agreement.margins import Answers, Margins
from mmpo.pipeline.logistic import Floats

__all__ = ["severity_rows"]


def severity_rows(margins: Margins) -> list[dict[str, Any]]:
    """A row a rater with ratings on a scale that another rater shares.

    items: completions and aspects that it rated; mean: its mean score; shared: those that others on the same scale rated too;
    severity: the others' mean score less its own, averaged over these, in score points, above 0: lower scores than others give;
    se: the standard error of it, items taken as independent. None where nothing is shared. Repeats are averaged first.
    """
    found = margins.answers.get("ratings")
    if found is None:
        return []
    column, item, value = _averaged(found)
    aspects = len(margins.chosen.aspects)
    ranges = margins.chosen.ranges[column, item % aspects]
    # Scores are compared with those of the same scale only; unbounded ones (NaN) are taken for one scale.
    widths, scale = np.unique(np.where(np.isnan(ranges), -1.0, ranges), return_inverse=True)
    place = item * len(widths) + scale.reshape(-1)
    _, place = np.unique(place, return_inverse=True)
    count = np.bincount(place)[place]
    others = (np.bincount(place, value)[place] - value) / np.maximum(count - 1, 1)
    return [
        _row(margins, one, value[column == one], (others - value)[(column == one) & (count > 1)])
        for one in margins.chosen.shown
        if (column == one).any()
    ]


def _averaged(answers: Answers) -> tuple[np.ndarray, np.ndarray, Floats]:
    """Column, item and mean score of each column and item."""
    keys, inverse = np.unique(np.stack([answers.column, answers.item]), axis=1, return_inverse=True)
    inverse = inverse.reshape(-1)
    # Summed in the order of size, so that no digit depends on the order of rows.
    order = np.lexsort((answers.value, inverse))
    total = np.bincount(inverse[order], answers.value[order])
    return keys[0], keys[1], total / np.bincount(inverse)


def _row(margins: Margins, column: int, scores: Floats, gaps: Floats) -> dict[str, Any]:
    who, shared = margins.chosen.columns[column], len(gaps)
    gaps = np.sort(gaps)
    return {
        "name": who.name,
        "kind": who.kind,
        "items": len(scores),
        "mean": float(np.sort(scores).mean()),
        "shared": shared,
        "severity": float(gaps.mean()) if shared else None,
        "se": float(gaps.std(ddof=1) / np.sqrt(shared)) if shared > 1 else None,
    }
