"""Which way of running a model is exact: tried at the start of a run, on rows as long as its longest.

A mask that a model ignores, adds or cuts off raises no error; the model is just a little wrong. So a tree with random
tokens goes through each way, and every token's hidden state is compared with the plain one, a row a completion. A
window shows only in rows that are longer than it, hence the length. On a GPU the exact ways are timed, if asked for.
Where activations will be recomputed it is compared so too: that branch of a model may hand on other arguments.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from math import isinf
from typing import Any

import torch
from torch import Tensor, nn

from mmpo.pipeline.errors import UserError
from mmpo.train.batches.layouts import BATCHES, Batch
from mmpo.train.data.render import Rendered
from mmpo.train.distributed import from_all
from mmpo.train.model.flex import FLEX, allow_recompilation
from mmpo.train.model.forward import ATTENTIONS, Way, body_of, inputs_of, plain_model
from mmpo.train.model.logprobs import linear_logprobs, model_logprobs, whole_logprobs
from mmpo.train.model.masks import ATTENTION_TYPES, attention_types
from mmpo.train.model.recompute import recomputing_exactly
from mmpo.train.model.segments import SEGMENTS
from mmpo.train.model.timing import pass_seconds

__all__ = ["choose_way", "probe_group"]

_ROUNDING = 1e-4
"""Relative difference of a token's hidden state that float32 may explain; a wrong mask makes a thousand times as much."""
_DRAWS = 3

Timing = tuple[int, torch.dtype | None]
"""Tokens of a pass, and what autocast lowers its precision to."""
Shape = tuple[int, bool]
"""Tokens of the longest row, and whether activations will be recomputed."""


@torch.no_grad()
def choose_way(
    model: nn.Module,
    kind: str,
    length: int,
    layout: str = "auto",
    device: torch.device | str | None = None,
    tokens: int | None = None,
    bf16: bool = False,
    checkpointing: bool = False,
) -> Way:
    """The fastest way of running this model that is exact on rows of `length` tokens.

    kind: "policy" or "reward". layout: "auto", or "tree" to insist on it (UserError with the reason where it is not
    exact), or "rows". tokens: of a batch in training; given, and on a GPU, FlexAttention is taken where a pass over so
    many tokens, under autocast to bfloat16 if `bf16`, is faster than with masks; every process must ask for it then.
    Otherwise it is taken where masks are not exact, and by a model that runs it already. Sets the model's attention
    function to the one that the way needs. checkpointing: whether activations will be recomputed in training, so that the
    way must be exact then too and is timed so.
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
        timing = None if tokens is None or on_cpu or before == FLEX else (tokens, torch.bfloat16 if bf16 else None)
        way, reason = None, "asked for"
        if layout != "rows":
            way, reason = _tree_way(plain, kind, (max(length, 12), checkpointing), on_cpu, before == FLEX, timing)
    finally:
        plain.train(was_training)
    if way is None and layout == "tree":
        raise UserError(f"tree batches do not work with this model ({reason}): take --layout rows or auto")
    return replace(way or Way("rows", reason=reason), head=head)


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
    return [Rendered(tuple(row.tolist()), start) for row in rows]


def _tree_way(
    plain: nn.Module, kind: str, shape: Shape, on_cpu: bool, ran_flex: bool, timing: Timing | None
) -> tuple[Way | None, str]:
    """The first way over trees that is exact, or of all the fastest where they are timed; or None and why not."""
    if body_of(plain) is plain or (kind == "reward" and not hasattr(plain, "score")):
        return None, "an encoder, or a model without a body of its own"
    own = plain.config._attn_implementation
    exact: list[Way] = []
    reason = failing = ""
    for way in _candidates(plain, on_cpu, ran_flex):
        try:
            error = _difference(plain, way, shape, own)
        except Exception as failure:  # whatever a foreign model raises, there is another way
            error, reason = None, f"{type(failure).__name__}: {str(failure).splitlines()[0][:200] if str(failure) else ''}"
        if error is not None and error <= _ROUNDING * _slack(plain):
            exact.append(way)
            if timing is None:
                break
            continue
        failing = way.attention
        if error is not None:
            reason = (
                f"on rows of {shape[0]} tokens a hidden state differs by {error:.1e} of its size from the plain one; "
                f"its attention is {own}"
            )
    if timing is not None:
        everywhere = _exact_everywhere(exact)  # the timing waits for every process
        if exact and not everywhere:
            reason = f"attention by {exact[0].attention} works in this process and not in all"
        exact = everywhere
    if timing is not None and len(exact) > 1:
        exact = [_fastest(plain, exact, own, shape, timing)]
    elif timing is not None and exact and failing:
        exact = [replace(exact[0], reason=f"attention by {failing} does not work: {reason}")]
    _set_attention(plain, ATTENTIONS[exact[0].attention].implementation or own if exact else own)
    return (exact[0], "") if exact else (None, reason or _unknown_types(plain))


def _candidates(plain: nn.Module, on_cpu: bool, ran_flex: bool) -> Iterator[Way]:
    """Ways to try, the fastest first as far as that is known."""
    if _unknown_types(plain):
        return
    by_segments = plain.config._attn_implementation == "sdpa" and "chunked_attention" not in attention_types(plain.config)
    if on_cpu and by_segments:
        yield Way("packed", attention="segments")
    flex = Way("packed", attention="flex")
    on_gpu = not on_cpu and next(plain.parameters()).device.type == "cuda"  # a sharded model is elsewhere at first
    if on_gpu:
        allow_recompilation()
    if on_gpu and ran_flex:
        yield flex
    yield Way("tree", attention="mask")
    if on_gpu and not ran_flex:
        yield flex


def _exact_everywhere(ways: Sequence[Way]) -> list[Way]:
    """Of this process' exact ways those that are exact in every process."""
    found = from_all(lambda: [way.attention for way in ways])
    return [way for way in ways if all(way.attention in names for names in found)]


def _fastest(plain: nn.Module, ways: Sequence[Way], own: str, shape: Shape, timing: Timing) -> Way:
    """The one with the shortest pass, and in its reason how long each took."""
    seconds = []
    for way in ways:
        _set_attention(plain, ATTENTIONS[way.attention].implementation or own)
        seconds.append(pass_seconds(plain, way, shape[0], *timing, checkpointing=shape[1]))
    named = zip([way.attention for way in ways], seconds, strict=True)
    took = ", ".join(f"{name} fails" if isinf(each) else f"{name} {1000 * each:.1f} ms" for name, each in named)
    return replace(ways[seconds.index(min(seconds))], reason=f"a pass forward and backward of {timing[0]:,} tokens: {took}")


def _set_attention(plain: nn.Module, name: str) -> None:
    if plain.config._attn_implementation != name:
        plain.set_attn_implementation(name)  # type: ignore[operator]


def _unknown_types(plain: nn.Module) -> str:
    unknown = [name for name in attention_types(plain.config) if name not in ATTENTION_TYPES]
    return f"it has layers of the type {', '.join(unknown)}" if unknown else ""


def _difference(plain: nn.Module, way: Way, shape: Shape, own: str) -> float:
    """Largest relative difference of a token's last hidden state from that in a plain row of its own.

    A mixture of experts may send a token elsewhere for a rounding error; a mask that is wrong is wrong at the same places
    whatever the tokens. So of several draws the smallest difference of each place counts.
    """
    errors = _errors(plain, way, shape, own, 0)
    for seed in range(1, _DRAWS):
        if not bool(errors.max() > _ROUNDING * _slack(plain)):
            break
        errors = torch.minimum(errors, _errors(plain, way, shape, own, seed))
    return float(errors.max())


def _errors(plain: nn.Module, way: Way, shape: Shape, own: str, seed: int) -> Tensor:
    """Relative differences of hidden states from the plain ones, one a place that `_states` looks at, and once more for
    recomputed ones.
    """
    length, checkpointing = shape
    device = next(plain.parameters()).device
    group = probe_group(plain.get_input_embeddings().num_embeddings, length, seed)  # type: ignore[operator]
    _set_attention(plain, own)
    expected = _states(plain, [BATCHES["rows"].build([[item]], 0).to(device) for item in group], Way("rows"))
    _set_attention(plain, ATTENTIONS[way.attention].implementation or own)
    batches, errors = [way.batches.build([group], 0).to(device)], []
    for mode in (nullcontext(), recomputing_exactly(plain)) if checkpointing else (nullcontext(),):
        with mode:
            errors.append((_states(plain, batches, way) - expected).norm(dim=1) / expected.norm(dim=1))
    return torch.cat(errors)


def _states(plain: nn.Module, batches: Sequence[Batch], way: Way) -> Tensor:
    """Hidden states before every completion token and then at each completion's last, which rewards are read from."""
    body, before, last = body_of(plain), [], []
    for batch in batches:
        states = body(**inputs_of(body, batch, way)).last_hidden_state.flatten(0, 1)
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
    return max(1.0, 8 * max(torch.finfo(dtype).eps, coarse) / _ROUNDING)


def _head(plain: nn.Module) -> str:
    """The fastest of HEADS that gives what the model's own logits give, else "whole"."""
    layer = plain.get_output_embeddings()  # type: ignore[operator]
    if layer is None or body_of(plain) is plain:
        return "whole"
    device, (vocabulary, size) = layer.weight.device, layer.weight.shape
    batch = BATCHES["rows"].build([probe_group(vocabulary, 12)], 0).to(device)
    body, close = body_of(plain), {"rtol": 1e-5 * _slack(plain), "atol": 1e-5 * _slack(plain)}
    try:
        hidden = body(**inputs_of(body, batch, Way())).last_hidden_state.flatten(0, 1)[batch.parents]
        known = whole_logprobs(plain(**inputs_of(plain, batch, Way())).logits, batch)
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
