"""One forward pass of a model over a `Batch`: log-probabilities or scores, one value per completion.

An `ExecutionPlan` says how: which layout, by which attention, and how hidden states become log-probabilities. The pass runs inside
the model's own `forward` where it is attached (`mmpo.train.model.attach`).
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from mmpo.train.batches import Batch
from mmpo.train.model.attach import is_attached, plain_model
from mmpo.train.model.attention import ATTENTIONS, ExecutionPlan
from mmpo.train.model.logprobs import HEADS, whole_logprobs


def completion_values(model: nn.Module, kind: str, batch: Batch, plan: ExecutionPlan) -> Tensor:
    """One value a completion, float32, shape (completions,).

    kind "policy": the sum of the completion's log-probabilities. "reward": the score at its last token. Sums are in
    float32: 2,000 bfloat16 values summed in bfloat16 are nats off.
    """
    plain = plain_model(model)

    def run(inner: nn.Module) -> Tensor:
        """One pass. No dataclass, tuple or dictionary: wrappers would look into those and cast them."""
        return _RUNS[kind](inner, batch, plan)

    return model(mmpo=run) if is_attached(plain) else run(plain)


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
    kept = getattr(model, "mmpo_kept_ends", None)  # of a frozen body
    states = kept(batch, lambda: _ends(model, batch, plan)) if kept else _ends(model, batch, plan)
    with torch.autocast(states.device.type, enabled=False):
        return _first_label(head(states.to(next(head.parameters(), states).dtype)))


def _ends(model: nn.Module, batch: Batch, plan: ExecutionPlan) -> Tensor:
    return _hidden(model, batch, plan).flatten(0, 1)[batch.last]


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
