"""What reference log-probabilities depend on besides the token ids, as digests in parts, so that a difference has a name."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, nn

from mmpo.pipeline.errors import MmpoError
from mmpo.pipeline.storage import text_digest
from mmpo.train.model.attach import plain_model

VERSION = 1
"""Of the cache's format and of how completions are scored; a change that alters values must raise it."""

_CONFIG_NOISE = {
    *("_name_or_path", "name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype"),
    *("use_cache", "return_dict", "output_hidden_states", "output_attentions", "initializer_range"),
    *("id2label", "label2id", "num_labels", "problem_type", "pad_token_id", "bos_token_id", "eos_token_id"),
}
"""Keys of a configuration that change no log-probability; every other key counts, known to us or not."""
_TOKENISING = ("added_tokens", "normalizer", "pre_tokenizer", "model")
"""Parts of a fast tokenizer that decide which ids a text gets; truncation and padding change with every call."""
_WRAPPED = {"base_layer", "original_module"}
"""Where the adapter layers of peft keep the module that they stand in for."""


@dataclass(frozen=True)
class Fingerprint:
    """Digests (32 hexadecimal digits) of weights, configuration, tokenizer and chat template; precision is "full" or
    "bf16".
    """

    weights: str
    config: str
    tokenizer: str
    template: str
    precision: str
    version: int = VERSION

    @property
    def name(self) -> str:
        """The digest of all parts, 32 hexadecimal digits: a file name."""
        return _digest(asdict(self))

    def as_dict(self) -> dict[str, Any]:
        """The parts as JSON values."""
        return asdict(self)

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """Every part in which a stored fingerprint differs: what it says there, and what this one says.

        >>> a = Fingerprint("ab" * 16, "c" * 32, "d" * 32, "e" * 32, "full")
        >>> a.differences({**a.as_dict(), "weights": "cd" * 16, "precision": "bf16"})
        ["weights cdcdcdcd, this run's abababab", "precision bf16, this run's full"]
        """
        mine = asdict(self)
        names = [item.name for item in fields(self) if other.get(item.name) != mine[item.name]]
        return [f"{name} {str(other.get(name, 'not given'))[:8]}, this run's {str(mine[name])[:8]}" for name in names]


def fingerprint_of(model: nn.Module, tokenizer: Any, *, bf16: bool = False) -> Fingerprint:
    """The fingerprint of a reference. Of a peft model it is the base model's: the reference has its adapter switched off.

    tokenizer: the one that the texts were rendered with; None where they were rendered elsewhere. bf16: whether it
    computes in bfloat16.
    """
    return Fingerprint(
        weights=weights_digest(model),
        config=config_digest(model),
        tokenizer=tokenizer_digest(tokenizer),
        template=_digest(getattr(tokenizer, "chat_template", None)),
        precision="bf16" if bf16 else "full",
    )


def tokenizer_digest(tokenizer: Any) -> str:
    """The digest of what decides which ids a text gets, without the chat template."""
    return _digest(_tokenizer_facts(tokenizer))


def config_digest(model: nn.Module) -> str:
    """The digest of a model's class and of its configuration, without what changes no value."""
    plain = plain_model(model)
    config = getattr(plain, "config", None)
    return _digest({"class": type(plain).__name__, "config": _without_noise(config.to_dict()) if config is not None else {}})


@torch.no_grad()
def weights_digest(model: nn.Module) -> str:
    """blake2b-128 of the base model's parameters and saved buffers, their names and types, in hexadecimal.

    One tensor at a time is brought to the CPU; tensors that share memory (tied weights) are read once. Raises MmpoError
    where an adapter is merged into the weights, which then are no longer the base model's.
    """
    whole = blake2b(digest_size=16)
    read: dict[tuple[Any, ...], bytes] = {}
    for name, value in sorted(_base_tensors(model), key=lambda item: item[0]):
        same = (value.device, value.data_ptr(), value.dtype, tuple(value.shape), value.stride())
        if same not in read or not value.numel():
            own = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()  # shares its memory where it can
            read[same] = blake2b(own, digest_size=16).digest()
        whole.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode() + read[same])
    return whole.hexdigest()


def identity(model: nn.Module, tokenizer: Any) -> dict[str, Any]:
    """What a run must find again to go on: class, shape and weights of the model, vocabulary and chat template, as JSON
    values. Of a reward model the weights are the body's: its score layer may be new.
    """
    body = getattr(model, str(model.base_model_prefix), model) if hasattr(model, "num_labels") else model
    shapes = "\n".join(sorted(f"{key} {tuple(value.shape)}" for key, value in model.state_dict().items()))
    vocabulary = sorted(tokenizer.get_vocab().items())
    return {
        "architecture": type(model).__name__,
        "parameters": sum(value.numel() for value in model.parameters()),
        "shapes": text_digest(shapes),
        "weights": weights_digest(body),
        "vocabulary": _digest(vocabulary),
        "chat_template": _digest(tokenizer.chat_template),
    }


def _base_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of the base model, as they are without an adapter."""
    plain = plain_model(model)
    holders: dict[str, str] = {}
    if hasattr(model, "disable_adapter"):  # not `peft_config`: a model that was loaded with its adapter can't switch it off
        for name, module in plain.named_modules():
            if getattr(module, "merged", False):
                raise MmpoError("an adapter is merged into the reference's weights: call unmerge_adapter() before training")
            held = [key for key in module._modules if key in _WRAPPED]
            if held:
                holders[name] = held[0]
    for name, value in plain.state_dict().items():
        for holder, held in reversed(holders.items()):  # inner ones first
            if name.startswith(f"{holder}."):
                part, _, rest = name.removeprefix(f"{holder}.").partition(".")
                if part != held:
                    break  # the adapter's own
                name = f"{holder}.{rest}"
        else:
            if isinstance(value, Tensor):
                yield name, value


def _without_noise(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {str(key): _without_noise(value) for key, value in values.items() if key not in _CONFIG_NOISE}
    return values


def _tokenizer_facts(tokenizer: Any) -> Any:
    """What decides which ids a text gets; the padding token is none of it."""
    if tokenizer is None:
        return None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        stored = json.loads(backend.to_str())
        how: dict[str, Any] = {name: stored.get(name) for name in _TOKENISING}
    else:
        how = {"class": type(tokenizer).__name__, "vocab": tokenizer.get_vocab()}
    special = {name: str(value) for name, value in tokenizer.special_tokens_map.items() if name != "pad_token"}
    return {**how, "special": special}


def _digest(value: Any) -> str:
    """The digest of a JSON value, whatever the order of its keys."""
    return text_digest(json.dumps(value, sort_keys=True, default=str))
