"""Means over many pairs that a grader saw all of and people a few: prediction-powered estimates (Angelopoulos et al. 2023, arXiv
2301.09633).

    λ · mean of predictions where people said nothing + mean of (truth − λ · prediction) where they did

is what people's mean would be, whatever the predictions are worth, as long as the pairs people saw were drawn at random; λ is the one
with the least error (PPI++, arXiv 2311.01453): a grader that tells nothing gets 0. Pairs of a prompt go together.
"""

from typing import Any, NamedTuple

import numpy as np

from mmpo.pipeline.margins import Floats
from mmpo.pipeline.metrics import FEWEST_CLUSTERS, student


class Estimate(NamedTuple):
    """A mean and its 95% interval, None of fewer than FEWEST_CLUSTERS prompts that people saw; pairs, human_pairs: seen by the grader, and
    by people; weight: λ."""

    value: float
    interval: tuple[float, float] | None
    people_only: float
    people_only_interval: tuple[float, float] | None
    pairs: int
    human_pairs: int
    weight: float

    def as_json(self) -> dict[str, Any]:
        """{"value", "value_95", "people_only", "people_only_95", "pairs", "human_pairs", "weight"}."""
        return {
            "value": self.value, "value_95": self.interval, "people_only": self.people_only,
            "people_only_95": self.people_only_interval, "pairs": self.pairs, "human_pairs": self.human_pairs, "weight": self.weight,
        }  # fmt: skip


def prediction_powered_mean(truth: Floats, prediction: Floats, prompt: np.ndarray) -> Estimate:
    """The mean of the truth over all pairs. truth: NaN where people said nothing; prediction: of every pair, where people said something
    by a
    map that was fitted without them; prompt: from 0; all of shape (pairs,). At least one pair must have a truth."""
    known = np.isfinite(truth)
    y, f, g = truth[known], prediction[known], prediction[~known]
    size = int(prompt.max()) + 1

    def by_prompt(values: Floats, where: np.ndarray) -> Floats:
        """Each prompt's part of the error of a mean."""
        return np.bincount(prompt[where], (values - values.mean()) / len(values), minlength=size).astype(np.float64)

    of_y, of_f = by_prompt(y, known), by_prompt(f, known)
    of_g = by_prompt(g, ~known) if len(g) else np.zeros(size)
    both = of_g - of_f
    power = float((both**2).sum())
    weight = float(np.clip(-(both @ of_y) / power, 0.0, 1.0)) if power > 0 and len(g) else 0.0
    value = y.mean() + weight * ((g.mean() if len(g) else 0.0) - f.mean())
    prompts = len(np.unique(prompt[known]))
    return Estimate(
        float(value), _interval(float(value), of_y + weight * both, prompts), float(y.mean()), _interval(float(y.mean()), of_y, prompts),
        len(truth), len(y), weight,
    )  # fmt: skip


def _interval(value: float, parts: Floats, prompts: int) -> tuple[float, float] | None:
    if prompts < FEWEST_CLUSTERS:
        return None
    reach = student(prompts - 1) * float(np.sqrt((parts**2).sum() * prompts / (prompts - 1)))
    return value - reach, value + reach
