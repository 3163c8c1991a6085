"""benchmarks/human.py: which way of merging raters foretells the margins of raters who were left out?

Error scores of translations (MQM, generalMT2023): 8 or 10 people of very different severity, three a segment, every system graded by all
three. Grades are dropped at random; what is left is merged; the margins of the raters left out are what is to be foretold. A pair counts if
both answers have a score by every way, and one rater at least graded both and had both grades dropped.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from human_estimates import ESTIMATES, Segments, merged
from human_measures import MEASURES, foretold

__all__ = ["run"]

LANGUAGES = ("en-de", "zh-en")
SEEDS, QUICK_SEEDS = 20, 3

Drop = Callable[[Segments, np.random.Generator], np.ndarray]


def share_of_grades(share: float) -> Drop:
    return lambda data, rng: rng.random(len(data.item)) < share


def one_rater(also: float) -> Drop:
    """One rater an answer, drawn for each; a share of the answers keeps all of its raters, so that raters can be compared."""

    def kept(data: Segments, rng: np.random.Generator) -> np.ndarray:
        draw = rng.random(len(data.item))
        least = np.full(data.items, np.inf)
        np.minimum.at(least, data.item, draw)
        return (draw == least[data.item]) | (rng.random(data.items) < also)[data.item]

    return kept


DESIGNS: dict[str, tuple[str, Drop]] = {
    "30": ("30% of the grades", share_of_grades(0.3)),
    "50": ("50% of the grades", share_of_grades(0.5)),
    "70": ("70% of the grades", share_of_grades(0.7)),
    "one_shared": ("one rater an answer, 10% of the answers with all three", one_rater(0.1)),
    "one": ("one rater an answer", one_rater(0.0)),
}


def run(folder: Path, quick: bool) -> dict[str, float]:
    """Prints a table a language pair and design; the ratios are rater-effects' error over the plain mean's, each at its best factor."""
    seeds = QUICK_SEEDS if quick else SEEDS
    print(
        f"margins of left-out raters foretold by merged ones, wmt_mqm_human, generalMT2023; {seeds} ways to drop, mean ± sd over them"
    )
    print(
        "  RMSE in MQM points of the left-out raters' mean margin as it stands, at the best single factor, and of each left-out rater's "
        "own margin at its best factor;\n  r, rho: correlations over both orientations, within a prompt, mean over prompts; sign: right "
        "of the pairs without a tie; better: drops in which the second column beats the mean's"
    )
    print("  ted2021: one rater a segment, nobody is left to hold out")
    ratios = {}
    for languages in LANGUAGES:
        data = Segments.read(folder, languages)
        for name, (title, drop) in DESIGNS.items():
            found, lost = _measured(data, drop, range(seeds))
            _print(f"{languages}, {len(data.names)} raters, {data.prompts} segments; kept: {title}", found, lost)
            scaled = {way: values[:, 1] for way, values in found.items()}
            ratios[f"effects_vs_mean_{languages}_{name}"] = float(np.median(scaled["rater-effects"] / scaled["mean"]))
    return ratios


def _measured(data: Segments, drop: Drop, seeds: range) -> tuple[dict[str, np.ndarray], float]:
    """By way of merging the measures of every seed, shape (seeds, measures); and the share of pairs that some way has no score for."""
    found: dict[str, list[list[float]]] = {name: [] for name in ESTIMATES}
    lost = []
    for seed in seeds:
        kept = drop(data, np.random.default_rng(seed))
        scores = merged(data, kept)
        values, missing = foretold(data, kept, scores)
        lost.append(missing)
        for name, value in values.items():
            found[name].append(value)
    return {name: np.array(values) for name, values in found.items()}, float(np.mean(lost))


def _print(title: str, found: dict[str, np.ndarray], lost: float) -> None:
    print(f"{title}; {lost:.1%} of the pairs left out, a rater without signal being alone on them")
    print(f"  {'':26}" + "".join(f"{name:>17}" for name in MEASURES) + f"{'better':>9}")
    plain = found["mean"][:, 1]
    for name, values in found.items():
        columns = "".join(
            f"{f'{mean:.3f} ± {sd:.3f}' if np.isfinite(mean) else '-':>17}"
            for mean, sd in zip(values.mean(axis=0), values.std(axis=0))
        )
        better = "" if name == "mean" else f"{int((values[:, 1] < plain - 1e-9).sum())}/{len(plain)}"
        print(f"  {name:26}{columns}{better:>9}", flush=True)
