"""Real grades of several people each, as rows of JSON lines, for tests and for benchmarks/human.py.

A row is a comparison (prompt, first, second, gap, rater; gap > 0: the first is better) or a rating (prompt, completion, score, rater and
perhaps aspect).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mmpo.annotate.agreement import agree
from mmpo.pipeline import read_feedback

Rows = list[dict[str, Any]]
Scale = tuple[float, float] | None

SUMMEVAL = ("coherence", "consistency", "fluency", "relevance")


def table(folder: Path, name: str) -> pd.DataFrame:
    return pq.read_table(folder / f"{name}.parquet").to_pandas()


def compared(frame: pd.DataFrame, first: str, second: str, gap: str, rater: str) -> Rows:
    columns = {"prompt": "prompt", first: "first", second: "second", gap: "gap", rater: "rater"}
    chosen = frame[list(columns)].rename(columns=columns).astype({"rater": str})
    return [{**row, "gap": float(row["gap"])} for row in chosen.to_dict("records")]


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


def tulu(folder: Path) -> Rows:
    """Some pairs were shown to one person in one order and to another in the other."""
    return compared(table(folder, "tulu_human_pairs"), "response_a", "response_b", "preference_margin", "annotator")


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


def feedback_of(path: Path, rows: Rows, scale: Scale) -> pa.Table:
    """FEEDBACK, by way of a file at `path`; empty and identical texts are left out."""
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return read_feedback(path, "jsonl", scale=scale, kind="human", max_rejects=0.05)


def agreed(path: Path, rows: Rows, scale: Scale, **options: Any) -> dict[str, Any]:
    return agree(feedback_of(path, rows, scale), **options)
