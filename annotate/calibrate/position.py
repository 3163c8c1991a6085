"""The position bias of a grader that was asked about pairs in one order: from the pairs that it was asked about in both, and from people.

Where order and quality can't be told apart, since what was shown first is the better one in most pairs, people tell nothing of it.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from mmpo.annotate.calibrate.maps import Fit, FittedMap, HumanAnswers, logistic_weights, prior_curvature
from mmpo.pipeline.margins import Floats, sigmoid
from mmpo.pipeline.metrics import NORMAL, student

if TYPE_CHECKING:
    from mmpo.annotate.calibrate.overlap import Grader

ENOUGH = 10
"""Pairs asked about in both orders from which on their mean bias comes off all margins before any map is fitted."""
UNEVEN = 0.1
"""How far from ½ the share of pairs in which people prefer what was shown first must be, with 95% certainty that it is not ½, for order
and quality to be one."""


@dataclass(frozen=True)
class Position:
    """What is known of a grader's position bias, in its units, toward what is shown first.

    pairs: asked about in both orders; mean: their mean bias, NaN of none; error: its standard error, NaN of fewer than two; rest: the
    standard error with which it holds for other pairs, of few pairs widened, infinite of none; taken: what has come off the margins of
    pairs asked about in one order; first: the share of these pairs in which people prefer what was shown first, NaN: not counted; mixed:
    whether it is so far from ½ that people can't tell the bias.
    """

    pairs: int = 0
    mean: float = float("nan")
    error: float = float("nan")
    rest: float = float("inf")
    taken: float = 0.0
    first: float = float("nan")
    mixed: bool = False

    @classmethod
    def of(cls, halves: Floats, raw: Floats) -> "Position":
        """halves: half the difference of the two gaps of each pair asked about in both orders; raw: the grader's margins.

        A few pairs may agree by chance, on a scale of few steps often: the mean square of the margins counts as one pair's difference more.
        """
        pairs = len(halves)
        if not pairs:
            return cls()
        mean, squares = float(halves.mean()), float(((halves - halves.mean()) ** 2).sum())
        rest = float(np.sqrt(squares + np.mean(raw**2))) / pairs * student(pairs) / NORMAL
        error = float(np.sqrt(squares / (pairs - 1) / pairs)) if pairs > 1 else float("nan")
        return cls(pairs, mean, error, rest, mean if pairs >= ENOUGH else 0.0)

    @property
    def settled(self) -> bool:
        """Whether enough pairs were asked about in both orders for their mean to come off the others."""
        return self.pairs >= ENOUGH

    def pooled(self, told: float, error: float) -> tuple[float, float]:
        """The bias still to come off and its standard error, with what people tell of it; each counts by its precision."""
        if not self.pairs:
            return told, error
        own, theirs = self.rest**-2, error**-2
        return (own * (self.mean - self.taken) + theirs * told) / (own + theirs), float((own + theirs) ** -0.5)


def told_by_people(found: FittedMap, features: Floats, answers: HumanAnswers, weight: Floats) -> tuple[float, float]:
    """The bias that a map found from people's answers, and the standard error of the one that their votes alone tell. features: the margin,
    the order, others.

    The error is the larger of what the likelihood's curvature and what the scatter over pairs makes of it: the votes on one pair are no
    independent ones.
    """
    scale = np.sqrt((weight[:, None] * features**2).sum(axis=0) / max(float(weight.sum()), 1e-300))
    x = features / np.where(scale > 0, scale, 1.0)
    w = logistic_weights(x, 1, answers, weight)
    if not w[0] > 0 or not scale[1] > 0 or not found.weights[0] > 0:
        return 0.0, float("inf")
    p, voters = sigmoid(x @ w), weight * answers.voters
    inverse = np.linalg.inv((x.T * (voters * p * (1 - p))) @ x + np.diag(prior_curvature(len(w), 1)))
    off = x * (weight * (answers.votes - answers.voters * p))[:, None]
    slope = np.zeros(len(w))
    slope[:2] = w[1] / w[0] ** 2, -1 / w[0]
    slope = inverse @ slope
    unit = scale[0] / scale[1]
    curvature = float(slope @ np.linalg.solve(inverse, slope))
    return float(-found.weights[1] / found.weights[0]), float(np.sqrt(max(curvature, float(((off @ slope) ** 2).sum()))) * unit)


def fit_with_position(
    fit: Fit, features: Floats, margins: int, answers: HumanAnswers, weight: Floats, position: Position | None
) -> FittedMap:
    """A map of features of which the second one is the order. position: None, or what is known of the bias without people: pairs asked
    about in both orders and people's answers then tell it together."""
    found = fit(features, margins, answers, weight)
    if position is None or not position.pairs:
        return found
    bias, _ = position.pooled(*told_by_people(found, features, answers, weight))
    moved = np.delete(features, 1, axis=1)
    moved[:, 0] -= bias * features[:, 1]
    found = fit(moved, margins, answers, weight)
    return replace(found, weights=np.insert(found.weights, 1, -bias * found.weights[0]))


def identified(grader: "Grader", answers: HumanAnswers) -> "Grader":
    """The grader with its order among the features only where people's answers can tell a position bias from quality."""
    if not grader.ordered or grader.position is None:
        return grader
    order, votes, voters = grader.features[:, 1], answers.votes[grader.unit], answers.voters[grader.unit]
    used = (order != 0) & (voters > 0)
    n = int(used.sum())
    if not n:
        return _unordered(grader, grader.position)
    share = np.where(order[used] > 0, votes[used], voters[used] - votes[used]) / voters[used]
    first = float(share.mean())
    # Shares of one pair each lie about ½ where nothing is known; all alike, they would make an error of 0.
    error = float(np.sqrt((np.sum((share - first) ** 2) + 0.25) / n / n))
    mixed = abs(first - 0.5) > max(UNEVEN, student(max(n - 1, 1)) * error)
    position = replace(grader.position, first=first, mixed=mixed)
    return _unordered(grader, position) if mixed else replace(grader, position=position)


def _unordered(grader: "Grader", position: Position) -> "Grader":
    return replace(grader, ordered=False, position=position, features=np.delete(grader.features, 1, axis=1))
