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

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.margins import gamma_for_mean_target
from mmpo.train.advise.evidence import Evidence
from mmpo.train.advise.heads import DECAYS, Head, fit_heads
from mmpo.train.objective import LOSSES, targets

if TYPE_CHECKING:
    from torch import Tensor

MEAN_TARGETS = (0.6, 0.75, 0.9, 0.97)
"""γ by what it makes of the margins: the mean target over the untied training pairs."""
OWN, MATCHED, SHUFFLED = "own", "matched", "shuffled"
APART = ("ordinal", "davidson", "listwise")
"""Losses that are fitted by themselves: they learn beside the model, or see all completions of a prompt."""
ROUNDS, MIDDLE = 2, DECAYS.index(0.1)


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
        return self.loss == "mmpo" and (self.mean_target is not None or self.target == "levels")

    @property
    def roles(self) -> tuple[str, ...]:
        """Itself, and the controls that it has: matched where it has targets, shuffled where it reads margins."""
        if self.is_mmpo:
            return (OWN, MATCHED, SHUFFLED)
        return (OWN,) if self.loss in ("mmpo", "dpo", "cdpo", "robust", *APART) else (OWN, SHUFFLED)


BRADLEY_TERRY = Setting("dpo")
Key = tuple[Setting, str]
"""A setting in a role."""


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
    if others and (found.raters >= 2).any() and _fits(found):
        rows.append(Setting("mmpo", target="levels", ties=ties[-1]))
    if others:
        rows += [Setting("robust", options={"epsilon": 0.1}), Setting("margin"), Setting("odpo"), Setting("scaled-bt")]
        rows += [Setting(name, 0.75, ties=ties[-1]) for name in ("rpo-sq", "rpo-fwd", "gdpo")]
        rows += [Setting("ordinal", ties=ties[-1])] + [Setting("davidson", ties="keep")] * (len(ties) > 1)
        if np.isfinite(found.scores[found.chosen]).all() and np.isfinite(found.scores[found.rejected]).all():
            rows.append(Setting("listwise", 0.75, ties=ties[-1]))
    return rows


def _fits(found: Evidence) -> bool:
    """Whether votes say what a level is worth."""
    try:
        target_of(Setting("mmpo", target="levels"), found)
    except UserError:
        return False
    return True


def gamma_of(objective: Setting, margin: np.ndarray) -> float:
    """γ in 1/margin-unit, from the margins of the untied training pairs; ∞ where no mean target sets it."""
    return float("inf") if objective.mean_target is None else gamma_for_mean_target(margin, objective.mean_target)


def target_of(objective: Setting, found: Evidence) -> np.ndarray:
    """The targets of the pairs, which are training pairs, float64, shape (pairs,). The target levels is learned from these pairs' votes, as
    in training; no vote on a prompt that chooses or judges is among them.
    """
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


def fit_settings(
    rows: Sequence[Setting], found: Evidence, values: np.ndarray, rng: np.random.Generator, controls: bool = True
) -> tuple[list[Key], np.ndarray]:
    """Weights of all settings in their roles, float32, (features, keys, decays), fitted on the pairs `found`.

    values: every completion's features, (completions, features).
    """
    x = values[found.chosen] - values[found.rejected]
    keys: list[Key] = []
    heads: list[Head] = []
    apart: list[np.ndarray] = []
    for row in (row for row in rows if row.loss not in APART):
        mine = [((row, role), head) for role, head in heads_of(row, found, rng).items() if controls or role == OWN]
        keys += [key for key, _ in mine]
        heads += [head for _, head in mine]
    for row in (row for row in rows if row.loss in APART):
        keys.append((row, OWN))
        apart.append(_listed(row, found, values) if row.loss == "listwise" else _learned(row, found, x))
    return keys, np.concatenate([fit_heads(x, heads), *apart], axis=1)


def _learned(setting: Setting, found: Evidence, x: np.ndarray) -> np.ndarray:
    """A loss that learns beside the model, its parameters where they are best at a middle decay: in two rounds of heads and parameters."""
    import torch

    loss, margin = LOSSES[setting.loss], torch.as_tensor(found.margin).float()
    parameters = loss.parameters(found.margin)
    learned = [value for value in parameters.values() if isinstance(value, torch.Tensor) and value.numel()]
    weights = np.zeros((x.shape[1], 1, len(DECAYS)), dtype=np.float32)
    for _ in range(ROUNDS):
        fixed = {name: value.detach() if isinstance(value, torch.Tensor) else value for name, value in parameters.items()}
        weights = fit_heads(x, [_by_name(setting, np.full(len(margin), 0.5), found.margin, 1.0, fixed)])
        if not learned:  # of one level ordinal has no threshold
            break
        z = torch.as_tensor(x @ weights[:, 0, MIDDLE])
        optimiser = torch.optim.LBFGS(learned, max_iter=40, line_search_fn="strong_wolfe")

        def closure(z: Tensor = z, optimiser: torch.optim.LBFGS = optimiser) -> Tensor:
            optimiser.zero_grad()
            mean = loss.per_pair(z, torch.full_like(z, 0.5), margin, **parameters).mean()
            mean.backward()
            return mean

        optimiser.step(closure)
    return weights


def _listed(setting: Setting, found: Evidence, values: np.ndarray) -> np.ndarray:
    """A loss of all completions of a prompt, on features less their prompt's mean, which changes nothing in it."""
    import torch

    places = np.unique(np.concatenate([found.chosen, found.rejected]))
    _, prompt = np.unique(found.prompt_of[places], return_inverse=True)
    count = np.bincount(prompt)
    means = np.stack([np.bincount(prompt, column) for column in values[places].T], axis=1) / count[:, None]
    loss, gamma = LOSSES[setting.loss], gamma_of(setting, found.margin[found.decided])
    score, of = torch.as_tensor(found.scores[places]).float(), torch.as_tensor(prompt)

    def slope(z: Tensor) -> Tensor:
        with torch.enable_grad():
            point, columns = z.detach().requires_grad_(), z.shape[1]
            shifted = (of[:, None] + len(count) * torch.arange(columns)).reshape(-1)
            total = loss.per_prompt(point.view(-1), score[:, None].expand_as(z).reshape(-1), shifted, gamma=gamma).sum()
            (gradient,) = torch.autograd.grad(total, point)
        return gradient

    return fit_heads(values[places] - means[prompt].astype(np.float32), [Head(slope=slope, curvature=0.5)])


def _by_name(setting: Setting, p: np.ndarray, margin: np.ndarray, gamma: float, learned: Mapping[str, Any] | None = None) -> Head:
    """A head whose slope is that of the loss of LOSSES itself."""
    import torch

    loss, size = LOSSES[setting.loss], torch.as_tensor(margin).float()[:, None]
    target = torch.as_tensor(p).float()[:, None]
    options = {**setting.options, **(learned or {})}

    def slope(z: Tensor) -> Tensor:
        with torch.enable_grad():
            point = z.detach().requires_grad_()
            values = [one.expand_as(z).reshape(-1) for one in (target, size)]
            (found,) = torch.autograd.grad(loss.per_pair(point.view(-1), *values, gamma=gamma, **options).sum(), point)
        return found

    bend = {"rpo-sq": 2.0, "rpo-fwd": 1.0, "ordinal": 0.5, "scaled-bt": 0.25 * float(margin.max(initial=1.0))}
    return Head(slope=slope, curvature=bend.get(setting.loss, 0.25))
