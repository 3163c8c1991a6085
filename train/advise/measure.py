"""The comparison itself: prompts split, every objective fitted along its path, settings chosen on validation prompts and judged on test
prompts.

Splits are folds: five seeds test every prompt once, further seeds shuffle anew. On each, 3/5 of the prompts train, 1/5 choose, 1/5 judge.
Decay, and of the chosen MMPO γ and ties too, are those of the least likelihood loss on the validation prompts' labels at the temperature
that suits each best there: the raw one favours over-fitted weights for soft targets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mmpo.pipeline.margins import sigmoid, softplus
from mmpo.pipeline.metrics import BINS
from mmpo.train.advise.controls import BRADLEY_TERRY, OWN, Key, Setting, fit_settings
from mmpo.train.advise.evidence import Evidence
from mmpo.train.advise.heads import DECAYS

FOLDS, PARTS = 5, 4


@dataclass(frozen=True, eq=False)
class Split:
    """Groups of prompts that train, choose and judge, as masks over groups. number: of the seed; its rotations share test groups."""

    number: int
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


@dataclass(frozen=True, eq=False)
class Fold:
    """What one split showed, of every key (an objective in a role).

    groups: the test prompts' groups; pairs: untied test pairs of each, shape (groups,). tuned, untuned: sums over each group's pairs,
    shape (keys, groups, 2 + BINS): right, likelihood loss, and confidence − right by bin of the confidence. untuned: at the least decay,
    its temperature still its own. validation: sums over validation prompts' groups of the temperature-scaled loss at the best decay,
    (keys, all groups); chosen_on: of pairs there, (all groups,); decay: the best one, (keys,). raw: sums as in
    tuned at temperature 1. logits: of Bradley–Terry, for the test pairs at `rows`.
    """

    groups: np.ndarray
    pairs: np.ndarray
    tuned: np.ndarray
    untuned: np.ndarray
    raw: np.ndarray
    validation: np.ndarray
    chosen_on: np.ndarray
    decay: np.ndarray
    rows: np.ndarray
    logits: np.ndarray


def splits(found: Evidence, seeds: int, seed: int, rotations: int | None = None) -> Iterator[Split]:
    """`seeds` splits of the groups of prompts, each in `rotations`; the same for the same arguments.

    On small sets the quarter that chooses takes turns with the others (by default four times on up to 3,000 pairs, not on 12,000): choices
    rest on all prompts but those judged, and what is judged is the mean of the heads so trained. A group of ties alone only trains.
    """
    group = found.pair_group
    present, count = np.unique(group[found.decided]), int(found.group.max()) + 1
    folds = min(FOLDS, len(present))
    turns = rotations or int(np.clip(12_000 // len(group), 1, PARTS))
    for number in range(seeds):
        order = np.random.default_rng([seed, number // folds]).permutation(present)
        test = order[number % folds :: folds]
        rest = np.random.default_rng([seed, number, 1]).permutation(np.setdiff1d(order, test))
        for part in range(turns):
            choose, judge = (np.isin(np.arange(count), groups) for groups in (rest[part::PARTS], test))
            yield Split(number, ~choose & ~judge, choose, judge)


def joined(folds: Sequence[Fold]) -> Fold:
    """The rotations of one seed as one: means of what they showed."""
    means = {
        name: np.mean([getattr(f, name) for f in folds], axis=0) for name in ("tuned", "untuned", "raw", "validation", "logits")
    }
    return replace(folds[0], **means, decay=np.median([fold.decay for fold in folds], axis=0))


def scale_of(z: np.ndarray) -> np.ndarray:
    """1/temperature at which the likelihood of the labels is best, for each column of z (pairs, columns), all of which are of the chosen
    one; between e⁻⁹ and e⁹. The loss is convex in it: bisection on its slope.
    """
    low, high = np.full(z.shape[1], -9.0), np.full(z.shape[1], 9.0)
    z = z.astype(np.float32)
    for _ in range(22):
        middle = (low + high) / 2
        steep = (z / (1 + np.exp(np.clip(z * np.exp(middle).astype(np.float32), -80, 80)))).sum(axis=0) > 0
        low, high = np.where(steep, middle, low), np.where(steep, high, middle)
    return np.exp((low + high) / 2)


def run_split(
    found: Evidence, values: np.ndarray, rows: Sequence[Setting], split: Split, rng: np.random.Generator, controls: bool = True
) -> tuple[list[Key], Fold]:
    """One split: every objective and its controls fitted on the training pairs, chosen on validation, summed over test groups.

    values: every completion's features, (completions, features), of which what was fitted was fitted on training prompts.
    """
    group = found.pair_group
    x = values[found.chosen] - values[found.rejected]
    decided = found.decided
    keys: list[Key] = []
    parts = []
    for ties in sorted({row.ties for row in rows}):
        pairs = found.only(split.train[group] & (decided if ties == "drop" else True))
        named, weights = fit_settings([row for row in rows if row.ties == ties], pairs, values, rng, controls)
        keys += named
        parts.append(weights)
    weights = np.concatenate(parts, axis=1)
    choose, judge = (np.flatnonzero(decided & mask[group]) for mask in (split.validation, split.test))
    z = x[choose] @ weights.reshape(len(weights), -1)
    scale = scale_of(z)
    loss = softplus(-z * scale).reshape(len(choose), len(keys), -1)
    scale = scale.reshape(len(keys), -1)
    best, every = loss.sum(axis=0).argmin(axis=1), np.arange(len(keys))
    groups, place = np.unique(group[judge], return_inverse=True)
    tuned = x[judge] @ weights[:, every, best]
    last = x[judge] @ weights[:, :, 0]
    sums = [
        _sums(logit, factor, place, len(groups))
        for logit, factor in ((tuned, scale[every, best]), (last, scale[:, 0]), (tuned, None))
    ]
    reference = keys.index((BRADLEY_TERRY, OWN))
    return keys, Fold(
        groups,
        np.bincount(place, minlength=len(groups)).astype(np.float64),
        *sums,
        validation=np.stack([np.bincount(group[choose], column, len(split.test)) for column in loss[:, every, best].T]),
        chosen_on=np.bincount(group[choose], minlength=len(split.test)).astype(np.float64),
        decay=np.array(DECAYS)[best],
        rows=judge,
        logits=tuned[:, reference] * scale[reference, best[reference]],
    )


def _sums(z: np.ndarray, scale: np.ndarray | None, place: np.ndarray, groups: int) -> np.ndarray:
    """Sums over each group, shape (columns, groups, 2 + BINS); z: (pairs, columns); z = 0 is half right."""
    from scipy.sparse import csr_array

    z = z if scale is None else z * scale
    right = np.where(z == 0, 0.5, z > 0)
    q = sigmoid(np.abs(z))
    which = np.minimum((q * BINS).astype(np.int64), BINS - 1)
    pairs, columns = z.shape
    collect = csr_array((np.ones(pairs), (place, np.arange(pairs))), shape=(groups, pairs))
    found = np.empty((columns, groups, 2 + BINS), dtype=np.float32)
    found[:, :, 0], found[:, :, 1] = (collect @ right).T, (collect @ softplus(-z)).T
    for column in range(columns):
        at = place * BINS + which[:, column]
        off = np.bincount(at, q[:, column] - right[:, column], minlength=groups * BINS)
        found[column, :, 2:] = off.reshape(groups, BINS)
    return found
