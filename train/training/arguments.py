"""From our options to transformers' TrainingArguments, and the rhythm of a run: when it logs, measures and saves."""

import math
from typing import TYPE_CHECKING

import torch
from transformers import IntervalStrategy, TrainingArguments

from mmpo.train.launch import trackers
from mmpo.train.options import TrainOptions

if TYPE_CHECKING:
    from mmpo.train.training.trainer import MarginTrainer

__all__ = ["set_rhythm", "training_arguments"]


def training_arguments(options: TrainOptions) -> TrainingArguments:
    """The arguments of a run. Creating them joins the other processes of a distributed run."""
    return TrainingArguments(
        output_dir=options.out,
        learning_rate=options.resolved_learning_rate,
        num_train_epochs=options.epochs,
        max_steps=options.max_steps or -1,
        lr_scheduler_type=options.schedule,
        warmup_steps=options.warmup_ratio,
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        optim="adamw_torch",
        seed=options.seed,
        bf16=options.bf16,
        activation_checkpointing=options.gradient_checkpointing,
        use_cpu=not torch.accelerator.is_available(),  # said aloud, or bf16 is refused on a CPU
        logging_strategy="steps",
        save_strategy="steps",
        save_steps=options.save_steps,
        save_total_limit=2,
        report_to=trackers(options.report_to),
        disable_tqdm=True,
        remove_unused_columns=False,
    )


def set_rhythm(trainer: "MarginTrainer", options: TrainOptions) -> None:
    """How often to log (at most 200 times a run) and to measure (five times), unless told, now that the steps are known."""
    args, steps = trainer.args, len(trainer.plan())
    args.logging_steps = options.logging_steps or max(1, steps // 200)
    if trainer.eval_prompts:
        args.eval_strategy = IntervalStrategy.STEPS
        args.eval_steps = options.eval_steps or max(1, math.ceil(steps / 5))
    if options.early_stopping:
        args.metric_for_best_model, args.greater_is_better = "loss", False
        args.load_best_model_at_end = True
