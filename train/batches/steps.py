"""Steps: which prompts make one, how its work is shared among processes and falls into forward passes.

A step holds whole prompts with all their pairs. Nothing here depends on anything but the arguments, so that a resumed
run goes on exactly where it stopped and every process knows the others' shares.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mmpo.train.batches.layouts import Batch, Layout, MicroBatch, micro_batch
from mmpo.train.data import PromptPairs, Rendered

Pass = list[tuple[PromptPairs, list[Rendered]]]
"""One forward pass: completions of one prompt, or of several all of them."""


@dataclass(frozen=True)
class Step:
    """One process's part of an optimizer step.

    batches: its micro-batches. total_weight, decided_weight: weights of all pairs, and of those with a winner (margin >
    0), of *all* processes. tokens: computed here, padding included. pairs: of all processes. idle: a batch to compute and
    throw away, so that all processes run the model equally often (those that hold parts of each other's weights would
    wait forever): idle_forwards times without gradients, idle_passes times forward and backward.
    """

    batches: Sequence[MicroBatch]
    total_weight: float
    decided_weight: float
    tokens: int
    pairs: int
    idle: Batch
    idle_forwards: int
    idle_passes: int


def plan_steps(pairs: Sequence[int], pairs_per_step: int, epochs: float, seed: int) -> list[np.ndarray]:
    """Which prompts make each step of a whole run: one array of prompt numbers a step.

    `pairs`: pairs of each prompt. Every epoch is a fresh shuffle, cut where a step has at least `pairs_per_step`
    pairs; what is left at an epoch's end joins its last step. A fractional last epoch stops after that share of its
    steps.
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


def share_prompts(prompts: Sequence[PromptPairs], layout: Layout, world: int) -> list[list[PromptPairs]]:
    """The prompts of each of `world` processes: the next largest one goes to whoever has the fewest tokens so far."""
    shares: list[list[PromptPairs]] = [[] for _ in range(world)]
    tokens = [0] * world
    for prompt, size in _largest_first(prompts, layout):
        least = tokens.index(min(tokens))
        shares[least].append(prompt)
        tokens[least] += size[0] * size[1]
    return shares


def group_prompts(prompts: Sequence[PromptPairs], tokens: int, layout: Layout) -> Iterator[list[Pass]]:
    """Micro-batches: prompts grouped by length into one pass of at most `tokens` computed tokens, longest first (so that a run
    too large for the memory fails at once).

    A prompt that alone has more is a micro-batch of its own, in several passes, each with the prompt before it; a single completion
    is never cut.
    """
    group: Pass = []
    sizes: list[tuple[int, int]] = []
    for prompt, size in _largest_first(prompts, layout):
        if group and layout.tokens([*sizes, size]) > tokens:
            yield [group]
            group, sizes = [], []
        if layout.tokens([size]) > tokens:
            yield [[(prompt, part)] for part in _split(prompt.completions, tokens, layout)]
        else:
            group.append((prompt, list(prompt.completions)))
            sizes.append(size)
    if group:
        yield [group]


def make_step(
    prompts: Sequence[PromptPairs], tokens: int, pad_token: int, layout: Layout, *, rank: int = 0, world: int = 1
) -> Step:
    """What process `rank` of `world` does of a step, in passes of at most `tokens` tokens."""
    shares = [list(group_prompts(share, tokens, layout)) for share in share_prompts(prompts, layout, world)]
    passes = [sum(len(group) for group in groups) for groups in shares]
    looks = [sum(len(group) for group in groups if len(group) > 1) for groups in shares]  # what is split is looked at once before
    batches = [_micro_batch(group, pad_token, layout) for group in shares[rank]]
    # as float32, like the batches: a margin that is no more than 0 there has no winner
    weight, decided = np.sum([[p.weight.sum(), p.weight[p.margin.astype(np.float32) > 0].sum()] for p in prompts], axis=0)
    smallest = min(prompts, key=lambda prompt: (len(prompt.completions[0].ids), prompt.prompt_id))
    return Step(
        batches=batches,
        total_weight=float(weight),
        decided_weight=float(decided),
        tokens=sum(batch.computed_tokens for batch in batches),
        pairs=sum(len(prompt.rows) for prompt in prompts),
        idle=layout.build([[smallest.completions[0]]], pad_token),
        idle_forwards=max(looks) - looks[rank],
        idle_passes=max(passes) - passes[rank],
    )


def _micro_batch(passes: Sequence[Pass], pad_token: int, layout: Layout) -> MicroBatch:
    batches = [layout.build([completions for _, completions in one], pad_token) for one in passes]
    return micro_batch([prompt for prompt, _ in passes[0]], tuple(batches))


def _split(completions: Sequence[Rendered], tokens: int, layout: Layout) -> list[list[Rendered]]:
    parts: list[list[Rendered]] = [[]]
    for item in completions:
        if parts[-1] and layout.tokens([layout.size([*parts[-1], item])]) > tokens:
            parts.append([])
        parts[-1].append(item)
    return parts


def _largest_first(prompts: Sequence[PromptPairs], layout: Layout) -> list[tuple[PromptPairs, tuple[int, int]]]:
    sized = [(prompt, layout.size(prompt.completions)) for prompt in prompts]
    return sorted(sized, key=lambda item: (-item[1][1], -item[1][0], item[0].prompt_id))
