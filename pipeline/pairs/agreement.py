"""Pairs on which two raters are of one mind: `--agree-between A,B`."""

import numpy as np
import pyarrow as pa

from mmpo.pipeline.filters import Verdict
from mmpo.pipeline.grades.rounding import rounded
from mmpo.pipeline.grades.rules import PairRules, RaterValues, rater_values
from mmpo.pipeline.pairs.table import ChosenPairs
from mmpo.pipeline.pairs.uncertainty import own_gaps


def rater_missing(table: pa.Table, pairs: ChosenPairs, rules: PairRules) -> Verdict:
    """Pairs of which one of the raters who shall agree did not grade both sides.

    Nobody knows then whether they do; what is known of all pairs stays in `pairs.agree`.
    """
    signs = _signs(table, pairs, rules)
    pairs.agree = np.where(np.isnan(signs).any(axis=0), np.nan, (signs == signs[:1]).all(axis=0))
    names = np.array(rules.agree_between, dtype=object)
    out = np.isnan(pairs.agree)
    return Verdict(out, [{"missing": names[np.isnan(column)].tolist()} for column in signs.T[out]])


def raters_disagree(table: pa.Table, pairs: ChosenPairs, rules: PairRules) -> Verdict:
    """Pairs on which the raters' own gaps have different signs; a tie agrees with a tie alone.

    As `rater_missing` found.
    """
    out = pairs.agree == 0
    signs = _signs(table, pairs, rules) if out.any() else np.zeros((len(rules.agree_between), len(out)))
    names = {1.0: "chosen", -1.0: "rejected", 0.0: "tie"}
    return Verdict(out, [{"prefer": dict(zip(rules.agree_between, map(names.get, column.tolist())))} for column in signs.T[out]])


def _signs(table: pa.Table, pairs: ChosenPairs, rules: PairRules) -> np.ndarray:
    """Of every rater who shall agree the sign of its own gap chosen - rejected, NaN where it has none, shape (raters, pairs)."""
    found = np.full((len(rules.agree_between), len(pairs.prompt)), np.nan)
    if not found.size:
        return found
    values = rater_values(table, rules)
    for row, name in zip(found, rules.agree_between, strict=True):
        if name in values.given.raters:
            _fill(row, values, values.given.raters.index(name), pairs, rules)
    return found


def _fill(row: np.ndarray, values: RaterValues, rater: int, pairs: ChosenPairs, rules: PairRules) -> None:
    grades = values.grades.take(values.grades.rater == rater)
    if rules.evidence == "ratings":
        gaps = own_gaps(grades, pairs.chosen, pairs.rejected)
        row[gaps.pair] = np.sign(gaps.gap)
        return
    size = max(int(pairs.rejected.max(initial=0)), int(pairs.chosen.max(initial=0)), int(values.given.second.max(initial=0))) + 1
    key = values.given.first[grades.item] * size + values.given.second[grades.item]  # sorted, as items are
    wanted = np.minimum(pairs.chosen, pairs.rejected) * size + np.maximum(pairs.chosen, pairs.rejected)
    at = np.searchsorted(key, wanted)
    there = np.isin(wanted, key)
    sign = np.sign(rounded(grades.value, grades.step))[at[there]]  # of the one that stands first
    row[there] = np.where(pairs.chosen < pairs.rejected, 1, -1)[there] * sign
