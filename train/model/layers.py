"""A model's stack of layers: where it is, and what comes into one of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from mmpo.pipeline.errors import UserError
from mmpo.train.model.attach import plain_model


def layers_of(model: nn.Module) -> nn.ModuleList:
    """The layers that a text passes through, in order. Raises UserError where a model has no such list."""
    plain: Any = plain_model(model)
    config = plain.config.get_text_config()
    count = getattr(config, "num_hidden_layers", None)
    stack = plain if config is plain.config else plain.get_decoder()  # a model of images has layers of its own for them
    for module in stack.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise UserError(
        f"{plain.name_or_path or type(plain).__name__} has no hidden states that can be read: no list of {count} layers is found in a "
        f"{type(plain).__name__}. Name a language model or an encoder of texts"
    )


@contextmanager
def inputs_of_layer(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Within, the hidden states that come into a layer, (rows, length, size), are appended to the list at every pass."""
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, given, named: seen.append(states_in(given, named)), with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()


def states_in(given: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    """The hidden states among the arguments of a layer."""
    return given[0] if given else named["hidden_states"]
