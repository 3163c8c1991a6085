"""Losses of all completions of a prompt at once: what they read, and `listwise`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Lists:
    """Completions: z, score and prompt as `Loss.per_prompt` takes them; pair_prompt: (pairs,), the prompt of each pair."""

    z: Tensor
    score: Tensor
    prompt: Tensor
    pair_prompt: Tensor


def listwise(z: Tensor, score: Tensor, prompt: Tensor, *, gamma: float) -> Tensor:
    """−Σ softmax(γ·score)·log softmax(z) over each prompt's completions, (prompts,); the arguments are `Loss.per_prompt`'s.

    It is the divergence of arXiv 2502.00203 (RPO with the backward KL over several replies) plus the target's entropy, a constant: least
    where z differ by γ·score, log k where they are equal. dL/dz = softmax(z) − softmax(γ·score).
    """
    import torch

    prompts = int(prompt.max()) + 1 if len(prompt) else 0

    def from_best(value: Tensor) -> Tensor:
        return value - value.new_full((prompts,), -math.inf).scatter_reduce(0, prompt, value.detach(), "amax")[prompt]

    def added(value: Tensor) -> Tensor:
        return value.new_zeros(prompts).index_add(0, prompt, value)

    worse = from_best(score)
    target = torch.where(worse == 0, worse, gamma * worse).exp()  # at γ = ∞ the best ones share all
    z = from_best(z)
    return added(target * (added(z.exp()).log()[prompt] - z)) / added(target)
