"""Training runs from a dataset folder to a model folder: `mmpo train policy|reward`, and the same from Python."""

import math
import sys
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import transformers
from transformers import PrinterCallback, TrainingArguments

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.margins import gamma_for_mean_target
from mmpo.train.data import Prepared, drop_ties, prepare, read_pairs
from mmpo.train.folder import RunFolder
from mmpo.train.losses import LOSSES
from mmpo.train.models import add_lora, load_model, load_pretrained
from mmpo.train.options import TrainOptions
from mmpo.train.policy import PolicyTrainer
from mmpo.train.progress import Progress, StopSafely
from mmpo.train.reference import cached_logprobs
from mmpo.train.render import Renderer
from mmpo.train.reward import RewardTrainer, own_pad_token
from mmpo.train.targets import targets
from mmpo.train.trainer import MarginTrainer, checked_loss, pad_token

__all__ = ["resolve_gamma", "train_policy", "train_reward"]


def train_policy(options: TrainOptions) -> dict[str, Any]:
    """Trains a policy; returns {"out", "steps", "train_loss", "gamma", "metrics"}. Raises UserError,
    KeyboardInterrupt.
    """
    if options.kind != "policy":
        raise UserError(f"train_policy was given options of kind {options.kind!r}")
    return _train(options)


def train_reward(options: TrainOptions) -> dict[str, Any]:
    """Trains a reward model; returns {"out", "steps", "train_loss", "gamma", "metrics"}."""
    if options.kind != "reward":
        raise UserError(f"train_reward was given options of kind {options.kind!r}")
    return _train(options)


def resolve_gamma(gamma: float | str, margins: Any) -> float:
    """The number itself, or for "auto" the γ at which the mean target of the non-tied margins is .75."""
    if gamma != "auto":
        return float(gamma)
    decided = margins[margins > 0]
    if not len(decided):
        raise UserError("gamma auto needs pairs with a positive margin and there is none: give --gamma a number")
    return float(gamma_for_mean_target(decided))


def _train(options: TrainOptions) -> dict[str, Any]:
    pairs = read_pairs(options.data, "train")
    folder = RunFolder(options, _digest(pairs))
    if folder.finished and folder.record is not None:
        print(f"{folder.path} already holds this run, finished; nothing to do", file=sys.stderr)
        return {**folder.record["summary"], "out": options.out}
    gamma = resolve_gamma(options.gamma, pairs["quality_margin"].to_numpy())
    checked_loss(options.loss, gamma, options.loss_options)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model, tokenizer = load_model(options, pairs)
    renderer = Renderer(tokenizer, options.max_length, options.max_prompt_length)
    train, counts = _prompts(pairs, options, gamma, renderer)
    if not train.prompts:
        raise UserError(f"no pair of {options.data} is left to train on; dropped: {counts}")
    if "template_refused" in counts:
        print(f"warning: {renderer.first_refusal}", file=sys.stderr)
    held_out = _held_out(options, gamma, tokenizer)
    folder.start()
    trainer = _trainer(options, folder, model, tokenizer, gamma, train, held_out)
    record = {"gamma": gamma if math.isfinite(gamma) else "inf", "counts": counts}  # JSON has no infinity
    record["model_parameters"] = sum(value.numel() for value in model.parameters())
    with StopSafely() as stop:
        trainer.add_callback(stop)
        result = trainer.train(resume_from_checkpoint=folder.last_checkpoint())
    if stop.stopped and trainer.state.global_step < trainer.state.max_steps:
        folder.write({"finished": False, **record, **_history(trainer)})
        raise KeyboardInterrupt
    history = _history(trainer)
    if trainer.eval_prompts and (not history["evaluations"] or history["evaluations"][-1]["step"] < result.global_step):
        trainer.evaluate()
        history = _history(trainer)
    _save(trainer, options)
    summary = {
        "out": options.out,
        "steps": trainer.state.global_step,
        "train_loss": _mean_loss(trainer, result.training_loss),
        "gamma": record["gamma"],
        "metrics": history["evaluations"][-1] if history["evaluations"] else {},
    }
    folder.write({"finished": True, **record, **history, "summary": summary})
    return summary


def _prompts(pairs: pa.Table, options: TrainOptions, gamma: float, renderer: Renderer) -> tuple[Prepared, dict[str, int]]:
    """Targets and rendering of one split; the counts say what became of every pair."""
    counts = {"pairs_in": pairs.num_rows}
    if options.ties == "drop" or LOSSES[options.loss].needs_winner:
        pairs, counts["dropped_ties"] = drop_ties(pairs)
    p, about_targets = targets(options.target, pairs, gamma)
    prepared = prepare(pairs, p, renderer, options.weight)
    return prepared, {**counts, **about_targets, **prepared.counts}


def _held_out(options: TrainOptions, gamma: float, tokenizer: Any) -> Prepared | None:
    """The pairs measured during training; None where the dataset has no such split or nothing of it is left."""
    if options.eval_split is None or not any((Path(options.data) / options.eval_split).glob("*.parquet")):
        return None
    renderer = Renderer(tokenizer, options.max_length, options.max_prompt_length)
    prepared, _ = _prompts(read_pairs(options.data, options.eval_split), options, gamma, renderer)
    return prepared if prepared.prompts else None


def _trainer(
    options: TrainOptions,
    folder: RunFolder,
    model: Any,
    tokenizer: Any,
    gamma: float,
    train: Prepared,
    held: Prepared | None,
) -> MarginTrainer:
    shared: dict[str, Any] = {
        "processing_class": tokenizer,
        "gamma": gamma,
        "loss": options.loss,
        "loss_options": options.loss_options,
        "pairs_per_step": options.pairs_per_step,
        "micro_batch_tokens": options.micro_batch_tokens,
        "dropout": options.dropout,
        "callbacks": [Progress(f"{options.kind} {options.loss}")],
    }
    parts = [train.prompts, held.prompts if held else None]
    args = _arguments(options)
    if options.kind == "policy":
        parts = _with_reference(options, folder, model, tokenizer, parts, args)
        shared |= {"beta": options.beta, "sft": options.sft, "own_reference": options.reference is None}
    else:
        own_pad_token(model, tokenizer)
    if options.lora:
        torch.manual_seed(options.seed)
        model = add_lora(model, options.lora, options.kind)
    kind = PolicyTrainer if options.kind == "policy" else RewardTrainer
    trainer = kind(model, args, parts[0], parts[1], **shared)
    trainer.remove_callback(PrinterCallback)  # it prints to standard output, which belongs to --json
    _set_rhythm(trainer, options)
    return trainer


def _with_reference(
    options: TrainOptions, folder: RunFolder, model: Any, tokenizer: Any, parts: list[Any], args: TrainingArguments
) -> list[Any]:
    """Prompts with the reference's log-probabilities, from reference.parquet in the output folder where it has them."""
    reference = model
    if options.reference is not None:
        reference, _ = load_pretrained("policy", options.reference, trust_remote_code=options.trust_remote_code)
    elif options.model == "tiny" and not (folder.path / "reference" / "config.json").exists():
        model.save_pretrained(folder.path / "reference")  # evaluation needs it, and no other place has it
        tokenizer.save_pretrained(folder.path / "reference")
    found = cached_logprobs(
        reference,
        [*parts[0], *(parts[1] or [])],
        folder.path / "reference.parquet",
        tokens=options.micro_batch_tokens,
        pad_token=pad_token(tokenizer),
        device=args.device,
        bf16=options.bf16,
    )
    return [found[: len(parts[0])], found[len(parts[0]) :] if parts[1] is not None else None]


def _arguments(options: TrainOptions) -> TrainingArguments:
    # transformers 5.23 renames the argument and warns of the old one, even where it is False
    name = "activation_checkpointing" if hasattr(TrainingArguments, "activation_checkpointing") else "gradient_checkpointing"
    checkpointing: dict[str, Any] = {name: True} if options.gradient_checkpointing else {}
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
        use_cpu=not torch.accelerator.is_available(),  # said aloud, or bf16 is refused on a CPU
        logging_strategy="steps",
        save_strategy="steps",
        save_steps=options.save_steps,
        save_total_limit=2,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        **checkpointing,
    )


def _set_rhythm(trainer: MarginTrainer, options: TrainOptions) -> None:
    """How often to log (at most 200 times a run) and to measure (five times, unless told), now that the steps are
    known.
    """
    args, steps = trainer.args, len(trainer.plan())
    args.logging_steps = max(1, steps // 200)
    if trainer.eval_prompts:
        args.eval_strategy = transformers.IntervalStrategy.STEPS
        args.eval_steps = options.eval_steps or max(1, math.ceil(steps / 5))


def _save(trainer: MarginTrainer, options: TrainOptions) -> None:
    """The model and its tokenizer into the output folder.

    A policy's LoRA adapter is kept apart: the base with the adapter off is its reference. A reward model's is merged,
    because an adapter's folder does not hold the configuration with the pad token that others need to read its
    scores.
    """
    if options.lora and options.kind == "reward":
        trainer.model.merge_and_unload().save_pretrained(options.out)  # type: ignore[operator]
        trainer.processing_class.save_pretrained(options.out)  # type: ignore[union-attr]
    else:
        trainer.save_model(options.out)


def _history(trainer: MarginTrainer) -> dict[str, Any]:
    """Loss curve and measurements from the trainer's log, which its checkpoints carry over a resumption."""
    log = trainer.state.log_history
    losses = [entry for entry in log if "loss" in entry]
    measured = [
        {key.removeprefix("eval_"): value for key, value in entry.items() if key.startswith("eval_") or key == "step"}
        for entry in log
        if any(key.startswith("eval_") for key in entry)
    ]
    names = sorted({key for entry in losses for key in entry} - {"step", "epoch", "grad_norm", "learning_rate"})
    curves = {name: [entry.get(name) for entry in losses] for name in names}
    return {"history": {"steps": [entry["step"] for entry in losses], **curves}, "evaluations": measured}


def _mean_loss(trainer: MarginTrainer, fallback: float) -> float:
    """Mean loss over the whole run; the Trainer's own figure covers only what followed the last resumption."""
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    if not entries:
        return float(fallback)
    steps = [entry["step"] - before for entry, before in zip(entries, [0, *(e["step"] for e in entries)], strict=False)]
    return float(sum(entry["loss"] * n for entry, n in zip(entries, steps, strict=True)) / sum(steps))


def _digest(pairs: pa.Table) -> str:
    """Digest of ids and margins, whatever the order of the rows."""
    rows = zip(*(pairs[n].to_pylist() for n in ("chosen_id", "rejected_id", "quality_margin")), strict=True)
    return blake2b("\n".join(sorted(map(repr, rows))).encode(), digest_size=16).hexdigest()
