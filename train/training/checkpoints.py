"""Every method of transformers' Trainer that is overridden although it is not part of its documented interface.

They are all here, with what each is known to look like (`OVERRIDDEN`), because a release of transformers may change them
without a word: `mmpo.train.training.versions` holds the range of releases that this file was tested with.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from mmpo.train.data import PromptPairs
from mmpo.train.distributed import check_splittable, set_up_fsdp, uses_fsdp
from mmpo.train.model import plain_model
from mmpo.train.training.guards import Finite, check_finite, check_weights

OVERRIDDEN = {
    "_get_grad_norm": ("model", "grad_norm"),
    "_get_num_items_in_batch": ("batch_samples", "device"),
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

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> None:
        return None  # a step knows its own weight

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> float:  # type: ignore[override]
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        self.check_finite("the norm of the gradients", norm)
        return norm

    def check_finite(self, what: str, value: float) -> None:
        """As `mmpo.train.training.guards.check_finite`, for the step in progress."""
        check_finite(what, value, self.seen, self.prompts, self.state.global_step + 1, self.args.learning_rate)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As the Trainer's, of weights that are finite only, and every process waits until it is whole."""
        check_weights(self.model, self.seen, self.state.global_step, self.args.device)
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
        self.accelerator.wait_for_everyone()
