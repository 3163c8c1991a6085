"""Passes in bfloat16 on a CPU: what autocast does there, with fewer casts and with attention and log-probabilities that are products of
matrices.

Under autocast alone a pass casts every weight anew and every activation once for each layer that reads it, and torch's attention for a
CPU multiplies no faster in bfloat16 than in float32. Within `bfloat16_on_cpu`, weights are cast once (a step, or a measurement,
long), linear layers that read the same activation share its cast, and the attention of stretches is bfloat16 products around
softmaxes in float32. Norms, the residual stream, softmaxes, log-probabilities, gradients of weights, and the weights
themselves stay in float32. Models on other devices, and such as are split by FSDP, run as under autocast.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmpo.train.batches import Segment

_LOW = torch.bfloat16
QUERIES = 128
"""Most queries of a block of attention: its scores stay in the caches, and of keys that come later most are left out."""
_LATER = torch.full((QUERIES, QUERIES), -torch.inf).triu(1)
"""Added to scores, it hides from each of a block's queries the later ones."""


def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for it (avx512_bf16 or AMX). Without them a pass in bfloat16 is slower than one in float32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


# --- casts, once -------------------------------------------------------------------------------------------------------------


class Casts:
    """Copies in bfloat16: of weights, for as long as this lives; of the activation that was cast last."""

    def __init__(self) -> None:
        self._weights: dict[int, tuple[Tensor, Tensor]] = {}
        self._last: tuple[Tensor, int, Tensor] | None = None

    def weight(self, weight: Tensor) -> Tensor:
        """A weight's copy. The weight is kept with it, so that its number stays its own."""
        if id(weight) not in self._weights:
            self._weights[id(weight)] = weight, weight.detach().to(_LOW)
        return self._weights[id(weight)][1]

    def activation(self, states: Tensor) -> Tensor:
        """An activation's copy, (rows, size)."""
        if self._last is None or self._last[0] is not states or self._last[1] != states._version:
            self._last = states, states._version, states.detach().to(_LOW).flatten(0, -2)
        return self._last[2]


_CASTS: ContextVar[Casts | None] = ContextVar("_CASTS", default=None)


@contextmanager
def bfloat16_on_cpu(model: nn.Module, wanted: bool = True) -> Iterator[None]:
    """Within, the model's passes under autocast to bfloat16 run as this module says, backward passes included. Its weights must not
    change meanwhile. Does nothing unless `wanted`, and for a model that is not on a CPU or is split by FSDP.
    """
    if not wanted or hasattr(model, "set_requires_gradient_sync") or next(model.parameters()).device.type != "cpu":
        yield
        return
    layers = [module for module in model.modules() if type(module) is nn.Linear and "forward" not in vars(module)]
    token = _CASTS.set(Casts())
    try:
        for layer in layers:
            layer.forward = MethodType(_linear, layer)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)
        _CASTS.reset(token)


def casts_of(like: Tensor) -> Casts | None:
    """Where casts are kept, None unless this is a pass as `bfloat16_on_cpu` runs it."""
    if like.device.type != "cpu" or not torch.is_autocast_enabled("cpu") or torch.get_autocast_dtype("cpu") != _LOW:
        return None
    return _CASTS.get()


def _linear(self: nn.Linear, states: Tensor) -> Tensor:
    """A linear layer's `forward`."""
    casts = casts_of(states)
    if casts is None or self.weight.dtype != torch.float32 or states.dim() < 2:
        return nn.functional.linear(states, self.weight, self.bias)
    return _Linear.apply(states, self.weight, self.bias, casts)  # type: ignore[return-value]


class _Linear(torch.autograd.Function):
    """states · Wᵀ + b in bfloat16, (..., size) to (..., outputs). The weight's gradient is summed in float32."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, casts: Casts) -> Tensor:
        rows, low = casts.activation(states), casts.weight(weight)
        ctx.save_for_backward(rows if ctx.needs_input_grad[1] else None, low if ctx.needs_input_grad[0] else None)
        ctx.like = states.shape, states.dtype
        return nn.functional.linear(rows, low, None if bias is None else casts.weight(bias)).view(*states.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        rows, low = ctx.saved_tensors
        flat, (shape, dtype) = grad.flatten(0, -2), ctx.like
        return (
            (flat @ low).view(shape).to(dtype) if ctx.needs_input_grad[0] else None,
            (flat.T @ rows).float() if ctx.needs_input_grad[1] else None,
            flat.sum(dim=0, dtype=torch.float32) if ctx.needs_input_grad[2] else None,
            None,
        )


# --- log-probabilities ---------------------------------------------------------------------------------------------------------


def linear_logprobs_from(hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, chunk: int, casts: Casts) -> Tensor:
    """As `linear_logprobs` of `mmpo.train.model.logprobs`, from a float32 output layer. chunk: tokens whose logits exist at once."""
    return _LinearLogprobs.apply(hidden, weight, bias, tokens, chunk, casts)  # type: ignore[return-value]


class _LinearLogprobs(torch.autograd.Function):
    """log softmax(hidden · Wᵀ + b)[token], with each chunk's logits computed anew in the backward pass.

    Memory for one chunk serves for all, and each chunk's softmax is one kernel. The rows' slopes multiply hidden states, which are
    narrow, and not probabilities, which are as wide as the vocabulary.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, chunk: int, casts: Casts) -> Tensor:
        low = (hidden.bfloat16(), casts.weight(weight), None if bias is None else casts.weight(bias))
        logits, found = torch.empty(min(chunk, len(tokens)), len(weight)), []
        for part, small in _low_logits(*low, len(tokens), chunk):
            exact = logits[: len(small)].copy_(small)
            torch.ops.aten._log_softmax(exact, 1, False, out=exact)
            found.append(exact.gather(1, tokens[part, None])[:, 0])
        values = torch.cat(found)
        ctx.save_for_backward(*low, tokens, values)
        ctx.chunk, ctx.dtype = chunk, hidden.dtype
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        hidden, weight, bias, tokens, values = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.empty(hidden.shape, dtype=ctx.dtype) if wants_hidden else None
        d_weight = torch.zeros(weight.shape) if wants_weight else None
        d_bias = torch.zeros(len(weight)) if wants_bias else None
        slopes, missing = -grad.float()[:, None], torch.expm1(values).to(weight.dtype)[:, None]  # p − 1 of the given tokens
        for part, small in _low_logits(hidden, weight, bias, len(tokens), ctx.chunk):
            torch.ops.aten._softmax(small, 1, False, out=small)
            small.scatter_(1, tokens[part, None], missing[part])
            if d_hidden is not None:
                d_hidden[part] = (small @ weight) * slopes[part]
            if d_weight is not None:
                d_weight += small.T @ (hidden[part] * slopes[part]).to(small.dtype)
            if d_bias is not None:
                d_bias += (small * slopes[part]).sum(dim=0)
        return d_hidden, d_weight, d_bias, None, None, None


def _low_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: int, chunk: int) -> Iterator[tuple[slice, Tensor]]:
    """Of each chunk its place and its logits, in memory that the next chunk takes."""
    memory = hidden.new_empty((min(chunk, tokens), len(weight)))
    for start in range(0, tokens, chunk):
        part = slice(start, min(start + chunk, tokens))
        logits = torch.mm(hidden[part], weight.T, out=memory[: part.stop - start])
        yield part, logits if bias is None else logits.add_(bias)


# --- attention of stretches ----------------------------------------------------------------------------------------------------


def stretch_attention(
    query: Tensor, key: Tensor, value: Tensor, segments: Sequence[Segment], scaling: float, window: int | None
) -> Tensor:
    """Attention of each stretch to its own path. query: (1, heads, tokens, size); key, value: (1, key heads, tokens, size), as the
    projections leave them; returns (1, tokens, heads, size) in bfloat16.
    """
    return _Stretches.apply(query, key, value, tuple(segments), scaling, window)  # type: ignore[return-value]


class _Stretches(torch.autograd.Function):
    """Products in bfloat16, softmaxes in float32; the backward pass computes each block's softmax anew, so that nothing of the size
    queries × keys is kept.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, segments: Sequence[Segment], scaling: float, window: int | None
    ) -> Tensor:
        ctx.dtypes, ctx.how = (query.dtype, key.dtype, value.dtype), (segments, scaling, window)
        groups, tokens = key.shape[1], key.shape[2]
        query = (query[0] * scaling).to(_LOW).unflatten(0, (groups, -1))  # (key heads, heads of each, tokens, size)
        key, value = key[0].to(_LOW), value[0].to(_LOW)
        output = query.new_empty(tokens, groups, query.shape[1], value.shape[-1])
        for block in _blocks(segments, window):
            queries, keys, values = query[:, :, block.queries].flatten(1, 2), block.joined(key), block.joined(value)
            found = block.softmax(queries, keys).to(_LOW) @ values
            output[block.queries] = found.unflatten(1, (-1, block.size)).permute(2, 0, 1, 3)
        ctx.save_for_backward(query, key, value)
        return output.flatten(1, 2)[None]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        query, key, value = ctx.saved_tensors
        segments, scaling, window = ctx.how
        grad = grad[0].to(_LOW).unflatten(1, query.shape[:2]).permute(1, 2, 0, 3)
        d_query, d_key, d_value = (torch.zeros(item.shape, dtype=torch.float32) for item in (query, key, value))
        for block in _blocks(segments, window):
            queries, pulls = (item[:, :, block.queries].flatten(1, 2) for item in (query, grad))
            keys, values = block.joined(key), block.joined(value)
            shares = block.softmax(queries, keys)
            block.add(d_value, shares.to(_LOW).transpose(1, 2) @ pulls)
            slopes = (pulls @ values.transpose(1, 2)).float()
            slopes = torch.ops.aten._softmax_backward_data(slopes, shares, -1, torch.float32).to(_LOW)
            d_query[:, :, block.queries] = (slopes @ keys).unflatten(1, (-1, block.size)).float()
            block.add(d_key, slopes.transpose(1, 2) @ queries)
        found = (d_query.flatten(0, 1).mul_(scaling), d_key, d_value)
        return (*(item[None].to(dtype) for item, dtype in zip(found, ctx.dtypes, strict=True)), None, None, None)


class _Block:
    """Some queries of a stretch, and the columns of the keys before and among them, piece by piece."""

    def __init__(self, queries: slice, pieces: Sequence[slice], window: int | None) -> None:
        self.queries, self.pieces, self.window = queries, pieces, window
        self.size, self.keys = queries.stop - queries.start, sum(piece.stop - piece.start for piece in pieces)

    def joined(self, item: Tensor) -> Tensor:
        """Of (heads, tokens, size) the block's keys."""
        parts = [item[:, piece] for piece in self.pieces]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def add(self, total: Tensor, found: Tensor) -> None:
        """Adds what belongs to the block's keys."""
        for piece, part in zip(self.pieces, found.split([piece.stop - piece.start for piece in self.pieces], dim=1), strict=True):
            total[:, piece] += part

    def softmax(self, queries: Tensor, keys: Tensor) -> Tensor:
        """(heads, queries, keys), float32. The last key is the last query's own."""
        scores = (queries @ keys.transpose(1, 2)).float()
        apart = scores.unflatten(1, (-1, self.size))
        if self.window is None:
            apart[..., self.keys - self.size :] += _LATER[: self.size, : self.size]
        else:
            behind = torch.arange(self.keys - self.size, self.keys)[:, None] - torch.arange(self.keys)
            apart.masked_fill_((behind < 0) | (behind >= self.window), -torch.inf)
        return torch.softmax(scores, dim=-1)


def _blocks(segments: Sequence[Segment], window: int | None) -> Iterator[_Block]:
    """Every stretch's queries in blocks, each with the columns of its path up to the block's last query."""
    starts, column = [], 0
    for size, before in segments:
        starts.append(column)
        path = [slice(starts[place], starts[place] + segments[place][0]) for place in before]
        for first in range(column, column + size, QUERIES):
            last = min(first + QUERIES, column + size)
            yield _Block(slice(first, last), _seen([*path, slice(column, last)], last - first, window), window)
        column += size


def _seen(pieces: Sequence[slice], queries: int, window: int | None) -> list[slice]:
    """The pieces without the keys that a window hides from all queries, and neighbours joined."""
    hidden = 0 if window is None else max(0, sum(piece.stop - piece.start for piece in pieces) - queries + 1 - window)
    found: list[slice] = []
    for piece in pieces:
        start = piece.start + min(hidden, piece.stop - piece.start)
        hidden -= start - piece.start
        if found and found[-1].stop == start:
            found[-1] = slice(found[-1].start, piece.stop)
        elif start < piece.stop:
            found.append(slice(start, piece.stop))
    return found
