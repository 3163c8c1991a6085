"""Raters' own biases and scales, estimated from the items they share, and taken out of their grades: `--raters rater-effects`.

    grade = center + coefficient · bias_r + scale_r · (item - center) + noise_r

coefficient: 1 for ratings; for a gap the mean of +1 (the item's first half was shown first) and -1 over the orders answered: 0 for both, so
that a position bias cancels. center: the mean grade of ratings, 0 of gaps. Biases sum to 0 over the grades, logarithms of scales over the
raters, so that grades keep their unit. All is shrunk by empirical Bayes: raters who differ no more than chance would make them keep bias 0
and scale 1. Scales are how raters respond to the item, unless plain standard deviations foretell left-out raters better (`rater_choice`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.grades.aggregate import Grades
from mmpo.pipeline.grades.rater_biases import rater_biases
from mmpo.pipeline.grades.rater_choice import deviations_foretell_better
from mmpo.pipeline.grades.rater_sample import RaterSample, without_signal
from mmpo.pipeline.grades.rater_scales import LEAST_SCALE, Scales, rater_scales

__all__ = ["RaterEffect", "fit_rater_effects", "remove_effects"]

ITERATIONS = 200
NOISE_PRIOR = 20.0
LARGEST_WEIGHT = 4.0


class RaterEffect(NamedTuple):
    """One rater. bias: in grade units, > 0: grades higher than others (gaps: prefers the first shown). scale > 0.

    noise: standard deviation of a grade about the item in common units, NaN where the rater has no scale of its own or scales are standard
    deviations; items: how many it shares with others in the sample;
    signal: False where its grades tell nothing of what the others see; connected: False where it shares no item, and so keeps bias 0 and
    scale 1; weight: what its grade counts for beside others, 0 without signal; center: see the module.
    """

    bias: float = 0.0
    scale: float = 1.0
    noise: float = float("nan")
    items: int = 0
    signal: bool = True
    connected: bool = False
    weight: float = 1.0
    center: float = 0.0

    def as_json(self) -> dict[str, float | int | bool | None]:
        """As the manifest keeps it; an unknown noise is null."""
        return {**self._asdict(), "noise": self.noise if np.isfinite(self.noise) else None}


def fit_rater_effects(sample: RaterSample, *, centered: bool, weighted: bool = True) -> dict[str, RaterEffect]:
    """The effects of every rater of the sample, by name.

    centered: ratings (center at their mean) or gaps (center 0). weighted: a grade's weight is 1 over its noise variance, shrunk as by 20
    items and relative to the average, else 1. Why that is the default: of three judges with noise ½, 1 and 2 the plain mean misses the
    item by .76, the weighted mean by .47 with weights estimated from 300 items and by .44 from 3,000, where the true weights miss it by
    .44 too (tests/pipeline/grades/test_rater_effects.py). Two raters' noises can't be told apart, and they count the same.

    Raters who share items through others are fitted together; a rater who shares none keeps bias 0 and scale 1. A rater gives no signal if
    it shares 20 items or more and its correlation with the others' consensus is less than two standard errors above 0 and more than two
    below the median of the raters (or .1), or its scale is ≤ 0.1 of the others': its weight is 0, with weighted or without. Raises
    UserError where nobody gives any.
    """
    sample = sample.take(np.lexsort((sample.rater, sample.item)))
    items = np.bincount(sample.rater, minlength=len(sample.raters))
    silent = without_signal(sample.within_prompts())
    fitted = _fitted(sample, silent, centered)
    while np.isfinite(fitted.against_others).any() and fitted.against_others.min() <= np.log(LEAST_SCALE):
        silent |= fitted.against_others <= np.log(LEAST_SCALE)
        fitted = _fitted(sample, silent, centered)
    if silent.any() and not (~silent & (items > 0)).any():
        raise UserError(
            f"--raters rater-effects: no rater's grades agree with the others' better than chance ({', '.join(sample.raters[:6])}). "
            "Choose raters with --rater or --kind, or merge them by --raters mean"
        )
    weight = _weights(fitted.noise, items) if weighted else np.ones(len(items))
    weight[silent] = 0.0
    connected = (fitted.shared > 0) | silent
    columns = (fitted.bias, fitted.scale, np.sqrt(fitted.noise), items, ~silent, connected, weight, fitted.center)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return {name: RaterEffect(*row) for name, row in zip(sample.raters, rows, strict=True)}


class _Fitted(NamedTuple):
    """By rater, shape (raters,): see RaterEffect. noise: a variance; against_others: log of the scale over the others', or inf."""

    bias: np.ndarray
    scale: np.ndarray
    noise: np.ndarray
    center: np.ndarray
    shared: np.ndarray
    against_others: np.ndarray


def _fitted(sample: RaterSample, silent: np.ndarray, centered: bool) -> _Fitted:
    """The fit without the silent raters, component by component."""
    size = len(sample.raters)
    left = sample.take(~silent[sample.rater])
    shared = np.bincount(left.rater, minlength=size)
    result = _Fitted(np.zeros(size), np.ones(size), np.full(size, np.nan), np.zeros(size), shared, np.full(size, np.inf))
    for part in left.components():
        names, rater = np.unique(part.rater, return_inverse=True)
        center = float(part.value.mean()) if centered else 0.0
        bias, scales = _fit(replace(part, rater=rater, value=part.value - center, raters=names))
        result.bias[names], result.scale[names] = bias, np.exp(scales.log_scale)
        result.noise[names], result.center[names] = scales.noise, center
        result.against_others[names] = scales.against_others
    return result


def _fit(part: RaterSample) -> tuple[np.ndarray, Scales]:
    """Biases given scales and scales given biases, in turn, until the scales stand still; then which scales they are to be."""
    size, within = len(part.raters), part.within_prompts()
    cluster = within.item if within.prompt is None else within.prompt
    bias, scales, value = _biases(part, np.ones(size)), None, within.value
    for _ in range(ITERATIONS):
        value = within.value - within.coefficient * bias[within.rater]
        before, scales = scales, rater_scales(within.item, within.rater, value, cluster, size)
        bias = _biases(part, np.exp(scales.log_scale))
        if np.abs(scales.log_scale - (before.log_scale if before else 0.0)).max() < 1e-9:
            break
    assert scales is not None
    weight = _weights(scales.noise, np.bincount(part.rater, minlength=size))
    logs = scales.log_scale, scales.log_deviation
    if len(value) and deviations_foretell_better(within.item, within.rater, value, np.exp(logs[0]), weight, np.exp(logs[1])):
        scales = scales._replace(log_scale=logs[1], noise=np.full(size, np.nan))
        bias = _biases(part, np.exp(logs[1]))
    if (part.coefficient == 1).all():  # a constant may pass between items and biases: in grade units the biases are to sum to 0
        scale = np.exp(scales.log_scale)
        bias = bias - scale * float(bias[part.rater].sum() / scale[part.rater].sum())
    return bias, scales


def _biases(part: RaterSample, scale: np.ndarray) -> np.ndarray:
    """Biases in grade units, given the scales."""
    return rater_biases(part.item, part.rater, part.value / scale[part.rater], part.coefficient, len(scale)) * scale


def _weights(noise: np.ndarray, items: np.ndarray) -> np.ndarray:
    """1 over the noise variance, relative to its average, 1 where it is unknown; at most four times that of the median rater."""
    weight = np.ones(len(noise))
    known = np.isfinite(noise)
    n, v = items[known].astype(np.float64), noise[known]
    if not (v > 0).any():
        return weight
    pooled = float((n * v).sum() / n.sum())
    shrunk = np.maximum((NOISE_PRIOR * pooled + n * v) / (NOISE_PRIOR + n), float(np.median(v)) / LARGEST_WEIGHT)
    weight[known] = pooled / shrunk
    return weight


def remove_effects(grades: Grades, raters: Sequence[str], effects: Mapping[str, RaterEffect]) -> tuple[Grades, np.ndarray]:
    """Grades in common units, weighted, and the items of the grades left out because their rater gives no signal.

    grades: one a rater and item; raters: names by `grades.rater`; a rater without an effect keeps its grades as they are.
    """
    known = [effects.get(name, RaterEffect()) for name in raters] or [RaterEffect()]
    bias, scale, center, weight = (np.array([getattr(e, n) for e in known]) for n in ("bias", "scale", "center", "weight"))
    r = grades.rater
    coefficient = 1.0 if grades.coefficient is None else grades.coefficient
    value = center[r] + (grades.value - center[r] - coefficient * bias[r]) / scale[r]
    result = replace(grades, value=value, variance=grades.variance / scale[r] ** 2, weight=weight[r])
    heard = weight[r] > 0
    return result.take(heard), grades.item[~heard]
