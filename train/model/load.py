"""Loading what a run names: `tiny`, a folder, or a Hugging Face name, as a policy or a reward model, with its tokenizer; and what is
checked of a model before it is trained or measured: is it whole, of the right kind, and does the run fit it.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import transformers
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import get_session
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from mmpo.pipeline.errors import MmpoError, UserError
from mmpo.pipeline.storage import MANIFEST
from mmpo.train.data import PromptPairs, ask_behind, choose_template
from mmpo.train.distributed import rank_and_world, uses_fsdp
from mmpo.train.messages import some_ids, warn
from mmpo.train.model.adapters import check_targets, peft_asks_by_the_old_name, quantisation
from mmpo.train.model.attach import plain_model
from mmpo.train.model.attention import ExecutionPlan
from mmpo.train.model.layers import check_top, keep_lowest
from mmpo.train.model.tiny import tiny_model, tiny_tokenizer
from mmpo.train.options import TrainOptions

_CLASSES = {"policy": AutoModelForCausalLM, "reward": AutoModelForSequenceClassification}
HUB_SECONDS = 10
"""How long the Hub is waited for when it is asked whether it is there."""
_ADAPTER = "adapter_config.json"
_FETCHED = "models"
"""The folder that `make models` fills."""
_ELSEWHERE = "give another --out, or --no-resume to start again"


def load_model(options: TrainOptions, pairs: pa.Table) -> tuple[Any, Any]:
    """The model that training starts from, in float32, and its tokenizer with the chat template that was chosen.

    `pairs`: the text that `tiny` is built from. Raises UserError for a model that can't be trained as it is.
    """
    if options.model == "tiny":
        tokenizer = tiny_tokenizer(_texts(pairs), options.tiny_vocab)
        model = tiny_model(options.kind, tokenizer, size=options.tiny_size, layers=options.tiny_layers, seed=options.seed)
    else:
        torch.manual_seed(options.seed)  # the new score layer of a reward model
        trust = options.trust_remote_code
        few_bits = quantisation(options.load_in, bf16=options.bf16)
        model, tokenizer = load_pretrained(options.kind, options.model, trust_remote_code=trust, new_head=True, few_bits=few_bits)
        if options.layers is not None:
            keep_lowest(model, options.layers)
    if options.top_layers is not None:
        check_top(model, options.top_layers)
    if options.lora:
        check_targets(model, options.lora_targets, options.model)
    choose_template(tokenizer, options.chat_template)
    if options.ask is not None:
        ask_behind(tokenizer, options.ask)
    check_model(model, options.model, options.max_length)
    return model, tokenizer


def load_pretrained(
    kind: str, name: str, *, trust_remote_code: bool = False, new_head: bool = False, few_bits: Mapping[str, Any] | None = None
) -> tuple[Any, Any]:
    """Model (float32) and tokenizer from a folder or the Hub; an adapter's folder gives its base with the adapter
    merged.

    new_head: a reward model may start with a new, random score layer. few_bits: of `quantisation`. Code that comes with a model
    is run only where `trust_remote_code` says so. Raises UserError saying what was tried where there is no such model or it isn't whole.
    """
    check_hub(name)
    where = "folder" if Path(name).exists() else "Hugging Face model"
    tried = f"cannot load the {where} {name!r} as a {kind} model"
    with _errors_named(tried, name), _quiet():
        if (Path(name) / _ADAPTER).is_file():
            if few_bits:
                raise UserError(
                    f"{name} is an adapter, whose sum with its base can't be loaded in few bits: "
                    f"`mmpo merge {quote(str(name))} --out DIR` first"
                )
            return _with_adapter(kind, Path(name), trust_remote_code=trust_remote_code, new_head=new_head)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
        options: dict[str, Any] = {"num_labels": 1} if kind == "reward" else {}
        if kind == "reward":
            _check_one_label(AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code), name)
        model, info = _CLASSES[kind].from_pretrained(
            name,
            dtype=torch.float32,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, with names
            **options,
            **(few_bits or {}),
        )
        if getattr(model, "_hf_peft_config_loaded", False):
            raise UserError(
                f"{name} is an adapter on the Hub: download it (`hf download {name} --local-dir DIR`) and name that folder"
            )
        check_loaded(kind, name, model, info, new_head=new_head)
    return model, tokenizer


def _check_one_label(config: Any, name: str) -> None:
    labels = list((config.id2label or {}).values())
    if len(labels) > 1 and any(saved.endswith("ForSequenceClassification") for saved in config.architectures or ()):
        raise UserError(
            f"{name} is a classifier with {len(labels)} labels ({some_ids(map(str, labels))}), and a reward model has one score: which of "
            "them, or which difference, would be the grade is nobody's guess. Name a model with one label (num_labels 1)"
        )


def load_frozen(name: str, *, trust_remote_code: bool = False) -> tuple[Any, Any, str]:
    """Any model of texts (float32, in evaluation mode, without gradients) for its hidden states, its tokenizer, and its kind:
    "policy", "reward", or "encoder" for one that has no output layer. Raises UserError as `load_pretrained` does, and for a model that
    makes one text of another, whose two stacks of layers have no row in common.
    """
    with _errors_named(f"cannot load {name!r} for its hidden states", name), _quiet():
        tokenizer, kind = None, kind_of(name, trust_remote_code=trust_remote_code)
        if kind == "encoder":
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
            options = {"dtype": torch.float32, "trust_remote_code": trust_remote_code, "output_loading_info": True}
            model, info = AutoModel.from_pretrained(name, **options)
            missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)
            if missing:
                raise UserError(
                    f"{name} lacks {len(missing)} of the weights that {type(model).__name__} has ({some_ids(missing, 3)}): the folder is "
                    "half-written or of another kind of model; save or download it again"
                )
    if tokenizer is None:
        model, tokenizer = load_pretrained(kind, name, trust_remote_code=trust_remote_code)
    check_model(model, name, 1)
    return model.eval().requires_grad_(False), tokenizer, kind


def kind_of(name: str, *, trust_remote_code: bool = False) -> str:
    """What a folder or a Hugging Face name holds: "policy", "reward", or "encoder" for a model without output layer. Raises UserError."""
    check_hub(name)
    with _errors_named(f"cannot load {name!r}", name), _quiet():
        if (Path(name) / _ADAPTER).is_file():
            return "policy" if "CAUSAL" in str(json.loads((Path(name) / _ADAPTER).read_text()).get("task_type")) else "reward"
        return _kind_of(AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code), name)


def _kind_of(config: Any, name: str) -> str:
    if config.is_encoder_decoder:
        raise UserError(
            f"{name} ({config.model_type}) reads one text and writes another: it has no hidden states of a prompt and its reply in one "
            "row. Name a language model or an encoder"
        )
    if any(saved.endswith("ForSequenceClassification") for saved in config.architectures or ()):
        return "reward"
    both_ways = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not config.is_decoder
    return "policy" if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not both_ways else "encoder"


def load_reference(name: str, tokenizer: Any, max_length: int, *, trust_remote_code: bool = False) -> Any:
    """A policy's reference model, float32. Raises UserError where its vocabulary isn't that of the policy's tokenizer,
    or it takes fewer than `max_length` tokens.
    """
    model, own = load_pretrained("policy", name, trust_remote_code=trust_remote_code)
    check_same_vocabulary(tokenizer, own, name)
    check_model(model, name, max_length)
    return model


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
    with peft_asks_by_the_old_name():
        model = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()  # type: ignore[operator]
    # No place holds this model, and an adapter on top of it must not name the base without this one.
    model.name_or_path = model.config.name_or_path = ""
    model.requires_grad_(True)  # peft had frozen the base, and a run that starts from this would train nothing
    if any((folder / part).is_file() for part in ("tokenizer.json", "tokenizer_config.json")):
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    return model, tokenizer


def missing_folder(name: str) -> bool:
    """Whether a name can only be that of a folder, no model of the Hub (where nobody is called `models`), and there is none."""
    path = Path(name)
    ours = len(path.parts) == 2 and path.parts[0] == _FETCHED
    return not path.exists() and (ours or path.is_absolute() or name.startswith((".", "~")) or len(path.parts) > 2)


def cached(name: str) -> bool:
    """Whether a model of the Hub is on this machine already."""
    try:
        return any(isinstance(try_to_load_from_cache(name, file), str) for file in ("config.json", _ADAPTER))
    except HFValidationError:
        return False


def could_be_model(name: str) -> bool:
    """Whether a name is that of something here or in the cache, or may be that of a model of the Hub, which has an owner."""
    return Path(name).exists() or (not missing_folder(name) and ("/" in name or cached(name)))


def check_hub(name: str) -> None:
    """Raises UserError at once where a name is no folder here, no model in the cache, and the Hub can't be asked: the libraries would try
    for half a minute, for every file.
    """
    if Path(name).exists() or missing_folder(name) or cached(name):
        return
    nothing = f"there is no folder {name!r} here, and no model of that name in the cache of Hugging Face's"
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{nothing}; HF_HUB_OFFLINE is set, so that none is looked for: name a folder, or unset it")
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS)
    except Exception as error:  # whichever client it is: requests' or httpx's
        raise UserError(f"{nothing}; {constants.ENDPOINT} can't be reached ({error}): name a folder, or connect") from error


def disable_dropout(model: nn.Module) -> bool:
    """Sets every dropout rate of the modules, not of the saved config, to 0: it would make a policy differ from its own
    reference at the first step. An adapter's own dropout stays; whether there is any is what this returns.

    Attention dropout is a plain float attribute in transformers, so modules' attributes are searched by name.
    """
    own = {module for name, adapter in model.named_modules() if name.endswith(".lora_dropout") for module in adapter.modules()}
    for module in (module for module in model.modules() if module not in own):
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
    return any(isinstance(module, nn.Dropout) and module.p > 0 for module in own)


def _check_folder(tried: str, path: Path) -> None:
    """Raises UserError for a file, and for a folder that is none of a model: the libraries look for a tokenizer first and miss that."""
    if path.is_file():
        raise UserError(f"{tried}: it is a file; name the folder that holds config.json, weights and tokenizer")
    if not path.is_dir() or any((path / name).is_file() for name in ("config.json", _ADAPTER)):
        return
    if (path / MANIFEST).is_file():
        raise UserError(f"{tried}: it is a dataset folder of mmpo, no model")
    inside = some_ids(sorted(child.name for child in path.iterdir())) or "nothing"
    below = sorted(child.parent.name for child in path.glob("*/config.json"))
    hint = f". Models stand in it: {some_ids([str(path / name) for name in below])}" if below else ""
    raise UserError(f"{tried}: it holds no config.json, as every model's folder does (what is there: {inside}){hint}")


@contextmanager
def _errors_named(tried: str, name: str) -> Iterator[None]:
    """Whatever a model's files make the libraries raise becomes a UserError: broken files raise errors of many kinds."""
    if missing_folder(name):  # before the Hub is asked, over and over
        hint = f"; `make models` fetches small pretrained models into {_FETCHED}" if Path(name).parts[0] == _FETCHED else ""
        raise UserError(f"{tried}: there is no such folder{hint}")
    _check_folder(tried, Path(name))
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
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        inside = some_ids(sorted(child.name for child in Path(name).iterdir())) or "nothing" if Path(name).is_dir() else ""
        broken = f" (what is there: {inside}; is it whole?)" if inside else ""
        raise UserError(f"{tried}: {lines[0]}{broken}") from error


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


# --- checks --------------------------------------------------------------------------------------------------------


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
        # outside of the body; poolers, which language models are saved without, belong to the head
        new = [key for key in missing if not key.startswith(f"{model.base_model_prefix}.") or ".pooler." in key]
        if new and not new_head:
            or_policy = ", or use the kind `policy`" if saved.endswith(("ForCausalLM", "LMHeadModel")) else ""
            raise UserError(
                f"{name} has no score layer ({some_ids(new, 3)} would be random): it is no reward model but "
                f"{saved or 'a model without head'}. Give one that `mmpo train reward` wrote{or_policy}"
            )
        missing = [key for key in missing if key not in new]
    if missing:
        raise UserError(
            f"{name} lacks {len(missing)} of the weights that {type(model).__name__} has ({some_ids(missing, 3)}): the folder is "
            "half-written or of another kind of model; save or download it again"
        )
    shapes = [f"{key} {tuple(there)}, the configuration says {tuple(here)}" for key, there, here in sorted(info["mismatched_keys"])]
    if shapes:
        raise UserError(
            f"{name}: weights do not fit: {some_ids(shapes, 3)}. A reward model has one score; weights and config.json must be of one model"
        )


def check_model(model: nn.Module, name: str, max_length: int) -> None:
    """Raises UserError where the model takes fewer positions than `max_length`, or has weights that are NaN or infinite."""
    limit = positions_of(model)
    if limit is not None and limit < max_length:
        raise UserError(
            f"{name} takes {limit} tokens at most and --max-length is {max_length}: give --max-length {limit} and a "
            f"--max-prompt-length below it (such as {limit // 2})"
        )
    bad = [key for key, value in model.state_dict().items() if not _finite(value)]
    if bad:
        raise UserError(
            f"{len(bad)} of the tensors of {name} hold NaN or infinite values ({some_ids(bad, 3)}): nothing can be computed with it; "
            "take an earlier checkpoint, or save or download it again"
        )


def positions_of(model: nn.Module) -> int | None:
    """How many tokens the model takes at most; None where it does not say."""
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


def check_ids(prompts: Iterable[PromptPairs], model: Any, tokenizer: Any, name: str, known: int | None = None) -> None:
    """Raises UserError where a text has a token that the model has no embedding for. known: the largest id of all, where that is known."""
    size = model.get_input_embeddings().num_embeddings
    if known is not None and known < size:
        return
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
            f"{len(idle)} trainable parameters of {type(plain).__name__} are not for text ({some_ids(idle, 3)}) and get no gradients, "
            "which several processes with --gradient-checkpointing can't do with: leave it out, take one process, or a model for text only"
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


def _differs(key: str, value: Any, saved: Mapping[str, Any]) -> bool:
    is_size = isinstance(value, int) and not isinstance(value, bool) and not key.endswith("_token_id")
    return key in saved and (is_size or key == "model_type") and saved[key] != value
