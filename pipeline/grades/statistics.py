"""What a first look over all grades says: counts, means and standard deviations of grades of one scale.

The figures are taken while reading, one set per (source, rater, kind, aspect, scale), so that normalisation and the check for mixed scales
need no pass of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from mmpo.pipeline.arrow import codes, flat, offsets_of, parents, to_numpy

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
    """Count, mean, sum of squared deviations from the mean, and minimum of grades."""

    count: int
    mean: float
    squares: float
    least: float

    def with_more(self, other: "Moments") -> "Moments":
        """Of the grades of both together (Chan's parallel update of mean and squared deviations)."""
        count, delta = self.count + other.count, other.mean - self.mean
        squares = self.squares + other.squares + delta * delta * self.count * other.count / count
        return Moments(count, self.mean + delta * other.count / count, squares, min(self.least, other.least))


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
    distinct, inverse = np.unique(np.stack([code for code, _ in keys]), axis=1, return_inverse=True)
    combinations = [tuple(values[c] for c, (_, values) in zip(row, keys, strict=True)) for row in distinct.T]
    return combinations, inverse.reshape(-1)


def grade_statistics(table: pa.Table) -> GradeStatistics:
    """The statistics of a FEEDBACK table."""
    result = GradeStatistics()
    for evidence, (value, bounds) in COLUMNS.items():
        grades = flat(table[evidence]).flatten()
        if not len(grades):
            continue
        combinations, group = grouped(table, evidence, ("rater", "kind", "aspect", *bounds))
        scores = to_numpy(grades.field(value))
        counts = np.bincount(group)
        means = np.bincount(group, weights=scores) / counts
        squares = np.bincount(group, weights=(scores - means[group]) ** 2)
        least = np.full(len(counts), np.inf)
        np.minimum.at(least, group, scores)
        moments = zip(*(column.tolist() for column in (counts, means, squares, least)), strict=True)
        for (source, rater, kind, aspect, *found), one in zip(combinations, moments, strict=True):
            if evidence == "comparisons":  # one bound, the limit: gaps lie between it and its negative
                found = [None if found[0] is None else -found[0], found[0]]
            result.groups[GradeGroup(evidence, source, rater, kind, aspect, *found)] = Moments(*one)
    return result
