"""From a batch of FEEDBACK to one value per rater and item, of ratings or of comparisons, and what first passes collect from it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmpo.pipeline.arrow import codes, flat, offsets_of, parents, to_numpy
from mmpo.pipeline.grades.aggregate import FlatGrades, Grades, merge_aspects, merge_repeats
from mmpo.pipeline.grades.position_bias import OrderTotals, merge_orders, order_totals
from mmpo.pipeline.grades.rater_effects import remove_effects
from mmpo.pipeline.grades.rater_sample import RaterSample
from mmpo.pipeline.grades.rules import PairRules
from mmpo.pipeline.grades.statistics import COLUMNS, GradeGroup, GradeStatistics

SAMPLED_GRADES = 2_000_000
"""About how many grades raters are compared by, at most."""


def flatten(table: pa.Table, evidence: str) -> FlatGrades:
    """The grades of a batch as they were given. Items are positions among the batch's completions, or compared pairs first < second."""
    column = flat(table[evidence])
    rows, prompt = column.flatten(), parents(offsets_of(column))
    (rater, raters), (aspect, aspects), (kind, kinds) = (codes(rows.field(name)) for name in ("rater", "aspect", "kind"))
    value, variance = to_numpy(rows.field(COLUMNS[evidence][0])), to_numpy(rows.field("spread")) ** 2
    base = offsets_of(flat(table["completions"]))[prompt]

    def place(name: str) -> np.ndarray:
        return base + np.asarray(rows.field(name)).astype(np.int64)

    if evidence == "ratings":
        return FlatGrades(Grades(prompt, place("completion"), rater, aspect, kind, value, variance), raters, kinds, aspects)
    first, second = place("first"), place("second")
    pairs, item = np.unique(np.stack([np.minimum(first, second), np.maximum(first, second)]), axis=1, return_inverse=True)
    shown = (first < second).astype(np.int64)
    value = np.where(shown == 1, value, -value)
    grades = Grades(prompt, item.reshape(-1), rater, aspect, kind, value, variance, shown)
    return FlatGrades(grades, raters, kinds, aspects, pairs[0], pairs[1])


@dataclass
class RaterValues:
    """One value per rater and item: grades, sorted by item and rater; given: the grades before anything was merged.

    dropped: grades without a part, by reason; lost: items that have no grade left because of it, by reason.
    """

    grades: Grades
    given: FlatGrades
    dropped: dict[str, int]
    lost: dict[str, np.ndarray]


def rater_values(table: pa.Table, rules: PairRules) -> RaterValues:
    """Repeats, orders and aspects of each rater merged, its effects taken out where the rules have any."""
    given = flatten(table, rules.evidence)
    if rules.evidence == "ratings":
        grades, in_one_order = merge_repeats(given.grades), given.grades.item[:0]
    else:
        grades, in_one_order = merge_orders(given, rules.position, rules.one_order)
    grades, dropped = merge_aspects(grades, rules.score, given.aspects)
    left_out = {"one_order": in_one_order}
    if rules.effects:
        grades, left_out["no_signal"] = remove_effects(grades, given.raters, rules.effects)
    left_out = {reason: items for reason, items in left_out.items() if len(items)}
    dropped |= {reason: len(items) for reason, items in left_out.items()}
    lost, known = {}, grades.item
    for reason, items in left_out.items():
        lost[reason] = np.setdiff1d(items, known)
        known = np.union1d(known, lost[reason])
    return RaterValues(grades, given, dropped, lost)


def wants_orders(rules: PairRules, groups: Sequence[GradeGroup]) -> bool:
    """Whether a pass for position biases is needed: only machines are asked in both orders on purpose."""
    return rules.evidence == "comparisons" and any(group.kind != "human" for group in groups)


def orders_of(table: pa.Table, rules: PairRules) -> dict[tuple[str, str], OrderTotals]:
    """By rater and aspect: what the batch's comparisons in both orders add to the position bias."""
    return order_totals(flatten(table, rules.evidence))


def sample_share(groups: Sequence[GradeGroup], statistics: GradeStatistics) -> float:
    """The share of prompts that raters are compared by: all, unless the input holds more than about two million grades."""
    return min(1.0, SAMPLED_GRADES / max(1, sum(statistics.groups[group].count for group in groups)))


def in_sample(ids: pa.Array, share: float) -> pa.Array:
    """Which prompts are in the sample: the last 32 bits of the id, which is a digest, are below the share."""
    if share >= 1:
        return pa.repeat(pa.scalar(True), len(ids))
    return pc.less(pc.utf8_slice_codeunits(ids, 24, 32), f"{int(share * 2**32):08x}")


def rater_sample(table: pa.Table, rules: PairRules, share: float = 1.0) -> RaterSample:
    """The batch's part of what raters are compared by: the grades of items that two raters or more graded, in the sampled prompts."""
    chosen = table.filter(in_sample(flat(table["prompt_id"]), share)).combine_chunks()
    values = rater_values(chosen, rules)
    grades = values.grades
    coefficient = np.ones(len(grades.value)) if grades.coefficient is None else grades.coefficient
    prompt = grades.prompt if rules.evidence == "ratings" else None
    sample = RaterSample(grades.item, grades.rater, grades.value, coefficient, values.given.raters, prompt)
    return sample.take(np.arange(len(grades.value)))
