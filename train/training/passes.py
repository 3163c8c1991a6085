"""The forward and backward passes of one step.

A micro-batch of whole prompts is one pass. A prompt that is too large for one first has its values computed part by part
without gradients; the loss of all its pairs then says how much each completion's value matters, and each part is recomputed
with gradients and just that weight. The gradient is the same as that of one large pass, at the price of a second forward pass.
With dropout, a part's recomputation repeats the random numbers of its first forward pass: the loss is that of the very masks
that the gradients are taken through.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmpo.train.batches import Batch, MicroBatch, Step

if TYPE_CHECKING:
    from mmpo.train.training.trainer import MarginTrainer

Done = tuple[MicroBatch, Tensor, dict[str, Tensor]]
"""A micro-batch, its share of the step's loss, and its pairs' values."""
RandomState = tuple[Tensor, Tensor | None]
"""Of the CPU's random numbers, and of the device's, the current one of its kind."""


class StepPasses:
    """Runs a step of a trainer; iterate over it for what each micro-batch gave. `at`: the micro-batch in progress."""

    def __init__(self, trainer: "MarginTrainer", model: nn.Module, step: Step) -> None:
        self.trainer, self.model, self.step = trainer, model, step
        self.left = sum(len(batch.parts) for batch in step.batches) + step.idle_passes
        self.at: MicroBatch | None = None

    def __iter__(self) -> Iterator[Done]:
        known = self._without_gradients()
        for batch, parts in zip(self.step.batches, known, strict=True):
            self.at = batch
            yield self._whole(batch) if parts is None else self._in_parts(batch, *parts)
        self.at = None
        for _ in range(self.step.idle_passes):
            with self._pass():
                self.trainer.backward(0.0 * self._values(self.step.idle).sum())

    @torch.no_grad()
    def _without_gradients(self) -> list[tuple[Tensor, list[RandomState | None]] | None]:
        """Of micro-batches that have several parts: their values, and with dropout the random numbers' state before each part."""
        found: list[tuple[Tensor, list[RandomState | None]] | None] = []
        for batch in self.step.batches:
            self.at = batch
            if len(batch.parts) == 1:
                found.append(None)
                continue
            values, states = [], []
            for part in batch.parts:
                states.append(_random_state(self.trainer.args.device) if self.trainer.dropout else None)
                values.append(self._values(part))
            found.append((torch.cat(values), states))
        self.at = None
        for _ in range(self.step.idle_forwards):
            self._values(self.step.idle)
        return found

    def _whole(self, batch: MicroBatch) -> Done:
        with self._pass():
            loss, outputs = self._loss(self._values(batch.parts[0]), batch)
            self.trainer.backward(loss)
        return batch, loss.detach(), outputs

    def _in_parts(self, batch: MicroBatch, values: Tensor, states: list[RandomState | None]) -> Done:
        values.requires_grad_()
        loss, outputs = self._loss(values, batch)
        learned = list(self.trainer.objective.parameters.values())
        slopes, *own = torch.autograd.grad(loss, [values, *learned])
        for parameter, slope in zip(learned, own, strict=True):
            self.trainer.backward((parameter * slope).sum())
        counts = [len(part.counts) for part in batch.parts]
        for part, slope, state in zip(batch.parts, slopes.split(counts), states, strict=True):
            with _repeated(state, self.trainer.args.device) if state is not None else nullcontext(), self._pass():
                self.trainer.backward((self._values(part) * slope).sum())
        return batch, loss.detach(), outputs

    @contextmanager
    def _pass(self) -> Iterator[None]:
        """One forward and backward pass. Several processes take the mean of their gradients, with DDP only in the last pass (it
        decides in the forward pass whether the backward one waits); FSDP does in every one, because to wait it would have to keep
        the whole model's gradients.
        """
        self.left -= 1
        with self.model.no_sync() if self.left and isinstance(self.model, DistributedDataParallel) else nullcontext():
            yield

    def _values(self, part: Batch) -> Tensor:
        return self.trainer.values(self.model, part)

    def _loss(self, values: Tensor, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.trainer.loss_of(values, batch, (self.step.total_weight, self.step.decided_weight))


def _random_state(device: torch.device) -> RandomState:
    return torch.get_rng_state(), None if device.type == "cpu" else torch.get_device_module(device).get_rng_state()


@contextmanager
def _repeated(state: RandomState, device: torch.device) -> Iterator[None]:
    """Within, the same random numbers come once more; afterwards those that were next."""
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.get_device_module(device).set_rng_state(state[1])
        yield
