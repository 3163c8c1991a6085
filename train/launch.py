"""What launchers ask for by environment variables, checked before anything is loaded: what works, and what does not.

`accelerate launch` and `torchrun` start one process a device and tell each its place. accelerate adds what its
configuration file says; recipes/accelerate/fsdp.yaml is one that works.
"""

import os
from typing import Any

from mmpo.pipeline.errors import UserError, unknown_name

__all__ = ["check_launch", "check_splittable", "set_up_fsdp", "trackers", "uses_fsdp"]

_RECIPE = "see recipes/accelerate/fsdp.yaml"


def uses_fsdp() -> bool:
    """Whether the launcher asks for FSDP."""
    return _said("ACCELERATE_USE_FSDP") == "true"


def check_launch(bf16: bool) -> None:
    """Raises UserError for what training can't do exactly, or was never tried: DeepSpeed, FSDP 1, fp16, ..."""
    if _said("ACCELERATE_USE_DEEPSPEED") == "true":
        raise UserError(
            "DeepSpeed is not supported: its engine scales and accumulates gradients by itself, and a step of ours is one exact mean. "
            f"FSDP does the same job: {_RECIPE}"
        )
    if _said("ACCELERATE_USE_MEGATRON_LM") == "true" or _said("ACCELERATE_USE_PARALLELISM_CONFIG") == "true":
        raise UserError(f"models are not split by tensor, pipeline or context: use data parallelism or FSDP ({_RECIPE})")
    precision = _said("ACCELERATE_MIXED_PRECISION") or "no"
    if precision not in ("no", "fp32", "bf16"):
        raise UserError(
            f"mixed_precision {precision} is not supported: set it to 'no' for accelerate, and give --bf16 if the device has it"
        )
    if precision == "bf16" and not bf16:
        raise UserError("accelerate is set to mixed_precision bf16: give --bf16 too, or set it to 'no'")
    if uses_fsdp():
        _check_fsdp()


def _check_fsdp() -> None:
    wanted = {
        "FSDP_VERSION": ("1", "2", "fsdp_version"),
        "FSDP_STATE_DICT_TYPE": ("sharded_state_dict", "full_state_dict", "fsdp_state_dict_type"),
        # every process computes its share of the reference's values with a whole model before it is split
        "FSDP_CPU_RAM_EFFICIENT_LOADING": ("false", "false", "fsdp_cpu_ram_efficient_loading"),
    }
    for variable, (default, needed, key) in wanted.items():
        given = _said(variable) or default
        if given != needed:
            raise UserError(f"FSDP: {key} is {given}; training needs {needed}: {_RECIPE}")


def set_up_fsdp(accelerator: Any) -> None:
    """Makes the FSDP that the launcher asks for ours, before anything is wrapped.

    accelerate leaves it out on a CPU, without a word, and splits nothing; torch can do it. Its casts are taken out: they
    would round weights and sums to bfloat16 that stay in float32 on one device. What may be computed in bfloat16 is left
    to autocast, the same on one device and on many.
    """
    from accelerate import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import MixedPrecisionPolicy

    state = accelerator.state
    if state.distributed_type == DistributedType.MULTI_CPU:
        state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, FullyShardedDataParallelPlugin()
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP  # copied from there whenever a state is made
    if state.distributed_type == DistributedType.FSDP:
        state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()


def check_splittable(model: Any) -> None:
    """Raises UserError for a model that accelerate's FSDP can't split: it would split the embedding in its layer and again."""
    embedding = model.get_input_embeddings()
    for name, module in model.named_modules():
        if type(module).__name__ in (model._no_split_modules or ()) and any(part is embedding for part in module.modules()):
            raise UserError(
                f"FSDP can't split {type(model).__name__}: its embeddings lie in the block {name}, which is split as a whole. Encoders are "
                "small enough for data parallelism: start it with `accelerate launch --multi_gpu`"
            )


def trackers(names: str | None) -> list[str]:
    """The trackers of transformers that are named, comma-separated; "none" and nothing are none.

    Raises UserError for a name that transformers doesn't know and for one that isn't installed, listing those that are.
    """
    from transformers.integrations import integration_utils as known

    wanted = [name.strip() for name in (names or "none").split(",") if name.strip() and name.strip() != "none"]
    installed = known.get_available_reporting_integrations() + (["flyte"] if known.is_flytekit_available() else [])
    for name in wanted:
        listed = f"; installed here: {', '.join(installed) or 'none'}"
        if name not in known.INTEGRATION_TO_CALLBACK:
            raise UserError(f"report_to: {unknown_name('tracker', name, known.INTEGRATION_TO_CALLBACK)}{listed}")
        registered_here = not known.INTEGRATION_TO_CALLBACK[name].__module__.startswith("transformers.")
        if name not in installed and not registered_here:
            raise UserError(f"report_to: the tracker {name} is not installed (pip install {name.replace('_', '-')}){listed}")
    return wanted


def _said(variable: str) -> str:
    return os.environ.get(variable, "").strip().lower()
