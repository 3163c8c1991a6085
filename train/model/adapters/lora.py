"""LoRA adapters (Hu et al. 2021, arXiv 2106.09685): which modules get one, and adding them."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from mmpo.pipeline.errors import UserError, closest
from mmpo.train.messages import some_ids
from mmpo.train.options import ALL_LINEAR


def add_lora(
    model: Any, rank: int, kind: str, *, alpha: float | None = None, targets: str = ALL_LINEAR, dropout: float = 0.0
) -> Any:
    """The model with a trainable LoRA adapter of this rank on its linear modules; everything else is frozen.

    alpha: the adapter's change counts alpha / rank; default: 2 · rank. targets: as `check_targets` takes them. dropout: share of the
    adapter's inputs left out in training.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,  # type: ignore[arg-type]
        target_modules=ALL_LINEAR if targets == ALL_LINEAR else _names(targets),
        lora_dropout=dropout,
        task_type=TaskType.CAUSAL_LM if kind == "policy" else TaskType.SEQ_CLS,
    )
    with peft_asks_by_the_old_name():
        return get_peft_model(model, config)


def check_targets(model: Any, targets: str, name: str) -> None:
    """Raises UserError where a model has no linear module whose name ends so; near names are offered.

    targets: ALL_LINEAR, or ends of names, comma-separated: "q_proj,mlp.up_proj". The output layer gets no adapter.
    """
    if targets == ALL_LINEAR:
        return
    heads = [model.get_output_embeddings(), getattr(model, "score", None), getattr(model, "classifier", None)]
    outside = {id(part) for head in heads if head is not None for part in head.modules()}
    modules = dict(model.named_modules())
    linear = [full for full, module in modules.items() if isinstance(module, nn.Linear | Conv1D) and id(module) not in outside]
    last = list(dict.fromkeys(full.rpartition(".")[2] for full in linear))
    if not _names(targets):
        raise UserError(f"lora_targets {targets!r} names no module. {name} has linear modules called {some_ids(last, 20)}")
    for target in _names(targets):
        if any(_ends(full, target) for full in linear):
            continue
        other = next((module for full, module in modules.items() if _ends(full, target)), None)
        what = (
            ""
            if other is None
            else f"; what is called so is {'the output layer' if id(other) in outside else type(other).__name__}"
        )
        parts = target.count(".") + 1
        near = closest(target, list(dict.fromkeys(".".join(full.split(".")[-parts:]) for full in linear)))
        raise UserError(
            f"lora_targets: {name} has no linear module called {target!r}{what}{near or '.'} It has: {some_ids(last, 20)} (in all layers; "
            f"a longer end of the name says where, as {linear[0]}), or {ALL_LINEAR}"
        )


def _names(targets: str) -> list[str]:
    return [part.strip() for part in targets.split(",") if part.strip()]


def _ends(full: str, end: str) -> bool:
    return full == end or full.endswith(f".{end}")


@contextmanager
def peft_asks_by_the_old_name() -> Iterator[None]:
    """Without the warning that peft 0.21 causes in transformers 5.23 (it asks each model for `is_gradient_checkpointing`), and without
    what it says of GPT-2's modules, which it treats rightly.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False but", UserWarning)
        yield
