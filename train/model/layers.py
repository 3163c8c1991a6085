"""A model's stack of layers: where it is, what comes into one of them, using the lowest alone, and training the uppermost alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
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


def keep_lowest(model: nn.Module, count: int) -> None:
    """Takes all but the lowest `count` layers away, in place; what comes after them stays, and the saved model is an ordinary smaller one.

    Raises UserError where the model has fewer layers.
    """
    layers, config = layers_of(model), plain_model(model).config.get_text_config()  # type: ignore[union-attr, operator]
    if count > len(layers):
        raise UserError(f"--layers {count}: the model has {len(layers)} layers; give 1 to {len(layers)}, or leave it out")
    del layers[count:]
    config.num_hidden_layers = count
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:count]


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


def check_top(model: nn.Module, top: int) -> None:
    """Raises UserError where `freeze_below` could not do what is asked for."""
    layers, plain = layers_of(model), plain_model(model)
    if not top and not isinstance(getattr(plain, "score", None), nn.Module):
        raise UserError(
            f"--trainable head: {type(plain).__name__} has no score layer upon its last token's state, but a head that reads more; "
            f"give top:1 to top:{len(layers)}, or all"
        )
    if top > len(layers):
        raise UserError(f"--trainable top:{top}: the model has {len(layers)} layers; give top:1 to top:{len(layers)}, or all")


def freeze_below(model: nn.Module, top: int) -> int:
    """Lets only the uppermost `top` layers train, with all that comes after them: norm, output layer or score; top 0: the score layer
    alone. Returns the number of the lowest layer that trains.

    What the hidden states there depend on gets no gradient. So an output layer that shares its weights with the embeddings stays as it
    is. Raises UserError where the model has fewer layers, and with top 0 where no score layer stands upon them.
    """
    check_top(model, top)
    layers, plain = layers_of(model), plain_model(model)
    if not top:
        plain.requires_grad_(False)
        plain.score.requires_grad_(True)  # type: ignore[union-attr, operator]
        return len(layers)
    cut = len(layers) - top
    body: Any = getattr(plain, getattr(plain, "base_model_prefix", ""), plain)
    values = dict(plain.named_parameters())
    plain.requires_grad_(True)
    with torch.enable_grad(), inputs_of_layer(layers[cut]) as seen:
        body(input_ids=torch.arange(4, device=next(plain.parameters()).device)[None])
        found = torch.autograd.grad(seen[0].float().sum(), list(values.values()), allow_unused=True)
    inside = {id(value) for layer in layers[:cut] for value in layer.parameters()}  # an expert may not have been asked
    for value, slope in zip(values.values(), found, strict=True):
        value.requires_grad_(slope is None and id(value) not in inside)
    return cut
