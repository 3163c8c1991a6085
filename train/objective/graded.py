"""Losses of grades in steps, which have parameters of their own that are learned beside the model: `ordinal`, and `davidson` for ties.

Both are likelihoods of what the raters said: of a grade out of several, or of a win, a tie or a loss. Where the scale of z lies is
learned from the data, so that γ is not used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from mmpo.pipeline.errors import InvalidValue
from mmpo.pipeline.margins import Floats, as_floats

if TYPE_CHECKING:
    from torch import Tensor

MOST_LEVELS = 10
"""Distinct margins above 0 that are levels each; of more than that, as many quantiles are."""


def levels_of(margin: ArrayLike) -> tuple[float, ...]:
    """The levels of an ordinal scale, ascending: 0 where there are ties, and the distinct margins above 0, shape (pairs,) ≥ 0.

    Where more than MOST_LEVELS are distinct: 0, and the margins' quantiles in the middle of as many equal parts. Margins that differ by
    rounding are one. InvalidValue where no margin is above 0.

    >>> levels_of([2.0, 0.0, 1.0, 2.0])
    (0.0, 1.0, 2.0)
    """
    m = as_floats(margin, "margins")
    above = m[m > 0]
    if not above.size or not np.isfinite(m).all():
        raise InvalidValue("levels need finite margins, and at least one above 0")
    scale = above.max()
    distinct = above[np.unique(np.round(above / scale, 9), return_index=True)[1]]
    if len(distinct) > MOST_LEVELS:
        distinct = np.unique(np.quantile(above, (np.arange(MOST_LEVELS) + 0.5) / MOST_LEVELS))
        return (0.0, *distinct.tolist())
    return (*((0.0,) if (m == 0).any() else ()), *distinct.tolist())


def ordinal_parameters(margin: Floats, weight: Floats, options: Mapping[str, Any]) -> dict[str, Any]:
    """Levels of the training margins, and gaps between thresholds at which a model that knows nothing (z = 0) gives every level the share
    of the pairs that it has.
    """
    import torch

    levels = np.array(options.get("levels") or levels_of(margin))
    place = np.interp(margin, levels, np.arange(len(levels)))
    low = place.astype(int)
    share = np.bincount(low, weight * (1 - place + low), len(levels)) + np.bincount(
        np.minimum(low + 1, len(levels) - 1), weight * (place - low), len(levels)
    )
    share = np.maximum(share, 0.5 * weight.mean())  # a level that no pair has is still one
    upto = np.cumsum(share)[:-1] / share.sum()  # P(|grade| <= level) = 2·σ(threshold) - 1 at z = 0
    thresholds = np.log1p(upto) - np.log1p(-upto)
    return {"levels": tuple(levels.tolist()), "log_gaps": torch.from_numpy(np.log(np.diff(thresholds, prepend=0.0)))}


def ordinal(
    z: Tensor,
    p: Tensor,
    margin: Tensor,
    *,
    gamma: float,
    levels: Sequence[float] = (1.0,),
    log_gaps: Tensor | Sequence[float] = (),
) -> Tensor:
    """−log P(grade), P(grade ≤ k) = σ(τ_k − z), thresholds symmetric about 0; a margin between two levels shares them linearly.

    A grade is −k … k: the level of the margin and its sign, 0 a tie where 0 is among the levels. Of K thresholds above 0 log_gaps are the
    logarithms of the distances, from 0 on. arXiv 2603.02232, eq. for the negative log-likelihood; with ties and one level this is
    Rao–Kupper's model, without ties and with one level Bradley–Terry.
    """
    import torch

    if len(log_gaps) != len(levels) - 1:
        raise InvalidValue(f"loss ordinal: {len(levels)} levels need {len(levels) - 1} log_gaps, not {len(log_gaps)}")
    above = torch.as_tensor(levels, dtype=z.dtype, device=z.device)
    gaps = torch.as_tensor(log_gaps, dtype=z.dtype, device=z.device).exp()
    end, at = gaps.new_full((1,), math.inf), gaps.cumsum(0)
    if levels[0] == 0:
        signed, inner = torch.cat([-above[1:].flip(0), above]), torch.cat([-at.flip(0), at])
        side = torch.cat([gaps[1:], end])
        width = torch.cat([side.flip(0), 2 * gaps[:1], side])
    else:
        signed, inner = torch.cat([-above.flip(0), above]), torch.cat([-at.flip(0), gaps.new_zeros(1), at])
        side = torch.cat([gaps, end])
        width = torch.cat([side.flip(0), side])
    lower, upper = torch.cat([-end, inner]), torch.cat([inner, end])
    # log(σ(a) − σ(b)) = log σ(a) + log σ(−b) + log(1 − e^(b−a)): of z only the first two, which never cancel
    log_width = (-torch.expm1(-width)).log()

    def nll(grade: Tensor) -> Tensor:
        softplus = torch.nn.functional.softplus
        return softplus(z - upper[grade]) + softplus(lower[grade] - z) - log_width[grade]

    low = (torch.searchsorted(signed, margin.to(z.dtype).contiguous(), right=True) - 1).clamp(0, len(signed) - 1)
    high = (low + 1).clamp(max=len(signed) - 1)
    share = ((margin - signed[low]) / (signed[high] - signed[low]).clamp(min=torch.finfo(z.dtype).tiny)).clamp(0, 1)
    return torch.lerp(nll(low), nll(high), share.to(z.dtype))


def ordinal_state(options: Mapping[str, Any]) -> dict[str, Any]:
    """What ordinal has learned: levels, the threshold between each and the next, and the γ that they amount to, in 1/margin-unit.

    A threshold lies at the margin in the middle of its two levels; γ is the slope of thresholds over these margins, through 0. None where a
    single level leaves it open.
    """
    levels, thresholds = np.array(options["levels"]), np.cumsum(np.exp(_numbers(options["log_gaps"])))
    middles = (levels[:-1] + levels[1:]) / 2
    gamma = float(middles @ thresholds / (middles @ middles)) if len(middles) else None
    return {"levels": levels.tolist(), "thresholds": thresholds.tolist(), "gamma": gamma}


def davidson_parameters(margin: Floats, weight: Floats, options: Mapping[str, Any]) -> dict[str, Any]:
    """ν at which a model that knows nothing (z = 0) calls as many pairs ties as there are: ties/(others), by half a pair off 0 and ∞."""
    import torch

    half, tied = 0.5 * weight.mean(), weight[margin == 0].sum()
    return {"log_nu": torch.tensor(math.log((tied + half) / (weight.sum() - tied + half)), dtype=torch.float64)}


def davidson(z: Tensor, p: Tensor, margin: Tensor, *, gamma: float, log_nu: Tensor | float = 0.0) -> Tensor:
    """−log P(what was said): win : tie : loss = e^(z/2) : 2ν : e^(−z/2); arXiv 2409.17431, with ν = 1 there; Davidson 1970."""
    import torch

    tie = torch.as_tensor(log_nu, dtype=z.dtype, device=z.device) + math.log(2)
    said = torch.where(margin == 0, tie, margin.sign() * z / 2)
    return torch.stack([z / 2, -z / 2, tie.expand_as(z)]).logsumexp(0) - said


def davidson_state(options: Mapping[str, Any]) -> dict[str, Any]:
    """What davidson has learned: ν, and the probability ν/(1 + ν) of a tie where z is 0."""
    log_nu = float(_numbers(options["log_nu"]))
    return {"nu": math.exp(log_nu), "tie_probability": 1 / (1 + math.exp(-log_nu))}


def _numbers(given: Any) -> Floats:
    return np.array(given.tolist() if hasattr(given, "tolist") else given, dtype=np.float64)
