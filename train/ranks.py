"""The processes of a distributed run, for work beside the training steps: what one of them knows, and what all found.

Without torch.distributed there is one process, and these functions do nothing but call. An error of the user's that one
process meets is raised in all of them, so that none waits for the others for ever.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed

from mmpo.pipeline.errors import UserError

__all__ = ["from_all", "from_first", "rank_and_world"]

Value = TypeVar("Value")


def rank_and_world() -> tuple[int, int]:
    """This process' number and how many there are; (0, 1) where torch.distributed is not set up."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def from_first(make: Callable[[], Value]) -> Value:
    """What `make` gives in the first process, which alone calls it, in every process. Raises its UserError in all."""
    rank, world = rank_and_world()
    if world == 1:
        return make()
    found = [_tried(make) if rank == 0 else None]
    torch.distributed.broadcast_object_list(found)
    return _value(found[0])


def from_all(make: Callable[[], Value]) -> list[Value]:
    """What `make` gives in each process, in the order of their ranks. Raises the first UserError of any in all."""
    _, world = rank_and_world()
    if world == 1:
        return [make()]
    found: list[Any] = [None] * world
    torch.distributed.all_gather_object(found, _tried(make))
    return [_value(one) for one in found]


def _tried(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except UserError as error:
        return error


def _value(found: Any) -> Any:
    if isinstance(found, UserError):
        raise found
    return found
