"""How a run ends before its last step: on a signal, with a checkpoint, or because it no longer gets better."""

import math
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mmpo.train.distributed import any_of_all, rank_and_world

__all__ = ["EarlyStop", "StopSafely", "early_end"]

_SAME_PRESS_SECONDS = 2.0
"""A terminal and a launcher both hand on the one Ctrl-C."""


class StopSafely(TrainerCallback):
    """Within `with`, the first SIGINT or SIGTERM ends the run after the step in progress, with a checkpoint.

    Of several processes any may get the signal; all stop behind the same step. A second one, some time later, interrupts
    at once. `stopped` says whether the run was ended. Outside the main thread signals are left alone.
    """

    def __init__(self) -> None:
        self.stopped = False
        self.asked_at: float | None = None
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "StopSafely":
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        rank, world = rank_and_world()
        now = time.monotonic()
        if self.asked_at is None:
            self.asked_at = now
            if rank == 0:
                print("stopping after this step; the same command goes on from there", file=sys.stderr, flush=True)
        elif world == 1 or now - self.asked_at > _SAME_PRESS_SECONDS:
            raise KeyboardInterrupt

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Asks the trainer to save and stop. Before a checkpoint the figures are logged, which else it would not hold."""
        self.stopped = self.stopped or any_of_all(self.asked_at is not None, args.device)
        if self.stopped:
            control.should_save = True
            control.should_training_stop = True
        if control.should_save or control.should_evaluate:  # a better model is saved too
            control.should_log = True


class EarlyStop(TrainerCallback):
    """Ends the run after so many evaluations without a better eval loss, and has every better model saved.

    What it knows is the trainer's log, which checkpoints carry: a resumed run counts on.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Looks at the newest evaluation."""
        worse = _worse_since(state.log_history)
        if worse == 0:
            control.should_save = True
        if worse is not None and worse >= self.patience:
            control.should_training_stop = True
            control.should_save = True


def early_end(log: Sequence[Mapping[str, Any]], patience: int | None) -> bool:
    """Whether a run with this log (entries of a TrainerState) had ended early already."""
    worse = _worse_since(log)
    return patience is not None and worse is not None and worse >= patience


def _worse_since(log: Sequence[Mapping[str, Any]]) -> int | None:
    """How many evaluations came after the best one; None before the first."""
    losses = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    losses = [loss if math.isfinite(loss) else math.inf for loss in losses]
    return len(losses) - 1 - losses.index(min(losses)) if losses else None
