"""`mmpo report --json`: the figures of the page as numbers."""

import json
import math
from pathlib import Path

import pytest
from folders import pairs_folder
from pair_cases import pair, pairs_by_hand

from mmpo.cli.main import run
from mmpo.pipeline.margins import MEAN_TARGET


def test_figures_of_a_dataset_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Six prompts, a reply of score 3 over a longer one of score 1 by two raters of one mind: every margin is 2."""
    rows = [
        {"prompt": f"question {i}", "completion": text, "score": score, "rater": rater, "model": text[:4]}
        for i in range(6)
        for text, score in ((f"good {i}", 3), (f"poor and longer {i}", 1))
        for rater in ("ann", "bob")
    ]
    folder = pairs_folder(tmp_path / "pairs", rows, scale=(1, 5), split=(1, 0, 0))
    capsys.readouterr()
    assert run(["report", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["out"] == str(tmp_path / "pairs.html") and Path(found["out"]).is_file()
    assert (found["prompts"], found["pairs"], found["pairs_in"]) == (6, 6, {"train": 6, "validation": 0, "test": 0})
    assert (found["ties"], found["margin_mean"], found["margin_median"]) == (0, 2, 2)
    assert found["suggested_gamma"] == pytest.approx(math.log(MEAN_TARGET / (1 - MEAN_TARGET)) / 2)
    assert found["length"]["longer"] == 0 and found["length"]["longer_95"] == pytest.approx([0, 1 - 0.025 ** (1 / 6)])
    assert [(row["name"], row["agrees"], row["decided"], row["severity"]) for row in found["raters"]["raters"]] == [
        ("ann", 1.0, 6, 0.0), ("bob", 1.0, 6, 0.0)
    ]  # fmt: skip
    assert [(row["model"], row["wins"], row["margin"]) for row in found["models"]] == [("good", 1.0, 2.0), ("poor", 0.0, -2.0)]
    assert [(row["raters"], row["pairs"], row["all"]) for row in found["votes"]] == [(2, 6, 1.0)]
    assert {row["status"] for row in found["checks"]} <= {"pass", "warn", "unknown"} and found["aspects"] == []
    assert any("every untied pair has the margin 2" in row["words"] for row in found["first"])


def test_figures_of_two_versions_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 4 and 5 pairs three are in both: one as it was, one with another margin, one turned."""
    old = pairs_by_hand(tmp_path / "old", *(pair(f"q{i}", f"a{i}", f"b{i}", 1.0) for i in range(4)))
    kept = [pair("q1", "a1", "b1", 1.0), pair("q2", "a2", "b2", 3.0), pair("q3", "b3", "a3", 1.0)]
    new = pairs_by_hand(tmp_path / "new", *kept, pair("q8", "a", "b", 2.0), pair("q9", "a", "b", 2.0))
    assert run(["report", str(old), str(new), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    counts = {row["what"]: (row["pairs"], row["of"]) for row in found["changes"]}
    assert counts["went: in A only"] == (1, 4) and counts["came: in B only"] == (2, 5) and counts["in both"] == (3, 4)
    assert counts["in both, with another margin"] == (2, 3) and counts["in both, the other reply chosen"] == (1, 3)
    assert (found["A"]["pairs"], found["B"]["pairs"], found["B"]["margin_mean"]) == (4, 5, 1.8)
    assert found["out"] == str(tmp_path / "old-new.html")
