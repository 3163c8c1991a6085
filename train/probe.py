"""Which way of running a model is exact: tried at the start of a run, on rows as long as its longest.

A mask that a model ignores, adds or cuts off raises no error; the model is just a little wrong. So a tree with random
tokens goes through each way, and every token's hidden state is compared with the plain one, a row a completion. A
window shows only in rows that are longer than it, hence the length.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mmpo.pipeline.errors import UserError
from mmpo.train.attention import ATTENTION_TYPES, attention_types
from mmpo.train.batches import BATCHES, Batch
from mmpo.train.forward import Way, body_of, inputs_of, plain_model
from mmpo.train.head import linear_logprobs, model_logprobs, whole_logprobs
from mmpo.train.render import Rendered
from mmpo.train.segments import SEGMENTS

__all__ = ["choose_way", "probe_group"]

_ROUNDING = 1e-4
"""Relative difference of a token's hidden state that float32 may explain; a wrong mask makes a thousand times as much."""


@torch.no_grad()
def choose_way(model: nn.Module, kind: str, length: int, layout: str = "auto", device: torch.device | str | None = None) -> Way:
    """The fastest way of running this model that is exact on rows of `length` tokens.

    kind: "policy" or "reward". layout: "auto", or "tree" to insist on it (UserError with the reason where it is not
    exact), or "rows". Sets the model's attention function to the one that the way needs.
    """
    plain = plain_model(model)
    was_training = plain.training
    plain.eval()
    try:
        head = _head(plain) if kind == "policy" else "whole"
        on_cpu = torch.device(device or next(plain.parameters()).device).type == "cpu"
        way, reason = _tree_way(plain, kind, max(length, 12), on_cpu) if layout != "rows" else (None, "asked for")
    finally:
        plain.train(was_training)
    if way is None and layout == "tree":
        raise UserError(f"tree batches do not work with this model ({reason}): take --layout rows or auto")
    return replace(way or Way("rows", reason=reason), head=head)


def probe_group(vocabulary: int, length: int, device: torch.device | str = "cpu") -> list[Rendered]:
    """Three completions of random tokens that branch twice, the longest rows of `length` tokens."""
    generator = torch.Generator().manual_seed(0)
    draw = torch.randint(0, vocabulary, (3, length), generator=generator)
    start, fork = length // 3, 2 * length // 3
    draw[1, :start], draw[2, :start] = draw[0, :start], draw[0, :start]
    draw[2, :fork] = draw[1, :fork]
    draw[1, start], draw[2, fork] = (draw[0, start] + 1) % vocabulary, (draw[1, fork] + 1) % vocabulary
    rows = [draw[0, : max(start + 2, length - 2)], draw[1], draw[2]]
    rows[2][start] = rows[1][start]
    return [Rendered(tuple(row.tolist()), start) for row in rows]


def _tree_way(plain: nn.Module, kind: str, length: int, on_cpu: bool) -> tuple[Way | None, str]:
    """The first tree layout that is exact, or None and why not."""
    if body_of(plain) is plain or (kind == "reward" and not hasattr(plain, "score")):
        return None, "an encoder, or a model without a body of its own"
    reason = ""
    for way, attention in _candidates(plain, on_cpu):
        before = plain.config._attn_implementation
        try:
            if attention is not None:
                plain.set_attn_implementation(attention)  # type: ignore[operator]
            error = _difference(plain, way, length)
        except Exception as failure:  # whatever a foreign model raises, there is another way
            error, reason = None, f"{type(failure).__name__}: {str(failure).splitlines()[0][:200] if str(failure) else ''}"
        if error is not None and error <= _ROUNDING * _slack(plain):
            return way, ""
        plain.set_attn_implementation(before)  # type: ignore[operator]
        if error is not None:
            reason = (
                f"on rows of {length} tokens a hidden state differs by {error:.1e} of its size from the plain one; "
                f"its attention is {before}"
            )
    return None, reason or _unknown_types(plain)


def _candidates(plain: nn.Module, on_cpu: bool) -> Iterator[tuple[Way, str | None]]:
    """Ways to try, the fastest first, each with the attention function to set."""
    if _unknown_types(plain):
        return
    by_segments = plain.config._attn_implementation in ("sdpa", SEGMENTS) and "chunked_attention" not in attention_types(
        plain.config
    )
    if on_cpu and by_segments:
        yield Way("packed"), SEGMENTS
    yield Way("tree"), "sdpa" if plain.config._attn_implementation == SEGMENTS else None


def _unknown_types(plain: nn.Module) -> str:
    unknown = [name for name in attention_types(plain.config) if name not in ATTENTION_TYPES]
    return f"it has layers of the type {', '.join(unknown)}" if unknown else ""


def _difference(plain: nn.Module, way: Way, length: int) -> float:
    """Largest relative difference of a token's last hidden state from that in a plain row of its own."""
    device = next(plain.parameters()).device
    group = probe_group(plain.get_input_embeddings().num_embeddings, length)  # type: ignore[operator]
    expected = _states(plain, [BATCHES["rows"].build([[item]], 0).to(device) for item in group], Way("rows"))
    found = _states(plain, [way.batches.build([group], 0).to(device)], way)
    return float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max())


def _states(plain: nn.Module, batches: Sequence[Batch], way: Way) -> Tensor:
    """Hidden states before every completion token, completion by completion, (completion tokens, size)."""
    body = body_of(plain)
    states = [body(**inputs_of(body, batch, way)).last_hidden_state.flatten(0, 1)[batch.parents][batch.spans] for batch in batches]
    return torch.cat(states).float()


def _slack(plain: nn.Module) -> float:
    """How much coarser the weights' precision makes the comparison: 600 for bfloat16, where rounding is all that is left."""
    dtype: Any = next(plain.parameters()).dtype
    return max(1.0, 8 * torch.finfo(dtype).eps / _ROUNDING)


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
