"""What annotation tools export: real files of each, and what became of every answer in them; broken exports."""

import json
from pathlib import Path
from typing import Any

import pytest
from export_cases import EXPORTS, gaps, ratings, refusal
from folders import write_rows
from source_cases import collected, reasons

from mmpo.pipeline.errors import UserError

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


def answer(kind: str, name: str, **value: Any) -> dict[str, Any]:
    return {"type": kind, "from_name": name, "to_name": "x", "value": value}


def task(*results: Any, **changed: Any) -> dict[str, Any]:
    data = {
        "prompt": "Name a planet.",
        "answer1": "The moon.",
        "answer2": "Mars, the red one.",
        "items": [{"id": "a"}, {"id": "b"}],
    }
    return {"id": 1, "data": data, "annotations": [{"id": 2, "completed_by": {"id": 7}, "result": list(results)}], **changed}


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
        (task(answer("rating", "stars", rating=4)), "gap=pw*stars", "needs the column 'pw' (for gap)"),
        ({"prompt": "q", "pw": "left"}, "gap=pw", "needs the columns 'annotation_id', 'annotator'"),
    ],
)
def test_broken_label_studio(tmp_path: Path, capsys: pytest.CaptureFixture[str], row: Any, columns: str, told: str) -> None:
    path = write_rows(tmp_path / "tasks.jsonl", [row])
    assert told in refusal(path, "label-studio", columns, capsys)


def test_what_label_studio_leaves_out_is_counted(tmp_path: Path) -> None:
    stays = answer("pairwise", "pw", selected="right")
    rows = [
        task(stays, answer("textarea", "why", text=["x"]), answer("labels", "marks", labels=["x"]), predictions=[{}]),
        task(answer("ranker", "rank", ranker=["a", "b"])),
        task(annotations=[]),
    ]
    result = collected(write_rows(tmp_path / "tasks.jsonl", rows), "label-studio", columns={"gap": "pw", "scores": "rank"})
    assert gaps(result) == [("Name a planet.", "7", -1.0)]
    assert reasons(result) == {"no_grade": 1, "not_annotated": 1}
    assert dict(result.noted) == {
        **dict.fromkeys(("predictions_left_out", "remarks_left_out", "other_results_left_out", "ranking_in_display_order"), 1)
    }


# Argilla: r1 with two submitted answers, r2 with a draft and a discarded one, r3 with none

ANNA, BEN = "c160646d-b201-4747-83e4-28be253e1290", "b72957b1-a184-423c-a51b-3cbc1fc7c4d3"
STATUS = {"draft": 1, "discarded": 1, "not_annotated": 1}
RECORDS = {"status_unknown": 2, "not_annotated": 1}


@pytest.mark.parametrize(
    ("file", "left_out"),
    [
        ("to_datasets.jsonl", STATUS),
        ("to_datasets.parquet", STATUS),
        ("to_datasets.csv", STATUS),
        ("records_to_json.json", RECORDS),
        ("to_disk", RECORDS),
    ],
)
def test_argilla(file: str, left_out: dict[str, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = EXPORTS / "argilla" / file
    result = collected(path, "argilla-export", columns={"completion": "reply", "score": "quality"}, scale=(1, 5))
    assert ratings(result) == [("Red.", BEN, 2.0), ("Red.", ANNA, 5.0)]
    assert (result.lines, result.dropped, result.limited, reasons(result)) == (5, 3, 0, left_out)
    unknown = {"argilla_status_unknown": 2} if left_out is RECORDS else {}
    assert dict(result.noted) == {"suggestions_left_out": 1, **unknown}
    columns = {"first": "reply", "second": "other"}
    better = collected(path, "argilla-export", columns={**columns, "gap": "better"}, gap_of={"a": 1, "b": -1, "tie": 0})
    assert gaps(better) == [("Name a colour.", ANNA, 1.0)]
    with pytest.raises(UserError, match=r"row \d+: the answer to 'rank' is a list .*exports no ranks"):
        collected(path, "argilla-export", columns={**columns, "gap": "rank"})


FRAME = {
    "prompt": "q",
    "reply": "a",
    "quality.responses": [5],
    "quality.responses.users": ["anna"],
    "quality.responses.status": ["submitted"],
}


@pytest.mark.parametrize(
    ("change", "columns", "told"),
    [
        ({}, "completion=reply,score=qality", "Did you mean 'quality' for 'qality' (for score)"),
        (
            {"quality.responses.users": None},
            "completion=reply,score=quality",
            'missing_column {"missing":"quality.responses.users"}',
        ),
        ({"quality.responses.users": ["a", "b"]}, "completion=reply,score=quality", "lengths_differ"),
        ({}, "completion=answer,score=quality", "needs the column 'answer' (for completion)"),
        ({"fields": {}, "responses": [1]}, "completion=reply,score=quality", "records hold `responses` as an object"),
    ],
)
def test_broken_argilla(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], columns: str, told: str
) -> None:
    row = {name: value for name, value in {**FRAME, **change}.items() if value is not None}
    assert told in refusal(write_rows(tmp_path / "frame.jsonl", [row]), "argilla-export", columns, capsys)


def test_what_is_no_argilla_export_is_told_how_to_make_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"prompt": "q", "reply": "a", "quality": 5}])
    assert "row 1: holds neither `fields` and `responses`" in refusal(
        path, "argilla-export", "completion=reply,score=quality", capsys
    )
    unsaid = {name: value for name, value in FRAME.items() if not name.endswith("status")}
    result = collected(write_rows(path, [unsaid]), "argilla-export", columns={"completion": "reply", "score": "quality"})
    assert reasons(result) == {"status_unknown": 1}


# MLflow: four traces, of which two have assessments by a, b and a judge

ASSESSED = {"expectation": 1, "judge_failed": 1, "superseded": 1, "not_assessed": 2}


@pytest.mark.parametrize(
    ("score", "wanted"),
    [
        ("quality", [("a", 4.0), ("b", 2.5), ("judge", 5.0)]),
        ("q2", [("b", 3.0)]),
        ("ok", [("a", 1.0)]),
        ("scores.a", [("a", 4.0)]),
        ("list.1", [("a", 2.0)]),
    ],
)
def test_mlflow(score: str, wanted: list[tuple[str, float]]) -> None:
    columns = {"prompt": "request.q", "score": score}
    result = collected(EXPORTS / "mlflow" / "traces.jsonl", "mlflow", columns=columns)
    assert ratings(result) == [("red", rater, value) for rater, value in wanted]
    assert (result.lines, result.dropped, result.limited) == (9, 5, 0)
    assert reasons(result) == {**ASSESSED, "no_grade": 4 - len(wanted)}


def test_mlflow_grades_by_aspect_and_kind() -> None:
    columns = {"prompt": "request.q", "score": "quality+q2"}
    result = collected(EXPORTS / "mlflow" / "traces.jsonl", "mlflow", columns=columns)
    rows = [one for row in result.feedback.to_pylist() for one in row["ratings"]]
    told = sorted((one["aspect"], one["rater"], one["kind"]) for one in rows)
    assert told == [("q2", "b", "human"), ("quality", "a", "human"), ("quality", "b", "human"), ("quality", "judge", "ai")]


TRACE = {
    "state": "OK",
    "request": {"messages": [{"role": "user", "content": "q"}]},
    "response": {"choices": [{"message": {"role": "assistant", "content": "a"}}]},
}


def assessed(*values: Any, **changed: Any) -> dict[str, Any]:
    source = {"source_id": "j", "source_type": "LLM_JUDGE"}
    return {
        **TRACE,
        "assessments": [{"assessment_name": "s", "source": source, "feedback": {"value": value}} for value in values],
        **changed,
    }


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (assessed(1, request={"q": "x"}), "--columns prompt=request.KEY"),
        (assessed(1, response={"text": "x"}), "--columns completion=response.KEY"),
        (assessed(1, assessments="[Feedback(name='s')]"), "to_json(orient='records', lines=True)"),
        (assessed([1, 2]), "score_not_a_number"),
        (assessed("good"), "score_not_a_number"),
        ({"request": "q", "response": "a"}, "not_a_list"),
    ],
)
def test_broken_mlflow(tmp_path: Path, capsys: pytest.CaptureFixture[str], row: Any, told: str) -> None:
    assert told in refusal(write_rows(tmp_path / "traces.jsonl", [row]), "mlflow", "score=s", capsys)


def test_mlflow_chats_repeats_and_traces_that_have_not_ended(tmp_path: Path) -> None:
    rows = [assessed(1, 3), assessed(2, state="IN_PROGRESS")]
    result = collected(write_rows(tmp_path / "traces.jsonl", rows), "mlflow", columns={"score": "s"})
    assert ratings(result) == [("a", "j", 1.0), ("a", "j", 3.0)] and reasons(result) == {"trace_in_progress": 1}


INSIDE = {"prompt": "request.messages", "completion": "response.choices[0].message.content"}


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("named", [(), ("prompt",), ("completion",), ("prompt", "completion")])
def test_mlflow_paths_lead_into_what_was_sent(tmp_path: Path, named: tuple[str, ...], as_text: bool) -> None:
    """The chat is the same one, named by its path or read as the request that it is."""
    row = assessed(4)
    row |= {name: json.dumps(row[name]) for name in ("request", "response")} if as_text else {}
    columns = {"score": "s", **{name: INSIDE[name] for name in named}}
    result = collected(write_rows(tmp_path / "traces.jsonl", [row]), "mlflow", columns=columns)
    [feedback] = result.feedback.to_pylist()
    assert (feedback["prompt"][0]["content"], ratings(result), reasons(result)) == ("q", [("a", "j", 4.0)], {})
    assert not {"request", "response"} & set(result.unused)


def test_mlflow_assessments_in_a_traces_own_json(tmp_path: Path) -> None:
    """There they are named by `name`; one without a name is counted, and is no column `None`."""
    source = {"source_id": "j", "source_type": "LLM_JUDGE"}
    given = [{"name": "s", "source": source, "feedback": {"value": 3}}, {"source": source, "feedback": {"value": 1}}]
    result = collected(write_rows(tmp_path / "traces.jsonl", [{**TRACE, "assessments": given}]), "mlflow", columns={"score": "s"})
    assert (ratings(result), reasons(result)) == ([("a", "j", 3.0)], {"no_name": 1})
