"""From a batch of FEEDBACK to one value a rater and item, of ratings or of comparisons, and what first passes collect from it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmpo.pipeline.arrow import codes, flat, offsets_of, parents, to_numpy
from mmpo.pipeline.grades.aggregate import Grades, merge_aspects, merge_repeats
from mmpo.pipeline.grades.position_bias import OrderTotals, merge_orders, order_totals
from mmpo.pipeline.grades.rater_effects import remove_effects
from mmpo.pipeline.grades.rater_sample import RaterSample
from mmpo.pipeline.grades.rules import PairRules
from mmpo.pipeline.grades.statistics import GradeGroup, GradeStatistics

__all__ = ["Graded", "graded", "orders_of", "rater_sample", "sample_share", "wants_orders"]

SAMPLED_GRADES = 2_000_000
"""About how many grades raters are compared by, at most."""


@dataclass
class Graded:
    """grades: sorted by item and rater, one each. Items are positions among the batch's completions, or compared pairs first < second.

    total: grades before anything was merged; dropped: grades without a part, by reason; lost: items that have no grade left because of
    it, by reason.
    """

    grades: Grades
    raters: list[str]
    kinds: list[str]
    total: int
    dropped: dict[str, int]
    lost: dict[str, np.ndarray] = field(default_factory=dict)
    first: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    second: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @property
    def merged(self) -> int:
        """How many grades were merged into another."""
        return self.total - sum(self.dropped.values()) - len(self.grades.value)


@dataclass(frozen=True)
class _Flat:
    """The grades of a batch as they were given; names by their codes. Of comparisons: the pairs, and 1 where `first` was shown first."""

    grades: Grades
    raters: list[str]
    kinds: list[str]
    aspects: list[str]
    first: np.ndarray
    second: np.ndarray
    shown: np.ndarray

    @property
    def machine(self) -> np.ndarray:
        """Whether each grade is no person's."""
        return np.array([name != "human" for name in self.kinds] or [False])[self.grades.kind]


def _flat_ratings(table: pa.Table) -> _Flat:
    column = flat(table["ratings"])
    rows, prompt = column.flatten(), parents(offsets_of(column))
    item = offsets_of(flat(table["completions"]))[prompt] + np.asarray(rows.field("completion")).astype(np.int64)
    none = np.zeros(0, dtype=np.int64)
    return _flat(rows, prompt, item, to_numpy(rows.field("score")), none, none, none)


def _flat_comparisons(table: pa.Table) -> _Flat:
    column = flat(table["comparisons"])
    rows, prompt = column.flatten(), parents(offsets_of(column))
    base = offsets_of(flat(table["completions"]))[prompt]
    first, second = (base + np.asarray(rows.field(n)).astype(np.int64) for n in ("first", "second"))
    pairs, item = np.unique(np.stack([np.minimum(first, second), np.maximum(first, second)]), axis=1, return_inverse=True)
    gap = to_numpy(rows.field("gap"))
    in_order = first < second
    return _flat(rows, prompt, item.reshape(-1), np.where(in_order, gap, -gap), pairs[0], pairs[1], in_order.astype(np.int64))


def _flat(
    rows: pa.Array,
    prompt: np.ndarray,
    item: np.ndarray,
    value: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    shown: np.ndarray,
) -> _Flat:
    (rater, raters), (aspect, aspects), (kind, kinds) = (codes(rows.field(name)) for name in ("rater", "aspect", "kind"))
    grades = Grades(prompt, item, rater, aspect, kind, value, to_numpy(rows.field("spread")) ** 2)
    return _Flat(grades, raters, kinds, aspects, first, second, shown)


def graded(table: pa.Table, rules: PairRules) -> Graded:
    """Repeats, orders and aspects of each rater merged, its effects taken out where the rules have any."""
    if rules.evidence == "ratings":
        given = _flat_ratings(table)
        grades, in_one_order = merge_repeats(given.grades), given.grades.item[:0]
    else:
        given = _flat_comparisons(table)
        grades, in_one_order = merge_orders(
            given.grades, given.shown, given.machine, given.raters, given.aspects, rules.position, rules.one_order
        )
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
    return Graded(grades, given.raters, given.kinds, len(given.grades.value), dropped, lost, given.first, given.second)


def wants_orders(rules: PairRules, groups: Sequence[GradeGroup]) -> bool:
    """Whether a pass for position biases is needed: only machines are asked in both orders on purpose."""
    return rules.evidence == "comparisons" and any(group.kind != "human" for group in groups)


def orders_of(table: pa.Table) -> dict[tuple[str, str], OrderTotals]:
    """By rater and aspect: what the batch's comparisons in both orders add to the position bias."""
    given = _flat_comparisons(table)
    return order_totals(given.grades, given.shown, given.machine, given.raters, given.aspects)


def sample_share(groups: Sequence[GradeGroup], found: GradeStatistics) -> float:
    """The share of prompts that raters are compared by: all, unless the input holds more than about two million grades."""
    return min(1.0, SAMPLED_GRADES / max(1, sum(found.groups[group][0] for group in groups)))


def in_sample(ids: pa.Array, share: float) -> pa.Array:
    """Which prompts are in the sample: the last 32 bits of the id, which is a digest, are below the share."""
    if share >= 1:
        return pa.repeat(pa.scalar(True), len(ids))
    return pc.less(pc.utf8_slice_codeunits(ids, 24, 32), f"{int(share * 2**32):08x}")


def rater_sample(table: pa.Table, rules: PairRules, share: float) -> RaterSample:
    """The batch's part of what raters are compared by: the grades of items that two raters or more graded, in the sampled prompts."""
    chosen = table.filter(in_sample(flat(table["prompt_id"]), share)).combine_chunks()
    result = graded(chosen, rules)
    grades = result.grades
    coefficient = np.ones(len(grades.value)) if grades.coefficient is None else grades.coefficient
    everything = np.arange(len(grades.value))
    prompt = grades.prompt if rules.evidence == "ratings" else None
    return RaterSample(grades.item, grades.rater, grades.value, coefficient, result.raters, prompt).take(everything)
