"""What stops a run in the middle, and what its message says: out of memory, and values that are not finite."""

from collections.abc import Iterable, Sequence

import torch

from mmpo.pipeline.errors import UserError

__all__ = ["memory_error", "not_finite", "out_of_memory", "some_ids"]

_CPU_SIGNS = ("can't allocate memory", "std::bad_alloc", "Cannot allocate memory", "out of memory")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device's or the machine's memory ran out; a CPU's is a plain RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _CPU_SIGNS)


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
