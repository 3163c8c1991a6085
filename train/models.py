"""Loading what a run names: `tiny`, a folder, or a Hugging Face name, as a policy or a reward model, with its
tokenizer.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from mmpo.pipeline.errors import UserError
from mmpo.train.options import TrainOptions
from mmpo.train.tiny import tiny_model, tiny_tokenizer

__all__ = ["add_lora", "load_model", "load_pretrained"]

_CLASSES = {"policy": AutoModelForCausalLM, "reward": AutoModelForSequenceClassification}


def load_model(options: TrainOptions, pairs: pa.Table) -> tuple[Any, Any]:
    """The model that training starts from, in float32, and its tokenizer. `pairs`: the text that `tiny` is built
    from.
    """
    if options.model != "tiny":
        torch.manual_seed(options.seed)  # the new score layer of a reward model
        return load_pretrained(options.kind, options.model, trust_remote_code=options.trust_remote_code)
    tokenizer = tiny_tokenizer(_texts(pairs), options.tiny_vocab)
    size, layers = options.tiny_size, options.tiny_layers
    return tiny_model(options.kind, tokenizer, size=size, layers=layers, seed=options.seed), tokenizer


def load_pretrained(kind: str, name: str, *, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """Model and tokenizer from a folder or the Hub. Raises UserError saying what was tried where there is none."""
    options: dict[str, Any] = {"dtype": torch.float32, "trust_remote_code": trust_remote_code}
    if kind == "reward":
        options["num_labels"] = 1
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
        model = _CLASSES[kind].from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        where = "folder" if Path(name).exists() else "Hugging Face model"
        raise UserError(f"cannot load the {where} {name!r} as a {kind} model: {lines[0]}") from error
    return model, tokenizer


def add_lora(model: Any, rank: int, kind: str) -> Any:
    """The model with a trainable LoRA adapter of this rank on all its linear layers; everything else is frozen."""
    from peft import LoraConfig, TaskType, get_peft_model

    task = TaskType.CAUSAL_LM if kind == "policy" else TaskType.SEQ_CLS
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", lora_dropout=0.0, task_type=task)
    return get_peft_model(model, config)


def _texts(pairs: pa.Table) -> Iterator[str]:
    """Every distinct prompt and completion once, in the order of their ids."""
    for identity, column in (("prompt_id", "prompt"), ("chosen_id", "chosen"), ("rejected_id", "rejected")):
        _, rows = np.unique(np.array(pairs[identity].to_pylist(), dtype=object), return_index=True)
        for messages in pairs[column].take(pa.array(rows)).to_pylist():
            yield from (message["content"] for message in messages)
