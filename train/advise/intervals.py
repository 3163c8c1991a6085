"""What was measured on several splits, as values and differences with 95% intervals that respect prompts and splits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from mmpo.pipeline.metrics import student
from mmpo.train.advise.controls import OWN, Key, Setting
from mmpo.train.advise.measure import FOLDS, Fold

DRAWS = 400
OVERLAP = 1 / (FOLDS - 1)
"""What training sets that overlap add to the variance between splits: test prompts over the others (Nadeau and Bengio 2003)."""
DOUBT = 2.0
"""Standard errors that a choice must lead the default by."""
MEASURES = ("accuracy", "nll", "ece")
Interval = tuple[float, float, float]
"""Value, low, high: 95%."""


def widened(groups: int) -> float:
    """What a standard error over so many groups, of their random weights, is to be taken by for half a 95% interval.

    Random weights make the variance of a mean over n groups too small, by (n − 1)/(n + 1); and of an error that is itself estimated from n
    groups t is to be taken. Of 12 groups both make 2.39 of 1.96, of 200 1.98.
    """
    return student(max(groups - 1, 1)) * math.sqrt((groups + 1) / max(groups - 1, 1))


def measures_of(sums: np.ndarray, pairs: np.ndarray | float) -> np.ndarray:
    """accuracy, nll and ece from sums over pairs, (..., 2 + BINS) → (..., 3)."""
    pairs = np.maximum(pairs, 1e-12)
    return np.stack([sums[..., 0] / pairs, sums[..., 1] / pairs, np.abs(sums[..., 2:]).sum(axis=-1) / pairs], axis=-1)


def choice(sums: np.ndarray, pairs: np.ndarray, doubt: float = DOUBT) -> int:
    """Which row has the least loss, the first one being the default: another is taken where its lead over the default, less `doubt`
    standard errors over prompts, is the largest and above 0. sums: (rows, groups); pairs: (groups,).
    """
    gap, total = sums - sums[0], max(pairs.sum(), 1e-12)
    mean = gap.sum(axis=1) / total
    error = np.sqrt(((gap - mean[:, None] * pairs) ** 2).sum(axis=1)) / total
    return int(np.argmin(mean + doubt * error))


@dataclass(frozen=True, eq=False)
class Measured:
    """All splits together. Prompts are drawn with random weights (the Bayesian bootstrap over groups), the same ones for every objective,
    so that differences are paired; to that comes what splits differ by beyond their prompts, which training on other prompts makes.
    """

    keys: Sequence[Key]
    folds: Sequence[Fold]
    groups: int
    seed: int = 0

    def with_choice(self, candidates: Sequence[Setting], name: Setting) -> Measured:
        """With one more setting: on each split, the candidate (in all its roles) that its validation prompts choose."""
        folds = []
        for fold, best in zip(self.folds, self.chosen(candidates), strict=True):
            at = [self.keys.index((best, role)) for role in name.roles]
            names = ("tuned", "untuned", "raw", "validation", "decay", *(("voted",) if fold.voted is not None else ()))
            folds.append(
                replace(fold, **{field: np.concatenate([getattr(fold, field), getattr(fold, field)[at]]) for field in names})
            )
        return replace(self, keys=[*self.keys, *((name, role) for role in name.roles)], folds=folds)

    def of_votes(self) -> Measured:
        """The same heads judged by votes on the test prompts, each vote counting once."""
        folds = []
        for fold in self.folds:
            if fold.votes is not None and fold.voted is not None and (mine := fold.votes > 0).any():
                folds.append(replace(fold, groups=fold.groups[mine], pairs=fold.votes[mine], tuned=fold.voted[:, mine]))
        return replace(self, folds=folds)

    def chosen(self, candidates: Sequence[Setting]) -> list[Setting]:
        """The candidate that each split's validation prompts choose."""
        at = [self.keys.index((row, OWN)) for row in candidates]
        return [candidates[choice(fold.validation[at], fold.chosen_on)] for fold in self.folds]

    def recommended(self, candidates: Sequence[Setting]) -> Setting:
        """The candidate that the validation prompts of all splits choose."""
        at = [self.keys.index((row, OWN)) for row in candidates]
        sums = np.sum([fold.validation[at] for fold in self.folds], axis=0)
        return candidates[choice(sums, np.sum([fold.chosen_on for fold in self.folds], axis=0))]

    @cached_property
    def _weights(self) -> np.ndarray:
        return np.random.default_rng([self.seed, 7]).standard_exponential((DRAWS, self.groups)).astype(np.float32)

    @cached_property
    def values(self) -> np.ndarray:
        """accuracy, nll, ece of every key over all test pairs, (keys, 3)."""
        return self._of("tuned")

    @cached_property
    def untuned(self) -> np.ndarray:
        """The same at the untuned end of training."""
        return self._of("untuned")

    @cached_property
    def raw(self) -> np.ndarray:
        """The same at temperature 1."""
        return self._of("raw")

    def _of(self, name: str) -> np.ndarray:
        return measures_of(
            sum(getattr(f, name).sum(axis=1, dtype=np.float64) for f in self.folds), sum(f.pairs.sum() for f in self.folds)
        )

    @cached_property
    def _drawn(self) -> tuple[np.ndarray, np.ndarray]:
        """Under each draw of prompts: of all splits together (DRAWS, keys, 3), and of each, (folds, DRAWS, keys, 3)."""
        sums, pairs, each = 0.0, 0.0, []
        for fold in self.folds:
            weights = self._weights[:, fold.groups]
            keys, groups, kinds = fold.tuned.shape
            mine = (weights @ fold.tuned.transpose(1, 0, 2).reshape(groups, -1)).reshape(DRAWS, keys, kinds)
            count = (weights @ fold.pairs)[:, None]
            each.append(measures_of(mine, count))
            sums, pairs = sums + mine, pairs + count
        return measures_of(np.asarray(sums), pairs), np.stack(each)

    @cached_property
    def each(self) -> np.ndarray:
        """Of each split, (folds, keys, 3)."""
        return np.stack([measures_of(fold.tuned.sum(axis=1, dtype=np.float64), fold.pairs.sum()) for fold in self.folds])

    def difference(self, one: Key, other: Key | None = None) -> dict[str, list[float]]:
        """{measure: [value, low, high]} of one key, or of its difference to another."""

        def of(array: np.ndarray) -> np.ndarray:
            first = array[..., self.keys.index(one), :]
            return first if other is None else first - array[..., self.keys.index(other), :]

        value, (drawn, each_drawn), each = of(self.values), self._drawn, of(self.each)
        variance = of(drawn).var(axis=0, ddof=1)
        if len(self.folds) > 1:
            beyond = np.maximum(each.var(axis=0, ddof=1) - of(each_drawn).var(axis=1, ddof=1).mean(axis=0), 0.0)
            variance = variance + beyond * (1 / len(self.folds) + OVERLAP)
        half = widened(self.tested) * np.sqrt(variance)
        return {name: [float(value[i]), float(value[i] - half[i]), float(value[i] + half[i])] for i, name in enumerate(MEASURES)}

    @cached_property
    def tested(self) -> int:
        """Groups of prompts that were tested at least once."""
        return len(np.unique(np.concatenate([fold.groups for fold in self.folds])))
