"""Maps judged on pairs that nothing was fitted to: cross-fitting by prompt, the choice of a map, and its errors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mmpo.annotate.calibrate.maps import MAPS, FittedMap, HumanAnswers
from mmpo.annotate.calibrate.position import Position, fit_with_position
from mmpo.annotate.pairings import digest_of
from mmpo.pipeline.margins import Floats, softplus
from mmpo.pipeline.metrics import NORMAL, cluster_counts, student

DOUBT = 0.5
"""Standard errors by which a map must lead the simplest one to be taken."""
CURVE_SHARES = (0.25, 0.5, 0.75, 1.0)
CURVE_DRAWS = 5


@dataclass(frozen=True)
class MapSetting:
    """A map, and whether the difference of lengths is among its features."""

    method: str
    length: bool

    @property
    def name(self) -> str:
        """As figures call it."""
        return self.method + (" + length" if self.length else "")


@dataclass(frozen=True)
class Labelled:
    """The pairs that both a grader and people graded. features: as of `Grader`, the first `margins` of them margins, the last one lengths;
    prompt: whose pair it is, 0 to prompts − 1; fold: which part it is held out with; all of shape (pairs, ...). limit: people's widest
    margin or None; position: what is known without people of the bias that the second feature, the order, stands for, None: nothing."""

    features: Floats
    margins: int
    answers: HumanAnswers
    prompt: np.ndarray
    fold: np.ndarray
    limit: float | None
    position: Position | None = None

    @property
    def share(self) -> Floats:
        """Of people's votes that prefer the first completion; shape (pairs,)."""
        return self.answers.votes / self.answers.voters

    @property
    def prompts(self) -> int:
        """How many prompts there are."""
        return int(self.prompt.max(initial=-1)) + 1

    def fit(self, setting: MapSetting, weight: Floats) -> FittedMap:
        """A setting's map; expected margins stay within people's widest one."""
        columns = columns_of(self.features, setting)
        found = fit_with_position(MAPS[setting.method], columns, self.margins, self.answers, weight, self.position)
        if (limit := self.limit) is None:
            return found
        return replace(found, expected=lambda index: np.clip(found.expected(index), -limit, limit))


def folds_of(prompts: Sequence[str], folds: int, seed: int) -> np.ndarray:
    """The fold of each prompt, in equal numbers, by their digests: the same whatever their order; shape (prompts,)."""
    digests = np.array([digest_of(seed, "fold", name) for name in prompts], dtype="S16")
    return np.argsort(np.argsort(digests, kind="stable"), kind="stable") % min(folds, len(prompts))


def columns_of(features: Floats, setting: MapSetting) -> Floats:
    """The features that a setting reads."""
    return features if setting.length else features[:, :-1]


def logits(chance: Floats) -> Floats:
    """log(p/(1 − p)), finite."""
    p = np.clip(chance, 1e-9, 1 - 1e-9)
    return np.log(p) - np.log1p(-p)


def entropies_of(chance: Floats, sample: Labelled) -> Floats:
    """The cross-entropy of each pair's chance to people's votes, in nats; shape (pairs,)."""
    z = logits(chance)
    return sample.share * softplus(-z) + (1 - sample.share) * softplus(z)


@dataclass(frozen=True)
class HeldOut:
    """What maps fitted to the other folds say of each pair, shape (pairs,)."""

    setting: MapSetting
    chance: Floats
    expected: Floats

    def entropies(self, sample: Labelled) -> Floats:
        """The cross-entropy of each pair to people's votes, in nats."""
        return entropies_of(self.chance, sample)

    def losses(self, sample: Labelled, variance: float) -> Floats:
        """Nats of each pair, up to a constant: people's votes under the chance, and their mean margin under a normal distribution of this
        variance about the expected one; shape (pairs,)."""
        return self.entropies(sample) + (sample.answers.mean - self.expected) ** 2 / (2 * max(variance, 1e-300))


def held_out(sample: Labelled, setting: MapSetting, weight: Floats | None = None) -> HeldOut:
    """Each fold by the map of the others, in which a pair counts `weight` times, shape (pairs,)."""
    chance, expected = np.full(len(sample.fold), 0.5), np.zeros(len(sample.fold))
    for one in np.unique(sample.fold):
        out = sample.fold == one
        found = sample.fit(setting, np.where(out, 0.0, 1.0 if weight is None else weight))
        index = found.index(columns_of(sample.features[out], setting))
        chance[out], expected[out] = found.chance(index), found.expected(index)
    return HeldOut(setting, chance, expected)


def mean_and_error(values: Floats, prompt: np.ndarray) -> tuple[Floats, Floats]:
    """Means over pairs, and their standard errors over prompts; values: shape (..., pairs)."""
    mean = values.mean(axis=-1)
    off = values - mean[..., None]
    prompts = int(prompt.max(initial=-1)) + 1
    sums = np.apply_along_axis(lambda row: np.bincount(prompt, row, minlength=prompts), -1, off)
    return mean, np.sqrt((sums**2).sum(axis=-1) * prompts / max(prompts - 1, 1)) / values.shape[-1]


def best_of(found: Sequence[HeldOut], sample: Labelled, among: np.ndarray | None = None) -> HeldOut:
    """The first, unless another's lead over it less DOUBT standard errors over prompts is above 0; then the one of the largest. among: the
    pairs that choose, a mask."""
    which = np.ones(len(sample.fold), dtype=bool) if among is None else among
    variance = float(np.mean((sample.answers.mean - found[0].expected)[which] ** 2))
    losses = np.stack([one.losses(sample, variance)[which] for one in found])
    mean, error = mean_and_error(losses - losses[0], sample.prompt[which])
    return found[int(np.argmin(mean + DOUBT * error))]


def chosen_elsewhere(found: Sequence[HeldOut], sample: Labelled) -> HeldOut:
    """Each fold by the map that the pairs of the other folds choose, so that choosing flatters no figure; its setting is the one that all
    pairs choose."""
    chance, expected = np.zeros(len(sample.fold)), np.zeros(len(sample.fold))
    for one in np.unique(sample.fold):
        out = sample.fold == one
        best = best_of(found, sample, ~out)
        chance[out], expected[out] = best.chance[out], best.expected[out]
    return HeldOut(best_of(found, sample).setting, chance, expected)


def settings(methods: Sequence[str], length: str) -> list[MapSetting]:
    """What is tried: each method without and with lengths, the simplest first."""
    ways = [with_length for with_length in (False, True) if length in ("auto", "on" if with_length else "off")]
    return [MapSetting(name, with_length) for with_length in ways for name in methods]


def fit_variance(sample: Labelled, setting: MapSetting, features: Floats, draws: int, seed: int) -> Floats:
    """The variance of the expected margins of some pairs between maps fitted to prompts drawn with replacement; shape (pairs,)."""
    of = columns_of(features, setting)
    total, squares = np.zeros(len(of)), np.zeros(len(of))
    counts = np.concatenate(list(cluster_counts(sample.prompts, draws, seed)))
    center = np.zeros(len(of))
    for number, row in enumerate(counts):
        found = sample.fit(setting, row[sample.prompt])
        value = found.expected(found.index(of))
        center = value if not number else center  # squares of differences from the first one: no digits are lost
        total += value - center
        squares += (value - center) ** 2
    variance = np.maximum(squares - total**2 / draws, 0.0) / (draws - 1)
    return variance * sample.prompts / max(sample.prompts - 1, 1)


@dataclass(frozen=True)
class Errors:
    """fit: variance of the expected margin that a map fitted to so few people makes, shape (pairs,) of all that the grader graded; beyond:
    variance of people's expected margins about the map; bound: whether beyond still holds people's own noise; widen: what Student's t for
    so many prompts makes of a normal interval."""

    fit: Floats
    beyond: float
    bound: bool
    widen: float

    @property
    def spread(self) -> Floats:
        """The standard error of people's expected margin, shape (pairs,)."""
        return self.widen * np.sqrt(self.fit + self.beyond)


def errors_of(
    sample: Labelled, chosen: HeldOut, noise: float, degrees: int, all_features: Floats, labelled: np.ndarray, draws: int, seed: int
) -> Errors:
    """all_features: of all pairs of the grader; labelled: which of them people graded; noise: variance of one person's margin, from so many
    degrees of freedom, NaN: not known, so that all of the held-out residual is taken for an error of the map."""
    fit = fit_variance(sample, chosen.setting, all_features, draws, seed)
    known = np.isfinite(noise)
    share = float(np.mean(1 / sample.answers.voters))
    left, error = mean_and_error((sample.answers.mean - chosen.expected) ** 2 - fit[labelled], sample.prompt)
    if known:
        left, error = left - noise * share, np.hypot(error, noise * share * np.sqrt(2 / degrees))
    return Errors(fit, above_zero(float(left), float(error)), not known, student(max(sample.prompts - 1, 1)) / NORMAL)


def above_zero(value: float, error: float) -> float:
    """The mean of what a variance may be that was estimated as so much, with a normal error, but can't be below 0.

    Noise that is taken off leaves less than nothing at times; 0 would say that people agree with the map exactly.

    >>> round(above_zero(0.0, 1.0), 4), round(above_zero(9.0, 1.0), 4), above_zero(-0.5, 1e-12)
    (0.7979, 9.0, 2e-24)
    """
    from scipy.special import erfcx

    if error <= 0:
        return max(value, 0.0)
    z = value / error
    if z < -1e4:  # where the sum below cancels; off by 2/z² of it
        return -error / z
    return float(value + error * np.sqrt(2 / np.pi) / erfcx(-z / np.sqrt(2)))


def learning_curve(sample: Labelled, setting: MapSetting, seed: int) -> list[tuple[float, float, float]]:
    """Human pairs fitted to, held-out cross-entropy and root mean square error of the margin, by the share of prompts that is used."""
    rng, rows = np.random.default_rng([seed, 3]), []
    order = [rng.permutation(sample.prompts) for _ in range(CURVE_DRAWS)]
    for share in CURVE_SHARES:
        found = []
        for one in order if share < 1 else order[:1]:
            used = np.isin(sample.prompt, one[: max(2, round(share * sample.prompts))]).astype(np.float64)
            held = held_out(sample, setting, used)
            folds = len(np.unique(sample.fold))
            off = np.sqrt(np.mean((sample.answers.mean - held.expected) ** 2))
            found.append((used.sum() * (folds - 1) / folds, held.entropies(sample).mean(), off))
        rows.append(tuple(float(value) for value in np.mean(found, axis=0)))
    return rows
