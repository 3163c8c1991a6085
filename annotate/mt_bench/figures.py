"""The published arithmetic of MT-bench: judgments without a score (-1) are left out, the mean is over all others, of both turns alike.

Source: FastChat, fastchat/llm_judge/show_result.py (0.2). Intervals are of 95%, by resampling questions with all their judgments.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mmpo.annotate.mt_bench.files import GRADES, TURNS, BenchQuestion, Scored
from mmpo.pipeline.metrics import Parts, interval, part_draws

ALL = "all"


def categories_of(questions: Iterable[BenchQuestion]) -> dict[str, str]:
    """The category of each question, by its id as a text, in the order of the file."""
    return {str(one.id): one.category for one in questions}


def figures(rows: Sequence[Scored], categories: Mapping[str, str], draws: int = 1000, seed: int = 0) -> list[dict[str, Any]]:
    """One row for every judge and model, the judge's best model first.

    categories: of questions by their ids; a question that is not there is of none. Returns {"judge", "model", "mean", "interval" (of the
    mean), "turn1", "turn1_95", "turn2", "turn2_95", "categories": {name: {"mean", "mean_95", "scores"}}, "questions", "scores" (those that
    the mean is over), "unreadable" (by reason), "behind": {"model", "difference", "difference_95", "shared"} or None}. Means are on
    the judge's scale, 1 to 10, and None where there is no score; an interval is None of fewer than five questions. behind: the mean
    difference to the judge's best model over the answers to the same questions and turns.
    """
    grouped: dict[tuple[str, str], list[Scored]] = {}
    for row in rows:
        grouped.setdefault((row.judge, row.model), []).append(row)
    found = [_figures(judge, model, own, categories, draws, seed) for (judge, model), own in grouped.items()]
    judges = list(dict.fromkeys(row["judge"] for row in found))
    found.sort(key=lambda row: (judges.index(row["judge"]), row["mean"] is None, -(row["mean"] or 0.0)))
    best: dict[str, str] = {}
    for row in found:
        first = best.setdefault(row["judge"], row["model"])
        own, other = grouped[row["judge"], row["model"]], grouped[row["judge"], first]
        row["behind"] = None if row["model"] == first else {"model": first, **_difference(own, other, draws, seed)}
    return found


def _figures(
    judge: str, model: str, rows: Sequence[Scored], categories: Mapping[str, str], draws: int, seed: int
) -> dict[str, Any]:
    readable = [row for row in rows if row.score is not None]
    turns = {f"turn{turn}": [row for row in readable if row.turn == turn] for turn in range(1, TURNS + 1)}
    means = {name: _mean(own, draws, seed) for name, own in turns.items()}
    mean, bounds = _mean(readable, draws, seed)
    kinds = [name for name in dict.fromkeys(categories.values()) if any(categories.get(row.question) == name for row in rows)]
    parts = {kind: [row for row in readable if categories.get(row.question) == kind] for kind in kinds}
    by_kind = {kind: _mean(own, draws, seed) for kind, own in parts.items()}
    found: dict[str, Any] = {"judge": judge, "model": model, "mean": mean, "interval": bounds}
    for name, (value, turn_bounds) in means.items():
        found |= {name: value, f"{name}_95": turn_bounds}
    found["categories"] = {
        kind: {"mean": value, "mean_95": own, "scores": len(parts[kind])} for kind, (value, own) in by_kind.items()
    }
    reasons = Counter(row.reason for row in rows if row.score is None)
    return found | {"questions": len({row.question for row in rows}), "scores": len(readable), "unreadable": dict(reasons)}


def _mean(rows: Sequence[Scored], draws: int, seed: int) -> tuple[float | None, list[float] | None]:
    """The mean score, and its interval."""
    scores = np.array([row.score for row in rows], dtype=np.float64)
    mean, bounds = _resampled(scores, [row.question for row in rows], draws, seed)
    if bounds is not None:  # widened as for few questions, it may pass the ends of the scale
        low, high = min(GRADES.low, scores.min()), max(GRADES.high, scores.max())
        bounds = [float(np.clip(bound, low, high)) for bound in bounds]
    return mean, bounds


def _resampled(values: np.ndarray, questions: Sequence[str], draws: int, seed: int) -> tuple[float | None, list[float] | None]:
    """The mean of values, and its interval over questions."""
    if not len(values):
        return None, None
    names, clusters = np.unique(np.array(questions), return_inverse=True)
    parts = Parts(values, np.ones_like(values))
    drawn = part_draws({ALL: parts}, clusters, draws, seed)[ALL]
    value = parts.total()
    return value, interval(drawn, value, len(names))


def _difference(own: Sequence[Scored], other: Sequence[Scored], draws: int, seed: int) -> dict[str, Any]:
    """The mean difference over the answers that both have, each question and turn once."""
    mine, theirs = _by_answer(own), _by_answer(other)
    both = [key for key in mine if key in theirs]
    values = np.array([mine[key] - theirs[key] for key in both], dtype=np.float64)
    value, bounds = _resampled(values, [question for question, _ in both], draws, seed)
    return {"difference": value, "difference_95": bounds, "shared": len(both)}


def _by_answer(rows: Sequence[Scored]) -> dict[tuple[str, int | None], float]:
    """The mean score of every answer that has one, by question and turn."""
    scores: dict[tuple[str, int | None], list[float]] = {}
    for row in rows:
        if row.score is not None:
            scores.setdefault((row.question, row.turn), []).append(row.score)
    return {key: sum(values) / len(values) for key, values in scores.items()}
