"""γ fitted to independent votes, with an interval. numpy only."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mmpo.pipeline.margins import Floats, as_floats, fit_gamma_to_votes, sigmoid, softplus
from mmpo.pipeline.metrics.intervals import FEWEST_CLUSTERS, student

_HALF_CHI_SQUARE = 1.920729
"""Half of the 95% quantile of χ² with one degree of freedom."""


class GammaFit(NamedTuple):
    """gamma: in 1/margin-unit, 0 where the votes know nothing of the margins, inf where they never contradict them. low, high: its 95%
    interval, by `method`, None where too few prompts were voted on. pairs, clusters, votes: what it was fitted to. cross_entropy: nats per
    vote at gamma; ln 2 is that of a coin.
    """

    gamma: float
    low: float | None
    high: float | None
    method: str
    pairs: int
    clusters: int
    votes: float
    cross_entropy: float


def fit_gamma(margins: ArrayLike, preferring: ArrayLike, raters: ArrayLike, clusters: ArrayLike) -> GammaFit:
    """`fit_gamma_to_votes` (plain target) with a 95% interval.

    margins, preferring, raters: as there, shape (pairs,). clusters: whose votes may depend on one another, normally the prompt of each
    pair, shape (pairs,). The interval is γ ± t·√(C/(C − 1)·Σ u²)/I: u is the slope of the log-likelihood that each of the C clusters adds,
    I the curvature, t of C − 1 degrees of freedom (the cluster-robust variance of a logistic regression; Cameron and Miller 2015). On
    simulated votes that depend on one another within a prompt it holds the true γ in 95% of runs from 20 prompts up (tested; the middle
    95% of fits to resampled prompts hold it in 89%, 91% and 94% at 20, 60 and 200). Where γ is 0 or inf it has no curvature: the interval
    is then that of the profile likelihood, pairs taken as independent. InvalidValue as there.
    """
    m, k, n = (as_floats(a, b) for a, b in ((margins, "margins"), (preferring, "preferring"), (raters, "raters")))
    gamma = fit_gamma_to_votes(m, k, n)
    used = (n > 0) & (m != 0)
    m, k, n = m[used], k[used], n[used]
    of = np.unique(np.asarray(clusters)[used], return_inverse=True)[1]
    prompts, scale = int(of.max()) + 1, float(np.median(np.abs(m)))
    method, low, high = "none: too few prompts", None, None
    if prompts >= FEWEST_CLUSTERS and 0 < gamma < np.inf:
        q = sigmoid(gamma * m)
        slopes = np.bincount(of, m * (k - n * q))
        error = np.sqrt(prompts / (prompts - 1) * (slopes**2).sum()) / float((n * m**2 * q * (1 - q)).sum())
        reach = student(prompts - 1) * float(error)
        method, low, high = "cluster-robust, by prompt", max(0.0, gamma - reach), gamma + reach
    elif prompts >= FEWEST_CLUSTERS:
        method, (low, high) = "profile likelihood", _profile(m, k, n, gamma, scale)
    cost = _log_likelihood(m, k, n, gamma if gamma < np.inf else 1e6 / scale)
    return GammaFit(gamma, low, high, method, len(m), prompts, float(n.sum()), -cost / float(n.sum()))


def _log_likelihood(m: Floats, k: Floats, n: Floats, gamma: float) -> float:
    z = np.clip(gamma * m, -1e6, 1e6)
    return -float((k * softplus(-z) + (n - k) * softplus(z)).sum())


def _profile(m: Floats, k: Floats, n: Floats, gamma: float, scale: float) -> tuple[float, float]:
    """The γ whose log-likelihood is within half the χ² quantile of the best, on the one side that there is."""
    grid = np.geomspace(1e-6, 1e6, 4801) / scale
    best = _log_likelihood(m, k, n, 0.0 if gamma == 0 else float(grid[-1]))
    inside = [g for g in grid if _log_likelihood(m, k, n, float(g)) >= best - _HALF_CHI_SQUARE]
    return (0.0, float(max(inside, default=0.0))) if gamma == 0 else (float(min(inside)), float("inf"))
