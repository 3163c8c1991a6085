"""Callbacks of one's own, from Python: what a run tells them, and what becomes of an exception in one."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mmpo.train.distributed import any_process, rank_and_world


class RunCallback:
    """Something to be told of a run's progress: `train_policy(options, callbacks=[...])`; any object with some of these methods will do.

    Of several processes the first one alone calls them. An exception in one ends the run behind the step in progress, with a checkpoint
    from which the same call goes on, and is raised then.

    >>> class Printing(RunCallback):
    ...     def on_evaluate(self, step, metrics):
    ...         print(step, metrics["accuracy"])
    >>> Printing().on_evaluate(10, {"accuracy": 0.75})
    10 0.75
    """

    def on_step(self, step: int, figures: Mapping[str, float]) -> None:
        """A step has ended, counted from 1. figures: loss, rewards/accuracy, ... (docs/training.md) where it is one that logs
        (`logging_steps`), else none.
        """

    def on_evaluate(self, step: int, metrics: Mapping[str, float]) -> None:
        """Held-out pairs have been measured behind a step. metrics: loss, accuracy, cross_entropy, ..."""

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """The run has ended and its model is written. summary: what the run returns."""


class OwnCallbacks(TrainerCallback):
    """Tells a run's progress to callbacks of the user's. `failed`: whether one of them has raised an exception, in any process, by which
    the run ends behind the step in progress with a checkpoint; `error`: that exception, in the process where it was raised.
    """

    def __init__(self, callbacks: Sequence[Any]) -> None:
        self.callbacks, self.failed = callbacks, False
        self.error: Exception | None = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A step without figures; with figures it is told when they are known."""
        if not control.should_log:
            self._tell("on_step", state.global_step, {})
            self._end(args, control)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any) -> None:
        """The figures of a step."""
        if "loss" in (logs or {}):
            self._tell("on_step", state.global_step, dict(logs))
            self._end(args, control)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **_: Any
    ) -> None:
        """Measures of held-out pairs."""
        self._tell("on_evaluate", state.global_step, {name.removeprefix("eval_"): value for name, value in (metrics or {}).items()})
        self._end(args, control)

    def ended(self, summary: Mapping[str, Any]) -> None:
        """The run has ended; an exception is raised at once, as nothing is left to be saved."""
        if rank_and_world()[0] == 0:
            for one in self.callbacks:
                getattr(one, "on_end", _nothing)(dict(summary))

    def _tell(self, what: str, step: int, figures: dict[str, Any]) -> None:
        if self.failed or rank_and_world()[0] != 0:
            return
        try:
            for one in self.callbacks:
                getattr(one, what, _nothing)(step, figures)
        except Exception as error:  # whatever it is, the run ends in order
            self.error = error

    def _end(self, args: TrainingArguments, control: TrainerControl) -> None:
        if not self.callbacks:
            return
        self.failed = self.failed or any_process(self.error is not None, args.device)
        control.should_training_stop |= self.failed
        control.should_save |= self.failed
        control.should_log |= self.failed  # a checkpoint holds the figures of its step


def _nothing(*_: Any) -> None:
    """In place of a method that a callback lacks."""
