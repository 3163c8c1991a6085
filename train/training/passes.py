"""The forward and backward passes of one step.

A micro-batch of whole prompts is one pass. A prompt that is too large for one is looked at first, part by part without
gradients; the loss of all its pairs then says how much each completion's value matters, and each part is passed again
and pulled with just that. The gradient is the same as that of one large pass, at the price of a second forward pass.
With dropout, a part's second pass repeats the random numbers of its look: the loss is that of the very masks pulled on.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmpo.train.batches import Batch, MicroBatch

if TYPE_CHECKING:
    from mmpo.train.batches import Step
    from mmpo.train.training.trainer import MarginTrainer

__all__ = ["StepPasses"]

Done = tuple[MicroBatch, Tensor, dict[str, Tensor]]
"""A micro-batch, its share of the step's loss, and its pairs' values."""
Look = tuple[Tensor, list["_Random | None"]]
"""The values of a micro-batch's completions, and the random numbers' state before each part with dropout."""


class StepPasses:
    """Runs a step for a trainer; iterate over it for what each micro-batch gave. `at`: the micro-batch in progress."""

    def __init__(self, trainer: "MarginTrainer", model: nn.Module, step: "Step") -> None:
        self.trainer, self.model, self.step = trainer, model, step
        self.left = sum(len(batch.parts) for batch in step.batches) + step.idle_passes
        self.at: MicroBatch | None = None

    def __iter__(self) -> Iterator[Done]:
        looked = self._looks()
        for batch, look in zip(self.step.batches, looked, strict=True):
            self.at = batch
            yield self._whole(batch) if look is None else self._in_parts(batch, *look)
        self.at = None
        for _ in range(self.step.idle_passes):
            self._backward(lambda: 0.0 * self._values(self.step.idle).sum())

    @torch.no_grad()
    def _looks(self) -> list[Look | None]:
        """What micro-batches that have several parts give, before any gradient is computed."""
        found: list[Look | None] = []
        for batch in self.step.batches:
            self.at = batch
            found.append(self._look(batch) if len(batch.parts) > 1 else None)
        self.at = None
        for _ in range(self.step.idle_forwards):
            self._values(self.step.idle)
        return found

    def _look(self, batch: MicroBatch) -> Look:
        values, states = [], []
        for part in batch.parts:
            states.append(_Random(self.trainer.args.device) if self.trainer.dropout else None)
            values.append(self._values(part))
        return torch.cat(values), states

    def _whole(self, batch: MicroBatch) -> Done:
        done: list[Done] = []

        def loss_of() -> Tensor:
            loss, outputs = self._loss(self._values(batch.parts[0]), batch)
            done.append((batch, loss.detach(), outputs))
            return loss

        self._backward(loss_of)
        return done[0]

    def _in_parts(self, batch: MicroBatch, values: Tensor, states: Sequence["_Random | None"]) -> Done:
        values.requires_grad_()
        loss, outputs = self._loss(values, batch)
        (slopes,) = torch.autograd.grad(loss, values)
        counts = [len(part.counts) for part in batch.parts]
        for part, slope, state in zip(batch.parts, slopes.split(counts), states, strict=True):
            with state.again() if state is not None else nullcontext():
                self._backward(partial(self._pull, part, slope))
        return batch, loss.detach(), outputs

    def _pull(self, part: Batch, slope: Tensor) -> Tensor:
        return (self._values(part) * slope).sum()

    def _values(self, part: Batch | None) -> Tensor:
        assert part is not None
        return self.trainer.values(self.model, part)

    def _loss(self, values: Tensor, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.trainer.loss_of(values, batch, (self.step.total_weight, self.step.decided_weight))

    def _backward(self, loss_of: Callable[[], Tensor]) -> None:
        """One pass: the loss, and what it adds to the gradients. Several processes take the mean of theirs, with DDP only in the
        last pass; FSDP does in every one, because to wait it would have to keep the whole model's gradients.
        """
        self.left -= 1
        with self._apart() if self.left else nullcontext():  # DDP decides in the forward pass whether the backward one waits
            self.trainer.accelerator.backward(loss_of() * self.trainer.args.world_size)

    def _apart(self) -> AbstractContextManager[Any]:
        return self.model.no_sync() if isinstance(self.model, DistributedDataParallel) else nullcontext()


class _Random:
    """The random numbers' state of the CPU and of a device, the current one of its kind, as it is now."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cpu = torch.random.get_rng_state()
        self.own = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state()

    @contextmanager
    def again(self) -> Iterator[None]:
        """Within, the same numbers come once more; afterwards those that were next."""
        after = _Random(self.device)
        self._set()
        try:
            yield
        finally:
            after._set()

    def _set(self) -> None:
        torch.random.set_rng_state(self.cpu)
        if self.own is not None:
            torch.get_device_module(self.device).set_rng_state(self.own)
