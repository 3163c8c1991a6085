"""Every training objective, behind one call: `LOSSES[name].per_pair(z, p, margin, gamma=..., **options)`.

All are pure functions of z, the logit that the model gives the pair (policy: β times the difference of log-ratios to the reference;
reward model: difference of rewards), p, the target probability that the chosen completion is the better one, and m, the quality
margin. γ is in 1/margin-unit. torch is imported when a loss is first computed, and not for the table's names and summaries.

    >>> import torch
    >>> LOSSES["mmpo"].per_pair(torch.tensor([0.0]), torch.tensor([0.7]), torch.tensor([1.0]))
    tensor([0.6931])
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mmpo.pipeline.margins import InvalidValue
from mmpo.train.objective.graded import davidson, davidson_parameters, davidson_state, ordinal, ordinal_parameters, ordinal_state
from mmpo.train.objective.lists import listwise
from mmpo.train.objective.loss import Loss

if TYPE_CHECKING:
    from torch import Tensor


def softplus(x: Tensor) -> Tensor:
    """log(1 + eˣ)."""
    from torch.nn import functional

    return functional.softplus(x)


def logsigmoid(x: Tensor) -> Tensor:
    """log σ(x)."""
    from torch.nn import functional

    return functional.logsigmoid(x)


def soft_cross_entropy(z: Tensor, p: Tensor | float) -> Tensor:
    """−p·log σ(z) − (1−p)·log σ(−z) = softplus(z) − p·z, written so that p = 1 keeps all digits at large z."""
    return p * softplus(-z) + (1 - p) * softplus(z)


def entropy(p: Tensor) -> Tensor:
    """H(p) = −p·log p − (1−p)·log(1−p), in nats, 0 at p = 0 and 1."""
    return -p.xlogy(p) - (1 - p).xlogy(1 - p)


def target_logit(margin: Tensor, eta: float | None, gamma: float) -> Tensor:
    """η·m, the z at which the loss is least; η defaults to γ. ValueError at γ = ∞, where there is no such z."""
    scale = gamma if eta is None else eta
    if math.isinf(scale):
        raise InvalidValue("this objective regresses on gamma·margin and needs a finite gamma (or eta)")
    return scale * margin


def _mmpo(z: Tensor, p: Tensor, margin: Tensor, *, gamma: float) -> Tensor:
    return soft_cross_entropy(z, p)  # Kim et al. 2024, eq. 8: dL/dz = σ(z) − p


def _dpo(z: Tensor, p: Tensor, margin: Tensor, *, gamma: float) -> Tensor:
    return softplus(-z)


def _cdpo(z: Tensor, p: Tensor, margin: Tensor, *, gamma: float, epsilon: float = 0.1) -> Tensor:
    return soft_cross_entropy(z, 1 - epsilon)


def _robust(z: Tensor, p: Tensor, margin: Tensor, *, gamma: float, epsilon: float = 0.1) -> Tensor:
    return ((1 - epsilon) * softplus(-z) - epsilon * softplus(z)) / (1 - 2 * epsilon)


def _ipo(z: Tensor, p: Tensor, margin: Tensor, *, gamma: float, beta: float = 0.1) -> Tensor:
    # (h̄ − 1/(2β))² with h̄ = z/β, h̄ from log-probabilities averaged per token
    return (z / beta - 1 / (2 * beta)) ** 2


def _rpo_bwd(z: Tensor, p: Tensor, margin: Tensor, *, gamma: float, eta: float | None = None) -> Tensor:
    p = p if eta is None else (eta * margin).sigmoid()
    return soft_cross_entropy(z, p) - entropy(p)


def _rpo_fwd(z: Tensor, p: Tensor, margin: Tensor, *, gamma: float, eta: float | None = None) -> Tensor:
    t = target_logit(margin, eta, gamma)
    q = z.sigmoid()
    return q * (logsigmoid(z) - logsigmoid(t)) + (-z).sigmoid() * (logsigmoid(-z) - logsigmoid(-t))


def _rpo_sq(z: Tensor, p: Tensor, margin: Tensor, *, gamma: float, eta: float | None = None) -> Tensor:
    return (z - target_logit(margin, eta, gamma)) ** 2


def _odpo(z: Tensor, p: Tensor, margin: Tensor, *, gamma: float, alpha: float = 1.0, transform: str = "log") -> Tensor:
    if alpha == 0:  # 0·log 0 is not a number; an offset of nothing is plain DPO
        return softplus(-z)
    return softplus(-(z - alpha * (margin.log() if transform == "log" else margin)))


def _margin(z: Tensor, p: Tensor, margin: Tensor, *, gamma: float) -> Tensor:
    return softplus(-(z - margin))


def _scaled_bt(z: Tensor, p: Tensor, margin: Tensor, *, gamma: float) -> Tensor:
    return margin * softplus(-z)


def _gdpo(z: Tensor, p: Tensor, margin: Tensor, *, gamma: float) -> Tensor:
    return softplus(-(2 * p - 1) * z)


def _pair_of_a_list(z: Tensor, p: Tensor, margin: Tensor, *, gamma: float) -> Tensor:
    # of two completions the softmax of γ·score is σ(γm); at γ = ∞ a tie stays one
    return soft_cross_entropy(z, margin.sign().add(1) / 2 if math.isinf(gamma) else (gamma * margin).sigmoid())


def _centering(z: Tensor, p: Tensor, margin: Tensor, *, gamma: float) -> Tensor:
    return z**2  # which here is the sum of both rewards


def _sft(z: Tensor, p: Tensor, margin: Tensor, *, gamma: float) -> Tensor:
    return z  # which here is the completion's own mean, not the pair's logit


LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        Loss(
            "mmpo",
            "cross-entropy of σ(z) to the soft target p = σ(γm); least at z = γm",
            "arXiv 2410.03145",
            _mmpo,
            reads_target=True,
        ),
        Loss("dpo", "hard labels: DPO, and Bradley–Terry for reward models", "arXiv 2305.18290", _dpo, needs_winner=True),
        Loss("cdpo", "every label right with probability 1 − ε", "TRL ≤ 0.24", _cdpo, needs_winner=True),
        Loss("robust", "unbiased DPO under labels flipped at rate ε", "arXiv 2403.00409", _robust, needs_winner=True),
        Loss(
            "ipo",
            "squared distance of the mean log-ratio per token to 1/(2β); policies only; needs β",
            "arXiv 2310.12036",
            _ipo,
            needs_winner=True,
            average_logprobs=True,
        ),
        Loss(
            "rpo-bwd",
            "KL(target ‖ model): MMPO less the target's entropy, the same gradient",
            "NeMo-Aligner",
            _rpo_bwd,
            reads_target=True,
        ),
        Loss("rpo-fwd", "KL(model ‖ σ(ηm)), from the margin itself; η defaults to γ", "NeMo-Aligner", _rpo_fwd, reads_target=True),
        Loss(
            "rpo-sq",
            "(z − ηm)², from the margin itself; η defaults to γ; η = 1: distilled DPO",
            "NeMo-Aligner; arXiv 2405.19316",
            _rpo_sq,
            reads_target=True,
        ),
        Loss("odpo", "DPO that asks for an offset of α·f(m), f = log or identity", "arXiv 2402.10571", _odpo, needs_winner=True),
        Loss("margin", "Bradley–Terry with the margin subtracted (Llama 2)", "arXiv 2307.09288", _margin, needs_winner=True),
        Loss("scaled-bt", "Bradley–Terry weighted by the margin; ties weigh nothing", "arXiv 2410.01257", _scaled_bt),
        Loss("gdpo", "DPO with z scaled by 2p − 1; ties have no gradient", "arXiv 2409.06691", _gdpo, reads_target=True),
        Loss(
            "ordinal",
            "likelihood of the margin's level under learned symmetric thresholds, whose scale is a γ; ties are a level",
            "arXiv 2603.02232",
            ordinal,
            starts=ordinal_parameters,
            state=ordinal_state,
        ),
        Loss(
            "davidson",
            "likelihood of win, tie or loss; ties have a probability of their own, through a learned ν",
            "arXiv 2409.17431",
            davidson,
            starts=davidson_parameters,
            state=davidson_state,
        ),
        Loss(
            "listwise",
            "cross-entropy of softmax(z) to softmax(γ·score) over all completions of a prompt; of two it is mmpo",
            "arXiv 2502.00203",
            _pair_of_a_list,
            reads_target=True,
            listed=listwise,
        ),
    )
}
"""Every objective by name. MMPO has the gradient of rpo-bwd: they differ by the target's entropy, a constant of the data."""

_SFT = "mean negative log-probability per token of the chosen completion; policies only"
_CENTERING = "(reward of the chosen + reward of the rejected)², which keeps rewards near 0; beside a loss; reward models only"
# Of a tie it is the ids' accident which completion is "chosen".
TERMS: dict[str, Loss] = {
    **LOSSES,
    "centering": Loss("centering", _CENTERING, "arXiv 2312.09244", _centering),
    "sft": Loss("sft", _SFT, "plain fine-tuning", _sft, needs_winner=True),
}
"""What an objective may be made of: losses, `centering`, which sees the sum of both rewards, and `sft`, the chosen completion."""
