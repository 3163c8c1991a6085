"""What is kept of a run in mmpo.json: curves, evaluations, the summary. All of it is read from the trainer's log, which
its checkpoints carry over a resumption.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mmpo.train.training.displacement import displacement_of

__all__ = ["history_of", "mean_loss", "summary_of"]

_EVAL = "eval_"
Log = Sequence[Mapping[str, Any]]
"""Entries of transformers' TrainerState.log_history."""


def history_of(log: Log) -> dict[str, Any]:
    """{"history": {"steps": [...], "loss": [...], ...}, "evaluations": [{"step": n, "accuracy": ..., ...}, ...]}."""
    losses = [entry for entry in log if "loss" in entry]
    names = sorted({key for entry in losses for key in entry} - {"step", "epoch", "grad_norm", "learning_rate"})
    curves = {name: [entry.get(name) for entry in losses] for name in names}
    measured = [entry for entry in log if any(key.startswith(_EVAL) for key in entry)]
    evaluations = [{k.removeprefix(_EVAL): v for k, v in entry.items() if k.startswith(_EVAL) or k == "step"} for entry in measured]
    return {"history": {"steps": [entry["step"] for entry in losses], **curves}, "evaluations": evaluations}


def mean_loss(log: Log, fallback: float) -> float:
    """Mean loss over the whole run; the Trainer's own figure covers only what followed the last resumption."""
    entries = [entry for entry in log if "loss" in entry]
    if not entries:
        return float(fallback)
    steps = [entry["step"] - before for entry, before in zip(entries, [0, *(e["step"] for e in entries)], strict=False)]
    return float(sum(entry["loss"] * n for entry, n in zip(entries, steps, strict=True)) / sum(steps))


def summary_of(
    log: Log, *, out: str, steps: int, train_loss: float, gamma: Any, beta: float | None, best: int | None
) -> dict[str, Any]:
    """What a run returns. gamma: as JSON has it. beta: a policy's; it has "displacement" (see `displacement_of`). best: the
    step whose model was kept, where that is not the last: "metrics" are its, and it is told as "best_step".
    """
    evaluations = history_of(log)["evaluations"]
    kept = [one for one in evaluations if best is None or one["step"] == best]
    summary = {
        "out": out,
        "steps": steps,
        "train_loss": mean_loss(log, train_loss),
        "gamma": gamma,
        "metrics": kept[-1] if kept else {},
    }
    if best is not None:
        summary["best_step"] = best
    if beta is not None:
        summary["displacement"] = displacement_of(log, beta)
    return summary
