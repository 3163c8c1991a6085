"""How long one pass forward and backward takes in each of several ways, on this machine, with this model.

Which attention is the faster one depends on the GPU, the model and the shape of the batches; nobody can know it, but
it is measured in seconds.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch import nn

from mmpo.train.batches.layouts import Batch
from mmpo.train.data.render import Rendered
from mmpo.train.distributed import from_all
from mmpo.train.model.forward import Way, body_of, inputs_of
from mmpo.train.model.recompute import recomputing

__all__ = ["pass_seconds", "typical_groups"]

_RUNS = 3
_SHARES = (1, 2, 2, 3)
"""Lengths of four completions, in prompts."""


def typical_groups(vocabulary: int, length: int, tokens: int) -> list[list[Rendered]]:
    """Prompts with four completions of random tokens, the longest row two thirds of `length`, about `tokens` distinct
    tokens in all, one prompt at least.
    """
    prompt = max(2, length // 6)
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, vocabulary, (count,), generator=generator).tolist())

    groups = []
    for _ in range(max(1, tokens // (prompt * (1 + sum(_SHARES))))):
        start = draw(prompt)
        groups.append([Rendered(start + draw(prompt * share), prompt) for share in _SHARES])
    return groups


def pass_seconds(
    plain: nn.Module, way: Way, length: int, tokens: int, lower: torch.dtype | None = None, checkpointing: bool = False
) -> float:
    """Median seconds of a pass over `typical_groups`, the slowest process's; infinity where one cannot do it.

    Every process must call it. The model, whose attention is set, runs as in training, under autocast to `lower` if
    given, with its activations recomputed if `checkpointing`. Two passes of different lengths go before, so that what is
    timed is compiled, and for any length.
    """
    return max(from_all(lambda: _seconds(plain, way, length, tokens, lower, checkpointing)))


def _seconds(plain: nn.Module, way: Way, length: int, tokens: int, lower: torch.dtype | None, checkpointing: bool) -> float:
    device = next(plain.parameters()).device
    vocabulary: int = plain.get_input_embeddings().num_embeddings  # type: ignore[operator]
    shapes = [(length // 2, tokens // 2), (length, tokens)]
    try:
        short, whole = (way.batches.build(typical_groups(vocabulary, *shape), 0).to(device) for shape in shapes)
        lowered = torch.autocast(device.type, lower, enabled=lower is not None)
        with _as_in_training(plain, device), recomputing(plain, checkpointing), lowered:
            for batch in (short, whole):
                _pass(plain, batch, way)
            return median(_timed(plain, whole, way, device) for _ in range(_RUNS))
    except Exception:  # out of memory, a kernel without a backward pass or without dropout, whatever a model raises
        return float("inf")


def _timed(plain: nn.Module, batch: Batch, way: Way, device: torch.device) -> float:
    _wait(device)
    begin = time.perf_counter()
    _pass(plain, batch, way)
    _wait(device)
    return time.perf_counter() - begin


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _pass(plain: nn.Module, batch: Batch, way: Way) -> None:
    body = body_of(plain)
    hidden = body(**inputs_of(body, batch, way)).last_hidden_state
    hidden.flatten(0, 1)[batch.parents].float().square().mean().backward()
    for value in plain.parameters():
        value.grad = None


@contextmanager
def _as_in_training(plain: nn.Module, device: torch.device) -> Iterator[Any]:
    """Training mode with gradients; afterwards the mode, the gradients and the random state are what they were."""
    was_training, kept = plain.training, [value.grad for value in plain.parameters()]
    devices: Sequence[torch.device] = [] if device.type == "cpu" else [device]
    for value in plain.parameters():
        value.grad = None
    plain.train()
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices):
            yield
    finally:
        plain.train(was_training)
        for value, grad in zip(plain.parameters(), kept, strict=True):
            value.grad = grad
