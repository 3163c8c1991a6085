"""What `mmpo evaluate` says of a model's values on pairs: measures with intervals, scaled, beside length and a coin; and of two models."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmpo.pipeline.margins import Floats, sigmoid
from mmpo.pipeline.metrics.calibration import Parts, by_margin, folded, reliability, temperature_fit
from mmpo.pipeline.metrics.intervals import DRAWS, interval, part_draws, share_interval
from mmpo.pipeline.metrics.table import METRICS, Values, known_values, pair_measures

CROSS_FITTED = "cross-fitted: on one half of the measured prompts for the other"
NO_TEMPERATURE = "none: it can't be estimated where half of the measured prompts hold ties alone (targets of ½), or logits of 0"
MOST_TEMPERATURE = 999.0
"""Just below the largest one that is fitted."""


def measures_95(values: Values, clusters: np.ndarray, draws: int = DRAWS, seed: int = 0) -> dict[str, Any]:
    """`pair_measures`, and of each NAME its 95% interval NAME_95, by resampling clusters (of prompts), shape (pairs,) from 0; None where
    there are few.
    """
    found: dict[str, Any] = pair_measures(values)
    parts = _parts(values)
    drawn = part_draws(parts, clusters, draws, seed)
    bounds = {
        f"{name}_95": interval(drawn[name], found[name], _with_weight(one, clusters), one.bin is not None, 0.0)
        for name, one in parts.items()
    }
    if "accuracy" in parts:
        bounds["accuracy_95"] = share_interval(drawn["accuracy"], found["accuracy"], _with_weight(parts["accuracy"], clusters))
    return {**found, **bounds}


def _with_weight(parts: Parts, clusters: np.ndarray) -> int:
    """How many clusters have a say in a measure: of accuracy those with an untied pair."""
    return len(np.unique(clusters[parts.weight > 0]))


def _count(clusters: np.ndarray) -> int:
    return int(clusters.max(initial=-1)) + 1


def _parts(values: Values) -> dict[str, Parts]:
    known = known_values(values)
    return {
        name: metric.parts(*(known[need] for need in metric.needs))
        for name, metric in METRICS.items()
        if metric.parts is not None and known.keys() >= set(metric.needs)
    }


def codes_of(names: Sequence[Any]) -> np.ndarray:
    """Numbers from 0 for names, in their order, shape (names,)."""
    return np.unique(np.asarray(names, dtype=object).astype(str), return_inverse=True)[1]


def scaled(z: Floats, p: Floats, clusters: np.ndarray, fitted_on: Values | None = None) -> tuple[Floats, float | None, str]:
    """z/T, the temperature T and what it was fitted on: other pairs' z and p, or for each half of the clusters the other half.

    z, p, clusters: shape (pairs,). Of the two halves' T the geometric mean is given, or its bound where one of them stands at it. Where the
    pairs of one half tell none z stays as it is, and T is None: a temperature is never fitted to the pairs that it scales.
    """
    temperature = None if fitted_on is None else temperature_fit(fitted_on["z"], fitted_on["p"])
    if temperature is not None:
        return z / temperature, temperature, "validation"
    half = clusters % 2
    fits = [temperature_fit(z[half != side], p[half != side]) for side in (0, 1)]
    if len(np.unique(clusters)) < 2:
        return z, None, "none: there is one prompt alone"
    if None in fits:
        return z, None, NO_TEMPERATURE
    both = np.array(fits, dtype=np.float64)
    mean = float(np.exp(np.log(both).mean()))
    return z / both[half], float(both.max()) if both.max() > MOST_TEMPERATURE else mean, CROSS_FITTED


def evaluation_measures(
    values: Values,
    prompts: Sequence[Any],
    sources: np.ndarray,
    lengths: tuple[Floats, Floats],
    *,
    fitted_on: Values | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """All measures of a set of pairs. values: of `mmpo.pipeline.metrics.table`, without p where there is nothing but a winner; prompts,
    sources: of each pair, shape (pairs,); lengths: characters of the chosen and of the rejected completions; fitted_on: z and p of other
    pairs, for the temperature (else it is cross-fitted, see `scaled`).

    Returns {"pairs", "ties", "prompts", every measure and NAME_95, "by_margin" (with p), "by_source", "temperature", "temperature_from",
    "scaled": the measures of z/T, "baselines": the same measures of always choosing the longer completion (its confidence fitted like a
    temperature) and of saying ½, "length": {"spearman", "spearman_95", "longest_wins"}, "reliability": {kind: {"raw", "scaled"}}}.
    Intervals are of 95%, by resampling prompts; None where fewer than FEWEST_CLUSTERS prompts have a say.
    """
    clusters = codes_of(prompts)
    z, margin = values["z"], values["margin"]
    target = values.get("p", np.ones_like(z))
    chosen, rejected = lengths
    difference = np.log(np.maximum(chosen, 1)) - np.log(np.maximum(rejected, 1))
    at_temperature, temperature, fitted = scaled(z, target, clusters, fitted_on)
    rescaled = {**values, "z": at_temperature}
    rows = by_source_95(values, sources, clusters, difference, draws, seed)
    found = {
        "pairs": len(z),
        "ties": int((margin == 0).sum()),
        "prompts": _count(clusters),
        **(dict.fromkeys(METRICS) if "p" in values else {}),
        **measures_95(values, clusters, draws, seed),
        "by_source": rows,
        "temperature": temperature,
        "temperature_from": fitted,
        "scaled": measures_95(rescaled, clusters, draws, seed),
        "baselines": baselines(values, difference, clusters, draws, seed),
        "length": length_measures(z, margin, difference, clusters, draws, seed),
        "reliability": _reliability({"raw": values, "scaled": rescaled}, clusters, draws, seed),
    }
    if "p" in values:
        found["by_margin"] = rows = by_margin(z, margin, target)
        inside = [((margin >= row["low"]) & (margin <= row["high"])).astype(np.float64) for row in rows]
        for row, mask, bounds in zip(rows, inside, _means_95(sigmoid(z), inside, clusters, draws, seed), strict=True):
            row["mean_q_95"] = bounds
            row["longest_wins"] = longest_wins(margin[mask > 0], difference[mask > 0]).total()
    return found


def _means_95(value: Floats, weights: Sequence[Floats], clusters: np.ndarray, draws: int, seed: int) -> list[list[float] | None]:
    """The 95% interval, by resampling clusters, of the value's mean under each of the weights; all of shape (pairs,)."""
    parts = {str(number): Parts(value * weight, weight) for number, weight in enumerate(weights)}
    drawn = part_draws(parts, clusters, draws, seed)
    return [interval(drawn[name], one.total(), _with_weight(one, clusters), least=0.0, most=1.0) for name, one in parts.items()]


def by_source_95(
    values: Values, sources: np.ndarray, clusters: np.ndarray, difference: Floats, draws: int, seed: int
) -> list[dict[str, Any]]:
    """A row per source: its measures with intervals, and what the longer completion reaches."""
    rows = []
    for source in sorted(set(sources.tolist()), key=str):
        mine = sources == source
        own = {name: value[mine] for name, value in values.items()}
        found = measures_95(own, np.unique(clusters[mine], return_inverse=True)[1], draws, seed)
        longest = longest_wins(own["margin"], difference[mine]).total()
        rows.append({"source": source, "pairs": int(mine.sum()), **found, "longest_wins": longest})
    return rows


def longest_wins(margin: Floats, difference: Floats) -> Parts:
    """The accuracy of choosing the longer completion; equal lengths count half. difference: of the log lengths, shape (pairs,)."""
    decided = (margin > 0).astype(np.float64)
    return Parts(((difference > 0) + 0.5 * (difference == 0)) * decided, decided)


def baselines(values: Values, difference: Floats, clusters: np.ndarray, draws: int = DRAWS, seed: int = 0) -> list[dict[str, Any]]:
    """What asks nothing of a model, measured like one: the longer completion, and ½ of every pair, which chooses at random."""
    target = values.get("p", np.ones_like(values["z"]))
    sign = np.sign(difference)
    longer = {**values, "z": scaled(sign, target, clusters)[0]}
    found = measures_95(longer, clusters, draws, seed)
    parts = longest_wins(values["margin"], difference)
    found |= {"accuracy": parts.total()}
    found |= {
        "accuracy_95": share_interval(
            part_draws({"": parts}, clusters, draws, seed)[""], found["accuracy"], _with_weight(parts, clusters)
        )
    }
    coin = pair_measures({**values, "z": np.zeros_like(sign)})
    coin |= {name: value for name, value in {"accuracy": 0.5, "ece_label": 0.0}.items() if coin.get("brier") is not None}
    return [{"name": "longest wins", **found}, {"name": "says ½", **coin}]


def length_measures(
    z: Floats, margin: Floats, difference: Floats, clusters: np.ndarray, draws: int = DRAWS, seed: int = 0
) -> dict[str, Any]:
    """spearman: the rank correlation of the model's logit with the difference of log lengths over both orientations of each pair, None
    where one is always 0; its interval holds the ranks. longest_wins: how often the better completion is the longer one.
    """
    a, b = _signed_ranks(z), _signed_ranks(difference)
    ones = np.ones_like(a)
    parts = {"ab": Parts(a * b, ones)}
    parts |= {"aa": Parts(np.square(a, out=a), ones), "bb": Parts(np.square(b, out=b), ones)}

    def correlation(ab: Any, aa: Any, bb: Any) -> Any:
        with np.errstate(divide="ignore", invalid="ignore"):
            return ab / np.sqrt(aa * bb)

    value = float(correlation(*(np.float64(one.total() or 0.0) for one in parts.values())))
    drawn = correlation(*part_draws(parts, clusters, draws, seed).values())
    known = None if np.isnan(value) else value
    longest = longest_wins(margin, difference).total()
    return {
        "spearman": known,
        "spearman_95": interval(drawn, known, _count(clusters), least=-1.0, most=1.0),
        "longest_wins": longest,
    }


def _signed_ranks(value: Floats) -> Floats:
    """Each value's rank over both orientations less the mean rank: odd in the value, 0 for 0, ties share theirs."""
    sizes, of, count = np.unique(np.abs(value), return_inverse=True, return_counts=True)
    return np.sign(value) * (np.cumsum(count) - count / 2)[of] if len(sizes) else value


def _reliability(
    kinds: Mapping[str, Values], clusters: np.ndarray, draws: int, seed: int
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Rows of `reliability` by kind, each with mean_y_95: label, confidence against correctness; target and vote, q ≥ ½ against p and
    the share of votes.
    """
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}

    def add(kind: str, name: str, x: Floats, y: Floats, weight: Floats) -> None:
        found.setdefault(kind, {})[name] = rows = reliability(x, y, weight)
        inside = [weight * ((x >= row["low"]) & ((x < row["high"]) | (row["high"] == 1))) for row in rows]
        for row, bounds in zip(rows, _means_95(y, inside, clusters, draws, seed), strict=True):
            row["mean_y_95"] = bounds

    for name, values in kinds.items():
        q, decided = sigmoid(values["z"]), (values["margin"] > 0).astype(np.float64)
        if decided.any():
            add("label", name, np.maximum(q, 1 - q), (q > 0.5).astype(np.float64), decided)
        if "p" in values and len(q):
            add("target", name, *folded(q, values["p"]), np.ones_like(q))
        if "raters" in values and (values["raters"] > 0).any():
            n = values["raters"]
            add("vote", name, *folded(q, values["preferring"] / np.maximum(n, 1e-300)), n)
    return found


def against_other(
    values: Values, other: Floats, prompts: Sequence[Any], *, draws: int = DRAWS, seed: int = 0
) -> dict[str, list[dict[str, Any]]]:
    """Two models on the same pairs: {"raw", "scaled"}, a row per measure: measure, this, other, difference (this − other), difference_95.

    other: the other model's z, shape (pairs,). The interval is of 95%, by resampling prompts, the same samples for both. Scaled: each at
    its temperature, cross-fitted on these pairs (see `scaled`); without two prompts left out.
    """
    clusters = codes_of(prompts)
    target = values.get("p", np.ones_like(values["z"]))
    pairs = {"raw": (values["z"], other)}
    at = [scaled(z, target, clusters) for z in pairs["raw"]]
    if all(temperature is not None for _, temperature, _ in at):
        pairs["scaled"] = (at[0][0], at[1][0])
    return {name: _differences(values, *both, clusters, draws, seed) for name, both in pairs.items()}


def _differences(values: Values, z: Floats, other: Floats, clusters: np.ndarray, draws: int, seed: int) -> list[dict[str, Any]]:
    both = [{**values, "z": one} for one in (z, other)]
    figures, parts = [pair_measures(one) for one in both], [_parts(one) for one in both]
    drawn = [part_draws(one, clusters, draws, seed) for one in parts]
    rows = []
    for name, one in parts[0].items():
        mine, theirs = (found[name] for found in figures)
        difference = None if mine is None or theirs is None else mine - theirs
        bounds = interval(drawn[0][name] - drawn[1][name], difference, _with_weight(one, clusters), one.bin is not None)
        rows.append({"measure": name, "this": mine, "other": theirs, "difference": difference, "difference_95": bounds})
    return rows
