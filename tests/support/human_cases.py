"""Real grades of several people each, for tests and for benchmarks/human.py: comparisons (prompt, first, second, gap, rater) as rows."""

from pathlib import Path
from typing import Any

import orjson
import pandas as pd
import pyarrow.parquet as pq

from mmpo.annotate.agreement import agree
from mmpo.pipeline import read_feedback

Rows = list[dict[str, Any]]
Scale = tuple[float, float] | None


def table(folder: Path, name: str) -> pd.DataFrame:
    return pq.read_table(folder / f"{name}.parquet").to_pandas()


def compared(frame: pd.DataFrame, first: str, second: str, gap: str, rater: str) -> Rows:
    columns = {"prompt": "prompt", first: "first", second: "second", gap: "gap", rater: "rater"}
    chosen = frame[list(columns)].rename(columns=columns).astype({"rater": str})
    return [{**row, "gap": float(row["gap"])} for row in chosen.to_dict("records")]


def tulu(folder: Path) -> Rows:
    """Some pairs were shown to one person in one order and to another in the other."""
    return compared(table(folder, "tulu_human_pairs"), "response_a", "response_b", "preference_margin", "annotator")


def agreed(path: Path, rows: Rows, scale: Scale, **options: Any) -> dict[str, Any]:
    """By way of a file at `path`; empty and identical texts are left out."""
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return agree(read_feedback(path, "jsonl", scale=scale, kind="human", max_rejects=0.05), **options)
