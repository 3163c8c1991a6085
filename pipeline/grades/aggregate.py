"""From a batch of FEEDBACK to flat grades: repeats averaged, aspects merged; and then raters. Ratings and comparisons alike.

An *item* is what is graded: a completion, or an unordered pair of completions. Everything is grouped by sorting, so it costs the same
for one rater and for a thousand.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from mmpo.pipeline.arrow import codes, flat, offsets_of, parents, to_numpy
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.grades.rounding import Step, coarsest
from mmpo.pipeline.grades.statistics import COLUMNS


@dataclass(frozen=True)
class Grades:
    """Flat grades, all arrays of shape (grades,). value: score or gap; variance: the grade's own, NaN where unknown.

    shown: of a comparison 1 where the item's first half was shown first, else 0 (None: there is no order). coefficient: how often the
    rater's bias is in the value (None: once): of a comparison 1 or -1 by the order shown, 0 where both were. weight: what the grade counts
    for when raters merge (None: all the same). step: what values are rounded to where they are compared.
    """

    prompt: np.ndarray
    item: np.ndarray
    rater: np.ndarray
    aspect: np.ndarray
    kind: np.ndarray
    value: np.ndarray
    variance: np.ndarray
    shown: np.ndarray | None = None
    coefficient: np.ndarray | None = None
    weight: np.ndarray | None = None
    step: Step = 0.0

    def take(self, index: np.ndarray) -> "Grades":
        """The grades at these positions (or where a boolean mask holds)."""
        columns = (getattr(self, name) for name in self.__dataclass_fields__)
        return Grades(*(column[index] if isinstance(column, np.ndarray) else column for column in columns))

    def mean_of_runs(self, starts: np.ndarray, weights: np.ndarray | None = None) -> "Grades":
        """One grade per run of grades: the mean of its values (or the weighted sum), its variance likewise; a coefficient's mean."""
        if not len(starts):
            return self.take(np.zeros(0, dtype=np.int64))
        counts, step = run_sizes(starts, len(self.value)), coarsest(self.step, starts)
        if weights is None:
            value, variance = run_means(self.value, starts), run_means(self.variance, starts) / counts
        else:
            value, variance = (np.add.reduceat(column, starts) for column in (self.value * weights, self.variance * weights**2))
        merged = self.take(starts)
        coefficient = None if self.coefficient is None else run_means(self.coefficient, starts)
        return replace(merged, value=value, variance=variance, coefficient=coefficient, step=step)


@dataclass(frozen=True)
class FlatGrades:
    """The grades of a batch and the names that their codes stand for. first, second: of comparisons the completions of each item."""

    grades: Grades
    raters: list[str]
    kinds: list[str]
    aspects: list[str]
    first: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    second: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


def flatten(table: pa.Table, evidence: str, steps: Mapping[tuple[str, str], float] | None = None) -> FlatGrades:
    """The grades of a batch. Items are positions among the batch's completions, or compared pairs first < second.

    steps: what values of each rater and aspect are rounded to where they are compared; without they are compared as they are.
    """
    column = flat(table[evidence])
    rows, prompt = column.flatten(), parents(offsets_of(column))
    (rater, raters), (aspect, aspects), (kind, kinds) = (codes(rows.field(name)) for name in ("rater", "aspect", "kind"))
    step = _steps(steps or {}, raters, aspects, rater, aspect)
    value, variance = to_numpy(rows.field(COLUMNS[evidence][0])), to_numpy(rows.field("spread")) ** 2
    base = offsets_of(flat(table["completions"]))[prompt]

    def place(name: str) -> np.ndarray:
        return base + np.asarray(rows.field(name)).astype(np.int64)

    if evidence == "ratings":
        grades = Grades(prompt, place("completion"), rater, aspect, kind, value, variance, step=step)
        return FlatGrades(grades, raters, kinds, aspects)
    first, second = place("first"), place("second")
    size = int(max(first.max(initial=0), second.max(initial=0))) + 1
    pairs, item = np.unique(np.minimum(first, second) * size + np.maximum(first, second), return_inverse=True)
    shown = (first < second).astype(np.int64)
    value = np.where(shown == 1, value, -value)
    grades = Grades(prompt, item, rater, aspect, kind, value, variance, shown, step=step)
    return FlatGrades(grades, raters, kinds, aspects, *np.divmod(pairs, size))


def _steps(
    steps: Mapping[tuple[str, str], float], raters: Sequence[str], aspects: Sequence[str], rater: np.ndarray, aspect: np.ndarray
) -> Step:
    """The step of each grade; one number where it is the same for all, as it nearly always is."""
    table = np.array([[steps.get((name, one), 0.0) for one in aspects] for name in raters])
    return float(table.flat[0]) if table.size and (table == table.flat[0]).all() else table[rater, aspect] if table.size else 0.0


def group_starts(*keys: np.ndarray) -> np.ndarray:
    """First positions of runs of equal keys in arrays sorted by them."""
    if not len(keys[0]):
        return np.zeros(0, dtype=np.int64)
    new = np.ones(len(keys[0]), dtype=bool)
    new[1:] = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
    return np.flatnonzero(new)


def run_sizes(starts: np.ndarray, total: int) -> np.ndarray:
    """How long the runs are that start there, of so many values."""
    return np.diff(np.append(starts, total))


def runs(*sorted_keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where runs of equal keys start in arrays sorted by them, and how long they are."""
    starts = group_starts(*sorted_keys)
    return starts, run_sizes(starts, len(sorted_keys[0]))


def places(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Each value's place in its run, from 0."""
    return np.arange(int(sizes.sum())) - np.repeat(starts, sizes)


def run_means(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The plain mean of each run: the one that builds, ranks and agreement share."""
    return np.add.reduceat(values, starts) / run_sizes(starts, len(values))


def merge_repeats(grades: Grades) -> Grades:
    """A rater's repeated grades of one item and aspect averaged, in each order shown by itself; sorted by item, rater, aspect, order.

    So an order that was asked more often does not tilt what both make.
    """
    keys = [grades.item, grades.rater, grades.aspect, *([] if grades.shown is None else [grades.shown])]
    order = np.lexsort((grades.value, *reversed(keys)))
    return grades.take(order).mean_of_runs(group_starts(*(key[order] for key in keys)))


def parse_score(text: str, known: Sequence[str]) -> dict[str, float] | str:
    """`--score`: "mean", or aspect weights: {"overall": 1.0} for one aspect's name, {"a": 0.65, ...} for "a=0.65,b=0.8".

    Raises UserError where it names an aspect that no grade has, or a weight that is no number.
    """
    if text in ASPECT_MERGERS:
        return text
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = part.partition("=")
        name = name.strip()
        if name not in known:
            raise UserError(
                f"--score {text!r}: no grade has the aspect {name!r}. Aspects present: {', '.join(known)}; "
                f"or {', '.join(ASPECT_MERGERS)}"
            )
        try:
            weights[name] = float(weight) if weight else 1.0
        except ValueError as error:
            raise UserError(f"--score {text!r}: {weight!r} is no number; write aspect=weight, e.g. {name}=0.5") from error
    return weights


def averaged_aspects(aspects: Sequence[str]) -> list[str]:
    """The aspects that `--score mean` averages: all but `overall`, which is a judgement of its own; `overall` where alone.

    aspects: those of all grades of the build, since what a part of them has depends on how they were cut.
    """
    return [aspect for aspect in aspects if aspect != "overall"] or list(aspects)


def merge_aspects(
    grades: Grades, score: dict[str, float] | str, aspects: Sequence[str], averaged: Sequence[str]
) -> tuple[Grades, dict[str, int]]:
    """One value per item and rater, and how many grades had no part in it, by reason.

    grades: sorted by item, rater, aspect, no repeats; `aspect` indexes `aspects`. score: weights, which need all of their aspects, or a
    name of ASPECT_MERGERS, which merges those of `averaged`.
    """
    wanted = np.isin(aspects, list(score) if isinstance(score, dict) else averaged)
    chosen = grades.take(wanted[grades.aspect]) if len(grades.value) else grades
    used = _complete(chosen, len(score)) if isinstance(score, dict) else ASPECT_MERGERS[score](chosen)
    kept = chosen.take(used)
    weights = np.array([score.get(name, np.nan) for name in aspects])[kept.aspect] if isinstance(score, dict) and aspects else None
    dropped = {
        "aspect_not_chosen": len(grades.value) - len(chosen.value),
        "missing_aspect" if isinstance(score, dict) else "aspect_not_common": len(chosen.value) - len(kept.value),
    }
    return kept.mean_of_runs(group_starts(kept.item, kept.rater), weights), {reason: n for reason, n in dropped.items() if n}


def _complete(grades: Grades, aspects: int) -> np.ndarray:
    """Whether each grade's rater gave all of the aspects to its item."""
    _, counts = runs(grades.item, grades.rater)
    return np.repeat(counts == aspects, counts)


def _common_aspects(grades: Grades) -> np.ndarray:
    """Whether each grade's aspect was given by its rater to every item of the prompt that the rater graded."""
    _, run = np.unique(_pairs_of(grades.prompt, grades.rater), return_inverse=True)
    items = np.bincount(run[group_starts(grades.item, grades.rater)], minlength=1)[run]
    _, given = np.unique(_pairs_of(run, grades.aspect), return_inverse=True)
    return np.bincount(given, minlength=1)[given] == items


def _pairs_of(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """One number for each pair of numbers ≥ 0."""
    return first * (int(second.max(initial=0)) + 1) + second


ASPECT_MERGERS: dict[str, Callable[[Grades], np.ndarray]] = {"mean": _common_aspects}
"""What `--score` may be beside aspects and weights: the name, and which of the aspects' grades are averaged."""


def merge_raters(grades: Grades, how: str) -> tuple[np.ndarray, np.ndarray, Step]:
    """Items that have a value, that value, as RATER_MERGERS says, and what it is to be rounded to where it is compared.

    grades: sorted by item, one per rater.
    """
    starts = group_starts(grades.item)
    return grades.item[starts], RATER_MERGERS[how].merge(grades, starts), coarsest(grades.step, starts)


def _mean(grades: Grades, starts: np.ndarray) -> np.ndarray:
    """The mean of each run, weighted where grades have weights."""
    if grades.weight is None:
        return run_means(grades.value, starts)
    return np.add.reduceat(grades.value * grades.weight, starts) / np.add.reduceat(grades.weight, starts)


def _median(grades: Grades, starts: np.ndarray) -> np.ndarray:
    counts = run_sizes(starts, len(grades.value))
    value = grades.value[np.lexsort((grades.value, grades.item))]
    return (value[starts + (counts - 1) // 2] + value[starts + counts // 2]) / 2


class RaterMerger(NamedTuple):
    """merge: (grades sorted by item, first position of each item) → one value per item; effects: whether effects are fitted before."""

    summary: str
    merge: Callable[[Grades, np.ndarray], np.ndarray]
    effects: bool = False


RATER_MERGERS: dict[str, RaterMerger] = {
    "mean": RaterMerger("the mean", _mean),
    "median": RaterMerger("the median", _median),
    "rater-effects": RaterMerger("the mean, raters' biases and scales taken out, weighted by precision", _mean, effects=True),
}
"""What `--raters` may be. Adding one: a function and a line here."""
