"""A flag that takes NAME=VALUE may be given once for each, or once for all: no value replaces another unsaid."""

import json
from pathlib import Path

import pytest
from command import mmpo

from mmpo.pipeline import load_feedback


@pytest.mark.parametrize(
    "columns",
    [
        ["--columns", "prompt=question,completion=reply,score=grade"],
        ["--columns", "prompt=question", "--columns", "completion=reply,score=grade"],
    ],
)
def test_columns_given_one_by_one_are_all_taken(columns: list[str], tmp_path: Path) -> None:
    rows = [{"question": "q", "reply": text, "grade": grade} for text, grade in (("a", 1), ("b", 2))]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = mmpo("build", tmp_path / "in.jsonl", "--format", "jsonl", *columns, "--feedback-only", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    [row] = load_feedback(tmp_path / "out").to_pylist()
    assert sorted(one["score"] for one in row["ratings"]) == [1, 2]


def test_a_second_model_is_no_second_judge_and_the_first_is_not_dropped_unsaid(tmp_path: Path) -> None:
    done = mmpo("judge", tmp_path / "in", "--model", "a", "--model", "b", "--out", tmp_path / "out", "--dry-run")
    assert done.returncode == 2
    assert "--model is given 2 times (a, b): name several judges by --judge" in done.stderr
