"""What stops a step before it does harm: memory that runs out, and values that are not finite.

All of it happens before the optimizer's step or before a checkpoint is written, so that the last checkpoint stays one to
go on from. Several processes come to the same verdict, and raise the same error.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from mmpo.train.batches import MicroBatch
from mmpo.train.data import PromptPairs
from mmpo.train.distributed import LocalFailure, any_process, from_all, rank_and_world
from mmpo.train.messages import START_AGAIN, memory_advice, memory_error, not_finite, out_of_memory, some_ids
from mmpo.train.model import recomputes
from mmpo.train.training.passes import StepPasses

Finite = Sequence[tuple[MicroBatch, Tensor]]
"""A step's micro-batches in this process, each with which of its pairs have finite values, (pairs,)."""


@contextmanager
def memory_guard(passes: StepPasses, step: int, tokens_per_batch: int, args: TrainingArguments, lora: bool) -> Iterator[None]:
    """Within, out of memory becomes an error that says which prompts were computed and what to set."""
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        where = f"in step {step}"
        started = any(Path(args.output_dir or ".").glob("checkpoint-*"))
        advice = memory_advice(tokens_per_batch, checkpointing=recomputes(args), bf16=args.bf16, lora=lora, started=started)
        if passes.at is not None:
            most = max(part.input_ids.numel() for part in passes.at.parts)
            where += f", in a pass of {most} tokens over the completions of {some_ids(passes.at.ids)}"
            if most > tokens_per_batch:  # one completion is never cut
                advice[0] = f"set max_length lower (--max-length): one completion alone has {most} tokens"
                advice[0] += f"; {START_AGAIN}" if started else ""
        found, (rank, world) = memory_error(where, advice), rank_and_world()
        # in the middle of a step the other processes can't be told
        raise found if world == 1 else LocalFailure(f"process {rank} (of {world}, counted from 0): {found}") from error


def check_finite(what: str, value: float, seen: Finite, prompts: Sequence[PromptPairs], step: int, learning_rate: float) -> None:
    """Raises UserError, with the ids of those of `prompts` that are to blame, where a step's loss or gradient norm is not finite;
    every process calls this with the same value.
    """
    if isfinite(value):
        return
    bad = {row for batch, finite in seen for row in batch.pairs[~finite].tolist()}
    own = [prompt.prompt_id for prompt in prompts if not bad.isdisjoint(prompt.rows.tolist())] if bad else []
    found = from_all(lambda: (own, _ids(seen)))
    culprits, everyone = ([identity for part in found for identity in part[i]] for i in (0, 1))
    advice = (
        f"Nothing was changed by this step and the last checkpoint stays. Lower the learning rate (now {learning_rate:g}), "
        "check the margins with `mmpo validate`, or try without bf16; then give another --out, or --no-resume to start again"
    )
    raise not_finite(f"{what} is {value}", step, culprits, everyone, advice)


def check_weights(model: nn.Module, seen: Finite, step: int, device: torch.device) -> None:
    """Raises UserError in every process where a weight of any, or of its part of the model, is not finite."""
    local = (getattr(value, "_local_tensor", value).detach() for value in model.parameters())
    if any_process(not all(bool(torch.isfinite(value).all()) for value in local), device):
        message = f"the weights are not finite after step {step}"
        advice = (
            "They were not saved and the last checkpoint stays. Lower the learning rate, then give another --out, or --no-resume"
        )
        raise not_finite(message, step, [], _ids(seen), advice)


def _ids(seen: Finite) -> list[str]:
    return [identity for batch, _ in seen for identity in batch.ids]
