"""Gradient checkpointing switched on for a moment: what a run recomputes must be probed and timed as the run will do it."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

_SWITCH, _FUNCTION = "gradient_checkpointing", "_gradient_checkpointing_func"
_MISSING = object()


def recomputes(args: Any) -> bool:
    """Whether transformers' training arguments ask for it, under its new name or the old one, which fills the new one in."""
    return bool(args.activation_checkpointing)


@contextmanager
def recomputing(model: nn.Module, wanted: bool = True) -> Iterator[None]:
    """Within, all layers that can do so recompute their activations (non-reentrant); afterwards they are as before.

    Does nothing unless `wanted`. transformers' own switches also change embeddings and adapters, and can't be put back.
    """
    layers = [module for module in model.modules() if hasattr(module, _SWITCH)] if wanted else []
    with _attributes((layer, {_SWITCH: True, _FUNCTION: partial(checkpoint, use_reentrant=False)}) for layer in layers):
        yield


@contextmanager
def recomputing_exactly(model: nn.Module) -> Iterator[None]:
    """As `recomputing` a model in evaluation mode, of which only the layers that recompute are in training mode: they look
    at that. Nothing of theirs is dropped.
    """
    layers = [module for module in model.modules() if hasattr(module, _SWITCH)]
    quiet = [{name: 0.0 for name, value in vars(layer).items() if "drop" in name and isinstance(value, float)} for layer in layers]
    with recomputing(model), _attributes((layer, {"training": True, **rates}) for layer, rates in zip(layers, quiet, strict=True)):
        yield


@contextmanager
def _attributes(changes: Any) -> Iterator[None]:
    """Sets attributes of modules, and puts back those of the instance, or takes away what it had none of."""
    before: list[tuple[nn.Module, str, Any]] = []
    try:
        for module, values in changes:
            for name, value in values.items():
                before.append((module, name, vars(module).get(name, _MISSING)))
                setattr(module, name, value)
        yield
    finally:
        for module, name, value in reversed(before):
            if value is _MISSING:
                delattr(module, name)
            else:
                setattr(module, name, value)
