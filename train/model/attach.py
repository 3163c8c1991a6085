"""A model's own `forward` for our passes: over a batch of ours, and from hidden states that are known already.

A pass runs inside `forward` because wrappers for several devices gather and reduce around that call and see no other.
"""

import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

Pass = Callable[[nn.Module], Tensor]


def attach(model: nn.Module) -> None:
    """Lets the model's `forward` take a pass of ours as `mmpo`, so that whatever wraps the model wraps it too."""
    plain = plain_model(model)
    if is_attached(plain):
        return
    wrapped: Callable[..., Any] | None = plain.__dict__.get("forward")

    def forward(self: nn.Module, *args: Any, mmpo: Pass | None = None, **options: Any) -> Any:
        if mmpo is not None:
            return mmpo(self)
        return wrapped(*args, **options) if wrapped is not None else type(self).forward(self, *args, **options)

    forward.takes_mmpo = True  # type: ignore[attr-defined]
    # `generate` reads from the signature whether to make masks and positions for left-padded prompts.
    forward.__signature__ = inspect.signature(type(plain).forward)  # type: ignore[attr-defined]
    plain.forward = MethodType(forward, plain)  # a copy of the model then runs its own weights


def plain_model(model: nn.Module) -> nn.Module:
    """The transformers model inside wrappers of torch and an adapter of peft (whose layers still act within it)."""
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module  # type: ignore[assignment]
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def is_attached(plain: nn.Module) -> bool:
    """Whether a plain model's `forward` takes our passes."""
    forward = plain.__dict__.get("forward")
    while forward is not None and not hasattr(forward, "takes_mmpo"):
        forward = getattr(forward, "__wrapped__", None)  # accelerate wraps what is there
    return forward is not None


class _Hidden(nn.Module):
    """Stands in for a model's body and returns hidden states that are known already."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.last_hidden_state = states

    def forward(self, *_: Any, **__: Any) -> Any:
        return _Output(last_hidden_state=self.last_hidden_state)


class _Output(dict):
    """A model output as far as output layers look at it: by name, by number, and None for what is not there."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name)

    def __getitem__(self, key: Any) -> Any:
        return self.last_hidden_state if key == 0 else () if isinstance(key, slice) else self.get(key)


def logits_from(model: nn.Module, states: Tensor) -> Tensor:
    """Logits (n, vocabulary) that the model's own forward pass makes of hidden states (n, size)."""
    name = model.base_model_prefix
    body = model._modules[name]
    dummy = torch.zeros((1, len(states)), dtype=torch.long, device=states.device)
    model._modules[name] = _Hidden(states[None])
    try:
        return type(model).forward(model, input_ids=dummy, use_cache=False).logits[0]  # type: ignore[call-arg]
    finally:
        model._modules[name] = body
