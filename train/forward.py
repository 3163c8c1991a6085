"""One forward pass of a model over a `Batch`: log-probabilities or scores, one value a completion.

A `Way` says how: which layout, and how hidden states become log-probabilities. `mmpo.train.probe` finds the best one
that is exact. The pass runs inside the model's own `forward` (`attach`), because wrappers for several devices gather
and reduce around that call and see no other.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from mmpo.train.attention import attention_types, tree_masks
from mmpo.train.batches import BATCHES, Batch, Layout
from mmpo.train.head import HEADS, whole_logprobs
from mmpo.train.segments import SEGMENTS

__all__ = ["Way", "attach", "body_of", "completion_values", "inputs_of", "plain_model"]


@dataclass(frozen=True)
class Way:
    """How a model is run. layout: a key of BATCHES. head: a key of HEADS, or "whole": the model's own logits of all
    positions. reason: why it is not a better one.
    """

    layout: str = "rows"
    head: str = "whole"
    reason: str = ""

    @property
    def batches(self) -> Layout:
        """The layout's builder."""
        return BATCHES[self.layout]


class _Call:
    """The arguments of one pass. No dataclass, tuple or dictionary: wrappers would look into those and cast them."""

    def __init__(self, kind: str, batch: Batch, way: Way) -> None:
        self.kind, self.batch, self.way = kind, batch, way


def completion_values(model: nn.Module, kind: str, batch: Batch, way: Way) -> Tensor:
    """One value a completion, float32, shape (completions,).

    kind "policy": the sum of the completion's log-probabilities. "reward": the score at its last token. Sums are in
    float32: 2,000 bfloat16 values summed in bfloat16 are nats off.
    """
    call = _Call(kind, batch, way)
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
    return _RUNS[call.kind](plain, call.batch, call.way)


def _logprobs(model: nn.Module, batch: Batch, way: Way) -> Tensor:
    if way.head == "whole":
        values = whole_logprobs(model(**inputs_of(model, batch, way)).logits, batch)
    else:
        hidden = _hidden(model, batch, way).flatten(0, 1)[batch.parents]
        values = HEADS[way.head](model, hidden, batch.tokens)
    return torch.segment_reduce(values[batch.spans], "sum", lengths=batch.counts)


def _scores(model: nn.Module, batch: Batch, way: Way) -> Tensor:
    """Pooled at each completion's last token. transformers pools at the last token that is not pad, which is one too
    early where pad equals eos. Encoders, which pool by a token of their own, keep their own way.
    """
    head = getattr(model, "score", None)
    if head is None or body_of(model) is model:
        return model(**inputs_of(model, batch, way)).logits[:, 0].float()
    return head(_hidden(model, batch, way).flatten(0, 1)[batch.last])[:, 0].float()


_RUNS = {"policy": _logprobs, "reward": _scores}


def _hidden(model: nn.Module, batch: Batch, way: Way) -> Tensor:
    body = body_of(model)
    return body(**inputs_of(body, batch, way)).last_hidden_state


def body_of(model: nn.Module) -> nn.Module:
    """The model without its output layer, or the model itself where it has no such part."""
    return getattr(model, getattr(model, "base_model_prefix", ""), model)


def inputs_of(model: nn.Module, batch: Batch, way: Way) -> dict[str, Any]:
    """The arguments with which a model, or its body, is called over a batch."""
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if way.layout == "tree":
        inputs |= {"attention_mask": tree_masks(batch, model.config), "position_ids": batch.positions}
    if way.layout == "packed":
        if model.config._attn_implementation != SEGMENTS:
            raise ValueError(f"a packed batch needs attention by segments, not {model.config._attn_implementation}: see choose_way")
        # Models hand a four-dimensional mask on as it is, and `segments` reads none.
        anything = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=batch.ends.device)
        masks = dict.fromkeys(attention_types(model.config), anything)
        mask = masks if len(masks) > 1 else anything
        inputs |= {"attention_mask": mask, "position_ids": batch.positions, "segments": batch.segments}
    if "use_cache" in inspect.signature(type(model).forward).parameters:
        inputs["use_cache"] = False
    return inputs
