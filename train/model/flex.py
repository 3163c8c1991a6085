"""Attention over packed tries by FlexAttention: a GPU kernel that skips the blocks of the mask in which nothing is seen.

Its mask is two things. A function of query and key, compiled into the kernel, says what is seen; a list of blocks says
where to look, and where not even to ask. torch makes that list from the whole mask, token by token; here it comes from
the ends of the subtrees, with 1/128 of the memory and nothing to compile.
"""

from typing import Any

import torch
import torch._dynamo.config
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import pad

from mmpo.train.batches import Batch
from mmpo.train.model.masks import ATTENTION_TYPES, masks_by_type

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
