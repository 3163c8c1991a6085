"""Out and back: what an export holds is the same pairs when `mmpo build` reads it again, whatever stands in their texts."""

from pathlib import Path
from typing import Any

import orjson
import pytest
from argilla_cases import Asked
from folders import feedback_folder, pairs_folder, write_rows
from out_cases import PROMPTS, TEXTS, graded, held
from source_cases import collected, reasons

from mmpo.annotate.exports import ExportOptions, export
from mmpo.annotate.judge import Capabilities, JudgeOptions, Questions, judges_of
from mmpo.annotate.rows import Feedback
from mmpo.pipeline import BuildOptions, build


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return pairs_folder(tmp_path / "pairs", graded(3), split=(0.5, 0.25, 0.25))


@pytest.mark.parametrize("format", ["jsonl", "trl"])
def test_jsonl_by_its_margins_gives_the_same_pairs_with_their_errors(format: str, pairs: Path, tmp_path: Path) -> None:
    export(pairs, "jsonl", tmp_path / "out.jsonl")
    options = {"split": (0.5, 0.25, 0.25), "columns": {"margin": "quality_margin"}}
    build(tmp_path / "out.jsonl", tmp_path / "again", options=BuildOptions(format, **options))
    names = ("quality_margin", "margin_se", "prompt", "chosen", "rejected", "chosen_model")
    again, before = held(tmp_path / "again", *names), held(pairs, *names)
    assert again == before and len(before) == 84
    margins, errors, *_ = zip(*before.values())
    assert 0 in margins and None not in errors


def test_jsonl_by_its_scores_gives_the_same_pairs_and_scores(pairs: Path, tmp_path: Path) -> None:
    """Their margins differ by a step of rounding (1e-12 of the scale), as scores are rounded before they are subtracted."""
    export(pairs, "jsonl", tmp_path / "out.jsonl")
    build(tmp_path / "out.jsonl", tmp_path / "again", options=BuildOptions("jsonl", split=(0.5, 0.25, 0.25)))
    names = ("score_chosen", "score_rejected")
    assert held(tmp_path / "again", *names) == held(pairs, *names)
    again, before = held(tmp_path / "again", "quality_margin"), held(pairs, "quality_margin")
    assert all(again[key] == pytest.approx(margin, abs=2e-12) for key, margin in before.items())


@pytest.mark.parametrize(("given", "kind"), [(None, "ai"), ("human", "human")])
def test_margins_of_people_and_models_together_do_not_come_back_as_peoples(given: str | None, kind: str, tmp_path: Path) -> None:
    rows = [one | {"rater": rater, "kind": rater} for one in graded(1) for rater in ("human", "ai")]
    pairs = pairs_folder(tmp_path / "pairs", rows, split=(1, 0, 0))
    export(pairs, "jsonl", tmp_path / "out.jsonl")
    build(tmp_path / "out.jsonl", tmp_path / "again", options=BuildOptions("jsonl", kind=given, split=(1, 0, 0)))
    assert {of for (of,) in held(pairs, "kind").values()} == {"mixed"}
    assert held(tmp_path / "again", "kind").keys() == held(pairs).keys()
    assert {of for (of,) in held(tmp_path / "again", "kind").values()} == {kind}


@pytest.mark.parametrize(("spread", "reason"), [(-0.5, "spread_below_zero"), ("much", "score_not_a_number")])
def test_a_spread_that_is_none_costs_its_row(spread: Any, reason: str, tmp_path: Path) -> None:
    row = {"prompt": "Q", "chosen": "a", "rejected": "b", "quality_margin": 1.0, "margin_se": 0.5}
    path = write_rows(tmp_path / "rows.jsonl", [row, row | {"prompt": "P", "margin_se": spread}])
    result = collected(path, "jsonl")
    assert reasons(result) == {reason: 1}
    assert [one["spread"] for one in result.feedback["comparisons"].to_pylist()[0]] == [0.5]


@pytest.mark.parametrize("to", ["trl-dpo", "trl-reward", "openrlhf"])
def test_trainers_formats_give_the_untied_pairs_with_their_errors(to: str, pairs: Path, tmp_path: Path) -> None:
    summary = export(pairs, to, tmp_path / "out")
    build(tmp_path / "out", tmp_path / "again", options=BuildOptions("trl", split=(0.5, 0.25, 0.25)))
    before = {key: value for key, value in held(pairs, "quality_margin", "margin_se", "prompt").items() if value[0] > 0}
    assert held(tmp_path / "again", "quality_margin", "margin_se", "prompt") == before
    assert summary["left_out"] == {"tie": 84 - len(before)}


def answered(task: dict[str, Any], number: int, choice: str) -> dict[str, Any]:
    """The task as Label Studio's JSON export has it after somebody's choice (1.23.2)."""
    result = {
        "type": "choices",
        "from_name": "grade",
        "to_name": "conversation",
        "value": {"choices": [choice]},
        "origin": "manual",
    }
    annotation = {"id": number, "completed_by": 1, "result": [result], "was_cancelled": False}
    return {"id": number, "data": task["data"], "annotations": [annotation], "drafts": [], "predictions": []}


def test_label_studio_answers_come_back_to_the_pairs_that_they_are_about(pairs: Path, tmp_path: Path) -> None:
    """Whoever answers likes reply A, slightly: the gap is 1 towards the reply that was shown first, in every pair."""
    columns = export(pairs, "label-studio", tmp_path / "out")["next"].partition("--columns ")[2].partition(" ")[0]
    [path] = (tmp_path / "out").glob("*.json")
    tasks = orjson.loads(path.read_bytes())
    answers = [answered(task, number, "A slightly better") for number, task in enumerate(tasks)]
    (tmp_path / "answers.json").write_bytes(orjson.dumps(answers))
    worth = {"A much better": 3, "A slightly better": 1, "tie": 0, "B slightly better": -1}
    read = BuildOptions(
        "label-studio", columns=dict(one.split("=") for one in columns.split(",")), gap_of=worth, split=(0.5, 0.25, 0.25)
    )
    build(tmp_path / "answers.json", tmp_path / "again", options=read)
    again = held(tmp_path / "again", "quality_margin", "prompt")
    assert {(prompt, frozenset(ids)) for prompt, *ids in again} == {(prompt, frozenset(ids)) for prompt, *ids in held(pairs)}
    firsts = {(task["data"]["prompt_id"], task["data"]["first_id"], task["data"]["second_id"]) for task in tasks}
    assert set(again) == firsts and {margin for margin, _ in again.values()} == {1.0}


def test_label_studio_gives_back_tools_and_thinking(tmp_path: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "rain", "arguments": {"day": "today"}}}
    chosen = [{"role": "assistant", "content": "No.", "reasoning_content": "It is dry."}]
    rejected = [{"role": "assistant", "content": "", "tool_calls": [call]}]
    rows = [{"prompt": "Rain?", "tools": [call["function"]], "chosen": chosen, "rejected": rejected, "margin": 2}]
    pairs = pairs_folder(tmp_path / "pairs", rows, format="trl", split=(1, 0, 0))
    columns = export(pairs, "label-studio", tmp_path / "out")["next"].partition("--columns ")[2].partition(" ")[0]
    [task] = orjson.loads((tmp_path / "out/tasks-00000.json").read_bytes())
    assert {task["data"]["reply_a"], task["data"]["reply_b"]} == {"No.", 'calls rain({"day": "today"})'}
    better = "A better" if task["data"]["reply_a"] == "No." else "B better"
    (tmp_path / "answers.json").write_bytes(orjson.dumps([answered(task, 1, better)]))
    read = {"columns": dict(one.split("=") for one in columns.split(",")), "gap_of": {"A better": 2, "B better": -2}}
    build(tmp_path / "answers.json", tmp_path / "again", options=BuildOptions("label-studio", split=(1, 0, 0), **read))
    names = ("quality_margin", "prompt", "tools", "chosen", "rejected")
    assert held(tmp_path / "again", *names) == held(pairs, *names)


def test_a_tuned_judge_is_asked_in_the_words_that_it_was_tuned_on(tmp_path: Path) -> None:
    """By `mmpo judge` with the rubric that stands beside the rows: the same messages in both orders, and the same letters."""
    rows = [one for one in graded(1) if one["completion"] in TEXTS[:2]]
    pairs = pairs_folder(tmp_path / "pairs", rows, split=(1, 0, 0))
    feedback = feedback_folder(tmp_path / "feedback", [{"prompt": prompt, "completions": TEXTS[:2]} for prompt in PROMPTS])
    export(pairs, "judge", tmp_path / "out", ExportOptions(gamma=1.0))
    written = [orjson.loads(line) for line in (tmp_path / "out/train.jsonl").read_bytes().splitlines()]
    options = JudgeOptions(
        mode="pairwise", rubrics=(str(tmp_path / "out/rubric.yaml"),), model="tuned", base_url="http://127.0.0.1:9/v1"
    )
    [judge] = judges_of(options)
    questions = Questions(judge, options, Capabilities())
    asked = [
        (row.ids[posed.question.shown[0]], request.body["messages"])
        for batch in Feedback.open(feedback).rows(scores=False, reference=None)
        for row in batch
        for posed in questions.of(row)
        for request in posed.requests
    ]
    tuned = [(row["first_id"], row["prompt"]) for row in written]
    assert len(asked) == 8 and sorted(asked, key=repr) == sorted(tuned, key=repr)
    assert questions.rubrics[0].grades.labels == {"A": 1.0, "B": -1.0}


@pytest.mark.slow
def test_argillas_own_client_logs_the_records_and_what_people_answer_is_pulled(asked: Asked, pairs: Path, tmp_path: Path) -> None:
    """Every text comes back to the letter: else the records' ids would not prove the pairs that are pulled."""
    import argilla

    export(pairs, "argilla", tmp_path / "folder")
    client, workspace = asked.argilla.client(), asked.argilla.workspace
    argilla.Dataset.from_disk(str(tmp_path / "folder"), name=asked.name, workspace=workspace, client=client)
    asked.answer_all("anna", grade="2")
    summary = asked.pull()
    assert (summary["grades"], summary["left_out"], summary["finished"]) == (84, {}, True)
    build(asked.out, tmp_path / "again", options=BuildOptions("feedback", split=(0.5, 0.25, 0.25)))
    again = held(tmp_path / "again", "quality_margin")
    assert {frozenset(key) for key in again} == {frozenset(key) for key in held(pairs)}
    assert set(again.values()) == {(2.0,)}


def test_jsonl_is_read_as_the_export_says_without_pairs_that_had_been_left_out(tmp_path: Path) -> None:
    """Of scores 1, 2 and 4 the pair 2 over 1 is below --min-margin 2. Read by scores it comes back, without its error, as is said."""
    rows = [
        {"prompt": "Q", "completion": text, "score": score + shift, "rater": rater}
        for text, score in (("a", 1.0), ("b", 2.0), ("c", 4.0))
        for rater, shift in (("r", 0.0), ("s", 0.5))
    ]
    pairs = pairs_folder(tmp_path / "pairs", rows, split=(1, 0, 0), min_margin=2)
    following = export(pairs, "jsonl", tmp_path / "out.jsonl")["next"]
    columns = dict(one.split("=") for one in following.partition("--columns ")[2].partition(" ")[0].split(","))
    said = {}
    for name, given in (("by-margins", columns), ("by-scores", {})):
        said[name] = build(tmp_path / "out.jsonl", tmp_path / name, options=BuildOptions("jsonl", columns=given, split=(1, 0, 0)))
    assert sorted(held(pairs, "quality_margin").values()) == [(2.0,), (3.0,)]
    assert held(tmp_path / "by-margins", "quality_margin", "margin_se") == held(pairs, "quality_margin", "margin_se")
    assert sorted(held(tmp_path / "by-scores", "quality_margin", "margin_se").values()) == [(1.0, None), (2.0, None), (3.0, None)]
    told = [
        "in 2 rows a margin or its standard error stands beside two scores" in " ".join(one["warnings"]) for one in said.values()
    ]
    assert told == [False, True]
