"""From FEEDBACK to signed margins: what each rater says of each unit, an unordered pair of completions under one aspect.

Margins point toward the completion of the smaller id. All is grouped by sorting, in an order that depends on ids only: neither the
order of rows nor that of completions or grades changes a digit.
"""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmpo.annotate.agreement.columns import Chosen, choose_columns
from mmpo.pipeline.arrow import codes, flat, large, offsets_of, parents, to_numpy
from mmpo.pipeline.grades import Grades, from_origin, merge_prompts, merge_repeats
from mmpo.pipeline.margins import Floats
from mmpo.pipeline.pairs import all_pairs, own_gaps

DECIMALS = 12
"""RaterMargins are rounded to this many decimals of their scale: 0.3 − 0.2 and 0.2 − 0.1 are one grade apart, and equal."""


@dataclass(frozen=True)
class RawGrades:
    """Grades of one kind of evidence before repeats are merged, all of shape (grades,).

    item: what was asked, the order shown included; unit: −1 for a rating; value: score from the origin of its scale
    (`mmpo.pipeline.grades.origin_of`), or gap toward the completion of the smaller id; first: whether that one was shown first.
    """

    column: np.ndarray
    item: np.ndarray
    unit: np.ndarray
    value: Floats
    first: np.ndarray

    def take(self, which: np.ndarray) -> "RawGrades":
        """Some of the grades, by a mask or by places."""
        return RawGrades(*(values[which] for values in vars(self).values()))


@dataclass(frozen=True)
class RaterMargins:
    """One margin per column and unit, sorted by column and unit; column, unit, raw, scaled, spread: shape (margins,).

    raw: in the rater's own score points; scaled: as a share of its scale's range, or of its root mean square margin (`chosen.scale`
    says which); spread: the standard deviation that the grade came with, NaN where none. prompt, aspect, log_length, low, high: shape
    (units,): log(length of the smaller id's text / length of the other), and where these two completions are among all of the table
    with one row per prompt.
    """

    chosen: Chosen
    column: np.ndarray
    unit: np.ndarray
    raw: Floats
    scaled: Floats
    spread: Floats
    prompt: np.ndarray
    aspect: np.ndarray
    log_length: Floats
    low: np.ndarray
    high: np.ndarray
    prompts: int
    raw_grades: dict[str, RawGrades]

    def of(self, column: int) -> slice:
        """Where a column's margins are."""
        low, high = np.searchsorted(self.column, [column, column + 1])
        return slice(int(low), int(high))


Part = tuple[np.ndarray, np.ndarray, Floats, Floats]
"""Column, unit key, margin and its variance of each margin, shape (margins,) each."""


def read_margins(feedback: pa.Table, chosen: Chosen | None = None) -> RaterMargins:
    """The margins of the chosen columns of a FEEDBACK table, else of those that `choose_columns` takes by itself."""
    chosen = chosen or choose_columns(feedback)
    table, _ = merge_prompts(large(feedback).combine_chunks())
    parts: list[Part] = []
    raw_grades: dict[str, RawGrades] = {}
    for name, read in (("comparisons", _compared), ("ratings", _rated)):
        if any(column.evidence == name for column in chosen.columns):
            part, raw_grades[name] = read(table, *_grades(table, name, chosen), chosen)
            parts.append(part)
    column, key, raw, variance = (np.concatenate(values) for values in zip(*parts))
    return _margins(table, chosen, column, key, raw, variance, raw_grades)


def _grades(table: pa.Table, name: str, chosen: Chosen) -> tuple[Grades, pa.Array]:
    """The chosen grades of a kind of evidence, item not yet set, `rater` being the column; and their rows."""
    column = flat(table[name])
    rows = column.flatten()
    prompt = parents(offsets_of(column))
    number, aspect = chosen.numbers(name, *(codes(rows.field(key)) for key in ("rater", "kind", "aspect")))
    kept = (number >= 0) & (aspect >= 0)
    value = to_numpy(rows.field("score" if name == "ratings" else "gap"))
    if name == "ratings":
        value = from_origin(value, to_numpy(rows.field("low")), to_numpy(rows.field("high")))
    spread = to_numpy(rows.field("spread"))
    zeros = np.zeros(len(value), dtype=np.int64)
    return Grades(prompt, zeros, number, aspect, zeros, value, spread**2).take(kept), rows.filter(pa.array(kept))


def _size(table: pa.Table) -> int:
    return len(flat(table["completions"]).flatten())


def _compared(table: pa.Table, grades: Grades, rows: pa.Array, chosen: Chosen) -> tuple[Part, RawGrades]:
    """A rater's repeats averaged within each order shown, then its two orders with one another."""
    base = offsets_of(flat(table["completions"]))[grades.prompt]
    first, second = (base + np.asarray(rows.field(name)).astype(np.int64) for name in ("first", "second"))
    key = (np.minimum(first, second) * _size(table) + np.maximum(first, second)) * len(chosen.aspects) + grades.aspect
    shown = first < second
    value = np.where(shown, grades.value, -grades.value)
    raw_grades = RawGrades(grades.rater, key * 2 + shown, key, value, shown)
    merged = merge_repeats(replace(grades, item=raw_grades.item, aspect=np.zeros_like(key), value=value))
    merged = merge_repeats(replace(merged, item=merged.item // 2))
    return (merged.rater, merged.item, merged.value, merged.variance), raw_grades


def _rated(table: pa.Table, grades: Grades, rows: pa.Array, chosen: Chosen) -> tuple[Part, RawGrades]:
    """The difference of two scores of one rater and aspect, over all pairs of a prompt's completions; repeats averaged first."""
    item = offsets_of(flat(table["completions"]))[grades.prompt] + np.asarray(rows.field("completion")).astype(np.int64)
    several = len(chosen.aspects)
    # own_gaps pairs scores of one "rater": here of one column and aspect, which it hands back as the kind.
    both = grades.rater * several + grades.aspect
    raw_grades = RawGrades(
        grades.rater, item * several + grades.aspect, np.full_like(item, -1), grades.value, np.ones(len(item), bool)
    )
    merged = merge_repeats(replace(grades, item=item, rater=both, aspect=np.zeros_like(both), kind=both))
    known = np.unique(merged.item)
    sizes = np.bincount(parents(offsets_of(flat(table["completions"])))[known], minlength=table.num_rows)
    first, second = all_pairs(np.cumsum(sizes) - sizes, sizes)
    first, second = known[first], known[second]
    gaps = own_gaps(merged, first, second)
    key = (first[gaps.pair] * _size(table) + second[gaps.pair]) * several + gaps.kind % several
    return (gaps.kind // several, key, gaps.gap, gaps.variance), raw_grades


def _margins(
    table: pa.Table,
    chosen: Chosen,
    column: np.ndarray,
    key: np.ndarray,
    raw: Floats,
    variance: Floats,
    raw_grades: dict[str, RawGrades],
) -> RaterMargins:
    keys, unit = np.unique(key, return_inverse=True)
    order = np.lexsort((unit, column))
    column, unit, raw, variance = column[order], unit[order], raw[order], variance[order]
    pair, aspect = np.divmod(keys, len(chosen.aspects))
    low, high = np.divmod(pair, max(_size(table), 1))
    completions = flat(table["completions"])
    lengths = np.maximum(np.asarray(pc.utf8_length(completions.flatten().field("text"))), 1).astype(np.float64)
    prompt = parents(offsets_of(completions))[low]
    scaled = np.round(raw / _unit_of(chosen, column, aspect[unit], raw), DECIMALS)
    return RaterMargins(
        chosen, column, unit, raw, scaled, np.sqrt(variance), prompt, aspect, np.log(lengths[low] / lengths[high]),
        low, high, len(np.unique(prompt)), {
            # Of ratings, which are about no unit, −1 stays.
            name: replace(found, unit=np.where(found.unit < 0, -1, np.searchsorted(keys, np.maximum(found.unit, 0))))
            for name, found in raw_grades.items()
        },
    )  # fmt: skip


def _unit_of(chosen: Chosen, column: np.ndarray, aspect: np.ndarray, raw: Floats) -> Floats:
    """What each margin is divided by: the range of its column's and aspect's scale, or the root mean square of its margins."""
    group = column * len(chosen.aspects) + aspect
    if chosen.scale == "range":
        return chosen.ranges.ravel()[group]
    size = chosen.ranges.size
    square = np.bincount(group, raw**2, minlength=size) / np.maximum(np.bincount(group, minlength=size), 1)
    return np.where(square > 0, np.sqrt(square), 1.0)[group]
