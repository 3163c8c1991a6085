"""The ways to say which pairs deserve a person next, one line each in SELECTIONS: the family of `mmpo select --by` and `mmpo argilla push
--select`. A score says how soon; NaN, where a way has nothing to say of a pair.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from mmpo.annotate.select.known_margins import KnownMargin
from mmpo.annotate.select.pool import Pool
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.margins import Floats, sigmoid


@dataclass(frozen=True)
class PairScores:
    """Of every pair, (pairs,) each. score: the larger the sooner; parts: what it was made of, by name; asked: tells that a pair will be
    asked, and gives what all have then; None where that changes nothing."""

    score: Floats
    parts: dict[str, Floats] = field(default_factory=dict)
    asked: Callable[[int], "PairScores"] | None = None


@dataclass(frozen=True)
class Selection:
    """needs: what is missing where nothing is known of any pair; by_models: it looks at who graded what, or at features."""

    scores: Callable[[Pool], PairScores]
    needs: str
    summary: str
    by_models: bool = False


def _random(pool: Pool) -> PairScores:
    return PairScores(np.full(len(pool.keys), np.nan))


def _by_margin(value: Callable[[KnownMargin], float | None]) -> Callable[[Pool], PairScores]:
    def scores(pool: Pool) -> PairScores:
        def column(read: Callable[[KnownMargin], float | None]) -> Floats:
            return np.array([np.nan if one is None else read(one) for one in pool.known], dtype=np.float64)

        parts = {"margin": lambda one: one.margin, "margin_se": lambda one: one.se, "raters": lambda one: one.raters}
        return PairScores(column(value), {name: column(read) for name, read in parts.items()})

    return scores


def _raters_disagree(known: KnownMargin) -> float | None:
    """The share of raters on the losing side; of equal ones the larger spread between raters first."""
    if known.raters < 2:
        return None
    spread = (known.se or 0.0) * known.raters**0.5
    return known.minority + 1e-3 * spread / (1 + spread)


def graders_disagree(pool: Pool) -> PairScores:
    """The variance of a pair's margins between graders, each divided by the root mean square of its own: graders that differ by a scale
    alone do not disagree. Raises UserError where fewer than two graded anything but ties."""
    names = list(pool.graded.graders)
    if len(names) < 2:
        there = f"the only one is {names[0]}" if names else "there is none"
        raise UserError(
            f"this selection compares graders that are no people, reward models or judges, and {there}: mmpo score adds a reward model's "
            f"grades, mmpo judge a judge's{'; PAIRS do not say who graded, FEEDBACK does' if pool.graded.nameless else ''}"
        )
    margins = np.stack([pool.margins_by(name) for name in names])
    flat = [name for name in names if not any(one.margin for one in pool.graded.graders[name].values())]
    if len(names) - len(flat) < 2:
        raise UserError(f"this selection compares graders, and all margins of {', '.join(flat)} are ties")
    count = np.isfinite(margins).sum(axis=0)
    mean = np.nansum(margins, axis=0) / np.maximum(count, 1)
    variance = np.nansum((margins - mean) ** 2, axis=0) / np.maximum(count - 1, 1)
    prefer = (margins > 0).sum(axis=0) + 0.5 * (margins == 0).sum(axis=0)
    entropy = _entropy(prefer / np.maximum(count, 1))
    parts = {"variance": variance, "vote_entropy": entropy, "mean_margin": mean, "graders": count.astype(float)}
    none = np.where(count > 1, 0.0, np.nan)
    return PairScores(variance + none, {name: values + none for name, values in parts.items()})


NODES = np.linspace(-4.8, 4.8, 25)
WEIGHTS = np.exp(-(NODES**2) / 2) / np.exp(-(NODES**2) / 2).sum()
"""For means over a standard normal number: equal steps of a smooth function."""


def _entropy(p: Floats) -> Floats:
    """In bits."""
    p = np.clip(p, 1e-12, 1 - 1e-12)
    return -(p * np.log2(p) + (1 - p) * np.log2(1 - p))


def expected_information(logit: Floats, variance: Floats) -> Floats:
    """What a vote on a pair is expected to say of its logit, in bits, 0 to 1: I(vote; z) for z ~ N(logit, variance), elementwise.

    The entropy of the vote less its mean entropy where z is known (BALD, Houlsby et al. 2011, arXiv 1112.5745, eq. 2), both by 25 nodes:
    within .002 up to a variance of 36.
    """
    chance = sigmoid(logit[..., None] + np.sqrt(variance)[..., None] * NODES)
    return np.maximum(_entropy(chance @ WEIGHTS) - _entropy(chance) @ WEIGHTS, 0.0)


UNUSUAL = 0.1
"""The share of pairs, those whose features differ most, that a design leaves for last: what is furthest out tells a linear head most, and
there it is least right (empty replies, replies that go on and on)."""


class _Design:
    """A batch designed for the head, pair by pair: each that will be asked shrinks what is not known of those that resemble it, by the
    curvature of its likelihood, so that the batch does not ask the same thing twice. `toward` is what to learn of: all weights alike
    (information), or the logits of the pairs that there are (prediction)."""

    def __init__(self, pool: Pool, predict: bool) -> None:
        self.pool, self.x = pool, pool.differences
        self.logit, self.moved = pool.head.logits(self.x), self.x @ pool.head.covariance
        self.variance = np.einsum("ij,ij->i", self.moved, self.x)
        size = (self.x**2).sum(axis=1)
        self.usual = size <= np.quantile(size, 1 - UNUSUAL, method="higher")
        self.place = {int(pair): row for row, pair in enumerate(pool.looked_at)}
        self.bend = self._bend()
        self.toward = self.total = None
        if predict:
            rows = self.x[self.usual] * np.sqrt(self.bend[self.usual])[:, None]
            values, axes = np.linalg.eigh(rows.T @ rows / len(rows))
            self.toward = self.moved @ (axes * np.sqrt(np.maximum(values, 0.0)))
            self.total = max(float((self.bend * self.variance)[self.usual].mean()), 1e-30)

    def _bend(self) -> Floats:
        """The curvature of each pair's likelihood, p(1 − p) at its expected p."""
        chance = sigmoid(self.logit / np.sqrt(1 + np.pi * self.variance / 8))
        return chance * (1 - chance)

    def asked(self, pair: int) -> PairScores:
        """The scores once a pair is asked."""
        if (row := self.place.get(pair)) is not None:
            bend = self._bend()[row]
            share = bend / (1 + bend * self.variance[row])
            along = self.x @ self.moved[row]
            if self.toward is not None:
                self.toward -= np.outer(along, self.toward[row] * share)
            self.moved -= np.outer(along, self.moved[row] * share)
            self.variance = np.maximum(self.variance - along**2 * share, 0.0)
        return self.scores()

    def scores(self) -> PairScores:
        """The scores as things stand."""
        if self.toward is None or self.total is None:
            score = expected_information(self.logit, self.variance)
        else:
            score = self.bend * (self.toward**2).sum(axis=1) / (1 + self.bend * self.variance) / self.total
        parts = {"logit": self.logit, "logit_se": np.sqrt(self.variance)}
        found = {name: _everywhere(self.pool, values) for name, values in parts.items()}
        return PairScores(_everywhere(self.pool, np.where(self.usual, score, np.nan)), found, self.asked)


def information(pool: Pool) -> PairScores:
    """Expected information about the head's weights, in bits; from nothing this is the greedy D-optimal design."""
    return _Design(pool, predict=False).scores()


def prediction(pool: Pool) -> PairScores:
    """By how much the mean variance of all pairs' logits is expected to fall, as a share of what it is before the first pair, logits near 0
    counting most: the greedy design of Cohn, Ghahramani and Jordan 1996 (arXiv cs/9603104) with Laplace's approximation."""
    return _Design(pool, predict=True).scores()


def _everywhere(pool: Pool, values: Floats) -> Floats:
    """Of every pair, NaN where the head did not look."""
    found = np.full(len(pool.keys), np.nan)
    found[pool.looked_at] = values
    return found


def gap_bound(pool: Pool, width: float = 1.0) -> PairScores:
    """The largest gap that may be between two completions: the upper bound of one's reward less the lower bound of the other's, whichever
    way round is larger; bounds are `width` standard errors from the head's reward about the mean of the prompt's completions. Source:
    Melikidze et al. 2026 (arXiv 2603.09692), DeltaUCB."""
    rewards, errors = (
        [read(side) for side in pool.sides] for read in (pool.head.logits, lambda x: np.sqrt(pool.head.variances(x)))
    )
    gap, both = np.abs(rewards[0] - rewards[1]), errors[0] + errors[1]
    parts = {name: _everywhere(pool, values) for name, values in (("gap", gap), ("bounds", width * both))}
    return PairScores(parts["gap"] + parts["bounds"], parts)


SELECTIONS: dict[str, Selection] = {
    "random": Selection(_random, "", "in an order drawn by hash"),
    "uncertain": Selection(
        _by_margin(lambda known: known.se), "margins with a standard error", "the largest standard error of the margin first"
    ),
    "small-margin": Selection(_by_margin(lambda known: -abs(known.margin)), "margins", "the smallest margin first"),
    "disagreement": Selection(
        _by_margin(_raters_disagree), "pairs that two raters graded", "those on which raters disagree most first"
    ),
    "model-disagreement": Selection(
        graders_disagree,
        "pairs that two models or judges graded",
        "those whose margins by reward models or judges differ most first",
        by_models=True,
    ),
    "information": Selection(
        information,
        "features that vary",
        "those whose grade is expected to tell a head on frozen features most first, as a batch",
        by_models=True,
    ),
    "prediction": Selection(
        prediction,
        "features that vary",
        "those whose grade is expected to make the logits of all pairs surest first, as a batch",
        by_models=True,
    ),
    "gap": Selection(
        gap_bound,
        "features that vary",
        "those between whose replies the gap may be widest first (DeltaUCB); best with --per-prompt 1",
        by_models=True,
    ),
}
"""The family of `--select` and `--by`."""
