"""Linear heads on difference features: every objective at every weight decay, to its optimum, in one batch of columns.

z = x·w with x = features(chosen) − features(rejected), so that swapping the pair turns the sign. Each column minimises
Σ c·loss(z) / Σ c + decay/2·|w|². For a linear head early stopping and weight decay trace the same path (Ali, Kolter and Tibshirani 2019,
arXiv 1810.10082), so that the path over decays is the whole path of regularisation, without a learning rate that might suit one objective
better than another; the least decay is the untuned end of training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

DECAYS = (1e-6, 1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""From (nearly) none, which is also the untuned end of training, to one that leaves little but the direction of the mean."""
STEPS, TOLERANCE = 200, 1e-3
"""Accelerated steps at most; fewer once no column's weights move by more than this share of their size."""


@dataclass(frozen=True, eq=False)
class Head:
    """One objective on the training pairs.

    p: targets in [0, 1] or, of robust losses, beyond, shape (pairs,); the loss is softplus(z) − p·z, that is cross-entropy, unless
    `slope` says otherwise. slope(z): the loss's derivative in z, of the shape of z, (pairs, decays). weight: of each pair, ≥ 0; by default
    all count one. curvature: the most that the loss bends, ¼ for cross-entropy.
    """

    p: np.ndarray | None = None
    slope: Callable[[Tensor], Tensor] | None = None
    weight: np.ndarray | None = None
    curvature: float = 0.25
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Basis:
    """The training pairs' second moments in their own axes: where every step is scaled by what the features vary."""

    x: Tensor
    axes: Tensor
    moments: Tensor


def fit_heads(x: np.ndarray, heads: Sequence[Head], decays: Sequence[float] = DECAYS) -> np.ndarray:
    """The weights of every head at every decay, float32, shape (features, heads, decays).

    x: difference features, shape (pairs, features). Steps are Newton's with the bound ¼·E xxᵀ + decay in place of the second derivative
    (Böhning and Lindsay 1988), accelerated (Nesterov) and restarted where they go uphill (O'Donoghue and Candès 2015).
    """
    import torch

    with torch.no_grad():
        rows = torch.as_tensor(np.ascontiguousarray(x, dtype=np.float32))
        moments, axes = torch.linalg.eigh((rows.T.double() @ rows.double()) / max(len(rows), 1))
        basis = _Basis(rows @ axes.float(), axes.float(), moments.clamp_min(0).float())
        penalty = torch.tensor(decays, dtype=torch.float32)
        soft = [index for index, head in enumerate(heads) if head.slope is None]
        found = torch.empty(x.shape[1], len(heads), len(decays))
        if soft:
            found[:, soft] = _soft(basis, [heads[index] for index in soft], penalty)
        for index in sorted(set(range(len(heads))) - set(soft)):
            found[:, index] = _one(basis, heads[index], penalty)
        return (basis.axes @ found.flatten(1)).reshape(found.shape).numpy()


def _soft(basis: _Basis, heads: Sequence[Head], penalty: Tensor) -> Tensor:
    """All heads of the form σ(z) − p at once: (features, heads, decays)."""
    import torch

    p = torch.as_tensor(np.stack([head.p for head in heads], axis=1).astype(np.float32))  # type: ignore[arg-type]
    pairs, count = p.shape
    weight = None
    if any(head.weight is not None for head in heads):
        weight = torch.as_tensor(
            np.stack([np.ones(pairs) if h.weight is None else h.weight / max(h.weight.mean(), 1e-30) for h in heads], axis=1)
        ).float()

    def slope(z: Tensor) -> Tensor:
        z = z.view(pairs, count, -1).sigmoid_().sub_(p[:, :, None])
        return (z if weight is None else z.mul_(weight[:, :, None])).view(pairs, -1)

    bend = torch.tensor([h.curvature * _largest(h.weight) for h in heads]).repeat_interleave(len(penalty))
    return _descend(basis, slope, bend, penalty.repeat(count)).view(-1, count, len(penalty))


def _one(basis: _Basis, head: Head, penalty: Tensor) -> Tensor:
    """One head of any form: (features, decays)."""
    import torch

    weight = None if head.weight is None else torch.as_tensor(head.weight / max(head.weight.mean(), 1e-30)).float()[:, None]
    given = head.slope

    def slope(z: Tensor) -> Tensor:
        found = given(z)  # type: ignore[misc]
        return found if weight is None else found * weight

    return _descend(basis, slope, torch.full((len(penalty),), head.curvature * _largest(head.weight)), penalty)


def _largest(weight: np.ndarray | None) -> float:
    return 1.0 if weight is None or not weight.any() else float(weight.max() / weight.mean())


def _descend(basis: _Basis, slope: Callable[[Tensor], Tensor], bend: Tensor, penalty: Tensor) -> Tensor:
    """The optimum of every column, (features, columns). bend, penalty: (columns,)."""
    import torch

    scale = 1 / (basis.moments[:, None] * bend + penalty).clamp_min(1e-8)
    weights = torch.zeros(basis.x.shape[1], len(penalty))
    ahead, momentum = weights, torch.ones(len(penalty))
    for _ in range(STEPS):
        gradient = torch.addmm(ahead * penalty, basis.x.T, slope(basis.x @ ahead), alpha=1 / len(basis.x))
        new = ahead - scale * gradient
        change = new - weights
        uphill = (gradient * change).sum(0) > 0
        following = torch.where(uphill, 1.0, (1 + (1 + 4 * momentum**2).sqrt()) / 2)
        ahead = new + torch.where(uphill, 0.0, (momentum - 1) / following) * change
        done = (change.norm(dim=0) <= TOLERANCE * new.norm(dim=0)).all()
        weights, momentum = new, following
        if done:
            break
    return weights
