"""What builds of every kind write passes `validate`: its rules are those that the build keeps."""

from pathlib import Path
from typing import Any

import pytest
from folders import pairs_folder

from mmpo.pipeline import load_pairs, validate, write_dataset

Rows = list[dict[str, Any]]


def grades() -> Rows:
    """Forty prompts with four replies, graded by two people; the same grade twice makes ties, an empty reply a reject."""
    rows = [
        {"prompt": f"Question {p}?", "completion": f"Answer {c} to {p}.", "rater": rater, "score": 1 + (p + c * (c + r)) % 7}
        for p in range(40)
        for c in range(4)
        for r, rater in enumerate(("ann", "ben"))
    ]
    return [*rows, {**rows[0], "completion": " "}]


def compared(p: int) -> Rows:
    """A judge's comparisons in both orders, for some pairs in one."""
    rows = [
        {"prompt": f"Q{p}?", "rater": "judge", "kind": "ai", "first": f"a {i}", "second": f"b {j}"}
        for i in range(2)
        for j in range(2)
    ]
    there = [{**row, "gap": (p + n) % 5 - 2} for n, row in enumerate(rows)]
    return there + [{**row, "first": row["second"], "second": row["first"], "gap": 1 - row["gap"]} for row in there[p % 2 :]]


RATED = {
    "as it is": {},
    "minmax": {"normalise": "minmax"},
    "zscore": {"normalise": "zscore"},
    "rank": {"normalise": "rank"},
    "median": {"merge_raters": "median"},
    "rater effects": {"merge_raters": "rater-effects"},
    "best against worst": {"strategy": "best-worst"},
    "stratified": {"strategy": "stratified", "max_per_prompt": 3},
    "ties dropped": {"ties": "drop", "min_margin": 1.0},
    "without scale": {"scale": None},
    "by prompt": {"split_by": "prompt"},
    "all in train": {"split": (1, 0, 0)},
}


@pytest.mark.parametrize("name", RATED)
def test_what_a_build_of_ratings_writes_passes(name: str, tmp_path: Path) -> None:
    out = pairs_folder(tmp_path / "out", grades(), **{"kind": "human", "scale": (1, 9), "max_rejects": 0.1} | RATED[name])
    assert [check for check in validate(out)["checks"] if check["status"] == "fail"] == []
    write_dataset(load_pairs(out), tmp_path / "again", split=(0.5, 0.25, 0.25))
    assert [check for check in validate(tmp_path / "again")["checks"] if check["status"] == "fail"] == []


@pytest.mark.parametrize(
    "options", [{}, {"one_order": "keep"}, {"normalise": "zscore"}, {"merge_raters": "rater-effects"}], ids=str
)
def test_what_a_build_of_comparisons_writes_passes(options: dict[str, Any], tmp_path: Path) -> None:
    rows = [row for p in range(40) for row in compared(p)]
    for feedback_only in (True, False):
        out = pairs_folder(tmp_path / f"{feedback_only}", rows, feedback_only=feedback_only, **({} if feedback_only else options))
        assert [check for check in validate(out)["checks"] if check["status"] == "fail"] == []


def test_a_split_by_a_column_is_not_known(tmp_path: Path) -> None:
    rows = [{**row, "book": row["prompt"]} for row in grades()[:-1]]
    out = pairs_folder(tmp_path / "out", rows, scale=(1, 9), split_by="column:book")
    statuses = {check["name"]: check["status"] for check in validate(out)["checks"]}
    assert statuses["split"] == "unknown" and "fail" not in statuses.values()
