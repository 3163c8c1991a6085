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
FEWEST = 20


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
    tuned at temperature 1. logits: of Bradley–Terry, for the test pairs at `rows`. votes, voted: where there are votes of others, how many
    there are in each test group, (groups,), and sums as in tuned over them, ties among the pairs, at the temperature that suits the votes
    on validation prompts best (where fewer than FEWEST pairs have any, that of the labels).
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
    votes: np.ndarray | None = None
    voted: np.ndarray | None = None


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
    if folds[0].voted is not None:
        means["voted"] = np.mean([f.voted for f in folds if f.voted is not None], axis=0)
    return replace(folds[0], **means, decay=np.median([fold.decay for fold in folds], axis=0))


def scale_of(z: np.ndarray, votes: np.ndarray | None = None) -> np.ndarray:
    """1/temperature at which the likelihood of the labels is best, for each column of z (pairs, columns), all of which are of the chosen
    one; or of votes, (pairs, 2): for the chosen one, and all. Between e⁻⁹ and e⁹. The loss is convex in it: bisection on its slope.

    Of n pairs 1/(n + 2) count the other way round (Platt 1999): where all are right the best scale would be infinite, and the first wrong
    one elsewhere would cost as much.
    """
    low, high = np.full(z.shape[1], -9.0), np.full(z.shape[1], 9.0)
    z = z.astype(np.float32)
    every = np.ones((len(z), 1), dtype=np.float32) if votes is None else votes[:, 1:].astype(np.float32)
    doubt = np.float32(1 / (len(z) + 2))
    wrong = 0 if votes is None else votes[:, 1:] - votes[:, :1]
    against = (((1 - 2 * doubt) * wrong + doubt * every) * z).sum(axis=0)
    for _ in range(22):
        middle = (low + high) / 2
        steep = (every * z / (1 + np.exp(np.clip(z * np.exp(middle).astype(np.float32), -80, 80)))).sum(axis=0) > against
        low, high = np.where(steep, middle, low), np.where(steep, high, middle)
    return np.exp((low + high) / 2)


def run_split(
    found: Evidence,
    values: np.ndarray,
    rows: Sequence[Setting],
    split: Split,
    rng: np.random.Generator,
    controls: bool = True,
    votes: np.ndarray | None = None,
) -> tuple[list[Key], Fold]:
    """One split: every objective and its controls fitted on the training pairs, chosen on validation, summed over test groups.

    values: every completion's features, (completions, features), of which what was fitted was fitted on training prompts. votes: of raters
    that made no part of the margins, for the chosen completion and all, (pairs, 2).
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
    counted = voted = None
    if votes is not None:
        known = votes[:, 1] > 0
        trial, polled = (
            np.flatnonzero(known & mask[group]) for mask in (split.validation, np.isin(np.arange(len(split.test)), groups))
        )
        chosen = weights[:, every, best]
        factor = scale_of(x[trial] @ chosen, votes[trial]) if len(trial) >= FEWEST else scale[every, best]
        at = np.searchsorted(groups, group[polled])
        voted = _sums(x[polled] @ chosen, factor, at, len(groups), votes[polled])
        counted = np.bincount(at, votes[polled, 1], len(groups))
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
        votes=counted,
        voted=voted,
    )


def _sums(z: np.ndarray, scale: np.ndarray | None, place: np.ndarray, groups: int, votes: np.ndarray | None = None) -> np.ndarray:
    """Sums over each group, shape (columns, groups, 2 + BINS); z: (pairs, columns); z = 0 is half right. votes: of each pair for the chosen
    completion, and all, (pairs, 2); without them one for the chosen one.
    """
    from scipy.sparse import csr_array

    z = z if scale is None else z * scale
    right = np.where(z == 0, 0.5, z > 0)
    loss, each = softplus(-z), None
    if votes is not None:
        mine, each = votes[:, :1], votes[:, 1:]
        right, loss = right * mine + (1 - right) * (each - mine), mine * loss + (each - mine) * softplus(z)
    q = sigmoid(np.abs(z))
    which = np.minimum((q * BINS).astype(np.int64), BINS - 1)
    pairs, columns = z.shape
    collect = csr_array((np.ones(pairs), (place, np.arange(pairs))), shape=(groups, pairs))
    found = np.empty((columns, groups, 2 + BINS), dtype=np.float32)
    found[:, :, 0], found[:, :, 1] = (collect @ right).T, (collect @ loss).T
    q = q if each is None else q * each
    for column in range(columns):
        at = place * BINS + which[:, column]
        off = np.bincount(at, q[:, column] - right[:, column], minlength=groups * BINS)
        found[column, :, 2:] = off.reshape(groups, BINS)
    return found
