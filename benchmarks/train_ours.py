"""The side of `mmpo` in `train_speed.py`: PolicyTrainer or RewardTrainer, in a process of its own.

python benchmarks/train_ours.py SPEC.json
"""

import time
from hashlib import blake2b
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from train_worker import Channel, Counts, Memory, Pace, Spec, counting, shared_arguments, synchronize, warm_up
from transformers import TrainingArguments

from mmpo.train.data import Renderer, prepare
from mmpo.train.model import add_lora, load_pretrained
from mmpo.train.training import PolicyTrainer, RewardTrainer

__all__ = ["main"]

BATCHES: dict[str, Any] = {"layout": "auto", "tokens_per_batch": None}
"""The trainer's own defaults, spelt out."""


def size(step: Any) -> tuple[int, int]:
    """Pairs of a step, and its tokens, padding included."""
    return step.pairs, step.tokens


def main() -> None:
    """Load, wait; make the trainer, which computes the reference, wait; train."""
    spec, channel, counts = Spec.read(), Channel(), Counts()
    model, tokenizer = load_pretrained(spec.task, spec.model)
    if spec.lora:
        torch.manual_seed(0)  # both sides begin with the same adapter
        model = add_lora(model, spec.lora, spec.task)
    model.to(spec.device)
    table = pq.read_table(spec.table)
    prompts = prepare(table, np.ones(table.num_rows), Renderer(tokenizer, 1024, spec.prompt_limit)).prompts
    warm_up(model, spec.device)
    loaded = Memory(spec.device).now()
    channel.say(loaded=loaded)
    channel.wait()
    base, own = (PolicyTrainer, {"beta": 0.1}) if spec.task == "policy" else (RewardTrainer, {})
    began = time.perf_counter()
    trainer = counting(base, counts, size, keep_losses=spec.trace)(
        model,
        TrainingArguments(**shared_arguments(spec), remove_unused_columns=False),
        prompts,
        processing_class=tokenizer,
        gamma=1.0,
        loss="dpo",
        pairs_per_step=spec.pairs_per_step,
        **own,
        **BATCHES,
    )
    synchronize(spec.device)
    reference = time.perf_counter() - began
    plan = trainer.plan()
    way = trainer.execution_plan
    channel.say(reference=reference, loaded=loaded, way=f"{way.layout}, {way.attention or 'plain'} attention, {way.head} head")
    trainer.add_callback(Pace(channel, counts, epoch_ends([len(p.rows) for p in trainer.prompts], plan), spec))
    trainer.train()
    if spec.trace:
        channel.say(**trace(trainer, plan, counts))


def epoch_ends(pairs: list[int], plan: list[np.ndarray]) -> list[int]:
    """The steps that end an epoch: where every prompt has been seen once more."""
    seen = list(accumulate(len(step) for step in plan))
    return [number + 1 for number, prompts in enumerate(seen) if prompts % len(pairs) == 0]


def trace(trainer: Any, plan: list[np.ndarray], counts: Counts) -> dict[str, Any]:
    """Losses and gradient norms of the steps, the table's rows that made them, and a digest of their tokens."""
    digest = blake2b(digest_size=8)
    for step in plan:
        for prompt in (trainer.prompts[i] for i in step):
            for sides in zip(prompt.chosen, prompt.rejected):
                for item in (prompt.completions[side] for side in sides):
                    start = item.start if isinstance(trainer, PolicyTrainer) else 0
                    digest.update(repr((start, [int(token) for token in item.ids])).encode())
    return {
        "losses": [float(loss) for loss in counts.losses],
        "norms": [float(entry["grad_norm"]) for entry in trainer.state.log_history if "grad_norm" in entry],
        "rows": [np.concatenate([trainer.prompts[i].rows for i in step]).tolist() for step in plan],
        "digest": digest.hexdigest(),
    }


if __name__ == "__main__":
    main()
