"""Several graders as one: their margins stacked, and what that is worth beside each alone, their plain mean and their rater effects."""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np

from mmpo.annotate.calibrate.crossfit import HeldOut, Labelled, chosen_elsewhere, held_out, mean_and_error
from mmpo.annotate.calibrate.grader import Calibrated, sample_of, tried
from mmpo.annotate.calibrate.options import CalibrateOptions
from mmpo.annotate.calibrate.overlap import Grader, People
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.grades import Grades, RaterSample, fit_rater_effects, merge_raters, remove_effects
from mmpo.pipeline.margins import Floats
from mmpo.pipeline.metrics import student

JURY = "jury"


def jury_of(graders: Sequence[Grader]) -> Grader:
    """The pairs that all of them graded: their margins beside one another, then the orders of those whose position bias people have to
    tell,
    then lengths."""
    unit = reduce(np.intersect1d, [one.unit for one in graders])
    shared = [one.take(np.searchsorted(one.unit, unit)) for one in graders]
    orders = [one.features[:, 1] for one in shared if one.ordered and not (one.position and one.position.settled)]
    features = np.stack([*(one.features[:, 0] for one in shared), *orders, shared[0].features[:, -1]], axis=1)
    kinds = {one.kind for one in graders}
    kind = kinds.pop() if len(kinds) == 1 else "ai"
    return Grader(JURY, kind, graders[0].aspect, unit, shared[0].prompt, features, bool(orders), None, len(graders))


def against(
    jury: Grader, graders: Sequence[Grader], people: People, ids: np.ndarray, stacked: Calibrated, options: CalibrateOptions
) -> dict[str, Any]:
    """What the jury's figures say of its members: weights (each margin over its root mean square, of sum 1) and the held-out
    cross-entropy on the same pairs of everything that could stand in its place, with the 95% interval of what that has more than the
    jury."""
    fit = stacked.sample.fit(stacked.held.setting, np.ones(len(stacked.sample.fold)))
    scale = np.sqrt((jury.features[:, : jury.margins] ** 2).mean(axis=0))
    weight = fit.weights[: jury.margins] * scale
    total = float(weight.sum())
    merged = {"mean": (jury.features[:, : jury.margins] / np.where(scale > 0, scale, 1.0)).mean(axis=1)}
    merged |= {"rater-effects": found} if (found := _rater_effects(jury, graders)) is not None else {}
    rivals = {one.name: one.take(np.searchsorted(one.unit, jury.unit)) for one in graders}
    for name, margin in merged.items():
        rivals[name] = Grader(
            name,
            jury.kind,
            jury.aspect,
            jury.unit,
            jury.prompt,
            np.stack([margin, jury.features[:, -1]], axis=1),
            False,
        )
    own = stacked.held.entropies(stacked.sample)
    rows: Mapping[str, Floats] = {
        name: _held(sample_of(one, people, ids, options), options).entropies(stacked.sample) for name, one in rivals.items()
    }
    return {
        "members": {one.name: float(w / total) if total > 0 else None for one, w in zip(graders, weight, strict=True)},
        "against": {name: _difference(entropies, own, stacked.sample) for name, entropies in rows.items()},
    }


def _held(sample: Labelled, options: CalibrateOptions) -> HeldOut:
    return chosen_elsewhere([held_out(sample, setting) for setting in tried(options)], sample)


def _difference(entropies: Floats, own: Floats, sample: Labelled) -> dict[str, Any]:
    mean, error = mean_and_error(entropies - own, sample.prompt)
    reach = student(sample.prompts - 1) * float(error)
    return {
        "cross_entropy": float(entropies.mean()),
        "more_than_jury": float(mean),
        "more_than_jury_95": [float(mean) - reach, float(mean) + reach],
    }


def _rater_effects(jury: Grader, graders: Sequence[Grader]) -> Floats | None:
    """The graders' margins merged as `--raters rater-effects` merges them; None where it finds no signal."""
    size, names = len(jury.unit), [one.name for one in graders]
    item, rater = (grid.ravel() for grid in np.meshgrid(np.arange(size), np.arange(len(names)), indexing="ij"))
    value, zeros = jury.features[:, : len(names)].ravel(), np.zeros(size * len(names), dtype=np.int64)
    try:
        effects = fit_rater_effects(RaterSample(item, rater, value, zeros.astype(np.float64), names), centered=False)
    except UserError:
        return None
    grades = Grades(item, item, rater, zeros, zeros, value, np.full(len(value), np.nan), coefficient=zeros.astype(np.float64))
    kept, _ = remove_effects(grades, names, effects)
    return merge_raters(kept, "rater-effects")[1]
