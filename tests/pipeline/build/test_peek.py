"""A first look at files: columns recognised, rows as read, wrong values with what would read them; and formats that are missing or
misspelt."""

import json
from pathlib import Path

import pytest
from command import refused
from folders import write_rows

from mmpo.cli.main import run
from mmpo.pipeline import BuildOptions
from mmpo.pipeline.build import peek

SHEET = "question;answer;anna;ben;id\nQ;A;4,5;5/5;1\nQ;B;2;N/A;2\nQ;C;x;1;3\nQ;D;x;1;4\n"
OPTIONS = ["--columns", "prompt=question,completion=answer,score=anna+ben", "--decimal", ",", "--scale", "1:5"]


def test_a_look_shows_what_is_recognised_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sheet.csv"
    path.write_text(SHEET)
    assert run(["build", str(path), "--format", "csv", "--peek", "--json", *OPTIONS]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["columns"] == {"question": "prompt", "answer": "completion", "anna": "score", "ben": "score", "id": None}
    assert found["layout"] == "one row per rating" and found["raters"] == {"ben": 3, "anna": 2}
    assert [row["completions"][0]["text"] for row in found["rows"]] == ["A", "B", "C"]
    [bad] = found["bad_values"].items()
    assert bad[0] == "score_not_a_number" and sorted(bad[1].values()) == [1, 2]
    assert any("'x'" in value for value in bad[1]) and any("--na N/A" in value for value in bad[1])
    for words in ("(not read)", "'A': anna 4.5, ben 5", "one row per rating; 4 lines read"):
        assert words in captured.err
    assert list(tmp_path.iterdir()) == [path]


def test_columns_of_published_formats_are_those_that_are_asked_for(tmp_path: Path) -> None:
    row = {"instruction": "Q", "output_1": "a", "output_2": "b", "preference": 1.2, "annotator": "j", "time": 3}
    found = peek([write_rows(tmp_path / "rows.jsonl", [row])], BuildOptions("alpaca-eval"))
    assert [name for name, field in found["columns"].items() if field is None] == ["time"]
    assert found["layout"] == "alpaca-eval" and found["raters"] == {"j": 2}


@pytest.mark.parametrize(
    ("row", "format", "told"),
    [
        ({"prompt": "Q", "chosen": "a", "rejected": "b", "margin": 1}, [], ["--format is missing", "fit --format trl or jsonl"]),
        ({"history": "Q", "human_ref_A": "a", "human_ref_B": "b", "score_A": 1, "score_B": 2}, ["--format", "spp"],
         ["did you mean 'shp'?", "fit --format shp"]),
        ({"prompt": "Q", "chosen": ["a"], "rejected": ["b", "c", "d"], "num_correct": 1, "subset": "Math"}, [],
         ["rows.jsonl --suite rewardbench2`"]),
        ({"prompt": "Q", "chosen": ["a"], "rejected": ["b", "c", "d"], "num_correct": 1, "subset": "Math"}, ["--format", "trl"],
         ["rows.jsonl --suite rewardbench2`"]),
        ({"prompt": "Q", "chosen": "a", "rejected": "b", "subset": "hep-js"}, ["--format", "trl"],
         ["--suite rewardbench`. As pairs to train on: ", "pairs without grades have no margin"]),
        ({"id": "1", "source": "s", **dict.fromkeys(("prompt", "chosen", "rejected", "chosen_model", "rejected_model"), "x")},
         ["--format", "wildfeedback"], ["They fit --format tulu or trl"]),
        ({"id": "1", "source": "s", **dict.fromkeys(("prompt", "chosen", "rejected", "margin"), "x")}, [], ["fit --format trl or jsonl"]),
        ({"evalId": "e", "results": {"results": []}}, ["--format", "inspect"], ["Its columns fit --format promptfoo"]),
        ({"eval": {}, "samples": [], "results": {}}, ["--format", "promptfoo"], ["Its columns fit --format inspect"]),
        ({"q": "Q"}, ["--format", "json"], ["did you mean 'jsonl'?", "('q') fit none of"]),
        ({"q": "Q"}, [], ["as they are", "--format jsonl --columns prompt=COLUMN,completion=COLUMN,score=COLUMN"]),
    ],
)  # fmt: skip
def test_a_format_that_is_not_named_is_guessed_from_the_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], row: dict[str, object], format: list[str], told: list[str]
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [row])
    message = refused(["build", str(path), "--out", str(tmp_path / "out"), *format], tmp_path, capsys)
    assert [words for words in told if words not in message] == []


@pytest.mark.parametrize(
    ("row", "options", "told"),
    [
        ({"prompt": "Q", "completion": "A", "score": 1}, [], "--format jsonl: by its columns"),
        ({"prompt": "Q", "completions": [{"text": "a", "score": 1}]}, [], "--format jsonl: by its columns"),
        ({"q": "Q", "a": "A", "s": 1}, ["--columns", "prompt=q,completion=a,score=s"], "--format jsonl: by the kind of file"),
    ],
)
def test_a_format_that_is_plain_to_see_need_not_be_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], row: dict[str, object], options: list[str], told: str
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [row])
    assert run(["build", str(path), "--peek", "--json", *options]) == 0
    captured = capsys.readouterr()
    assert told in captured.err
    assert json.loads(captured.out)["layout"] in ("one row per rating", "one row per prompt")


def test_a_file_in_another_encoding_says_which_option_reads_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sheet.csv").write_bytes("Frage;Antwort;Note\nWas?;Für dich;1\n".encode("cp1252"))
    message = refused(["build", str(tmp_path / "sheet.csv"), "--peek"], tmp_path, capsys)
    assert "none of its rows can be read" in message
    assert "--encoding says how the file is written, such as cp1252" in message


def test_a_build_without_a_folder_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"prompt": "Q", "completion": "A", "score": 1}])
    message = refused(["build", str(path), "--format", "jsonl"], tmp_path, capsys)
    assert "--out is missing" in message
    assert "--peek" in message


def test_a_recipe_without_a_format_says_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("out: out\nbuild:\n  inputs: [rows.jsonl]\n")
    message = refused(["run", str(recipe)], tmp_path, capsys)
    assert "build.format: missing; it is the format of `inputs`, and `mmpo formats` lists them" in message
    recipe.write_text("out: out\nbuild:\n  inputs: [rows.jsonl]\n  scal: [1, 5]\n")
    assert "build.scal: unknown key; did you mean" in refused(["run", str(recipe)], tmp_path, capsys)


def test_promptfoos_csv_is_known_by_its_headers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = "[m] {{q}},Status,Score,Named Scores,Grader Reason,Comment"
    (tmp_path / "out.csv").write_text(f"q,{output},{output.replace('[m]', '[n]')}\nQ{',a,PASS,1.00,,,' * 2}\n")
    message = refused(["build", str(tmp_path / "out.csv"), "--peek", "--format", "csv"], tmp_path, capsys)
    assert "--format promptfoo" in message
    assert "occur twice" in message
    assert run(["build", str(tmp_path / "out.csv"), "--peek"]) == 0
    assert "--format promptfoo: by its columns" in capsys.readouterr().err


def test_a_parameter_that_is_missing_is_said_with_what_it_may_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(["export", "pairs"], tmp_path, capsys)
    assert "--to is missing: trl-dpo, " in message and "jsonl; `mmpo list exports` says more" in message
    assert "DIR is missing: A dataset folder" in refused(["validate"], tmp_path, capsys)


def test_what_a_format_takes_is_said_by_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["formats", "helpsteer"]) == 0
    told = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines() if "  " in line.strip() and line[0] != " ")
    told = {name: value.strip() for name, value in told.items()}
    assert (told["takes --scale"], told["takes --rater, --kind"], told["takes --clip"]) == ("no", "no", "no")
    assert not told.keys() & {"scaled", "named", "clipped", "alone", "typed", "evidence"}
    assert run(["formats", "alpaca-eval"]) == 0
    assert "takes --clip           yes" in capsys.readouterr().out
