"""Out and back: what an export holds is the same pairs when `mmpo build` reads it again, whatever stands in their texts."""

from pathlib import Path
from typing import Any

import orjson
import pytest
from argilla_cases import Asked
from folders import pairs_folder

from mmpo.annotate.exports import export
from mmpo.pipeline import BuildOptions, build, load_pairs

TEXTS = [
    "=HYPERLINK(1)",
    "+1-1",
    "naïve 日本 \u2028 \x85",
    '"quoted", <b>&amp;</b>',
    "| a | b |\n|---|---|",
    " white \t\n",
    "$x$ {y} {{z}}",
]
PROMPTS: list[Any] = [
    "Plain?",
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "=1+1"}],
    [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two."}, {"role": "user", "content": "Three?"}],
    [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": "Once upon"}],
]
ID = ["prompt_id", "chosen_id", "rejected_id"]


def graded(raters: int) -> list[dict[str, Any]]:
    """Four prompts with seven replies each, graded in thirds, the sixth as the first."""
    return [
        {"prompt": prompt, "completion": text, "score": (place * (rater + 2) + number) % 5 / 3, "rater": f"r{rater}", "model": "m"}
        for number, prompt in enumerate(PROMPTS)
        for place, text in enumerate(TEXTS)
        for rater in range(raters)
    ]


def held(folder: Path, *columns: str) -> dict[tuple[str, ...], tuple[Any, ...]]:
    """The pairs of a folder by their ids."""
    return {tuple(row[name] for name in ID): tuple(row[name] for name in columns) for row in load_pairs(folder).to_pylist()}


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
