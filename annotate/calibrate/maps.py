"""Maps from a grader's margins to people's: how likely people are to prefer a completion, and by how much on average.

All are odd, f(−x) = −f(x), and never fall: a larger margin of the grader never stands for a smaller one of people. A map reads an *index*,
the grader's margin with odd features beside it (in which order a pair was shown, the difference of lengths), each times a weight:
index = w₀·margin + w₁·feature₁ + ..., w₀ ≥ 0. A jury has several margins, each of a weight from 0 up. Adding a map: a function and a
line in MAPS.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mmpo.pipeline.margins import Floats, sigmoid, softplus

MOST_LEVELS = 5
"""Sizes of people's margins that are told apart: of more, sizes next to one another are put together."""
WIDEST = (3.0, 1.0)
"""Standard deviations of the weak prior on the weights of margins and of the other features, in logits at their root mean square:
ten pairs that all agree do not make certainty."""
ALIKE = 0.5
"""Standard deviation, likewise, of a jury's weights about their mean."""


class HumanAnswers(NamedTuple):
    """What people said of pairs toward the first completion. votes of voters prefer it, ties count half; mean: people's mean margin;
    all of shape (pairs,). levels: how many people gave each of `values`, shape (pairs, 2·sizes + 1); values: people's margins, symmetric,
    0 in the middle, shape (2·sizes + 1,).
    """

    votes: Floats
    voters: Floats
    mean: Floats
    levels: Floats
    values: Floats

    def take(self, which: np.ndarray) -> "HumanAnswers":
        """Of some of the pairs."""
        return self._replace(**{name: getattr(self, name)[which] for name in self._fields[:-1]})


@dataclass(frozen=True)
class FittedMap:
    """A map that was fitted. weights: of the features, shape (features,); chance: index → probability that people prefer the first
    completion, a tie being half; expected: index → people's expected margin.
    """

    weights: Floats
    chance: Callable[[Floats], Floats]
    expected: Callable[[Floats], Floats]

    def index(self, features: Floats) -> Floats:
        """features: shape (pairs, features) → shape (pairs,)."""
        return features @ self.weights


Fit = Callable[[Floats, int, HumanAnswers, Floats], FittedMap]
"""(features, shape (pairs, features); how many of them, the first ones, are margins; what people said; how often each pair counts, shape
(pairs,)) → the map."""


def _scales(features: Floats, weight: Floats) -> Floats:
    """The root mean square of each feature, 1 where it is 0 throughout."""
    square = (weight[:, None] * features**2).sum(axis=0) / max(float(weight.sum()), 1e-300)
    return np.where(square > 0, np.sqrt(square), 1.0)


def _least(
    cost: Callable[[Floats], tuple[float, Floats]], features: int, margins: int, more: Floats, bounds: tuple[float, float] = (0, 0)
) -> Floats:
    """The weights, those of margins from 0 up, and further parameters within bounds, at which the cost and the prior's are least."""
    from scipy.optimize import minimize

    def with_prior(given: Floats) -> tuple[float, Floats]:
        value, slope = cost(given)
        prior, prior_slope = _prior(given[:features], margins)
        return value + prior, slope + np.concatenate([prior_slope, np.zeros(len(more))])

    limits = [(0.0, None)] * margins + [(None, None)] * (features - margins) + [bounds] * len(more)
    start = np.concatenate([np.full(features, 0.1), more])
    return minimize(with_prior, start, jac=True, method="L-BFGS-B", bounds=limits, options={"maxiter": 200, "ftol": 1e-10}).x


def _prior(weights: Floats, margins: int) -> tuple[float, Floats]:
    curvature = prior_curvature(len(weights), margins)
    unlike = np.zeros(len(weights))
    unlike[:margins] = weights[:margins] - weights[:margins].mean()
    return float((curvature * weights**2 + (unlike / ALIKE) ** 2).sum() / 2), curvature * weights + unlike / ALIKE**2


def prior_curvature(features: int, margins: int) -> Floats:
    """Of the prior on weights of features at their root mean square, one over variances; shape (features,)."""
    return np.where(np.arange(features) < margins, *WIDEST) ** -2.0


def logistic_weights(features: Floats, margins: int, answers: HumanAnswers, weight: Floats) -> Floats:
    """The weights at which σ(index) makes people's votes most likely, under the prior; shape (features,)."""
    scale = _scales(features, weight)
    x, votes, voters = features / scale, weight * answers.votes, weight * answers.voters

    def cost(w: Floats) -> tuple[float, Floats]:
        z = x @ w
        return float((voters * softplus(z) - votes * z).sum()), x.T @ (voters * sigmoid(z) - votes)

    return _least(cost, x.shape[1], margins, np.zeros(0)) / scale


def _scale(features: Floats, margins: int, answers: HumanAnswers, weight: Floats) -> FittedMap:
    """P = σ(index), and people's expected margin one factor times the index."""
    weights = logistic_weights(features, margins, answers, weight)
    index = features @ weights
    squares = float((weight * answers.voters * index**2).sum())
    factor = max(float((weight * answers.voters * index * answers.mean).sum()) / squares, 0.0) if squares > 0 else 0.0
    return FittedMap(weights, sigmoid, lambda x: factor * x)


def _normal(z: Floats) -> Floats:
    from scipy.special import ndtr

    return ndtr(z)


LINKS: dict[str, tuple[Callable[[Floats], Floats], Callable[[Floats], Floats]]] = {
    "logit": (sigmoid, lambda z: sigmoid(z) * sigmoid(-z)),
    "probit": (_normal, lambda z: np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)),
}
"""Distribution function and density."""


def _ordinal(link: str) -> Fit:
    """P(people's margin ≤ level k) = F(τ_k − index) with thresholds τ that mirror one another."""
    distribution, density = LINKS[link]

    def edges(steps: Floats) -> Floats:
        above = np.cumsum(np.exp(steps))
        return np.concatenate([-above[::-1], above])

    def below(thresholds: Floats, index: Floats) -> Floats:
        inside = distribution(thresholds - index[:, None])
        return np.concatenate([np.zeros((len(index), 1)), inside, np.ones((len(index), 1))], axis=1)

    def fit(features: Floats, margins: int, answers: HumanAnswers, weight: Floats) -> FittedMap:
        scale, counts = _scales(features, weight), weight[:, None] * answers.levels
        x, size, sizes = features / scale, features.shape[1], len(answers.values) // 2

        def cost(given: Floats) -> tuple[float, Floats]:
            w, steps = given[:size], given[size:]
            thresholds, index = edges(steps), x @ w
            p = np.maximum(np.diff(below(thresholds, index), axis=1), 1e-12)
            f, share = density(thresholds - index[:, None]), counts / p
            of_threshold = share[:, 1:] * f - share[:, :-1] * f  # of −log likelihood
            mirrored = of_threshold.sum(axis=0)
            above = mirrored[sizes:] - mirrored[:sizes][::-1]
            of_steps = np.cumsum(above[::-1])[::-1] * np.exp(steps)
            return -float((counts * np.log(p)).sum()), np.concatenate([x.T @ -of_threshold.sum(axis=1), of_steps])

        found = _least(cost, size, margins, np.zeros(sizes), (-6.0, 4.0))
        thresholds = edges(found[size:])

        def chances(index: Floats) -> Floats:
            return np.diff(below(thresholds, np.asarray(index, dtype=np.float64)), axis=1)

        def chance(index: Floats) -> Floats:
            p = chances(index)
            return p[:, sizes + 1 :].sum(axis=1) + p[:, sizes] / 2

        return FittedMap(found[:size] / scale, chance, lambda index: chances(index) @ answers.values)

    fit.__doc__ = f"P(people's margin at most level k) = F(τₖ − index), F {link}, thresholds that mirror one another."
    return fit


def _isotonic(features: Floats, margins: int, answers: HumanAnswers, weight: Floats) -> FittedMap:
    """The best odd maps that never fall, straight lines between the centers of their blocks (Oron and Flournoy 2017).

    Each pair and its mirror image together, means of neighbours where they would fall. The index is that of the votes.
    """
    weights = logistic_weights(features, margins, answers, weight)
    index, share = features @ weights, answers.votes / np.maximum(answers.voters, 1e-300)
    counted = weight * answers.voters
    x, p, size = _odd_isotonic(index, share - 0.5, counted)
    least = 1.0 / (size[-1] + 2.0)
    y, m, _ = _odd_isotonic(index, answers.mean, counted)
    return FittedMap(
        weights,
        lambda z: np.clip(0.5 + np.interp(z, x, p), least, 1 - least),
        lambda z: np.interp(z, y, m),
    )


def _odd_isotonic(x: Floats, y: Floats, weight: Floats) -> tuple[Floats, Floats, Floats]:
    """Centers, values and weights of the blocks of the isotonic regression of the doubled data."""
    from scipy.optimize import isotonic_regression

    used = weight > 0
    if not used.any():
        return np.zeros(1), np.zeros(1), np.zeros(1)
    x, y, weight = (np.concatenate([values[used], mirrored[used]]) for values, mirrored in ((x, -x), (y, -y), (weight, weight)))
    at, place = np.unique(x, return_inverse=True)
    total = np.bincount(place, weight)
    found = isotonic_regression(np.bincount(place, weight * y) / total, weights=total)
    starts = found.blocks[:-1]
    size = np.add.reduceat(total, starts)
    return np.add.reduceat(at * total, starts) / size, np.add.reduceat(found.x * total, starts) / size, size


MAPS: dict[str, Fit] = {
    "scale": _scale,
    "ordinal-logit": _ordinal("logit"),
    "ordinal-probit": _ordinal("probit"),
    "isotonic": _isotonic,
}
"""By name, the simplest first: where held-out pairs tell no difference, that is taken."""
