"""What is done to grades and pairs, as one record that the stages share; and doing it: one value per rater and item of a batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmpo.pipeline.arrow import flat
from mmpo.pipeline.grades.aggregate import FlatGrades, Grades, flatten, merge_aspects, merge_repeats
from mmpo.pipeline.grades.position_bias import OrderTotals, PositionBias, merge_orders, order_totals
from mmpo.pipeline.grades.rater_effects import RaterEffect, RaterSample, remove_effects
from mmpo.pipeline.grades.statistics import GradeGroup, GradeStatistics

SAMPLED_GRADES = 2_000_000
"""About how many grades raters are compared by, at most."""


@dataclass(frozen=True)
class PairRules:
    """What decides which pairs come out: see `mmpo build --help`. evidence: "ratings" or "comparisons"; score: see `parse_score`; averaged:
    the aspects that the score `mean` is of.

    steps: what values are rounded to, by (rater, aspect), see `rounding`; origin: what is added to merged scores. position, effects: what a
    first pass over the whole input found, by (rater, aspect) and by rater; empty before it and where none is needed.
    """

    evidence: str = "ratings"
    score: dict[str, float] | str = "mean"
    averaged: tuple[str, ...] = ()
    normalise: str = "none"
    merge_raters: str = "mean"
    one_order: str = "drop"
    strategy: str = "all"
    max_per_prompt: int | None = None
    min_margin: float = 0.0
    min_raters: int = 0
    agree_between: tuple[str, ...] = ()
    ties: str = "keep"
    max_chars: int | None = None
    min_chars: int | None = None
    max_tokens: int | None = None
    tokenizer: str | None = None
    languages: tuple[str, ...] = ()
    language_of: str = "prompts"
    language_confidence: float = 0.5
    duplicates: tuple[str, ...] = ()
    similarity: float = 0.8
    shingle: int = 5
    seed: int = 0
    thinking: str = "keep"
    graded_part: str = "all"
    steps: Mapping[tuple[str, str], float] = field(default_factory=dict)
    origin: float = 0.0
    position: Mapping[tuple[str, str], PositionBias] = field(default_factory=dict)
    effects: Mapping[str, RaterEffect] = field(default_factory=dict)

    def learned(self) -> dict[str, Any]:
        """{"position_bias": {"rater/aspect": ...}, "rater_effects": {rater: ...}} as the manifest keeps it; without what is empty."""
        position = {f"{rater}/{aspect}": bias.as_json() for (rater, aspect), bias in self.position.items()}
        effects = {name: effect.as_json() for name, effect in self.effects.items()}
        return {name: value for name, value in (("position_bias", position), ("rater_effects", effects)) if value}


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
    given = flatten(table, rules.evidence, rules.steps)
    if rules.evidence == "ratings":
        grades, in_one_order = merge_repeats(given.grades), given.grades.item[:0]
    else:
        grades, in_one_order = merge_orders(given, rules.position, rules.one_order)
    grades, dropped = merge_aspects(grades, rules.score, given.aspects, rules.averaged)
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
    return order_totals(flatten(table, rules.evidence, rules.steps))


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
    return sample_of(rater_values(chosen, rules), rules)


def sample_of(values: RaterValues, rules: PairRules, prompts: np.ndarray | None = None) -> RaterSample:
    """The grades of items that two raters or more graded, of the prompts of a mask where there is one."""
    grades = values.grades
    coefficient = np.ones(len(grades.value)) if grades.coefficient is None else grades.coefficient
    prompt = grades.prompt if rules.evidence == "ratings" else None
    sample = RaterSample(grades.item, grades.rater, grades.value, coefficient, values.given.raters, prompt)
    return sample.take(np.arange(len(grades.value)) if prompts is None else np.flatnonzero(prompts[grades.prompt]))
