"""What a trainer's model gives the pairs of prepared prompts, during training."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.metrics import measures_95
from mmpo.train.data import PromptPairs
from mmpo.train.distributed import from_all, rank_and_world
from mmpo.train.inference import token_runs
from mmpo.train.messages import some_ids

if TYPE_CHECKING:
    from mmpo.train.training.trainer import MarginTrainer


def predict_pairs(trainer: "MarginTrainer", prompts: Sequence[PromptPairs], batches_at_once: int = 8) -> dict[str, np.ndarray]:
    """Per-pair values in the order of `rows`: z, p, margin, weight, rows and the outputs of `MarginTrainer.loss_of`, each (pairs,),
    float64 (rows: int64).

    Every process calls this with the same prompts and gets all values. batches_at_once: how many micro-batches a process lays out at a
    time, as those of a large set would fill the memory. Raises UserError, with prompt ids, where a value is not finite, and for a policy's
    prompts without the reference's log-probabilities.
    """
    if trainer.kind == "policy" and any(prompt.reference is None for prompt in prompts):
        raise UserError(  # the reference's are those of the model as it was before training, and its weights are gone
            "these pairs have no reference log-probabilities, which are computed when the trainer is made: give them to it as "
            "eval_dataset, or save the model and measure it by mmpo.train.evaluate"
        )
    was_training = trainer.model.training
    trainer.model.eval()
    trainer.probe(prompts)
    try:
        own = list(_predicted(trainer, prompts, batches_at_once))
    finally:
        trainer.model.train(was_training)
    parts = [part for process in from_all(lambda: own) for part in process]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(joined["rows"], kind="stable")
    values = {name: value[order] for name, value in joined.items()}
    bad = set(values["rows"][~np.isfinite(values["z"])].tolist())
    if bad:
        ids = [prompt.prompt_id for prompt in prompts if not bad.isdisjoint(prompt.rows.tolist())]
        raise UserError(
            f"measuring at step {trainer.state.global_step}: {len(bad)} of {len(values['z'])} pairs have no finite value, of the prompts "
            f"{some_ids(ids)}. Lower the learning rate, or try without bf16; the last good checkpoint stays"
        )
    return values


def seen_by(trainer: "MarginTrainer", step: int) -> list[PromptPairs]:
    """The training prompts of the first so many steps, each once."""
    return [trainer.prompts[number] for number in np.unique(np.concatenate(trainer.plan()[:step]))] if step else []


def intervals(trainer: "MarginTrainer", step: int) -> dict[str, tuple[float, float] | None]:
    """The 95% intervals of the measures on held-out pairs, by name, of the model as it was at this step: the last one measured, or
    the trainer's own now. Every process calls this.
    """
    prompts = trainer.eval_prompts or []
    at, values = trainer.measured
    values = values if at == step else predict_pairs(trainer, prompts)
    rows = np.concatenate([prompt.rows for prompt in prompts])
    clusters = np.concatenate([np.full(len(prompt.rows), number) for number, prompt in enumerate(prompts)])
    found = measures_95(values, clusters[np.argsort(rows, kind="stable")])
    return {name.removesuffix("_95"): span for name, span in found.items() if name.endswith("_95")}


@torch.no_grad()
def _predicted(trainer: "MarginTrainer", prompts: Sequence[PromptPairs], batches_at_once: int) -> Iterator[dict[str, np.ndarray]]:
    """This process's share of the values, by micro-batch."""
    longest_first = sorted(prompts, key=lambda prompt: (-prompt.length, prompt.prompt_id))  # those of like length together
    tokens = batches_at_once * rank_and_world()[1] * trainer.tokens_per_batch
    for chunk in token_runs(longest_first, lambda prompt: prompt.tokens, tokens):
        step = trainer.make_step(chunk)
        for batch in step.batches:
            _, outputs = trainer.compute_loss(trainer.model_wrapped, batch, True)
            outputs |= {"p": batch.p, "margin": batch.margin, "weight": batch.weight}
            found = {name: value.cpu().numpy().astype(np.float64) for name, value in outputs.items()}
            yield {**found, "rows": batch.pairs.cpu().numpy()}
        for _ in range(step.idle_passes):
            trainer.values(trainer.model_wrapped, step.idle)
