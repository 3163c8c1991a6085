"""What a training run shows and how it is stopped: progress on standard error, a checkpoint on Ctrl-C."""

import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

__all__ = ["Progress", "StopSafely"]

_SHOWN = ("loss", "rewards/accuracy", "eval_loss", "eval_accuracy")


class Progress(TrainerCallback):
    """A bar with rate and time left on a terminal, a plain line every few seconds elsewhere; never on standard
    output.
    """

    def __init__(self, title: str, seconds: float = 5.0) -> None:
        self.title, self.seconds = title, seconds
        self.bar: Any = None
        self.last = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Opens the bar."""
        if sys.stderr.isatty():
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.title, file=sys.stderr, unit="step")
        self.last = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Moves the bar."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any) -> None:
        """Shows the loss and the accuracy."""
        shown = {name: f"{logs[name]:.4f}" for name in _SHOWN if logs and name in logs}
        if self.bar is not None and shown:
            self.bar.set_postfix(shown)
        elif shown and time.monotonic() - self.last >= self.seconds:
            values = "  ".join(f"{name} {value}" for name, value in shown.items())
            print(f"{self.title}  step {state.global_step}/{state.max_steps}  {values}", file=sys.stderr, flush=True)
            self.last = time.monotonic()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Closes the bar."""
        if self.bar is not None:
            self.bar.close()


class StopSafely(TrainerCallback):
    """Within `with`, the first SIGINT or SIGTERM ends the run after the step in progress, with a checkpoint.

    A second one interrupts at once. `stopped` says whether that happened. Outside the main thread signals are left
    alone.
    """

    def __init__(self) -> None:
        self.stopped = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "StopSafely":
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.stopped:
            raise KeyboardInterrupt
        self.stopped = True
        print("stopping after this step; the same command goes on from there", file=sys.stderr, flush=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Asks the trainer to save and stop."""
        if self.stopped:
            control.should_save = True
            control.should_training_stop = True
