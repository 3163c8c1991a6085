"""benchmarks/human.py: how well margins foretell other raters' margins, whatever their unit."""

import numpy as np
from human_estimates import Segments

from mmpo.pipeline.grades import group_starts
from mmpo.pipeline.pairs import all_pairs

__all__ = ["MEASURES", "foretold"]

MEASURES = ("RMSE", "RMSE at best", "own at best", "r in prompt", "rho in prompt", "sign")
WITHOUT_UNIT = "zscore, then mean"
FEWEST = 3
"""Pairs of a prompt from which on it counts in the correlations."""


def foretold(data: Segments, kept: np.ndarray, scores: dict[str, np.ndarray]) -> tuple[dict[str, list[float]], float]:
    """The measures of every way to merge, over the pairs that all have a score for; and the share of pairs that some have none for."""
    order = np.argsort(data.of_item, kind="stable")
    sizes = np.bincount(data.of_item)
    first, second = (order[side] for side in all_pairs(np.cumsum(sizes) - sizes, sizes))
    grades = np.full((data.items, len(data.names)), np.nan)
    grades[data.item[~kept], data.rater[~kept]] = data.value[~kept]
    held = grades[first] - grades[second]
    plain = scores["mean"]
    wanted = np.isfinite(held).any(axis=1) & np.isfinite(plain[first]) & np.isfinite(plain[second])
    common = np.logical_and.reduce([np.isfinite(value[first]) & np.isfinite(value[second]) for value in scores.values()])
    used = wanted & common
    first, second, held = first[used], second[used], held[used]
    known = np.isfinite(held)
    target = np.where(known, held, 0.0).sum(axis=1) / known.sum(axis=1)
    pair, rater = np.nonzero(known)
    prompt = data.of_item[first]
    found = {}
    for name, value in scores.items():
        margin = value[first] - value[second]
        plain_error = float("nan") if name == WITHOUT_UNIT else _rms(target - margin)
        found[name] = [
            plain_error,
            _at_best(margin, target),
            _at_best(margin[pair], held[pair, rater]),
            _within(margin, target, prompt),
            _within(_signed_ranks(margin, prompt), _signed_ranks(target, prompt), prompt),
            _sign(margin, target),
        ]
    return found, 1 - float(used.sum() / wanted.sum())


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def _at_best(margin: np.ndarray, target: np.ndarray) -> float:
    """The error of the margins times the one factor that suits them best."""
    square = float(margin @ margin)
    return _rms(target - (float(margin @ target) / square if square else 0.0) * margin)


def _within(a: np.ndarray, b: np.ndarray, prompt: np.ndarray) -> float:
    """The correlation over both orientations within each prompt, mean over prompts; 0 where all of `a` are ties."""
    products, one, other = (np.bincount(prompt, weights=x) for x in (a * b, a * a, b * b))
    counted = (np.bincount(prompt) >= FEWEST) & (other > 0)
    return float((products[counted] / np.sqrt(np.maximum(one * other, 1e-300))[counted]).mean())


def _signed_ranks(margin: np.ndarray, prompt: np.ndarray) -> np.ndarray:
    """The rank of |margin| within its prompt, equal ones sharing, less ½, with the sign: of all values and their negatives the mid-rank."""
    size = np.round(np.abs(margin), 9)
    order = np.lexsort((size, prompt))
    starts, equal = group_starts(prompt[order]), group_starts(prompt[order], size[order])
    runs = np.diff(np.append(equal, len(order)))
    base = np.repeat(starts, np.diff(np.append(starts, len(order))))[equal]
    result = np.empty(len(margin))
    result[order] = np.repeat(equal - base + runs / 2, runs)
    return result * np.sign(margin)


def _sign(margin: np.ndarray, target: np.ndarray) -> float:
    """The share of untied targets whose sign the margin has; a tie of ours counts half."""
    decided = np.abs(target) > 1e-9
    side = np.sign(np.round(margin[decided], 9)) * np.sign(target[decided])
    return float(np.mean((side > 0) + 0.5 * (side == 0)))
