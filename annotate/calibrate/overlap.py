"""Where graders and people overlap: each grader's margins, and what people said of the same pairs of completions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mmpo.annotate.agreement.columns import HUMAN
from mmpo.annotate.agreement.margins import DECIMALS, RaterMargins
from mmpo.annotate.calibrate.maps import MOST_LEVELS, HumanAnswers
from mmpo.annotate.calibrate.position import Position
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.margins import Floats

PEOPLE = "people"
LEAST_DEGREES = 4
"""Second opinions from which on people's own noise is known, as for margin_se."""


@dataclass(frozen=True)
class People:
    """What people say of the units of one aspect, arrays of shape (units,) over all units, empty answers where nobody graded.

    noise: variance of one person's margin about what people agree on, NaN where it has fewer than LEAST_DEGREES degrees of freedom; limit:
    people's widest margin, None where unbounded; raters: their names; who: in words, "people", or where not all are people these names.
    """

    answers: HumanAnswers
    noise: float
    degrees: int
    limit: float | None
    raters: list[str]
    who: str


@dataclass(frozen=True)
class Grader:
    """One grader's margins under one aspect, all of shape (pairs,) but features.

    features: (pairs, 1 + others): the margin, toward the completion of the smaller id, in the grader's units, its position bias taken off
    where enough pairs in both orders tell it; then, if `ordered`, the order: 1, −1 where only that order was asked; last the logarithm of
    the ratio of lengths. unit: the pair; position: what is known of the position bias, None of scores, people and juries.
    """

    name: str
    kind: str
    aspect: str
    unit: np.ndarray
    prompt: np.ndarray
    features: Floats
    ordered: bool
    position: Position | None = None
    margins: int = 1

    def take(self, which: np.ndarray) -> "Grader":
        """Some of the pairs."""
        return replace(self, unit=self.unit[which], prompt=self.prompt[which], features=self.features[which])


def people_of(margins: RaterMargins, columns: Sequence[int], aspect: int) -> People:
    """What these columns say of the pairs under one aspect. Raises UserError where they grade on several scales."""
    at = np.flatnonzero(np.isin(margins.column, columns) & (margins.aspect[margins.unit] == aspect))
    graded = sorted(set(margins.column[at].tolist()))
    who = in_words(margins, columns)
    limits = {column: float(margins.chosen.ranges[column, aspect]) for column in graded}
    if len({None if np.isnan(limit) else limit for limit in limits.values()}) > 1:
        said = ", ".join(f"{margins.chosen.columns[c].name} up to {limit:g}" for c, limit in limits.items())
        raise UserError(
            f"{who}'s margins under the aspect {margins.chosen.aspects[aspect]} are on several scales ({said}), and calibrated margins "
            "would have no unit; name raters of one scale with --to, or put scores on one footing before"
        )
    unit, value = margins.unit[at], np.round(margins.raw[at], DECIMALS)
    size = len(margins.prompt)
    n = np.bincount(unit, minlength=size).astype(np.float64)
    mean = np.bincount(unit, value, minlength=size) / np.maximum(n, 1)
    squares = float(((value - mean[unit]) ** 2).sum())
    degrees = int((n[n > 1] - 1).sum())
    values, level = _levels(value)
    levels = np.bincount(unit * len(values) + level, minlength=size * len(values)).reshape(size, len(values)).astype(np.float64)
    votes = np.bincount(unit, (value > 0) + 0.5 * (value == 0), minlength=size)
    limit = next((one for one in limits.values() if not np.isnan(one)), None)
    noise = squares / degrees if degrees >= LEAST_DEGREES else float("nan")
    names = [margins.chosen.columns[column].name for column in graded]
    return People(HumanAnswers(votes, n, mean, levels, values), noise, degrees, limit, names, who)


def in_words(margins: RaterMargins, columns: Sequence[int]) -> str:
    """Whose margins are the measure: "people", or where one of these is no person their names."""
    whose = [margins.chosen.columns[column] for column in columns]
    return PEOPLE if all(one.kind == HUMAN for one in whose) else " and ".join(one.name for one in whose)


def _levels(value: Floats) -> tuple[Floats, np.ndarray]:
    """People's margins as steps, symmetric about 0, and the step of each."""
    sizes, step = np.abs(value), np.zeros(len(value), dtype=np.int64)
    decided = sizes > 0
    cuts = np.unique(sizes[decided])
    if len(cuts) > MOST_LEVELS:
        cuts = np.unique(np.quantile(sizes[decided], np.linspace(0, 1, MOST_LEVELS + 1)[1:-1], method="higher"))
    kept, rank = np.unique(np.searchsorted(cuts, sizes[decided], side="right"), return_inverse=True)
    means = np.bincount(rank, sizes[decided], minlength=len(kept)) / np.maximum(np.bincount(rank, minlength=len(kept)), 1)
    step[decided] = np.where(value[decided] > 0, 1 + rank, -1 - rank)
    return np.concatenate([-means[::-1], [0.0], means]), step + len(kept)


def grader_of(margins: RaterMargins, column: int, aspect: int) -> Grader | None:
    """The margins of a column under one aspect; None where it has none.

    Where it was asked about a pair in both orders its position bias cancels in the mean of the two; where in one order only, and is no
    person, the other pairs and people's answers have to tell it.
    """
    who = margins.chosen.columns[column]
    mine = np.arange(len(margins.unit))[margins.of(column)]
    mine = mine[margins.aspect[margins.unit[mine]] == aspect]
    if not len(mine):
        return None
    unit, raw = margins.unit[mine], margins.raw[mine]
    order, position = np.zeros(len(mine)), None
    if who.evidence == "comparisons" and who.kind != HUMAN:
        order, halves = _orders(margins, column, unit)
        position = Position.of(halves, raw)
        raw = raw - position.taken * order
    ordered = bool(order.any())
    # The bias is a mean: what it leaves of equal gaps is a tie again once rounded.
    features = [np.round(raw, DECIMALS), *([order] if ordered else []), margins.log_length[unit]]
    return Grader(
        who.name,
        who.kind,
        margins.chosen.aspects[aspect],
        unit,
        margins.prompt[unit],
        np.stack(features, axis=1),
        ordered,
        position,
    )


def _orders(margins: RaterMargins, column: int, unit: np.ndarray) -> tuple[Floats, Floats]:
    """In which order each unit was asked, 0 where in both, and of each of the latter half the difference of its two gaps."""
    grades = margins.raw_grades["comparisons"]
    mine = grades.take((grades.column == column) & np.isin(grades.unit, unit))
    place = np.searchsorted(unit, mine.unit)
    sums, counts = (
        np.stack([np.bincount(place, weight * (mine.first == first), minlength=len(unit)) for first in (True, False)])
        for weight in (mine.value, np.ones(len(mine.value)))
    )
    both = (counts > 0).all(axis=0)
    order = np.where(both, 0.0, np.where(counts[0] > 0, 1.0, -1.0))
    means = sums / np.maximum(counts, 1)
    return order, ((means[0] - means[1]) / 2)[both]
