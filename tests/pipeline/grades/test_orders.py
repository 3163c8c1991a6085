"""Judges that answer in both orders: position bias, answers in one order, and the standard error that the orders leave."""

import json
import math
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folders import write_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from panels import Grade, feedback

from mmpo.pipeline import BuildOptions, build, build_pairs, load_feedback, load_pairs
from mmpo.pipeline.grades import OrderTotals, exact_sum, position_biases
from mmpo.pipeline.storage import read_manifest
from mmpo.pipeline.tables import metadata


def answered(prompts: list[list[Grade]], kind: str = "ai", **more: Any) -> pa.Table:
    return feedback(prompts, kind=kind, **more)


def both(rater: str, margin: float, order_gap: float) -> list[Grade]:
    """A margin of a over b, and the order gap h: shown first a gets margin + h, shown second margin - h."""
    return [(rater, "a", "b", margin + order_gap), (rater, "b", "a", order_gap - margin)]


def rows(table: pa.Table, **options: Any) -> list[dict]:
    return build_pairs(table, **options).to_pylist()


def biases(table: pa.Table, **options: Any) -> dict:
    return metadata(build_pairs(table, **options).schema)["position_bias"]


@pytest.mark.parametrize(
    ("answers", "spread", "bias", "order_sd", "variance"),
    [
        ([both("j", 2, 1), both("j", 5, 3)], None, 2.0, pytest.approx(math.sqrt(2)), 1.8),
        ([both("j", 2, 1), both("j", 5, 3)], 0.6, 2.0, pytest.approx(math.sqrt(2)), 1.98),
        ([both("j", 2, 1)], None, 1.0, None, None),
        ([both("j", 2, 1)], 0.6, 1.0, None, 0.18),
    ],
)
def test_bias_and_standard_error_by_hand(
    answers: list[list[Grade]], spread: float | None, bias: float, order_sd: Any, variance: float | None
) -> None:
    """h = 1 and 3: b = 2, v0 = ((1 - 2)² + (3 - 2)²)/(2 - 1) = 2. Each pair's (h - b)² = 1: variance (4·2 + 1)/5 = 1.8; two answers of
    spread .6 add (.36 + .36)/4 = .18. One pair has a bias, but says nothing of the order noise."""
    table = answered(answers, spread=spread)
    found = {row["quality_margin"]: row["margin_se"] for row in rows(table)}
    assert found == dict.fromkeys((2, 5)[: len(answers)], variance and pytest.approx(math.sqrt(variance)))
    assert biases(table) == {"j/overall": {"bias": bias, "pairs": len(answers), "order_sd": order_sd}}


def test_an_answer_in_one_order_is_dropped_or_kept_without_the_bias() -> None:
    """b = 2, v0 = 2. Shown a first the gap 3 is a margin of 1; shown b first the gap 3 is one of 1 for b. Variance s² + 2·v0 = .36 + 4."""
    table = answered([both("j", 2, 1), both("j", 5, 3), [("j", "a", "b", 3.0)], [("j", "b", "a", 3.0)]], spread=0.6)
    assert sorted(row["quality_margin"] for row in rows(table)) == [2, 5]
    kept = {
        (row["prompt"][0]["content"][-1], row["chosen"][0]["content"]): (row["quality_margin"], row["margin_se"])
        for row in rows(table, one_order="keep")
    }
    assert kept["2", "a"] == kept["3", "b"] == (1, pytest.approx(math.sqrt(4.36)))
    assert len(kept) == 4


def test_who_never_answered_in_both_orders_is_left_alone() -> None:
    one = [("k", "a", "b", 3.0)]
    for table in (answered([one, [("k", "b", "a", 1.0)]]), answered([[*both("p", 2, 1), ("p", "c", "d", 1.0)]], kind="human")):
        plain = build_pairs(table, one_order="keep")
        assert plain.num_rows == 2
        assert plain.equals(build_pairs(table, one_order="drop"))
        assert "position_bias" not in metadata(plain.schema)
    mixed = answered([both("j", 2, 1), both("j", 5, 3), [*one, ("j", "a", "b", 3.0)]])
    left = [row for row in rows(mixed) if row["prompt"][0]["content"].endswith("2")]
    assert [(row["quality_margin"], row["raters"]) for row in left] == [(3, 1)]


def test_people_are_never_taken_for_judges() -> None:
    """A person who met one pair in both orders by chance keeps her answers in one order, beside a judge who loses his."""
    people = answered([[*both("p", 2, 1), ("p", "c", "d", 1.0)]], kind="human")
    judge = answered([[], both("j", 2, 1), [("j", "a", "b", 2.5)]])
    table = pa.concat_tables([people, judge.slice(1)])
    assert sorted(row["quality_margin"] for row in rows(table)) == [1, 2, 2]
    assert list(biases(table)) == ["j/overall"]


def test_aspects_have_biases_of_their_own() -> None:
    """j answers in both orders for x only: its one-order grade of y stays, since its y has no bias to leave in."""
    table = answered([[("j/x", "a", "b", 3), ("j/x", "b", "a", -1), ("j/y", "a", "b", 1)]])
    assert [row["quality_margin"] for row in rows(table, score="x=1,y=1")] == [3]
    assert list(biases(table, score="mean")) == ["j/x"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), max_size=40), st.integers(0, 40), st.randoms())
def test_sums_are_exact_whatever_the_order_and_the_cut(values: list[float], cut: int, shuffler: random.Random) -> None:
    whole = exact_sum(np.array(values))
    assert whole == sum((Fraction(v) for v in values), Fraction(0))
    shuffler.shuffle(values)
    assert exact_sum(np.array(values[:cut])) + exact_sum(np.array(values[cut:])) == whole


def test_biases_of_parts_are_those_of_the_whole() -> None:
    h = np.random.default_rng(0).normal(0.3, 1, 1000)
    totals = [OrderTotals(len(p), exact_sum(p), exact_sum(p * p)) for p in (h, h[:1], h[1:400], h[400:])]
    whole = position_biases([{("j", "x"): totals[0]}])
    assert whole == position_biases([{("j", "x"): part} for part in totals[:0:-1]])
    assert whole["j", "x"].bias == pytest.approx(h.mean(), abs=1e-15)
    assert whole["j", "x"].variance == pytest.approx(h.var(ddof=1), rel=1e-12)


def test_normalisations_take_the_bias_along() -> None:
    table = answered([both("j", 1, 1), both("j", 2, 1)], limit=4)
    assert biases(table, normalise="minmax")["j/overall"]["bias"] == pytest.approx(0.25)
    assert sorted(row["quality_margin"] for row in rows(table, normalise="minmax")) == pytest.approx([0.25, 0.5])
    # gaps 2, 0, 3, -1: root mean square √(14/4)
    assert biases(table, normalise="zscore")["j/overall"]["bias"] == pytest.approx(1 / math.sqrt(3.5))
    assert sorted(row["quality_margin"] for row in rows(table, normalise="zscore")) == pytest.approx([1 / 3.5**0.5, 2 / 3.5**0.5])


def lines(seed: int = 0, prompts: int = 400) -> list[dict]:
    """Comparisons of two judges, one of whom misses an order now and then, and of a person; with decimals that don't add exactly."""
    rng = np.random.default_rng(seed)
    result = []
    for p in range(prompts):
        for a, b in ((0, 1), (0, 2), (1, 2)):
            for rater, noise, bias in (("j", 0.7, 0.3), ("k", 0.9, -0.2), ("p", 0.5, 0.0)):
                for first, second in ((a, b), (b, a)) if rater != "p" else ((a, b),):
                    if rater == "j" and rng.random() < 0.1:
                        continue
                    gap = float(np.clip((second - first) * 0.7 + bias + rng.normal(0, noise), -3, 3))
                    row = {"prompt": f"question {p}", "first": f"answer {first}", "second": f"answer {second}", "gap": gap}
                    result.append({**row, "rater": rater, "kind": "human" if rater == "p" else "ai"})
    return result


@pytest.mark.slow
@pytest.mark.parametrize("merge", ["mean", "median", "rater-effects"])
@pytest.mark.parametrize("one_order", ["drop", "keep"])
def test_order_files_and_workers_change_nothing_and_python_agrees(tmp_path: Path, merge: str, one_order: str) -> None:
    given_rows = lines()
    options = {"merge_raters": merge, "one_order": one_order}
    shuffled = random.Random(1).sample(given_rows, len(given_rows))
    whole = [write_rows(tmp_path / "a.jsonl", given_rows)]
    parts = [write_rows(tmp_path / f"{i}.jsonl", shuffled[i::3]) for i in range(3)]
    for name, paths, workers, size in (("one", whole, 1, 8 << 20), ("many", parts, 2, 50_000)):  # one partition, and about a dozen
        with_workers = BuildOptions(format="jsonl", scale=(-3, 3), workers=workers, **options)  # type: ignore[arg-type]
        build(paths, tmp_path / name, options=with_workers, partition_bytes=size)
    build(whole, tmp_path / "feedback", options=BuildOptions(format="jsonl", scale=(-3, 3), feedback_only=True))
    python = build_pairs(load_feedback(tmp_path / "feedback"), **options)
    built = [load_pairs(tmp_path / name) for name in ("one", "many")]
    keys = [("prompt_id", "ascending"), ("chosen_id", "ascending"), ("rejected_id", "ascending")]
    exact = ["prompt_id", "chosen_id", "rejected_id", "quality_margin", "preferring", "raters", "kind"]
    one, *others = (table.replace_schema_metadata(None).sort_by(keys) for table in (*built, python))
    for other in others:
        assert other.select(exact).equals(one.select(exact))
        np.testing.assert_allclose(other["margin_se"], one["margin_se"], rtol=1e-12)
    learned = [{k: metadata(t.schema).get(k) for k in ("position_bias", "rater_effects")} for t in (*built, python)]
    assert learned[0] == learned[1] == learned[2]
    assert set(learned[0]["position_bias"]) == {"j/overall", "k/overall"}
    assert read_manifest(tmp_path / "one")["position_bias"] == learned[0]["position_bias"]


def test_what_is_left_out_balances_and_is_told(tmp_path: Path) -> None:
    """Of three pairs that j answered in one order, the person graded one: two pairs go, three grades go."""
    given_rows = [
        {"prompt": f"q{p}", "first": first, "second": second, "gap": gap, "rater": rater, "kind": kind}
        for p in range(40)
        for rater, first, second, gap, kind in (("j", "a", "b", 2, "ai"), ("j", "b", "a", -1, "ai"), ("p", "a", "b", 1, "human"))
        if not (p < 3 and first == "b") and not (p in (0, 1, 5) and rater == "p")
    ]
    summary = build(
        write_rows(tmp_path / "c.jsonl", given_rows), tmp_path / "out", options=BuildOptions(format="jsonl", scale=(-3, 3))
    )
    assert summary["rejected"] == {"one_order": 3, "no_pair": 2, "one_order_pair": 2}
    assert sum(summary["pairs"].values()) == 38
    assert summary["position_bias"]["j/overall"] == {"bias": 0.5, "pairs": 37, "order_sd": 0.0}
    counts = read_manifest(tmp_path / "out")["counts"]
    assert counts["score"]["grade"]["dropped"] == {"one_order": 3}
    assert counts["filter"]["pair"] == {"in": 40, "created": 0, "out": 38, "merged": 0, "dropped": {"one_order_pair": 2}}
    rejects = [row for row in pq.read_table(tmp_path / "out/rejects.parquet").to_pylist() if row["unit"] == "pair"]
    assert [row["reason"] for row in rejects] == ["one_order_pair"] * 2
    assert all(set(json.loads(row["evidence"])) == {"chosen_id", "rejected_id"} for row in rejects)
