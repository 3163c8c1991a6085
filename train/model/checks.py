"""What is checked of a model before it is trained or measured: is it whole, of the right kind, and does the run fit it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import MODEL_FOR_MASKED_LM_MAPPING

from mmpo.pipeline.errors import UserError
from mmpo.train.data import PromptPairs
from mmpo.train.distributed import rank_and_world, uses_fsdp
from mmpo.train.messages import warn
from mmpo.train.model.forward import ExecutionPlan, plain_model
from mmpo.train.options import TrainOptions


def check_loaded(kind: str, name: str, model: Any, info: Mapping[str, Any], *, new_head: bool) -> None:
    """Raises UserError unless the model's weights all came from what was loaded.

    transformers gives weights that it does not find random values and only logs it. info: its loading report. new_head:
    whether a reward model may start with a new score layer (before training it must, measuring one makes no sense).
    """
    saved = ", ".join(getattr(model.config, "architectures", None) or ())
    if kind == "policy" and saved.endswith("ForSequenceClassification"):
        raise UserError(f"{name} is a reward model ({saved}), no policy: give a causal language model, or use the kind `reward`")
    reads_both_ways = getattr(model.config, "is_decoder", None) is False and type(model.config) in MODEL_FOR_MASKED_LM_MAPPING
    if kind == "policy" and reads_both_ways:
        raise UserError(f"{name} is an encoder ({type(model).__name__}) and can't be a policy; it can be a reward model")
    missing = sorted(info["missing_keys"])
    if kind == "reward":
        new = [key for key in missing if _is_head(key, model)]
        if new and not new_head:
            raise UserError(
                f"{name} has no score layer ({_some(new)} would be random): it is no reward model but {saved or 'a model without head'}. "
                "Give one that `mmpo train reward` wrote, or use the kind `policy`"
            )
        missing = [key for key in missing if key not in new]
    if missing:
        raise UserError(
            f"{name} lacks {len(missing)} of the weights that {type(model).__name__} has ({_some(missing)}): the folder is half-written "
            "or of another kind of model; save or download it again"
        )
    shapes = [f"{key} {tuple(there)}, the configuration says {tuple(here)}" for key, there, here in sorted(info["mismatched_keys"])]
    if shapes:
        raise UserError(
            f"{name}: weights do not fit: {_some(shapes)}. A reward model has one score; weights and config.json must be of one model"
        )


def _is_head(key: str, model: Any) -> bool:
    """Whether a weight lies outside the body; poolers, which language models are saved without, belong to the head."""
    return not key.startswith(f"{model.base_model_prefix}.") or ".pooler." in key


def check_model(model: nn.Module, name: str, max_length: int) -> None:
    """Raises UserError where the model takes fewer positions than `max_length`, or has weights that are NaN or infinite."""
    limit = _positions(model)
    if limit is not None and limit < max_length:
        raise UserError(
            f"{name} takes {limit} tokens at most and --max-length is {max_length}: give --max-length {limit} and a "
            f"--max-prompt-length below it (such as {limit // 2})"
        )
    bad = [key for key, value in model.state_dict().items() if not _finite(value)]
    if bad:
        raise UserError(
            f"{len(bad)} of the tensors of {name} hold NaN or infinite values ({_some(bad)}): nothing can be computed with it; "
            "take an earlier checkpoint, or save or download it again"
        )


def _positions(model: nn.Module) -> int | None:
    config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    limit = getattr(config, "max_position_embeddings", None)
    for key, module in model.named_modules():
        # RoBERTa counts its positions from behind the padding index: 514 rows for 512 tokens.
        if key.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module.num_embeddings - module.padding_idx - 1
    return limit if isinstance(limit, int) and limit > 0 else None


@torch.no_grad()
def _finite(value: Any) -> bool:
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.is_meta:
        return True
    return bool(torch.isfinite(value.sum())) or bool(torch.isfinite(value).all())  # the sum is quick and may overflow


def check_ids(prompts: Iterable[PromptPairs], model: Any, tokenizer: Any, name: str) -> None:
    """Raises UserError where a text has a token that the model has no embedding for."""
    size = model.get_input_embeddings().num_embeddings
    largest = [int(np.max(item.ids)) for prompt in prompts for item in prompt.completions]
    beyond = [token for token in largest if token >= size]
    if beyond:
        token = tokenizer.convert_ids_to_tokens(beyond[0])
        raise UserError(
            f"{len(beyond)} completions have tokens that {name} does not know, such as {token!r} (number {beyond[0]}): it has "
            f"embeddings for 0 to {size - 1}, its tokenizer has {len(tokenizer)} tokens. The tokenizer is of another model; or grow "
            "the model first: model.resize_token_embeddings(len(tokenizer))"
        )


def check_same_vocabulary(tokenizer: Any, other: Any, name: str) -> None:
    """Raises UserError where a number means another token to the reference than to the policy; either may add tokens."""
    mine, theirs = ({number: token for token, number in each.get_vocab().items()} for each in (tokenizer, other))
    shared = mine.keys() & theirs.keys()
    differing = sum(mine[number] != theirs[number] for number in shared)
    if differing:
        raise UserError(
            f"the reference {name} has another vocabulary than the policy ({differing} of {len(shared)} numbers mean another token): "
            "log-probabilities of the same texts can't be compared; name a reference of the same family"
        )


def check_plan(plan: ExecutionPlan, model: Any, options: TrainOptions) -> None:
    """Warns where a causal model gets rows by itself. Raises UserError for what several processes can't run."""
    plain = plain_model(model)
    causal = options.kind == "policy" or hasattr(plain, "score")  # an encoder never gets trees, and can't be a policy
    if options.layout == "auto" and plan.layout == "rows" and causal:
        warn(
            [
                f"tree batches are not exact for this model ({plan.reason}): it trains on rows, each prompt computed with every completion"
            ]
        )
    if options.kind == "policy" and uses_fsdp() and plan.head == "whole":
        raise UserError(
            f"FSDP is not supported for {type(plain).__name__}, whose logits only its own forward pass gives: leave out FSDP "
            "(`accelerate launch --multi_gpu`), and save memory with --lora, --gradient-checkpointing or --bf16"
        )
    idle = idle_parameters(plain) if options.gradient_checkpointing and rank_and_world()[1] > 1 and not uses_fsdp() else []
    if idle:
        raise UserError(
            f"{len(idle)} trainable parameters of {type(plain).__name__} are not for text ({_some(idle)}) and get no gradients, which "
            "several processes with --gradient-checkpointing can't do with: leave that out, or take one process or a model for text only"
        )


def idle_parameters(model: Any) -> list[str]:
    """The trainable parameters of a model of text and images that texts do not pass through; of other models none."""
    config = model.config
    if config.get_text_config() is config:
        return []
    layers = [model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings(), getattr(model, "score", None)]
    used = {id(value) for layer in layers if layer is not None for value in layer.parameters()}
    return [name for name, value in model.named_parameters() if value.requires_grad and id(value) not in used]


def check_checkpoint(checkpoint: str | Path | None, model: Any) -> None:
    """Raises UserError where a checkpoint is of a model of another type or size, which could only fail while loading.

    Compared are the sizes that both configurations name, and of an adapter its rank.
    """
    if checkpoint is None:
        return
    adapter = getattr(model, "peft_config", None)
    name = "config.json" if adapter is None else "adapter_config.json"
    try:
        saved = json.loads((Path(checkpoint) / name).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if not any((Path(checkpoint) / other).exists() for other in ("config.json", "adapter_config.json")):
            return  # sharded: no configuration beside it
        wanted = "a whole model" if adapter is None else "a LoRA adapter"
        raise UserError(f"{checkpoint} does not hold {wanted}, which this run trains; {_ELSEWHERE}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{checkpoint}/{name} can't be read: {error}; remove that checkpoint") from error
    now = json.loads(model.config.to_json_string(use_diff=False)) if adapter is None else {"r": next(iter(adapter.values())).r}
    differing = [f"{key} {saved[key]}, this run has {value}" for key, value in sorted(now.items()) if _differs(key, value, saved)]
    if differing:
        raise UserError(f"{checkpoint} is of another model: {'; '.join(differing)}; {_ELSEWHERE}")


_ELSEWHERE = "give another --out, or --no-resume to start again"


def _differs(key: str, value: Any, saved: Mapping[str, Any]) -> bool:
    is_size = isinstance(value, int) and not isinstance(value, bool) and not key.endswith("_token_id")
    return key in saved and (is_size or key == "model_type") and saved[key] != value


def _some(names: Sequence[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
