"""`--agree-between A,B`: pairs by the signs of two raters' own gaps, counted by reason."""

import json
from pathlib import Path
from typing import Any

import pytest
from folders import read_table, write_rows

from mmpo.pipeline import BuildOptions, UserError, build, build_pairs, load_pairs, read_feedback
from mmpo.pipeline.storage import read_manifest

GRADES = {"a": (1, 10), "b": (2, 30), "c": (2, 20), "d": (0, None)}
"""Of each completion the grades by ann and ben: of the pairs ab both prefer b, ac c; of bc ann says a tie, ben b; d has no grade of ben."""
RATED = [
    {"prompt": "q", "completion": name, "score": score, "rater": rater}
    for name, grades in GRADES.items()
    for rater, score in zip(("ann", "ben"), grades, strict=True)
    if score is not None
]
COMPARED = [
    {"prompt": "q", "first": first, "second": second, "gap": gap, "rater": rater}
    for first, second, ann, ben in (
        ("a", "b", 1, 2),
        ("c", "a", 1, -1),
        ("b", "c", 0, 0),
        ("d", "a", 2, None),
        ("d", "b", 0, 1),
        ("c", "d", -2, -1),
    )
    for rater, gap in (("ann", ann), ("ben", ben))
    if gap is not None
]


def built(folder: Path, rows: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    path = write_rows(folder / "rows.jsonl", rows)
    return build(path, folder / "out", options=BuildOptions(format="jsonl", kind="reward_model", split=(1, 0, 0), **options))


def kept(folder: Path) -> set[tuple[str, str]]:
    return {(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in load_pairs(folder / "out").to_pylist()}


def test_of_scores(tmp_path: Path) -> None:
    summary = built(tmp_path, RATED, agree_between="ann,ben")
    assert kept(tmp_path) == {("b", "a"), ("c", "a")}
    assert summary["rejected"] == {"rater_missing": 3, "raters_disagree": 1}
    rows = read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    told = [(row["reason"], {k: v for k, v in json.loads(row["evidence"]).items() if not k.endswith("_id")}) for row in rows]
    assert told == [("rater_missing", {"missing": ["ben"]})] * 3 + [
        ("raters_disagree", {"prefer": {"ann": "tie", "ben": "chosen"}})
    ]
    dropped = read_manifest(tmp_path / "out")["counts"]["filter"]["pair"]
    assert (dropped["in"], dropped["out"], dropped["dropped"]) == (6, 2, {"rater_missing": 3, "raters_disagree": 1})


def test_of_comparisons_whichever_way_round_they_stand(tmp_path: Path) -> None:
    """Of bc both say a tie and agree; of ac they say the opposite; of da ben says nothing; of db ann says a tie, ben d."""
    summary = built(tmp_path, COMPARED, agree_between="ben,ann")
    names = {frozenset(pair) for pair in kept(tmp_path)}
    assert names == {frozenset("ab"), frozenset("bc"), frozenset("cd")}
    assert summary["rejected"] == {"rater_missing": 1, "raters_disagree": 2}


@pytest.mark.parametrize("normalise", ["zscore", "minmax", "rank"])
def test_what_is_done_to_grades_turns_no_sign(tmp_path: Path, normalise: str) -> None:
    built(tmp_path, RATED, agree_between="ann,ben", normalise=normalise, **({"scale": (0, 30)} if normalise == "minmax" else {}))
    assert kept(tmp_path) == {("b", "a"), ("c", "a")}


def test_python_makes_the_same_pairs(tmp_path: Path) -> None:
    built(tmp_path, RATED, agree_between="ann,ben")
    table = build_pairs(read_feedback(tmp_path / "rows.jsonl", "jsonl"), agree_between=["ann", "ben"])
    assert sorted(table["chosen_id"].to_pylist()) == sorted(load_pairs(tmp_path / "out")["chosen_id"].to_pylist())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"agree_between": "ann"}, "name two or more different raters"),
        ({"agree_between": "ann,ann"}, "name two or more different raters"),
        ({"agree_between": "ann,bem"}, r"unknown rater .*'bem'; did you mean 'ben'\? Known: ann, ben"),
        ({"agree_between": "ann,ben", "raters": "ann"}, r"unknown rater among those that make the margins .*'ben'"),
    ],
)
def test_raters_that_are_not_there(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        built(tmp_path, RATED, **options)
