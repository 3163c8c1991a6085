"""Which earlier tokens a token of a tree batch sees, for every type of attention that a model mixes.

transformers uses a four-dimensional mask as it is, in every layer: a model with a window gets the window built into
the mask, one with several types of layers a mask for each.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from mmpo.train.batches import Batch

Mask = TypeVar("Mask")


@dataclass(frozen=True)
class AttentionType:
    """What a type of attention hides beyond the tree itself. `sees`: from the *positions* of a query and of a key that is
    no later, and the type's size; a key that it hides stays hidden from later queries, and so do earlier keys. `size`: the
    config's name of the size, "" for none.
    """

    sees: Callable[[Tensor, Tensor, int], Tensor]
    size: str = ""

    def size_in(self, config: Any) -> int:
        """The window's or the chunk's tokens in a model's config, 0 where there is no such thing."""
        return int(getattr(config.get_text_config(), self.size)) if self.size else 0


def _full(query: Tensor, key: Tensor, size: int) -> Tensor:
    return torch.ones_like(query >= key)


def _sliding(query: Tensor, key: Tensor, size: int) -> Tensor:
    return key > query - size


def _chunked(query: Tensor, key: Tensor, size: int) -> Tensor:
    return query // size == key // size


ATTENTION_TYPES: dict[str, AttentionType] = {
    "full_attention": AttentionType(_full),
    "sliding_attention": AttentionType(_sliding, "sliding_window"),
    "chunked_attention": AttentionType(_chunked, "attention_chunk_size"),
}
"""By transformers' names."""


def attention_types(config: Any) -> tuple[str, ...]:
    """The types of attention of a model's layers, each once, in transformers' names; others than those of
    ATTENTION_TYPES (recurrent layers, for example) are for the caller to refuse.
    """
    text = config.get_text_config()
    layers = getattr(text, "layer_types", None)
    if layers:
        return tuple(dict.fromkeys(layers))
    return ("full_attention",) if getattr(text, "sliding_window", None) is None else ("sliding_attention",)


def masks_by_type(config: Any, make: Callable[[str], Mask]) -> Mask | dict[str, Mask]:
    """The mask that `make` gives for a model's type of attention, or, where it has several, for each."""
    masks = {name: make(name) for name in attention_types(config)}
    return masks if len(masks) > 1 else next(iter(masks.values()))


def tree_masks(batch: Batch, config: Any) -> Tensor | dict[str, Tensor]:
    """Boolean masks (rows, 1, length, length), True where the query (row of the mask) sees the key.

    One tensor for a model with one type of attention, else a dictionary by type.
    """
    columns = torch.arange(batch.ends.shape[1], device=batch.ends.device)
    tree = (columns <= columns[:, None]) & (columns[:, None] < batch.ends[:, None, :])
    query, key = batch.positions[:, :, None], batch.positions[:, None, :]
    own = torch.eye(len(columns), dtype=torch.bool, device=columns.device)  # padding sees itself: no empty row

    def mask(name: str) -> Tensor:
        kind = ATTENTION_TYPES[name]
        return ((tree & kind.sees(query, key, kind.size_in(config))) | own)[:, None]

    return masks_by_type(config, mask)
