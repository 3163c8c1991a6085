"""What each rater is like, with no other rater to compare with: ties, sizes, position bias, taste for length, repeats.

Every function returns one row a rater, as dictionaries of numbers that JSON holds; None where the rater says nothing about it.
"""

from typing import Any

import numpy as np

from mmpo.annotate.agreement.margins import Answers, Margins
from mmpo.annotate.agreement.statistics import rank_correlation
from mmpo.pipeline.grades import group_starts
from mmpo.pipeline.logistic import Floats

__all__ = ["consistency_row", "length_row", "longer_preferred", "position_row", "rater_row"]


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def rater_row(margins: Margins, column: int) -> dict[str, Any]:
    """What one rater is like.

    units, ties (share of them), mean_margin (|margin| in the rater's own score points), mean_share (as a share of its scale's range, None
    where a scale is unbounded), spread (mean standard deviation that margins came with), position (mean lean toward the first shown),
    longer (share that prefers the longer text).
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


def length_row(margins: Margins, column: int) -> dict[str, Any]:
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


def _answers(margins: Margins, column: int) -> Answers:
    """A column's grades."""
    found = margins.answers[margins.chosen.columns[column].evidence]
    mine = found.column == column
    return Answers(found.column[mine], found.item[mine], found.unit[mine], found.value[mine], found.first[mine])


def _runs(sorted_keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where runs of equal keys start, and how long they are."""
    starts = group_starts(sorted_keys)
    return starts, np.diff(np.append(starts, len(sorted_keys)))


def position_row(margins: Margins, column: int) -> dict[str, Any]:
    """The lean toward the completion shown first, in the rater's own score points, of a rater's comparisons; all None for ratings.

    orders "both": over the units that it saw in both orders, (gap AB + gap BA)/2 toward the first shown, repeats averaged: the content of
    the verdicts cancels out. flips: the share whose verdict changes with the order (the position-bias rate), to_first and to_second the
    shares that change toward the first or the second shown; a verdict that is a tie one way only is a change. orders "one": the mean gap
    toward the first shown, in which position and merit can't be told apart. se: the standard error, prompts being what varies.
    """
    name = margins.chosen.columns[column].name
    nothing = dict.fromkeys(("orders", "units", "toward_first", "se", "flips", "to_first", "to_second"))
    if margins.chosen.columns[column].evidence == "ratings":
        return {"name": name, **nothing}
    answers = _answers(margins, column)
    order = np.lexsort((answers.value, answers.first, answers.unit))
    starts, sizes = _runs(answers.item[order])
    lean = np.add.reduceat(np.where(answers.first, answers.value, -answers.value)[order], starts) / sizes
    unit = answers.unit[order][starts]
    firsts, orders = _runs(unit)
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
    """The mean and its standard error with prompts as clusters: s/√n where each has one unit; None for a single prompt."""
    mean = float(lean.mean())
    sums = np.bincount(np.unique(prompt, return_inverse=True)[1], lean - mean)
    clusters = len(sums)
    se = float(np.sqrt((sums**2).sum() * clusters / (clusters - 1)) / len(lean)) if clusters > 1 else None
    return {"toward_first": mean, "se": se}


def consistency_row(margins: Margins, column: int) -> dict[str, Any] | None:
    """Repeats of the same question: the same completion, or the same pair in the same order, under the same aspect.

    items asked more than once, grades of them, mean_difference (of two of an item's grades, in the rater's own score points) and equal (the
    share of such twos that are the same); each item counts once. None where nothing was asked twice.
    """
    answers = _answers(margins, column)
    order = np.lexsort((answers.value, answers.item))
    value = answers.value[order]
    starts, sizes = _runs(answers.item[order])
    again = np.repeat(sizes > 1, sizes)
    if not again.any():
        return None
    value, sizes = value[again], sizes[sizes > 1]
    starts = np.cumsum(sizes) - sizes
    item = np.repeat(np.arange(len(sizes)), sizes)
    twos = sizes * (sizes - 1) / 2
    # Of k sorted values, Σ over i < j of (x_j − x_i) = Σ (2i − k + 1)·x_i, i from 0.
    place = np.arange(len(value)) - np.repeat(starts, sizes)
    difference = np.add.reduceat((2 * place - np.repeat(sizes, sizes) + 1) * (value - value[starts][item]), starts) / twos
    equal = group_starts(item, value)
    lengths = np.diff(np.append(equal, len(value)))
    same = np.bincount(item[equal], lengths * (lengths - 1) / 2) / twos
    return {
        "name": margins.chosen.columns[column].name,
        "items": len(sizes),
        "grades": len(value),
        "mean_difference": float(difference.mean()),
        "equal": float(same.mean()),
    }
