"""From hidden states to log-probabilities of given tokens, in chunks: the logits of a whole batch never exist.

With a vocabulary of 128,000 the logits of 8,000 tokens are 4 GB, and their gradients as much again.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from mmpo.train.batches import Batch
from mmpo.train.model.attach import logits_from
from mmpo.train.model.bfloat16 import casts_of, linear_logprobs_from

LOGIT_BYTES_ON_CPU, LOGIT_BYTES_ELSEWHERE = 32 * 2**20, 256 * 2**20
"""Most bytes of float32 logits at once. A GPU reads the whole output layer anew for each chunk: few large ones."""


class _LinearLogprobs(torch.autograd.Function):
    """log softmax(hidden · Wᵀ + b)[token], recomputing each chunk's logits in the backward pass.

    d log p_t / d logits = onehot(t) − softmax(logits): nothing but the log-sum-exp is kept from the forward pass.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, chunk: int) -> Tensor:
        values, norms = [], []
        for start in range(0, len(tokens), chunk):
            logits = nn.functional.linear(hidden[start : start + chunk], weight, bias).float()
            norm = logits.logsumexp(dim=1)
            values.append(logits.gather(1, tokens[start : start + chunk, None])[:, 0] - norm)
            norms.append(norm)
        ctx.save_for_backward(hidden, weight, bias, tokens, torch.cat(norms))
        ctx.chunk = chunk
        return torch.cat(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        hidden, weight, bias, tokens, norms = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        d_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if wants_weight else None
        d_bias = torch.zeros(len(weight), dtype=torch.float32, device=weight.device) if wants_bias else None
        for start in range(0, len(tokens), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            logits = nn.functional.linear(hidden[part], weight, bias).float()
            step = logits.sub_(norms[part, None]).exp_().mul_(-grad[part, None])
            step.scatter_add_(1, tokens[part, None], grad[part, None].float())
            small = step.to(hidden.dtype)
            if d_hidden is not None:
                torch.mm(small, weight, out=d_hidden[part])
            if d_weight is not None:
                if small.dtype == torch.float32:
                    d_weight.addmm_(small.T, hidden[part])
                else:
                    d_weight += small.T @ hidden[part]
            if d_bias is not None:
                d_bias += step.sum(dim=0)
        return d_hidden, _as(d_weight, weight), _as(d_bias, bias), None, None


def linear_logprobs(model: nn.Module, hidden: Tensor, tokens: Tensor, logit_bytes: int | None = None) -> Tensor:
    """Log-probabilities of `tokens` (n,) after hidden states (n, size), float32, where the output layer is a plain linear one.

    logit_bytes: most bytes of float32 logits at once (default: 32 MiB on a CPU, 256 MiB elsewhere).
    """
    layer: Any = model.get_output_embeddings()  # type: ignore[operator]
    weight, bias = layer.weight, layer.bias
    kind, chunk = hidden.device.type, _chunk(weight.shape[0], hidden, logit_bytes)
    if (casts := casts_of(hidden)) is not None and weight.dtype == torch.float32:
        return linear_logprobs_from(hidden, weight, bias, tokens, chunk, casts)
    if torch.is_autocast_enabled(kind):
        lower = torch.get_autocast_dtype(kind)
        hidden, weight, bias = hidden.to(lower), weight.to(lower), None if bias is None else bias.to(lower)
    with torch.autocast(kind, enabled=False):
        return _LinearLogprobs.apply(hidden.contiguous(), weight, bias, tokens, chunk)  # type: ignore[return-value]


def model_logprobs(model: nn.Module, hidden: Tensor, tokens: Tensor, logit_bytes: int | None = None) -> Tensor:
    """As `linear_logprobs`, through the model's own forward pass with its body left out.

    So whatever a model does to its logits (scaling, soft caps) is done here too; each chunk is recomputed in the
    backward pass.
    """
    chunk = _chunk(model.get_output_embeddings().weight.shape[0], hidden, logit_bytes)  # type: ignore[operator]

    def part(states: Tensor, wanted: Tensor) -> Tensor:
        logits = logits_from(model, states).float()
        return logits.gather(1, wanted[:, None])[:, 0] - logits.logsumexp(dim=1)

    pieces = [
        checkpoint(part, hidden[start : start + chunk], tokens[start : start + chunk], use_reentrant=False)
        for start in range(0, len(tokens), chunk)
    ]
    return torch.cat(pieces)  # type: ignore[arg-type]


def whole_logprobs(logits: Tensor, batch: Batch) -> Tensor:
    """Log-probabilities of a batch's predicted tokens from the model's own logits (rows, length, vocabulary)."""
    logits = logits.flatten(0, 1)[batch.parents].float()
    return logits.gather(1, batch.tokens[:, None])[:, 0] - logits.logsumexp(dim=1)


HEADS: dict[str, Callable[[nn.Module, Tensor, Tensor, int | None], Tensor]] = {"linear": linear_logprobs, "model": model_logprobs}
"""Ways from hidden states to log-probabilities, the fastest first. The probe takes `model` where it gives what the model's own
logits give, and `linear` in its place where that gives the same even of large logits.
"""


def _chunk(vocabulary: int, hidden: Tensor, logit_bytes: int | None) -> int:
    """Tokens of a chunk."""
    default = LOGIT_BYTES_ON_CPU if hidden.device.type == "cpu" else LOGIT_BYTES_ELSEWHERE
    return max(1, (logit_bytes or default) // (4 * vocabulary))


def _as(value: Tensor | None, like: Tensor | None) -> Tensor | None:
    return None if value is None or like is None else value.to(like.dtype)
