"""Per-pair values of many prompts under the model in training: shared among the processes, gathered pair by pair."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mmpo.pipeline.errors import UserError
from mmpo.train.batches import token_runs
from mmpo.train.data import PromptPairs
from mmpo.train.distributed import from_all, rank_and_world
from mmpo.train.messages import some_ids

if TYPE_CHECKING:
    from mmpo.train.training.trainer import MarginTrainer

__all__ = ["gather_pairs", "predict_pairs"]

_CHUNK = 8
"""Micro-batches' worth of tokens a process that are laid out at once: batches of a large set would fill the memory."""


@torch.no_grad()
def predict_pairs(trainer: "MarginTrainer", prompts: Sequence[PromptPairs]) -> dict[str, np.ndarray]:
    """Per-pair values in the order of `rows`: z, p, margin, weight, rows and `compute_loss`'s outputs, each (pairs,).

    Every process calls this with the same prompts and gets all values. Raises UserError, with prompt ids, where a value
    is not finite.
    """
    own: list[dict[str, Tensor]] = []
    longest_first = sorted(prompts, key=lambda prompt: (-prompt.length, prompt.prompt_id))  # those of like length together
    for chunk in token_runs(longest_first, lambda prompt: prompt.tokens, _CHUNK * rank_and_world()[1] * trainer.tokens_per_batch):
        step = trainer.make_step(chunk)
        for batch in step.batches:
            _, outputs = trainer.compute_loss(trainer.model_wrapped, batch, True)
            kept = {"p": batch.p, "margin": batch.margin, "weight": batch.weight, "rows": batch.pairs}
            own.append({name: value.cpu() for name, value in {**outputs, **kept}.items()})
        for _ in range(step.idle_passes):
            trainer.values(trainer.model_wrapped, step.idle)
    found = from_all(lambda: gather_pairs(own) if own else {})
    values = _in_order([part for part in found if part])
    bad = set(values["rows"][~np.isfinite(values["z"])].tolist())
    if bad:
        ids = [prompt.prompt_id for prompt in prompts if not bad.isdisjoint(prompt.rows.tolist())]
        raise UserError(
            f"measuring at step {trainer.state.global_step}: {len(bad)} of {len(values['z'])} pairs have no finite value, of the prompts "
            f"{some_ids(ids)}. Lower the learning rate, or try without bf16; the last good checkpoint stays"
        )
    return values


def gather_pairs(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, np.ndarray]:
    """Micro-batches' per-pair values joined and put in the order of the table's rows, float64 (rows: int64)."""
    joined = {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in parts[0]}
    return _in_order([{name: v if name == "rows" else v.astype(np.float64) for name, v in joined.items()}])


def _in_order(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(joined["rows"], kind="stable")
    return {name: values[order] for name, values in joined.items()}
