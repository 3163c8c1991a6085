"""transformers' arguments of a run, from its options: how it is optimised, how often it logs, evaluates and saves, what tracks it."""

import math

import torch
from transformers import IntervalStrategy, TrainingArguments
from transformers.integrations import integration_utils as known

from mmpo.pipeline.errors import UserError, unknown_name
from mmpo.train.options import OPTIMIZERS, TrainOptions

MOST_LOGS, EVALUATIONS = 200, 5
"""Of a run, unless its options say how often."""


CHECKPOINTING = next(name for name in ("activation_checkpointing", "gradient_checkpointing") if hasattr(TrainingArguments, name))
"""What transformers calls it: older ones, gradient checkpointing."""


def training_arguments(options: TrainOptions) -> TrainingArguments:
    """The arguments of a run. Creating them joins the other processes of a distributed run."""
    same = ("weight_decay", "max_grad_norm", "seed", "bf16", "save_steps")
    return TrainingArguments(
        **{name: getattr(options, name) for name in same},
        output_dir=options.out,
        learning_rate=options.resolved_learning_rate,
        num_train_epochs=options.epochs,
        max_steps=options.max_steps or -1,
        lr_scheduler_type=options.schedule,
        warmup_steps=options.warmup_ratio,
        optim=OPTIMIZERS[options.optimizer],
        **{CHECKPOINTING: options.gradient_checkpointing},
        use_cpu=not torch.accelerator.is_available(),  # said explicitly, or bf16 is refused on a CPU
        logging_strategy="steps",
        save_strategy="steps",
        save_total_limit=2,
        report_to=trackers(options.report_to),
        disable_tqdm=True,
        remove_unused_columns=False,
    )


def set_intervals(args: TrainingArguments, options: TrainOptions, steps: int, measured: bool) -> None:
    """How often a run of so many steps logs (at most 200 times) and, where pairs are measured, evaluates (five times), unless the
    options say so.
    """
    args.logging_steps = options.logging_steps or max(1, steps // MOST_LOGS)
    if measured:
        args.eval_strategy = IntervalStrategy.STEPS
        args.eval_steps = options.eval_steps or max(1, math.ceil(steps / EVALUATIONS))
    if options.early_stopping:
        args.metric_for_best_model, args.greater_is_better = "loss", False
        args.load_best_model_at_end = True


def trackers(names: str | None) -> list[str]:
    """The trackers of transformers that are named, comma-separated; "none" and nothing are none.

    Raises UserError for a name that transformers doesn't know and for one that isn't installed, listing those that are.
    """
    wanted = [name.strip() for name in (names or "none").split(",") if name.strip() and name.strip() != "none"]
    installed = known.get_available_reporting_integrations() + (["flyte"] if known.is_flytekit_available() else [])
    for name in wanted:
        listed = f"; installed here: {', '.join(installed) or 'none'}"
        if name not in known.INTEGRATION_TO_CALLBACK:
            raise UserError(f"report_to: {unknown_name('tracker', name, known.INTEGRATION_TO_CALLBACK)}{listed}")
        registered_here = not known.INTEGRATION_TO_CALLBACK[name].__module__.startswith("transformers.")
        if name not in installed and not registered_here:
            raise UserError(f"report_to: the tracker {name} is not installed (pip install {name.replace('_', '-')}){listed}")
    return wanted
