"""Which earlier tokens a token of a tree batch sees, for every type of attention that a model mixes.

transformers uses a four-dimensional mask as it is, in every layer: a model with a window gets the window built into
the mask, one with several types of layers a mask for each.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmpo.train.batches import Batch

__all__ = ["ATTENTION_TYPES", "attention_types", "tree_masks"]

Overlay = Callable[[Tensor, Tensor, Any], Tensor]


def _full(query: Tensor, key: Tensor, config: Any) -> Tensor:
    return torch.ones_like(query >= key)


def _sliding(query: Tensor, key: Tensor, config: Any) -> Tensor:
    return key > query - config.sliding_window


def _chunked(query: Tensor, key: Tensor, config: Any) -> Tensor:
    return query // config.attention_chunk_size == key // config.attention_chunk_size


ATTENTION_TYPES: dict[str, Overlay] = {
    "full_attention": _full,
    "sliding_attention": _sliding,
    "chunked_attention": _chunked,
}
"""What each type hides beyond the tree itself, from the *positions* of query and key, by transformers' names."""


def attention_types(config: Any) -> tuple[str, ...]:
    """The types of attention of a model's layers, each once, in transformers' names; others than those of
    ATTENTION_TYPES (recurrent layers, for example) are for the caller to refuse.
    """
    text = config.get_text_config()
    layers = getattr(text, "layer_types", None)
    if layers:
        return tuple(dict.fromkeys(layers))
    return ("full_attention",) if getattr(text, "sliding_window", None) is None else ("sliding_attention",)


def tree_masks(batch: Batch, config: Any) -> Tensor | dict[str, Tensor]:
    """Boolean masks (rows, 1, length, length), True where the query (row of the mask) sees the key.

    One tensor for a model with one type of attention, else a dictionary by type.
    """
    columns = torch.arange(batch.ends.shape[1], device=batch.ends.device)
    tree = (columns <= columns[:, None]) & (columns[:, None] < batch.ends[:, None, :])
    text, query, key = config.get_text_config(), batch.positions[:, :, None], batch.positions[:, None, :]
    own = torch.eye(len(columns), dtype=torch.bool, device=columns.device)  # padding sees itself: no empty row
    masks = {name: ((tree & ATTENTION_TYPES[name](query, key, text)) | own)[:, None] for name in attention_types(config)}
    return masks if len(masks) > 1 else next(iter(masks.values()))
