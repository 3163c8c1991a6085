"""Means over many pairs that a grader saw all of and people a few: prediction-powered estimates (Angelopoulos et al. 2023, arXiv
2301.09633).

    λ · mean of predictions where people said nothing + mean of (truth − λ · prediction) where they did

is what people's mean would be, whatever the predictions are worth, as long as the pairs people saw were drawn at random; λ is the one
with the least error (PPI++, arXiv 2311.01453): a grader that tells nothing gets 0. Pairs of a prompt go together.
So are estimated: how often people agree with a grader, and each model's mean margin.
"""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from mmpo.annotate.agreement.margins import DECIMALS, RaterMargins
from mmpo.annotate.calibrate.grader import Calibrated
from mmpo.pipeline.arrow import codes, flat
from mmpo.pipeline.margins import Floats
from mmpo.pipeline.metrics import FEWEST_CLUSTERS, student

MOST_MODELS = 40
LEAST_HUMAN_PAIRS = 10
"""Of a model, for an estimate of its own."""


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


def estimates(one: Calibrated, table: pa.Table, margins: RaterMargins) -> dict[str, Any]:
    """{"agreement": how often a person prefers what the grader does, ties half, over all of its pairs; "models": of each model, its
    mean margin in people's units over the pairs in which it meets another one}, prediction-powered; table: that of the margins, one
    row per prompt."""
    prompt = np.unique(one.grader.prompt, return_inverse=True)[1]
    whole = one.grader.features[:, 0] if one.grader.margins == 1 else np.round(one.expected, DECIMALS)
    verdict = np.sign(whole)
    toward = 0.5 + verdict * (one.chance - 0.5)
    said = _spread(one.labelled, 0.5 + verdict[one.labelled] * (one.sample.share - 0.5))
    result: dict[str, Any] = {"agreement": prediction_powered_mean(said, toward, prompt).as_json()}
    if (models := _models(one, table, margins, prompt)) is not None:
        result["models"] = models
    return result


def _spread(labelled: np.ndarray, values: Floats) -> Floats:
    """Values of the pairs that people graded, NaN for the others."""
    found = np.full(len(labelled), np.nan)
    found[labelled] = values
    return found


def _models(one: Calibrated, table: pa.Table, margins: RaterMargins, prompt: np.ndarray) -> list[dict[str, Any]] | None:
    model, names = codes(flat(table["completions"]).flatten().field("model"))
    first, second = model[margins.low[one.grader.unit]], model[margins.high[one.grader.unit]]
    if len([name for name in names if name is not None]) < 2 or len(names) > MOST_MODELS:
        return None
    truth = _spread(one.labelled, one.sample.answers.mean)
    predicted = one.expected.copy()
    predicted[one.labelled] = one.held.expected
    rows = []
    for number, name in enumerate(names):
        side = (first == number).astype(np.int64) - (second == number)
        used = side != 0
        if name is None or int((used & one.labelled).sum()) < LEAST_HUMAN_PAIRS:
            continue
        own = np.unique(prompt[used], return_inverse=True)[1]
        rows.append({"model": name, **prediction_powered_mean((side * truth)[used], (side * predicted)[used], own).as_json()})
    return rows or None
