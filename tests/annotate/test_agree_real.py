"""Agreement on real grades of people, written as JSON lines and read as users' files are."""

from pathlib import Path
from typing import Any

import krippendorff
import numpy as np
import orjson
import pandas as pd
import pyarrow.parquet as pq
import pytest

from mmpo.annotate.agree import agree
from mmpo.pipeline import read_feedback

MEASURES = ("accuracy", "spearman", "alpha_nominal", "alpha_ordinal", "alpha_interval")


def agreed(path: Path, rows: list[dict[str, Any]], scale: tuple[float, float] | None, **options: Any) -> dict[str, Any]:
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return agree(read_feedback(path, "jsonl", scale=scale, kind="human", max_rejects=0.05), **options)


def compared(table: pd.DataFrame, first: str, second: str, gap: str, rater: str) -> list[dict[str, Any]]:
    columns = {"prompt": "prompt", first: "first", second: "second", gap: "gap", rater: "rater"}
    chosen = table[list(columns)].rename(columns=columns).astype({"rater": str})
    return [{**row, "gap": float(row["gap"])} for row in chosen.to_dict("records")]


def by_the_package(table: pd.DataFrame, first: str, second: str, gap: str, rater: str) -> tuple[int, float]:
    """Pairs that two raters or more graded, named in the order of their texts, and the package's α on both orientations."""
    told = (table[first].str.strip() != "") & (table[second].str.strip() != "") & (table[first] != table[second])
    table = table[told]
    swapped = table[first] > table[second]
    texts = {"a": table[first].where(~swapped, table[second]), "b": table[second].where(~swapped, table[first])}
    table = table.assign(**texts, signed=table[gap].astype(float).where(~swapped, -table[gap].astype(float)))
    values = table.pivot_table(index=["prompt", "a", "b"], columns=rater, values="signed").to_numpy().T
    values = values[:, (~np.isnan(values)).sum(axis=0) > 1]
    return values.shape[1], float(krippendorff.alpha(reliability_data=np.concatenate([values, -values], axis=1)))


def test_the_shipped_sample(root: Path) -> None:
    """Two people on 183 pairs: they agree on 89% of those that neither calls a tie; the longer answer wins 65% to 68% of them."""
    summary = agree(read_feedback(root / "data" / "human_graded_pairs.jsonl", "jsonl", scale=(-2, 2), kind="human"))
    [pair] = summary["pairs"]
    assert pair["units"] == pair["prompts"] == 183 and pair["decided"] == 103
    assert [pair[name] for name in MEASURES] == pytest.approx([0.8932, 0.6692, 0.4656, 0.6650, 0.6687], abs=5e-5)
    assert all(pair[f"{name}_95"][0] < pair[name] < pair[f"{name}_95"][1] for name in MEASURES)
    assert [row["longest"] for row in summary["length"]] == pytest.approx([0.6505, 0.6796], abs=5e-5)


def test_ragchecker(real_data: Path, tmp_path: Path) -> None:
    """Its grades are positive where the second answer is better. Turning them, or naming the answers the other way round, is the same."""
    table = pq.read_table(real_data / "ragchecker_human_pairs.parquet").to_pandas()
    table["turned"] = -table["overall"]
    one = agreed(tmp_path / "one.jsonl", compared(table, "response_1", "response_2", "turned", "annotation"), (-2, 2))
    other = agreed(tmp_path / "two.jsonl", compared(table, "response_2", "response_1", "overall", "annotation"), (-2, 2))
    assert one["pairs"] == other["pairs"] and one["length"] == other["length"]
    assert one["position"][0]["toward_first"] == -other["position"][0]["toward_first"] != 0
    [pair] = one["pairs"]
    units, alpha = by_the_package(table, "response_1", "response_2", "overall", "annotation")
    assert pair["units"] == units == 210 and pair["alpha_interval"] == pytest.approx(alpha)


def test_pandalm_raters_agree_suspiciously_well(real_data: Path, tmp_path: Path) -> None:
    table = pq.read_table(real_data / "pandalm_human_pairs.parquet").to_pandas().explode("annotators")
    table["rater"] = table.groupby(level=0).cumcount()
    table["gap"] = table["annotators"].map({0: 0, 1: 1, 2: -1})
    summary = agreed(tmp_path / "p.jsonl", compared(table, "response_1", "response_2", "gap", "rater"), (-1, 1), bootstrap=200)
    everyone = summary["overall"]["people"]
    assert everyone["raters"] == 3 and everyone["alpha_interval"] == pytest.approx(0.86, abs=0.03)
    assert summary["overall"]["judges"] is None and len(summary["pairs"]) == 3


def test_tulu_raters_saw_the_same_pair_in_either_order(real_data: Path, tmp_path: Path) -> None:
    """16 raters share 99 pairs; whoever takes the order shown for the pair's identity finds half of them."""
    table = pq.read_table(real_data / "tulu_human_pairs.parquet").to_pandas()
    rows = compared(table, "response_a", "response_b", "preference_margin", "annotator")
    summary = agreed(tmp_path / "t.jsonl", rows, (-2, 2), bootstrap=200)
    everyone = summary["overall"]["all"]
    assert len(summary["raters"]) == everyone["raters"] == 16 and 0 < len(summary["pairs"]) < 120
    units, alpha = by_the_package(table, "response_a", "response_b", "preference_margin", "annotator")
    assert everyone["units"] == units == 99 and everyone["alpha_interval"] == pytest.approx(alpha)
    low, high = everyone["alpha_interval_95"]
    assert low < everyone["alpha_interval"] < high and high - low > 0.15
    assert (
        0.25 < sum(row["ties"] * row["units"] for row in summary["raters"]) / sum(row["units"] for row in summary["raters"]) < 0.4
    )


def test_mqm_raters_differ_in_severity(real_data: Path, tmp_path: Path) -> None:
    """Ratings without a lower bound: scaled by root mean square. Every rater is set against the mean of all others."""
    table = pq.read_table(real_data / "wmt_mqm_human.parquet").to_pandas()
    table = table[(table["test_set"] == "generalMT2023_sxs") & (table["lp"] == "en-de")].head(6000)
    names = {"prompt": "prompt", "response": "completion", "mqm_score": "score", "rater": "rater"}
    rows: Any = table[list(names)].rename(columns=names).to_dict("records")
    summary = agreed(tmp_path / "m.jsonl", rows, None, bootstrap=50)
    assert summary["scale"] == "rms" and len(summary["raters"]) >= 8
    means = [row["mean_margin"] for row in summary["raters"] if row["units"] > 100]
    assert max(means) > 1.5 * min(means)
    assert 0.1 < summary["overall"]["people"]["alpha_ordinal"] < 0.8
    assert {row["others"] for row in summary["against"]} == {len(summary["raters"]) - 1}
