"""The forward and backward passes of one step.

A micro-batch of whole prompts is one pass. A prompt that is too large for one is looked at first, part by part without
gradients; the loss of all its pairs then says how much each completion's value matters, and each part is passed again
and pulled with just that. The gradient is the same as that of one large pass, at the price of a second forward pass.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmpo.train.batches import Batch, MicroBatch

if TYPE_CHECKING:
    from mmpo.train.steps import Step
    from mmpo.train.trainer import MarginTrainer

__all__ = ["StepPasses"]

Done = tuple[MicroBatch, Tensor, dict[str, Tensor]]
"""A micro-batch, its share of the step's loss, and its pairs' values."""


class StepPasses:
    """Runs a step for a trainer; iterate over it for what each micro-batch gave. `at`: the micro-batch in progress."""

    def __init__(self, trainer: "MarginTrainer", model: nn.Module, step: "Step") -> None:
        self.trainer, self.model, self.step = trainer, model, step
        self.left = sum(len(batch.parts) for batch in step.batches) + step.idle_passes
        self.at: MicroBatch | None = None

    def __iter__(self) -> Iterator[Done]:
        looked = self._looks()
        for batch, values in zip(self.step.batches, looked, strict=True):
            self.at = batch
            yield self._whole(batch) if values is None else self._in_parts(batch, values)
        self.at = None
        for _ in range(self.step.idle_passes):
            self._backward(0.0 * self._values(self.step.idle).sum())

    @torch.no_grad()
    def _looks(self) -> list[Tensor | None]:
        """The values of completions of micro-batches that have several parts, before any gradient is computed."""
        found: list[Tensor | None] = []
        for batch in self.step.batches:
            self.at = batch
            found.append(torch.cat([self._values(part) for part in batch.parts]) if len(batch.parts) > 1 else None)
        self.at = None
        for _ in range(self.step.idle_looks):
            self._values(self.step.idle)
        return found

    def _whole(self, batch: MicroBatch) -> Done:
        loss, outputs = self._loss(self._values(batch.parts[0]), batch)
        self._backward(loss)
        return batch, loss.detach(), outputs

    def _in_parts(self, batch: MicroBatch, values: Tensor) -> Done:
        values.requires_grad_()
        loss, outputs = self._loss(values, batch)
        (slopes,) = torch.autograd.grad(loss, values)
        for part, slope in zip(batch.parts, slopes.split([len(part.counts) for part in batch.parts]), strict=True):
            self._backward((self._values(part) * slope).sum())
        return batch, loss.detach(), outputs

    def _values(self, part: Batch | None) -> Tensor:
        assert part is not None
        return self.trainer.values(self.model, part)

    def _loss(self, values: Tensor, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.trainer.loss_of(values, batch, (self.step.total_weight, self.step.decided_weight))

    def _backward(self, loss: Tensor) -> None:
        """Adds to the gradients. Several processes take the mean of theirs, with DDP only in the last pass; FSDP does in every
        one, because to wait it would have to keep the whole model's gradients.
        """
        self.left -= 1
        with self._apart() if self.left else nullcontext():
            self.trainer.accelerator.backward(loss * self.trainer.args.world_size)

    def _apart(self) -> AbstractContextManager[Any]:
        return self.model.no_sync() if isinstance(self.model, DistributedDataParallel) else nullcontext()
