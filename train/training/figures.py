"""Weighted means over pairs, collected from micro-batch to micro-batch and process to process until they are logged."""

from collections.abc import Iterable

import torch
from torch import Tensor

from mmpo.train.distributed import from_all

__all__ = ["Figures"]


class Figures:
    """Sums of value · weight and of weight by name. They stay on the device: reading each would hold it up."""

    def __init__(self) -> None:
        self._sums: dict[str, list[Tensor]] = {}

    def add(self, name: str, value: Tensor, weight: Tensor) -> None:
        """Takes values of pairs with their weights, each (pairs,)."""
        self._sums.setdefault(name, []).append(torch.stack([(value * weight).sum(), weight.sum()]))

    def drain(self) -> dict[str, float]:
        """The means of what all processes have added since the last time; every process calls this."""
        own = {name: torch.stack(parts).cpu().double().sum(dim=0).tolist() for name, parts in self._sums.items()}
        self._sums = {}
        everywhere = from_all(lambda: own)
        found = {}
        for name in _names(everywhere):
            total, weight = (sum(sums[name][i] for sums in everywhere if name in sums) for i in (0, 1))
            if weight:
                found[name] = total / weight
        return found


def _names(parts: Iterable[dict[str, list[float]]]) -> list[str]:
    """In the order of the first process that has any (one without a prompt has none)."""
    return list(dict.fromkeys(name for part in parts for name in part))
