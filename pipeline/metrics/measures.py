"""What is measured of a model's pairs: accuracy, the kinds of calibration, losses, by margin and by source.

The arithmetic is `mmpo.pipeline.margins`; here is which values go in, and when a measure is undefined (None).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mmpo.pipeline import margins
from mmpo.pipeline.logistic import sigmoid

__all__ = ["by_source", "pair_measures", "training_metrics"]

Values = Mapping[str, np.ndarray]


def pair_measures(z: np.ndarray, p: np.ndarray, margin: np.ndarray) -> dict[str, float | None]:
    """All measures of one set of pairs; each array has shape (pairs,). A measure of no pairs is None.

    Accuracy, ece_label and brier leave ties (margin 0) out; ece_target, soft_brier and cross_entropy include them.
    """
    decided = margin > 0
    q = sigmoid(z)
    return {
        "accuracy": margins.accuracy(z, margin),
        "ece_target": margins.ece_target(q, p),
        "ece_label": margins.ece_label(q, decided),
        "brier": margins.brier(q, decided),
        "soft_brier": margins.soft_brier(q, p),
        "cross_entropy": margins.cross_entropy(z, p),
    }


def training_metrics(values: Values) -> dict[str, float]:
    """The measures shown during training, without the undefined ones, and the mean of every named value per pair."""
    found = pair_measures(values["z"], values["p"], values["margin"])
    named = {name: float(value.mean()) for name, value in values.items() if "/" in name}
    return {name: value for name, value in {**found, **named}.items() if value is not None}


def by_source(values: Values, sources: np.ndarray) -> list[dict[str, Any]]:
    """The measures of each source's pairs. `sources`: (pairs,)."""
    rows = []
    for source in sorted(set(sources.tolist()), key=str):
        mine = sources == source
        measures = pair_measures(values["z"][mine], values["p"][mine], values["margin"][mine])
        rows.append({"source": source, "pairs": int(mine.sum()), **measures})
    return rows
