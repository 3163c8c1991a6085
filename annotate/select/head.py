"""A linear head on features of completions, with what is not known of it: Laplace's approximation of its posterior. numpy only.

A completion's reward is features·w, and a pair's logit z = x·w with x = features(a) − features(b), so that swapping the two turns the sign.
The weights are normal beforehand, N(start, spread²/usual), and near their most likely value after the grades (MacKay 1992, "The evidence
framework applied to classification networks").
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmpo.pipeline.margins import Floats, sigmoid, softplus

STEPS, TOLERANCE = 50, 1e-6
SPREADS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Standard deviations that the logit of a usual pair may have beforehand; those of the grades that are there choose one by the evidence."""
USUAL = 1.0
"""Where too few grades choose: fewer than FEWEST."""
FEWEST = 20


@dataclass(frozen=True)
class LaplaceHead:
    """mean: the weights, (features,); covariance: (features, features); spread: which of SPREADS; pairs: what it was fitted to."""

    mean: Floats
    covariance: Floats
    spread: float
    pairs: int

    def logits(self, x: Floats) -> Floats:
        """The most likely logit of each row of features, (rows,)."""
        return x @ self.mean

    def variances(self, x: Floats) -> Floats:
        """Their variances, (rows,)."""
        return np.einsum("ij,ij->i", x @ self.covariance, x)


def fit_head(x: Floats, p: Floats, usual: float, starts: Sequence[Floats] = (), spreads: Sequence[float] = SPREADS) -> LaplaceHead:
    """The head that grades choose. x: differences of features, (pairs, features); p: how far the first completion is preferred, 0 to 1,
    (pairs,); usual: the mean |x|² of a pair, so that `spreads` are in logits; starts: means beforehand, one of which the evidence
    chooses as it does of `spreads`; for fewer than FEWEST pairs the first is taken. Default: 0.
    """
    width, enough = x.shape[1], len(p) >= FEWEST
    starts = starts or [np.zeros(width)]
    best: tuple[float, LaplaceHead] | None = None
    for start in starts if enough else starts[:1]:
        guess = start
        for spread in spreads if enough else (USUAL,):
            decay = max(usual, 1e-12) / spread**2
            guess, root = _most_likely(x, p, decay, start, guess)
            evidence = _loss(x, p, decay, start, guess) - 0.5 * width * np.log(decay) + np.log(np.diag(root)).sum()
            if best is None or evidence < best[0]:
                inverse = np.linalg.inv(root)
                best = evidence, LaplaceHead(guess, inverse.T @ inverse, spread, len(p))
    assert best is not None
    return best[1]


def _loss(x: Floats, p: Floats, decay: float, start: Floats, weights: Floats) -> float:
    z = x @ weights
    return float((softplus(z) - p * z).sum() + 0.5 * decay * ((weights - start) ** 2).sum())


def _most_likely(x: Floats, p: Floats, decay: float, start: Floats, guess: Floats) -> tuple[Floats, Floats]:
    """The weights of least loss by Newton's steps, halved where they overshoot; and the Cholesky factor of the loss's curvature there."""
    weights, loss = guess, _loss(x, p, decay, start, guess)
    for _ in range(STEPS):
        gradient, root = _slope(x, p, decay, start, weights)
        step = np.linalg.solve(root.T, np.linalg.solve(root, gradient))
        if gradient @ step <= TOLERANCE:
            break
        share = 1.0
        while (new := _loss(x, p, decay, start, weights - share * step)) > loss and share > 1e-6:
            share /= 2
        weights, loss = weights - share * step, new
    return weights, _slope(x, p, decay, start, weights)[1]


def _slope(x: Floats, p: Floats, decay: float, start: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """The loss's gradient, and the Cholesky factor of its curvature."""
    chance = sigmoid(x @ weights)
    gradient = x.T @ (chance - p) + decay * (weights - start)
    return gradient, np.linalg.cholesky((x.T * (chance * (1 - chance))) @ x + decay * np.eye(x.shape[1])).astype(np.float64)
