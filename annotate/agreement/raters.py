"""What each rater is like: ties, sizes, position bias, taste for length, repeats; and how severe its scores are beside those of
others.

Every function returns one row per rater, as dictionaries of numbers that JSON holds; None where the rater says nothing about it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmpo.annotate.agreement.margins import RaterMargins, RawGrades
from mmpo.annotate.agreement.statistics import rank_correlation
from mmpo.pipeline.grades import origin_of, places, run_means, runs
from mmpo.pipeline.margins import Floats
from mmpo.pipeline.metrics import ratio_intervals


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def rater_row(margins: RaterMargins, column: int) -> dict[str, Any]:
    """What one rater is like.

    units, ties (share of them), mean_margin (|margin| in the rater's own score points), mean_share (as a share of its scale's
    range, None where a scale is unbounded), spread (mean standard deviation that margins came with), position (mean lean toward the
    first shown), longer (share that prefers the longer text).
    """
    mine = margins.of(column)
    raw, scaled, spread = margins.raw[mine], margins.scaled[mine], margins.spread[mine]
    return {
        **margins.chosen.columns[column]._asdict(),
        "units": len(raw),
        "prompts": len(np.unique(margins.prompt[margins.unit[mine]])),
        "ties": _mean(scaled == 0),
        "mean_margin": _mean(np.abs(raw)),
        "mean_share": _mean(np.abs(scaled)) if margins.chosen.scale == "range" else None,
        "spread": _mean(spread[np.isfinite(spread)]),
        "position": position_row(margins, column)["toward_first"],
        "longer": longer_preferred(scaled, margins.log_length[margins.unit[mine]]),
    }


def longer_preferred(margin: Floats, log_length: Floats) -> float | None:
    """The share of units, ties and equal lengths left out, whose better text is the longer one; ½ is no taste for length."""
    side = np.sign(margin) * np.sign(log_length)
    return _mean(side[side != 0] > 0)


def length_row(margins: RaterMargins, column: int) -> dict[str, Any]:
    """longer (`longer_preferred`) of how many units, and the rank correlation of margins with log length ratios."""
    mine = margins.of(column)
    scaled, log_length = margins.scaled[mine], margins.log_length[margins.unit[mine]]
    return {
        "name": margins.chosen.columns[column].name,
        "kind": margins.chosen.columns[column].kind,
        "units": int(((scaled != 0) & (log_length != 0)).sum()),
        "longer": longer_preferred(scaled, log_length),
        "spearman_length": rank_correlation(scaled, log_length),
    }


def _raw_grades(margins: RaterMargins, column: int) -> RawGrades:
    """A column's grades."""
    found = margins.raw_grades[margins.chosen.columns[column].evidence]
    return found.take(found.column == column)


def position_row(margins: RaterMargins, column: int) -> dict[str, Any]:
    """The lean toward the completion shown first, in the rater's own score points, of a rater's comparisons; all None for ratings.

    orders "both": over the units that it saw in both orders, (gap AB + gap BA)/2 toward the first shown, repeats averaged: the
    content of the verdicts cancels out. flips: the share whose verdict changes with the order (the position-bias rate), to_first
    and to_second the shares that change toward the first or the second shown; a verdict that is a tie one way only is a change.
    orders "one": the mean gap toward the first shown, in which position and merit can't be told apart. se: the standard error,
    the `prompts` being what varies; None where all lean alike.
    """
    name = margins.chosen.columns[column].name
    nothing = dict.fromkeys(("orders", "units", "toward_first", "se", "prompts", "flips", "to_first", "to_second"))
    if margins.chosen.columns[column].evidence == "ratings":
        return {"name": name, **nothing}
    grades = _raw_grades(margins, column)
    order = np.lexsort((grades.value, grades.first, grades.unit))
    starts, _ = runs(grades.item[order])
    lean = run_means(np.where(grades.first, grades.value, -grades.value)[order], starts)
    unit = grades.unit[order][starts]
    firsts, orders = runs(unit)
    prompt = margins.prompt[unit[firsts]]
    if not (orders == 2).any():
        return {"name": name, **nothing, "orders": "one", "units": len(lean), **_clustered(lean, prompt)}
    one, other = lean[firsts[orders == 2]], lean[firsts[orders == 2] + 1]
    change = np.sign(one) + np.sign(other)
    return {
        "name": name,
        "orders": "both",
        "units": len(one),
        **_clustered((one + other) / 2, prompt[orders == 2]),
        "flips": _mean(change != 0),
        "to_first": _mean(change > 0),
        "to_second": _mean(change < 0),
    }


def _clustered(lean: Floats, prompt: np.ndarray) -> dict[str, float | None]:
    """The mean, its standard error with prompts as clusters, and how many there are. se: s/√n where each has one unit; None for a single
    prompt, and where all are alike, which tells nothing of how far the mean may be off."""
    # Not `position_biases` of mmpo.pipeline.grades: its totals, which parts of any size add up to, know nothing of prompts.
    mean = float(lean.mean())
    sums = np.bincount(np.unique(prompt, return_inverse=True)[1], lean - mean)
    clusters = len(sums)
    se = float(np.sqrt((sums**2).sum() * clusters / (clusters - 1)) / len(lean)) if clusters > 1 else None
    return {"toward_first": mean, "se": _spread(se, lean), "prompts": clusters}


def _spread(se: float | None, values: Floats) -> float | None:
    """A standard error, None where it is 0 but for rounding."""
    return se if se is not None and se > 1e-9 * np.abs(values).max() else None


def consistency_row(margins: RaterMargins, column: int) -> dict[str, Any] | None:
    """Repeats of the same question: the same completion, or the same pair in the same order, under the same aspect.

    items asked more than once, grades of them, mean_difference (of two of an item's grades, in the rater's own score points) and
    equal (the share of such twos that are the same) with equal_95, items taken as independent; each item counts once. None where
    nothing was asked twice.
    """
    grades = _raw_grades(margins, column)
    order = np.lexsort((grades.value, grades.item))
    value = grades.value[order]
    starts, sizes = runs(grades.item[order])
    again = np.repeat(sizes > 1, sizes)
    if not again.any():
        return None
    value, sizes = value[again], sizes[sizes > 1]
    starts = np.cumsum(sizes) - sizes
    item = np.repeat(np.arange(len(sizes)), sizes)
    twos = sizes * (sizes - 1) / 2
    # Of k sorted values, Σ over i < j of (x_j − x_i) = Σ (2i − k + 1)·x_i, i from 0.
    difference = (
        np.add.reduceat((2 * places(starts, sizes) - np.repeat(sizes, sizes) + 1) * (value - value[starts][item]), starts) / twos
    )
    equal, lengths = runs(item, value)
    same = np.bincount(item[equal], lengths * (lengths - 1) / 2) / twos
    return {
        "name": margins.chosen.columns[column].name,
        "items": len(sizes),
        "grades": len(value),
        "mean_difference": float(difference.mean()),
        "equal": float(same.mean()),
        "equal_95": ratio_intervals(same[:, None], np.ones((len(same), 1)))[0],
    }


def severity_rows(margins: RaterMargins) -> list[dict[str, Any]]:
    """One row per rater with ratings.

    items: completions and aspects that it rated; mean: its mean score; scale: theirs, "1..5", "unbounded" or "several"; shared: those that
    others on the very same scale rated too, since a 2 of 0..4 is a 3 of 1..5;
    severity: the others' mean score less its own, averaged over these, in score points, above 0: lower scores than others give;
    se: the standard error of it, items taken as independent, None where all are alike. None where nothing is shared. Repeats are averaged
    first.
    """
    found = margins.raw_grades.get("ratings")
    if found is None:
        return []
    column, item, value = _averaged(found)
    aspects = len(margins.chosen.aspects)
    low, width = (of[column, item % aspects] for of in (margins.chosen.lows, margins.chosen.ranges))
    # Scores are compared with those of the same scale only; unbounded ones (NaN) are taken for one scale.
    scales, scale = np.unique(np.nan_to_num(np.stack([low, width]), nan=-1.0), axis=1, return_inverse=True)
    scale = scale.reshape(-1)
    named = ["unbounded" if span < 0 else f"{lowest:g}..{lowest + span:g}" for lowest, span in scales.T.tolist()]
    place = item * scales.shape[1] + scale
    _, place = np.unique(place, return_inverse=True)
    origin = origin_of(low, low + width)
    count = np.bincount(place)[place]
    others = (np.bincount(place, value)[place] - value) / np.maximum(count - 1, 1)
    return [
        _row(
            margins,
            one,
            (value + origin)[column == one],
            (others - value)[(column == one) & (count > 1)],
            sorted({named[which] for which in scale[column == one].tolist()}),
        )
        for one in margins.chosen.shown
        if (column == one).any()
    ]


def _averaged(grades: RawGrades) -> tuple[np.ndarray, np.ndarray, Floats]:
    """Column, item and mean score of each column and item."""
    keys, inverse = np.unique(np.stack([grades.column, grades.item]), axis=1, return_inverse=True)
    inverse = inverse.reshape(-1)
    # Summed in the order of size, so that no digit depends on the order of rows.
    order = np.lexsort((grades.value, inverse))
    total = np.bincount(inverse[order], grades.value[order])
    return keys[0], keys[1], total / np.bincount(inverse)


def _row(margins: RaterMargins, column: int, scores: Floats, gaps: Floats, scales: Sequence[str]) -> dict[str, Any]:
    who, shared = margins.chosen.columns[column], len(gaps)
    gaps = np.sort(gaps)
    return {
        "name": who.name,
        "kind": who.kind,
        "items": len(scores),
        "mean": float(np.sort(scores).mean()),
        "scale": scales[0] if len(scales) == 1 else "several",
        "shared": shared,
        "severity": float(gaps.mean()) if shared else None,
        "se": _spread(float(gaps.std(ddof=1) / np.sqrt(shared)), gaps) if shared > 1 else None,
    }
