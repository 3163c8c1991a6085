"""The mathematics of margins that all stages share: targets, standard errors, the choice of γ. numpy only, float64.

Margins are in score units, γ in 1/score-unit, probabilities are those of the chosen completion being the better one. The measures of
`mmpo.pipeline.metrics` are importable from here too.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmpo.pipeline.errors import InvalidValue

__all__ = [
    "MEAN_TARGET",
    "FilledErrors",
    "Floats",
    "InvalidValue",
    "as_floats",
    "check_gamma",
    "fill_standard_errors",
    "fit_gamma_to_votes",
    "gamma_for_mean_target",
    "margin_standard_error",
    "mean_target_of",
    "measured_probability",
    "median_standard_error",
    "resolve_gamma",
    "sigmoid",
    "softplus",
    "target_probability",
]

Floats = NDArray[np.float64]

MEAN_TARGET = 0.75
"""The mean target of the untied training pairs at γ auto: the convention of `--gamma auto`, `mmpo gamma` and the pages. docs/training.md
has its grounds; to change the default is to change this number."""


def __getattr__(name: str) -> Any:
    """The measures that stood here once, such as `ece_target`."""
    for place in () if name.startswith("_") else ("calibration", "rewardbench"):
        measures = import_module(f"mmpo.pipeline.metrics.{place}")
        if hasattr(measures, name):
            return getattr(measures, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def as_floats(values: ArrayLike, name: str) -> Floats:
    """The values as a float64 array of their own shape; InvalidValue, naming them, where they are not numbers."""
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InvalidValue(f"{name} must be numbers, not {type(values).__name__}") from None


def sigmoid(z: ArrayLike) -> Floats:
    """σ(z) = 1/(1 + e^−z) elementwise, without overflow: only e^−|z| is ever formed.

    >>> sigmoid([-1e308, 0.0, 1e308]).tolist()
    [0.0, 0.5, 1.0]
    """
    z = np.asarray(z, dtype=np.float64)
    small = np.exp(-np.abs(z))
    return np.where(z >= 0, 1.0, small) / (1.0 + small)


def softplus(z: ArrayLike) -> Floats:
    """log(1 + e^z) elementwise = −log σ(−z), in nats, without overflow."""
    z = np.asarray(z, dtype=np.float64)
    return np.maximum(z, 0.0) + np.log1p(np.exp(-np.abs(z)))


def check_gamma(gamma: float) -> float:
    """γ as a float; InvalidValue unless it is a number ≥ 0, inf allowed. 0 means p = ½ everywhere, never "no γ"."""
    try:
        value = float(gamma)
    except (TypeError, ValueError):
        raise InvalidValue(f"gamma must be a number of at least 0 (inf allowed), not {gamma!r}") from None
    if np.isnan(value) or value < 0:
        raise InvalidValue(f"gamma must be a number of at least 0 (inf allowed), not {gamma!r}")
    return value


class FilledErrors(NamedTuple):
    """Standard errors without gaps, and how many were gaps."""

    values: Floats
    filled: int


def fill_standard_errors(margin_se: ArrayLike) -> FilledErrors:
    """Unknown standard errors (null, NaN) replaced by the median of the known ones, never by 0, which would say
    "certain".

    Shape (pairs,) in and out. InvalidValue where one is negative, or where pairs exist and none is known.
    """
    se = as_floats(margin_se, "margin_se")
    unknown = np.isnan(se)
    if (se < 0).any():
        raise InvalidValue("margin_se must be 0 or more")
    if se.size and unknown.all():
        raise InvalidValue("no pair has a known margin_se: use the plain target, or feedback of several raters")
    if not unknown.any():
        return FilledErrors(se, 0)
    return FilledErrors(np.where(unknown, np.median(se[~unknown]), se), int(unknown.sum()))


def target_probability(margin: ArrayLike, gamma: float, margin_se: ArrayLike | None = None) -> Floats:
    """p, the target that a pair's margin m is worth; the shape of `margin`, in [0, 1].

    Plain (margin_se None): p = σ(γm); γ = ∞ gives 1 for m > 0, ½ for ties and 0 for m < 0. Noise-aware: p = E σ(γM) for
    M ~ N(m, se²) ≈ σ(γm/√(1 + πγ²se²/8)), within .005 of the integral up to γ·se = 1 and .017 up to 8; γ = ∞ is that
    formula's limit, σ(m/(se·√(π/8))). A null or NaN se takes the median of the known ones (`fill_standard_errors`
    counts them). Raises InvalidValue (a ValueError) for γ < 0 or NaN, margins that are NaN, or where no se is known.
    Source: Kim et al. 2024 (arXiv 2410.03145), section 4; the approximation: MacKay 1992.

    >>> target_probability([0.0, 1.0], gamma=0.0).tolist(), target_probability([0.0, 1.0], gamma=float("inf")).tolist()
    ([0.5, 0.5], [0.5, 1.0])
    """
    gamma = check_gamma(gamma)
    m = as_floats(margin, "margins")
    if np.isnan(m).any():
        raise InvalidValue("margins must be numbers: at least one is null or NaN")
    if margin_se is None:
        return sigmoid(_scaled(m, gamma))
    se = np.broadcast_to(fill_standard_errors(margin_se).values, m.shape)
    # γm/√(1 + πγ²se²/8) = m/√(1/γ² + π·se²/8): the right side is finite at γ = ∞ and never squares a large γ.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        width = np.hypot(np.divide(1.0, gamma), np.sqrt(np.pi / 8) * se)
        logit = np.where(m == 0, 0.0, m / width)
    return sigmoid(logit)


def _scaled(m: Floats, gamma: float) -> Floats:
    """γ·m, with ∞·0 = 0: a tie stays a tie at any γ."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.where(m == 0, 0.0, gamma * m) if gamma else np.zeros_like(m)


def measured_probability(preferring: ArrayLike, raters: ArrayLike) -> Floats:
    """(preferring + ½)/(raters + 1): the share of raters that prefer the chosen completion, shrunk to ½; shape
    (pairs,).

    The posterior mean under Jeffreys' Beta(½, ½); ½ where nobody voted. InvalidValue unless 0 ≤ preferring ≤ raters.
    """
    k, n = as_floats(preferring, "preferring"), as_floats(raters, "raters")
    if not ((k >= 0) & (k <= n)).all():
        raise InvalidValue("preferring must lie between 0 and raters in every pair")
    return (k + 0.5) / (n + 1.0)


def margin_standard_error(n: ArrayLike, s2: ArrayLike, pooled_variance: ArrayLike, own_spread: ArrayLike) -> Floats:
    """The standard error of a margin that n raters gave, in score units, shape (pairs,), NaN where unknown.

    n: raters of the pair, ≥ 1. s2: variance (n − 1 below) of the raters' own gaps; not read where n = 1.
    pooled_variance: s0², the source's pooled within-pair variance of gaps, NaN if no pair has two raters. own_spread:
    standard deviation of the gap that a single judge reported, or NaN. √((4·s0² + (n−1)·s²)/(4 + n − 1)/n): s² is
    shrunk to s0² as if by 4 more degrees of freedom (the naive s/√n says "certain" of half of all two-rater pairs,
    which agree by chance); n = 1: s0 if known, else the own spread. Arguments broadcast.
    """
    count, s2_, s02, spread = np.broadcast_arrays(
        *(as_floats(a, b) for a, b in ((n, "n"), (s2, "s2"), (pooled_variance, "pooled_variance"), (own_spread, "own_spread")))
    )
    if (count < 1).any() or (s2_ < 0).any() or (s02 < 0).any() or (spread < 0).any():
        raise InvalidValue("n must be 1 or more, and variances and spreads 0 or more")
    degrees = count - 1.0
    several = np.sqrt((4.0 * s02 + degrees * s2_) / (4.0 + degrees) / count)
    single = np.where(np.isnan(s02), spread, np.sqrt(s02))
    return np.where(count > 1, several, single)


SIMULATED_PANELS = 256
"""Of each pair, for the standard error of a median."""


def _draws(raters: int) -> Floats:
    """Normal draws for biases and two scores, shape (3, SIMULATED_PANELS, raters), the same ones always.

    They come with their negatives and, as far as there are draws enough, with unit variances and no correlations: means of raters are then
    exact, and medians nearly.
    """
    half = np.random.default_rng(0).standard_normal((SIMULATED_PANELS // 2, 3 * raters))
    if 3 * raters <= len(half):
        half = np.linalg.qr(half)[0] * np.sqrt(len(half))
    return np.concatenate([half, -half]).reshape(SIMULATED_PANELS, 3, raters).swapaxes(0, 1)


LEAST_GRID = 0.05
"""Of the standard deviation of a gap: a finer grid adds nothing to an error that could be seen."""

_PLACES = np.random.default_rng(1).permuted(np.tile((np.arange(SIMULATED_PANELS) + 0.5) / SIMULATED_PANELS, (2, 1)), axis=1)
"""Where between two grades the truth lies in each simulated panel, for either side."""


def _of_rounded(scores: Floats, grid: Floats, place: Floats) -> Floats:
    """Medians of scores, shape (pairs, panels, raters), that are rounded to a grid, which place moves, shape (panels,)."""
    step, shift = grid[:, None], place * grid[:, None]
    return np.median(np.rint((scores + shift[:, :, None]) / step[:, :, None]), axis=2) * step - shift


def median_standard_error(
    gaps: ArrayLike, middles: ArrayLike, pooled_variance: ArrayLike, pooled_middles: ArrayLike, grid: ArrayLike = 0.0
) -> Floats:
    """The standard error of the difference of the medians of n raters' scores of two completions, or of the median of their gaps.

    gaps, middles: each rater's own difference and mean of its two scores, shape (pairs, n), n ≥ 2, in score units; middles NaN: gaps were
    given, and their median is meant. pooled_variance, pooled_middles: the source's variances of both within pairs, shape (pairs,). grid:
    how far apart neighbouring grades are, 0: any number may be a grade; shape (pairs,).

    No formula in n alone covers: with raters who differ by a constant, the median of many may rest on one of them. So the pair's panel is
    graded again, many times: rater r's bias is drawn given its middle, which is bias and noise (their shares come from the pooled
    variances), then its two scores; noise has variance V/2, V being the own gaps' variance shrunk to the pooled one as for the mean.
    The draws are the same for all pairs and runs. Normal noise of a half, one and three times smaller biases, 3 to 9 raters: ± 1.96 of
    these hold the true margin in .93 to .97 of pairs (tested).

    A median of whole grades is a whole one itself: its rounding error, unlike that of a mean, is not averaged over raters. So the
    panel's new grades are rounded to the grid, what they estimate lying anywhere between two points; V holds grid²/12 for it.
    """
    gap, middle = as_floats(gaps, "gaps"), as_floats(middles, "middles")
    pooled, of_middles = as_floats(pooled_variance, "pooled_variance"), as_floats(pooled_middles, "pooled_middles")
    n = gap.shape[1]
    variance = (4.0 * pooled + (n - 1) * gap.var(axis=1, ddof=1)) / (4.0 + n - 1)
    draws, (points, compared) = _draws(n), np.broadcast_arrays(as_floats(grid, "grid"), middle[:, 0])
    coarse, compared = points > LEAST_GRID * np.sqrt(variance), np.isnan(compared)
    shares = np.where(compared, 1.0, 0.5)  # one grade's share of the variance of a gap
    noise = np.sqrt(shares * np.where(coarse, np.maximum(variance - points**2 / 12 / shares, 0.0), variance))
    with np.errstate(invalid="ignore", divide="ignore"):
        real = np.clip(np.nan_to_num(1.0 - pooled / 4.0 / of_middles), 0.0, 1.0)  # share of the middles' variance that biases make
    result = np.sqrt(variance * np.mean(np.median(draws[0], axis=1) ** 2))
    batch = max(1, (1 << 22) // (SIMULATED_PANELS * n))
    for rounds, rated in ((False, ~coarse & ~compared), (True, coarse)):
        pairs = np.flatnonzero(rated)
        for start in range(0, len(pairs), batch):
            of = pairs[start : start + batch]
            size, share = noise[of][:, None, None], np.where(compared[of], 0.0, real[of])[:, None]
            own = np.where(compared[of][:, None], 0.0, middle[of])
            center = own.mean(axis=1, keepdims=True)
            bias = (center + (own - center) * share)[:, None, :] + np.sqrt(share / 2)[:, :, None] * size * draws[0]
            sides = [bias + size * draw for draw in draws[1:]]
            errors = [
                _of_rounded(side, points[of], place) if rounds else np.median(side, axis=2) for side, place in zip(sides, _PLACES)
            ]
            result[of] = np.sqrt(np.mean((errors[0] - np.where(compared[of][:, None], 0.0, errors[1])) ** 2, axis=1))
    return result


def mean_target_of(gamma: float | str) -> float | None:
    """The mean target that γ auto is chosen by; None for a γ that is a number.

    >>> mean_target_of("auto") == MEAN_TARGET, mean_target_of("auto:.9"), mean_target_of(1.1)
    (True, 0.9, None)
    """
    if not isinstance(gamma, str):
        return None
    name, colon, text = gamma.partition(":")
    try:
        mean = float(text) if colon else MEAN_TARGET
    except ValueError:
        mean = np.nan
    if name != "auto" or not 0.5 < mean < 1.0:
        raise InvalidValue(
            f"gamma {gamma!r}: a number of at least 0, auto, or auto:MEAN with a mean target between .5 and 1 (auto:.9)"
        )
    return mean


def resolve_gamma(gamma: float | str, margins: ArrayLike) -> float:
    """The number itself, or for "auto" and "auto:MEAN" the γ at which the mean target of the margins above 0 is `MEAN_TARGET` or MEAN.

    margins: shape (pairs,). InvalidValue where there is none above 0.
    """
    mean = mean_target_of(gamma)
    if mean is None:
        return check_gamma(gamma)
    decided = as_floats(margins, "margins")
    decided = decided[decided > 0]
    if not len(decided):
        raise InvalidValue(f"gamma {gamma} needs pairs with a positive margin and there is none: give --gamma a number")
    return gamma_for_mean_target(decided, mean)


def gamma_for_mean_target(margins: ArrayLike, mean: float = MEAN_TARGET) -> float:
    """The γ at which the mean of σ(γm) over the margins above 0 is `mean`: a stated convention, no fit. In
    1/margin-unit.

    margins: shape (pairs,), finite; ties and negative ones are left out. mean in (.5, 1). Exact to about 1e-12
    relative. InvalidValue where no margin is positive. The mean is increasing and concave in γ, so that Newton's
    steps from 0 never overshoot.

    >>> round(gamma_for_mean_target([1.0, 1.0], 0.75), 6)  # log 3
    1.098612
    """
    m = as_floats(margins, "margins").ravel()
    if not 0.5 < mean < 1.0:
        raise InvalidValue(f"the mean target must lie in (0.5, 1), not {mean!r}")
    m = m[m > 0]
    if not m.size or not np.isfinite(m).all():
        raise InvalidValue("a gamma needs finite margins above 0, and there are none" if not m.size else "margins are infinite")
    scale = float(m.max())
    m = m / scale
    gamma = 0.0
    for _ in range(1000):
        p = sigmoid(gamma * m)
        short = mean - float(p.mean())
        slope = float((p * (1 - p) * m).mean())
        if short <= 0 or slope == 0 or short / slope <= 1e-13 * gamma:
            break
        gamma += short / slope
    return gamma / scale


def fit_gamma_to_votes(margins: ArrayLike, preferring: ArrayLike, raters: ArrayLike, margin_se: ArrayLike | None = None) -> float:
    """The γ under which independent votes are most likely, through the target that training will use; in 1/margin-unit.

    margins, preferring, raters (and margin_se for the noise-aware target): shape (pairs,). The votes must be of
    raters that made no part of the margins: against the margin's own sign every likelihood prefers γ → ∞. Returns 0
    where the votes know nothing of the margins and inf where they never contradict them. InvalidValue where no pair
    has both a margin and a vote.
    """
    m, k, n = (as_floats(a, b) for a, b in ((margins, "margins"), (preferring, "preferring"), (raters, "raters")))
    se = None if margin_se is None else fill_standard_errors(margin_se).values
    if not ((k >= 0) & (k <= n)).all():
        raise InvalidValue("preferring must lie between 0 and raters in every pair")
    used = (n > 0) & (m != 0)
    if not used.any():
        raise InvalidValue("no pair has both a margin other than 0 and a vote: there is nothing to fit gamma to")
    m, k, n = m[used], k[used], n[used]
    se = None if se is None else se[used]

    def cost(log_gamma: float) -> float:
        p = target_probability(m, float(np.exp(log_gamma)), se)
        with np.errstate(divide="ignore", invalid="ignore"):
            right, wrong = np.where(k > 0, k * np.log(p), 0.0), np.where(n > k, (n - k) * np.log1p(-p), 0.0)
        return -float((right + wrong).sum() / n.sum())

    grid = np.linspace(np.log(1e-5), np.log(1e5), 93) - np.log(float(np.median(np.abs(m))))
    costs = [cost(g) for g in grid]
    best = int(np.argmin(costs))
    if best == 0 or costs[best] >= np.log(2.0):
        return 0.0
    flat = costs[-1] <= costs[best] * (1 + 1e-9) + 1e-12
    return float("inf") if flat else float(np.exp(_golden(cost, grid[best - 1], grid[best + 1])))


def _golden(cost: Callable[[float], float], low: float, high: float) -> float:
    """The least point of a function with one dip between low and high, by golden section, to 1e-8."""
    ratio = (np.sqrt(5.0) - 1) / 2
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    cost_a, cost_b = cost(a), cost(b)
    while high - low > 1e-8:
        if cost_a <= cost_b:
            high, b, cost_b = b, a, cost_a
            a = high - ratio * (high - low)
            cost_a = cost(a)
        else:
            low, a, cost_a = a, b, cost_b
            b = low + ratio * (high - low)
            cost_b = cost(b)
    return (low + high) / 2
