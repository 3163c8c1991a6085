"""What a training run shows on standard error: loss, accuracy, speed and the time left, and at the end its totals."""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

__all__ = ["Pace", "Progress", "final_line"]

_SHOWN = (
    "loss",
    "rewards/accuracy",
    "logps/chosen",
    "logps/rejected",
    "eval_loss",
    "eval_accuracy",
    "eval_logps/chosen",
    "eval_logps/rejected",
)
_SPEEDS = {"tokens_per_second": "tokens/s", "pairs_per_second": "pairs/s"}


@dataclass
class Pace:
    """Steps, computed tokens (padding included) and pairs of all processes since the start of this session, and the
    seconds they took. Time spent on measuring and saving is not theirs.
    """

    steps: int = 0
    tokens: int = 0
    pairs: int = 0
    seconds: float = 0.0
    _since: float = field(default_factory=time.monotonic)
    _logged: tuple[int, int, float] = (0, 0, 0.0)

    def start(self) -> None:
        """Time counts from now on."""
        self._since = time.monotonic()

    def add(self, tokens: int, pairs: int) -> None:
        """A step has ended."""
        now = time.monotonic()
        self.steps, self.tokens, self.pairs = self.steps + 1, self.tokens + tokens, self.pairs + pairs
        self.seconds += now - self._since
        self._since = now

    def rates(self) -> dict[str, float]:
        """Tokens and pairs a second since the last call; nothing before a step has ended."""
        tokens, pairs, seconds = self.tokens - self._logged[0], self.pairs - self._logged[1], self.seconds - self._logged[2]
        self._logged = (self.tokens, self.pairs, self.seconds)
        return {"tokens_per_second": tokens / seconds, "pairs_per_second": pairs / seconds} if seconds > 0 else {}


class Progress(TrainerCallback):
    """A bar with rate and time left on a terminal, a plain line every few seconds elsewhere; never on standard output,
    and of several processes the first one only.
    """

    def __init__(self, title: str, seconds: float = 5.0) -> None:
        self.title, self.seconds = title, seconds
        self.bar: Any = None
        self.shown: dict[str, str] = {}
        self.last = self.began = 0.0
        self.first_step = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Opens the bar."""
        if sys.stderr.isatty() and state.is_world_process_zero:
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.title, file=sys.stderr, unit="step")
        self.last = self.began = time.monotonic()
        self.first_step = state.global_step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Moves the bar."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any) -> None:
        """Shows the figures of a step or of an evaluation."""
        figures = _figures(logs or {})
        if not figures or not state.is_world_process_zero:
            return
        if self.bar is not None:
            self.shown |= figures
            self.bar.set_postfix(self.shown)
        elif time.monotonic() - self.last >= self.seconds:
            values = "  ".join(f"{name} {value}" for name, value in figures.items())
            left = self._left(state)
            print(f"{self.title}  step {state.global_step}/{state.max_steps}  {values}{left}", file=sys.stderr, flush=True)
            self.last = time.monotonic()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Closes the bar."""
        if self.bar is not None:
            self.bar.close()

    def _left(self, state: TrainerState) -> str:
        done = state.global_step - self.first_step
        if not done:
            return ""
        seconds = (time.monotonic() - self.began) / done * (state.max_steps - state.global_step)
        return f"  {tqdm.format_interval(seconds)} left"


def final_line(pace: Pace) -> str:
    """What was done in this session.

    >>> final_line(Pace(steps=120, tokens=1_500_000, pairs=7_800, seconds=100.0))
    'trained 120 steps, 7,800 pairs, 1,500,000 tokens in 01:40 (15,000 tokens/s, 78.0 pairs/s)'
    """
    seconds = max(pace.seconds, 1e-9)
    return (
        f"trained {pace.steps:,} steps, {pace.pairs:,} pairs, {pace.tokens:,} tokens in {tqdm.format_interval(pace.seconds)} "
        f"({pace.tokens / seconds:,.0f} tokens/s, {pace.pairs / seconds:,.1f} pairs/s)"
    )


def _figures(logs: Mapping[str, Any]) -> dict[str, str]:
    found = {name: f"{logs[name]:.4f}" if "logps" not in name else f"{logs[name]:.1f}" for name in _SHOWN if name in logs}
    return found | {unit: f"{logs[name]:,.0f}" for name, unit in _SPEEDS.items() if name in logs} if found else {}
