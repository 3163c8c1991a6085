"""Rows that call a reply the chosen one and grade the other one higher: read as graded, and said, with how many of how many."""

import json
from pathlib import Path
from typing import Any

import pytest
from folders import pairs_folder, write_rows

from mmpo.pipeline import BuildOptions, load_pairs
from mmpo.pipeline.build import peek

Rows = list[dict[str, Any]]


def scored(chosen: Any, rejected: Any, n: int = 0, names: tuple[str, str] = ("score_chosen", "score_rejected")) -> dict[str, Any]:
    return {"prompt": f"Q{n}", "chosen": "a", "rejected": "b", **dict(zip(names, (chosen, rejected)))}


def by(margin: Any, n: int = 0) -> dict[str, Any]:
    return {"prompt": f"Q{n}", "chosen": "a", "rejected": "b", "margin": margin}


ALL = [scored(1, 2, n) for n in range(20)]
SOME = [scored(1, 2, 0), scored(2, 1, 1), scored(2, 2, 2), scored(None, 2, 3)]
RATED = [scored(2, 3, n, ("chosen_rating", "rejected_rating")) for n in range(2)]
MARGINS = [by(3, 0), by(-3, 1), by(0, 2), by(-0.5, 3)]
BELOW, MARGIN = "the chosen reply has the lower score", "the margin is below 0"
# Format, rows, options, and what is said of how many rows; a pair's better reply is the one that is graded higher.
CASES: list[tuple[str, Rows, dict[str, Any], str]] = [
    ("trl", ALL, {}, f"in 20 of 20 rows {BELOW}"),
    ("jsonl", SOME, {}, f"in 1 of 4 rows {BELOW}"),
    ("distilabel", RATED, {}, f"in 2 of 2 rows {BELOW}"),
    ("trl", MARGINS, {}, f"in 2 of 4 rows {MARGIN}"),
    ("jsonl", MARGINS, {}, f"in 2 of 4 rows {MARGIN}"),
    ("jsonl", MARGINS, {"columns": {"margin": "-margin"}}, f"in 1 of 4 rows {MARGIN}"),
    ("jsonl", ALL, {"columns": {"score_chosen": "-score_chosen", "score_rejected": "-score_rejected"}}, ""),
    ("jsonl", [by("a", 0), by("b", 1)], {"gap_of": {"a": 1.0, "b": -1.0}}, ""),
    ("jsonl", [{"prompt": "Q", "first": "a", "second": "b", "score_first": 1, "score_second": 2}], {}, ""),
    ("jsonl", [{"prompt": "Q", "first": "a", "second": "b", "gap": -1}], {}, ""),
]


@pytest.mark.parametrize("place", range(len(CASES)))
def test_labels_that_scores_contradict_are_said(place: int, tmp_path: Path) -> None:
    format, rows, options, said = CASES[place]
    out = pairs_folder(tmp_path / "out", rows, format=format, split=(1, 0, 0), **options)
    warnings = json.loads((out / "manifest.json").read_text())["warnings"]
    found = [one for one in warnings if BELOW in one or MARGIN in one]
    assert [one.startswith(said) for one in found] == [True] * bool(said)
    looked = peek([tmp_path / "out.jsonl"], BuildOptions(format=format, **options))["warnings"]
    assert [one for one in looked if BELOW in one or MARGIN in one] == found


def test_such_pairs_are_as_they_were_graded(tmp_path: Path) -> None:
    pairs = load_pairs(pairs_folder(tmp_path / "out", SOME[:2], format="trl")).to_pylist()
    found = {pair["prompt"][0]["content"]: (pair["chosen"][0]["content"], pair["quality_margin"]) for pair in pairs}
    assert found == {"Q0": ("b", 1.0), "Q1": ("a", 1.0)}


def test_numbers_written_as_text_are_compared_as_numbers(tmp_path: Path) -> None:
    given = write_rows(tmp_path / "rows.csv", [scored(10, 9, 0), scored(9, 10, 1)])
    [said] = [one for one in peek([given], BuildOptions(format="csv"))["warnings"] if BELOW in one]
    assert said.startswith("in 1 of 2 rows")
