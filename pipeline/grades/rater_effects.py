"""Raters' own biases and scales, estimated from the items they share, and taken out of their grades: `--raters rater-effects`.

    grade = center + coefficient · bias_r + scale_r · (item - center + noise_r)

coefficient: 1 for ratings; for a gap the mean of +1 (the item's first half was shown first) and -1 over the orders answered: 0 for both, so
that a position bias cancels. center: the mean grade of ratings, 0 of gaps. scale: how far a rater's grades spread, their standard
deviation within prompts; so the grades of a rater who knows little of the items, which mostly are noise, come out no larger than others'.
Biases sum to 0 over the grades, logarithms of scales over the raters, so that grades keep their unit. All is shrunk by empirical Bayes:
raters who differ no more than chance would make them keep bias 0 and scale 1.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.grades.aggregate import Grades

LEAST_SHARED = 20
"""Items shared with other raters from which on a rater gets a scale of its own, and can be found to give no signal."""

LEAST_CORRELATION = 0.1
"""With the others' consensus: a rater surely below it, and not surely above 0, gives no signal even among raters of its like."""


@dataclass(frozen=True)
class RaterSample:
    """Grades to compare raters by, one a rater and item, arrays of shape (grades,); item, rater and prompt are numbers.

    coefficient: how often the rater's bias is in the grade; raters: names by number; prompt: of ratings, None for gaps, which are within
    a prompt as they are; independent: share of the grades that the others don't determine.
    """

    item: np.ndarray
    rater: np.ndarray
    value: np.ndarray
    coefficient: np.ndarray
    raters: Sequence[str]
    prompt: np.ndarray | None = None
    independent: float = 1.0

    @staticmethod
    def joined(parts: Sequence["RaterSample"]) -> "RaterSample":
        """Samples of different prompts as one; raters in the order of their names, items and prompts in the order of the parts."""
        names = sorted({name for part in parts for name in part.raters})
        place = {name: index for index, name in enumerate(names)}
        raters = [np.array([place[name] for name in part.raters], np.int64)[part.rater] for part in parts]
        prompts = [part.prompt for part in parts if part.prompt is not None]
        return RaterSample(
            _following([part.item for part in parts]),
            np.concatenate(raters),
            np.concatenate([part.value for part in parts]),
            np.concatenate([part.coefficient for part in parts]),
            names,
            _following(prompts) if len(prompts) == len(parts) else None,
        )

    def by_rater(self, values: np.ndarray | None = None) -> np.ndarray:
        """The sum of the grades' values for each rater, shape (raters,); without values, how many grades it has."""
        return np.bincount(self.rater, weights=values, minlength=len(self.raters))

    def take(self, index: np.ndarray) -> "RaterSample":
        """The grades at these positions; those of items that only one rater is left of go too, items are numbered anew."""
        _, item, counts = np.unique(self.item[index], return_inverse=True, return_counts=True)
        several = counts[item] > 1
        kept = np.arange(len(self.item))[index][several]
        return replace(
            self,
            item=np.unique(item[several], return_inverse=True)[1],
            rater=self.rater[kept],
            value=self.value[kept],
            coefficient=self.coefficient[kept],
            prompt=None if self.prompt is None else self.prompt[kept],
        )

    def within_prompts(self) -> "RaterSample":
        """What margins are made of: of ratings the deviations from the rater's mean in the prompt (variance kept), of gaps themselves.

        A rater who only agrees with others on which prompts are hard would else seem reliable, and biases would have a part.
        """
        if self.prompt is None:
            return self
        _, group = np.unique(self.prompt * len(self.raters) + self.rater, return_inverse=True)
        counts = np.bincount(group)
        several = counts[group] > 1
        mean = np.bincount(group, weights=self.value) / counts
        size = np.maximum(counts[group], 2)
        value = (self.value - mean[group]) * np.sqrt(size / (size - 1))
        independent = 1 - float((counts > 1).sum()) / max(1, int(several.sum()))
        centered = replace(self, value=value, coefficient=np.zeros(len(value)), independent=independent)
        return centered.take(several)

    def components(self) -> list["RaterSample"]:
        """The sample in parts whose raters are linked by shared items, directly or through others."""
        if not len(self.item):
            return []
        label = np.arange(len(self.raters))
        while True:  # the smallest number of linked raters spreads until nothing changes
            of_item = np.full(int(self.item.max()) + 1, len(label))
            np.minimum.at(of_item, self.item, label[self.rater])
            new = label.copy()
            np.minimum.at(new, self.rater, of_item[self.item])
            if (new == label).all():
                break
            label = new
        component = label[self.rater]
        order = np.argsort(component, kind="stable")
        cuts = np.flatnonzero(np.diff(component[order])) + 1
        return [self.take(part) for part in np.split(order, cuts)]


def _following(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Numbers of parts as one sequence: each part's come after those of the one before."""
    starts = np.cumsum([0, *(int(part.max(initial=-1)) + 1 for part in parts)])
    return np.concatenate([part + start for part, start in zip(parts, starts[:-1], strict=True)])


def without_signal(sample: RaterSample) -> np.ndarray:
    """Which raters' grades don't follow the consensus of the others, the worst taken out first, shape (raters,)."""
    size = len(sample.raters)
    alive = np.ones(size, dtype=bool)
    while True:
        left = sample.take(alive[sample.rater])
        correlation, n = _with_the_others(left)
        tested = n >= LEAST_SHARED
        if not tested.any():
            return ~alive
        error = 2 / np.sqrt(np.maximum(n * sample.independent, 1))
        usual = max(float(np.median(correlation[tested])), LEAST_CORRELATION)
        lost = (correlation < error) & (correlation + error < usual)
        bad = tested & lost
        if not bad.any():
            return ~alive
        # Two raters who only share items with one another have the same correlation: neither can be blamed alone.
        alive &= ~(bad & (correlation <= correlation[bad].min() + 1e-9))


class RaterAgreement(NamedTuple):
    """A rater's correlation with the mean of the others over the items they share, from -1 to 1, its 95% interval, and how many items."""

    correlation: float
    low: float
    high: float
    items: int


def rater_agreement(sample: RaterSample) -> dict[str, RaterAgreement]:
    """Of each rater who shares 20 items or more with others: how far its grades go with theirs, within prompts."""
    within = sample.within_prompts()
    if not len(within.item):
        return {}
    correlation, n = _with_the_others(within)
    error = 2 / np.sqrt(np.maximum(n * within.independent, 1))
    low, high = np.maximum(correlation - error, -1), np.minimum(correlation + error, 1)
    columns = zip(sample.raters, *(column.tolist() for column in (correlation, low, high, n)), strict=True)
    return {name: RaterAgreement(*row) for name, *row in columns if row[-1] >= LEAST_SHARED}


def _with_the_others(sample: RaterSample) -> tuple[np.ndarray, np.ndarray]:
    """Each rater's correlation with the mean of the others' standardised grades, and over how many items."""
    item, rater, sums = sample.item, sample.rater, sample.by_rater
    n = sums()
    bias = sums(sample.coefficient * sample.value) / np.maximum(sums(sample.coefficient**2), 1e-12)
    z = sample.value - sample.coefficient * bias[rater]
    z -= (sums(z) / np.maximum(n, 1))[rater]
    z /= np.maximum(np.sqrt(sums(z * z) / np.maximum(n, 1)), 1e-300)[rater]
    k = np.bincount(item)
    others = (np.bincount(item, weights=z)[item] - z) / np.maximum(k[item] - 1, 1)
    others -= (sums(others) / np.maximum(n, 1))[rater]
    scale = np.sqrt(sums(z * z) * sums(others * others))
    return np.where(scale > 0, sums(z * others) / np.maximum(scale, 1e-300), 0.0), n


ROUNDS = 5
"""How often biases and scales are fitted in turn; of ratings, whose scales do not depend on biases, the second round changes nothing."""

MOST_STEPS = 200
"""Of conjugate gradients."""

LEAST_SCALE = 0.1
"""Of the others' scale: at or below it a rater gives no signal."""

NOISE_PRIOR = 20.0
"""How many items the pooled noise counts for beside a rater's own."""

LARGEST_WEIGHT = 4.0
"""Times that of the median rater."""


class RaterEffect(NamedTuple):
    """One rater. bias: in grade units, > 0: grades higher than others (gaps: prefers the first shown). scale > 0.

    noise: standard deviation of a grade about the item in common units, NaN where the rater has no scale of its own; items: how many it
    shares with others in the sample; signal: False where its grades tell nothing of what the others see; connected: False where it shares
    no item, and so keeps bias 0 and scale 1; weight: what its grade counts for beside others, 0 without signal; center: see the module.
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
    items and relative to the average, else 1. Two raters' noises can't be told apart, and they count the same.

    Raters who share items through others are fitted together; a rater who shares none keeps bias 0 and scale 1. A rater gives no signal if
    it shares 20 items or more and its correlation with the others' consensus is less than two standard errors above 0 and more than two
    below the median of the raters (or .1), or its scale is ≤ 0.1 of the others': its weight is 0, with weighted or without. Raises
    UserError where nobody gives any.
    """
    sample = sample.take(np.lexsort((sample.rater, sample.item)))
    size = len(sample.raters)
    items = sample.by_rater()
    silent = without_signal(sample.within_prompts())
    while True:
        left = sample.take(~silent[sample.rater])
        bias, scale, noise, center = np.zeros(size), np.ones(size), np.full(size, np.nan), np.zeros(size)
        flat = np.zeros(size, dtype=bool)
        for part in left.components():
            names, rater = np.unique(part.rater, return_inverse=True)
            center[names] = part.value.mean() if centered else 0.0
            part = replace(part, rater=rater, value=part.value - center[part.rater], raters=names)
            bias[names], scale[names], noise[names], flat[names] = _fit(part)
        if not flat.any():
            break
        silent |= flat
    if silent.any() and not (~silent & (items > 0)).any():
        raise UserError(
            f"--raters rater-effects: no rater's grades agree with the others' better than chance ({', '.join(sample.raters[:6])}). "
            "Choose raters with --rater or --kind, or merge them by --raters mean"
        )
    weight = _weights(noise, items) if weighted else np.ones(size)
    weight[silent] = 0.0
    connected = (left.by_rater() > 0) | silent
    columns = (bias, scale, np.sqrt(noise), items, ~silent, connected, weight, center)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return {name: RaterEffect(*row) for name, row in zip(sample.raters, rows, strict=True)}


def _fit(part: RaterSample) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Bias, scale, variance of the noise and whether the scale is ≤ 0.1 of the others', shape (raters,) each, of linked raters."""
    size, within = len(part.raters), part.within_prompts()
    scale = np.ones(size)
    for _ in range(ROUNDS):
        bias = _biases(part, scale)
        value = within.value - within.coefficient * bias[within.rater]
        scaled, log_scale = _scales(replace(within, value=value))
        scale[scaled] = np.exp(log_scale)
    bias = _biases(part, scale)
    noise, flat = np.full(size, np.nan), np.zeros(size, dtype=bool)
    if len(scaled):
        common = replace(within, value=value / scale[within.rater]).take(np.isin(within.rater, scaled))
        noise[scaled] = _noises(common)[scaled]
        flat[scaled] = log_scale * len(scaled) / (len(scaled) - 1) <= np.log(LEAST_SCALE)
    if (part.coefficient == 1).all():  # a constant may pass between items and biases: in grade units the biases are to sum to 0
        bias = bias - scale * float(bias[part.rater].sum() / scale[part.rater].sum())
    return bias, scale, noise, flat


def _biases(part: RaterSample, scale: np.ndarray) -> np.ndarray:
    """Biases in grade units, given the scales: least squares with a free value for every item, shrunk to 0 by empirical Bayes.

    Shape (raters,). Where all coefficients are 1 a constant in all biases is free; the smallest biases are taken.
    """
    item, rater, coefficient, raters = part.item, part.rater, part.coefficient, len(scale)
    value, k = part.value / scale[rater], np.bincount(item)

    def within(x: np.ndarray) -> np.ndarray:
        return x - (np.bincount(item, weights=x) / k)[item]

    def by_rater(x: np.ndarray) -> np.ndarray:
        return part.by_rater(coefficient * x)

    def normal(bias: np.ndarray) -> np.ndarray:
        return by_rater(within(coefficient * bias[rater]))

    information = by_rater(coefficient * (1 - 1 / k[item]))
    free = information > 0
    if free.sum() < 1:
        return np.zeros(raters)
    right = by_rater(within(value))
    nothing = 1e-12 * float(np.linalg.norm(by_rater(np.abs(value))))  # what rounding leaves where raters agree
    raw = _solved(normal, right, nothing)
    left = within(value - coefficient * raw[rater])
    noise = float((left**2).sum()) / max(len(item) - len(k) - int(free.sum()), 1)
    real = float((raw[free] ** 2 - noise / information[free]).sum()) / max(int(free.sum()) - 1, 1)
    if real <= 0:
        return np.zeros(raters)
    return _solved(lambda bias: normal(bias) + noise / real * bias, right, nothing) * scale


def _scales(within: RaterSample) -> tuple[np.ndarray, np.ndarray]:
    """Raters who have a scale of their own, and its logarithm, shrunk and of sum 0; shape (scaled raters,) each, two or none.

    within: grades without biases, within prompts. A rater has one if it shares 20 items or more with others who have one, and its grades
    are not all the same.
    """
    raters, scaled = len(within.raters), np.arange(len(within.raters))
    while True:
        within = within.take(np.isin(within.rater, scaled))
        n = within.by_rater()
        z = within.value - (within.by_rater(within.value) / np.maximum(n, 1))[within.rater]
        variance = within.by_rater(z**2) / np.maximum(n - 1, 1)
        before, scaled = scaled, np.flatnonzero((n >= LEAST_SHARED) & (variance > 0))
        if len(scaled) < 2:
            return np.zeros(0, dtype=np.int64), np.zeros(0)
        if len(scaled) == len(before):
            break
    # the sampling variance of a logarithm of a standard deviation, from squared influences of prompts: no distribution is assumed
    influence = (z**2 / variance[within.rater] - 1) / 2
    keys, group = np.unique((within.item if within.prompt is None else within.prompt) * raters + within.rater, return_inverse=True)
    prompts = np.bincount(keys % raters, minlength=raters)
    squares = np.bincount(keys % raters, weights=np.bincount(group, weights=influence) ** 2, minlength=raters)
    sampling = squares[scaled] * prompts[scaled] / np.maximum(prompts[scaled] - 1, 1) / n[scaled] ** 2
    logs = shrunk(np.log(variance[scaled]) / 2, sampling)
    return scaled, logs - logs.mean()


def shrunk(estimate: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Estimates drawn to their precision-weighted mean by empirical Bayes: what varies beyond sampling is taken for real.

    How much that is comes from the method of moments with weights (DerSimonian and Laird 1986): one rater of few grades does not hide that
    others differ. estimate, variance: shape (raters,), two or more.

    >>> shrunk(np.array([1.0, 3.0]), np.array([2.0, 2.0])).tolist()  # a variance of 2 is what sampling makes
    [2.0, 2.0]
    """
    variance = np.maximum(variance, 1e-12 + 1e-9 * variance.max())
    weight = 1 / variance
    mean = (weight * estimate).sum() / weight.sum()
    beyond = (weight * (estimate - mean) ** 2).sum() - (len(estimate) - 1)
    real = max(0.0, float(beyond / (weight.sum() - (weight**2).sum() / weight.sum())))
    weight = 1 / (variance + real)
    mean = (weight * estimate).sum() / weight.sum()
    return mean + (estimate - mean) * real * weight


def _noises(common: RaterSample) -> np.ndarray:
    """Variance of each rater's grades about the item, shape (raters,), ≥ 0; equal ones where raters can't be told apart.

    common: grades in common units, without biases. Of k raters' grades x of an item with mean m, E (x_r - m)² = v_r·(1 - 2/k) + Σ v_s/k²:
    as many equations as raters.
    """
    item, rater, raters = common.item, common.rater, len(common.raters)
    k = np.bincount(item)
    off = common.value - (np.bincount(item, weights=common.value) / k)[item]

    def normal(v: np.ndarray) -> np.ndarray:
        return common.by_rater((1 - 2 / k[item]) * v[rater] + (np.bincount(item, weights=v[rater]) / k**2)[item])

    right = common.by_rater(off**2)
    equal = right.sum() / max(float(normal(np.ones(raters)).sum()), 1e-300) * (common.by_rater() > 0)
    return np.maximum(equal + _solved(normal, right - normal(equal), 1e-12 * float(np.linalg.norm(right))), 0.0)


def _solved(normal: Callable[[np.ndarray], np.ndarray], right: np.ndarray, nothing: float) -> np.ndarray:
    """normal(x) = right by conjugate gradients from 0: of a singular system (biases plus any constant) the smallest solution.

    nothing: the length of a residual that counts as 0.
    """
    x, residual = np.zeros_like(right), right.copy()
    direction, size = residual.copy(), float(residual @ residual)
    for _ in range(MOST_STEPS):
        image = normal(direction)
        curvature = float(direction @ image)
        if size <= nothing**2 or curvature <= 0:
            break
        step = size / curvature
        x, residual = x + step * direction, residual - step * image
        size, before = float(residual @ residual), size
        direction = residual + size / before * direction
    return x


def _weights(noise: np.ndarray, items: np.ndarray) -> np.ndarray:
    """1 over the noise variance, relative to its average, 1 where it is unknown; at most four times that of the median rater."""
    weight = np.ones(len(noise))
    known = np.isfinite(noise)
    n, v = items[known].astype(np.float64), noise[known]
    if not (v > 0).any():
        return weight
    pooled = float((n * v).sum() / n.sum())
    drawn_to_pooled = (NOISE_PRIOR * pooled + n * v) / (NOISE_PRIOR + n)
    weight[known] = pooled / np.maximum(drawn_to_pooled, float(np.median(v)) / LARGEST_WEIGHT)
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
