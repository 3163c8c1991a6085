"""What watches a training run: progress on standard error, its end before the last step, displaced likelihoods, resumption."""

import math
import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from types import FrameType
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mmpo.pipeline.metrics import SAME
from mmpo.pipeline.progress import LINE_EVERY_SECONDS, ProgressReporter, duration, per_second, say
from mmpo.train.batches import MicroBatch
from mmpo.train.distributed import any_process, from_all, rank_and_world
from mmpo.train.messages import warn
from mmpo.train.objective import Objective

Log = Sequence[Mapping[str, Any]]
"""Entries of transformers' TrainerState.log_history."""

_SIDES = ("chosen", "rejected")
_SHOWN = (
    "loss",
    "rewards/accuracy",
    "eval_loss",
    "eval_accuracy",
    *(f"{part}logps/{side}" for part in ("", "eval_") for side in _SIDES),
)
"""Figures of the progress."""
_SPEEDS = {"tokens_per_second": "tokens/s", "pairs_per_second": "pairs/s"}
_SAME_PRESS_SECONDS = 2.0
"""A terminal and a launcher both hand on the one Ctrl-C."""
_CLEAR_NATS, _CLEAR_SHARE = 1.0, 0.05
"""A clear margin: a completion's log-probability fell by more than a nat and more than 5% of what it was."""
_SIZE, _NEAR_ZERO, _EARLY_STEPS, _FEWEST_STEPS = "rewards/margins_abs", 0.01, 20, 5
"""The mean |z| of a log entry; what it still is where a model has learnt nothing; steps in which it may be so; those of a run that is too
short to say anything of."""
_RECENT_LOGS = 5
"""Log entries of a training run that are averaged, each over other prompts."""
_LIKELIHOODS = tuple(f"{kind}/{side}" for kind in ("logps", "rewards") for side in _SIDES)


class Resumption(TrainerCallback):
    """Lets a resumed run log, evaluate and save as often as it is asked to now, not as its checkpoint was, and find the best
    checkpoint although the state names it as seen from another working directory.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, lr_scheduler: Any = None, **_: Any
    ) -> None:
        """Corrects the state that was read from the checkpoint: where the run has more steps now, the next one's learning rate too."""
        state.compute_steps(args, state.max_steps)
        schedule = getattr(lr_scheduler, "scheduler", lr_scheduler)
        if state.global_step and isinstance(schedule, LambdaLR):
            bases = zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
            schedule._last_lr = [base * rate(schedule.last_epoch) for base, rate in bases]
            for group, lr in zip(schedule.optimizer.param_groups, schedule._last_lr, strict=True):
                group["lr"] = lr
        best = os.path.join(args.output_dir or "", f"checkpoint-{state.best_global_step}")
        if state.best_global_step and os.path.isdir(best):
            state.best_model_checkpoint = best


# --- progress -----------------------------------------------------------------------------------------------------------


class MetricAccumulator:
    """Weighted means over pairs, added up from micro-batch to micro-batch and process to process until they are logged: sums of
    value · weight and of weight by name. They stay on the device: reading each would hold it up.
    """

    def __init__(self) -> None:
        self._sums: dict[str, list[Tensor]] = {}

    def add(self, name: str, value: Tensor, weight: Tensor) -> None:
        """Takes values of pairs with their weights, each (pairs,)."""
        self._sums.setdefault(name, []).append(torch.stack([(value * weight).sum(), weight.sum()]))

    def note(self, batch: MicroBatch, outputs: Mapping[str, Tensor], objective: Objective) -> Tensor:
        """Takes what `MarginTrainer.loss_of` gives a micro-batch; which of its pairs have finite values, (pairs,)."""
        values = {name: value.detach() for name, value in outputs.items()}
        z = values.pop("z")
        finite = torch.isfinite(z)
        self.add("rewards/accuracy", (z > 0).float(), batch.weight * (batch.margin > 0))
        self.add("rewards/margins", z, batch.weight)
        self.add(_SIZE, z.abs(), batch.weight)
        for term in objective.terms:
            value = values.pop(f"loss/{term.name}")
            finite &= torch.isfinite(value)
            if len(objective.terms) > 1:
                self.add(f"loss/{term.name}", value, term.pair_weight(batch.weight, batch.margin))
        for name, value in values.items():
            self.add(name, value, batch.weight)
        return finite

    def pop(self) -> dict[str, float]:
        """The means of what all processes have added since the last time, in the order of the first process that has any; every
        process calls this.
        """
        own = {name: torch.stack(parts).cpu().double().sum(dim=0) for name, parts in self._sums.items()}
        self._sums = {}
        whole: dict[str, Tensor] = {}
        for sums in from_all(lambda: own):
            for name, value in sums.items():
                whole[name] = whole[name] + value if name in whole else value
        means = {name: total / weight for name, (total, weight) in ((n, v.tolist()) for n, v in whole.items()) if weight}
        if means.get(_SIZE, 1.0) <= SAME:
            means.pop("rewards/accuracy", None)  # the signs of rounding errors say nothing
        return means


@dataclass
class Throughput(TrainerCallback):
    """Steps, computed tokens (padding included) and pairs of all processes since the start of this session, and the
    seconds they took. Time spent on measuring and saving is not theirs.

    >>> print(Throughput(steps=120, tokens=1_500_000, pairs=7_800, seconds=100.0))
    trained 120 steps, 7,800 pairs, 1,500,000 tokens in 1 min 40 s (15,000 tokens/s, 78 pairs/s)
    """

    steps: int = 0
    tokens: int = 0
    pairs: int = 0
    seconds: float = 0.0
    _since: float = field(default_factory=time.monotonic)
    _logged: tuple[int, int, float] = (0, 0, 0.0)

    def _restart(self, *_: Any, **__: Any) -> None:
        self._since = time.monotonic()

    on_train_begin = on_evaluate = on_save = _restart

    def add(self, tokens: int, pairs: int) -> None:
        """A step has ended."""
        self.steps, self.tokens, self.pairs = self.steps + 1, self.tokens + tokens, self.pairs + pairs
        self.seconds += time.monotonic() - self._since
        self._restart()

    def rates(self) -> dict[str, float]:
        """Tokens and pairs per second since the last call; nothing before a step has ended."""
        tokens, pairs, seconds = self.tokens - self._logged[0], self.pairs - self._logged[1], self.seconds - self._logged[2]
        self._logged = (self.tokens, self.pairs, self.seconds)
        return {"tokens_per_second": tokens / seconds, "pairs_per_second": pairs / seconds} if seconds > 0 else {}

    def __str__(self) -> str:
        seconds = max(self.seconds, 1e-9)
        return (
            f"trained {self.steps:,} steps, {self.pairs:,} pairs, {self.tokens:,} tokens in {duration(self.seconds)} "
            f"({per_second(self.tokens / seconds)} tokens/s, {per_second(self.pairs / seconds)} pairs/s)"
        )


class TrainingProgress(TrainerCallback):
    """Shows steps, the newest figures, speed and the time left; of several processes the first one only."""

    def __init__(self, title: str, seconds: float = LINE_EVERY_SECONDS) -> None:
        self.reporter = ProgressReporter(title, "steps", seconds=seconds)
        self.shown: dict[str, str] = {}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Shows that a step is done, and at first where the run starts, or goes on."""
        self._show(state)

    on_train_begin = on_step_end

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any) -> None:
        """Shows the figures of a step or of an evaluation."""
        figures = {name: f"{logs[name]:.{1 if 'logps' in name else 4}f}" for name in _SHOWN if name in (logs or {})}
        if figures:
            if "loss" in figures:
                figures.setdefault("rewards/accuracy", "–")
            self.shown |= figures | {unit: per_second(logs[name]) for name, unit in _SPEEDS.items() if name in logs}
            self._show(state)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Takes the bar away."""
        self.reporter.close()

    def _show(self, state: TrainerState) -> None:
        if state.is_world_process_zero:
            detail = "  ".join(f"{name} {value}" for name, value in self.shown.items())
            self.reporter("", state.global_step, state.max_steps, detail)


# --- the end before the last step ----------------------------------------------------------------------------------------


class StopSafely(TrainerCallback):
    """Within `with`, the first SIGINT or SIGTERM ends the run after the step in progress, with a checkpoint.

    Of several processes any may get the signal; all stop behind the same step. A second one, some time later, interrupts
    at once. `stopped` says whether the run was ended. Outside the main thread signals are left alone, and so is one that is ignored.
    """

    def __init__(self) -> None:
        self.stopped = False
        self.asked_at: float | None = None
        self.asked_by: int | None = None
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "StopSafely":
        if threading.current_thread() is threading.main_thread():
            heard = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
            self.before = {number: signal.signal(number, self._stop) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def interrupt(self) -> NoReturn:
        """After `with`, when the run is saved: the end that the signal asked for. Whoever handles SIGTERM gets it now."""
        if self.asked_by == signal.SIGTERM and callable(self.before[signal.SIGTERM]):
            signal.raise_signal(signal.SIGTERM)
        raise KeyboardInterrupt

    def _stop(self, number: int, frame: FrameType | None) -> None:
        rank, world = rank_and_world()
        now = time.monotonic()
        if self.asked_at is None:
            self.asked_at, self.asked_by = now, number
            if rank == 0:
                say("stopping after this step; the same command goes on from there")
        elif world == 1 or now - self.asked_at > _SAME_PRESS_SECONDS:
            raise KeyboardInterrupt

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Asks the trainer to save and stop. Before a checkpoint the figures are logged, which else it would not hold."""
        self.stopped = self.stopped or any_process(self.asked_at is not None, args.device)
        control.should_training_stop |= self.stopped
        control.should_save |= self.stopped
        control.should_log |= control.should_save or control.should_evaluate  # a better model is saved too


class EarlyStop(TrainerCallback):
    """Ends the run after so many evaluations without a better eval loss, and has every better model saved.

    What it knows is the trainer's log, which checkpoints carry: a resumed run counts on.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Looks at the newest evaluation."""
        ended = ended_early(state.log_history, self.patience)
        control.should_training_stop |= ended
        control.should_save |= ended or _worse_since(state.log_history) == 0


def ended_early(log: Log, patience: int | None) -> bool:
    """Whether a run with this log (entries of a TrainerState) had ended early already."""
    worse = _worse_since(log)
    return patience is not None and worse is not None and worse >= patience


def _worse_since(log: Log) -> int | None:
    """How many evaluations came after the best one; None before the first."""
    losses = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    losses = [loss if math.isfinite(loss) else math.inf for loss in losses]
    return len(losses) - 1 - losses.index(min(losses)) if losses else None


class NearZero(TrainerCallback):
    """Warns, once, where z is still near 0 after 20 steps and a quarter of the run, or at the end of a shorter one: next to nothing was
    learnt. usual: the learning rate that a run of its kind has unless another is given.
    """

    def __init__(self, usual: float) -> None:
        self.usual, self.warned = usual, False

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Looks at the newest figures of training."""
        sizes = [entry[_SIZE] for entry in state.log_history[-_RECENT_LOGS:] if _SIZE in entry]
        looked_at = min(max(_EARLY_STEPS, state.max_steps / 4), max(_FEWEST_STEPS, state.max_steps))
        early = state.global_step < looked_at
        if self.warned or early or not sizes or _SIZE not in state.log_history[-1]:
            return
        size = sum(sizes) / len(sizes) if state.global_step >= _EARLY_STEPS else sizes[-1]
        if size > _NEAR_ZERO:
            return
        self.warned = True
        rate = f"the usual one is {self.usual:g}" if args.learning_rate < self.usual else f"{10 * args.learning_rate:g}, say"
        more = "more steps (--epochs, or --more-steps for a run that has ended), or fewer --pairs-per-step"
        warn(
            [
                f"after {state.global_step} of {state.max_steps} steps z is still near 0, as before training (mean |z| {size:.2g}): "
                f"next to nothing was learnt. Give a larger --learning-rate (now {args.learning_rate:g}; {rate}), {more}"
            ]
        )


# --- likelihood displacement --------------------------------------------------------------------------------------------
# Both completions of a pair become less likely while their difference still grows: the loss of a pair sees only the difference
# of two log-ratios. Both can fall, and probability then goes to texts that nobody compared. Chosen and rejected log-probabilities
# are logged side by side; here their trend is taken and reported.


class Displacement(TrainerCallback):
    """Warns, once in a process, when the chosen and the rejected completions' log-probabilities have both fallen clearly
    below their reference's: a resumed run reports it again where it still holds. beta: the policy's.
    """

    def __init__(self, beta: float) -> None:
        self.beta = beta
        self.warned = False

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Looks at the newest figures, of training or of held-out pairs."""
        if self.warned or not state.log_history:
            return
        held_out = "eval_logps/chosen" in state.log_history[-1]
        prefix, count = ("eval_", 1) if held_out else ("", _RECENT_LOGS)
        entries = _series(state.log_history, prefix, newest=count)
        if len(entries) == count and fallen(means := _mean(entries), self.beta):
            self.warned = True
            ratios, part = _ratios(means, self.beta), "held-out" if held_out else "training"
            warn(
                [
                    f"likelihood displacement at step {state.global_step}: on {part} pairs both log-probabilities fell below the "
                    f"reference's, the chosen one's by {-ratios['chosen']:.1f} to {means['logps/chosen']:.1f} nats, the rejected one's by "
                    f"{-ratios['rejected']:.1f} to {means['logps/rejected']:.1f}. The difference still grows, but the model makes even the "
                    "better completions less likely. If that is not wanted: add --loss mmpo=1,sft=0.1, or lower --learning-rate"
                ]
            )


def fallen(means: Mapping[str, float], beta: float) -> bool:
    """Whether both log-probabilities are below the reference's by a clear margin.

    means: of logps/chosen, logps/rejected (nats a completion, ≤ 0), rewards/chosen and rewards/rejected (β · log-ratio).

    >>> fallen({"logps/chosen": -120, "logps/rejected": -130, "rewards/chosen": -2, "rewards/rejected": -3}, beta=0.1)
    True
    """
    ratios = _ratios(means, beta)
    before = {side: means[f"logps/{side}"] - ratio for side, ratio in ratios.items()}
    return all(-ratio > max(_CLEAR_NATS, -_CLEAR_SHARE * before[side]) for side, ratio in ratios.items())


def displacement_of(log: Log, beta: float) -> dict[str, Any]:
    """The trend over a run: for "training" and "held_out" pairs the mean log-probability of chosen and rejected ones and
    the mean log-ratio to their reference, in nats a completion, at the first and the last measurement; "fallen" says
    whether both ended clearly below the reference. A part that was never measured is left out.
    """
    found: dict[str, Any] = {}
    for part, prefix, count in (("training", "", _RECENT_LOGS), ("held_out", "eval_", 1)):
        entries = _series(log, prefix)
        if entries:
            first, last = _mean(entries[:count]), _mean(entries[-count:])
            found[part] = {"fallen": fallen(last, beta)}
            for name, means in (("first", first), ("last", last)):
                ratios = {f"logratio_{side}": ratio for side, ratio in _ratios(means, beta).items()}
                found[part][name] = {f"logps_{side}": means[f"logps/{side}"] for side in _SIDES} | ratios
    return found


def _series(log: Log, prefix: str, newest: int | None = None) -> list[dict[str, float]]:
    """The entries, or so many of the newest, that have all figures of a part, without the prefix."""
    whole = (entry for entry in reversed(log) if all(prefix + name in entry for name in _LIKELIHOODS))
    return [{name: entry[prefix + name] for name in _LIKELIHOODS} for entry in islice(whole, newest)][::-1]


def _mean(entries: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(entry[name] for entry in entries) / len(entries) for name in _LIKELIHOODS}


def _ratios(means: Mapping[str, float], beta: float) -> dict[str, float]:
    return {side: means[f"rewards/{side}"] / beta for side in _SIDES}
