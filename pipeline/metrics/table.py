"""What a model is measured by, all in METRICS; of a set of pairs, of each source. Pure numpy.

The values of a set of pairs, by name, each of shape (pairs,): z, the model's logit for "chosen is better"; margin, the quality margin,
0 for a tie; and where they are known p, the targets, and preferring of raters, votes of raters that made no part of the margins.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mmpo.pipeline.margins import sigmoid
from mmpo.pipeline.metrics.calibration import (
    Parts,
    accuracy,
    accuracy_parts,
    brier,
    brier_parts,
    cross_entropy,
    cross_entropy_parts,
    ece_label,
    ece_label_parts,
    ece_target,
    ece_target_parts,
    ece_vote,
    ece_vote_parts,
    nll,
    nll_parts,
    soft_brier,
    soft_brier_parts,
)

Values = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Metric:
    """One measure of a set of pairs.

    measure: from the values named in `needs`, in that order; None where they define none. To the names of the module's docstring come
    q = σ(z) and decided = margin > 0. better: "higher", "lower", or the value that is best. parts: from the same values what it adds up
    over pairs, for intervals; None: it has no interval.
    """

    measure: Callable[..., float | None]
    needs: tuple[str, ...]
    better: Literal["higher", "lower"] | float
    summary: str
    parts: Callable[..., Parts] | None = None

    def distance(self, value: float) -> float:
        """What orders values of this measure, the best one first."""
        return {"higher": -value, "lower": value}[self.better] if isinstance(self.better, str) else abs(value - self.better)


METRICS: dict[str, Metric] = {
    "accuracy": Metric(
        accuracy, ("z", "margin"), "higher", "share of the pairs with a margin that the model orders right", accuracy_parts
    ),
    "ece_target": Metric(ece_target, ("q", "p"), "lower", "calibration error against the targets, ties included", ece_target_parts),
    "ece_label": Metric(
        ece_label, ("q", "decided"), "lower", "calibration error against the labels, ties left out", ece_label_parts
    ),
    "ece_vote": Metric(
        ece_vote, ("q", "preferring", "raters"), "lower", "calibration error against votes that made no margin", ece_vote_parts
    ),
    "brier": Metric(
        brier, ("q", "decided"), "lower", "mean squared error of the probabilities to the labels, ties left out", brier_parts
    ),
    "soft_brier": Metric(
        soft_brier, ("q", "p"), "lower", "mean squared error of the probabilities to the targets", soft_brier_parts
    ),
    "nll": Metric(nll, ("z", "margin"), "lower", "mean negative log-likelihood of the labels in nats, ties left out", nll_parts),
    "cross_entropy": Metric(cross_entropy, ("z", "p"), "lower", "mean cross-entropy to the targets, in nats", cross_entropy_parts),
}


def known_values(values: Values) -> dict[str, np.ndarray]:
    """The values, and q and decided with them."""
    return {**values, "q": sigmoid(values["z"]), "decided": values["margin"] > 0}


def pair_measures(values: Values) -> dict[str, float | None]:
    """Every measure of METRICS whose needs are among the values; None where it is of no pairs."""
    known = known_values(values)
    return {
        name: metric.measure(*(known[need] for need in metric.needs))
        for name, metric in METRICS.items()
        if known.keys() >= set(metric.needs)
    }


def training_metrics(values: Values) -> dict[str, float]:
    """The measures shown during training, without the undefined ones, and the mean of every named value per pair."""
    named = {name: float(value.mean()) for name, value in values.items() if "/" in name}
    return {name: value for name, value in {**pair_measures(values), **named}.items() if value is not None}


def by_source(values: Values, sources: np.ndarray) -> list[dict[str, Any]]:
    """The measures of each source's pairs. `sources`: (pairs,)."""
    rows = []
    for source in sorted(set(sources.tolist()), key=str):
        mine = sources == source
        measures = pair_measures({name: value[mine] for name, value in values.items()})
        rows.append({"source": source, "pairs": int(mine.sum()), **measures})
    return rows
