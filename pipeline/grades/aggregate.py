"""From grades to one value a rater and a completion: repeats averaged, aspects merged. Ratings and comparisons alike.

An *item* is what is graded: a completion, or an unordered pair of completions. Everything is grouped by sorting, so it costs the same
for one rater and for a thousand.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.grades.statistics import GradeGroup

__all__ = [
    "Grades",
    "average_orders",
    "check_scales",
    "group_starts",
    "merge_aspects",
    "merge_raters",
    "merge_repeats",
    "parse_score",
]


@dataclass(frozen=True)
class Grades:
    """Flat grades, all arrays of shape (grades,). value: score or gap; variance: the grade's own, NaN where unknown.

    coefficient: how often the rater's bias is in the value (None: once): of a comparison 1 or -1 by the order shown, 0 where both were.
    weight: what the grade counts for when raters merge (None: all the same).
    """

    prompt: np.ndarray
    item: np.ndarray
    rater: np.ndarray
    aspect: np.ndarray
    kind: np.ndarray
    value: np.ndarray
    variance: np.ndarray
    coefficient: np.ndarray | None = None
    weight: np.ndarray | None = None

    def take(self, index: np.ndarray) -> "Grades":
        """The grades at these positions (or where a boolean mask holds)."""
        columns = (getattr(self, name) for name in self.__dataclass_fields__)
        return Grades(*(None if column is None else column[index] for column in columns))

    def mean_of_runs(self, starts: np.ndarray, weights: np.ndarray | None = None) -> "Grades":
        """One grade a run of grades: the mean of its values (or the weighted sum), its variance likewise; a coefficient's mean."""
        if not len(starts):
            return self.take(np.zeros(0, dtype=np.int64))
        counts = np.diff(np.append(starts, len(self.value)))
        w = np.repeat(1 / counts, counts) if weights is None else weights
        value, variance = (np.add.reduceat(column, starts) for column in (self.value * w, self.variance * w * w))
        merged = self.take(starts)
        coefficient = None if self.coefficient is None else np.add.reduceat(self.coefficient, starts) / counts
        return replace(merged, value=value, variance=variance, coefficient=coefficient)


def parse_score(text: str, known: Sequence[str]) -> dict[str, float] | str:
    """`--score`: "mean", or aspect weights: {"overall": 1.0} for one aspect's name, {"a": 0.65, ...} for "a=0.65,b=0.8".

    Raises UserError where it names an aspect that no grade has, or a weight that is no number.
    """
    if text == "mean":
        return text
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = part.partition("=")
        name = name.strip()
        if name not in known:
            raise UserError(f"--score {text!r}: no grade has the aspect {name!r}. Aspects present: {', '.join(known)}; or mean")
        try:
            weights[name] = float(weight) if weight else 1.0
        except ValueError as error:
            raise UserError(f"--score {text!r}: {weight!r} is no number; write aspect=weight, e.g. {name}=0.5") from error
    return weights


def check_scales(score: dict[str, float] | str, groups: Sequence[GradeGroup], normalisation: str) -> None:
    """Refuse to average or subtract grades of different scales. Raises UserError listing them."""
    if normalisation in ("minmax", "zscore", "rank"):
        return
    used = [group for group in groups if group.aspect in (score if isinstance(score, dict) else mean_aspects(groups))]
    clusters: dict[str, dict[tuple[float | None, float | None], GradeGroup]] = {}
    for group in used:
        clusters.setdefault("" if score == "mean" else group.aspect, {}).setdefault((group.low, group.high), group)
    for scales in clusters.values():
        if len(scales) > 1:
            shown = [
                f"{_scale(low, high)} ({g.source}, rater {g.rater}, aspect {g.aspect})"
                for (low, high), g in list(scales.items())[:6]
            ]
            raise UserError(
                f"the grades mix {len(scales)} scales: {'; '.join(shown)}. Choose --normalise minmax, zscore or rank, or narrow "
                "them with --rater, --kind or --aspect"
            )


def _scale(low: float | None, high: float | None) -> str:
    return "..".join("unbounded" if bound is None else f"{bound:g}" for bound in (low, high))


def mean_aspects(groups: Sequence[GradeGroup]) -> list[str]:
    """The aspects that `--score mean` averages: all but `overall`, which is a judgement of its own; `overall` where alone."""
    aspects = sorted({group.aspect for group in groups})
    return [aspect for aspect in aspects if aspect != "overall"] or aspects


def group_starts(*keys: np.ndarray) -> np.ndarray:
    """First positions of runs of equal keys in arrays sorted by them."""
    if not len(keys[0]):
        return np.zeros(0, dtype=np.int64)
    new = np.ones(len(keys[0]), dtype=bool)
    new[1:] = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
    return np.flatnonzero(new)


def merge_repeats(grades: Grades) -> Grades:
    """A rater's repeated grades of one item and aspect averaged; sorted by item, rater and aspect."""
    grades = grades.take(np.lexsort((grades.value, grades.aspect, grades.rater, grades.item)))
    return grades.mean_of_runs(group_starts(grades.item, grades.rater, grades.aspect))


def average_orders(grades: Grades, shown: np.ndarray, machine: np.ndarray) -> tuple[Grades, np.ndarray, np.ndarray]:
    """A rater's repeated answers in one order averaged, so that an order asked more often does not tilt what both make.

    shown: the order, machine: any property of the rater, both of shape (grades,); they come back beside the grades, which are sorted by
    item, rater, aspect and order.
    """
    order = np.lexsort((grades.value, shown, grades.aspect, grades.rater, grades.item))
    grades, shown, machine = grades.take(order), shown[order], machine[order]
    starts = group_starts(grades.item, grades.rater, grades.aspect, shown)
    return grades.mean_of_runs(starts), shown[starts], machine[starts]


def merge_aspects(grades: Grades, score: dict[str, float] | str, aspects: Sequence[str]) -> tuple[Grades, dict[str, int]]:
    """One value an item and a rater, and how many grades had no part in it, by reason.

    grades: sorted by item, rater, aspect, no repeats; `aspect` indexes `aspects`.
    "mean" averages the aspects that the rater gave to every item of the prompt that the rater graded at all; weights need all of
    their aspects.
    """
    dropped: dict[str, int] = {}
    if isinstance(score, dict):
        weight = np.array([score.get(name, np.nan) for name in aspects] or [np.nan])[grades.aspect]
        wanted = np.isfinite(weight)
        dropped["aspect_not_chosen"] = int((~wanted).sum())
        grades, weight = grades.take(wanted), weight[wanted]
        starts = group_starts(grades.item, grades.rater)
        counts = np.diff(np.append(starts, len(weight)))
        complete = np.repeat(counts == len(score), counts)
        dropped["missing_aspect"] = int((~complete).sum())
        grades, weight = grades.take(complete), weight[complete]
        return grades.mean_of_runs(group_starts(grades.item, grades.rater), weight), _positive(dropped)
    chosen = np.array([name != "overall" for name in aspects]) if any(a != "overall" for a in aspects) else np.ones(1, dtype=bool)
    wanted = chosen[grades.aspect] if len(grades.aspect) else np.zeros(0, dtype=bool)
    dropped["aspect_not_chosen"] = int((~wanted).sum())
    grades = grades.take(wanted)
    common = _common_aspects(grades)
    dropped["aspect_not_common"] = int((~common).sum())
    grades = grades.take(common)
    return grades.mean_of_runs(group_starts(grades.item, grades.rater)), _positive(dropped)


def _positive(counts: dict[str, int]) -> dict[str, int]:
    return {reason: n for reason, n in counts.items() if n}


def _common_aspects(grades: Grades) -> np.ndarray:
    """Whether each grade's aspect was given by its rater to every item of the prompt that the rater graded."""
    n = len(grades.value)
    if not n:
        return np.zeros(0, dtype=bool)
    by_rater = np.lexsort((grades.item, grades.rater, grades.prompt))
    sorted_ = grades.take(by_rater)
    runs = group_starts(sorted_.prompt, sorted_.rater)
    new_item = np.zeros(n, dtype=np.int64)
    new_item[group_starts(sorted_.prompt, sorted_.rater, sorted_.item)] = 1
    items = np.empty(n, dtype=np.int64)
    items[by_rater] = np.repeat(np.add.reduceat(new_item, runs), np.diff(np.append(runs, n)))
    by_aspect = np.lexsort((grades.aspect, grades.rater, grades.prompt))
    sorted_ = grades.take(by_aspect)
    runs = group_starts(sorted_.prompt, sorted_.rater, sorted_.aspect)
    sizes = np.diff(np.append(runs, n))
    given = np.empty(n, dtype=np.int64)
    given[by_aspect] = np.repeat(sizes, sizes)
    return given == items


def merge_raters(grades: Grades, how: str) -> tuple[np.ndarray, np.ndarray]:
    """Items that have a value, and that value: the (weighted) mean or the median over raters. grades: sorted by item, one a rater."""
    starts = group_starts(grades.item)
    if not len(starts):
        return grades.item, grades.value
    counts = np.diff(np.append(starts, len(grades.value)))
    if how != "median" and grades.weight is not None:
        return grades.item[starts], np.add.reduceat(grades.value * grades.weight, starts) / np.add.reduceat(grades.weight, starts)
    if how != "median":
        return grades.item[starts], np.add.reduceat(grades.value, starts) / counts
    order = np.lexsort((grades.value, grades.item))
    value = grades.value[order]
    return grades.item[starts], (value[starts + (counts - 1) // 2] + value[starts + counts // 2]) / 2
