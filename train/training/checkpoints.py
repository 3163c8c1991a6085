"""What watches over a training step: memory that runs out, values that are not finite, checkpoints that must be good.

All of it happens before the optimizer's step or before a checkpoint is written, so that the last checkpoint stays one to
go on from. Several processes come to the same verdict, and raise the same error.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from mmpo.train.batches import MicroBatch
from mmpo.train.data import PromptPairs
from mmpo.train.distributed import LocalFailure, any_of_all, from_all, rank_and_world
from mmpo.train.launch import check_splittable, set_up_fsdp, uses_fsdp
from mmpo.train.messages import START_AGAIN, memory_advice, memory_error, not_finite, out_of_memory, some_ids
from mmpo.train.model import plain_model, recomputes
from mmpo.train.training.passes import StepPasses
from mmpo.train.training.progress import Pace

__all__ = ["Guards"]

Finite = Sequence[tuple[MicroBatch, Tensor]]
"""Micro-batches, each with which of its pairs have finite values, (pairs,)."""


class Guards(Trainer):
    """The part of `MarginTrainer` that stops a run before it does harm."""

    prompts: list[PromptPairs]
    tokens_per_batch: int
    pace: Pace
    _seen: Finite = ()

    def create_accelerator_and_postprocess(self) -> None:
        """As the Trainer's, with FSDP as we need it where it is asked for."""
        super().create_accelerator_and_postprocess()
        if uses_fsdp():
            set_up_fsdp(self.accelerator)
            self.is_fsdp_enabled = getattr(self.accelerator.state, "fsdp_plugin", None) is not None
            check_splittable(plain_model(self.model))

    @contextmanager
    def guarded(self, passes: StepPasses) -> Iterator[StepPasses]:
        """Within, out of memory becomes an error that says which prompts were computed and what to set."""
        try:
            yield passes
        except Exception as error:
            if not out_of_memory(error):
                raise
            where = f"in step {self.state.global_step + 1}"
            advice = memory_advice(
                self.tokens_per_batch,
                checkpointing=recomputes(self.args),
                bf16=self.args.bf16,
                lora=hasattr(self.model, "peft_config"),
                started=(started := any(Path(self.args.output_dir or ".").glob("checkpoint-*"))),
            )
            if passes.at is not None:
                most = max(part.input_ids.numel() for part in passes.at.parts)
                where += f", in a pass of {most} tokens over the completions of {some_ids(passes.at.ids)}"
                if most > self.tokens_per_batch:  # one completion is never cut
                    advice[0] = f"set max_length lower (--max-length): one completion alone has {most} tokens"
                    advice[0] += f"; {START_AGAIN}" if started else ""
            raise _of_this_process(memory_error(where, advice)) from error

    def check_finite(self, what: str, value: float, seen: Finite | None = None) -> None:
        """Raises UserError, with the prompts' ids, where a step's loss or gradient norm is not finite; every process calls
        this with the same value.
        """
        self._seen = self._seen if seen is None else seen
        if isfinite(value):
            return
        bad = {row for batch, finite in self._seen for row in batch.pairs[~finite].tolist()}
        own = [prompt.prompt_id for prompt in self.prompts if not bad.isdisjoint(prompt.rows.tolist())]
        found = from_all(lambda: (own if bad else [], [identity for batch, _ in self._seen for identity in batch.ids]))
        culprits, everyone = ([identity for part in found for identity in part[i]] for i in (0, 1))
        advice = (
            f"Nothing was changed by this step and the last checkpoint stays. Lower the learning rate (now {self.args.learning_rate:g}), "
            "check the margins with `mmpo validate`, or try without bf16; then give another --out, or --no-resume to start again"
        )
        raise not_finite(f"{what} is {value}", self.state.global_step + 1, culprits, everyone, advice)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> float:  # type: ignore[override]
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if hasattr(norm, "full_tensor"):
            norm = norm.full_tensor()
        self.check_finite("the norm of the gradients", float(norm))
        return float(norm)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As the Trainer's, of weights that are finite only, and every process waits until it is whole."""
        local = (getattr(value, "_local_tensor", value).detach() for value in self.model.parameters())
        if any_of_all(not all(bool(torch.isfinite(value).all()) for value in local), self.args.device):
            message = f"the weights are not finite after step {self.state.global_step}"
            advice = "They were not saved and the last checkpoint stays. Lower the learning rate, then give another --out, or --no-resume"
            raise not_finite(message, self.state.global_step, [], [i for batch, _ in self._seen for i in batch.ids], advice)
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        self.pace.start()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """As the Trainer's. What FSDP gathers has tied weights twice, and files hold them once."""
        tied = getattr(plain_model(self.model), "all_tied_weights_keys", None) or {}
        for name, source in tied.items():
            if state_dict and name in state_dict and source in state_dict:
                state_dict[name] = state_dict[source]  # save_pretrained leaves out what shares its memory
        super()._save(output_dir, state_dict)

    def _save_rng_state(self, output_dir: str) -> None:
        """Everyone's state is there before the first process writes the last file, which says that all are."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def _init_training_state(self, max_steps: int, *others: Any, **named: Any) -> Any:
        """How often to log, measure and save is what this run says, not what the checkpoint's did."""
        found = super()._init_training_state(max_steps, *others, **named)
        self.state.compute_steps(self.args, max_steps)
        best = os.path.join(self.args.output_dir or "", f"checkpoint-{self.state.best_global_step}")
        if self.state.best_global_step and os.path.isdir(best):
            self.state.best_model_checkpoint = best  # the state names it as seen from another working directory
        self.pace.start()
        return found


def _of_this_process(error: Exception) -> Exception:
    """An error in the middle of a step, where the others can't be told."""
    rank, world = rank_and_world()
    return error if world == 1 else LocalFailure(f"process {rank} (of {world}, counted from 0): {error}")
