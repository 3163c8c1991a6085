"""benchmarks/human.py: real grades of several people each, as rows of JSON lines.

A row is a comparison (prompt, first, second, gap, rater; gap > 0: the first is better) or a rating (prompt, completion, score, rater and
perhaps aspect).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from human_cases import Rows, Scale, compared, table, tulu

__all__ = ["HUMAN_SETS", "flipped", "mqm"]

SUMMEVAL = ("coherence", "consistency", "fluency", "relevance")


def ragchecker(folder: Path) -> Rows:
    """Positive in the file: the second answer is better."""
    frame = table(folder, "ragchecker_human_pairs")
    return compared(frame, "response_2", "response_1", "overall", "annotation")


def pandalm(folder: Path) -> Rows:
    """Three labels an item in fixed order: 0 tie, 1 the first, 2 the second."""
    frame = table(folder, "pandalm_human_pairs").explode("annotators")
    frame["rater"] = frame.groupby(level=0).cumcount()
    frame["gap"] = frame["annotators"].map({0: 0, 1: 1, 2: -1})
    return compared(frame, "response_1", "response_2", "gap", "rater")


def summeval(folder: Path) -> Rows:
    """Places in a list stand for people: nobody says that a place is the same person throughout."""
    return [
        {
            "prompt": row["prompt"],
            "completion": row["response"],
            "score": float(score),
            "rater": f"{group}{place}",
            "aspect": aspect,
        }
        for row in table(folder, "summeval_human").to_dict("records")
        for group in ("expert", "turker")
        for aspect in SUMMEVAL
        for place, score in enumerate(row[f"{group}_{aspect}"])
    ]


def summeval_groups(folder: Path) -> Rows:
    """The mean of the experts and the mean of the crowd, as two raters."""
    frame = pd.DataFrame(summeval(folder))
    frame["rater"] = frame["rater"].str.rstrip("0123456789")
    return frame.groupby(["prompt", "completion", "aspect", "rater"], as_index=False)["score"].mean().to_dict("records")  # type: ignore[return-value]


def mqm(folder: Path, languages: str) -> Rows:
    """Error scores of translations, 0 at best and without a lower bound; three people a segment."""
    frame = table(folder, "wmt_mqm_human")
    frame = frame[(frame["test_set"] == "generalMT2023_sxs") & (frame["lp"] == languages)]
    names = {"prompt": "prompt", "response": "completion", "mqm_score": "score", "rater": "rater"}
    return frame[list(names)].rename(columns=names).to_dict("records")  # type: ignore[return-value]


class HumanSet(NamedTuple):
    """rows: of the folder of real files; scale: low and high, of scores or of gaps; None: unbounded."""

    rows: Callable[[Path], Rows]
    scale: Scale


HUMAN_SETS = {
    "ragchecker": HumanSet(ragchecker, (-2, 2)),
    "pandalm": HumanSet(pandalm, (-1, 1)),
    "tulu": HumanSet(tulu, (-2, 2)),
    "summeval, experts": HumanSet(lambda folder: [row for row in summeval(folder) if row["rater"].startswith("expert")], (1, 5)),
    "summeval, crowd": HumanSet(lambda folder: [row for row in summeval(folder) if row["rater"].startswith("turker")], (1, 5)),
    "summeval, experts : crowd": HumanSet(summeval_groups, (1, 5)),
    "mqm en-de": HumanSet(lambda folder: mqm(folder, "en-de"), None),
    "mqm zh-en": HumanSet(lambda folder: mqm(folder, "zh-en"), None),
}


def flipped(rows: Rows, which: Sequence[bool] | np.ndarray) -> Rows:
    """The same rows with the other completion of a comparison called first in some of them; ratings in the opposite order."""
    if "gap" not in rows[0]:
        return rows[::-1]
    turned: Rows = [{**row, "first": row["second"], "second": row["first"], "gap": -row["gap"]} for row in rows]
    return [other if turn else row for row, other, turn in zip(rows, turned, which, strict=True)]
