"""What a run's losses learn beside the model, ordinal's thresholds and davidson's ν: an optimizer of their own, and their checkpoints.

They are no weights of the model, so that what is saved stays a plain model, DDP and FSDP never see them, and weight decay and the
clipping of gradients leave them alone.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mmpo.train.distributed import summed
from mmpo.train.objective import Objective

_FILE = "objective.pt"


class LearnedParameters(TrainerCallback):
    """Adam's step for an objective's parameters, right before the model's. rate: their peak learning rate; it follows the model's
    schedule.
    """

    def __init__(self, objective: Objective, rate: float) -> None:
        self.parameters, self.rate = objective.parameters, rate
        self.optimizer = torch.optim.Adam(list(self.parameters.values()), lr=rate)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, optimizer: Any = None, **_: Any
    ) -> None:
        """Adds the gradients of all processes up, which each had multiplied by their number for the mean that the model's take."""
        for parameter in self.parameters.values():
            slope = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = summed(slope) / args.world_size
        self.optimizer.param_groups[0]["lr"] = self.rate * optimizer.param_groups[0]["lr"] / args.learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()

    def save(self, folder: str | Path) -> None:
        """Into a checkpoint; of several processes one calls this."""
        values = {name: value.detach().cpu() for name, value in self.parameters.items()}
        torch.save({"parameters": values, "optimizer": self.optimizer.state_dict()}, Path(folder) / _FILE)

    def load(self, folder: str | Path) -> None:
        """What `save` wrote; every process calls this."""
        saved = torch.load(Path(folder) / _FILE, map_location="cpu", weights_only=True)
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(saved["parameters"][name])
        self.optimizer.load_state_dict(saved["optimizer"])
