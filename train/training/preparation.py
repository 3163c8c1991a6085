"""What a run needs before it trains: data read and checked, targets, the model, every text rendered. Writes nothing."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import transformers

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.margins import gamma_for_mean_target
from mmpo.train.data import Prepared, PromptPairs, Renderer, check_margins, check_sources, prepare, read_pairs, usable_pairs
from mmpo.train.distributed import rank_and_world
from mmpo.train.messages import nothing_left, rendering_warnings, target_warnings, warn
from mmpo.train.model import check_ids, identity, load_model
from mmpo.train.objective import Objective, parse_terms, targets
from mmpo.train.options import TrainOptions
from mmpo.train.training.run_folder import RunFolder

__all__ = ["Preparation", "prepare_run", "resolve_gamma"]

_READ = ("prompt_id", "chosen_id", "rejected_id", "quality_margin", "margin_se", "preferring", "raters", "source")
"""Columns that a run's targets and weights depend on, with the ids of the texts."""


@dataclass
class Preparation:
    """A run that can begin. train, held_out: prompts, held_out None where nothing is measured; counts: what became of
    every training pair. model is None where the folder holds the finished run.
    """

    folder: RunFolder
    gamma: float = 0.0
    counts: dict[str, int] | None = None
    model: Any = None
    tokenizer: Any = None
    train: Sequence[PromptPairs] = ()
    held_out: Sequence[PromptPairs] | None = None


def resolve_gamma(gamma: float | str, margins: Any) -> float:
    """The number itself, or for "auto" the γ at which the mean target of the non-tied margins is .75."""
    if gamma != "auto":
        return float(gamma)
    decided = margins[margins > 0]
    if not len(decided):
        raise UserError("gamma auto needs pairs with a positive margin and there is none: give --gamma a number")
    return float(gamma_for_mean_target(decided))


def prepare_run(options: TrainOptions) -> Preparation:
    """Everything that options name, read and checked. Raises UserError for whatever can't be trained on."""
    pairs, measured = read_pairs(options.data, "train"), _measured(options)
    folder = RunFolder(options, _digest([pairs] if measured is None else [pairs, measured]))
    if folder.finished:
        if rank_and_world()[0] == 0:
            print(f"{folder.path} already holds this run, finished; nothing to do", file=sys.stderr)
        return Preparation(folder)
    check_sources(pairs, options.source_weights)
    used, _ = usable_pairs(pairs, ties=True, source_weights=options.source_weights)
    check_margins(used["quality_margin"].to_numpy(), parse_terms(options.loss), options.target)
    gamma = resolve_gamma(options.gamma, used["quality_margin"].to_numpy())
    beta = options.beta if options.kind == "policy" else None
    objective = Objective.parse(options.loss, options.loss_options, gamma, beta=beta)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model, tokenizer = load_model(options, pairs)
    folder.same_model(identity(model, tokenizer))
    renderer = Renderer(tokenizer, options.max_length, options.max_prompt_length)
    train, counts = _prompts(pairs, options, objective, renderer)
    if not train.prompts:
        raise nothing_left(renderer, f"{options.data} (train)", counts)
    warn(_target_warnings(train, options, gamma) + rendering_warnings(renderer))
    held_out = None if measured is None else _held_out(measured, options, objective, tokenizer)
    check_ids([*train.prompts, *(held_out or [])], model, tokenizer, options.model)
    return Preparation(folder, gamma, counts, model, tokenizer, train.prompts, held_out)


def _prompts(pairs: pa.Table, options: TrainOptions, objective: Objective, renderer: Renderer) -> tuple[Prepared, dict[str, int]]:
    """Targets and rendering of one split; the counts say what became of every pair."""
    counts = {"pairs_in": pairs.num_rows}
    ties = options.ties == "keep" and not objective.needs_winner
    pairs, dropped = usable_pairs(pairs, ties=ties, source_weights=options.source_weights)
    p, about_targets = targets(options.target, pairs, objective.gamma)
    prepared = prepare(pairs, p, renderer, options.weight, options.source_weights)
    left_out = objective.count_ties(sum(int((prompt.margin == 0).sum()) for prompt in prepared.prompts))
    return prepared, {**counts, **dropped, **about_targets, **prepared.counts, **left_out}


def _measured(options: TrainOptions) -> pa.Table | None:
    """The pairs measured during training; None where the dataset has no such split, which early stopping can't do with."""
    if options.eval_split is None or not any((Path(options.data) / options.eval_split).glob("*.parquet")):
        if options.early_stopping:
            raise UserError(
                f"early_stopping needs held-out pairs: {options.data} has no split {options.eval_split!r}; leave it out"
            )
        return None
    return read_pairs(options.data, options.eval_split)


def _held_out(pairs: pa.Table, options: TrainOptions, objective: Objective, tokenizer: Any) -> list[PromptPairs] | None:
    """The same rendered; None where nothing of them is left, which early stopping can't do with."""
    renderer = Renderer(tokenizer, options.max_length, options.max_prompt_length)
    prepared, counts = _prompts(pairs, options, objective, renderer)
    if not prepared.prompts:
        error = nothing_left(renderer, f"{options.data} ({options.eval_split})", counts)
        if options.early_stopping:
            raise error
        warn([f"nothing is measured during training: {error}"])
        return None
    warn(f"{options.eval_split}: {line}" for line in rendering_warnings(renderer))
    return prepared.prompts


def _target_warnings(train: Prepared, options: TrainOptions, gamma: float) -> list[str]:
    p, margin = (np.concatenate([getattr(prompt, name) for prompt in train.prompts]) for name in ("p", "margin"))
    return target_warnings(p, margin, gamma, parse_terms(options.loss), options.target)


def _digest(splits: Sequence[pa.Table]) -> str:
    """Digest of everything in the splits that a run reads, whatever the order of their rows; an id is that of a text."""
    whole = blake2b(digest_size=16)
    for pairs in splits:
        rows = zip(*(pairs[name].to_pylist() for name in _READ), strict=True)
        whole.update(blake2b("\n".join(sorted(map(repr, rows))).encode(), digest_size=16).digest())
    return whole.hexdigest()
