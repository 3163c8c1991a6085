"""One forward pass of a model over a `Batch`: log-probabilities or scores, one value per completion.

A `ExecutionPlan` says how: which layout, by which attention, and how hidden states become log-probabilities.
`mmpo.train.model.probe` finds the best one that is exact. The pass runs inside the model's own `forward` (`attach`), because
wrappers for several devices gather and reduce around that call and see no other.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from mmpo.train.batches import BATCHES, Batch, Layout
from mmpo.train.model.flex import FLEX, flex_inputs
from mmpo.train.model.logprobs import HEADS, whole_logprobs
from mmpo.train.model.masks import attention_types, tree_masks
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
    masks = dict.fromkeys(attention_types(config), anything)
    mask = masks if len(masks) > 1 else anything
    return {"attention_mask": mask, "position_ids": batch.positions, "segments": batch.segments}


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


class _Call:
    """The arguments of one pass. No dataclass, tuple or dictionary: wrappers would look into those and cast them."""

    def __init__(self, kind: str, batch: Batch, plan: ExecutionPlan) -> None:
        self.kind, self.batch, self.plan = kind, batch, plan


def completion_values(model: nn.Module, kind: str, batch: Batch, plan: ExecutionPlan) -> Tensor:
    """One value a completion, float32, shape (completions,).

    kind "policy": the sum of the completion's log-probabilities. "reward": the score at its last token. Sums are in
    float32: 2,000 bfloat16 values summed in bfloat16 are nats off.
    """
    call = _Call(kind, batch, plan)
    if _attached(plain_model(model)):
        return model(mmpo=call)
    return _run(plain_model(model), call)


def attach(model: nn.Module) -> None:
    """Lets the model's `forward` take such a pass, so that whatever wraps the model wraps it too."""
    plain = plain_model(model)
    if _attached(plain):
        return
    wrapped: Callable[..., Any] | None = plain.__dict__.get("forward")

    def forward(self: nn.Module, *args: Any, mmpo: _Call | None = None, **options: Any) -> Any:
        if mmpo is not None:
            return _run(self, mmpo)
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


def _attached(plain: nn.Module) -> bool:
    forward = plain.__dict__.get("forward")
    while forward is not None and not hasattr(forward, "takes_mmpo"):
        forward = getattr(forward, "__wrapped__", None)  # accelerate wraps what is there
    return forward is not None


def _run(plain: nn.Module, call: _Call) -> Tensor:
    return _RUNS[call.kind](plain, call.batch, call.plan)


def _logprobs(model: nn.Module, batch: Batch, plan: ExecutionPlan) -> Tensor:
    if plan.head == "whole":
        values = whole_logprobs(model(**inputs_of(model, batch, plan)).logits, batch)
    else:
        hidden = _hidden(model, batch, plan).flatten(0, 1)[batch.parents]
        values = HEADS[plan.head](model, hidden, batch.tokens, plan.logit_bytes)
    # Unsafe leaves the check of the lengths out, for which the host would wait for the GPU twice a pass.
    return torch.segment_reduce(values[batch.spans], "sum", lengths=batch.counts, unsafe=True)


def _scores(model: nn.Module, batch: Batch, plan: ExecutionPlan) -> Tensor:
    """Pooled at each completion's last token. transformers pools at the last token that is not pad, which is one too
    early where pad equals eos. The score layer computes in its own precision, so that under autocast scores are not
    rounded to 8 bits. Encoders, which pool by a token of their own, do so here.
    """
    head = getattr(model, "score", None)
    if head is None or body_of(model) is model:
        return _first_label(model(**inputs_of(model, batch, plan)).logits)
    states = _hidden(model, batch, plan).flatten(0, 1)[batch.last]
    with torch.autocast(states.device.type, enabled=False):
        return _first_label(head(states.to(next(head.parameters(), states).dtype)))


def _first_label(scores: Tensor) -> Tensor:
    return scores[:, 0].float().clone()  # FSDP hooks the gradient of what a model returns, and a view can lose the hook


_RUNS = {"policy": _logprobs, "reward": _scores}


def _hidden(model: nn.Module, batch: Batch, plan: ExecutionPlan) -> Tensor:
    body = body_of(model)
    return body(**inputs_of(body, batch, plan)).last_hidden_state


def body_of(model: nn.Module) -> nn.Module:
    """The model without its output layer, or the model itself where it has no such part."""
    return getattr(model, getattr(model, "base_model_prefix", ""), model)


def inputs_of(model: nn.Module, batch: Batch, plan: ExecutionPlan) -> dict[str, Any]:
    """The arguments with which a model, or its body, is called over a batch."""
    if plan.layout == "rows" and len(batch.input_ids) < len(batch.counts):
        raise ValueError(
            "a batch that was laid out as a tree can't be run as rows: the execution plan has changed since, lay it out again"
        )
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if plan.attention:
        attention, runs = ATTENTIONS[plan.attention], model.config._attn_implementation
        if attention.implementation not in ("", runs):
            raise ValueError(f"attention by {plan.attention} needs {attention.implementation}, not {runs}: see choose_plan")
        inputs |= attention.inputs(model.config, batch)
    if "use_cache" in inspect.signature(type(model).forward).parameters:
        inputs["use_cache"] = False
    return inputs
