"""Attention over a trie, one unbranched stretch of it at a time.

A boolean mask over the whole trie makes the kernel compute every pair of tokens, also those of different branches.
Here the queries of one stretch meet the keys of their own path only: with four completions as long as their prompt that
is 9 instead of 25 parts of work. It is many small kernels, which suits a CPU.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mmpo.train.batches import Segment

SEGMENTS = "mmpo_segments"
"""The name by which transformers' models find `segment_attention`."""


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    segments: Sequence[Segment] | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function. query, key, value: (1, heads, tokens, size); returns (1, tokens, heads, size).

    Without `segments` it is the usual one. Keys of a path lie at positions 0, 1, ...: the place of a key among them is
    its position. Raises ValueError for what it can't do, so that a probe takes another plan.
    """
    if segments is None:
        options["sliding_window"] = sliding_window
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **options)
    for name in ("softcap", "position_bias", "s_aux"):
        if options.get(name) is not None:
            raise ValueError(f"attention by segments knows no {name}")
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    sizes = [size for size, _ in segments]
    queries, keys, values = (item.split(sizes, dim=2) for item in (query, key, value))
    outputs = []
    for number, (size, before) in enumerate(segments):
        path = (*before, number)
        seen = sum(sizes[place] for place in before)
        first = 0 if sliding_window is None else max(0, seen + 1 - sliding_window)
        outputs.append(
            scaled_dot_product_attention(
                queries[number],
                _joined(keys, path, first),
                _joined(values, path, first),
                attn_mask=_stretch_mask(size, seen, first, sliding_window, query.device),
                is_causal=not before and (sliding_window is None or size <= sliding_window),
                dropout_p=dropout,
                scale=scaling,
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _joined(parts: Sequence[Tensor], path: Sequence[int], first: int) -> Tensor:
    """The path's keys or values from position `first` on."""
    joined = parts[path[0]] if len(path) == 1 else torch.cat([parts[place] for place in path], dim=2)
    return joined[:, :, first:] if first else joined


def _stretch_mask(size: int, seen: int, first: int, window: int | None, device: torch.device) -> Tensor | None:
    """(size, keys), True where seen; None where the causal flag says the same. A stretch begins at position `seen`."""
    if not seen and (window is None or size <= window):
        return None
    query = torch.arange(seen, seen + size, device=device)[:, None]
    key = torch.arange(first, seen + size, device=device)
    mask = key <= query
    return mask if window is None else mask & (key > query - window)


AttentionInterface.register(SEGMENTS, segment_attention)
AttentionMaskInterface.register(SEGMENTS, sdpa_mask)
