"""What is checked of targets and texts before a run computes anything, and what is said aloud where it goes on.

A check raises UserError; a warning is a line of text with numbers in it, which `warn` shows on standard error.
"""

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from mmpo.pipeline.arrow import differing_messages
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.margins import gamma_for_mean_target

__all__ = [
    "check_completions",
    "check_margins",
    "check_prompts",
    "is_first_process",
    "nothing_left",
    "rendering_warnings",
    "target_warnings",
    "warn",
]


def is_first_process() -> bool:
    """Whether this is the process that speaks: the first of those that a launcher started, or the only one.

    From the environment, so that it can be asked before the processes are connected.
    """
    return os.environ.get("RANK", "0") == "0"


def warn(lines: Iterable[str]) -> None:
    """Shows each line on standard error behind `warning: `; of several processes the first one alone does."""
    if is_first_process():
        for line in lines:
            print(f"warning: {line}", file=sys.stderr, flush=True)


def check_margins(margin: np.ndarray, terms: Sequence[str], target: str) -> None:
    """Raises UserError where no pair has a winner (shape (pairs,), all 0) and so nothing can be learnt.

    terms: the names of the objective's. The target `measured` comes from votes: with it mmpo can learn from ties.
    """
    if (margin > 0).any():
        return
    if target == "measured" and any(_reads_targets(name) for name in terms):
        return
    means = (
        "and this objective leaves ties out" if not any(map(_reads_targets, terms)) else "so that every target is .5 at any gamma"
    )
    raise UserError(
        f"all {len(margin)} pairs are ties: their quality_margin is 0, {means}, and there is nothing to learn. See `mmpo validate`; "
        "build with other scores (--score, --normalise), or train on votes with --loss mmpo --target measured"
    )


def check_prompts(table: pa.Table, first: np.ndarray) -> None:
    """Raises UserError where an id stands for two prompts. first: the row where each row's prompt id is first, (pairs,)."""
    wrong = np.flatnonzero(differing_messages(table["prompt"], first))
    if len(wrong):
        raise UserError(
            f"the prompt {table['prompt_id'][wrong[0]].as_py()} has two texts (row {wrong[0]}; {len(wrong)} of {len(first)} rows are "
            "such): an id is that of one prompt. `mmpo validate` lists such pairs; build them again with `mmpo build`"
        )


def check_completions(table: pa.Table, identities: np.ndarray, prompt_of: np.ndarray, first: np.ndarray) -> None:
    """Raises UserError where an id stands for completions of two prompts, or for two texts.

    identities, first: of every row's chosen and then of every row's rejected completion, (2·pairs,), the id and the place
    among them where that id is first. prompt_of: a number for each row's prompt, (pairs,).
    """
    again = "an id is that of one completion of one prompt. `mmpo validate` lists such pairs; build them again with `mmpo build`"
    prompts = np.tile(prompt_of, 2)
    wrong = np.flatnonzero(prompts != prompts[first])
    if len(wrong):
        names = table["prompt_id"].take(pa.array(np.array([first[wrong[0]], wrong[0]]) % table.num_rows)).to_pylist()
        raise UserError(
            f"the completion {identities[wrong[0]]} stands under two prompts, {names[0]} and {names[1]} "
            f"({len(wrong)} of {len(first)} places are such): {again}"
        )
    both = pa.chunked_array([*table["chosen"].chunks, *table["rejected"].chunks], table["chosen"].type)
    wrong = np.flatnonzero(differing_messages(both, first))
    if len(wrong):
        raise UserError(
            f"the completion {identities[wrong[0]]} has two texts (row {wrong[0] % table.num_rows}; "
            f"{len(wrong)} of {len(first)} places are such): {again}"
        )


def target_warnings(p: np.ndarray, margin: np.ndarray, gamma: float, terms: Sequence[str], target: str) -> list[str]:
    """What a gamma makes of the untied pairs where that is of little use: (nearly) all targets 1, or all .5.

    p, margin: shape (pairs,). Saturated is said where more than half of the targets are above .99, small where all lie
    within .5 ± .01. An infinite gamma asks for hard labels, and the target `measured` does not use it: nothing is said.
    Raises UserError where a target is no probability.
    """
    wrong = ~((p >= 0) & (p <= 1))
    if wrong.any():
        raise UserError(
            f"{int(wrong.sum())} of {len(p)} targets are no probabilities (gamma {gamma:.4g}, target {target}): see `mmpo validate`"
        )
    q = p[margin > 0]
    if not len(q) or np.isinf(gamma) or target == "measured" or not any(map(_reads_targets, terms)):
        return []
    advice = f"gamma {gamma_for_mean_target(margin):.4g} gives a mean target of .75 (--gamma auto)"
    if (q > 0.99).mean() > 0.5:
        return [
            f"gamma {gamma:.4g} saturates the targets: {(q > 0.99).mean():.1%} of {len(q)} untied pairs have a target above .99, "
            f"{(q > 0.999).mean():.1%} above .999, so that it hardly matters how much better a completion is; {advice}"
        ]
    if (np.abs(q - 0.5) <= 0.01).all():
        return [
            f"gamma {gamma:.4g} is so small that all {len(q)} untied pairs have a target within .5 ± .01 (the largest: "
            f"{q.max():.4f}), so that there is little to learn; {advice}"
        ]
    return []


def _reads_targets(term: str) -> bool:
    """Whether a term of the objective looks at the target or at gamma·margin: its value changes with them."""
    import torch

    from mmpo.train.objective.losses import LOSSES

    if term not in LOSSES:
        return False
    one = torch.ones(1)
    low, high = (LOSSES[term].per_pair(one, one * p, one, gamma=gamma) for p, gamma in ((0.6, 0.4), (0.9, 2.2)))
    return not torch.equal(low, high)


def rendering_warnings(renderer: Any) -> list[str]:
    """What a Renderer had to drop or change, a line a kind, with how many of how many and the option to change."""
    counts, long = renderer.counts, renderer.too_long
    prompts, completions = renderer.prompts, renderer.completions
    said = {
        "prompt_too_long": lambda n: (
            f"{n} of {prompts} prompts were left out with all their pairs: they have {min(long)} to {max(long)} tokens, "
            f"--max-prompt-length is {renderer.max_prompt_length}"
        ),
        "completion_truncated": lambda n: (
            f"{n} of {completions} completions lost their end: with their prompt they are longer than --max-length {renderer.max_length}"
        ),
        "completion_empty": lambda n: f"{n} of {completions} completions were left out: nothing of them is left behind the prompt",
        "template_refused": lambda n: f"{n} conversations were left out; the first: {renderer.first_refusal}",
        "system_merged": lambda n: (
            f"the chat template refuses system messages: in {n} of {prompts} prompts they were put before the first user turn"
        ),
        "system_moved": lambda n: (
            f"the chat template writes a system message only where the user speaks last: in {n} of {prompts} prompts it was put "
            "before the first user turn"
        ),
        "prompt_changed": lambda n: (
            f"{n} of {prompts} prompts were left out with all their pairs: the chat template writes them otherwise once a reply "
            "follows, so that part of the prompt would be taken for the reply; give another one with --chat-template"
        ),
        "end_of_text_missing": lambda n: (
            f"the tokenizer has no end-of-text token: {n} of {completions} completions end without one, and a policy does not "
            "learn from them when to stop"
        ),
    }
    return [line(counts[name]) for name, line in said.items() if counts[name]]


def nothing_left(renderer: Any, where: str, counts: dict[str, int]) -> UserError:
    """The error of a split of which no pair is left, with the lengths seen where all prompts were too long."""
    long = renderer.too_long
    if long and len(long) == renderer.prompts:
        return UserError(
            f"all {len(long)} prompts of {where} are longer than --max-prompt-length {renderer.max_prompt_length}: they have "
            f"{min(long)} to {max(long)} tokens. Give it a larger number, and --max-length a still larger one. Dropped: {counts}"
        )
    why = "".join(f". {line}" for line in rendering_warnings(renderer))
    return UserError(f"no pair of {where} is left; dropped: {counts}{why}")
