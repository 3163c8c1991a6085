"""The processes of a distributed run: what a launcher asks for, what one process knows, what all found, how they fail together.

`accelerate launch` and `torchrun` start one process per device and tell each its place by environment variables, which are
checked before anything is loaded. accelerate adds what its configuration file says; recipes/accelerate/fsdp.yaml is one that works.

Without torch.distributed there is one process, and the exchanges do nothing but call. An error that one process meets is
raised in all of them, so that none waits for the others for ever; the first process alone reports it. Every exchange is one
`all_gather_object` of either a value or a failure, so that they may be nested: a process that fails on the way to an inner
exchange answers that one with its failure, in the place of the outer one.
"""

import atexit
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor

from mmpo.pipeline.errors import UserError
from mmpo.train.messages import is_first_process, out_of_memory

Value = TypeVar("Value")
_RECIPE = "see recipes/accelerate/fsdp.yaml"
_KNOWN_TO_ALL = "_mmpo_known_to_all"
_LOST_PROCESS_MESSAGES = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Connection refused",
    "NCCL error",
    "Timed out waiting",
)
_GLOO_THREAD_SECONDS = 0.1


class LocalFailure(UserError):
    """An error of this process alone, in the middle of a step, where the others can't be asked: they lose it."""


class MemoryElsewhere(MemoryError):
    """Memory that ran out in another process; the text says in which."""


# --- exchanges ----------------------------------------------------------------------------------------------------------


def rank_and_world() -> tuple[int, int]:
    """This process' number and how many there are; (0, 1) where torch.distributed is not set up."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def from_all(make: Callable[[], Value]) -> list[Value]:
    """What `make` gives in each process, in the order of their ranks. Raises the first error of any in all: where it was met as
    it is, elsewhere as a UserError or a MemoryElsewhere.
    """
    _, world = rank_and_world()
    if world == 1:
        return [make()]
    own: Exception | None = None
    try:
        answer: Any = make()
    except Exception as error:
        if known_to_all(error):  # an exchange inside has told the others
            raise
        own, answer = error, _for_others(error)
    answers: list[Any] = [None] * world
    torch.distributed.all_gather_object(answers, answer)
    failure = own or next((one for one in answers if isinstance(one, Exception)), None)
    if failure is not None:
        setattr(failure, _KNOWN_TO_ALL, True)
        raise failure
    return answers


def _for_others(error: Exception) -> UserError | MemoryElsewhere:
    rank, world = rank_and_world()
    place = f"process {rank} (of {world}, counted from 0)"
    if out_of_memory(error):
        return MemoryElsewhere(place)
    message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return UserError(message if rank == 0 else f"{place}: {message}")


def from_first(make: Callable[[], Value]) -> Value:
    """What `make` gives in the first process, which alone calls it, in every process. Raises its error in all."""
    return from_all(lambda: make() if rank_and_world()[0] == 0 else None)[0]  # type: ignore[return-value]


def agreed(make: Callable[[], Value]) -> Value:
    """What `make` gives here, once it has worked in every process. Raises the first error of any in all."""
    kept: list[Value] = []
    from_all(lambda: kept.append(make()))
    return kept[0]


def known_to_all(error: BaseException) -> bool:
    """Whether an error has been raised in every process, each with its own of these words."""
    return getattr(error, _KNOWN_TO_ALL, False)


def any_process(flag: bool, device: torch.device | str = "cpu") -> bool:
    """Whether the flag is set in any process; every process calls this."""
    if rank_and_world()[1] == 1:
        return flag  # without waiting for the device
    return bool(summed(torch.tensor(float(flag), device=device)) > 0)


def summed(value: Tensor) -> Tensor:
    """The sum of a tensor over all processes, in every process the same bits."""
    if rank_and_world()[1] > 1:
        torch.distributed.all_reduce(value)
    return value


# --- the end ------------------------------------------------------------------------------------------------------------


def leave_together() -> None:
    """Ends the connections to the other processes, behind the last thing that all of them do."""
    if rank_and_world()[1] > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def leave_at_exit() -> None:
    """Lets gloo's threads finish before this process ends; to be called once the processes are connected.

    Such a thread gives up the tensors of the last exchange a moment after that is over, and needs Python for it. In an
    interpreter that is ending it aborts the process instead, after all its work is done.
    """
    if rank_and_world()[1] > 1 and torch.distributed.get_backend() == "gloo":
        # what they wait for is the interpreter's lock, which sleeping gives them
        atexit.unregister(time.sleep)
        atexit.register(time.sleep, _GLOO_THREAD_SECONDS)


def reported_elsewhere(error: Exception) -> bool:
    """Whether another process tells the user of this error: all but the first leave it to that one."""
    return not is_first_process() and not isinstance(error, LocalFailure)


def is_lost_process(error: BaseException) -> bool:
    """Whether an error of torch.distributed says that another process is gone."""
    if rank_and_world()[1] == 1 or not isinstance(error, RuntimeError):
        return False
    return any(message in str(error) for message in _LOST_PROCESS_MESSAGES)


# --- what launchers ask for ---------------------------------------------------------------------------------------------


def uses_fsdp() -> bool:
    """Whether the launcher asks for FSDP."""
    return _variable("ACCELERATE_USE_FSDP") == "true"


def check_launch(bf16: bool) -> None:
    """Raises UserError for what training can't do exactly, or was never tried: DeepSpeed, FSDP 1, fp16, ..."""
    if _variable("ACCELERATE_USE_DEEPSPEED") == "true":
        raise UserError(
            "DeepSpeed is not supported: its engine scales and accumulates gradients by itself, and a step of ours is one exact mean. "
            f"FSDP does the same job: {_RECIPE}"
        )
    if _variable("ACCELERATE_USE_MEGATRON_LM") == "true" or _variable("ACCELERATE_USE_PARALLELISM_CONFIG") == "true":
        raise UserError(f"models are not split by tensor, pipeline or context: use data parallelism or FSDP ({_RECIPE})")
    precision = _variable("ACCELERATE_MIXED_PRECISION") or "no"
    if precision not in ("no", "fp32", "bf16"):
        raise UserError(
            f"mixed_precision {precision} is not supported: set it to 'no' for accelerate, and give --bf16 if the device has it"
        )
    if precision == "bf16" and not bf16:
        raise UserError("accelerate is set to mixed_precision bf16: give --bf16 too, or set it to 'no'")
    wanted = {
        "FSDP_VERSION": ("1", "2", "fsdp_version"),
        "FSDP_STATE_DICT_TYPE": ("sharded_state_dict", "full_state_dict", "fsdp_state_dict_type"),
        # every process computes its share of the reference's values with a whole model before it is split
        "FSDP_CPU_RAM_EFFICIENT_LOADING": ("false", "false", "fsdp_cpu_ram_efficient_loading"),
    }
    for variable, (default, needed, key) in wanted.items() if uses_fsdp() else ():
        given = _variable(variable) or default
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


def _variable(name: str) -> str:
    return os.environ.get(name, "").strip().lower()
