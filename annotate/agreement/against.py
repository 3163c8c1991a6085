"""Raters against a reference rater, the mean of people (never of the rater itself) or one rater; judges' margins against votes."""

from typing import Any

import numpy as np

from mmpo.annotate.agreement.columns import HUMAN
from mmpo.annotate.agreement.margins import DECIMALS, RaterMargins
from mmpo.pipeline.margins import Floats, fit_gamma_to_votes, target_probability
from mmpo.pipeline.metrics import by_margin, cross_entropy, ece_vote


def shared(margins: RaterMargins, one: int, other: int) -> tuple[Floats, Floats, np.ndarray]:
    """The scaled margins of two columns on the units that both have, and those units, shape (units,) each."""
    a, b = margins.of(one), margins.of(other)
    units, left, right = np.intersect1d(margins.unit[a], margins.unit[b], assume_unique=True, return_indices=True)
    return margins.scaled[a][left], margins.scaled[b][right], units


def _of_columns(margins: RaterMargins, columns: list[int]) -> np.ndarray:
    """Where the margins of these columns are."""
    return np.flatnonzero(np.isin(margins.column, columns))


def against_reference(margins: RaterMargins, column: int) -> tuple[Floats, Floats, np.ndarray]:
    """A column's scaled margins, the reference rater's, and the units that both have; a column is no part of its own reference."""
    others = [other for other in margins.chosen.reference if other != column]
    at = _of_columns(margins, others)
    size = len(margins.prompt)
    n = np.bincount(margins.unit[at], minlength=size)
    mean = np.round(np.bincount(margins.unit[at], margins.scaled[at], minlength=size) / np.maximum(n, 1), DECIMALS)
    mine = margins.of(column)
    units = margins.unit[mine]
    both = n[units] > 0
    return margins.scaled[mine][both], mean[units[both]], units[both]


def choosing_row(margins: RaterMargins, column: int) -> dict[str, Any]:
    """How often a rater chooses what the reference rater does, beside always choosing the longer text, where neither calls a tie.

    decided: how many such units; accuracy; longest: the accuracy of the longer text (equal lengths count half); accuracy_longer and
    accuracy_shorter: the rater's accuracy where the reference rater's better text is the longer and the shorter one. None: there is
    no such unit.
    """
    mine, truth, units = against_reference(margins, column)
    length = np.sign(margins.log_length[units])
    decided = (mine != 0) & (truth != 0)
    right = (np.sign(mine) == np.sign(truth))[decided]
    side = (length * np.sign(truth))[decided]
    return {
        "decided": int(decided.sum()),
        "accuracy": float(right.mean()) if right.size else None,
        "longest": float(((side > 0) + 0.5 * (side == 0)).mean()) if right.size else None,
        "accuracy_longer": float(right[side > 0].mean()) if (side > 0).any() else None,
        "accuracy_shorter": float(right[side < 0].mean()) if (side < 0).any() else None,
    }


def votes(margins: RaterMargins) -> tuple[Floats, Floats]:
    """Of each unit, how many people prefer the completion of the smaller id (ties count half), and how many voted; shape
    (units,)."""
    people = [i for i, column in enumerate(margins.chosen.columns) if column.kind == HUMAN]
    at = _of_columns(margins, people)
    size = len(margins.prompt)
    unit, value = margins.unit[at], margins.scaled[at]
    preferring = np.bincount(unit, (value > 0) + 0.5 * (value == 0), minlength=size)
    return preferring.astype(np.float64), np.bincount(unit, minlength=size).astype(np.float64)


def calibration_row(margins: RaterMargins, column: int) -> dict[str, Any] | None:
    """A judge's margins as probabilities σ(γm) against people's pooled votes; None where they share no unit, or all margins are
    ties.

    gamma: the γ that fits best (`fit_gamma_to_votes`), in 1/score-point of this judge, on these same units: one number is fitted,
    so that ece_vote and cross_entropy (nats a unit, against the share of votes) are a little too good. coin: the cross-entropy of
    always saying ½. bins: by |margin|, ties first: low, high, units, predicted (mean σ(γ|m|)), observed (mean share of votes for
    the judge's choice).
    """
    preferring, voters = votes(margins)
    mine = margins.of(column)
    used = voters[margins.unit[mine]] > 0
    units = margins.unit[mine][used]
    # A rounded 0 is a tie here as everywhere.
    m = np.where(margins.scaled[mine][used] == 0, 0.0, margins.raw[mine][used])
    k, n = preferring[units], voters[units]
    if not (m != 0).any():
        return None
    gamma = fit_gamma_to_votes(m, k, n)
    z = np.where(m == 0, 0.0, np.clip(gamma * m, -1e6, 1e6) if np.isfinite(gamma) else np.sign(m) * 1e6)
    share = np.where(m >= 0, k, n - k) / n
    bins = [
        {
            **{name: row[name] for name in ("low", "high")},
            "units": row["pairs"],
            "predicted": row["mean_q"],
            "observed": row["mean_p"] if row["high"] > 0 else None,
        }
        for row in by_margin(np.abs(z), np.abs(m), share)
    ]
    return {
        "name": margins.chosen.columns[column].name,
        "units": len(units),
        "votes": int(n.sum()),
        "gamma": gamma,
        "ece_vote": ece_vote(target_probability(m, gamma), k, n),
        "cross_entropy": cross_entropy(z, k / n),
        "coin": float(np.log(2)),
        "bins": bins,
    }
