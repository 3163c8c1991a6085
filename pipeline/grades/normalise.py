"""Putting grades on a common footing, each by its own source, rater and aspect, before anything is averaged.

A grade's own standard deviation (`spread`) follows by the delta method. A comparison has no place on a scale, only a size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from mmpo.pipeline.arrow import flat, lists, offsets_of, to_numpy, with_fields
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.grades.aggregate import averaged_aspects, places, run_means, runs
from mmpo.pipeline.grades.rounding import step_of
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

    def moved(self, shift: np.ndarray | float, scale: np.ndarray, low: float, high: float) -> dict[str, np.ndarray]:
        """(value - shift)/scale, the spread over the scale, and new bounds (NaN: none)."""
        value, bounds = COLUMNS[self.evidence]
        new = {value: (self.field(value) - shift) / scale, "spread": self.field("spread") / scale}
        return new | {name: np.full(len(scale), low if name == "low" else high) for name in bounds}


def _minmax(given: _Given) -> dict[str, np.ndarray]:
    if given.evidence == "comparisons":
        return given.moved(0.0, given.field("limit"), 0.0, 1.0)
    low, high = given.field("low"), given.field("high")
    return given.moved(low, high - low, 0.0, 1.0)


def _zscore(given: _Given) -> dict[str, np.ndarray]:
    totals: dict[tuple[str, ...], Moments] = {}
    for group in given.groups:
        key, moments = (group.source, group.rater, group.aspect), given.statistics.groups[group]
        totals[key] = totals[key].with_more(moments) if key in totals else moments
    combinations, which = grouped(given.table, given.evidence, ("rater", "aspect"))
    found = [totals[key] for key in combinations]
    if given.evidence == "comparisons":
        found = [m._replace(mean=0.0, squares=m.squares + m.count * m.mean * m.mean) for m in found]
    shift = np.array([moments.mean for moments in found])
    scale = np.array([np.sqrt(moments.squares / moments.count) or 1.0 for moments in found])
    return given.moved(shift[which], scale[which], np.nan, np.nan)


def _log(given: _Given) -> dict[str, np.ndarray]:
    score = given.field("score")
    bounds = {name: given.field(name) for name in ("low", "high")}
    logs = {name: np.log(bound, out=np.full(len(bound), np.nan), where=bound > 0) for name, bound in bounds.items()}
    return {"score": np.log(score), "spread": given.field("spread") / score, **logs}


def ranks(values: np.ndarray, *groups: np.ndarray) -> np.ndarray:
    """(average rank - 1)/(n - 1) within each group, 1/2 for a group of one; NaN stays NaN and is not ranked. Shape (values,)."""
    known = np.flatnonzero(np.isfinite(values))
    result = np.full(len(values), np.nan)
    if not len(known):
        return result
    order = known[np.lexsort((values[known], *(g[known] for g in groups)))]
    keys = [g[order] for g in groups]
    starts, sizes = runs(*keys)
    equal, lengths = runs(*keys, values[order])
    average = np.repeat(run_means(places(starts, sizes).astype(np.float64), equal), lengths)
    n = np.repeat(sizes, sizes)
    result[order] = np.where(n > 1, average / np.maximum(n - 1, 1), 0.5)
    return result


def zscores(values: np.ndarray, *groups: np.ndarray) -> np.ndarray:
    """(value - mean)/standard deviation within each group, 0 where a group's values are all the same; NaN stays NaN. Shape (values,)."""
    known = np.flatnonzero(np.isfinite(values))
    result = np.full(len(values), np.nan)
    if not len(known):
        return result
    order = known[np.lexsort((values[known], *(g[known] for g in groups)))]
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


class Normalisation(NamedTuple):
    """One normalisation. each: new columns of the grades; within_prompt: (values, *groups) → values of the merged scores, later on.

    refuse: why these groups of grades can't be normalised so; for_comparisons: whether gaps can; one_scale: whether all grades are on one
    scale afterwards, whatever theirs was; of_unit_size: whether they are about 1 in size, so that the width of their scale counts as 1.
    """

    summary: str
    each: Callable[[_Given], dict[str, np.ndarray]] | None = None
    within_prompt: Callable[..., np.ndarray] | None = None
    refuse: Callable[[Sequence[GradeGroup], GradeStatistics], str | None] | None = None
    for_comparisons: bool = True
    one_scale: bool = True
    of_unit_size: bool = True


NORMALISATIONS: dict[str, Normalisation] = {
    "none": Normalisation("grades as they are", one_scale=False, of_unit_size=False),
    "minmax": Normalisation("(score - low)/(high - low) by the declared scale; gap/limit", _minmax, refuse=_without_scale),
    "zscore": Normalisation("(score - mean)/standard deviation of the rater's grades; gap/root mean square gap", _zscore),
    "log": Normalisation(
        "natural logarithm, for counts such as votes", _log, refuse=_not_positive, for_comparisons=False, one_scale=False
    ),
    "rank": Normalisation(
        "rank within the prompt, from 0 to 1, of the merged score", within_prompt=ranks, for_comparisons=False, of_unit_size=False
    ),
    "prompt-zscore": Normalisation(
        "(score - mean)/standard deviation of the prompt's merged scores",
        within_prompt=zscores,
        for_comparisons=False,
        of_unit_size=False,
    ),
}
"""What `--normalise` may be. Adding one: a function and a line here."""


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
    for group in groups:
        moments = statistics.groups[group]
        largest = max(abs(moments.least), abs(moments.most))
        low, high = group.low, group.high
        width = largest if low is None or high is None or low >= high else high - low
        step = step_of(1.0, 1.0) if NORMALISATIONS[name].of_unit_size else step_of(width, largest)
        key = (group.rater, group.aspect)
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
    if each is None or not len(grades):
        return table
    new = each(_Given(table, evidence, groups, statistics))
    moved = with_fields(grades, {name: pa.array(values, from_pandas=True) for name, values in new.items()})
    rebuilt = lists(offsets_of(column)[:-1], moved)
    index = table.schema.get_field_index(evidence)
    return table.set_column(index, table.schema.field(index), rebuilt)
