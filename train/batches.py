"""Batches: which prompts make a step, how a step falls into micro-batches, and how a model is run over one.

A micro-batch holds whole prompts; each completion is computed once, in a row of its own, whatever the number of its
pairs. `BATCHES` is where another layout of the same prompts plugs in.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor, nn

from mmpo.train.data import PromptPairs

__all__ = ["BATCHES", "Batch", "BatchKind", "Step", "make_step", "micro_batches", "plan_steps"]


@dataclass(frozen=True)
class Batch:
    """Whole prompts as padded rows, one row a completion.

    input_ids, attention_mask: (rows, length). starts, lengths: (rows,), the completion is ids[start:length]. chosen,
    rejected: (pairs,), rows. p, margin, weight: (pairs,). pairs: (pairs,), rows of the pairs in their table. reference:
    (rows,), NaN where there is none.
    """

    input_ids: Tensor
    attention_mask: Tensor
    starts: Tensor
    lengths: Tensor
    chosen: Tensor
    rejected: Tensor
    p: Tensor
    margin: Tensor
    weight: Tensor
    pairs: Tensor
    reference: Tensor

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        return replace(self, **{item.name: getattr(self, item.name).to(device) for item in fields(self)})


@dataclass(frozen=True)
class Step:
    """One optimizer step: micro-batches, the weight of all its pairs together, and its padded tokens."""

    batches: Sequence[Batch]
    total_weight: float
    tokens: int


def padded_rows(prompts: Sequence[PromptPairs], pad_token: int) -> Batch:
    """Right-padded rows, one a completion."""
    rows = [item for prompt in prompts for item in prompt.completions]
    lengths = torch.tensor([len(item.ids) for item in rows])
    ids = torch.full((len(rows), int(lengths.max())), pad_token)
    for row, item in enumerate(rows):
        ids[row, : len(item.ids)] = torch.tensor(item.ids)
    offsets = np.cumsum([0, *(len(prompt.completions) for prompt in prompts)])[:-1]
    none = [np.full(len(prompt.completions), np.nan) for prompt in prompts]

    def joined(name: str) -> Tensor:
        values = torch.from_numpy(np.concatenate([getattr(prompt, name) for prompt in prompts]))
        return values.float() if values.is_floating_point() else values  # some accelerators have no float64

    def shifted(name: str) -> Tensor:
        values = [getattr(prompt, name) + offset for prompt, offset in zip(prompts, offsets, strict=True)]
        return torch.from_numpy(np.concatenate(values))

    return Batch(
        input_ids=ids,
        attention_mask=(torch.arange(ids.shape[1]) < lengths[:, None]).long(),
        starts=torch.tensor([item.start for item in rows]),
        lengths=lengths,
        chosen=shifted("chosen"),
        rejected=shifted("rejected"),
        p=joined("p"),
        margin=joined("margin"),
        weight=joined("weight"),
        pairs=joined("rows"),
        reference=torch.from_numpy(
            np.concatenate([p.reference if p.reference is not None else n for p, n in zip(prompts, none, strict=True)])
        ).float(),
    )


def row_logprobs(model: nn.Module, batch: Batch) -> Tensor:
    """Sum of the completion tokens' log-probabilities, float32, shape (rows,).

    Only positions from the first completion token on reach the output layer, where the model allows it. Sums are in
    float32: 2,000 bfloat16 values summed in bfloat16 are nats off.
    """
    first = int(batch.starts.min()) - 1  # the position that predicts the first completion token of any row
    last = batch.input_ids.shape[1] - 1
    positions = torch.arange(first, last, device=batch.input_ids.device)
    keep = {"logits_to_keep": positions} if "logits_to_keep" in _parameters(model) else {}
    output = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, **keep)
    logits = output.logits if keep else output.logits[:, first:last]
    targets = batch.input_ids[:, first + 1 :]
    where = positions + 1
    inside = (where >= batch.starts[:, None]) & (where < batch.lengths[:, None])
    losses = nn.functional.cross_entropy(logits[inside].float(), targets[inside], reduction="none")
    values = torch.zeros(inside.shape, dtype=torch.float32, device=losses.device)
    return values.masked_scatter(inside, -losses).sum(dim=1)


def row_scores(model: nn.Module, batch: Batch) -> Tensor:
    """The reward model's score of each row, float32, shape (rows,), pooled at the last token by the attention mask.

    transformers pools at the last token that is not pad, which is one too early where pad equals eos. Encoders, which
    pool by a token of their own, keep their own way.
    """
    plain = _without_adapter(model)
    inner, head = getattr(plain, "base_model", None), getattr(plain, "score", None)
    if head is None or inner is None:
        return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, 0].float()
    hidden = inner(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).last_hidden_state
    rows = torch.arange(len(batch.lengths), device=hidden.device)
    return head(hidden[rows, batch.lengths - 1])[:, 0].float()


@dataclass(frozen=True)
class BatchKind:
    """One way to lay prompts out: build a batch of whole prompts, and run a policy or a reward model over it."""

    summary: str
    build: Callable[[Sequence[PromptPairs], int], Batch]
    logprobs: Callable[[nn.Module, Batch], Tensor]
    scores: Callable[[nn.Module, Batch], Tensor]


BATCHES: dict[str, BatchKind] = {
    "rows": BatchKind("each completion once, in a padded row of its own", padded_rows, row_logprobs, row_scores),
}


def plan_steps(pairs: Sequence[int], pairs_per_step: int, epochs: float, seed: int) -> list[np.ndarray]:
    """Which prompts make each step of a whole run: one array of prompt numbers a step.

    `pairs`: pairs of each prompt. Every epoch is a fresh shuffle, cut where a step has at least `pairs_per_step`
    pairs; what is left at an epoch's end joins its last step. A fractional last epoch stops after that share of its
    steps. The plan depends on nothing but its arguments, so that a resumed run goes on exactly where it stopped.
    """
    sizes = np.asarray(pairs)
    steps: list[np.ndarray] = []
    for epoch in range(int(np.ceil(epochs))):
        order = np.random.default_rng([seed, epoch]).permutation(len(sizes))
        cuts, held = [], 0
        for place, size in enumerate(sizes[order]):
            held += int(size)
            if held >= pairs_per_step:
                cuts.append(place + 1)
                held = 0
        if held and cuts:
            cuts.pop()
        inner = [cut for cut in cuts if cut < len(order)]
        parts = np.split(order, inner)
        share = min(1.0, epochs - epoch)
        steps.extend(parts[: max(1, round(share * len(parts)))])
    return steps


def micro_batches(prompts: Sequence[PromptPairs], tokens: int) -> list[list[PromptPairs]]:
    """Prompts grouped by length into micro-batches of at most `tokens` padded tokens.

    A prompt is never split: one that needs more is a micro-batch of its own.
    """
    groups: list[list[PromptPairs]] = []
    rows = 0
    for prompt in sorted(prompts, key=lambda item: (-item.length, item.prompt_id)):
        rows += len(prompt.completions)
        if groups and rows * groups[-1][0].length <= tokens:
            groups[-1].append(prompt)
        else:
            groups.append([prompt])
            rows = len(prompt.completions)
    return groups


def make_step(prompts: Sequence[PromptPairs], tokens: int, pad_token: int, kind: BatchKind) -> Step:
    """The micro-batches of one step, longest first (so that a run too large for the memory fails at once)."""
    batches = [kind.build(group, pad_token) for group in micro_batches(prompts, tokens)]
    weight = float(sum(prompt.weight.sum() for prompt in prompts))
    return Step(batches, weight, sum(batch.input_ids.numel() for batch in batches))


def _without_adapter(model: nn.Module) -> nn.Module:
    """The transformers model inside a peft model (adapter layers still act within it), or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def _parameters(model: nn.Module) -> set[str]:
    forward = type(_without_adapter(model)).forward  # accelerate wraps the instance's forward and hides its signature
    return set(inspect.signature(forward).parameters)
