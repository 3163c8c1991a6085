"""Likelihood displacement: both completions of a pair become less likely, while their difference still grows.

The loss of a pair sees only the difference of two log-ratios. Both can fall: probability then goes to texts that nobody
compared. Chosen and rejected log-probabilities are logged side by side; here their trend is taken and said aloud.
"""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mmpo.train.messages import warn

__all__ = ["Displacement", "displacement_of", "fallen"]

_NATS, _SHARE = 1.0, 0.05
"""A clear margin: a completion's log-probability fell by more than a nat and more than 5% of what it was."""
_RECENT = 5
"""Log entries of a training run that are averaged, each over other prompts."""

Means = Mapping[str, float]


class Displacement(TrainerCallback):
    """Warns, once in a process, when the chosen and the rejected completions' log-probabilities have both fallen clearly
    below their reference's: a resumed run says it again where it still holds. beta: the policy's.
    """

    def __init__(self, beta: float) -> None:
        self.beta = beta
        self.warned = False

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Looks at the newest figures, of training or of held-out pairs."""
        if self.warned or not state.log_history:
            return
        held_out = "eval_logps/chosen" in state.log_history[-1]
        prefix, count = ("eval_", 1) if held_out else ("", _RECENT)
        entries = _series(state.log_history, prefix, newest=count)
        if len(entries) == count and fallen(means := _mean(entries), self.beta):
            self.warned = True
            warn([_said(means, self.beta, "held-out" if held_out else "training", state.global_step)])


def fallen(means: Means, beta: float) -> bool:
    """Whether both log-probabilities are below the reference's by a clear margin.

    means: of logps/chosen, logps/rejected (nats a completion, ≤ 0), rewards/chosen and rewards/rejected (β · log-ratio).

    >>> fallen({"logps/chosen": -120, "logps/rejected": -130, "rewards/chosen": -2, "rewards/rejected": -3}, beta=0.1)
    True
    """
    ratios = _ratios(means, beta)
    before = {side: means[f"logps/{side}"] - ratio for side, ratio in ratios.items()}
    return all(-ratio > max(_NATS, -_SHARE * before[side]) for side, ratio in ratios.items())


def displacement_of(log: Sequence[Mapping[str, Any]], beta: float) -> dict[str, Any]:
    """The trend over a run: for "training" and "held_out" pairs the mean log-probability of chosen and rejected ones and
    the mean log-ratio to their reference, in nats a completion, at the first and the last measurement; "fallen" says
    whether both ended clearly below the reference. A part that was never measured is left out.
    """
    found: dict[str, Any] = {}
    for part, prefix, count in (("training", "", _RECENT), ("held_out", "eval_", 1)):
        entries = _series(log, prefix)
        if entries:
            first, last = _mean(entries[:count]), _mean(entries[-count:])
            found[part] = {"fallen": fallen(last, beta)}
            for name, means in (("first", first), ("last", last)):
                ratios = {f"logratio_{side}": ratio for side, ratio in _ratios(means, beta).items()}
                found[part][name] = {f"logps_{side}": means[f"logps/{side}"] for side in _SIDES} | ratios
    return found


_SIDES = ("chosen", "rejected")
_NAMES = tuple(f"{kind}/{side}" for kind in ("logps", "rewards") for side in _SIDES)


def _series(log: Sequence[Mapping[str, Any]], prefix: str, newest: int | None = None) -> list[dict[str, float]]:
    """The entries, or so many of the newest, that have all figures of a part, without the prefix."""
    whole = (entry for entry in reversed(log) if all(prefix + name in entry for name in _NAMES))
    return [{name: entry[prefix + name] for name in _NAMES} for entry in islice(whole, newest)][::-1]


def _mean(entries: Sequence[Means]) -> dict[str, float]:
    return {name: sum(entry[name] for entry in entries) / len(entries) for name in _NAMES}


def _ratios(means: Means, beta: float) -> dict[str, float]:
    return {side: means[f"rewards/{side}"] / beta for side in _SIDES}


def _said(means: Means, beta: float, part: str, step: int) -> str:
    ratios = _ratios(means, beta)
    return (
        f"likelihood displacement at step {step}: on {part} pairs both log-probabilities fell below the reference's, the chosen one's by "
        f"{-ratios['chosen']:.1f} to {means['logps/chosen']:.1f} nats, the rejected one's by {-ratios['rejected']:.1f} to "
        f"{means['logps/rejected']:.1f}. The difference still grows, but the model makes even the better completions less likely. If that "
        "is not wanted: add --loss mmpo=1,sft=0.1, or lower --learning-rate"
    )
