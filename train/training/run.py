"""Training runs from a dataset folder to a model folder: `mmpo train policy|reward`, and the same from Python.

Several processes that a launcher started run this side by side: each step here is taken by all of them together, and
only the first one writes files.
"""

import math
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerState, TrainingArguments

from mmpo.pipeline.errors import UserError
from mmpo.train.batches import pass_tokens
from mmpo.train.data import PromptPairs, pad_token
from mmpo.train.distributed import (
    LocalFailure,
    MemoryElsewhere,
    agreed,
    from_first,
    is_lost_process,
    known_to_all,
    leave_at_exit,
    rank_and_world,
)
from mmpo.train.inference import cached_logprobs
from mmpo.train.launch import check_launch, uses_fsdp
from mmpo.train.messages import memory_advice, memory_error, out_of_memory
from mmpo.train.model import add_lora, check_checkpoint, check_ids, check_plan, load_reference, weights_digest
from mmpo.train.options import TrainOptions
from mmpo.train.training.arguments import set_rhythm, training_arguments
from mmpo.train.training.displacement import Displacement
from mmpo.train.training.history import history_of, summary_of
from mmpo.train.training.policy import PolicyTrainer
from mmpo.train.training.preparation import Preparation, prepare_run, resolve_gamma
from mmpo.train.training.progress import Progress, final_line
from mmpo.train.training.reward import RewardTrainer, own_pad_token
from mmpo.train.training.stopping import EarlyStop, StopSafely, early_end
from mmpo.train.training.trainer import MarginTrainer

__all__ = ["resolve_gamma", "train_policy", "train_reward"]


def train_policy(options: TrainOptions) -> dict[str, Any]:
    """Trains a policy; returns {"out", "steps", "train_loss", "gamma", "metrics", "displacement"}, with early stopping
    also "best_step". Raises UserError, KeyboardInterrupt.
    """
    if options.kind != "policy":
        raise UserError(f"train_policy was given options of kind {options.kind!r}")
    return _train(options)


def train_reward(options: TrainOptions) -> dict[str, Any]:
    """Trains a reward model; returns what `train_policy` does, without "displacement"."""
    if options.kind != "reward":
        raise UserError(f"train_reward was given options of kind {options.kind!r}")
    return _train(options)


def _train(options: TrainOptions) -> dict[str, Any]:
    """A run, with the errors named that may come from anywhere in it."""
    try:
        return _run(options)
    except Exception as error:
        if is_lost_process(error):
            raise UserError(
                "another process of this run has ended; if it could, it said why. The same command goes on from the last checkpoint"
            ) from error
        if not out_of_memory(error):
            raise
        raise _memory_message(error, options) from error


def _memory_message(error: Exception, options: TrainOptions) -> UserError:
    """The error with what to set. What is known to all the first process says, else this one does."""
    advice = memory_advice(
        pass_tokens(options.tokens_per_batch, "cuda" if torch.accelerator.is_available() else "cpu"),
        checkpointing=options.gradient_checkpointing,
        bf16=options.bf16,
        lora=options.lora is not None,
        started=any(Path(options.out).glob("checkpoint-*")),
    )
    place = f", in {error}" if isinstance(error, MemoryElsewhere) else ""
    found = memory_error(f"outside of the steps (weights, optimizer, measuring){place}", advice)
    return found if known_to_all(error) else LocalFailure(str(found))


def _run(options: TrainOptions) -> dict[str, Any]:
    check_launch(options.bf16)
    if options.lora and options.kind == "reward" and uses_fsdp():
        raise UserError("a reward model's LoRA adapter is merged at the end, which FSDP's parts can't be: leave out --lora or FSDP")
    args = training_arguments(options)
    leave_at_exit()
    ready = agreed(lambda: prepare_run(options))
    folder = ready.folder
    if ready.model is None and folder.record is not None:
        return {**folder.record["summary"], "out": options.out}
    from_first(folder.claim)
    try:
        trainer = agreed(lambda: _trainer(options, args, ready))
    except Exception as error:
        if not is_lost_process(error):
            from_first(folder.abandon)
        raise
    from_first(folder.start)
    checkpoint = from_first(folder.last_checkpoint)
    agreed(lambda: check_checkpoint(checkpoint, trainer.model))
    record = {"gamma": ready.gamma if math.isfinite(ready.gamma) else "inf", "counts": ready.counts}  # JSON has no infinity
    record["model_parameters"] = sum(value.numel() for value in ready.model.parameters())
    record["way"] = {name: getattr(trainer.execution_plan, name) for name in ("layout", "attention", "head", "reason")}
    trainer.last_step = _ended_at(checkpoint, options.early_stopping)
    with StopSafely() as stop:
        trainer.add_callback(stop)
        result = trainer.train(resume_from_checkpoint=checkpoint)
    state = trainer.state
    if stop.stopped and state.global_step < state.max_steps and not early_end(state.log_history, options.early_stopping):
        from_first(lambda: folder.write({"finished": False, **record, **history_of(state.log_history)}))
        raise KeyboardInterrupt
    _save(trainer, options)
    summary = summary_of(
        state.log_history,
        out=options.out,
        steps=state.global_step,
        train_loss=result.training_loss,
        gamma=record["gamma"],
        beta=options.beta if options.kind == "policy" else None,
        best=state.best_global_step if options.early_stopping else None,
    )
    from_first(lambda: folder.write({"finished": True, **record, **history_of(state.log_history), "summary": summary}))
    if rank_and_world()[0] == 0:
        print(final_line(trainer.pace), file=sys.stderr, flush=True)
    return summary


def _ended_at(checkpoint: str | None, patience: int | None) -> int | None:
    """The last step of a run that had ended early when it was killed, before its model was written."""
    if checkpoint is None or patience is None:
        return None
    state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    return state.global_step if early_end(state.log_history, patience) else None


def _trainer(options: TrainOptions, args: TrainingArguments, ready: Preparation) -> MarginTrainer:
    callbacks: list[Any] = [Progress(f"{options.kind} {options.loss}")]
    callbacks += [Displacement(options.beta)] if options.kind == "policy" else []
    callbacks += [EarlyStop(options.early_stopping)] if options.early_stopping else []
    shared: dict[str, Any] = {
        "processing_class": ready.tokenizer,
        "gamma": ready.gamma,
        "loss": options.loss,
        "loss_options": options.loss_options,
        "pairs_per_step": options.pairs_per_step,
        "tokens_per_batch": options.tokens_per_batch,
        "layout": options.layout,
        "dropout": options.dropout,
        "callbacks": callbacks,
    }
    model, train, held_out = ready.model, ready.train, ready.held_out
    if options.kind == "policy":
        found = _with_reference(options, args, ready)
        train, held_out = found[: len(train)], None if held_out is None else found[len(train) :]
        shared |= {"beta": options.beta, "own_reference": options.reference is None}
    else:
        own_pad_token(model, ready.tokenizer)
    if options.lora:
        torch.manual_seed(options.seed)
        model = add_lora(model, options.lora, options.kind)
    kind = PolicyTrainer if options.kind == "policy" else RewardTrainer
    trainer = kind(model, args, train, held_out, **shared)
    trainer.remove_callback(PrinterCallback)  # it prints to standard output, which belongs to --json
    check_plan(trainer.execution_plan, trainer.model, options)
    set_rhythm(trainer, options)
    return trainer


def _with_reference(options: TrainOptions, args: TrainingArguments, ready: Preparation) -> list[PromptPairs]:
    """All prompts with the reference's log-probabilities, from the reference cache where it has them."""
    tokenizer, prompts = ready.tokenizer, [*ready.train, *(ready.held_out or [])]
    reference = agreed(lambda: _reference(options, ready, prompts).to(args.device))
    is_reference = options.model == "tiny" and options.reference is None
    if not ready.model.name_or_path and (is_reference or options.lora is not None):
        from_first(lambda: _keep(ready))
    return cached_logprobs(
        reference,
        prompts,
        options.reference_cache,
        tokenizer=tokenizer,
        tokens=pass_tokens(options.tokens_per_batch, args.device),
        pad_token=pad_token(tokenizer),
        device=args.device,
        bf16=options.bf16,
        layout=options.layout,
    )


def _reference(options: TrainOptions, ready: Preparation, prompts: list[PromptPairs]) -> Any:
    """The model that log-ratios are taken to: the policy itself before training, or the one that is named."""
    if options.reference is None:
        return ready.model
    if options.lora and not ready.model.name_or_path:
        raise UserError(
            f"{options.model} is an adapter: one on top of it finds its base where the reference is kept. Leave out `reference` or "
            "`lora`, or merge first: PeftModel.from_pretrained(...).merge_and_unload().save_pretrained(DIR), and name DIR"
        )
    reference = load_reference(options.reference, ready.tokenizer, options.max_length, trust_remote_code=options.trust_remote_code)
    check_ids(prompts, reference, ready.tokenizer, options.reference)
    ready.folder.same_model({"reference_weights": weights_digest(reference)})
    return reference


def _keep(ready: Preparation) -> None:
    """A model as it was before training, where no other place has it: evaluation needs it, and an adapter's folder."""
    place = ready.folder.new_reference()
    if place is not None:
        ready.model.save_pretrained(place)
        ready.tokenizer.save_pretrained(place)


def _save(trainer: MarginTrainer, options: TrainOptions) -> None:
    """The model and its tokenizer into the output folder.

    A policy's LoRA adapter is kept apart: the base with the adapter off is its reference. A reward model's is merged,
    because an adapter's folder does not hold the configuration with the pad token that others need to read its
    scores.
    """
    if options.lora and options.kind == "reward":
        merged = trainer.model.merge_and_unload()  # type: ignore[operator]
        if trainer.args.should_save:
            merged.save_pretrained(options.out)
            trainer.processing_class.save_pretrained(options.out)  # type: ignore[union-attr]
    else:
        trainer.save_model(options.out)
