"""What a dataset's page says of lengths, votes, models and duplicates, in numbers, with 95% intervals over prompts."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmpo.pipeline.arrow import flat
from mmpo.pipeline.filters import SHINGLE, SIMILARITY, compared, duplicates, texts_of_prompts
from mmpo.pipeline.filters.duplicates import Duplicate
from mmpo.pipeline.margins import Floats
from mmpo.pipeline.metrics.summary import length_measures
from mmpo.pipeline.report.dataset.figures import PairFigures, cluster_sums, longer_wins, ratio_rows, share_95, shares_95

MODELS = 40
"""Models that a table names; the others are counted."""
HEAT_MODELS = 16
"""Models of the heat maps."""
SCORE_BINS = 10
DRAWS = 400
"""Samples behind the interval of a rank correlation."""


def length_figures(figures: PairFigures) -> dict[str, Any]:
    """longer, longer_95: `longer_wins`; correlation, correlation_95: Spearman's of margin and log length ratio, over both orientations of
    each pair; by_margin: rows {"margin" (its mean), "share", "share_95"} of up to six bins of equally many untied pairs; the ratio's
    quantiles.
    """
    ratio = np.log((figures.chosen_length + 1.0) / (figures.rejected_length + 1.0))
    found = length_measures(figures.margin, figures.margin, ratio, figures.clusters, DRAWS)
    all_pairs = longer_wins(figures)
    decided = figures.margin > 0
    rows: list[dict[str, Any]] = []
    if decided.any():
        edges = np.unique(np.quantile(figures.margin[decided], np.linspace(0, 1, 7)))
        count = max(1, len(edges) - 1)
        which = np.where(decided, np.searchsorted(edges[1:-1], figures.margin, side="right"), -1)
        used = decided & (ratio != 0)
        shares = shares_95(figures, used & (ratio > 0), used, which, count)
        sums = np.bincount(which[decided], figures.margin[decided], minlength=count)
        sizes = np.bincount(which[decided], minlength=count)
        rows = [{"margin": float(total / size), **share} for total, size, share in zip(sums, sizes, shares, strict=True) if size]
    return {
        "longer": all_pairs["share"],
        "longer_95": all_pairs["share_95"],
        "pairs": all_pairs["pairs"],
        "correlation": found["spearman"],
        "correlation_95": found["spearman_95"],
        "by_margin": [row for row in rows if row["share"] is not None],
        "ratio": ratio[decided],
    }


def votes_rows(figures: PairFigures) -> list[dict[str, Any]]:
    """Of untied pairs, by how many raters they have: pairs, all: share where every rater prefers the chosen reply, half: share where
    no more than half of them do; each with its interval. Ties of raters count half, rounded down, as in the column `preferring`."""
    untied = figures.margin > 0
    numbers, group = np.unique(figures.raters, return_inverse=True)
    group = np.where(untied, group.reshape(-1), -1)
    every = shares_95(figures, figures.preferring == figures.raters, untied, group, len(numbers))
    few = shares_95(figures, 2 * figures.preferring <= figures.raters, untied, group, len(numbers))
    return [
        {
            "raters": int(number), "pairs": one["pairs"], "all": one["share"] if number else None,
            "all_95": one["share_95"] if number else None,
            "half": other["share"] if number > 1 else None, "half_95": other["share_95"] if number > 1 else None,
        }
        for number, one, other in zip(numbers, every, few, strict=True) if one["pairs"]
    ]  # fmt: skip


def model_rows(figures: PairFigures) -> list[dict[str, Any]]:
    """A row per model, best first: completions, pairs, wins (share of its pairs against other models that it is chosen in, ties half),
    margin (mean signed margin in them), both with intervals, score (mean of its completions, None where none has one)."""
    count = len(figures.names["model"])
    one, other = figures.chosen_model, figures.rejected_model
    met = (one >= 0) & (other >= 0) & (one != other)
    won, ones = 0.5 * np.sign(figures.margin) + 0.5, np.ones(len(met))
    # a pair speaks of both of its models
    better = cluster_sums(figures, np.where(met, one, -1), count, won, figures.margin, ones)
    worse = cluster_sums(figures, np.where(met, other, -1), count, 1 - won, -figures.margin, ones)
    won, margin, met = (a + b for a, b in zip(better, worse, strict=True))
    wins, margins = ratio_rows(won, met), ratio_rows(margin, met, shares=False)
    own = figures.completions
    known = (own.model >= 0) & np.isfinite(own.score)
    scored = np.bincount(own.model[known], minlength=count)
    scores = np.bincount(own.model[known], own.score[known], minlength=count)
    completions = np.bincount(own.model[own.model >= 0], minlength=count)
    found = [
        {
            "model": name, "completions": int(completions[at]), "pairs": wins[at]["pairs"], "wins": wins[at]["share"],
            "wins_95": wins[at]["share_95"], "margin": margins[at]["share"], "margin_95": margins[at]["share_95"],
            "score": float(scores[at] / scored[at]) if scored[at] else None, "number": at,
        }
        for at, name in enumerate(figures.names["model"])
    ]  # fmt: skip
    return sorted(
        found, key=lambda row: (-(row["margin"] if row["margin"] is not None else -np.inf), -row["completions"], row["model"])
    )


def score_map(figures: PairFigures, models: Sequence[int]) -> tuple[list[tuple[float, float]], Floats]:
    """The bins of scores, and the share of each model's completions in each, (models, bins); ([], ...) where no score is known."""
    own = figures.completions
    known = (own.model >= 0) & np.isfinite(own.score)
    values = own.score[known]
    if not len(values):
        return [], np.zeros((len(models), 0))
    distinct = np.unique(values)
    if len(distinct) <= SCORE_BINS:
        edges = [(float(value), float(value)) for value in distinct]
        which = np.searchsorted(distinct, values)
    else:
        bounds = np.linspace(distinct[0], distinct[-1], SCORE_BINS + 1)
        edges = [(float(low), float(high)) for low, high in zip(bounds, bounds[1:], strict=False)]
        which = np.clip(np.searchsorted(bounds, values, side="right") - 1, 0, SCORE_BINS - 1)
    place = np.full(len(figures.names["model"]), -1)
    place[list(models)] = np.arange(len(models))
    row = place[own.model[known]]
    counts = np.bincount(row[row >= 0] * len(edges) + which[row >= 0], minlength=len(models) * len(edges)).reshape(len(models), -1)
    return edges, counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def meeting_map(figures: PairFigures, models: Sequence[int]) -> tuple[Floats, np.ndarray]:
    """The mean margin of the model down over the model across, NaN where they never meet, and how many pairs, (models, models) each."""
    size = len(models)
    place = np.full(len(figures.names["model"]) + 1, -1)
    place[list(models)] = np.arange(size)
    one, other = place[figures.chosen_model], place[figures.rejected_model]
    met = (one >= 0) & (other >= 0) & (one != other)
    at = one[met] * size + other[met]
    sums = np.bincount(at, figures.margin[met], minlength=size * size).reshape(size, size)
    counts = np.bincount(at, minlength=size * size).reshape(size, size)
    counts = counts + counts.T
    with np.errstate(invalid="ignore", divide="ignore"):
        return (sums - sums.T) / counts, counts


def duplicate_rows(figures: PairFigures) -> list[dict[str, Any]]:
    """Exact duplicates: what, count (how many are not the first of their like), of (how many there are), share, share's meaning in
    words."""
    _, sizes = np.unique(figures.folded, return_counts=True)
    own = figures.completions
    _, text, uses = np.unique(own.text, return_inverse=True, return_counts=True)
    # a reply under several prompts: completions of one prompt have different texts, up to what they carry beside them
    shared = uses[text.reshape(-1)] > 1
    prompt_splits = _splits_of_prompts(figures)
    _, group = np.unique(figures.folded, return_inverse=True)
    low, high = np.full(len(sizes), 9), np.full(len(sizes), -1)
    np.minimum.at(low, group.reshape(-1), prompt_splits)
    np.maximum.at(high, group.reshape(-1), prompt_splits)
    crossing = (low < high)[group.reshape(-1)]
    return [
        {
            "what": "prompts that differ from an earlier one in case or white space alone",
            "count": int((sizes - 1).sum()),
            "of": figures.prompts,
        },
        {"what": "prompts with such a twin in another split", "count": int(crossing.sum()), "of": figures.prompts},
        {"what": "replies that stand word for word under another prompt too", "count": int(shared.sum()), "of": len(own.text)},
        {
            "what": "uses of the most repeated reply",
            "count": int(uses.max(initial=0)) if (uses > 1).any() else 0,
            "of": len(own.text),
        },
    ]


def near_duplicates(figures: PairFigures) -> tuple[list[dict[str, Any]], list[Duplicate]]:
    """Prompts that are nearly the same as one of a smaller id, by the words of their messages, in rows as of `duplicate_rows`; and they
    themselves. Both empty where the prompts are not held."""
    if figures.heads is None:
        return [], []
    ids, side = (flat(figures.heads[name]) for name in ("prompt_id", "side"))
    table = compared(ids, texts_of_prompts(figures.heads), np.asarray(side), SIMILARITY, SHINGLE)
    [found], [crossing] = (list(duplicates([table], SIMILARITY, across_splits=across)) for across in (False, True))
    words = f"(at least {SIMILARITY:.0%} of their runs of {SHINGLE} words)"
    rows = [
        {"what": f"prompts nearly the same as another {words}", "count": len(found), "of": figures.prompts},
        {"what": "prompts nearly the same as one of test, or of validation", "count": len(crossing), "of": figures.prompts},
    ]
    return rows, found


def _splits_of_prompts(figures: PairFigures) -> np.ndarray:
    found = np.zeros(figures.prompts, dtype=np.int64)
    found[figures.prompt] = figures.split
    return found


def margin_figures(figures: PairFigures) -> dict[str, Any]:
    """ties, ties_95: share of pairs of margin 0; known: share with a margin_se; unsure, unsure_95: of untied pairs with one, the
    share whose margin is less than twice it."""
    ones = np.ones(len(figures.margin))
    ties = share_95(figures, figures.margin == 0, ones)
    known = ~np.isnan(figures.margin_se) & (figures.margin > 0)
    unsure = share_95(figures, known & (figures.margin < 2 * np.nan_to_num(figures.margin_se)), known)
    return {
        "ties": ties["share"], "ties_95": ties["share_95"], "known": float((~np.isnan(figures.margin_se)).mean()),
        "unsure": unsure["share"], "unsure_95": unsure["share_95"],
    }  # fmt: skip
