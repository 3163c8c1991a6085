"""How a model is run: the fastest plan that is exact, tried at the start of a run on rows as long as its longest.

A mask that a model ignores, adds or cuts off raises no error; the model is just a little wrong. So a tree with random
tokens is run by each plan, and every token's hidden state is compared with that in a plain row of its own. A window
shows only in rows that are longer than it, hence the length. Where activations will be recomputed it is compared so too:
that branch of a model may hand on other arguments.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmpo.pipeline.errors import UserError
from mmpo.train.batches import BATCHES, Batch
from mmpo.train.data import Rendered
from mmpo.train.distributed import from_all
from mmpo.train.model.attach import plain_model
from mmpo.train.model.attention import (
    ATTENTION_TYPES,
    ATTENTIONS,
    FLEX,
    SEGMENTS,
    ExecutionPlan,
    allow_recompilation,
    attention_types,
)
from mmpo.train.model.forward import body_of, inputs_of
from mmpo.train.model.logprobs import linear_logprobs, model_logprobs, whole_logprobs

ROUNDING_TOLERANCE = 1e-4
"""Relative difference of a token's hidden state that float32 may explain; a wrong mask makes a thousand times as much."""
RANDOM_DRAWS = 3
_SWITCH, _FUNCTION = "gradient_checkpointing", "_gradient_checkpointing_func"


@torch.no_grad()
def choose_plan(
    model: nn.Module,
    kind: str,
    length: int,
    layout: str = "auto",
    device: torch.device | str | None = None,
    *,
    training: bool = False,
    bf16: bool = False,
    checkpointing: bool = False,
) -> ExecutionPlan:
    """The plan for running this model on rows of `length` tokens: over trees where that is exact, else over rows.

    kind: "policy" or "reward". layout: "auto", or "tree" to insist on it (UserError with the reason where it is not
    exact), or "rows". On a CPU attention is by segments or else by masks. On a GPU it is by masks or else by
    FlexAttention, which has to be compiled first; in `training`, and for a model that runs it already, FlexAttention comes
    first. A plan for training must be exact in every process, and every process must call this; FlexAttention must also
    have a backward pass, under autocast if `bf16`. checkpointing: whether activations will be recomputed, so that the plan
    must be exact then too. Sets the model's attention function to the one that the plan needs.
    """
    plain = plain_model(model)
    was_training = plain.training
    plain.eval()
    before = plain.config._attn_implementation
    if before in (SEGMENTS, FLEX):
        _set_attention(plain, "sdpa")
    try:
        head = _head(plain) if kind == "policy" else "whole"
        on_cpu = torch.device(device or next(plain.parameters()).device).type == "cpu"
        plan, reason = None, "asked for"
        if layout != "rows":
            probe = _Probe(plain, max(length, 12), training, bf16, checkpointing)
            plan, reason = probe.tree_plan(kind, _candidates(plain, on_cpu, training or before == FLEX))
    finally:
        plain.train(was_training)
    if plan is None and layout == "tree":
        raise UserError(f"tree batches do not work with this model ({reason}): take --layout rows or auto")
    return replace(plan or ExecutionPlan("rows", reason=reason), head=head)


def probe_group(vocabulary: int, length: int, seed: int = 0) -> list[Rendered]:
    """Three completions of random tokens that branch twice, the longest rows of `length` tokens."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randint(0, vocabulary, (3, length), generator=generator)
    start, fork = length // 3, 2 * length // 3
    draw[1, :start], draw[2, :start] = draw[0, :start], draw[0, :start]
    draw[2, :fork] = draw[1, :fork]
    draw[1, start], draw[2, fork] = (draw[0, start] + 1) % vocabulary, (draw[1, fork] + 1) % vocabulary
    rows = [draw[0, : max(start + 2, length - 2)], draw[1], draw[2]]
    rows[2][start] = rows[1][start]
    return [Rendered(row.int().numpy(), start) for row in rows]


def _candidates(plain: nn.Module, on_cpu: bool, flex_first: bool) -> list[ExecutionPlan]:
    """Plans to try over trees, in the order in which they are preferred."""
    if _unknown_types(plain):
        return []
    plans = [ExecutionPlan("tree", attention="mask")]
    if on_cpu:
        if plain.config._attn_implementation == "sdpa" and "chunked_attention" not in attention_types(plain.config):
            plans.insert(0, ExecutionPlan("packed", attention="segments"))
    elif next(plain.parameters()).device.type == "cuda":  # a sharded model is elsewhere at first
        allow_recompilation()
        plans.insert(0 if flex_first else 1, ExecutionPlan("packed", attention="flex"))
    return plans


@dataclass(frozen=True)
class _Probe:
    """What plans are tried on: a model with attention of its own, the tokens of the longest row, and how it will be run."""

    plain: nn.Module
    length: int
    training: bool
    bf16: bool
    checkpointing: bool

    def tree_plan(self, kind: str, candidates: Iterable[ExecutionPlan]) -> tuple[ExecutionPlan | None, str]:
        """The first of the plans that is exact, or None and why none is."""
        plain = self.plain
        if body_of(plain) is plain or (kind == "reward" and not hasattr(plain, "score")):
            return None, "an encoder, or a model without a body of its own"
        own, reason, without_flex = plain.config._attn_implementation, _unknown_types(plain), ""
        for plan in candidates:
            failures = from_all(partial(self._failure, plan, own)) if self.training else [self._failure(plan, own)]
            if not any(failures):
                _set_attention(plain, ATTENTIONS[plan.attention].implementation or own)
                return replace(plan, reason=without_flex), ""
            reason = next(filter(None, failures))
            if plan.attention == "flex" and self.training:
                without_flex = f"attention by flex does not work: {reason}"
        _set_attention(plain, own)
        return None, reason

    def _failure(self, plan: ExecutionPlan, own: str) -> str:
        """Why a plan can't be taken, "" where it can. own: the model's attention function."""
        try:
            error = self._difference(plan, own)
            if plan.attention == "flex" and self.training:
                self._backward(plan)
        except Exception as failure:  # whatever a foreign model raises, there is another plan
            return f"{type(failure).__name__}: {str(failure).splitlines()[0][:200] if str(failure) else ''}"
        if error <= ROUNDING_TOLERANCE * _slack(self.plain):
            return ""
        return (
            f"on rows of {self.length} tokens a hidden state differs by {error:.1e} of its size from the plain one; "
            f"its attention is {own}"
        )

    def _difference(self, plan: ExecutionPlan, own: str) -> float:
        """Largest relative difference of a token's last hidden state from that in a plain row of its own.

        A mixture of experts may send a token elsewhere for a rounding error; a mask that is wrong is wrong at the same places
        whatever the tokens. So of several draws the smallest difference of each place counts.
        """
        errors = self._errors(plan, own, 0)
        for seed in range(1, RANDOM_DRAWS):
            if not bool(errors.max() > ROUNDING_TOLERANCE * _slack(self.plain)):
                break
            errors = torch.minimum(errors, self._errors(plan, own, seed))
        return float(errors.max())

    def _errors(self, plan: ExecutionPlan, own: str, seed: int) -> Tensor:
        """Relative differences of hidden states from the plain ones, one for each place that `_states` looks at, and once
        more for recomputed ones.
        """
        plain, group = self.plain, self._group(seed)
        device = next(plain.parameters()).device
        _set_attention(plain, own)
        rows = ExecutionPlan("rows")
        expected = _states(plain, [rows.batches.build([[item]], 0).to(device) for item in group], rows)
        _set_attention(plain, ATTENTIONS[plan.attention].implementation or own)
        batches, errors = [plan.batches.build([group], 0).to(device)], []
        for mode in (nullcontext(), recomputing_exactly(plain)) if self.checkpointing else (nullcontext(),):
            with mode:
                errors.append((_states(plain, batches, plan) - expected).norm(dim=1) / expected.norm(dim=1))
        return torch.cat(errors)

    def _backward(self, plan: ExecutionPlan) -> None:
        """A backward pass as in training, which a kernel may not have for a model's sizes, or not with dropout."""
        device = next(self.plain.parameters()).device
        batch = plan.batches.build([self._group(0)], 0).to(device)
        self.plain.train()
        try:
            with (
                torch.enable_grad(),
                torch.random.fork_rng([] if device.type == "cpu" else [device]),
                torch.autocast(device.type, torch.bfloat16, enabled=self.bf16),
                recomputing(self.plain, self.checkpointing),
            ):
                loss = _states(self.plain, [batch], plan).square().mean()
                torch.autograd.grad(loss, [v for v in self.plain.parameters() if v.requires_grad], allow_unused=True)
        finally:
            self.plain.eval()

    def _group(self, seed: int = 0) -> list[Rendered]:
        return probe_group(self.plain.get_input_embeddings().num_embeddings, self.length, seed)  # type: ignore[operator]


def _set_attention(plain: nn.Module, name: str) -> None:
    if plain.config._attn_implementation != name:
        plain.set_attn_implementation(name)  # type: ignore[operator]


def _unknown_types(plain: nn.Module) -> str:
    unknown = [name for name in attention_types(plain.config) if name not in ATTENTION_TYPES]
    return f"it has layers of the type {', '.join(unknown)}" if unknown else ""


def _states(plain: nn.Module, batches: Sequence[Batch], plan: ExecutionPlan) -> Tensor:
    """Hidden states before every completion token and then at each completion's last, which rewards are read from."""
    body, before, last = body_of(plain), [], []
    for batch in batches:
        states = body(**inputs_of(body, batch, plan)).last_hidden_state.flatten(0, 1)
        before.append(states[batch.parents][batch.spans])
        last.append(states[batch.last])
    return torch.cat([*before, *last]).float()


def _slack(plain: nn.Module) -> float:
    """How much coarser the arithmetic makes the comparison: 600 for bfloat16, where rounding is all that is left, 80 for
    float32 with the products of a GPU rounded to 10 bits.
    """
    value = next(plain.parameters())
    dtype: Any = value.dtype
    coarse = 2**-10 if value.device.type == "cuda" and torch.backends.cuda.matmul.fp32_precision == "tf32" else 0.0
    return max(1.0, 8 * max(torch.finfo(dtype).eps, coarse) / ROUNDING_TOLERANCE)


def _head(plain: nn.Module) -> str:
    """The fastest of HEADS that gives what the model's own logits give, else "whole"."""
    layer = plain.get_output_embeddings()  # type: ignore[operator]
    if layer is None or body_of(plain) is plain:
        return "whole"
    device, (vocabulary, size) = layer.weight.device, layer.weight.shape
    batch = BATCHES["rows"].build([probe_group(vocabulary, 12)], 0).to(device)
    body, close = body_of(plain), {"rtol": 1e-5 * _slack(plain), "atol": 1e-5 * _slack(plain)}
    try:
        hidden = body(**inputs_of(body, batch, ExecutionPlan())).last_hidden_state.flatten(0, 1)[batch.parents]
        known = whole_logprobs(plain(**inputs_of(plain, batch, ExecutionPlan())).logits, batch)
        if not torch.allclose(model_logprobs(plain, hidden, batch.tokens), known, **close):
            return "whole"
        # Logits with a standard deviation of 30, so that soft caps show.
        states = torch.randn(len(batch.tokens), size, generator=torch.Generator().manual_seed(0))
        states = states.to(device, layer.weight.dtype) * (30 / (size**0.5 * float(layer.weight.float().std()) + 1e-12))
        large = [logprobs(plain, states, batch.tokens) for logprobs in (linear_logprobs, model_logprobs)]
    except Exception:  # whatever a foreign model raises, its own logits are there
        return "whole"
    # An adapter on the output layer is no plain linear layer, and equal to one only as long as it is zero.
    return "linear" if type(layer) is nn.Linear and torch.allclose(*large, rtol=1e-3, atol=1e-2) else "model"


# --- gradient checkpointing ----------------------------------------------------------------------------------------
# Switched on for a moment: what a run recomputes must be probed and timed as the run will do it.


def recomputes(args: Any) -> bool:
    """Whether transformers' training arguments ask for it, under its new name or the old one, which fills the new one in."""
    return bool(getattr(args, "activation_checkpointing", None) or getattr(args, "gradient_checkpointing", False))


@contextmanager
def recomputing(model: nn.Module, wanted: bool = True) -> Iterator[None]:
    """Within, all layers that can do so recompute their activations (non-reentrant); afterwards they are as before.

    Does nothing unless `wanted`. transformers' own switches also change embeddings and adapters, and can't be put back.
    """
    layers = [module for module in model.modules() if hasattr(module, _SWITCH)] if wanted else []
    with _attributes((layer, {_SWITCH: True, _FUNCTION: partial(checkpoint, use_reentrant=False)}) for layer in layers):
        yield


@contextmanager
def recomputing_exactly(model: nn.Module) -> Iterator[None]:
    """As `recomputing` a model in evaluation mode, of which only the layers that recompute are in training mode: they look
    at that. Nothing of theirs is dropped.
    """
    layers = [module for module in model.modules() if hasattr(module, _SWITCH)]
    quiet = [{name: 0.0 for name, value in vars(layer).items() if "drop" in name and isinstance(value, float)} for layer in layers]
    with recomputing(model), _attributes((layer, {"training": True, **rates}) for layer, rates in zip(layers, quiet, strict=True)):
        yield


@contextmanager
def _attributes(changes: Iterable[tuple[nn.Module, Mapping[str, Any]]]) -> Iterator[None]:
    """Sets attributes of modules; afterwards each module has those of its own that it had before."""
    before: list[tuple[nn.Module, dict[str, Any]]] = []
    try:
        for module, values in changes:
            before.append((module, dict(vars(module))))
            vars(module).update(values)
        yield
    finally:
        for module, own in reversed(before):
            vars(module).clear()
            vars(module).update(own)
