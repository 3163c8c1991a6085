"""Which raters are set against one another: the columns of an agreement, the reference rater among them, and their scales."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from mmpo.pipeline.errors import UserError, unknown_name
from mmpo.pipeline.grades import NO_GRADES, GradeGroup, grade_statistics
from mmpo.pipeline.margins import Floats
from mmpo.pipeline.sources import KINDS

EVIDENCE = ("auto", "comparisons", "ratings", "both")
HUMAN = "human"
"""The reference rater that is the mean of all people."""


class Column(NamedTuple):
    """A rater as a column: name is what tables call it, evidence "ratings" or "comparisons"."""

    name: str
    rater: str
    kind: str
    evidence: str


@dataclass(frozen=True)
class Chosen:
    """The columns that are read, people first. shown: those that the tables list; reference: those that the reference rater
    averages (none without one); ranges: the widest margin a column and aspect can have, shape (columns, aspects), NaN where
    unbounded or not graded; scale: "range" where every graded column and aspect is bounded, else "rms"; lows: the lower end of the scale of
    ratings, shaped as ranges, NaN where there is none.
    """

    columns: list[Column]
    aspects: list[str]
    shown: list[int]
    reference: list[int]
    against: str | None
    ranges: Floats
    scale: str
    lows: Floats

    def numbers(self, evidence: str, *coded: tuple[np.ndarray, list[Any]]) -> tuple[np.ndarray, np.ndarray]:
        """The column and the aspect of each grade, −1 where it isn't chosen. coded: codes and names of raters, kinds and
        aspects."""
        (rater, raters), (kind, kinds), (aspect, aspects) = coded
        place = {(c.rater, c.kind): i for i, c in enumerate(self.columns) if c.evidence == evidence}
        table = np.array([[place.get((r, k), -1) for k in kinds] for r in raters], dtype=np.int64).reshape(len(raters), len(kinds))
        known = {name: i for i, name in enumerate(self.aspects)}
        of_aspect = np.array([known.get(name, -1) for name in aspects], dtype=np.int64)
        return table[rater, kind], of_aspect[aspect]


def choose_columns(
    table: pa.Table,
    *,
    evidence: str = "auto",
    kinds: Sequence[str] | None = None,
    raters: Sequence[str] | None = None,
    aspects: Sequence[str] | None = None,
    against: str | None = None,
) -> Chosen:
    """The columns of a FEEDBACK table: its raters narrowed by the filters, and whoever the reference rater is made of.

    against: a rater, "human", or None: people where the chosen raters include any, else no reference rater. A reference rater that
    is named is read even where the filters leave it out. Raises UserError for names that no grade has, for nothing left, and where
    one rater grades one aspect on several scales.
    """
    groups = _groups(table, evidence)
    _check_names(groups, kinds, raters, aspects)
    groups = [group for group in groups if not aspects or group.aspect in aspects]
    listed = {(g.table, g.rater, g.kind) for g in groups if (not kinds or g.kind in kinds) and (not raters or g.rater in raters)}
    if not listed:
        raise UserError("no grade has the chosen kind, rater and aspect together; drop one of --kind, --rater, --aspect")
    against, standard = _reference(groups, listed, against)
    keys = sorted(listed | standard, key=lambda key: (KINDS.index(key[2]) if key[2] in KINDS else len(KINDS), key[1:], key[0]))
    columns = [Column(_name(key, keys), key[1], key[2], key[0]) for key in keys]
    used = [group for group in groups if (group.table, group.rater, group.kind) in listed | standard]
    names = sorted({group.aspect for group in used})
    ranges, lows, bounded = _ranges(used, keys, columns, names)
    return Chosen(
        columns,
        names,
        [i for i, key in enumerate(keys) if key in listed],
        [i for i, key in enumerate(keys) if key in standard],
        against,
        ranges,
        "range" if bounded else "rms",
        lows,
    )


def _groups(table: pa.Table, evidence: str) -> list[GradeGroup]:
    if evidence not in EVIDENCE:
        raise unknown_name("evidence (--from)", evidence, EVIDENCE)
    found = grade_statistics(table)
    wanted = [name for name in ("comparisons", "ratings") if evidence in ("auto", "both", name)]
    missing = [name for name in wanted if not found.of(name)]
    if evidence != "auto" and missing:
        other = [name for name in ("comparisons", "ratings") if found.of(name)]
        hint = f"; it has {other[0]}: use --from {other[0]}" if other else ""
        raise UserError(f"the input holds no {missing[0]}{hint}")
    groups = [group for name in wanted for group in found.of(name)]
    if not groups:
        raise UserError(NO_GRADES)
    return groups


def _check_names(
    groups: Sequence[GradeGroup], kinds: Sequence[str] | None, raters: Sequence[str] | None, aspects: Sequence[str] | None
) -> None:
    for name, wanted in (("kind", kinds), ("rater", raters), ("aspect", aspects)):
        known = sorted({getattr(group, name) for group in groups})
        for value in wanted or ():
            if value not in known:
                raise unknown_name(f"--{name}", value, known[:40])


Key = tuple[str, str, str]
"""Evidence, rater and kind of a column."""


def _reference(groups: Sequence[GradeGroup], listed: set[Key], against: str | None) -> tuple[str | None, set[Key]]:
    """The reference rater's name and columns."""
    every = {(g.table, g.rater, g.kind) for g in groups}
    if against is None:
        people = {key for key in listed if key[2] == HUMAN}
        return (HUMAN if people else None), people
    if against == HUMAN:
        people = {key for key in every if key[2] == HUMAN}
        if not people:
            raise UserError(
                f"--against {HUMAN}: no grade is by a person. Raters: {', '.join(sorted({g.rater for g in groups})[:40])}"
            )
        return HUMAN, people
    named = {key for key in every if against in (key[1], _name(key, list(every)))}
    if not named:
        raise unknown_name("--against", against, [HUMAN, *sorted({g.rater for g in groups})[:40]])
    if len(named) > 1:
        raise UserError(
            f"--against {against}: this rater has {' and '.join(sorted({f'{key[0]} ({key[2]})' for key in named}))}; "
            f"name one: {', '.join(sorted(_name(key, list(every)) for key in named))}"
        )
    return against, named


def _name(key: Key, keys: Sequence[Key]) -> str:
    """The rater's name, with what tells apart columns of one rater."""
    evidence, rater, kind = key
    same = [other for other in keys if other[1] == rater]
    marks = [kind] * (len({other[2] for other in same}) > 1) + [evidence] * (len([o for o in same if o[2] == kind]) > 1)
    return f"{rater} ({', '.join(marks)})" if marks else rater


def _ranges(
    used: Sequence[GradeGroup], keys: Sequence[Key], columns: Sequence[Column], aspects: Sequence[str]
) -> tuple[Floats, Floats, bool]:
    """The widest possible margin of each column and aspect, the lower end of its scale, and whether all that are graded have them."""
    ranges, lows = np.full((2, len(keys), len(aspects)), np.nan)
    scales: dict[tuple[int, int], set[tuple[float | None, float | None]]] = {}
    number = {key: i for i, key in enumerate(keys)}
    for group in used:
        place = number[group.table, group.rater, group.kind], aspects.index(group.aspect)
        scales.setdefault(place, set()).add((group.low, group.high))
    for (column, aspect), found in scales.items():
        if len(found) > 1:
            raise _several_scales(columns[column], aspects[aspect], found)
        [(low, high)] = found
        if low is not None and high is not None and high > low:
            # A comparison's margin goes from −limit to limit, a difference of ratings from low − high to high − low.
            ranges[column, aspect] = high if columns[column].evidence == "comparisons" else high - low
            lows[column, aspect] = np.nan if columns[column].evidence == "comparisons" else low
    return ranges, lows, all(np.isfinite(ranges[place]) for place in scales)


def _several_scales(column: Column, aspect: str, found: set[tuple[float | None, float | None]]) -> UserError:
    shown = ", ".join(
        "..".join("unbounded" if bound is None else f"{bound:g}" for bound in scale) for scale in sorted(found, key=str)
    )
    return UserError(
        f"the {column.evidence} of rater {column.name}, aspect {aspect}, are on several scales: {shown}; margins on different scales "
        "can't be compared. Choose others with --rater, --aspect or --from, or run mmpo agree on each source's FEEDBACK by itself"
    )
