"""What a first look over all grades says, and which of them a build uses.

Counts, means and standard deviations are taken while reading, one set per (source, rater, kind, aspect, scale), so that normalisation and
the check for mixed scales need no pass of their own.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmpo.pipeline.arrow import codes, flat, lists, offsets_of, parents, to_numpy
from mmpo.pipeline.errors import UserError, unknown_name
from mmpo.pipeline.grades.rounding import from_origin, origin_of

COLUMNS = {"ratings": ("score", ("low", "high")), "comparisons": ("gap", ("limit",))}
"""Of each kind of evidence: where its value stands, and the bounds of that."""


class GradeGroup(NamedTuple):
    """Grades that share everything that normalisation may depend on. low, high: a rating's scale, or ∓limit of a comparison."""

    table: str
    source: str
    rater: str
    kind: str
    aspect: str
    low: float | None
    high: float | None


class Moments(NamedTuple):
    """Count, mean, sum of squared deviations from the mean, minimum and maximum of grades; the mean counted from the origin of the scale
    (`rounding.origin_of`); at_ends: how many stand at an end of their scale, 0 where it has none."""

    count: int
    mean: float
    squares: float
    least: float
    most: float
    at_ends: int = 0

    def with_more(self, other: "Moments") -> "Moments":
        """Of the grades of both together (Chan's parallel update of mean and squared deviations)."""
        count, delta = self.count + other.count, other.mean - self.mean
        squares = self.squares + other.squares + delta * delta * self.count * other.count / count
        least, most = min(self.least, other.least), max(self.most, other.most)
        return Moments(count, self.mean + delta * other.count / count, squares, least, most, self.at_ends + other.at_ends)


@dataclass
class GradeStatistics:
    """The moments of the grades of each group; statistics of parts add up."""

    groups: dict[GradeGroup, Moments] = field(default_factory=dict)

    def add(self, other: "GradeStatistics") -> None:
        """Take in the statistics of another part."""
        for group, moments in other.groups.items():
            self.groups[group] = self.groups[group].with_more(moments) if group in self.groups else moments

    def of(self, table: str) -> list[GradeGroup]:
        """The groups of "ratings" or of "comparisons", in a fixed order."""
        return sorted((group for group in self.groups if group.table == table), key=str)


def grouped(table: pa.Table, evidence: str, names: Sequence[str]) -> tuple[list[tuple[Any, ...]], np.ndarray]:
    """The distinct combinations of a grade's source and these fields of it, and which of them each grade has, shape (grades,)."""
    column = flat(table[evidence])
    keys = [codes(flat(table["source"]).take(pa.array(parents(offsets_of(column)))))]
    keys += [codes(column.flatten().field(name)) for name in names]
    group = np.zeros(len(keys[0][0]), dtype=np.int64)
    for code, values in keys:
        if len(values) > 1:  # most have one
            group = np.unique(group * len(values) + code, return_inverse=True)[1]
    first = np.unique(group, return_index=True)[1].tolist()
    return [tuple(values[code[row]] for code, values in keys) for row in first], group


def grade_statistics(table: pa.Table) -> GradeStatistics:
    """The statistics of a FEEDBACK table."""
    result = GradeStatistics()
    for evidence, (value, bounds) in COLUMNS.items():
        grades = flat(table[evidence]).flatten()
        if not len(grades):
            continue
        combinations, group = grouped(table, evidence, ("rater", "kind", "aspect", *bounds))
        scores, ends = to_numpy(grades.field(value)), [to_numpy(grades.field(bound)) for bound in bounds]  # NaN: none
        counts, shifted = np.bincount(group), scores
        if evidence == "ratings" and origin_of(*np.array([one[-2:] for one in combinations], dtype=np.float64).T).any():
            shifted = from_origin(scores, *ends)
        means = np.bincount(group, weights=shifted) / counts
        squares = np.bincount(group, weights=(shifted - means[group]) ** 2)
        least, most = np.full(len(counts), np.inf), np.full(len(counts), -np.inf)
        np.minimum.at(least, group, scores)
        np.maximum.at(most, group, scores)
        at_ends = np.bincount(
            group, weights=np.any([(scores == end) | ((len(ends) == 1) & (-scores == end)) for end in ends], axis=0)
        )
        columns = (counts, means, squares, least, most, at_ends.astype(np.int64))
        moments = zip(*(column.tolist() for column in columns), strict=True)
        for (source, rater, kind, aspect, *found), one in zip(combinations, moments, strict=True):
            if evidence == "comparisons":  # one bound, the limit: gaps lie between it and its negative
                found = [None if found[0] is None else -found[0], found[0]]
            result.groups[GradeGroup(evidence, source, rater, kind, aspect, *found)] = Moments(*one)
    return result


EVIDENCE = {
    "auto": "ratings if there are any, else comparisons",
    "ratings": "scores of completions",
    "comparisons": "gaps between two completions",
}
"""What `--from` may be, and what it means."""


Wanted = Mapping[str, Sequence[str]]
"""Of "kind", "rater" and "aspect", where grades are narrowed by it, the values that are used."""


NO_GRADES = "the input holds no grades, only candidates: mmpo judge and mmpo argilla add some"


def choose_evidence(
    statistics: GradeStatistics, evidence: str, wanted: Wanted, first: str = "ratings"
) -> tuple[str, list[GradeGroup]]:
    """ "ratings" or "comparisons", from a key of EVIDENCE, and the groups that the build uses. first: which of them `auto` takes where
    the input holds both.

    Raises UserError where the choice names a kind, rater or aspect that no grade has, or leaves nothing.
    """
    table = evidence if evidence != "auto" else _first_with_all(statistics, wanted, first)
    groups = statistics.of(table)
    if not groups:
        other = "comparisons" if table == "ratings" else "ratings"
        hint = f"; it has {other}: use --from {other}" if statistics.of(other) else ""
        raise UserError(f"the input holds no {table}{hint}" if evidence != "auto" else NO_GRADES)
    for name, values in wanted.items():
        known = sorted({getattr(group, name) for group in groups})
        for value in values:
            if value not in known:
                raise unknown_name(f"--{name}", value, known[:40])
    chosen = [group for group in groups if all(getattr(group, name) in values for name, values in wanted.items())]
    if not chosen:
        raise UserError("no grade has the chosen kind, rater and aspect together; drop one of --kind, --rater, --aspect")
    return table, chosen


def _first_with_all(statistics: GradeStatistics, wanted: Wanted, first: str) -> str:
    """The first where there are any, else the other; but where the other alone has all that is named, that."""

    def lacking(table: str) -> float:
        groups = statistics.of(table)
        known = {name: {getattr(group, name) for group in groups} for name in wanted}
        return sum(value not in known[name] for name, values in wanted.items() for value in values) if groups else math.inf

    return min(sorted(COLUMNS, key=lambda table: table != first), key=lacking)


def select_grades(table: pa.Table, name: str, wanted: Wanted) -> tuple[pa.Table, int]:
    """The FEEDBACK table with only the chosen grades in column `name`, and how many were left out."""
    if not wanted:
        return table, 0
    column = flat(table[name])
    grades = column.flatten()
    keep = np.ones(len(grades), dtype=bool)
    for key, values in wanted.items():
        keep &= np.asarray(pc.is_in(grades.field(key), value_set=pa.array(values, pa.string())))
    row = parents(offsets_of(column))[keep]
    kept = lists(np.searchsorted(row, np.arange(table.num_rows)), grades.filter(pa.array(keep)))
    index = table.schema.get_field_index(name)
    return table.set_column(index, table.schema.field(index), kept), int((~keep).sum())
