"""How far a model's probabilities can be trusted: accuracy, three expected calibration errors, Brier scores. numpy only,
float64.

z is the model's logit for "chosen is better", q = σ(z) its probability, p the target, all of shape (pairs,). The
three calibration errors answer different questions and are never mixed: against the targets, against the labels,
against independent votes. A measure over no pairs is None.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mmpo.pipeline.margins import Floats, InvalidValue, as_floats, sigmoid, softplus

BINS = 15
SAME = 1e-4
"""Mean |z| up to which z is rounding, and the mean cross-entropy that of z = 0 to four digits."""


class Parts(NamedTuple):
    """What a measure adds up over pairs, so that any sample of them has one: Σ value/Σ weight, with bins Σ |Σ value of a bin|/Σ weight.

    value, weight: shape (pairs,), both 0 where a pair has no say; bin: the bin of each pair, or None.
    """

    value: Floats
    weight: Floats
    bin: np.ndarray | None = None

    def total(self) -> float | None:
        """The measure over all pairs; None where none has a say."""
        weight = self.weight.sum()
        if not weight:
            return None
        if self.bin is None:
            return float(self.value.sum() / weight)
        return float(np.abs(np.bincount(self.bin, self.value)).sum() / weight)


def accuracy_parts(z: ArrayLike, margin: ArrayLike) -> Parts:
    """Of `accuracy`."""
    decided = (as_floats(margin, "margins") > 0).astype(np.float64)
    return Parts((as_floats(z, "z") > 0) * decided, decided)


def accuracy(z: ArrayLike, margin: ArrayLike | None = None) -> float | None:
    """Share of pairs with margin > 0 whose z > 0; ties are left out, z = 0 is wrong. In [0, 1]. None where the model tells no pair apart,
    as one that equals its reference: the mean |z| is at most `SAME`.

    Without margins every pair counts as decided.
    """
    z_ = as_floats(z, "z")
    parts = accuracy_parts(z_, np.ones_like(z_) if margin is None else margin)
    return parts.total() if parts.weight.sum() and np.abs(z_ * parts.weight).sum() > SAME * parts.weight.sum() else None


def ece_target_parts(q: ArrayLike, p: ArrayLike, bins: int = BINS) -> Parts:
    """Of `ece_target`."""
    q_, p_ = _probabilities(q, "q"), _probabilities(p, "p")
    return _both_ways(q_, p_, np.ones_like(q_), bins)


def ece_target(q: ArrayLike, p: ArrayLike, bins: int = BINS) -> float | None:
    """Σ over bins of q of (share of pairs)·|mean q − mean p|, every pair in both orientations (q, p) and (1 − q, 1 −
    p).

    0 for a perfect MMPO model. Both orientations, because which of the two is called chosen is no property of the
    model: without them one that is wrong by the same amount in both directions looks
    biased. Equal bins on [0, 1], one more where their number is odd, so that ½ is an edge: in a bin around it the two orientations would
    cancel, whatever p. A model that always says ½ has error 0: it knows nothing and claims nothing. In [0, 1].
    """
    return ece_target_parts(q, p, bins).total()


def ece_label_parts(q: ArrayLike, decided: ArrayLike | None = None, bins: int = BINS) -> Parts:
    """Of `ece_label`."""
    q_ = _probabilities(q, "q")
    return _binned(np.maximum(q_, 1 - q_), (q_ > 0.5).astype(np.float64), _decided(q_, decided), bins)


def ece_label(q: ArrayLike, decided: ArrayLike | None = None, bins: int = BINS) -> float | None:
    """Confidence max(q, 1 − q) against correctness (q > ½), 15 equal bins on [0, 1], left-closed, over decided pairs
    only.

    decided: boolean, shape (pairs,): margin > 0; by default all. The usual ECE (Guo et al. 2017). It rewards γ → ∞: a
    perfect MMPO model, always right and less than certain, scores badly. In [0, 1].
    """
    return ece_label_parts(q, decided, bins).total()


def ece_vote_parts(q: ArrayLike, preferring: ArrayLike, raters: ArrayLike, bins: int = BINS) -> Parts:
    """Of `ece_vote`."""
    q_, k, n = _probabilities(q, "q"), as_floats(preferring, "preferring"), as_floats(raters, "raters")
    if not ((k >= 0) & (k <= n)).all():
        raise InvalidValue("preferring must lie between 0 and raters in every pair")
    return _both_ways(q_, k / np.maximum(n, 1e-300), n, bins)


def ece_vote(q: ArrayLike, preferring: ArrayLike, raters: ArrayLike, bins: int = BINS) -> float | None:
    """q against the votes of raters that made no part of the margin: both orientations, bins of q, every vote counts
    one.

    preferring of raters votes went to the chosen completion. None where there are no votes. In [0, 1].
    """
    return ece_vote_parts(q, preferring, raters, bins).total()


def brier_parts(q: ArrayLike, decided: ArrayLike | None = None) -> Parts:
    """Of `brier`."""
    q_ = _probabilities(q, "q")
    weight = _decided(q_, decided)
    return Parts((1 - q_) ** 2 * weight, weight)


def brier(q: ArrayLike, decided: ArrayLike | None = None) -> float | None:
    """Mean (1 − q)² over decided pairs: the label is always "chosen". In [0, 1], 0 is best."""
    return brier_parts(q, decided).total()


def soft_brier_parts(q: ArrayLike, p: ArrayLike) -> Parts:
    """Of `soft_brier`."""
    q_, p_ = _probabilities(q, "q"), _probabilities(p, "p")
    return Parts((q_ - p_) ** 2, np.ones_like(q_))


def soft_brier(q: ArrayLike, p: ArrayLike) -> float | None:
    """Mean (q − p)² over all pairs, ties included. In [0, 1], 0 is best."""
    return soft_brier_parts(q, p).total()


def cross_entropy_parts(z: ArrayLike, p: ArrayLike) -> Parts:
    """Of `cross_entropy`."""
    z_, p_ = as_floats(z, "z"), _probabilities(p, "p")
    return Parts(p_ * softplus(-z_) + (1 - p_) * softplus(z_), np.ones_like(z_))


def cross_entropy(z: ArrayLike, p: ArrayLike) -> float | None:
    """Mean −p·log σ(z) − (1−p)·log σ(−z) over all pairs, ties included, in nats; at least the mean entropy of p."""
    return cross_entropy_parts(z, p).total()


def nll_parts(z: ArrayLike, margin: ArrayLike) -> Parts:
    """Of `nll`."""
    decided = (as_floats(margin, "margins") > 0).astype(np.float64)
    return Parts(softplus(-as_floats(z, "z")) * decided, decided)


def nll(z: ArrayLike, margin: ArrayLike) -> float | None:
    """Mean −log σ(z) over pairs with margin > 0, in nats: the likelihood of the labels, Bradley–Terry's loss. ln 2 is a coin's."""
    return nll_parts(z, margin).total()


def reliability(x: ArrayLike, y: ArrayLike, weight: ArrayLike | None = None, bins: int = BINS) -> list[dict[str, Any]]:
    """A row per bin of x that holds any weight: low, high, weight, mean_x, mean_y. x: confidence or probability; y: what came of it.

    All of shape (pairs,); without weights every pair weighs 1.
    """
    x_, y_ = _probabilities(x, "x"), _probabilities(y, "y")
    w = np.ones_like(x_) if weight is None else as_floats(weight, "weight")
    which = _bin_of(x_, bins)
    total, of_x, of_y = (np.bincount(which, of, minlength=bins) for of in (w, w * x_, w * y_))
    return [
        {
            "low": i / bins,
            "high": (i + 1) / bins,
            "weight": float(total[i]),
            "mean_x": of_x[i] / total[i],
            "mean_y": of_y[i] / total[i],
        }
        for i in range(bins)
        if total[i]
    ]


def by_margin(z: ArrayLike, margin: ArrayLike, p: ArrayLike, bins: int = 5) -> list[dict[str, Any]]:
    """A row per bin of the margin, ties first, then `bins` bins of about equal size (fewer where margins repeat).

    Each row: low, high (the smallest and largest margin in it), pairs, accuracy (None for ties), mean_q, mean_p.
    """
    z_, m, p_ = as_floats(z, "z"), as_floats(margin, "margins"), _probabilities(p, "p")
    q = sigmoid(z_)
    rows = [_row(m == 0, q, z_, m, p_)] if (m == 0).any() else []
    decided = m[m > 0]
    if decided.size:
        edges = np.unique(np.quantile(decided, np.linspace(0, 1, bins + 1)[1:-1], method="higher"))
        which = np.where(m > 0, np.searchsorted(edges, m, side="right"), -1)
        rows += [_row(which == i, q, z_, m, p_) for i in range(len(edges) + 1) if (which == i).any()]
    return rows


def _row(kept: np.ndarray, q: Floats, z: Floats, m: Floats, p: Floats) -> dict[str, Any]:
    return {
        "low": float(m[kept].min()),
        "high": float(m[kept].max()),
        "pairs": int(kept.sum()),
        "accuracy": accuracy(z[kept], m[kept]),
        "mean_q": float(q[kept].mean()),
        "mean_p": float(p[kept].mean()),
    }


def temperature_fit(z: ArrayLike, p: ArrayLike, low: float = 1e-3, high: float = 1e3, doubt: float = 1.0) -> float | None:
    """The temperature T in [low, high] at which σ(z/T) has the least cross-entropy to p. None where no pair tells it: of ties all p are ½,
    which a larger T always suits better; z = 0 is the same at any. low: times the root mean square of z, where that is below 1.

    doubt: of n pairs so many over n + 2 count the other way round (Platt 1999). Without it labels that are all foretold have their best
    temperature at `low`, and the first one elsewhere that is not costs thousands of nats.

    Fit it on other pairs than those it's judged on. The cross-entropy is convex in 1/T, so that bisection on its
    derivative, mean (σ(z/T) − p)·z, finds it; at a bound the bound is returned (Guo et al. 2017).
    """
    z_, p_ = as_floats(z, "z"), _probabilities(p, "p")
    if not ((z_ != 0) & (p_ != 0.5)).any():
        return None
    flipped = doubt / (len(z_) + 2)
    p_ = p_ + flipped * (1 - 2 * p_)
    cold, hot = np.log(low * min(1.0, float(np.sqrt((z_**2).mean())))), np.log(high)
    for _ in range(60):
        middle = (cold + hot) / 2
        slope = float(((sigmoid(z_ * np.exp(-middle)) - p_) * z_).mean())
        cold, hot = (middle, hot) if slope > 0 else (cold, middle)
    return float(np.exp((cold + hot) / 2))


def _probabilities(values: ArrayLike, name: str) -> Floats:
    array = as_floats(values, name)
    if not ((array >= 0) & (array <= 1)).all():
        raise InvalidValue(f"{name} must lie in [0, 1]")
    return array


def _decided(q: Floats, decided: ArrayLike | None) -> Floats:
    return np.ones_like(q) if decided is None else np.asarray(decided, dtype=bool).astype(np.float64)


def folded(q: Floats, p: Floats) -> tuple[Floats, Floats]:
    """q and p of the orientation in which q ≥ ½."""
    return np.maximum(q, 1 - q), np.where(q >= 0.5, p, 1 - p)


def _both_ways(q: Floats, p: Floats, weight: Floats, bins: int) -> Parts:
    """The binned error over (q, p) and (1 − q, 1 − p) together, w of each pair in both.

    The two halves mirror each other, so that the half q ≥ ½ says it all, and of q = ½ the two orientations cancel. Folding keeps a q on a
    bin's edge on the same side in both orientations.
    """
    x, y = folded(q, p)
    return _binned(x, np.where(x == 0.5, x, y), weight, bins + bins % 2)


def _binned(x: Floats, y: Floats, weight: Floats, bins: int) -> Parts:
    """Σ |Σ w·(x − y)| over equal bins of x, over Σ w."""
    return Parts(weight * (x - y), weight, _bin_of(x, bins))


def _bin_of(x: Floats, bins: int) -> np.ndarray:
    """Equal bins on [0, 1], left-closed, the last one closed."""
    return np.clip(np.searchsorted(np.linspace(0, 1, bins + 1), x, side="right") - 1, 0, bins - 1)
