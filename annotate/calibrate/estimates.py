"""What people would say of all that a grader graded, from a few of them: how often they agree with it, and each model's mean margin."""

from typing import Any

import numpy as np
import pyarrow as pa

from mmpo.annotate.agreement.margins import DECIMALS, RaterMargins
from mmpo.annotate.calibrate.grader import Calibrated
from mmpo.annotate.calibrate.prediction_powered import prediction_powered_mean
from mmpo.pipeline.arrow import codes, flat
from mmpo.pipeline.margins import Floats

MOST_MODELS = 40
LEAST_HUMAN_PAIRS = 10
"""Of a model, for an estimate of its own."""


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
