"""The objectives that are compared, each with its two controls on the same pairs: matched smoothing and shuffled margins.

Matched: the same loss with every untied target at its mean, which is cdpo with ε = 1 − mean target: what softness alone buys. Shuffled:
the same targets permuted over the untied pairs of all prompts: what a distribution of targets buys that knows nothing of its pair.
Ties stay at ½ in both wherever the objective keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from mmpo.pipeline.margins import gamma_for_mean_target
from mmpo.train.advise.evidence import Evidence
from mmpo.train.advise.heads import Head
from mmpo.train.objective import LOSSES, targets

if TYPE_CHECKING:
    from torch import Tensor

MEAN_TARGETS = (0.6, 0.75, 0.9, 0.97)
"""γ by what it makes of the margins: the mean target over the untied training pairs."""
OWN, MATCHED, SHUFFLED = "own", "matched", "shuffled"


@dataclass(frozen=True)
class Setting:
    """One objective as it is compared. loss: of LOSSES; mean_target: what sets γ, None for losses without one (∞: p = 1); target: of
    TARGETS; ties: whether pairs of margin 0 are trained on, at ½.
    """

    loss: str
    mean_target: float | None = None
    target: str = "plain"
    ties: str = "drop"
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def soft(self) -> bool:
        """Whether the loss is cross-entropy to a target."""
        return self.loss in ("mmpo", "dpo", "cdpo", "rpo-bwd")

    @property
    def is_mmpo(self) -> bool:
        """Whether it is one of the grid from which advice is chosen."""
        return self.loss == "mmpo" and self.mean_target is not None

    @property
    def roles(self) -> tuple[str, ...]:
        """Itself, and the controls that it has: matched where it has targets, shuffled where it reads margins."""
        if self.is_mmpo:
            return (OWN, MATCHED, SHUFFLED)
        return (OWN,) if self.loss in ("mmpo", "dpo", "cdpo", "robust") else (OWN, SHUFFLED)


BRADLEY_TERRY = Setting("dpo")


def settings_for(found: Evidence, mean_targets: Sequence[float] = MEAN_TARGETS, others: bool = True) -> list[Setting]:
    """What is compared on such pairs: Bradley–Terry first; ties kept only where there are any, noise-aware only where errors are known."""
    ties = ("drop", "keep") if not found.decided.all() else ("drop",)
    rows = [BRADLEY_TERRY, Setting("cdpo", options={"epsilon": 0.1})]
    if len(ties) > 1:  # Bradley–Terry with the ties at ½: what they buy by themselves
        rows.append(Setting("mmpo", ties="keep"))
    grid = [Setting("mmpo", mean, ties=kept) for mean in mean_targets for kept in ties]
    rows += grid
    known = found.margin_se[~np.isnan(found.margin_se)]
    if len(known) and known.any():
        rows += [replace(row, target="noise-aware") for row in grid if row.ties == ties[-1]]
    if others:
        rows += [Setting("robust", options={"epsilon": 0.1}), Setting("margin"), Setting("odpo"), Setting("scaled-bt")]
        rows += [Setting(name, 0.75, ties=ties[-1]) for name in ("rpo-sq", "rpo-fwd", "gdpo")]
    return rows


def gamma_of(objective: Setting, margin: np.ndarray) -> float:
    """γ in 1/margin-unit, from the margins of the untied training pairs; ∞ where no mean target sets it."""
    return float("inf") if objective.mean_target is None else gamma_for_mean_target(margin, objective.mean_target)


def target_of(objective: Setting, found: Evidence) -> np.ndarray:
    """The targets of the pairs, which are training pairs, float64, shape (pairs,)."""
    table = pa.table({name: getattr(found, column) for name, column in _COLUMNS.items()})
    if objective.loss == "cdpo":
        return np.full(len(found.margin), 1 - objective.options["epsilon"])
    return targets(objective.target, table, gamma_of(objective, found.margin[found.decided]))[0]


_COLUMNS = {"quality_margin": "margin", "margin_se": "margin_se", "preferring": "preferring", "raters": "raters"}


def heads_of(objective: Setting, found: Evidence, rng: np.random.Generator) -> dict[str, Head]:
    """The objective and its controls as heads on training pairs, by role. found: the pairs that are trained on, ties among them or not."""
    decided = found.decided
    p = target_of(objective, found)
    order = np.arange(len(p))
    order[decided] = rng.permutation(order[decided])
    heads = {}
    for role in objective.roles:
        mine, margin = (p[order], found.margin[order]) if role == SHUFFLED else (p, found.margin)
        if role == MATCHED:
            mine = np.where(decided, p[decided].mean(), 0.5)
        heads[role] = Head(mine) if objective.soft else _by_name(objective, mine, margin, gamma_of(objective, margin[decided]))
    return heads


def _by_name(objective: Setting, p: np.ndarray, margin: np.ndarray, gamma: float) -> Head:
    """A head whose slope is that of the loss of LOSSES itself."""
    import torch

    loss, size = LOSSES[objective.loss], torch.as_tensor(margin).float()[:, None]
    target = torch.as_tensor(p).float()[:, None]

    def slope(z: Tensor) -> Tensor:
        with torch.enable_grad():
            point = z.detach().requires_grad_()
            values = [one.expand_as(z).reshape(-1) for one in (target, size)]
            (found,) = torch.autograd.grad(loss.per_pair(point.view(-1), *values, gamma=gamma, **objective.options).sum(), point)
        return found

    bend = {"rpo-sq": 2.0, "rpo-fwd": 1.0, "scaled-bt": 0.25 * float(margin.max(initial=1.0))}
    return Head(slope=slope, curvature=bend.get(objective.loss, 0.25))
