"""Putting grades on a common footing, each by its own source, rater and aspect, before anything is averaged.

A grade's own standard deviation (`spread`) follows by the delta method. A comparison has no place on a scale, only a size.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from mmpo.pipeline.arrow import flat, lists, offsets_of, to_numpy, with_fields
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.grades.aggregate import averaged_aspects, places, run_means, runs
from mmpo.pipeline.grades.rounding import OF_LARGEST, from_origin, origin_of, step_of
from mmpo.pipeline.grades.statistics import COLUMNS, GradeGroup, GradeStatistics, Moments, grouped


@dataclass(frozen=True)
class _Given:
    """The grades of one kind of evidence in a FEEDBACK table, as flat arrays, and what is known of all grades of the build."""

    table: pa.Table
    evidence: str
    groups: Sequence[GradeGroup]
    statistics: GradeStatistics

    def field(self, name: str) -> np.ndarray:
        return to_numpy(flat(self.table[self.evidence]).flatten().field(name))

    def values(self) -> np.ndarray:
        """Gaps, or scores from the origin of their scale (`rounding.origin_of`), which keeps the digits of a scale far from 0."""
        if self.evidence == "comparisons":
            return self.field("gap")
        return from_origin(self.field("score"), self.field("low"), self.field("high"))

    def origins(self) -> np.ndarray | float:
        """What `values` are counted from."""
        return 0.0 if self.evidence == "comparisons" else origin_of(self.field("low"), self.field("high"))

    def moved(self, shift: np.ndarray | float, scale: np.ndarray, low: float, high: float) -> dict[str, np.ndarray]:
        """(value - shift)/scale, the spread over the scale, and new bounds (NaN: none)."""
        value, bounds = COLUMNS[self.evidence]
        new = {value: (self.values() - shift) / scale, "spread": self.field("spread") / scale}
        return new | {name: np.full(len(scale), low if name == "low" else high) for name in bounds}


def _as_given(given: _Given) -> dict[str, np.ndarray]:
    """Scores from their origin, which the merged ones get back (`score_origin`)."""
    return {"score": given.values()}


def _minmax(given: _Given) -> dict[str, np.ndarray]:
    if given.evidence == "comparisons":
        return given.moved(0.0, given.field("limit"), 0.0, 1.0)
    low, high = given.field("low"), given.field("high")
    return given.moved(low - given.origins(), high - low, 0.0, 1.0)


class _Centre(NamedTuple):
    """Of a rater's grades: an origin, their mean from there, their standard deviation (of gaps: about 0), 1 where they are all the same."""

    origin: float
    mean: float
    deviation: float


def _centres(groups: Sequence[GradeGroup], statistics: GradeStatistics) -> dict[tuple[str, ...], _Centre]:
    """By source, rater and aspect."""
    totals: dict[tuple[str, ...], tuple[float, Moments]] = {}
    for group in groups:
        key, moments, origin = (group.source, group.rater, group.aspect), statistics.groups[group], _origin(group)
        first, before = totals.get(key, (origin, None))
        moments = moments._replace(mean=moments.mean + (origin - first))
        totals[key] = first, moments if before is None else before.with_more(moments)
    found = {}
    for (source, rater, aspect), (origin, m) in totals.items():
        if groups[0].table == "comparisons":
            m = m._replace(mean=0.0, squares=m.squares + m.count * m.mean * m.mean)
        deviation = float(np.sqrt(m.squares / m.count))
        same = deviation <= 4 * OF_LARGEST * max(abs(m.least), abs(m.most))  # 0.1 thrice has a mean of 0.10000000000000002
        found[source, rater, aspect] = _Centre(origin, m.mean, 1.0 if same else deviation)
    return found


def _origin(group: GradeGroup) -> float:
    bounds = (np.nan if bound is None else bound for bound in (group.low, group.high))
    return 0.0 if group.table == "comparisons" else float(origin_of(*bounds))


def _zscore(given: _Given) -> dict[str, np.ndarray]:
    combinations, which = grouped(given.table, given.evidence, ("rater", "aspect"))
    centres = _centres(given.groups, given.statistics)
    origin, mean, deviation = np.array([centres[key] for key in combinations]).T
    return given.moved(mean[which] + (origin[which] - given.origins()), deviation[which], np.nan, np.nan)


def _log(given: _Given) -> dict[str, np.ndarray]:
    score = given.field("score")
    bounds = {name: given.field(name) for name in ("low", "high")}
    logs = {name: np.log(bound, out=np.full(len(bound), np.nan), where=bound > 0) for name, bound in bounds.items()}
    origin = given.origins()
    far = np.log1p(given.values() / np.where(origin > 0, origin, 1.0))  # from the logarithm of the origin
    return {"score": np.where(origin > 0, far, np.log(score)), "spread": given.field("spread") / score, **logs}


def _order(values: np.ndarray, groups: Sequence[np.ndarray]) -> np.ndarray:
    """The places of the values that are known, by group and then ascending."""
    known = np.flatnonzero(np.isfinite(values))
    return known[np.lexsort((values[known], *(group[known] for group in groups)))]


def ranks(values: np.ndarray, *groups: np.ndarray) -> np.ndarray:
    """(average rank - 1)/(n - 1) within each group, 1/2 for a group of one; NaN stays NaN and is not ranked. Shape (values,)."""
    result, order = np.full(len(values), np.nan), _order(values, groups)
    if not len(order):
        return result
    keys = [g[order] for g in groups]
    starts, sizes = runs(*keys)
    equal, lengths = runs(*keys, values[order])
    average = np.repeat(run_means(places(starts, sizes).astype(np.float64), equal), lengths)
    n = np.repeat(sizes, sizes)
    result[order] = np.where(n > 1, average / np.maximum(n - 1, 1), 0.5)
    return result


def zscores(values: np.ndarray, *groups: np.ndarray) -> np.ndarray:
    """(value - mean)/standard deviation within each group, 0 where a group's values are all the same; NaN stays NaN. Shape (values,)."""
    result, order = np.full(len(values), np.nan), _order(values, groups)
    if not len(order):
        return result
    starts, sizes = runs(*(g[order] for g in groups))
    off = values[order] - np.repeat(run_means(values[order], starts), sizes)
    deviation = np.repeat(np.sqrt(run_means(off * off, starts)), sizes)
    least, most = (np.repeat(values[order][at], sizes) for at in (starts, starts + sizes - 1))
    result[order] = np.where(most > least, off / np.where(deviation > 0, deviation, 1.0), 0.0)
    return result


def _without_scale(groups: Sequence[GradeGroup], statistics: GradeStatistics) -> str | None:
    bare = [group for group in groups if group.low is None or group.high is None or group.low >= group.high]
    return (
        f"needs a declared scale; {_names(bare)} declare none. Give --scale LOW:HIGH, or use zscore, log or rank" if bare else None
    )


def _not_positive(groups: Sequence[GradeGroup], statistics: GradeStatistics) -> str | None:
    low = [group for group in groups if statistics.groups[group].least <= 0]
    least = min((statistics.groups[group].least for group in low), default=0.0)
    return f"needs scores > 0; the least of {_names(low)} is {least:g}. Use rank or zscore" if low else None


def _size_as_given(group: GradeGroup, moments: Moments, deviation: float) -> tuple[float, float]:
    """high - low, or the largest |grade| without a scale."""
    largest = max(abs(moments.least), abs(moments.most))
    return largest if group.low is None or group.high is None or group.low >= group.high else group.high - group.low, largest


def _size_of_one(group: GradeGroup, moments: Moments, deviation: float) -> tuple[float, float]:
    width, largest = _size_as_given(group, moments, deviation)
    return 1.0, largest / (width or 1.0)


def _size_in_deviations(group: GradeGroup, moments: Moments, deviation: float) -> tuple[float, float]:
    return 1.0, max(abs(moments.least), abs(moments.most)) / deviation


def _size_of_log(group: GradeGroup, moments: Moments, deviation: float) -> tuple[float, float]:
    """About 1; of a scale far from 0 what it covers of it: log(high/low)."""
    origin = _origin(group)
    return math.log1p((group.high - origin) / origin) if origin > 0 and group.high is not None else 1.0, 1.0


class Normalisation(NamedTuple):
    """One normalisation. each: new columns of the grades; within_prompt: (values, *groups) → values of the merged scores, later on.

    refuse: why these groups of grades can't be normalised so; for_comparisons: whether gaps can; one_scale: whether all grades are on one
    scale afterwards, whatever theirs was; size: (group, its moments, its standard deviation) → the width that its scale has afterwards, and
    the largest |grade| in the same measure, which say what values are rounded to; origin: what becomes of the origin that grades are
    counted from, None where they are counted from 0 afterwards.
    """

    summary: str
    each: Callable[[_Given], dict[str, np.ndarray]] | None = None
    within_prompt: Callable[..., np.ndarray] | None = None
    refuse: Callable[[Sequence[GradeGroup], GradeStatistics], str | None] | None = None
    for_comparisons: bool = True
    one_scale: bool = True
    size: Callable[[GradeGroup, Moments, float], tuple[float, float]] = _size_as_given
    origin: Callable[[float], float] | None = None


NORMALISATIONS: dict[str, Normalisation] = {
    "none": Normalisation("grades as they are", _as_given, one_scale=False, origin=float),
    "minmax": Normalisation(
        "(score - low)/(high - low) by the declared scale; gap/limit", _minmax, refuse=_without_scale, size=_size_of_one
    ),
    "zscore": Normalisation(
        "(score - mean)/standard deviation of the rater's grades; gap/root mean square gap", _zscore, size=_size_in_deviations
    ),
    "log": Normalisation(
        "natural logarithm, for counts such as votes",
        _log,
        refuse=_not_positive,
        for_comparisons=False,
        one_scale=False,
        size=_size_of_log,
        origin=lambda origin: math.log(origin) if origin else 0.0,
    ),
    "rank": Normalisation(
        "rank within the prompt, from 0 to 1, of the merged score", _as_given, within_prompt=ranks, for_comparisons=False
    ),
    "prompt-zscore": Normalisation(
        "(score - mean)/standard deviation of the prompt's merged scores",
        _as_given,
        within_prompt=zscores,
        for_comparisons=False,
    ),
}
"""What `--normalise` may be. Adding one: a function and a line here."""


def score_origin(score: dict[str, float] | str, groups: Sequence[GradeGroup], name: str) -> float:
    """What is added to merged scores of ratings, whose grades are counted from the origin of their scale (`rounding.origin_of`)."""
    back = NORMALISATIONS[name].origin
    if back is None or not groups or groups[0].table == "comparisons":
        return 0.0
    if not isinstance(score, dict):
        used = averaged_aspects(sorted({group.aspect for group in groups}))
        return back(_origin(next(group for group in groups if group.aspect in used)))
    of_aspect = {group.aspect: back(_origin(group)) for group in groups}
    return float(sum(weight * of_aspect[aspect] for aspect, weight in score.items()))


def check_normalisation(name: str, groups: Sequence[GradeGroup], statistics: GradeStatistics) -> None:
    """Refuse a normalisation that the chosen grades do not allow. Raises UserError naming the groups in the way."""
    chosen = NORMALISATIONS[name]
    if not chosen.for_comparisons and groups and groups[0].table == "comparisons":
        others = ", ".join(other for other, one in NORMALISATIONS.items() if one.for_comparisons)
        raise UserError(f"--normalise {name} is for scores; the grades are comparisons. Use one of {others}")
    if message := chosen.refuse and chosen.refuse(groups, statistics):
        raise UserError(f"--normalise {name} {message}")


def rounding_steps(groups: Sequence[GradeGroup], statistics: GradeStatistics, name: str) -> dict[tuple[str, str], float]:
    """What the normalised grades are rounded to, by (rater, aspect): the coarsest step of the rater's groups (`rounding.step_of`)."""
    steps: dict[tuple[str, str], float] = {}
    centres = _centres(groups, statistics)
    for group in groups:
        deviation = centres[group.source, group.rater, group.aspect].deviation
        step, key = step_of(*NORMALISATIONS[name].size(group, statistics.groups[group], deviation)), (group.rater, group.aspect)
        steps[key] = max(step, steps.get(key, 0.0))
    return steps


def _names(groups: Sequence[GradeGroup]) -> str:
    shown = [f"{group.source}/{group.rater}/{group.aspect}" for group in groups[:4]]
    return ", ".join(shown) + (f" and {len(groups) - 4} more" if len(groups) > 4 else "")


def check_scales(score: dict[str, float] | str, groups: Sequence[GradeGroup], normalisation: str) -> None:
    """Refuse to average or subtract grades of different scales. Raises UserError listing them."""
    if NORMALISATIONS[normalisation].one_scale:
        return
    used = score if isinstance(score, dict) else averaged_aspects(sorted({group.aspect for group in groups}))
    clusters: dict[str, dict[tuple[float | None, float | None], GradeGroup]] = {}
    for group in groups:
        if group.aspect in used:
            cluster = clusters.setdefault(group.aspect if isinstance(score, dict) else "", {})
            cluster.setdefault((group.low, group.high), group)
    for scales in clusters.values():
        if len(scales) > 1:
            shown = [f"{_scale(*scale)} ({g.source}, rater {g.rater}, aspect {g.aspect})" for scale, g in list(scales.items())[:6]]
            common = ", ".join(name for name, one in NORMALISATIONS.items() if one.one_scale)
            raise UserError(
                f"the grades mix {len(scales)} scales: {'; '.join(shown)}. Choose --normalise {common}, or narrow "
                "them with --rater, --kind or --aspect"
            )


def _scale(low: float | None, high: float | None) -> str:
    return "..".join("unbounded" if bound is None else f"{bound:g}" for bound in (low, high))


def normalise(table: pa.Table, evidence: str, name: str, groups: Sequence[GradeGroup], statistics: GradeStatistics) -> pa.Table:
    """The FEEDBACK table with the grades of column `evidence` normalised; rows must still be those of a single source each."""
    column, each = flat(table[evidence]), NORMALISATIONS[name].each
    grades = column.flatten()
    if each is None or not len(grades) or (each is _as_given and not any(map(_origin, groups))):
        return table
    new = each(_Given(table, evidence, groups, statistics))
    moved = with_fields(grades, {name: pa.array(values, from_pandas=True) for name, values in new.items()})
    rebuilt = lists(offsets_of(column)[:-1], moved)
    index = table.schema.get_field_index(evidence)
    return table.set_column(index, table.schema.field(index), rebuilt)
