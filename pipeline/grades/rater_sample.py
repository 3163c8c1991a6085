"""Grades that raters are compared by, and the raters whose grades tell nothing of what the others see."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

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


def _with_the_others(sample: RaterSample) -> tuple[np.ndarray, np.ndarray]:
    """Each rater's correlation with the mean of the others' standardised grades, and over how many items."""
    size, item, rater = len(sample.raters), sample.item, sample.rater
    n = np.bincount(rater, minlength=size)

    def sums(values: np.ndarray) -> np.ndarray:
        return np.bincount(rater, weights=values, minlength=size)

    bias = sums(sample.coefficient * sample.value) / np.maximum(sums(sample.coefficient**2), 1e-12)
    z = sample.value - sample.coefficient * bias[rater]
    z -= (sums(z) / np.maximum(n, 1))[rater]
    z /= np.maximum(np.sqrt(sums(z * z) / np.maximum(n, 1)), 1e-300)[rater]
    k = np.bincount(item)
    others = (np.bincount(item, weights=z)[item] - z) / np.maximum(k[item] - 1, 1)
    others -= (sums(others) / np.maximum(n, 1))[rater]
    scale = np.sqrt(sums(z * z) * sums(others * others))
    return np.where(scale > 0, sums(z * others) / np.maximum(scale, 1e-300), 0.0), n
