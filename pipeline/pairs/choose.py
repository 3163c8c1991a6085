"""From FEEDBACK to PAIRS: which pairs (strategies), their margins, and which are left out (filters); pure functions of whole prompts.

Adding one: a function and a line in STRATEGIES or in FILTERS. Completions come ordered by score, best first, equal scores by the smaller
id; a candidate pair is (better, worse) in that order. Every random choice is the smallest blake2b-128 of "seed NUL chosen id NUL rejected
id": it does not depend on the order of anything.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmpo.pipeline.arrow import codes, flat, offsets_of, parents, ranges, row_sums
from mmpo.pipeline.grades.aggregate import merge_raters, places, runs
from mmpo.pipeline.grades.answers import Answers
from mmpo.pipeline.grades.normalise import NORMALISATIONS
from mmpo.pipeline.grades.rater_effects import RaterSample
from mmpo.pipeline.grades.rounding import comparable, differ, rounded, step_of
from mmpo.pipeline.grades.rules import PairRules, RaterValues, in_sample, rater_values, sample_of
from mmpo.pipeline.pairs.agreement import rater_missing, raters_disagree
from mmpo.pipeline.pairs.table import ChosenPairs
from mmpo.pipeline.pairs.uncertainty import MARGIN_ERRORS, OwnGaps, PooledVariance, deviations, own_gaps, weights_of


def pair_hash(seed: int, chosen: str, rejected: str) -> bytes:
    """The number that a seeded choice among pairs goes by: the smallest is taken first."""
    return blake2b(f"{seed}\0{chosen}\0{rejected}".encode(), digest_size=16).digest()


def all_pairs(starts: np.ndarray, sizes: np.ndarray, ids: pa.Array | None = None, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Every pair of a prompt's completions, sorted: positions of the better and of the worse one, shape (pairs,) each.

    starts, sizes: first position and number of each prompt's completions, shape (prompts,).
    """
    better, worse = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for size in np.unique(sizes[sizes > 1]):
        i, j = np.triu_indices(int(size), 1)
        base = starts[sizes == size][:, None]
        better.append((base + i).ravel())
        worse.append((base + j).ravel())
    first, second = np.concatenate(better), np.concatenate(worse)
    order = np.lexsort((second, first))
    return first[order], second[order]


def _best_worst(starts: np.ndarray, sizes: np.ndarray, ids: pa.Array, seed: int) -> tuple[np.ndarray, np.ndarray]:
    many = sizes > 1
    return starts[many], (starts + sizes - 1)[many]


def _best_random(starts: np.ndarray, sizes: np.ndarray, ids: pa.Array, seed: int) -> tuple[np.ndarray, np.ndarray]:
    many, names = sizes > 1, ids.to_pylist()
    others = [
        min(range(start + 1, start + size), key=lambda j, best=start: pair_hash(seed, names[best], names[j]))
        for start, size in zip(starts[many].tolist(), sizes[many].tolist(), strict=True)
    ]
    return starts[many], np.array(others, dtype=np.int64)


def _adjacent(starts: np.ndarray, sizes: np.ndarray, ids: pa.Array, seed: int) -> tuple[np.ndarray, np.ndarray]:
    better = ranges(starts, np.maximum(sizes - 1, 0))
    return better, better + 1


def _first(prompt: np.ndarray, most: int, *keys: np.ndarray) -> np.ndarray:
    """A mask that keeps, of each prompt, the `most` pairs that come first by the keys (the first key decides)."""
    order = np.lexsort((*reversed(keys), prompt))
    keep = np.zeros(len(order), dtype=bool)
    keep[order[places(*runs(prompt[order])) < most]] = True
    return keep


def _by_hash(prompt: np.ndarray, margin: np.ndarray, rank: np.ndarray, most: int) -> np.ndarray:
    """At most `most` pairs per prompt, those of the smallest hashes."""
    return _first(prompt, most, rank)


def _stratify(prompt: np.ndarray, margin: np.ndarray, rank: np.ndarray, most: int) -> np.ndarray:
    """At most `most` pairs per prompt, spread evenly over its margins.

    The prompt's margins, from its smallest to its largest, fall into `most` bins of equal width; bins give their pairs in turn, each
    by the smallest hash, larger margins first. Source: Kim et al. 2024 sample SHP's pairs uniformly over margins; their code then
    keeps the first five in file order, which undoes it.
    """
    least = np.full(int(prompt.max(initial=0)) + 1, np.inf)
    largest = np.full(len(least), -np.inf)
    np.minimum.at(least, prompt, margin)
    np.maximum.at(largest, prompt, margin)
    width = (largest - least)[prompt]
    place = np.round(
        most * (margin - least[prompt]) / np.where(width > 0, width, 1), 9
    )  # a margin on a bin's edge is in the upper bin
    bins = np.minimum(place.astype(np.int64), most - 1)
    order = np.lexsort((rank, bins, prompt))
    turn = np.empty(len(order), dtype=np.int64)
    turn[order] = places(*runs(prompt[order], bins[order]))
    return _first(prompt, most, turn, -bins, rank)


class Strategy(NamedTuple):
    """pairs: (first positions, numbers, ids of completions, seed) → positions of better and worse, as in `all_pairs`.

    capped: (prompt, margin, rank of the hash, most) → mask of the pairs to keep where a prompt has more than `most`; most: the cap where
    none is given. All arrays of shape (pairs,).
    """

    summary: str
    pairs: Callable[[np.ndarray, np.ndarray, pa.Array, int], tuple[np.ndarray, np.ndarray]]
    capped: Callable[[np.ndarray, np.ndarray, np.ndarray, int], np.ndarray] = _by_hash
    most: int | None = None

    @property
    def every_pair(self) -> bool:
        """Whether all pairs are candidates: then no score is needed, and the pairs may as well be given, as comparisons are."""
        return self.pairs is all_pairs


STRATEGIES: dict[str, Strategy] = {
    "all": Strategy("every pair of a prompt's completions", all_pairs),
    "best-worst": Strategy("the best against the worst", _best_worst),
    "best-random": Strategy("the best against a random other, as the binarised UltraFeedback does", _best_random),
    "adjacent": Strategy("each completion against the next worse one", _adjacent),
    "stratified": Strategy(
        "a sample spread evenly over the prompt's margins (needs a cap, 5 unless given)", all_pairs, _stratify, 5
    ),
}
"""What `--strategy` may be."""


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


def _rated(table: pa.Table, rules: PairRules) -> _Candidates:
    """Every completion gets a score; the strategy chooses among those that have one."""
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
    order = known[np.lexsort((known, -scores[known], prompt[known]))]
    sizes = np.bincount(prompt[order], minlength=table.num_rows)
    ids = completions.flatten().field("id").take(pa.array(order))
    better, worse = STRATEGIES[rules.strategy].pairs(np.cumsum(sizes) - sizes, sizes, ids, rules.seed)
    chosen, rejected = order[better], order[worse]
    gaps = own_gaps(grades, chosen, rejected)
    score_chosen, score_rejected = scores[chosen], scores[rejected]
    # Of the scores as they were: scores rounded first make two margins of one, 4 − 11/3 and 11/3 − 10/3.
    step = np.maximum(steps[chosen], steps[rejected])
    margin = rounded(placed[chosen] - placed[rejected], step)
    margin = np.where((score_chosen == score_rejected) | (margin <= 0), rounded(score_chosen - score_rejected, step), margin)
    rounded_ties = (margin == 0) & differ(exact[chosen], exact[rejected], unequal[chosen])
    if rules.origin:
        scores = rounded(scores + rules.origin, steps)
        score_chosen, score_rejected = scores[chosen], scores[rejected]
    return _Candidates(values, prompt[chosen], chosen, rejected, score_chosen, score_rejected, margin, gaps, rounded_ties)


def _compared(table: pa.Table, rules: PairRules) -> _Candidates:
    """The compared pairs that have a value; of a tie the smaller id is chosen."""
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


class BetweenRaters(NamedTuple):
    """What a batch says of how raters differ. squares: by source (weighted) sums of squared deviations from the pair's mean, of raters' own
    gaps and of their middles, and the degrees of freedom, shape (3,); sample: the grades that raters are compared by."""

    squares: dict[str, np.ndarray]
    sample: RaterSample


def between_raters(table: pa.Table, rules: PairRules, share: float = 1.0) -> BetweenRaters:
    """Taken over every pair of completions that two or more raters graded, whatever the strategy keeps; the sample over a share of the
    prompts."""
    found = _CANDIDATES[rules.evidence](table, replace(rules, strategy="all"))
    n, _, squares = deviations(found.gaps, found.gaps.gap, len(found.prompt))
    _, _, of_middles = deviations(found.gaps, found.gaps.middle, len(found.prompt))
    source, names = codes(flat(table["source"]))
    by_source: dict[str, np.ndarray] = {}
    for code, name in enumerate(names):
        chosen = (source[found.prompt] == code) & (n >= 2)
        if chosen.any():
            by_source[name] = np.array([squares[chosen].sum(), of_middles[chosen].sum(), (n[chosen] - 1).sum()])
    return BetweenRaters(by_source, sample_of(found.values, rules, np.asarray(in_sample(flat(table["prompt_id"]), share))))


def choose_pairs(table: pa.Table, rules: PairRules, pooled: Mapping[str, PooledVariance]) -> ChosenPairs:
    """The pairs of a batch, by the rules. pooled: each source's within-pair variances, where known."""
    found = _CANDIDATES[rules.evidence](table, rules)
    size, values = len(found.prompt), found.values
    pairs = ChosenPairs(
        found.prompt, found.chosen, found.rejected, found.score_chosen, found.score_rejected, found.margin,
        *_uncertainty(table, found, rules, pooled), *_kinds(found.gaps, values.given.kinds, size),
        created=size, rounded_ties=found.rounded_ties, used_grades=len(values.grades.value), dropped_grades=values.dropped,
    )  # fmt: skip
    if rules.evidence == "comparisons":
        # compared pairs that no grade is left of count as made and dropped; the smaller id stands for the chosen one
        for reason, items in values.lost.items():
            if len(items):
                first, second = values.given.first[items], values.given.second[items]
                pairs.created += len(items)
                pairs.dropped[f"{reason}_pair"] = len(items)
                pairs.left_out.append((f"{reason}_pair", _prompts(table, first), first, second))
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
    votes = np.bincount(gaps.pair, weights=(gaps.gap > 0) + 0.5 * (gaps.gap == 0), minlength=size)
    se = MARGIN_ERRORS[rules.merge_raters](gaps, *by_source[source][found.prompt].T)
    return se, np.floor(votes).astype(np.int32), np.bincount(gaps.pair, minlength=size).astype(np.int32)


def _kinds(gaps: OwnGaps, kinds: Sequence[str], size: int) -> tuple[np.ndarray, list[str]]:
    """The kind of a pair's raters, or "mixed"; of a pair that no rater graded whole, "mixed" unless all grades are of one kind."""
    names = [*kinds, "mixed"]
    if len(kinds) == 1:
        return np.zeros(size, dtype=np.int64), names
    least, largest = np.full(size, len(kinds)), np.full(size, -1)
    np.minimum.at(least, gaps.pair, gaps.kind)
    np.maximum.at(largest, gaps.pair, gaps.kind)
    return np.where(least == largest, least, len(kinds)), names


def _tie(table: pa.Table, pairs: ChosenPairs, rules: PairRules) -> np.ndarray:
    """Pairs of margin 0, where ties are to be dropped."""
    return (pairs.quality_margin == 0) & (rules.ties == "drop")


def _over_long(table: pa.Table, pairs: ChosenPairs, rules: PairRules) -> np.ndarray:
    """Pairs with more characters than allowed in the prompt (all its messages) or in a completion."""
    if rules.max_chars is None:
        return np.zeros(len(pairs.prompt), dtype=bool)
    prompts = flat(table["prompt"])
    of_prompt = row_sums(prompts, pc.utf8_length(prompts.flatten().field("content")))
    of_text = np.asarray(pc.utf8_length(flat(table["completions"]).flatten().field("text")))
    longest = np.maximum.reduce([of_prompt[pairs.prompt], of_text[pairs.chosen], of_text[pairs.rejected]])
    return longest > rules.max_chars


def _small_margin(table: pa.Table, pairs: ChosenPairs, rules: PairRules) -> np.ndarray:
    """Pairs of a margin below the least that is wanted."""
    return pairs.quality_margin < rules.min_margin


def _few_raters(table: pa.Table, pairs: ChosenPairs, rules: PairRules) -> np.ndarray:
    """Pairs that fewer raters graded both sides of than are wanted."""
    return pairs.raters < rules.min_raters


def _over_the_cap(table: pa.Table, pairs: ChosenPairs, rules: PairRules) -> np.ndarray:
    """Pairs beyond the largest number of pairs that a prompt may have."""
    strategy, out = STRATEGIES[rules.strategy], np.zeros(len(pairs.prompt), dtype=bool)
    most = rules.max_per_prompt or strategy.most
    if most is None:
        return out
    crowded = np.flatnonzero(np.bincount(pairs.prompt, minlength=1)[pairs.prompt] > most)
    ids = flat(table["completions"]).flatten().field("id")
    names = (ids.take(pa.array(side[crowded])).to_pylist() for side in (pairs.chosen, pairs.rejected))
    hashes = np.array([pair_hash(rules.seed, *pair) for pair in zip(*names, strict=True)], dtype="S16")
    # numpy strips trailing NULs of bytes when it compares; two hashes that differ in nothing else do not occur
    rank = np.argsort(np.argsort(hashes, kind="stable"), kind="stable")
    out[crowded] = ~strategy.capped(pairs.prompt[crowded], pairs.quality_margin[crowded], rank, most)
    return out


def _thinking_only(table: pa.Table, pairs: ChosenPairs, rules: PairRules) -> np.ndarray:
    """Pairs with a reply that is thinking without an answer, where the answer is what counts."""
    if rules.graded_part == "all" and rules.thinking == "keep":
        return np.zeros(len(pairs.prompt), dtype=bool)
    missing = Answers(table).missing()
    return missing[pairs.chosen] | missing[pairs.rejected]


def _identical_answers(table: pa.Table, pairs: ChosenPairs, rules: PairRules) -> np.ndarray:
    """Pairs of replies that differ in their thinking or in the white space around them alone, where the grades are of the answers."""
    if rules.graded_part == "all":
        return np.zeros(len(pairs.prompt), dtype=bool)
    return Answers(table).same(pairs.chosen, pairs.rejected) > 0


FILTERS: dict[str, Callable[[pa.Table, ChosenPairs, PairRules], np.ndarray]] = {
    "thinking_only": _thinking_only,
    "identical_answers": _identical_answers,
    "tie": _tie,
    "over_long": _over_long,
    "min_raters": _few_raters,
    "rater_missing": rater_missing,
    "raters_disagree": raters_disagree,
    "min_margin": _small_margin,
    "max_per_prompt": _over_the_cap,
}
"""By reason: (FEEDBACK batch, pairs left so far, rules) → mask of the pairs to leave out, shape (pairs,). They run in this order."""


def filtered(table: pa.Table, pairs: ChosenPairs, rules: PairRules) -> ChosenPairs:
    """The pairs that the rules keep; `dropped` and `left_out` of the result say what was left out and why."""
    for reason, out_of in FILTERS.items():
        pairs = pairs.without(reason, out_of(table, pairs, rules))
    return pairs
