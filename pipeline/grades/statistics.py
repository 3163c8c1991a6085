"""Which grades a build uses, and what a first look over all of them says: scales, means and standard deviations.

One build uses one set of evidence: ratings or comparisons, narrowed by kind, rater and aspect. The survey is taken while reading, a
figure a (source, rater, kind, aspect, scale), so that normalisation and the check for mixed scales need no pass of their own.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmpo.pipeline.arrow import codes, flat, lists, offsets_of, parents, to_numpy
from mmpo.pipeline.errors import UserError, unknown_name

__all__ = ["EVIDENCE", "Group", "Survey", "choose_evidence", "select_grades", "survey"]

EVIDENCE = ("auto", "ratings", "comparisons")


class Group(NamedTuple):
    """Grades that share everything that normalisation may depend on. low, high: a rating's scale, or ∓limit of a comparison."""

    table: str
    source: str
    rater: str
    kind: str
    aspect: str
    low: float | None
    high: float | None


@dataclass
class Survey:
    """Count, mean, sum of squared deviations and minimum of the grades of each group; surveys add up."""

    groups: dict[Group, tuple[int, float, float, float]] = field(default_factory=dict)

    def add(self, other: "Survey") -> None:
        """Take in another survey (Chan's parallel update of mean and squared deviations)."""
        for key, (n2, mean2, m2, low2) in other.groups.items():
            if key not in self.groups:
                self.groups[key] = (n2, mean2, m2, low2)
                continue
            n1, mean1, m1, low1 = self.groups[key]
            n, delta = n1 + n2, mean2 - mean1
            mean = mean1 + delta * n2 / n
            self.groups[key] = (n, mean, m1 + m2 + delta * delta * n1 * n2 / n, min(low1, low2))

    def of(self, table: str) -> list[Group]:
        """The groups of "ratings" or of "comparisons", in a fixed order."""
        return sorted((group for group in self.groups if group.table == table), key=str)


def survey(table: pa.Table) -> Survey:
    """The survey of a FEEDBACK table."""
    result = Survey()
    for name, value, bounds in (("ratings", "score", ("low", "high")), ("comparisons", "gap", ("limit", "limit"))):
        column = flat(table[name])
        grades = column.flatten()
        if not len(grades):
            continue
        row = parents(offsets_of(column))
        keys = [codes(flat(table["source"]).take(pa.array(row)))]
        keys += [codes(grades.field(key)) for key in ("rater", "kind", "aspect")]
        keys += [codes(grades.field(key)) for key in bounds]
        scores = to_numpy(grades.field(value))
        stacked = np.stack([code for code, _ in keys])
        distinct, inverse = np.unique(stacked, axis=1, return_inverse=True)
        inverse = inverse.reshape(-1)
        counts = np.bincount(inverse)
        means = np.bincount(inverse, weights=scores) / counts
        squares = np.bincount(inverse, weights=(scores - means[inverse]) ** 2)
        lowest = np.full(len(counts), np.inf)
        np.minimum.at(lowest, inverse, scores)
        for i, combination in enumerate(distinct.T):
            source, rater, kind, aspect, low, high = (values[c] for c, (_, values) in zip(combination, keys, strict=True))
            low = -low if name == "comparisons" and low is not None else low
            group = Group(name, source, rater, kind, aspect, low, high)
            result.groups[group] = (int(counts[i]), float(means[i]), float(squares[i]), float(lowest[i]))
    return result


def choose_evidence(
    found: Survey,
    evidence: str,
    *,
    kinds: Sequence[str] | None = None,
    raters: Sequence[str] | None = None,
    aspects: Sequence[str] | None = None,
) -> tuple[str, list[Group]]:
    """ "ratings" or "comparisons", and the groups that the build uses.

    Raises UserError where the choice names a kind, rater or aspect that no grade has, or leaves nothing.
    """
    if evidence not in EVIDENCE:
        raise unknown_name("evidence (--from)", evidence, EVIDENCE)
    table = evidence if evidence != "auto" else ("ratings" if found.of("ratings") else "comparisons")
    groups = found.of(table)
    if not groups:
        other = "comparisons" if table == "ratings" else "ratings"
        hint = f"; it has {other}: use --from {other}" if found.of(other) else ""
        raise UserError(f"the input holds no {table}{hint}" if evidence != "auto" else "the input holds no grades")
    for flag, wanted, name in (("kind", kinds, "kind"), ("rater", raters, "rater"), ("aspect", aspects, "aspect")):
        known = sorted({getattr(group, name) for group in groups})
        for value in wanted or ():
            if value not in known:
                raise unknown_name(f"--{flag}", value, known[:40])
    chosen = [
        group
        for group in groups
        if (not kinds or group.kind in kinds) and (not raters or group.rater in raters) and (not aspects or group.aspect in aspects)
    ]
    if not chosen:
        raise UserError("no grade has the chosen kind, rater and aspect together; drop one of --kind, --rater, --aspect")
    return table, chosen


def select_grades(
    table: pa.Table,
    name: str,
    *,
    kinds: Iterable[str] | None = None,
    raters: Iterable[str] | None = None,
    aspects: Iterable[str] | None = None,
) -> tuple[pa.Table, int]:
    """The FEEDBACK table with only the chosen grades in column `name`, and how many were left out."""
    filters = [(key, list(values)) for key, values in (("kind", kinds), ("rater", raters), ("aspect", aspects)) if values]
    if not filters:
        return table, 0
    column = flat(table[name])
    grades = column.flatten()
    keep = np.ones(len(grades), dtype=bool)
    for key, values in filters:
        keep &= np.asarray(pc.is_in(grades.field(key), value_set=pa.array(values, pa.string())))
    row = parents(offsets_of(column))[keep]
    kept = lists(np.searchsorted(row, np.arange(table.num_rows)), grades.filter(pa.array(keep)))
    index = table.schema.get_field_index(name)
    return table.set_column(index, table.schema.field(index), kept), int((~keep).sum())
