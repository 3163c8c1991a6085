"""What a run tells its user: warnings on standard error, and the errors of memory that runs out and of values that are not finite.

A warning is a line of text with numbers in it, which `warn` shows. Importing this loads no torch.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.margins import MEAN_TARGET, gamma_for_mean_target, target_probability
from mmpo.pipeline.progress import say
from mmpo.train.objective import reads_targets


def is_first_process() -> bool:
    """Whether this is the process that speaks: the first of those that a launcher started, or the only one.

    From the environment, so that it can be asked before the processes are connected.
    """
    return os.environ.get("RANK", "0") == "0"


def warn(lines: Iterable[str]) -> None:
    """Shows each line on standard error behind `warning: `; of several processes the first one alone does."""
    if is_first_process():
        for line in lines:
            say(f"warning: {line}")


def target_warnings(p: np.ndarray, margin: np.ndarray, gamma: float, terms: Sequence[str], target: str) -> list[str]:
    """What a gamma makes of the untied pairs where that is of little use: (nearly) all targets 1, or all .5.

    p, margin: shape (pairs,). Saturated is said where more than half of the targets are above .99, small where all lie
    within .5 ± .01. An infinite gamma asks for hard labels, and the targets of votes do not use it: nothing is said. And where a target
    other than plain is asked for by an objective that reads none.
    Raises UserError where a target is no probability.
    """
    wrong = ~((p >= 0) & (p <= 1))
    if wrong.any():
        raise UserError(
            f"{int(wrong.sum())} of {len(p)} targets are no probabilities (gamma {gamma:.4g}, target {target}): see `mmpo validate`"
        )
    if target != "plain" and not reads_targets(terms):
        return [f"target {target} changes nothing: {', '.join(terms)} reads no target. Take --loss mmpo, or leave the target out"]
    q = p[margin > 0]
    if not len(q) or np.isinf(gamma) or target in ("measured", "levels") or not reads_targets(terms):
        return []
    advice = f"gamma {gamma_for_mean_target(margin):.4g} gives a mean target of {MEAN_TARGET:g} (--gamma auto)"
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


def learned_lines(learned: Mapping[str, Mapping[str, Any]], margin: np.ndarray) -> list[str]:
    """What losses have learned beside the model, a line each; beside ordinal's γ the conventions. margin: (pairs,), training's."""
    lines = []
    if "davidson" in learned:
        nu, share = learned["davidson"]["nu"], learned["davidson"]["tie_probability"]
        lines.append(f"davidson learned ν = {nu:.3g}: where z is 0, {share:.1%} of the pairs are ties")
    if "ordinal" in learned and learned["ordinal"]["gamma"] is not None:
        gamma, levels, at = (learned["ordinal"][name] for name in ("gamma", "levels", "thresholds"))
        p = target_probability(margin[margin > 0], gamma)
        between = ", ".join(f"{low:.3g} and {high:.3g} at {z:.3g}" for low, high, z in zip(levels, levels[1:], at, strict=False))
        lines.append(
            f"ordinal learned thresholds between the margins {between}: as a scale that is γ = {gamma:.4g} (mean target {p.mean():.3f}); "
            f"the convention of --gamma auto, mean target {MEAN_TARGET:g}, is {gamma_for_mean_target(margin):.4g}; published for "
            "1–10 grades: .3, 1.1 and 2.2"
        )
    return lines


_RENDERING = {
    "prompt_too_long": "{n} of {prompts} prompts were left out with all their pairs: they have {lengths} tokens, --max-prompt-length is "
    "{max_prompt_length}",
    "completion_truncated": "{n} of {completions} completions lost their end: with their prompt they are longer than --max-length "
    "{max_length}",
    "completion_empty": "{n} of {completions} completions were left out: nothing of them is left behind the prompt",
    "template_refused": "{n} conversations were left out; the first: {refusal}",
    "system_merged": "the chat template refuses system messages: in {n} of {prompts} prompts they were put before the first user turn",
    "system_moved": "the chat template writes a system message nowhere, or only where the user speaks last: in {n} of {prompts} prompts it "
    "was put before the first user turn",
    "message_vanished": "{n} of {prompts} prompts were left out with all their pairs: the chat template writes nothing of messages whose "
    "role is {unwritten}; give them roles that it knows (user, assistant, system) in the data, or another template with --chat-template",
    "message_changed": "in {n} of {prompts} prompts the chat template writes a message otherwise than it stands in the data (without its "
    "thinking, say)",
    "tools_vanished": "{n} of {prompts} prompts were left out with all their pairs: the chat template writes nothing of the tools that "
    "they offer; give one that knows tools with --chat-template",
    "tool_calls_vanished": "{n} of {prompts} prompts were left out with all their pairs: the chat template writes nothing of the tool "
    "calls in them; give one that knows tool_calls with --chat-template",
    "reply_calls_vanished": "{n} of {completions} completions were left out: the chat template writes nothing of their tool calls; give "
    "one that knows tool_calls with --chat-template",
    "thinking_vanished": "{n} of {completions} completions were left out: the chat template writes nothing of their thinking "
    "(reasoning_content); --thinking drop trains on the answers alone, --chat-template names a template that writes it",
    "earlier_thinking_left_out": "in {n} of {prompts} prompts the chat template leaves out what the assistant thought in earlier turns",
    "turn_continued": "{n} of {prompts} prompts end with an assistant's turn: their replies continue that turn, and nothing is put between",
    "prompt_changed": "{n} of {prompts} prompts were left out with all their pairs: the chat template writes them otherwise once a reply "
    "follows, so that part of the prompt would be taken for the reply; give another one with --chat-template",
    "completion_changed": "the chat template writes {n} of {completions} completions otherwise than they stand in the data, {trimmed} of "
    "them only in the white space around them: what was graded is not quite what is read here",
    "completion_vanished": "{n} of {completions} completions were left out: the chat template writes nothing of them",
    "thinking_kept": "{n} of {completions} completions hold thinking (<think> ... </think>, or reasoning_content), which is {thinking}",
    "thinking_dropped": "of {n} of {completions} completions the thinking (<think> ... </think>) was left out (--thinking drop)",
    "thinking_only": "{n} of {completions} completions were left out: they are thinking without an answer, which is what counts with "
    "--thinking drop and with --graded-part answer",
    "equal_after_rendering": "{n} pairs were left out: the chat template writes both completions alike, and no model can tell them "
    "apart",
    "truncated_to_equal": "{n} pairs were left out: their completions are equal up to --max-length {max_length}, so that no model can tell "
    "them apart",
    "end_of_text_missing": "the tokenizer has no end-of-text token: {n} of {completions} completions end without one, and a policy does "
    "not learn from them when to stop",
}
"""What is said of each of a Renderer's counts, and of pairs that rendering leaves without a difference."""


_LEFT_OUT = {
    "dropped_ties": "{n:,} ties (margin 0; a loss that learns from them and --ties keep keep them)",
    "dropped_source_weight": "{n:,} pairs of sources of weight 0 (--source-weights)",
    "prompt_not_rendered": "{n:,} pairs with their prompt",
    "completion_not_rendered": "{n:,} pairs with one of their completions",
}
"""What is said of pairs that were left out, by `usable_pairs` and `prepare`; equal ones are in _RENDERING."""


def rendering_warnings(renderer: Any, counts: Mapping[str, int] | None = None) -> list[str]:
    """What a Renderer had to drop or change, a line a kind, with how many of how many and the option to change; counts: of `prepare`,
    with those of pairs.
    """
    known = {
        "prompts": renderer.prompts,
        "completions": renderer.completions,
        "lengths": f"{min(renderer.too_long)} to {max(renderer.too_long)}" if renderer.too_long else "",
        "max_prompt_length": renderer.max_prompt_length,
        "max_length": renderer.max_length,
        "refusal": renderer.first_refusal,
        "unwritten": ", ".join(sorted(renderer.unwritten)),
        "trimmed": renderer.trimmed,
        "thinking": "given to the chat template with the rest; --thinking drop leaves it out, --graded-part says whether it was graded "
        "(all) or not (answer)"
        if renderer.graded_part == "all"
        else "read, while the answer alone counts",
    }
    counts = {**(counts or {}), **renderer.counts}
    return [line.format_map({**known, "n": counts[name]}) for name, line in _RENDERING.items() if counts.get(name)]


def nothing_left(renderer: Any, where: str, counts: dict[str, int]) -> UserError:
    """The error of a split of which no pair is left: how many were left out for what reason, and what keeps them; with the lengths seen
    where all prompts were too long. counts: of `prepare`, with those of `usable_pairs`."""
    long = renderer.too_long
    if long and len(long) == renderer.prompts:
        return UserError(
            f"all {len(long)} prompts of {where} are longer than --max-prompt-length {renderer.max_prompt_length}: they have "
            f"{min(long)} to {max(long)} tokens. Give it a larger number, and --max-length a still larger one"
        )
    left_out = [line.format(n=counts[name]) for name, line in _LEFT_OUT.items() if counts.get(name)]
    why = [f"Left out: {', '.join(left_out)}"] if left_out else []
    return UserError(". ".join([f"no pair of {where} is left", *why, *rendering_warnings(renderer, counts)]))


_DISK_SIGNS = ("No space left on device", "Disk quota exceeded", "File too large", "inline_container.cc", "disk is full")

"""Of the system's errors; the one before the last is torch's writer of files, which hides what the system said."""


def disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, says that nothing more can be written: of the system, torch, safetensors, tokenizers."""
    while error is not None:
        if any(sign in str(error) for sign in _DISK_SIGNS) and not isinstance(error, UserError):
            return True
        error = error.__cause__ or error.__context__
    return False


START_AGAIN = "then give another --out or --no-resume"
_CPU_SIGNS = ("can't allocate memory", "std::bad_alloc", "Cannot allocate memory", "out of memory")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device's or the machine's memory ran out; a CPU's is a plain RuntimeError."""
    import torch  # not above: commands that train nothing load this file

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _CPU_SIGNS)


def memory_advice(tokens_per_batch: int, *, checkpointing: bool, bf16: bool, lora: bool, started: bool = False) -> list[str]:
    """What to set where the memory runs out: only what is not set yet. started: whether there is a checkpoint, from which
    a run with another result can't go on.
    """
    anew = f"; {START_AGAIN}" if started else ""
    advice = [f"set tokens_per_batch lower (--tokens-per-batch, now {tokens_per_batch})"]
    advice += [] if checkpointing else ["recompute activations (--gradient-checkpointing)"]
    advice += [] if bf16 else [f"compute in bfloat16 (--bf16{anew})"]
    advice += [] if lora else [f"train an adapter only (--lora 16{anew})"]
    return [*advice, "split the model over several devices (FSDP, docs/training.md)"]


def memory_error(where: str, advice: Sequence[str]) -> UserError:
    """The message: what was being computed, and what to set.

    >>> print(memory_error("in step 3", ["set tokens_per_batch lower (it is 16384)", "switch on bf16"]))
    the memory ran out in step 3: set tokens_per_batch lower (it is 16384), or switch on bf16
    """
    return UserError(f"the memory ran out {where}: {', or '.join(advice)}")


def not_finite(what: str, step: int, culprits: Sequence[str], all_ids: Sequence[str], advice: str) -> UserError:
    """The message of a step whose loss or gradients are not finite.

    culprits: ids of prompts with pairs whose own values are not finite, if any; all_ids: those of the whole step.
    """
    said = f"prompts with pairs whose values are not finite: {some_ids(culprits)}; " if culprits else ""
    return UserError(f"{what} at step {step}; {said}all prompts of the step: {some_ids(all_ids)}. {advice}")


def some_ids(ids: Iterable[str], count: int = 8) -> str:
    """The first few of many ids, and how many more there are.

    >>> some_ids(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    known = list(dict.fromkeys(ids))
    return ", ".join(known[:count]) + (f" and {len(known) - count} more" if len(known) > count else "")
