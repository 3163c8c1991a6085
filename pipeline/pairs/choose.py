"""From FEEDBACK to PAIRS: which pairs, their margins and errors, and what is left out; pure functions of whole prompts."""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from mmpo.pipeline.arrow import codes, flat, offsets_of, parents
from mmpo.pipeline.grades.aggregate import merge_raters
from mmpo.pipeline.grades.normalise import NORMALISATIONS
from mmpo.pipeline.grades.rater_effects import RaterSample
from mmpo.pipeline.grades.rounding import comparable, differ, rounded, step_of
from mmpo.pipeline.grades.rules import PairRules, RaterValues, in_sample, rater_values, sample_of
from mmpo.pipeline.pairs.filters import filtered
from mmpo.pipeline.pairs.strategies import STRATEGIES
from mmpo.pipeline.pairs.table import ChosenPairs
from mmpo.pipeline.pairs.uncertainty import (
    MARGIN_ERRORS,
    OwnGaps,
    PooledVariance,
    deviations,
    distinct_grades,
    own_gaps,
    weights_of,
)


class _Candidates(NamedTuple):
    """Pairs before any is left out, arrays of shape (pairs,), positions in the batch; score: NaN where pairs were compared.

    rounded_ties: which are ties only because unequal values became equal when they were rounded.
    """

    values: RaterValues
    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    score_chosen: np.ndarray
    score_rejected: np.ndarray
    margin: np.ndarray
    gaps: OwnGaps
    rounded_ties: np.ndarray


def _rated(table: pa.Table, rules: PairRules, most: int | None = None) -> _Candidates:
    """Every completion gets a score; the strategy chooses among those that have one. most: of a prompt only so many, the first by id."""
    values = rater_values(table, rules)
    grades = values.grades
    completions = flat(table["completions"])
    prompt = parents(offsets_of(completions))
    items, merged, step = merge_raters(grades, rules.merge_raters)
    exact, scores, steps = np.full(len(prompt), np.nan), np.full(len(prompt), np.nan), np.zeros(len(prompt))
    exact[items], scores[items], steps[items] = merged, comparable(merged, step, prompt[items]), step
    unequal, placed = steps.copy(), exact
    if within_prompt := NORMALISATIONS[rules.normalise].within_prompt:
        step = step_of(1.0, 1.0)
        placed = within_prompt(scores, prompt)
        scores = rounded(placed, step)
        own = comparable(grades.value, grades.step, grades.prompt, grades.rater)
        own = rounded(within_prompt(own, grades.prompt, grades.rater), step)
        steps[:] = step
        grades = replace(grades, value=own, variance=np.full_like(own, np.nan), step=step)
    known = np.flatnonzero(np.isfinite(scores))
    if most is not None:
        known = known[known - offsets_of(completions)[prompt[known]] < most]
    order = known[np.lexsort((known, -scores[known], prompt[known]))]
    sizes = np.bincount(prompt[order], minlength=table.num_rows)
    ids = completions.flatten().field("id").take(pa.array(order))
    better, worse = STRATEGIES[rules.strategy].pairs(np.cumsum(sizes) - sizes, sizes, ids, rules.seed)
    chosen, rejected = order[better], order[worse]
    gaps = own_gaps(grades, chosen, rejected)
    score_chosen, score_rejected = scores[chosen], scores[rejected]
    # Of the scores as they were: scores rounded first make two margins of one, 4 − 11/3 and 11/3 − 10/3.
    step = np.maximum(steps[chosen], steps[rejected]) if isinstance(step, np.ndarray) else step
    margin = rounded(placed[chosen] - placed[rejected], step)
    near = np.flatnonzero((score_chosen == score_rejected) | (margin <= 0))
    margin[near] = rounded(score_chosen[near] - score_rejected[near], step[near] if isinstance(step, np.ndarray) else step)
    rounded_ties = (margin == 0) & differ(exact[chosen], exact[rejected], unequal[chosen])
    if rules.origin:
        scores = rounded(scores + rules.origin, steps)
        score_chosen, score_rejected = scores[chosen], scores[rejected]
    return _Candidates(values, prompt[chosen], chosen, rejected, score_chosen, score_rejected, margin, gaps, rounded_ties)


def _compared(table: pa.Table, rules: PairRules, most: int | None = None) -> _Candidates:
    """The compared pairs that have a value; of a tie the smaller id is chosen. most: of these there are no more than were asked for."""
    values = rater_values(table, rules)
    grades, first, second = values.grades, values.given.first, values.given.second
    items, exact, step = merge_raters(grades, rules.merge_raters)
    margin = rounded(exact, step)
    first_wins = margin >= 0
    chosen, rejected = np.where(first_wins, first[items], second[items]), np.where(first_wins, second[items], first[items])
    place = np.full(len(first), -1)
    place[items] = np.arange(len(items))
    pair = place[grades.item]
    value = rounded(grades.value, grades.step)
    value = np.where(first_wins[pair], value, -value)
    gaps = OwnGaps(pair, value, np.full_like(value, np.nan), grades.variance, grades.kind, weights_of(grades))
    none = np.full(len(chosen), np.nan)
    rounded_ties = (margin == 0) & differ(exact, 0.0, step)
    return _Candidates(values, _prompts(table, chosen), chosen, rejected, none, none, np.abs(margin), gaps, rounded_ties)


_CANDIDATES = {"ratings": _rated, "comparisons": _compared}


class RaterGaps(NamedTuple):
    """Raters' own gaps for the pairs of completions that they graded whole, arrays of shape (gaps,), and the names of kinds and sources.

    pair: a number of its own for each pair; gap: in score points toward the one of the two that the merged grades prefer, `better`; kind,
    source: codes; better, worse: the completions' ids.
    """

    prompt: np.ndarray
    pair: np.ndarray
    gap: np.ndarray
    kind: np.ndarray
    kinds: list[str]
    source: np.ndarray
    sources: list[str]
    better: np.ndarray
    worse: np.ndarray


def rater_gaps(table: pa.Table, rules: PairRules) -> RaterGaps:
    """Every rater's own gap of every pair, whatever the strategy keeps. table: one row per prompt, normalised, as for `choose_pairs`."""
    found = _CANDIDATES[rules.evidence](table, replace(rules, strategy="all"))
    gaps, (source, names) = found.gaps, codes(flat(table["source"]))
    prompt = found.prompt[gaps.pair]
    ids = np.array(flat(table["completions"]).flatten().field("id").to_pylist(), dtype=object)
    sides = (ids[side[gaps.pair]] for side in (found.chosen, found.rejected))
    return RaterGaps(prompt, gaps.pair, gaps.gap, gaps.kind, list(found.values.given.kinds), source[prompt], names, *sides)


MOST_COMPLETIONS = 1000
"""Of a prompt; ids are digests, so that these are drawn at random. Half a million pairs tell a variance; all pairs of more fill memory."""


class BetweenRaters(NamedTuple):
    """What a batch says of how raters differ. squares: by source (weighted) sums of squared deviations from the pair's mean, of raters' own
    gaps and of their middles, and the degrees of freedom, shape (3,); grades: by source its `distinct_grades`, where medians are taken;
    sample: the grades that raters are compared by."""

    squares: dict[str, np.ndarray]
    grades: dict[str, np.ndarray]
    sample: RaterSample


def between_raters(table: pa.Table, rules: PairRules, share: float = 1.0) -> BetweenRaters:
    """Taken over every pair of completions that two or more raters graded, whatever the strategy keeps, of MOST_COMPLETIONS of a prompt at
    most; the sample over a share of the prompts."""
    found = _CANDIDATES[rules.evidence](table, replace(rules, strategy="all"), MOST_COMPLETIONS)
    n, _, squares = deviations(found.gaps, found.gaps.gap, len(found.prompt))
    _, _, of_middles = deviations(found.gaps, found.gaps.middle, len(found.prompt))
    source, names = codes(flat(table["source"]))
    by_source: dict[str, np.ndarray] = {}
    grades: dict[str, np.ndarray] = {}
    for code, name in enumerate(names):
        chosen = (source[found.prompt] == code) & (n >= 2)
        if chosen.any():
            by_source[name] = np.array([squares[chosen].sum(), of_middles[chosen].sum(), (n[chosen] - 1).sum()])
            if rules.merge_raters == "median":
                grades[name] = distinct_grades(OwnGaps(*(column[chosen[found.gaps.pair]] for column in found.gaps)))
    return BetweenRaters(by_source, grades, sample_of(found.values, rules, np.asarray(in_sample(flat(table["prompt_id"]), share))))


def choose_pairs(table: pa.Table, rules: PairRules, pooled: Mapping[str, PooledVariance]) -> ChosenPairs:
    """The pairs of a batch, by the rules. pooled: each source's within-pair variances, where known."""
    found = _CANDIDATES[rules.evidence](table, rules)
    size, values = len(found.prompt), found.values
    pairs = ChosenPairs(
        found.prompt, found.chosen, found.rejected, found.score_chosen, found.score_rejected, found.margin,
        *_uncertainty(table, found, rules, pooled), *_kinds(found),
        created=size, rounded_ties=found.rounded_ties, used_grades=len(values.grades.value), dropped_grades=values.dropped,
    )  # fmt: skip
    if rules.evidence == "comparisons":
        # compared pairs that no grade is left of count as made and dropped; the smaller id stands for the chosen one
        for reason, items in values.lost.items():
            if len(items):
                first, second = values.given.first[items], values.given.second[items]
                pairs.created += len(items)
                pairs.dropped[f"{reason}_pair"] = len(items)
                pairs.left_out.append((f"{reason}_pair", _prompts(table, first), first, second, None))
    return filtered(table, pairs, rules)


def _prompts(table: pa.Table, completion: np.ndarray) -> np.ndarray:
    return np.searchsorted(offsets_of(flat(table["completions"])), completion, side="right") - 1


def _uncertainty(
    table: pa.Table, found: _Candidates, rules: PairRules, pooled: Mapping[str, PooledVariance]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """margin_se (NaN: unknown), raters that prefer the chosen one (ties count half, rounded down), raters; shape (pairs,) each."""
    source, names = codes(flat(table["source"]))
    by_source = np.array([pooled.get(name, PooledVariance()) for name in names] or [PooledVariance()])
    gaps, size = found.gaps, len(found.prompt)
    variances = np.broadcast_to(by_source[0], (size, 3)) if len(names) == 1 else by_source[source][found.prompt]
    se = MARGIN_ERRORS[rules.merge_raters](gaps, *variances.T)
    if gaps.one_each(size):
        return se, (gaps.gap > 0).astype(np.int32), np.ones(size, dtype=np.int32)
    votes = np.bincount(gaps.pair, weights=(gaps.gap > 0) + 0.5 * (gaps.gap == 0), minlength=size)
    return se, np.floor(votes).astype(np.int32), np.bincount(gaps.pair, minlength=size).astype(np.int32)


def _kinds(found: _Candidates) -> tuple[np.ndarray, list[str]]:
    """The kind of a pair's raters, or "mixed"; of a pair that no rater graded whole, of the raters of its two sides."""
    gaps, grades, kinds, size = found.gaps, found.values.grades, found.values.given.kinds, len(found.prompt)
    names = [*kinds, "mixed"]
    if len(kinds) == 1:
        return np.zeros(size, dtype=np.int64), names
    least, largest = _ends(gaps.pair, gaps.kind, size)
    alone = np.flatnonzero(largest < 0)
    if len(alone):  # not of all grades at hand: which those are depends on how the input was cut
        chosen, rejected = found.chosen[alone], found.rejected[alone]
        low, high = _ends(grades.item, grades.kind, int(grades.item.max()) + 1)
        least[alone], largest[alone] = np.minimum(low[chosen], low[rejected]), np.maximum(high[chosen], high[rejected])
    return np.where(least == largest, least, len(kinds)), names


def _ends(of: np.ndarray, kind: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and the largest kind of each of so many things, shape (size,) each; of what has none the smallest is the larger one."""
    least, largest = np.full(size, np.iinfo(np.int64).max), np.full(size, -1)
    np.minimum.at(least, of, kind)
    np.maximum.at(largest, of, kind)
    return least, largest
