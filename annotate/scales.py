"""The grades that a judge is offered: labels, what each is worth, and what lies between them."""

from collections.abc import Mapping
from dataclasses import dataclass

from mmpo.pipeline.errors import UserError


@dataclass(frozen=True)
class Scale:
    """labels: each label as it is offered → its value, in the order offered. decimals: numbers between low and high count too.

    Labels should be single tokens (letters or digits): "10" is often two, and then its probability is not to be had.
    """

    labels: Mapping[str, float]
    decimals: bool = False

    def __post_init__(self) -> None:
        if len(set(self.labels.values())) < 2:
            raise UserError(f"a scale needs at least two different values; given: {dict(self.labels)}")
        if any(not label.strip() for label in self.labels):
            raise UserError("a label of a scale must not be empty")

    @property
    def low(self) -> float:
        """The smallest value."""
        return min(self.labels.values())

    @property
    def high(self) -> float:
        """The largest value."""
        return max(self.labels.values())


def numbers(low: int, high: int, *, decimals: bool = False) -> Scale:
    """The whole numbers from low to high, each worth itself.

    >>> numbers(1, 3).labels
    {'1': 1.0, '2': 2.0, '3': 3.0}
    """
    return Scale({str(value): float(value) for value in range(low, high + 1)}, decimals)


PREFERENCE = Scale(dict(zip("ABCDEFG", (3.0, 2.0, 1.0, 0.0, -1.0, -2.0, -3.0), strict=True)))
"""Seven signed grades from "first much better" (A, +3) over "about the same" (D, 0) to "second much better" (G, −3)."""

RANKS = Scale({"last": 0.0, "first": 1.0}, decimals=True)
"""What a rank among n becomes: (n − rank)/(n − 1)."""
