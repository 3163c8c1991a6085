"""FEEDBACK made by hand, and panels of raters with known margins: does margin ± 1.96 margin_se hold the true margin?"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from mmpo.pipeline import build_pairs
from mmpo.pipeline.arrow import narrow
from mmpo.pipeline.sources import FeedbackBuilder

Grade = tuple[str, str, float] | tuple[str, str, str, float]

PANELS = {"2": [0.6] * 2, "3": [0.6] * 3, "5": [0.6] * 5, "3 unequal": [0.4, 0.6, 1.0]}
"""Noise of each rater's own view and of each of its answers, by the name of the panel."""


def feedback(prompts: Iterable[Iterable[Grade]], **more: Any) -> pa.Table:
    """FEEDBACK of "question 0", "question 1", ... from each one's ratings (rater, completion, score) and comparisons (rater, shown
    first, shown second, gap); a rater is "name" or "name/aspect". more: of every grade, as the kind.
    """
    out = FeedbackBuilder("made")
    for number, grades in enumerate(prompts):
        out.prompt(f"question {number}")
        for rater, *texts, value in grades:
            name, _, aspect = rater.partition("/")
            add = out.rating if len(texts) == 1 else out.comparison
            add(*map(out.completion, texts), value, rater=name, aspect=aspect or "overall", **more)
    return narrow(out.finish())


def panel(noise: list[float], seed: int, prompts: int = 5000) -> tuple[pa.Table, np.ndarray]:
    """Seven grades from -3 to 3 in both orders by judges of a bias and a noise each, and the margins (of a over b)."""
    rng = np.random.default_rng(seed)
    margin = rng.normal(0, 0.9, prompts)

    def answers(m: float) -> Iterable[Grade]:
        for r, own_noise in enumerate(noise):
            own = m + rng.normal(0, own_noise)
            for first, second, sign in (("a", "b", 1), ("b", "a", -1)):
                gap = round(float(np.clip(sign * own + 0.3 * (r - 1) + rng.normal(0, own_noise), -3, 3)))
                yield f"j{r}", first, second, gap

    return feedback(map(answers, margin.tolist()), kind="ai", limit=3), margin


class Covered(NamedTuple):
    """share: of pairs whose interval holds the true margin; se, error: root mean squares of margin_se and of what it estimates."""

    share: float
    se: float
    error: float


def rms(values: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(values**2)))


def errors(table: pa.Table, margin: np.ndarray, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Error and margin_se of each pair of "question N", by `build_pairs` with these options; margins are signed towards a."""
    rows = build_pairs(table, **options).to_pylist()
    true = np.array([margin[int(row["prompt"][0]["content"].split()[1])] for row in rows])
    signed = np.array([row["quality_margin"] * (1 if row["chosen"][0]["content"] == "a" else -1) for row in rows])
    return signed - true, np.array([row["margin_se"] for row in rows], dtype=np.float64)


def covered(table: pa.Table, margin: np.ndarray, how: str) -> Covered:
    """What the intervals of a panel are worth when raters merge in this way."""
    error, se = errors(table, margin, merge_raters=how)
    return Covered(float(np.mean(np.abs(error) <= 1.96 * se)), rms(se), rms(error))


def graded_pairs(spread: float, raters: int, pairs: int = 5000, grid: float = 1.0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """PAIRS' columns of raters who see a true difference with logistic noise and grade it in steps from −3 to 3; and the true
    probability that another rater prefers the chosen completion (a tie is half).
    """
    random = np.random.default_rng(0)
    true = random.normal(0, spread, pairs)
    gaps = np.clip(np.round((true[:, None] + random.logistic(size=(pairs, raters))) / grid) * grid, -3, 3)
    sign = np.where(gaps.mean(axis=1) < 0, -1.0, 1.0)
    variance = gaps.var(axis=1, ddof=1)
    errors = np.sqrt((4 * variance.mean() + (raters - 1) * variance) / (3 + raters) / raters)
    preferring = np.floor(((gaps * sign[:, None] > 0) + 0.5 * (gaps == 0)).sum(axis=1))
    up, down = (1 / (1 + np.exp(-(side * true * sign - grid / 2))) for side in (1, -1))
    columns = {"quality_margin": abs(gaps.mean(axis=1)), "margin_se": errors, "preferring": preferring}
    return {**columns, "raters": np.full(pairs, float(raters))}, up + (1 - up - down) / 2
