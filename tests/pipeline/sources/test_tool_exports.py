"""What other tools export: real files of each, and what became of every answer in them; which side is the better one; broken exports."""

from pathlib import Path
from typing import Any

import pytest
from folders import write_rows
from source_cases import collected, reasons

from mmpo.cli.main import run
from mmpo.pipeline.sources import Collected

EXPORTS = Path(__file__).parents[2] / "data" / "exports"
Graded = dict[tuple[str, ...], float]


def gaps(result: Collected) -> list[tuple[str, str, float]]:
    """The better known prompt, the rater and the gap of each comparison, sorted."""
    rows = result.feedback.to_pylist()
    return sorted((row["prompt"][0]["content"], one["rater"], one["gap"]) for row in rows for one in row["comparisons"])


def ratings(result: Collected) -> list[tuple[str, str, float]]:
    """Text, rater and score of each rating, sorted."""
    rows = result.feedback.to_pylist()
    return sorted(
        (row["completions"][one["completion"]]["text"], one["rater"], one["score"]) for row in rows for one in row["ratings"]
    )


# Label Studio: users 1 and 2 on five tasks

SIDES = {"first": "reply_a", "second": "reply_b"}
GRADES = {"A much better": 2, "A better": 1, "same": 0, "B better": -1, "B much better": -2}
STARS = [(0, "1", 4.0), (0, "2", -2.0), (1, "1", 3.0), (1, "2", 5.0), (3, "2", -3.0)]
NUMBERS = [(0, "1", 2.0), (0, "2", -1.0), (1, "1", 1.0), (1, "2", 2.0), (2, "1", 0.0), (3, "2", -1.0), (4, "1", -2.0)]
# Left or right, with the stars that say by how much; left or right alone; a number; a choice of five.
PAIRWISE = {
    "pw*better": ({"scale": (-5, 5)}, STARS),
    "pw": ({}, [(0, "1", 1.0), (0, "2", -1.0), (1, "1", 1.0), (1, "2", 1.0), (3, "2", -1.0), (4, "1", -1.0)]),
    "gap": ({"scale": (-3, 3)}, NUMBERS),
    "grade": ({"gap_of": GRADES}, NUMBERS),
}
LEFT_OUT = {"draft": 1, "empty_annotation": 1, "skipped": 2}


@pytest.mark.parametrize("gap", PAIRWISE)
@pytest.mark.parametrize("file", ["pairwise-rating.json", "pairwise-rating.min.json", "pairwise-rating.csv", "pairwise-rating.tsv"])
def test_label_studio_comparisons(file: str, gap: str) -> None:
    options, wanted = PAIRWISE[gap]
    result = collected(EXPORTS / "label-studio" / file, "label-studio", columns={**SIDES, "gap": gap}, **options)
    assert gaps(result) == [(f"Question {task}?", rater, value) for task, rater, value in wanted]
    whole = file == "pairwise-rating.json"
    assert (result.lines, result.dropped, result.limited) == ((11, 4, 0) if whole else (8, 0, 0))
    # JSON_MIN and CSV have no skipped annotations and no drafts; the empty one is a row without answers.
    assert reasons(result) == {
        **(LEFT_OUT if whole else {}),
        **({"no_grade": n} if (n := (7 if whole else 8) - len(wanted)) else {}),
    }


def test_a_path_reads_one_question_of_json_min_without_the_format() -> None:
    columns = {**SIDES, "gap": "gap.0.number", "rater": "annotator"}
    result = collected(EXPORTS / "label-studio" / "pairwise-rating.min.json", "jsonl", columns=columns, scale=(-3, 3))
    assert gaps(result) == [(f"Question {task}?", rater, value) for task, rater, value in NUMBERS]
    assert reasons(result) == {"missing_column": 1}  # the annotation without any answer


@pytest.mark.parametrize("file", ["pairwise-rating.json", "pairwise-rating.min.json", "pairwise-rating.csv"])
def test_label_studio_ratings(file: str) -> None:
    columns = {**SIDES, "score_first": "score_a", "score_second": "score_b"}
    result = collected(EXPORTS / "label-studio" / file, "label-studio", columns=columns, scale=(1, 5))
    assert ratings(result)[:4] == [
        ("Answer A0.", "1", 5.0),
        ("Answer A0.", "2", 2.0),
        ("Answer A1.", "1", 4.0),
        ("Answer A1.", "2", 5.0),
    ]
    assert len(ratings(result)) == 14


@pytest.mark.parametrize("file", ["ranker.json", "ranker.min.json", "ranker.csv"])
def test_label_studio_rankings(file: str) -> None:
    result = collected(EXPORTS / "label-studio" / file, "label-studio")
    assert ratings(result) == [*[("colour 1", "1", 2.0)] * 2, *[("colour 2", "1", 3.0)] * 2, *[("colour 3", "1", 1.0)] * 2]
    buckets = EXPORTS / "label-studio" / file.replace("ranker", "ranker-buckets")
    result = collected(buckets, "label-studio", gap_of={"good": 1, "bad": 0})
    assert ratings(result) == [("colour 1", "1", 1.0), ("colour 2", "1", 0.0), ("colour 2", "1", 1.0), ("colour 3", "1", 1.0)]
    assert reasons(result) == {"no_grade": 2} and not result.noted
    unsaid = collected(buckets, "label-studio")
    assert reasons(unsaid) == {"unknown_bucket": 2} and "--gap-of BUCKET=SCORE" in unsaid.rejects["evidence"].to_pylist()[0]


def task(*results: Any, **changed: Any) -> dict[str, Any]:
    data = {
        "prompt": "Name a planet.",
        "answer1": "The moon.",
        "answer2": "Mars, the red one.",
        "items": [{"id": "a"}, {"id": "b"}],
    }
    return {"id": 1, "data": data, "annotations": [{"id": 2, "completed_by": {"id": 7}, "result": list(results)}], **changed}


def answer(kind: str, name: str, **value: Any) -> dict[str, Any]:
    return {"type": kind, "from_name": name, "to_name": "x", "value": value}


@pytest.mark.parametrize(
    ("row", "columns", "told"),
    [
        (task(answer("rectanglelabels", "box", x=1)), "gap=pw", "unknown_result_type"),
        (task(annotations=[3, 4]), "gap=pw", "JSON has whole annotations"),
        (task(data="x"), "gap=pw", "a task has `data` (an object)"),
        (task(answer("pairwise", "prompt", selected="left")), "gap=pw", "rename the tag"),
        (task(answer("ranker", "rank", ranker={"rank": ["a", "z"]})), "scores=rank", "no list in the task's data has items"),
        ({"id": 1, "data": {}, "completions": []}, "gap=pw", "Label Studio's before 1.0"),
        (task(answer("pairwise", "pw", selected="left")), "gap=pww", "Did you mean 'pw'"),
        (task(answer("rating", "stars", rating=4)), "gap=pw*stars", "needs the column 'pw (for gap)'"),
        ({"prompt": "q", "pw": "left"}, "gap=pw", "needs the columns 'annotation_id', 'annotator'"),
    ],
)
def test_broken_label_studio(tmp_path: Path, capsys: pytest.CaptureFixture[str], row: Any, columns: str, told: str) -> None:
    path = write_rows(tmp_path / "tasks.jsonl", [row])
    command = ["build", str(path), "--format", "label-studio", "--columns", columns, "--out", str(tmp_path / "out")]
    assert run(command) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert told in said and "tasks.jsonl" in said and "Traceback" not in said


def test_what_label_studio_leaves_out_is_counted(tmp_path: Path) -> None:
    stays = answer("pairwise", "pw", selected="right")
    rows = [
        task(stays, answer("textarea", "why", text=["x"]), predictions=[{}]),
        task(answer("ranker", "rank", ranker=["a", "b"])),
        task(annotations=[]),
    ]
    result = collected(write_rows(tmp_path / "tasks.jsonl", rows), "label-studio", columns={"gap": "pw", "scores": "rank"})
    assert gaps(result) == [("Name a planet.", "7", -1.0)]
    assert reasons(result) == {"no_grade": 1, "not_annotated": 1}
    assert dict(result.noted) == {"predictions_left_out": 1, "remarks_left_out": 1, "ranking_in_display_order": 1}
