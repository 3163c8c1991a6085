"""Weights and optimizer states of few bits, by bitsandbytes, which needs a GPU: what is asked of it, and whether it can be had here."""

import logging
from importlib.util import find_spec
from typing import Any

import torch

from mmpo.pipeline.errors import UserError
from mmpo.train.distributed import uses_fsdp
from mmpo.train.options import TrainOptions


def check_few_bits(options: TrainOptions) -> None:
    """Raises UserError, with the reason, where 4 or 8 bits are asked for and can't be had on this machine. Nothing is loaded for that."""
    asked = ([f"load_in {options.load_in}"] if options.load_in else []) + (
        [f"optimizer {options.optimizer}"] if "8bit" in options.optimizer else []
    )
    if not asked:
        return
    what, instead = " and ".join(asked), "leave it out" if len(asked) == 1 else "leave them out"
    if not torch.cuda.is_available():
        raise UserError(
            f"{what}: bitsandbytes computes with so few bits on a GPU, and torch finds none here: {instead}, or run this where there is one"
        )
    if find_spec("bitsandbytes") is None:
        raise UserError(f"{what}: the package bitsandbytes is not installed: pip install bitsandbytes, or {instead}")
    if uses_fsdp():
        raise UserError(f"{what}: FSDP splits weights that all have the same number of bits: leave out FSDP, or {instead}")


def quantisation(load_in: str | None, *, bf16: bool) -> dict[str, Any]:
    """What `from_pretrained` is told for weights of few bits; {} where none are asked for.

    4bit: NF4 with its scales quantised too (Dettmers et al. 2023, arXiv 2305.14314), multiplied in bfloat16 or float32. 8bit: LLM.int8()
    (Dettmers et al. 2022, arXiv 2208.07339), but without its computing large inputs apart: which of them are large is decided for a whole
    batch, so that a text's log-probability would depend on what else is in it, by more than a nat a token, and no log-ratio could be taken
    to a reference that is computed once. Modules that are not linear, and the output layer, stay as they are. The weights go to the device
    at once: they can't be moved there later.
    """
    if load_in is None:
        return {}
    from transformers import BitsAndBytesConfig

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it says of every layer that inputs are cast
    if load_in == "8bit":
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    else:
        compute = torch.bfloat16 if bf16 else torch.float32
        nf4: dict[str, Any] = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": compute}
        config = BitsAndBytesConfig(load_in_4bit=True, **nf4)
    place = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
    return {"quantization_config": config, "device_map": {"": place}}
