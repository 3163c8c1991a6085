"""One grader calibrated: the map that held-out people choose, its figures, and every margin with its error."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mmpo.annotate.calibrate.crossfit import (
    Errors,
    HeldOut,
    Labelled,
    MapSetting,
    chosen_elsewhere,
    columns_of,
    entropies_of,
    errors_of,
    folds_of,
    held_out,
    learning_curve,
    logits,
    mean_and_error,
    settings,
)
from mmpo.annotate.calibrate.maps import MAPS, FittedMap
from mmpo.annotate.calibrate.options import CalibrateOptions
from mmpo.annotate.calibrate.overlap import Grader, People
from mmpo.annotate.calibrate.position import told_by_people
from mmpo.pipeline.margins import Floats, fit_gamma_to_votes, gamma_for_mean_target, sigmoid
from mmpo.pipeline.metrics import cross_entropy, ece_vote, folded, reliability, student

COIN = float(np.log(2))
MORE = (0, 50, 200)
"""Further human pairs whose worth is foretold."""
CURVE_POINTS = 41


@dataclass(frozen=True)
class Calibrated:
    """A grader's margins in people's units. expected, spread: of every pair of the grader; outside: whether its margin is larger than
    any that people graded too; chance: that people prefer the first completion, of pairs that people graded by maps that were fitted
    without them; all of shape (pairs,). people: which pairs people graded. knows: whether it is shown to tell more than a coin.
    figures: as JSON has them.
    """

    grader: Grader
    sample: Labelled
    held: HeldOut
    labelled: np.ndarray
    expected: Floats
    chance: Floats
    errors: Errors
    outside: np.ndarray
    knows: bool
    figures: dict[str, Any]


def labelled_by(grader: Grader, people: People) -> np.ndarray:
    """Which of the grader's pairs people graded."""
    return people.answers.voters[grader.unit] > 0


def sample_of(grader: Grader, people: People, ids: np.ndarray, options: CalibrateOptions) -> Labelled:
    """The pairs that both graded, in folds; ids: of prompts, by `grader.prompt`."""
    shared = grader.take(labelled_by(grader, people))
    names, prompt = np.unique(shared.prompt, return_inverse=True)
    fold = folds_of([str(ids[name]) for name in names], options.folds, options.seed)
    position = grader.position if grader.ordered else None
    return Labelled(shared.features, grader.margins, people.answers.take(shared.unit), prompt, fold[prompt], people.limit, position)


def tried(options: CalibrateOptions) -> list[MapSetting]:
    """The maps that held-out people choose from."""
    return settings(list(MAPS) if options.method == "auto" else [options.method], options.length)


def calibrate_grader(grader: Grader, people: People, ids: np.ndarray, options: CalibrateOptions) -> Calibrated:
    """Choose, fit and judge a grader's map. The pairs that both graded are of two prompts at least."""
    sample = sample_of(grader, people, ids, options)
    found = [held_out(sample, setting) for setting in tried(options)]
    held = chosen_elsewhere(found, sample)
    fit = sample.fit(held.setting, np.ones(len(sample.fold)))
    index = fit.index(columns_of(grader.features, held.setting))
    labelled = labelled_by(grader, people)
    chance = fit.chance(index)
    chance[labelled] = held.chance
    errors = errors_of(sample, held, people.noise, people.degrees, grader.features, labelled, options.bootstrap, options.seed)
    own = grader.features[:, : grader.margins] @ fit.weights[: grader.margins]
    # Of a map that gives its margins no weight all indices are 0, and the margins themselves say what is outside.
    own = own if grader.margins > 1 or not fit.weights[0] else grader.features[:, 0]
    outside = np.abs(own) > np.abs(own[labelled]).max() * (1 + 1e-9)
    gain, bounds = _gain(sample, found, held)
    knows = bounds[0] > 0
    raw = raw_chance(grader, sample)
    over_auto, auto_bounds = _more_than(entropies_of(raw, sample) - held.entropies(sample), sample)
    expected = fit.expected(index)
    figures = {
        "aspect": grader.aspect, "kind": grader.kind,
        "pairs": len(grader.unit), "human_pairs": len(sample.fold), "human_prompts": sample.prompts,
        "human_grades": int(sample.answers.voters.sum()), "people": people.raters, "onto": people.who,
        "method": held.setting.method,
        **{
            name: {"raw": measure(raw), "calibrated": measure(held.chance)}
            for name, measure in (
                ("cross_entropy", lambda q: cross_entropy(logits(q), sample.share)),
                ("ece", lambda q: ece_vote(q, sample.answers.votes, sample.answers.voters)),
            )
        },
        "coin": COIN, "knows": bool(knows), "gain_over_coin": gain, "gain_over_coin_95": bounds,
        "gain_over_auto": over_auto, "gain_over_auto_95": auto_bounds,
        "scale": _slope(grader, expected), **_bias(grader, fit, columns_of(sample.features, held.setting), sample),
        "length": _length_slope(grader, fit, held.setting, index),
        "gamma": _gamma(sample, held),
        "margin_se": {
            "mean": float(np.sqrt(np.mean(errors.spread**2))), "fit": float(np.sqrt(errors.fit.mean())),
            "beyond": float(np.sqrt(errors.beyond)), "upper_bound": errors.bound,
            "people": float(np.sqrt(people.noise)) if np.isfinite(people.noise) else None,
        },
        "outside": int(outside.sum()), "limit": people.limit,
        "tried": {one.setting.name: float(one.entropies(sample).mean()) for one in found},
        "more": _more(sample, held.setting, errors, options.seed),
        "reliability": {name: _reliability(q, sample) for name, q in (("raw", raw), ("calibrated", held.chance))},
        "map": _curve(grader, fit, held.setting, errors),
    }  # fmt: skip
    return Calibrated(grader, sample, held, labelled, expected, chance, errors, outside, bool(knows), figures)


def raw_chance(grader: Grader, sample: Labelled) -> Floats:
    """What the margins of the shared pairs would be as probabilities without people: σ(γm) at γ auto of all the grader's margins; of
    several margins their mean, each over its root mean square."""
    scale = np.sqrt((grader.features[:, : grader.margins] ** 2).mean(axis=0))
    weights = np.divide(1.0, scale, where=scale > 0, out=np.zeros_like(scale))
    gamma = gamma_for_mean_target(np.abs(grader.features[:, : grader.margins] @ weights))
    return sigmoid(gamma * (sample.features[:, : grader.margins] @ weights))


def _gain(sample: Labelled, found: list[HeldOut], held: HeldOut) -> tuple[float, list[float]]:
    """By how many nats a pair the grader's own margins tell more than a coin, lengths left out; and the 95% interval over prompts."""
    own = [one for one in found if not one.setting.length] or [held_out(sample, MapSetting(held.setting.method, False))]
    best = chosen_elsewhere(own, sample)
    return _more_than(COIN - best.entropies(sample), sample)


def _more_than(gains: Floats, sample: Labelled) -> tuple[float, list[float]]:
    """The mean of gains, shape (pairs,), and its 95% interval over prompts."""
    mean, error = mean_and_error(gains, sample.prompt)
    reach = student(sample.prompts - 1) * float(error)
    return float(mean), [float(mean) - reach, float(mean) + reach]


def _slope(grader: Grader, expected: Floats) -> float | None:
    """Human units per unit of the grader, over all of its pairs; None of a jury, whose margins have no common unit."""
    x = grader.features[:, 0]
    return float((x @ expected) / (x @ x)) if grader.margins == 1 else None


def _bias(grader: Grader, fit: FittedMap, columns: Floats, sample: Labelled) -> dict[str, Any]:
    """How much more the grader gives to what it is shown first, in its own units, None: it is not known, or there is none; its standard
    error; from how many pairs, asked about in both orders and in one order and graded by people; the share of the latter in which people
    prefer what was shown first, and whether that is so far from ½ that they tell nothing of the bias."""
    position = grader.position
    if position is None:
        return {"bias": None, "bias_se": None, "bias_pairs": None, "first_preferred": None, "order_is_quality": False}
    first = None if np.isnan(position.first) else position.first
    both, theirs = position.pairs, int(np.count_nonzero(sample.features[:, 1])) if grader.ordered else 0
    if grader.ordered:
        bias = position.taken - fit.weights[1] / fit.weights[0] if fit.weights[0] > 0 else np.nan
        told = told_by_people(fit, columns, sample.answers, np.ones(len(sample.fold)))
        error = position.pooled(*told)[1]
    else:
        one_order = both < len(grader.unit)  # of so few pairs in both orders that their mean came off no other one
        bias, error = (np.nan, np.nan) if one_order and not position.settled else (position.mean, position.error)
    known = bool(np.isfinite(bias))
    return {
        "bias": float(bias) if known else None, "bias_se": float(error) if known and np.isfinite(error) else None,
        "bias_pairs": {"both_orders": both, "one_order": theirs} if known else None,
        "first_preferred": first, "order_is_quality": position.mixed,
    }  # fmt: skip


def _length_slope(grader: Grader, fit: FittedMap, setting: MapSetting, index: Floats) -> float | None:
    """By how much people's expected margin grows as the first text grows by the factor e, the grader's margin the same; None: it does not
    enter."""
    if not setting.length:
        return None
    step = 0.1
    up, down = (fit.expected(index + side * step * fit.weights[-1]) for side in (1, -1))
    return float(np.mean(up - down) / (2 * step))


def _gamma(sample: Labelled, held: HeldOut) -> float | None:
    """The γ at which held-out calibrated margins make people's votes most likely, in 1/human unit; None where all of them are 0."""
    if not held.expected.any():
        return None
    up = held.expected >= 0
    votes = np.where(up, sample.answers.votes, sample.answers.voters - sample.answers.votes)
    return fit_gamma_to_votes(np.abs(held.expected), votes, sample.answers.voters)


def _more(sample: Labelled, setting: MapSetting, errors: Errors, seed: int) -> dict[str, Any]:
    """What the human pairs at hand bought and what further ones would: the held-out cross-entropy by pairs fitted to, its line in 1/pairs
    drawn further (never upward), and the error of the fit, whose square goes with 1/pairs."""
    curve, now = learning_curve(sample, setting, seed), len(sample.fold)
    inverse, entropy = np.array([1 / row[0] for row in curve]), np.array([row[1] for row in curve])
    off = inverse - inverse.mean()
    line = np.ptp(inverse) > 0  # else there are too few prompts to leave some out
    slope = max(float(off @ entropy / (off @ off)), 0.0) if line else 0.0
    base = float(entropy.mean() - slope * inverse.mean())
    fit = float(errors.fit.mean())
    return {
        "curve": [{"human_pairs": row[0], "cross_entropy": row[1], "margin_error": row[2]} for row in curve],
        "foretold": [
            {
                "more": more,
                "cross_entropy": base + slope / (now + more) if line else None,
                "fit_error": float(np.sqrt(fit * now / (now + more))),
                "margin_se": float(errors.widen * np.sqrt(fit * now / (now + more) + errors.beyond)),
            }
            for more in MORE
        ],
    }


def _reliability(q: Floats, sample: Labelled) -> list[dict[str, Any]]:
    x, y = folded(q, sample.share)
    return reliability(x, y, sample.answers.voters)


def _curve(grader: Grader, fit: FittedMap, setting: MapSetting, errors: Errors) -> list[dict[str, float]] | None:
    """The map for texts of one length, over the grader's margins; None of a jury."""
    if grader.margins > 1:
        return None
    widest = float(np.abs(grader.features[:, 0]).max())
    margins = np.linspace(-widest, widest, CURVE_POINTS)
    features = np.zeros((CURVE_POINTS, grader.features.shape[1]))
    features[:, 0] = margins
    index = fit.index(columns_of(features, setting))
    rows = zip(margins, fit.expected(index), fit.chance(index), strict=True)
    return [dict(zip(("margin", "expected", "chance"), map(float, row), strict=True)) for row in rows]
