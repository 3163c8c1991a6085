"""Every private method of transformers' Trainer that is overridden: what stops a step before it does harm, and good checkpoints.

Memory that runs out and values that are not finite end a run before the optimizer's step or before a checkpoint is written, so that
the last checkpoint stays. Several processes come to the same verdict, and raise the same error.

Every method of transformers' Trainer that is overridden although it is not part of its documented interface is here, with what each
is known to look like (`OVERRIDDEN`), because a release of transformers may change them without a word: the room's door holds the
range of releases that this file was tested with.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from mmpo.train.batches import MicroBatch
from mmpo.train.data import PromptPairs
from mmpo.train.distributed import LocalFailure, any_process, check_splittable, from_all, rank_and_world, set_up_fsdp, uses_fsdp
from mmpo.train.messages import START_AGAIN, memory_advice, memory_error, not_finite, out_of_memory, some_ids
from mmpo.train.model import plain_model, recomputes
from mmpo.train.training.learned import LearnedParameters
from mmpo.train.training.passes import StepPasses

Finite = Sequence[tuple[MicroBatch, Tensor]]
"""A step's micro-batches in this process, each with which of its pairs have finite values, (pairs,)."""

OVERRIDDEN = {
    "_get_grad_norm": ("model", "grad_norm"),
    "_get_num_items_in_batch": ("batch_samples", "device"),
    "_load_best_model": (),
    "_load_from_checkpoint": ("resume_from_checkpoint", "model"),
    "_save": ("output_dir", "state_dict"),
    "_save_checkpoint": ("model", "trial"),
    "_save_rng_state": ("output_dir",),
    "create_accelerator_and_postprocess": (),
    "set_initial_training_values": ("args", "dataloader"),
}
"""The methods and the names of their parameters in transformers."""


class GuardedTrainer(Trainer):
    """A Trainer that goes once through its loader of whole steps and saves good checkpoints only. It stops where the gradients'
    norm or the weights are not finite; `seen`: what the step in progress has computed.
    """

    prompts: Sequence[PromptPairs]
    learned: LearnedParameters | None = None
    seen: Finite = ()

    def create_accelerator_and_postprocess(self) -> None:
        """As the Trainer's, with FSDP as we need it where it is asked for."""
        super().create_accelerator_and_postprocess()
        if uses_fsdp():
            set_up_fsdp(self.accelerator)
            self.is_fsdp_enabled = getattr(self.accelerator.state, "fsdp_plugin", None) is not None
            check_splittable(plain_model(self.model))

    def set_initial_training_values(self, args: TrainingArguments, dataloader: DataLoader) -> Any:
        """One pass over the loader is the run."""
        steps = len(dataloader)
        return 1, steps, len(self.prompts), len(self.prompts), 1, steps, steps

    def floating_point_ops(self, inputs: Any) -> int:
        """6 operations a parameter and padded token (Kaplan et al. 2020)."""
        return 6 * sum(value.numel() for value in self.model.parameters()) * inputs.tokens

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> None:
        return None  # a step knows its own weight

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> float:  # type: ignore[override]
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        self.check_finite("the norm of the gradients", norm)
        return norm

    def check_finite(self, what: str, value: float) -> None:
        """Raises UserError, with the ids of the prompts that are to blame, where the loss or the gradient norm of the step in progress
        is not finite; every process calls this with the same value.
        """
        if isfinite(value):
            return
        bad = {row for batch, finite in self.seen for row in batch.pairs[~finite].tolist()}
        own = [prompt.prompt_id for prompt in self.prompts if not bad.isdisjoint(prompt.rows.tolist())] if bad else []
        found = from_all(lambda: (own, self._ids()))
        culprits, everyone = ([identity for part in found for identity in part[i]] for i in (0, 1))
        advice = (
            f"Nothing was changed by this step and the last checkpoint stays. Lower the learning rate (now {self.args.learning_rate:g}), "
            "check the margins with `mmpo validate`, or try without bf16; then give another --out, or --no-resume to start again"
        )
        raise not_finite(f"{what} is {value}", self.state.global_step + 1, culprits, everyone, advice)

    def _ids(self) -> list[str]:
        return [identity for batch, _ in self.seen for identity in batch.ids]

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As the Trainer's, of weights that are finite only, and every process waits until it is whole."""
        local = (getattr(value, "_local_tensor", value).detach() for value in self.model.parameters())
        if any_process(not all(bool(torch.isfinite(value).all()) for value in local), self.args.device):
            step = self.state.global_step
            advice = "They were not saved and the last checkpoint stays. Lower the learning rate, then give another --out, or --no-resume"
            raise not_finite(f"the weights are not finite after step {step}", step, [], self._ids(), advice)
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()

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
        if self.learned is not None and self.args.should_save:
            self.learned.save(output_dir)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.learned is not None:
            self.learned.load(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.learned is not None and self.state.best_model_checkpoint is not None:
            self.learned.load(self.state.best_model_checkpoint)


@contextmanager
def memory_guard(passes: StepPasses) -> Iterator[None]:
    """Within, out of memory becomes an error that says which prompts were computed and what to set."""
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        trainer = passes.trainer
        args, tokens_per_batch = trainer.args, trainer.tokens_per_batch
        where = f"in step {trainer.state.global_step + 1}"
        started = any(Path(args.output_dir or ".").glob("checkpoint-*"))
        lora = hasattr(trainer.model, "peft_config")
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
