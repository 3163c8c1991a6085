"""Putting grades on a common footing, each by its own source, rater and aspect, before anything is averaged.

    none     grades as they are
    minmax   (score - low) / (high - low) by the declared scale; a comparison's gap / limit
    zscore   (score - mean) / standard deviation of the group; a comparison's gap / root mean square gap
    log      natural logarithm, for counts such as votes; scores > 0
    rank     nothing here: the score stage ranks within the prompt

A grade's own standard deviation (`spread`) follows by the delta method.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from mmpo.pipeline.arrow import codes, flat, offsets_of, parents, to_numpy
from mmpo.pipeline.errors import UserError, unknown_name
from mmpo.pipeline.grades.statistics import GradeGroup, GradeStatistics

__all__ = ["NORMALISATIONS", "check_normalisation", "normalise"]

NORMALISATIONS = ("none", "minmax", "zscore", "log", "rank")


def check_normalisation(name: str, groups: Sequence[GradeGroup], found: GradeStatistics) -> None:
    """Refuse a normalisation that the chosen grades do not allow. Raises UserError naming the groups in the way."""
    if name not in NORMALISATIONS:
        raise unknown_name("normalisation (--normalise)", name, NORMALISATIONS)
    if name == "minmax":
        bare = [group for group in groups if group.low is None or group.high is None or group.low >= group.high]
        if bare:
            raise UserError(
                f"--normalise minmax needs a declared scale; {_names(bare)} declare none. Give --scale LOW:HIGH, "
                "or use zscore, log or rank"
            )
    if name == "log":
        if groups and groups[0].table == "comparisons":
            raise UserError("--normalise log is for scores; the evidence is comparisons. Use none, minmax or zscore")
        low = [group for group in groups if found.groups[group][3] <= 0]
        if low:
            least = min(found.groups[group][3] for group in low)
            raise UserError(f"--normalise log needs scores > 0; the least of {_names(low)} is {least:g}. Use rank or zscore")
    if name == "rank" and groups and groups[0].table == "comparisons":
        raise UserError("--normalise rank is for scores; the evidence is comparisons. Use none, minmax or zscore")


def _names(groups: Sequence[GradeGroup]) -> str:
    shown = [f"{group.source}/{group.rater}/{group.aspect}" for group in groups[:4]]
    return ", ".join(shown) + (f" and {len(groups) - 4} more" if len(groups) > 4 else "")


def normalise(table: pa.Table, evidence: str, name: str, groups: Sequence[GradeGroup], found: GradeStatistics) -> pa.Table:
    """The FEEDBACK table with the grades of column `evidence` normalised; rows must still be those of a single source each."""
    column = flat(table[evidence])
    grades = column.flatten()
    if name in ("none", "rank") or not len(grades):
        return table
    value_name = "score" if evidence == "ratings" else "gap"
    value, spread = to_numpy(grades.field(value_name)), to_numpy(grades.field("spread"))
    if name == "log":
        new = {value_name: np.log(value), "spread": spread / value}
        bounds = {key: np.full(len(value), np.nan) for key in ("low", "high")}
        for key, old in (("low", to_numpy(grades.field("low"))), ("high", to_numpy(grades.field("high")))):
            positive = old > 0
            bounds[key][positive] = np.log(old[positive])
        new |= bounds
    else:
        shift, scale = _shift_and_scale(table, column, evidence, name, groups, found)
        new = {value_name: (value - shift) / scale, "spread": spread / scale}
        unbounded = np.full(len(value), np.nan)
        if evidence == "ratings":
            new |= {"low": np.zeros(len(value)), "high": np.ones(len(value))} if name == "minmax" else {}
            new |= {"low": unbounded, "high": unbounded} if name == "zscore" else {}
        else:
            new["limit"] = np.ones(len(value)) if name == "minmax" else unbounded
    fields = [grades.type.field(i) for i in range(grades.type.num_fields)]
    arrays = [pa.array(new[f.name], f.type, from_pandas=True) if f.name in new else grades.field(f.name) for f in fields]
    rebuilt = pa.ListArray.from_arrays(
        pa.array(offsets_of(column).astype(np.int32)), pa.StructArray.from_arrays(arrays, fields=fields)
    )
    index = table.schema.get_field_index(evidence)
    return table.set_column(index, table.schema.field(index), rebuilt)


def _shift_and_scale(
    table: pa.Table, column: pa.ListArray, evidence: str, name: str, groups: Sequence[GradeGroup], found: GradeStatistics
) -> tuple[np.ndarray, np.ndarray]:
    """What is taken from each grade and what it is divided by, shape (grades,)."""
    grades = column.flatten()
    if name == "minmax":
        if evidence == "comparisons":
            return np.zeros(len(grades)), to_numpy(grades.field("limit"))
        low, high = to_numpy(grades.field("low")), to_numpy(grades.field("high"))
        return low, high - low
    totals = GradeStatistics()
    for group in groups:
        key = GradeGroup(evidence, group.source, group.rater, "", group.aspect, None, None)
        totals.add(GradeStatistics({key: found.groups[group]}))
    row = parents(offsets_of(column))
    keys = [codes(flat(table["source"]).take(pa.array(row)))] + [codes(grades.field(n)) for n in ("rater", "aspect")]
    distinct, inverse = np.unique(np.stack([code for code, _ in keys]), axis=1, return_inverse=True)
    shift, scale = np.zeros(distinct.shape[1]), np.ones(distinct.shape[1])
    for i, combination in enumerate(distinct.T):
        source, rater, aspect = (values[c] for c, (_, values) in zip(combination, keys, strict=True))
        count, mean, squares, _ = totals.groups[GradeGroup(evidence, source, rater, "", aspect, None, None)]
        if evidence == "comparisons":
            mean, squares = 0.0, squares + count * mean * mean
        shift[i] = mean
        scale[i] = np.sqrt(squares / count) or 1.0
    inverse = inverse.reshape(-1)
    return shift[inverse], scale[inverse]
