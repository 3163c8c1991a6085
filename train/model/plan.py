"""How a model is run: over which layout of a batch, by which attention, and how hidden states become log-probabilities.

`mmpo.train.model.probe` finds the best plan that is exact.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from mmpo.train.batches import BATCHES, Batch, Layout
from mmpo.train.model.flex import FLEX, flex_inputs
from mmpo.train.model.masks import masks_by_type, tree_masks
from mmpo.train.model.segments import SEGMENTS


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
