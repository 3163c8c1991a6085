"""What a finished model gives the pairs of one or more splits: rendered, and each model loaded and run once for all of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from mmpo.pipeline.errors import UserError
from mmpo.train.data import Prepared, PromptPairs, Renderer, choose_template, pad_token, prepare_pairs
from mmpo.train.inference import cached_logprobs, predict_values
from mmpo.train.messages import memory_error, nothing_left, out_of_memory, rendering_warnings, some_ids, warn
from mmpo.train.model import check_ids, check_model, load_pretrained, load_reference, weights_digest
from mmpo.train.objective import LevelTarget
from mmpo.train.options import TrainOptions, pass_tokens

Values = dict[str, np.ndarray]


def pair_values(
    options: TrainOptions, splits: Sequence[tuple[pa.Table, str]], reference_weights: str | None, target: str | LevelTarget
) -> list[tuple[Values, dict[str, int]]]:
    """Of each split every pair's values by table row (z, p, margin, rows, and score/… or ratio/… of both completions, each
    (pairs,)), and the counts of what could not be rendered.

    options: kind, model, reference, lengths and so on, as for training. splits: pairs, and their place for messages; "": they only
    serve another split, so that nothing is said of them and none need be left. reference_weights: the digest that a policy's
    reference must have. target: as `targets` takes it. Raises UserError, where the memory runs out too.
    """
    model, tokenizer = load_pretrained(options.kind, options.model, trust_remote_code=options.trust_remote_code)
    choose_template(tokenizer, options.chat_template)
    check_model(model, options.model, options.max_length)
    rendered = [_render(options, *split, tokenizer, target) for split in splits]
    prompts = [prompt for part in rendered for prompt in part.prompts]
    check_ids(prompts, model, tokenizer, options.model)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    tokens = pass_tokens(options.tokens_per_batch, device)
    shared: dict[str, Any] = {"tokens": tokens, "pad_token": pad_token(tokenizer), "device": device}
    try:
        values = predict_values(model, options.kind, prompts, **shared)
        model.to("cpu")  # policy and reference need not lie on a device together
        if options.kind == "policy":
            reference = trained_reference(options, tokenizer, reference_weights)
            check_ids(prompts, reference, tokenizer, str(options.reference))
            known = cached_logprobs(reference, prompts, options.reference_cache, tokenizer=tokenizer, **shared)
            values = [value - prompt.reference for value, prompt in zip(values, known, strict=True)]
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise memory_error("while measuring", [f"set tokens_per_batch lower (--tokens-per-batch, now {tokens})"]) from error
    _check_finite(prompts, values, options.model)
    left = iter(values)
    return [(_by_row(options, part.prompts, [next(left) for _ in part.prompts]), part.counts) for part in rendered]


def _render(options: TrainOptions, pairs: pa.Table, where: str, tokenizer: Any, target: str | LevelTarget) -> Prepared:
    parts = (options.thinking or "keep", options.graded_part or "all")
    renderer = Renderer(tokenizer, options.max_length, options.max_prompt_length, *parts)
    prepared = prepare_pairs(pairs, renderer, target, float(options.gamma))
    if where:
        if not prepared.prompts:
            raise nothing_left(renderer, where, prepared.counts)
        warn(rendering_warnings(renderer, prepared.counts))
    return prepared


def trained_reference(options: TrainOptions, tokenizer: Any, weights: str | None) -> Any:
    """The reference that a policy is measured against. Raises UserError where its weights have another digest."""
    reference = load_reference(str(options.reference), tokenizer, options.max_length, trust_remote_code=options.trust_remote_code)
    if weights is not None and (now := weights_digest(reference)) != weights:
        raise UserError(
            f"{options.reference} is no longer the reference that {options.model} was trained against: its weights were {weights[:8]} and "
            f"are {now[:8]}. Bring those back, or give --reference {options.reference} to measure against it as it is"
        )
    return reference


def _check_finite(prompts: Sequence[PromptPairs], values: Sequence[np.ndarray], name: str) -> None:
    bad = [prompt.prompt_id for prompt, found in zip(prompts, values, strict=True) if not np.isfinite(found).all()]
    if bad:
        raise UserError(
            f"{name} gives completions of {len(bad)} of {len(prompts)} prompts no finite value (prompt_id {some_ids(bad)}): nothing can "
            "be measured; take an earlier checkpoint"
        )


def _by_row(options: TrainOptions, prompts: Sequence[PromptPairs], values: Sequence[np.ndarray]) -> Values:
    if not prompts:
        return {"z": np.zeros(0), "p": np.zeros(0)}
    what, scale = ("ratio", options.beta) if options.kind == "policy" else ("score", 1.0)
    chosen, rejected = (
        np.concatenate([value[getattr(prompt, side)] for prompt, value in zip(prompts, values, strict=True)])
        for side in ("chosen", "rejected")
    )
    parts = values
    if options.length_normalised:  # of the logit alone: what is reported of completions stays a sum
        lengths = ([len(item.ids) - item.start for item in prompt.completions] for prompt in prompts)
        parts = [value / np.array(tokens) for value, tokens in zip(values, lengths, strict=True)]
    z = np.concatenate([value[prompt.chosen] - value[prompt.rejected] for value, prompt in zip(parts, prompts, strict=True)])
    rows, p, margin = (np.concatenate([getattr(prompt, name) for prompt in prompts]) for name in ("rows", "p", "margin"))
    found = {"z": scale * z, f"{what}/chosen": chosen, f"{what}/rejected": rejected, "rows": rows}
    order = np.argsort(rows, kind="stable")
    return {name: value[order] for name, value in {**found, "p": p, "margin": margin}.items()}
