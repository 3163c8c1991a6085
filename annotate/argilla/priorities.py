"""Which records deserve human eyes first: `--select`, one line a way in SELECTIONS.

Records are pushed in this order. `--limit` makes it count, since Argilla shuffles what is pending for each person. Ties, and what nobody
graded yet, follow in an order drawn by hash.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mmpo.annotate.argilla.items import Item
from mmpo.annotate.argilla.known_margins import Known
from mmpo.annotate.pairings import digest_of
from mmpo.pipeline.errors import UserError

__all__ = ["SELECTIONS", "Selection", "select"]


@dataclass(frozen=True)
class Selection:
    """urgency: of what is known of a pair, the larger the sooner; None where that says nothing. needs: what is missing then."""

    urgency: Callable[[Known], float | None]
    needs: str
    summary: str


def _disagreement(known: Known) -> float | None:
    """The share of raters on the losing side; of equal ones the larger spread between raters first."""
    if known.raters < 2:
        return None
    spread = (known.se or 0.0) * known.raters**0.5
    return known.minority + 1e-3 * spread / (1 + spread)


SELECTIONS: dict[str, Selection] = {
    "random": Selection(lambda known: None, "", "in an order drawn by hash"),
    "uncertain": Selection(
        lambda known: known.se, "margins with a standard error", "the largest standard error of the margin first"
    ),
    "small-margin": Selection(lambda known: -abs(known.margin), "margins", "the smallest margin first"),
    "disagreement": Selection(_disagreement, "pairs that two raters graded", "those on which raters disagree most first"),
}
"""The family of `--select`."""


def select(items: Iterable[Item], name: str, limit: int | None, seed: int) -> list[Item]:
    """The items in the order of a selection, the first `limit` of them. Raises UserError where no item has what it goes by."""
    way = SELECTIONS[name]
    urgent: list[tuple[float, bytes, Item]] = []
    known = 0
    for item in items:
        values = [value for one in item.margins.values() if (value := way.urgency(one)) is not None]
        known += bool(values)
        draw = digest_of(seed, "select", *sorted(item.ids))
        urgent.append((-max(values) if values else float("inf"), draw, item))
    if way.needs and not known:
        raise UserError(
            f"--select {name} needs {way.needs}, and there are none here; judge the candidates first, or use --select random"
        )
    urgent.sort(key=lambda one: one[:2])
    return [item for *_, item in urgent[:limit]]
