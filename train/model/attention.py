"""How a model's attention follows the branches of a tree - by boolean masks, segments or FlexAttention - and how a model is run.

`mmpo.train.model.probe` finds the best `ExecutionPlan` that is exact: over which layout of a batch, by which of ATTENTIONS, and how
hidden states become log-probabilities.

**Masks** say which earlier tokens a token of a tree batch sees, for every type of attention that a model mixes. transformers uses
a four-dimensional mask as it is, in every layer: a model with a window gets the window built into the mask, one with several
types of layers a mask for each.

**Segments**: one unbranched stretch of a trie at a time. A boolean mask over the whole trie makes the kernel compute every pair of
tokens, also those of different branches. Here the queries of one stretch meet the keys of their own path only: with four
completions as long as their prompt that is 9 instead of 25 parts of work. It is many small kernels, which suits a CPU.

**FlexAttention** over packed tries: a GPU kernel that skips the blocks of the mask in which nothing is seen. Its mask is two
things. A function of query and key, compiled into the kernel, says what is seen; a list of blocks says where to look, and where
not even to ask. torch makes that list from the whole mask, token by token; here it comes from the ends of the subtrees, with 1/128
of the memory and nothing to compile.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch._dynamo.config
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mmpo.train.batches import BATCHES, Batch, Layout, Segment
from mmpo.train.model.bfloat16 import casts_of, stretch_attention

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


# --- segments ---------------------------------------------------------------------------------------------------------------

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
        options |= {"scaling": scaling, "sliding_window": sliding_window}
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, **options)
    for name in ("softcap", "position_bias", "s_aux"):
        if options.get(name) is not None:
            raise ValueError(f"attention by segments knows no {name}")
    if not dropout and casts_of(query) is not None:
        return stretch_attention(query, key, value, segments, scaling or query.shape[-1] ** -0.5, sliding_window), None
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


# --- FlexAttention ----------------------------------------------------------------------------------------------------------

FLEX = "flex_attention"
"""The name by which transformers' models find FlexAttention."""

BLOCK = 128
"""Tokens of a block, of queries and of keys alike; rows are padded to a multiple."""

_COMPILATIONS = 64
"""More than one model needs: types of attention × lengths fixed and free × with and without gradients × an adapter's
first layer, whose keys need no gradient. Past torch's default of 8 it would fall back, in silence, to a kernel that
holds all scores at once."""


def allow_recompilation() -> None:
    """Raises torch's limit of compiled variants a function, if it is lower than what a model may need."""
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _COMPILATIONS)


def flex_inputs(config: Any, batch: Batch) -> dict[str, Any]:
    """Arguments of a model for a packed batch, its row padded to whole blocks.

    Behind the padding's hidden states nobody looks, and those before it keep their places. Two blocks at least: a size
    of one is compiled apart.
    """
    if len(batch.ends) != 1:
        raise ValueError(f"attention by blocks takes one packed row, not {len(batch.ends)} rows: see choose_plan")
    length = batch.ends.shape[1]
    more = max(2, -(-length // BLOCK)) * BLOCK - length
    ends = torch.cat([batch.ends[0], torch.arange(length + 1, length + more + 1, device=batch.ends.device)])
    positions = pad(batch.positions, (0, more))
    return {
        "input_ids": pad(batch.input_ids, (0, more)),
        "position_ids": positions,
        "attention_mask": masks_by_type(config, lambda name: block_mask(ends, positions[0], name, config)),
    }


def block_mask(ends: Tensor, positions: Tensor, name: str, config: Any) -> BlockMask:
    """The mask of one type of attention. ends, positions: (length,), whole blocks; name: a key of ATTENTION_TYPES.

    A block counts as full only where all its queries see all its keys, and is left out only where none sees any.
    """
    kind, blocks = ATTENTION_TYPES[name], len(ends) // BLOCK
    within, size = kind.sees, kind.size_in(config)

    def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < ends[key]) & within(positions[query], positions[key], size)

    # Key j is seen by the queries from j to ends[j]: so many of each block of queries.
    column = torch.arange(len(ends), device=ends.device)
    first = column[::BLOCK, None]
    seen = (torch.minimum(ends, first + BLOCK) - torch.maximum(column, first)).clamp(min=0)
    seen = seen.view(blocks, blocks, BLOCK).sum(dim=2)
    # Windows and chunks hide by position; what is true of a block's nearest or farthest pair is true of all.
    low, high = positions.view(blocks, BLOCK).aminmax(dim=1)
    some = (seen > 0) & within(low[:, None], torch.minimum(low[:, None], high), size)
    full = (seen == BLOCK * BLOCK) & within(high[:, None], low.expand(blocks, blocks), size)
    return BlockMask.from_kv_blocks(
        *_listed(some & ~full), *_listed(full), BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(len(ends), len(ends))
    )


def _listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries has, and which, those first, with dimensions for batch and heads."""
    order = chosen.int().argsort(dim=1, descending=True, stable=True)
    return chosen.sum(dim=1, dtype=torch.int32)[None, None], order.int()[None, None]


# --- the table, and how a model is run ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attention:
    """How a model's attention follows the branches of a tree. layout: a key of BATCHES. implementation: the name of the
    function that transformers' models must run, "" for their own. inputs: arguments of a model, by its config and a batch.
    """

    summary: str
    layout: str
    implementation: str
    inputs: Callable[[Any, Batch], dict[str, Any]]


def _segment_inputs(config: Any, batch: Batch) -> dict[str, Any]:
    # Models hand a four-dimensional mask on as it is, and `segments` reads none.
    anything = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=batch.ends.device)
    return {
        "attention_mask": masks_by_type(config, lambda _: anything),
        "position_ids": batch.positions,
        "segments": batch.segments,
    }


def _mask_inputs(config: Any, batch: Batch) -> dict[str, Any]:
    return {"attention_mask": tree_masks(batch, config), "position_ids": batch.positions}


ATTENTIONS: dict[str, Attention] = {
    "segments": Attention("one unbranched stretch at a time; for a CPU", "packed", SEGMENTS, _segment_inputs),
    "flex": Attention("FlexAttention, compiled; for a GPU where it is faster than masks", "packed", FLEX, flex_inputs),
    "mask": Attention("a boolean mask for each trie; wherever models apply it", "tree", "", _mask_inputs),
}


@dataclass(frozen=True)
class ExecutionPlan:
    """How a model is run. layout: a key of BATCHES. head: a key of HEADS, or "whole": the model's own logits of all
    positions. reason: why it is this one. attention: a key of ATTENTIONS, "" for rows; left out, the layout's first.
    logit_bytes: as the heads take it.
    """

    layout: str = "rows"
    head: str = "whole"
    reason: str = ""
    attention: str = ""
    logit_bytes: int | None = None

    def __post_init__(self) -> None:
        if not self.attention:
            first = next((name for name, attention in ATTENTIONS.items() if attention.layout == self.layout), "")
            object.__setattr__(self, "attention", first)

    @property
    def batches(self) -> Layout:
        """The layout's builder."""
        return BATCHES[self.layout]
