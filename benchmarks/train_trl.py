"""The side of TRL in `train_speed.py`: DPOTrainer or RewardTrainer as shipped, in a process of its own.

    python benchmarks/train_trl.py SPEC.json

What is set against TRL's defaults: no gradient checkpointing; float32 on a CPU; reference log-probabilities computed before training.
"""

import json
import math
import time
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from datasets import Dataset, disable_progress_bars
from train_worker import Channel, Counts, Memory, Pace, Spec, counting, shared_arguments, synchronize, warm_up
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from mmpo.train.model import add_lora

__all__ = ["main"]

COLUMNS = ["prompt", "chosen", "rejected"]


class TimedDPOTrainer(DPOTrainer):
    """DPOTrainer that notes how long its pass for the reference took."""

    reference_seconds = 0.0

    def _precompute_ref_logps(self, *args: Any) -> Dataset:
        began = time.perf_counter()
        found = super()._precompute_ref_logps(*args)
        synchronize(self.accelerator.device.type)
        self.reference_seconds += time.perf_counter() - began
        return found


def size(inputs: dict[str, torch.Tensor]) -> tuple[int, int]:
    """Pairs and tokens, padding included, of a batch: chosen rows over rejected ones."""
    return len(inputs["input_ids"]) // 2, inputs["input_ids"].numel()


def main() -> None:
    """Load, wait; make the trainer, which computes the reference, wait; train."""
    spec, channel, counts = Spec.read(), Channel(), Counts()
    disable_progress_bars()
    model, tokenizer = load(spec)
    table = pq.read_table(spec.table, columns=COLUMNS)
    warm_up(model, spec.device)
    loaded = Memory(spec.device).now()
    channel.say(loaded=loaded)
    channel.wait()
    steps = json.loads(Path(spec.follow).read_text()) if spec.follow else []
    if spec.follow:
        table = table.take([row for step in steps for row in step])
    trainer = make(spec, counts, model, tokenizer, Dataset(table), len(steps[0]) if steps else 0)
    if len(trainer.train_dataset) != table.num_rows:
        raise RuntimeError(f"TRL left out {table.num_rows - len(trainer.train_dataset)} pairs")
    reference = getattr(trainer, "reference_seconds", 0.0)
    channel.say(reference=reference, loaded=loaded, way="padded")
    batches = math.ceil(table.num_rows / trainer.args.train_batch_size)
    an_epoch = math.ceil(batches / trainer.args.gradient_accumulation_steps)
    ends = [an_epoch * epoch for epoch in range(1, spec.epochs + 1)]
    trainer.add_callback(Pace(channel, counts, ends, spec))
    trainer.train()
    if spec.trace:
        channel.say(**trace(trainer, counts))


def load(spec: Spec) -> tuple[Any, Any]:
    """The same folder as the other side, in float32, and the same adapter."""
    architecture = AutoModelForCausalLM if spec.task == "policy" else AutoModelForSequenceClassification
    model = architecture.from_pretrained(spec.model, dtype=torch.float32)
    if spec.lora:
        torch.manual_seed(0)
        model = add_lora(model, spec.lora, spec.task)
    return model.to(spec.device), AutoTokenizer.from_pretrained(spec.model)


def make(spec: Spec, counts: Counts, model: Any, tokenizer: Any, data: Dataset, step: int) -> Any:
    """The trainer. step: pairs of each step that is to be followed, all in one batch; 0: none is."""
    batch = step or spec.batch
    arguments = {
        **shared_arguments(spec),
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": 1 if step else spec.pairs_per_step // batch,
        "train_sampling_strategy": spec.order,
        "max_length": 1024,
    }
    if spec.task == "policy":
        config: Any = DPOConfig(**arguments, beta=0.1, loss_type="sigmoid", precompute_ref_log_probs=True)
        base: Any = TimedDPOTrainer
    else:
        config, base = RewardConfig(**arguments), RewardTrainer
    counted = counting(base, counts, size, keep_losses=spec.trace)
    return counted(model=model, args=config, train_dataset=data, processing_class=tokenizer)


def trace(trainer: Any, counts: Counts) -> dict[str, Any]:
    """Losses and gradient norms of the steps, and a digest of the tokens."""
    digest = blake2b(digest_size=8)
    for row in trainer.train_dataset:
        start = row.get("prompt_ids", [])
        for name in ("chosen_ids", "rejected_ids"):
            digest.update(repr((len(start), [*start, *row[name]])).encode())
    return {
        "losses": [float(loss) for loss in counts.losses],
        "norms": [float(entry["grad_norm"]) for entry in trainer.state.log_history if "grad_norm" in entry],
        "digest": digest.hexdigest(),
    }


if __name__ == "__main__":
    main()
