"""Filters of texts by the command: what a build says it left out, and `mmpo rejects` with the evidence."""

import json
from pathlib import Path

import pytest
from folders import write_rows

from mmpo.cli.main import run


def test_what_was_left_out_is_said_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = "What is the best way to learn to play the piano at home?"
    prompts = [asked, "Name a planet.", "name a  planet", "Nenne einen Planeten, auf dem es Leben geben könnte."]
    rows = [{"prompt": prompt, "chosen": "Mars, the red one.", "rejected": "The moon.", "margin": 1} for prompt in prompts]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    (tmp_path / "evaluation.txt").write_text(asked + "\n", encoding="utf-8")
    out = tmp_path / "pairs"
    words = ["build", source, "--format", "trl", "--rater-kind", "human", "--out", out, "--split", "1,0,0", "--json"]
    filters = ["--duplicates", "prompts,replies", "--decontaminate", tmp_path / "evaluation.txt", "--language", "en"]
    assert run(list(map(str, [*words, *filters]))) == 0
    said = capsys.readouterr()
    dropped = {"contaminated": 1, "other_language": 1, "same_prompt": 1}
    assert json.loads(said.out)["rejected"] == {"completion_of_dropped_prompt": 6, "grade_of_dropped_prompt": 3} | dropped
    assert all(reason in said.err for reason in dropped)
    assert run(["rejects", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["reasons"]
    assert {name: one["count"] for name, one in found.items() if one["unit"] == "prompt"} == dropped
    [contaminated], [other], [same] = (found[name]["examples"] for name in dropped)
    assert (contaminated["details"]["row"], contaminated["details"]["ngram"]) == (1, "what is the best way to learn to")
    assert other["details"]["language"] == "de" and other["details"]["text"] == prompts[3]
    assert {same["details"]["text"], same["details"]["near_text"]} == set(prompts[1:3])


def test_evaluation_files_are_named_in_one_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["build", str(tmp_path / "rows.jsonl"), "--format", "trl", "--out", str(tmp_path / "out")]
    assert run([*words, "--decontaminate", "a.txt", "--decontaminate", "b.txt"]) == 2
    assert "--decontaminate is given 2 times (a.txt, b.txt): name all files in one, separated by commas" in capsys.readouterr().err


def test_one_is_said_in_the_singular_and_ends_only_where_not_all_grades_stand_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for scores, told in (([1, 5], []), ([1, 3], ["50.0% of 2"])):
        row = {"prompt": "hi", "completions": ["a", "b"], "scores": scores}
        path = write_rows(tmp_path / "rows.jsonl", [row])
        assert run(["build", str(path), "--format", "jsonl", "--scale", "1:5", "--out", str(tmp_path / "out")]) == 0
        said = capsys.readouterr().err
        assert "1 prompt, 1 pair (" in said
        assert [line.split(": ")[1].split(" ", 1)[1] for line in said.splitlines() if "grades at an end" in line] == told
