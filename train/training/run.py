"""Training runs from a dataset folder to a model folder: `mmpo train policy|reward`, and the same from Python.

`prepare_run` reads and checks everything that the options name and writes nothing; then the trainer is made, which computes the
reference's values; only then the output folder is taken over and training starts. Several processes that a launcher started
run this side by side: each step here is taken by all of them together, and only the first one writes files.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import transformers
from transformers import PrinterCallback, TrainerCallback, TrainerState, TrainingArguments

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.margins import resolve_gamma
from mmpo.pipeline.options import check_class
from mmpo.pipeline.progress import say
from mmpo.pipeline.storage import on_disk, refuse_url
from mmpo.train.batches import plan_steps
from mmpo.train.data import (
    Prepared,
    PromptPairs,
    Renderer,
    TokenStore,
    check_margins,
    check_scores,
    pair_files,
    prepare_pairs,
    read_pairs,
    text_batches,
    weighted_pairs,
    with_graded_part,
    with_source_weights,
)
from mmpo.train.distributed import (
    LocalFailure,
    MemoryElsewhere,
    agreed,
    check_launch,
    from_first,
    is_lost_process,
    known_to_all,
    leave_at_exit,
    rank_and_world,
    uses_fsdp,
)
from mmpo.train.messages import (
    disk_full,
    learned_lines,
    memory_advice,
    memory_error,
    nothing_left,
    out_of_memory,
    rendering_warnings,
    target_warnings,
    warn,
)
from mmpo.train.model import (
    add_lora,
    check_checkpoint,
    check_few_bits,
    check_ids,
    check_plan,
    freeze_below,
    identity,
    load_model,
    load_reference,
    multiplies_bfloat16,
    tokenizer_digest,
    weights_digest,
)
from mmpo.train.objective import TERMS, LevelTarget, Objective, controlled, fit_target, parse_terms
from mmpo.train.options import TrainOptions, pass_tokens
from mmpo.train.release import EndedRun, origin_of, write_card
from mmpo.train.training.arguments import set_intervals, training_arguments
from mmpo.train.training.callbacks import Displacement, EarlyStop, NearZero, StopSafely, TrainingProgress, ended_early
from mmpo.train.training.frozen import known_below
from mmpo.train.training.measures import intervals, seen_by
from mmpo.train.training.run_folder import RunFolder, history_of, summary_of
from mmpo.train.training.trainer import MarginTrainer
from mmpo.train.training.trainers import PolicyTrainer, RewardTrainer, merged_in_full, own_pad_token
from mmpo.train.training.watching import OwnCallbacks, samples_of

_READ = ("prompt_id", "chosen_id", "rejected_id", "quality_margin", "margin_se", "preferring", "raters", "source")
"""Columns that a run's targets and weights depend on, with the ids of the texts."""
_SCORES = ("score_chosen", "score_rejected")
"""Columns that losses of whole prompts depend on as well."""


def train_policy(options: TrainOptions, callbacks: Sequence[Any] = ()) -> dict[str, Any]:
    """Trains a policy; returns {"out", "steps", "train_loss", "gamma", "metrics", "displacement"}, where pairs are measured also
    "metrics_95", their 95% intervals, with early stopping also "best_step". callbacks: of `RunCallback`'s kind, or of transformers. Raises
    UserError, KeyboardInterrupt, and what a callback raises. `TrainOptions` shows a run.
    """
    return _train("policy", options, callbacks)


def train_reward(options: TrainOptions, callbacks: Sequence[Any] = ()) -> dict[str, Any]:
    """Trains a reward model; returns what `train_policy` does, without "displacement". `TrainOptions` shows a run."""
    return _train("reward", options, callbacks)


def _train(kind: str, options: TrainOptions, callbacks: Sequence[Any]) -> dict[str, Any]:
    """A run, with the errors named that may come from anywhere in it."""
    check_class(options, TrainOptions)
    if options.kind != kind:
        raise UserError(f"train_{kind} was given options of kind {options.kind!r}")
    try:
        refuse_url(options.out, "--out")
        options = replace(options, data=str(on_disk(options.data)))
        return _run(with_source_weights(with_graded_part(options)), callbacks)
    except Exception as error:
        if is_lost_process(error):
            raise UserError(
                "another process of this run has ended; if it could, it gave the reason. The same command goes on from the last checkpoint"
            ) from error
        if disk_full(error):
            found = (
                f"cannot write to {options.out}: the disk is full, or files may not be so large ({str(error).splitlines()[0]}). "
                "Checkpoints that were whole stay; make room, and the same command goes on from the newest"
            )
            raise (UserError(found) if known_to_all(error) else LocalFailure(found)) from error
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


def _run(options: TrainOptions, callbacks: Sequence[Any]) -> dict[str, Any]:
    check_launch(options.bf16)
    check_few_bits(options)
    if options.lora and options.kind == "reward" and uses_fsdp():
        raise UserError("a reward model's LoRA adapter is merged at the end, which FSDP's parts can't be: leave out --lora or FSDP")
    if options.sample and uses_fsdp():
        raise UserError(
            "sample has the first process write replies, which holds a part of the model with FSDP: leave out --sample or FSDP"
        )
    if options.top_layers is not None and uses_fsdp():
        raise UserError(
            f"--trainable {options.trainable} needs the whole model in every process: leave out FSDP, or train all layers"
        )
    args = training_arguments(options)
    if args.bf16 and args.device.type == "cpu" and not multiplies_bfloat16():
        warn(["this CPU has no instructions for bfloat16 (avx512_bf16 or AMX): --bf16 is slower here than float32"])
    leave_at_exit()
    ready = agreed(lambda: prepare_run(options))
    folder = ready.folder
    if ready.model is None and folder.record is not None:
        return {**folder.record["summary"], "out": options.out}
    try:
        from_first(folder.claim)
        return _train_claimed(options, args, ready, callbacks)
    finally:
        folder.release()


def _train_claimed(
    options: TrainOptions, args: TrainingArguments, ready: "Preparation", callbacks: Sequence[Any]
) -> dict[str, Any]:
    """Everything from the trainer to its saved model, with the folder locked."""
    folder = ready.folder
    try:
        theirs = [one for one in callbacks if isinstance(one, TrainerCallback)]
        trainer = agreed(lambda: _trainer(options, args, ready, theirs))
        own = OwnCallbacks([one for one in callbacks if not isinstance(one, TrainerCallback)])
    except Exception as error:
        if not is_lost_process(error):
            from_first(folder.abandon)
        raise
    from_first(folder.start)
    checkpoint = from_first(folder.last_checkpoint)
    agreed(lambda: check_checkpoint(checkpoint, trainer.model))
    record = {"gamma": ready.gamma if math.isfinite(ready.gamma) else "inf", "counts": ready.counts}  # JSON has no infinity
    record["model_parameters"] = sum(value.numel() for value in ready.model.parameters())
    if isinstance(ready.target, LevelTarget):
        record["target_levels"] = ready.target.as_dict()
    record["way"] = {name: getattr(trainer.execution_plan, name) for name in ("layout", "attention", "head", "reason")}
    if options.sample and trainer.eval_prompts:
        trainer.add_callback(agreed(lambda: samples_of(trainer, options)))
    trainer.last_step = _ended_at(checkpoint, options.early_stopping)
    if folder.extends and rank_and_world()[0] == 0:
        say(_going_further(options, TrainerState.load_from_json(f"{checkpoint}/trainer_state.json").global_step, args.max_steps))
    progress = next(one for one in trainer.callback_handler.callbacks if isinstance(one, TrainingProgress))
    # The reporter takes its bar away: a Trainer that fails does not say that training has ended.
    with StopSafely() as stop, known_below(trainer, options), progress.reporter:
        trainer.add_callback(stop)
        trainer.add_callback(own)
        result = trainer.train(resume_from_checkpoint=checkpoint)
    state = trainer.state
    if own.failed:
        from_first(lambda: folder.write({"finished": False, **record, **history_of(state.log_history)}))
        raise own.error or UserError(
            "a callback of the first process raised an exception; the same call goes on from the checkpoint"
        )
    if stop.stopped and state.global_step < state.max_steps and not ended_early(state.log_history, options.early_stopping):
        from_first(lambda: folder.write({"finished": False, **record, **history_of(state.log_history)}))
        stop.interrupt()
    _save(trainer, options)
    summary = summary_of(options, state, result.training_loss, record["gamma"])
    if learned := trainer.objective.learned:
        record["learned"] = summary["learned"] = learned
    if trainer.eval_prompts:
        summary["metrics_95"] = intervals(trainer, summary["metrics"]["step"])
    record["origin"] = from_first(lambda: origin_of(options.model)).as_dict()
    seen = seen_by(trainer, summary.get("best_step", summary["steps"]))
    ended = EndedRun(options, record, summary, ready.train, seen, trainer.eval_prompts or [])
    from_first(lambda: write_card(ended))
    from_first(lambda: folder.write({"finished": True, **record, **history_of(state.log_history), "summary": summary}))
    if rank_and_world()[0] == 0:
        say(str(trainer.throughput))
        margin = np.concatenate([prompt.margin for prompt in ready.train])
        for line in learned_lines(learned, margin):
            say(line)
    own.ended(summary)
    return summary


# --- preparation ------------------------------------------------------------------------------------------------------------


@dataclass
class Preparation:
    """A run that can begin. train, held_out: prompts, held_out None where nothing is measured; counts: what became of
    every training pair; target: as `fit_target` gives it; largest: the largest token id. model is None where the folder
    holds the finished run.
    """

    folder: RunFolder
    gamma: float = 0.0
    counts: dict[str, int] | None = None
    model: Any = None
    tokenizer: Any = None
    train: Sequence[PromptPairs] = ()
    held_out: Sequence[PromptPairs] | None = None
    target: str | LevelTarget = "plain"
    largest: int = 0

    @property
    def prompts(self) -> list[PromptPairs]:
        """All of them."""
        return [*self.train, *(self.held_out or [])]


def prepare_run(options: TrainOptions) -> Preparation:
    """Everything that options name, read and checked. Raises UserError for whatever can't be trained on."""
    pairs, measured = read_pairs(options.data, "train", texts=False), _measured(options)
    folder = RunFolder(options, _digest([pairs] if measured is None else [pairs, measured], parse_terms(options.loss)))
    if folder.finished:
        if not any(folder.path.glob("*.safetensors")):
            raise UserError(
                f"{folder.path} has the record of a finished run (mmpo.json), but its weights are gone: remove the folder, or give "
                "another --out"
            )
        if rank_and_world()[0] == 0:
            more = f" (with {folder.had_more} more steps)" if folder.had_more else ""
            say(f"{folder.path} already holds this run{more}, finished; nothing to do")
        return Preparation(folder)
    used = weighted_pairs(pairs, options.source_weights)
    check_margins(used["quality_margin"].to_numpy(), parse_terms(options.loss), options.target)
    held = None if measured is None else weighted_pairs(measured, options.source_weights, checked=False)
    for table, split in ((used, "train"), (held, options.eval_split)):
        if table is not None:
            check_scores(table, parse_terms(options.loss), f"{options.data} ({split})")
    gamma, target = resolve_gamma(options.gamma, used["quality_margin"].to_numpy()), fit_target(options.target, used)
    beta = options.beta if options.kind == "policy" else None
    objective = Objective.parse(options.loss, options.loss_options, gamma, beta=beta)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model, tokenizer = load_model(options, pairs if options.model != "tiny" else read_pairs(options.data, "train"))
    folder.same_model(identity(model, tokenizer))
    renderer = _renderer(options, tokenizer)
    prepared = _prepared(pairs, "train", options, objective, renderer, target)
    train, counts = prepared.prompts, prepared.counts
    if not train:
        raise nothing_left(renderer, f"{options.data} (train)", counts)
    if options.control is not None:
        train = _with_control(train, options.control, options.seed)
        say(f"control {options.control}: this model is trained to hold others against, not on the margins of its own pairs")
    p, margin = (np.concatenate([getattr(prompt, name) for prompt in train]) for name in ("p", "margin"))
    warn(target_warnings(p, margin, gamma, parse_terms(options.loss), options.target) + rendering_warnings(renderer, counts))
    held_out = None if measured is None else _held_out(measured, options, objective, tokenizer, target)
    largest = max(prepared.largest, held_out.largest if held_out else 0)
    ready = Preparation(folder, gamma, counts, model, tokenizer, train, held_out and held_out.prompts, target, largest)
    check_ids(ready.prompts, model, tokenizer, options.model, largest)
    return ready


def _renderer(options: TrainOptions, tokenizer: Any) -> Renderer:
    parts = (options.thinking or "keep", options.graded_part or "all")
    return Renderer(tokenizer, options.max_length, options.max_prompt_length, *parts)


def _prepared(
    pairs: pa.Table, split: str, options: TrainOptions, objective: Objective, renderer: Renderer, target: str | LevelTarget
) -> Prepared:
    """Targets and rendering of one split; the counts say what became of every pair."""
    store = TokenStore(Path(options.data), tuple(pair_files(options.data, split)), tokenizer_digest(renderer.tokenizer))
    texts: dict[str, Any] = {"texts": lambda: text_batches(options.data, split), "store": store}
    ties, weights = options.ties == "keep" and not objective.needs_winner, (options.weight, options.source_weights)
    prepared = prepare_pairs(pairs, renderer, target, objective.gamma, ties, *weights, **texts)
    kept = sum(int((prompt.margin == 0).sum()) for prompt in prepared.prompts)
    left_out = [term.name for term in objective.terms if kept and term.needs_winner]  # others use the ties
    return replace(prepared, counts=prepared.counts | {f"ties_without_{name}": kept for name in left_out})


def _with_control(prompts: Sequence[PromptPairs], control: str, seed: int) -> list[PromptPairs]:
    """The prompts with the targets and margins of a control; held-out pairs keep their own."""
    p, margin, weight = (np.concatenate([getattr(prompt, name) for prompt in prompts]) for name in ("p", "margin", "weight"))
    bounds = np.cumsum([len(prompt.p) for prompt in prompts])[:-1]
    # A prompt's completions stand in the order of their ids, so that their places name them.
    names = [f"{prompt.prompt_id}\0{one}\0{other}" for prompt in prompts for one, other in zip(prompt.chosen, prompt.rejected)]
    split = zip(*(np.split(column, bounds) for column in controlled(control, p, margin, weight, names, seed)), strict=True)
    return [replace(prompt, p=own, margin=size) for prompt, (own, size) in zip(prompts, split, strict=True)]


def _measured(options: TrainOptions) -> pa.Table | None:
    """The pairs measured during training; None where the dataset has no such split, which early stopping can't do with."""
    if options.eval_split is None or not any((Path(options.data) / options.eval_split).glob("*.parquet")):
        if options.early_stopping:
            raise UserError(
                f"early_stopping needs held-out pairs: {options.data} has no split {options.eval_split!r}; leave it out"
            )
        if options.eval_split is not None:
            warn(
                [
                    f"nothing is measured during training: {options.data} has no pairs in its split {options.eval_split} "
                    "(--eval-split null asks for that)"
                ]
            )
        return None
    return read_pairs(options.data, options.eval_split, texts=False)


def _held_out(
    pairs: pa.Table, options: TrainOptions, objective: Objective, tokenizer: Any, target: str | LevelTarget
) -> Prepared | None:
    """The same rendered; None where nothing of them is left, which early stopping can't do with."""
    renderer = _renderer(options, tokenizer)
    prepared = _prepared(pairs, str(options.eval_split), options, objective, renderer, target)
    if not prepared.prompts:
        error = nothing_left(renderer, f"{options.data} ({options.eval_split})", prepared.counts)
        if options.early_stopping:
            raise error
        warn([f"nothing is measured during training: {error}"])
        return None
    warn(f"{options.eval_split}: {line}" for line in rendering_warnings(renderer, prepared.counts))
    return prepared


def _digest(splits: Sequence[pa.Table], terms: Iterable[str]) -> str:
    """Digest of everything in the splits that a run reads, whatever the order of their rows; an id is that of a text."""
    whole = blake2b(digest_size=16)
    read = _READ + (_SCORES if any(TERMS[name].listed for name in terms) else ())
    for pairs in splits:
        rows: list[bytes] = []
        for part in (pairs.slice(at, 4096) for at in range(0, pairs.num_rows, 4096)):  # as lists they take ten times the memory
            rows += [repr(row).encode() for row in zip(*(part[name].to_pylist() for name in read), strict=True)]
        rows.sort()
        own = blake2b(digest_size=16)
        for place, row in enumerate(rows):
            own.update(b"\n" + row if place else row)
        whole.update(own.digest())
    return whole.hexdigest()


# --- the trainer and its model ----------------------------------------------------------------------------------------------


def _ended_at(checkpoint: str | None, patience: int | None) -> int | None:
    """The last step of a run that had ended early when it was killed, before its model was written."""
    if checkpoint is None or patience is None:
        return None
    state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    return state.global_step if ended_early(state.log_history, patience) else None


def _trainer(
    options: TrainOptions, args: TrainingArguments, ready: Preparation, callbacks: Sequence[TrainerCallback]
) -> MarginTrainer:
    if options.more_steps:
        args.max_steps = _steps(options, ready.train) + options.more_steps
    watching: list[TrainerCallback] = [TrainingProgress(f"{options.kind} {options.loss}"), *callbacks]
    watching += [Displacement(options.beta)] if options.kind == "policy" else []
    if any(name != "sft" for name in parse_terms(options.loss)) and any(
        np.abs(prompt.p - 0.5).max() > 0.01 for prompt in ready.train
    ):
        watching.append(NearZero(options.usual_learning_rate))
    watching += [EarlyStop(options.early_stopping)] if options.early_stopping else []
    same = ("loss", "loss_options", "loss_learning_rate", "pairs_per_step", "tokens_per_batch", "layout", "dropout")
    shared: dict[str, Any] = {name: getattr(options, name) for name in same}
    shared |= {"processing_class": ready.tokenizer, "gamma": ready.gamma, "callbacks": watching}
    model = ready.model
    if options.kind == "policy":
        reference = agreed(lambda: _reference(options, ready))
        shared |= {
            "beta": options.beta,
            "length_normalised": options.length_normalised,
            "ref_model": reference,
            "reference_cache": options.reference_cache or True,
        }
        if not model.name_or_path and (options.lora or (options.model == "tiny" and reference is None)):
            # no other place has it: evaluation needs it, and an adapter's folder
            from_first(lambda: ready.folder.keep_reference(model, ready.tokenizer))
    else:
        own_pad_token(model, ready.tokenizer)
    if options.lora:
        torch.manual_seed(options.seed)
        how: dict[str, Any] = {"alpha": options.lora_alpha, "targets": options.lora_targets, "dropout": options.lora_dropout}
        model = add_lora(model, options.lora, options.kind, **how)
    if options.top_layers is not None:
        freeze_below(model, options.top_layers)
        head = model.get_output_embeddings()
        if head is not None and not head.weight.requires_grad:
            say(
                "the output layer shares its weights with the embeddings and stays as it is; the uppermost layers and their norm train"
            )
    kind = PolicyTrainer if options.kind == "policy" else RewardTrainer
    trainer = kind(model, args, ready.train, ready.held_out, **shared)
    trainer.remove_callback(PrinterCallback)  # it prints to standard output, which belongs to --json
    check_plan(trainer.execution_plan, trainer.model, options)
    set_intervals(trainer.args, options, len(trainer.plan()), bool(trainer.eval_prompts))
    return trainer


def _steps(options: TrainOptions, prompts: Sequence[PromptPairs]) -> int:
    """Those of a run without more of them."""
    sizes = [len(prompt.rows) for prompt in prompts]
    return options.max_steps or len(plan_steps(sizes, options.pairs_per_step, options.epochs, options.seed))


def _going_further(options: TrainOptions, done: int, steps: int) -> str:
    """What a run that has ended and goes on to more steps has of one that was asked for all of them from the start, and what not."""
    same = "their order, the optimizer's state and the random numbers are those of a run of so many steps from the start"
    if options.schedule == "constant":
        return f"goes on behind step {done}, to {steps}: {same}, and so is the learning rate"
    return (
        f"goes on behind step {done}, to {steps}: {same}, and so is the learning rate from here on; the first {done} steps had that of the "
        f"shorter run (--schedule {options.schedule}), which the result shows"
    )


def _reference(options: TrainOptions, ready: Preparation) -> Any:
    """The model that log-ratios are taken to where one is named; None: the policy itself before training."""
    if options.reference is None:
        return None
    if options.lora and not ready.model.name_or_path:
        raise UserError(
            f"{options.model} is an adapter: one on top of it finds its base where the reference is kept. Leave out `reference` or "
            f"`lora`, or merge first: `mmpo merge {quote(options.model)} --out DIR`, and name DIR"
        )
    reference = load_reference(options.reference, ready.tokenizer, options.max_length, trust_remote_code=options.trust_remote_code)
    check_ids(ready.prompts, reference, ready.tokenizer, options.reference, ready.largest)
    ready.folder.same_model({"reference_weights": weights_digest(reference)})
    return reference


def _save(trainer: MarginTrainer, options: TrainOptions) -> None:
    """The model and its tokenizer into the output folder.

    A policy's LoRA adapter is kept apart: the base with the adapter off is its reference. A reward model's is merged,
    because an adapter's folder does not hold the configuration with the pad token that others need to read its
    scores.
    """
    if options.lora and options.kind == "reward":
        if trainer.args.should_save:
            merged = merged_in_full(trainer, options) if options.load_in else trainer.model.merge_and_unload()  # type: ignore[operator]
            merged.save_pretrained(options.out)
            trainer.processing_class.save_pretrained(options.out)  # type: ignore[union-attr]
    else:
        page = Path(options.out) / "README.md"
        before = page.read_bytes() if page.is_file() else None
        trainer.save_model(options.out)
        if before is not None and trainer.args.should_save:
            page.write_bytes(before)  # peft writes into the card of an earlier end: a base model without a name, and tags
