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

Slope = Callable[["Tensor"], "Tensor"]
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
    slope: Slope | None = None
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
    weights = [np.ones(len(p)) if head.weight is None else head.weight / max(head.weight.mean(), 1e-30) for head in heads]
    weight = torch.as_tensor(np.stack(weights, axis=1)).float() if any(head.weight is not None for head in heads) else None

    def slope_of(columns: Tensor) -> Slope:
        mine = columns // len(penalty)
        target, factor = p[:, mine], None if weight is None else weight[:, mine]

        def slope(z: Tensor) -> Tensor:
            z = z.sigmoid_().sub_(target)
            return z if factor is None else z.mul_(factor)

        return slope

    bend = torch.tensor([head.curvature * _largest(head.weight) for head in heads]).repeat_interleave(len(penalty))
    return _descend(basis, slope_of, bend, penalty.repeat(len(heads))).view(-1, len(heads), len(penalty))


def _one(basis: _Basis, head: Head, penalty: Tensor) -> Tensor:
    """One head of any form: (features, decays)."""
    import torch

    weight = None if head.weight is None else torch.as_tensor(head.weight / max(head.weight.mean(), 1e-30)).float()[:, None]
    given = head.slope

    def slope(z: Tensor) -> Tensor:
        found = given(z)  # type: ignore[misc]
        return found if weight is None else found * weight

    bend = torch.full((len(penalty),), head.curvature * _largest(head.weight))
    return _descend(basis, lambda columns: slope, bend, penalty)


def _largest(weight: np.ndarray | None) -> float:
    return 1.0 if weight is None or not weight.any() else float(weight.max() / weight.mean())


def _descend(basis: _Basis, slope_of: Callable[[Tensor], Slope], bend: Tensor, penalty: Tensor) -> Tensor:
    """The optimum of every column, (features, columns). bend, penalty: (columns,). Columns that have arrived are left where they are.

    slope_of(columns): the derivative of the losses of some of the columns, (pairs, columns).
    """
    import torch

    result = torch.zeros(basis.x.shape[1], len(penalty))
    columns = torch.arange(len(penalty))
    scale = 1 / (basis.moments[:, None] * bend + penalty).clamp_min(1e-8)
    slope, transposed = slope_of(columns), basis.x.T.contiguous()
    weights = ahead = result
    momentum = torch.ones(len(penalty))
    for step in range(1, STEPS + 1):
        gradient = torch.addmm(ahead * penalty, transposed, slope(basis.x @ ahead), alpha=1 / len(basis.x))
        new = torch.addcmul(ahead, scale, gradient, value=-1)
        change = new - weights
        uphill = (gradient * change).sum(0) > 0
        following = torch.where(uphill, 1.0, (1 + (1 + 4 * momentum**2).sqrt()) / 2)
        ahead = torch.addcmul(new, torch.where(uphill, 0.0, (momentum - 1) / following), change)
        weights, momentum = new, following
        if step % 8 and step < STEPS:
            continue
        moving = change.norm(dim=0) > TOLERANCE * new.norm(dim=0)
        if not moving.all() or step == STEPS:
            result[:, columns] = weights
        if not moving.any():
            break
        if not moving.all():
            weights, ahead, scale = weights[:, moving], ahead[:, moving], scale[:, moving]
            momentum, penalty, columns = momentum[moving], penalty[moving], columns[moving]
            slope = slope_of(columns)
    return result
