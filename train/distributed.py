"""The processes of a distributed run: what one of them knows, what all found, and how they fail together.

Without torch.distributed there is one process, and these functions do nothing but call. An error that one process
meets is raised in all of them, so that none waits for the others for ever; the first process alone says it.

Everything is told by one kind of exchange, in which every process tells something. So these functions may be nested:
one process that fails on the way to an inner exchange answers it with its failure, in the place of the outer one.
"""

import atexit
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor

from mmpo.pipeline.errors import UserError
from mmpo.train.messages import is_first_process, out_of_memory

__all__ = [
    "LocalFailure",
    "MemoryElsewhere",
    "agreed",
    "any_of_all",
    "from_all",
    "from_first",
    "is_lost_process",
    "known_to_all",
    "leave_at_exit",
    "leave_together",
    "rank_and_world",
    "said_elsewhere",
    "summed",
]

Value = TypeVar("Value")


class LocalFailure(UserError):
    """An error of this process alone, in the middle of a step, where the others can't be asked: they lose it."""


class MemoryElsewhere(MemoryError):
    """Memory that ran out in another process; the text says in which."""


@dataclass(frozen=True)
class _Failed:
    """What is told to the others of an error."""

    rank: int
    message: str
    memory: bool = False


def rank_and_world() -> tuple[int, int]:
    """This process' number and how many there are; (0, 1) where torch.distributed is not set up."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def from_first(make: Callable[[], Value]) -> Value:
    """What `make` gives in the first process, which alone calls it, in every process. Raises its error in all."""
    rank, world = rank_and_world()
    if world == 1:
        return make()
    return from_all(lambda: make() if rank == 0 else None)[0]  # type: ignore[return-value]


def from_all(make: Callable[[], Value]) -> list[Value]:
    """What `make` gives in each process, in the order of their ranks. Raises the first error of any in all."""
    _, world = rank_and_world()
    if world == 1:
        return [make()]
    value, error = _tried(make)
    if error is not None and known_to_all(error):
        raise error
    found: list[Any] = [None] * world
    torch.distributed.all_gather_object(found, value if error is None else _failed(error))
    _raise(error, found)
    return found


def agreed(make: Callable[[], Value]) -> Value:
    """What `make` gives here, once it has worked in every process. Raises the first error of any in all."""
    kept: list[Value] = []
    from_all(lambda: kept.append(make()))
    return kept[0]


def known_to_all(error: BaseException) -> bool:
    """Whether an error has been raised in every process, each with its own of these words."""
    return getattr(error, _KNOWN, False)


def any_of_all(flag: bool, device: torch.device | str = "cpu") -> bool:
    """Whether the flag is set in any process; every process calls this."""
    if rank_and_world()[1] == 1:
        return flag
    return bool(summed(torch.tensor(float(flag), device=device)) > 0)


def summed(value: Tensor) -> Tensor:
    """The sum of a tensor over all processes, in every process the same bits."""
    if rank_and_world()[1] > 1:
        torch.distributed.all_reduce(value)
    return value


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
        atexit.unregister(_wait_for_threads)
        atexit.register(_wait_for_threads)


def _wait_for_threads() -> None:
    time.sleep(0.1)  # what they wait for is the interpreter's lock, which sleeping gives them


def said_elsewhere(error: Exception) -> bool:
    """Whether another process tells the user of this error: all but the first leave it to that one."""
    return not is_first_process() and not isinstance(error, LocalFailure)


def is_lost_process(error: BaseException) -> bool:
    """Whether an error of torch.distributed says that another process is gone."""
    text = str(error)
    return rank_and_world()[1] > 1 and isinstance(error, RuntimeError) and any(sign in text for sign in _LOST)


_KNOWN = "_mmpo_known_to_all"
_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Connection refused",
    "NCCL error",
    "Timed out waiting",
)


def _tried(make: Callable[[], Value]) -> tuple[Value | None, Exception | None]:
    try:
        return make(), None
    except Exception as error:
        return None, error


def _failed(error: Exception) -> _Failed:
    rank, world = rank_and_world()
    place = f"process {rank} (of {world}, counted from 0)"
    if out_of_memory(error):
        return _Failed(rank, place, memory=True)
    said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return _Failed(rank, said if rank == 0 else f"{place}: {said}")


def _raise(own: Exception | None, found: list[Any]) -> None:
    """This process' own error as it is, or the first one of the others, as a UserError if it isn't about memory."""
    failed = next((one for one in found if isinstance(one, _Failed)), None)
    if own is None and failed is None:
        return
    if own is None and failed is not None:
        own = MemoryElsewhere(failed.message) if failed.memory else UserError(failed.message)
    setattr(own, _KNOWN, True)  # an exchange around this one must not tell it again
    raise own  # type: ignore[misc]
