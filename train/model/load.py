"""Loading what a run names: `tiny`, a folder, or a Hugging Face name, as a policy or a reward model, with its
tokenizer.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from mmpo.pipeline.errors import MmpoError, UserError
from mmpo.train.data import choose_template
from mmpo.train.model.checks import check_loaded, check_model, check_same_vocabulary
from mmpo.train.model.tiny import tiny_model, tiny_tokenizer
from mmpo.train.options import TrainOptions

_CLASSES = {"policy": AutoModelForCausalLM, "reward": AutoModelForSequenceClassification}
_ADAPTER = "adapter_config.json"


def load_model(options: TrainOptions, pairs: pa.Table) -> tuple[Any, Any]:
    """The model that training starts from, in float32, and its tokenizer with the chat template that was chosen.

    `pairs`: the text that `tiny` is built from. Raises UserError for a model that can't be trained as it is.
    """
    if options.model == "tiny":
        tokenizer = tiny_tokenizer(_texts(pairs), options.tiny_vocab)
        size, layers = options.tiny_size, options.tiny_layers
        model = tiny_model(options.kind, tokenizer, size=size, layers=layers, seed=options.seed)
    else:
        torch.manual_seed(options.seed)  # the new score layer of a reward model
        trust = options.trust_remote_code
        model, tokenizer = load_pretrained(options.kind, options.model, trust_remote_code=trust, new_head=True)
    choose_template(tokenizer, options.chat_template)
    check_model(model, options.model, options.max_length)
    return model, tokenizer


def load_pretrained(kind: str, name: str, *, trust_remote_code: bool = False, new_head: bool = False) -> tuple[Any, Any]:
    """Model (float32) and tokenizer from a folder or the Hub; an adapter's folder gives its base with the adapter
    merged.

    new_head: a reward model may start with a new, random score layer. Code that comes with a model is run only where
    `trust_remote_code` says so. Raises UserError saying what was tried where there is no such model or it isn't whole.
    """
    where = "folder" if Path(name).exists() else "Hugging Face model"
    tried = f"cannot load the {where} {name!r} as a {kind} model"
    with _errors_named(tried, name), _quiet():
        if (Path(name) / _ADAPTER).is_file():
            return _with_adapter(kind, Path(name), trust_remote_code=trust_remote_code, new_head=new_head)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
        options: dict[str, Any] = {"num_labels": 1} if kind == "reward" else {}
        model, info = _CLASSES[kind].from_pretrained(
            name,
            dtype=torch.float32,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, with names
            **options,
        )
        if getattr(model, "_hf_peft_config_loaded", False):
            raise UserError(
                f"{name} is an adapter on the Hub: download it (`hf download {name} --local-dir DIR`) and name that folder"
            )
        check_loaded(kind, name, model, info, new_head=new_head)
    return model, tokenizer


def load_reference(name: str, tokenizer: Any, max_length: int, *, trust_remote_code: bool = False) -> Any:
    """A policy's reference model, float32. Raises UserError where its vocabulary isn't that of the policy's tokenizer,
    or it takes fewer than `max_length` tokens.
    """
    model, own = load_pretrained("policy", name, trust_remote_code=trust_remote_code)
    check_same_vocabulary(tokenizer, own, name)
    check_model(model, name, max_length)
    return model


def add_lora(model: Any, rank: int, kind: str) -> Any:
    """The model with a trainable LoRA adapter of this rank on all its linear layers; everything else is frozen."""
    from peft import LoraConfig, TaskType, get_peft_model

    task = TaskType.CAUSAL_LM if kind == "policy" else TaskType.SEQ_CLS
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", lora_dropout=0.0, task_type=task)
    return get_peft_model(model, config)


def _with_adapter(kind: str, folder: Path, *, trust_remote_code: bool, new_head: bool) -> tuple[Any, Any]:
    """The adapter's base model with the adapter merged, and the tokenizer beside the adapter or else the base's."""
    from peft import PeftModel
    from safetensors import safe_open

    config = json.loads((folder / _ADAPTER).read_text(encoding="utf-8"))
    base = config.get("base_model_name_or_path") or ""
    for place in (folder, folder.parent):  # beside a checkpoint
        if not base and (place / "reference" / "config.json").is_file():
            base = str(place / "reference")  # a model that no other place has
    if not base:
        raise UserError(
            f"{folder} is an adapter that does not say of which model: fill in base_model_name_or_path in its {_ADAPTER}"
        )
    with safe_open(folder / "adapter_model.safetensors", "pt") as weights:
        own_head = any(".score." in key or ".classifier." in key for key in weights.keys())  # noqa: SIM118 (no mapping)
    try:
        model, tokenizer = load_pretrained(kind, base, trust_remote_code=trust_remote_code, new_head=new_head or own_head)
    except UserError as error:
        raise UserError(f"{folder} is an adapter of {base!r}, which is needed too: {error}") from error
    model = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()  # type: ignore[operator]
    # No place holds this model, and an adapter on top of it must not name the base without this one.
    model.name_or_path = model.config.name_or_path = ""
    model.requires_grad_(True)  # peft had frozen the base, and a run that starts from this would train nothing
    if any((folder / part).is_file() for part in ("tokenizer.json", "tokenizer_config.json")):
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    return model, tokenizer


def missing_folder(name: str) -> bool:
    """Whether a name can only be that of a folder, no model of the Hub, and there is none."""
    path = Path(name)
    return not path.exists() and (path.is_absolute() or name.startswith((".", "~")) or len(path.parts) > 2)


def disable_dropout(model: nn.Module) -> None:
    """Sets every dropout rate of the modules, not of the saved config, to 0: it would make a policy differ from its own
    reference at the first step.

    Attention dropout is a plain float attribute in transformers, so modules' attributes are searched by name.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


@contextmanager
def _errors_named(tried: str, name: str) -> Iterator[None]:
    """Whatever a model's files make the libraries raise becomes a UserError: broken files raise errors of many kinds."""
    try:
        yield
    except (MmpoError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "peft":
            raise
        if "trust_remote_code" in str(error):
            raise UserError(
                f"{tried}: it brings code of its own, which is not run unless asked: read that code, and give --trust-remote-code "
                "if you trust it"
            ) from error
        if missing_folder(name):
            raise UserError(f"{tried}: there is no such folder") from error
        path = Path(name)
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        broken = f" (what is there: {_inside(path)}; is it whole?)" if path.is_dir() else ""
        raise UserError(f"{tried}: {lines[0]}{broken}") from error


def _inside(folder: Path) -> str:
    names = sorted(child.name for child in folder.iterdir())
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "nothing"


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers' reports and bars switched off for a moment: what matters of them is checked and said by us."""
    level, bar = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        if bar:
            transformers.logging.enable_progress_bar()


def _texts(pairs: pa.Table) -> Iterator[str]:
    """Every distinct prompt and completion once, in the order of their ids."""
    for identity, column in (("prompt_id", "prompt"), ("chosen_id", "chosen"), ("rejected_id", "rejected")):
        _, rows = np.unique(np.array(pairs[identity].to_pylist(), dtype=object), return_index=True)
        for messages in pairs[column].take(pa.array(rows)).to_pylist():
            yield from (message["content"] for message in messages)
