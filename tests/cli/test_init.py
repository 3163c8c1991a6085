"""`mmpo init`: the recipe that it writes for files as people have them runs at once, and reads what stands in them."""

import csv
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from command import graded, mmpo, refused

from mmpo.cli.main import run
from mmpo.pipeline import load_pairs

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS = [f"What is question {n} about, and why?" for n in range(24)]


def sheet(rows: list[dict[str, Any]], separator: str = ",") -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=separator)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def replies(make: Callable[[str, int], dict[str, Any]], each: int = 3) -> list[dict[str, Any]]:
    return [make(question, n) for question in QUESTIONS for n in range(each)]


def chat(question: str) -> str:
    return json.dumps([{"role": "system", "content": "Be brief."}, {"role": "user", "content": question}])


GERMAN = sheet(
    replies(
        lambda q, n: {
            "Nr": n,
            "Frage": q,
            "Antwort": f"Größer ist {n}.",
            "Anna": f"{n + 1},5",
            "Ben": "N/A" if n == 1 else f"{n + 1}",
        }
    ),
    ";",
)
WINNERS = sheet(
    [
        {
            "id": f"x{i}",
            "conversation": chat(q),
            "response_a": f"One {i}.",
            "response_b": f"Two {i}.",
            "winner": ("model_a", "model_b", "tie")[i % 3],
        }
        for i, q in enumerate(QUESTIONS)
    ],
    "\t",
)
FRACTIONS = sheet(
    replies(lambda q, n: {"instruction": q, "model_output": f"Reply {n} to it.", "annotator": f"p{n % 2}", "rating": f"{n + 2}/5"})
)
SCORED = json.dumps(
    [
        {"prompt": q, "chosen": [{"role": "assistant", "content": f"Good {q}"}], "rejected": [{"role": "assistant", "content": "Bad."}],
         "chosen_score": 8.5, "rejected_score": 3}
        for q in QUESTIONS
    ]
)  # fmt: skip
NESTED = "\n".join(
    json.dumps({"question": q, "answers": [{"text": f"A {n} {q}", "score": n, "model": "m"} for n in (1, 4, 5)]}) for q in QUESTIONS
)
SIDES = "\n".join(
    json.dumps({"task": q, "answer1": f"One {q}", "answer2": f"Two {q}", "score1": 7, "score2": 2}) for q in QUESTIONS
)
TEXT_NUMBERS = "\n".join(
    json.dumps({"query": q, "completion": f"R {n} {q}", "grade": f"{n},5" if n else None}) for q in QUESTIONS for n in range(3)
)
DIRTY = "\n".join([*(json.dumps(row) for row in graded(40)), *(['{"prompt": "cut off'] * 5)])
BOM = "\ufeff" + sheet(replies(lambda q, n: {"Prompt": q, "Response": f"Reply {n}.", "Score": n, "Date": "2026-01-05"}))

MESSY: dict[str, tuple[str, str | None, str, dict[str, Any]]] = {
    "german": ("umfrage.csv", "cp1252", GERMAN, {
        "columns": {"prompt": "Frage", "completion": "Antwort", "score": "Anna+Ben"}, "decimal": ",", "na": ["N/A"], "encoding": "cp1252"}),
    "winners": ("votes.tsv", None, WINNERS, {"gap_of": {"model_a": 1.0, "model_b": -1.0, "tie": 0.0}}),
    "fractions": ("ratings.csv", None, FRACTIONS, {"scale": [1, 5], "format": "csv"}),
    "scored": ("pairs.json", None, SCORED, {"columns": {"score_chosen": "chosen_score", "score_rejected": "rejected_score"}}),
    "nested": ("n.jsonl", None, NESTED, {"columns": {"prompt": "question", "completions": "answers[].text", "scores": "answers[].score"}}),
    "sides": ("sides.jsonl", None, SIDES, {"scale": [1, 7]}),
    "text-numbers": ("t.jsonl", None, TEXT_NUMBERS, {"decimal": ","}),
    "dirty": ("dirty.jsonl", None, DIRTY, {"max_rejects": 0.05}),
    "bom": ("excel.csv", None, BOM, {"columns": {"prompt": "Prompt", "completion": "Response", "score": "Score"}}),
}  # fmt: skip


def initialised(*words: object, folder: Path) -> dict[str, Any]:
    """The recipe that `mmpo init` writes in the folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(["init", *map(str, words), "--out", str(folder / "recipe.yaml")]) == 0
    return yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))


def built(folder: Path) -> pa.Table:
    """The pairs that running the recipe, but for its training, makes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(["run", "recipe.yaml", "--set", "runs={}", "--set", "evaluate={}", "--set", "out=out"]) == 0
    return load_pairs(folder / "out" / "pairs")


@pytest.mark.parametrize("name", MESSY)
def test_a_recipe_for_a_messy_file_runs_at_once(name: str, tmp_path: Path) -> None:
    file, encoding, text, expected = MESSY[name]
    (tmp_path / file).write_text(text, encoding=encoding or "utf-8", newline="")
    found = initialised(file, folder=tmp_path)["build"]
    assert {key: found.get(key) for key in expected} == expected
    pairs = built(tmp_path)
    assert pairs.num_rows >= len(QUESTIONS) and max(pairs["quality_margin"].to_pylist()) > 0


@pytest.mark.parametrize("sample", sorted((ROOT / "data").glob("*.jsonl*")), ids=lambda path: path.name)
def test_a_recipe_for_a_sample_runs_at_once(sample: Path, tmp_path: Path) -> None:
    initialised(sample, folder=tmp_path)
    assert built(tmp_path).num_rows >= 180


def test_margins_are_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "g.csv").write_bytes(GERMAN.encode("cp1252"))
    initialised("g.csv", folder=tmp_path)
    rows = built(tmp_path).to_pylist()
    # Anna gives 1.5, 2.5, 3.5 and Ben 1, nothing, 3: means 1.25, 2.5 and 3.25
    assert sorted({round(row["quality_margin"], 6) for row in rows}) == [0.75, 1.25, 2.0]
    assert any("Größer" in row["chosen"][0]["content"] for row in rows)


def test_a_winner_is_the_better_reply(tmp_path: Path) -> None:
    (tmp_path / "w.tsv").write_text(WINNERS)
    initialised("w.tsv", folder=tmp_path)
    for row in built(tmp_path).to_pylist():
        number = QUESTIONS.index(row["prompt"][-1]["content"])
        assert row["prompt"][0]["role"] == "system"
        if number % 3 < 2:
            assert row["chosen"][0]["content"].startswith(("One", "Two")[number % 3]) and row["quality_margin"] == 1


def test_what_a_head_does_not_hold_is_read_as_well(tmp_path: Path) -> None:
    """Rows that come later may name the other side, or a tie."""
    rows = [{"prompt": q, "first": "one two", "second": "three four", "winner": "right"} for q in QUESTIONS]
    (tmp_path / "w.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert initialised("w.jsonl", folder=tmp_path)["build"]["gap_of"] == {"right": -1.0, "left": 1.0, "tie": 0.0}


def test_a_workbook_is_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zipfile.ZipFile(tmp_path / "b.xlsx", "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")
    refused(["init", str(tmp_path / "b.xlsx"), "--out", str(tmp_path / "r.yaml")], tmp_path, capsys, "Excel", "CSV")


def test_a_parquet_file_of_preferences(tmp_path: Path) -> None:
    table = pa.table({"prompt": QUESTIONS, "response_1": ["a b"] * 24, "response_2": ["c d"] * 24, "preference": [-3, 0, 2] * 8})
    pq.write_table(table, tmp_path / "p.parquet")
    assert initialised("p.parquet", folder=tmp_path)["build"]["scale"] == [-3, 3]


def test_a_dataset_folder_and_feedback(tmp_path: Path) -> None:
    (tmp_path / "g.jsonl").write_text("\n".join(map(json.dumps, graded(30))))
    assert run(["build", str(tmp_path / "g.jsonl"), "--format", "jsonl", "--out", str(tmp_path / "pairs")]) == 0
    assert initialised("pairs", folder=tmp_path)["data"] == "pairs"
    (tmp_path / "recipe.yaml").unlink()
    assert run(["build", str(tmp_path / "g.jsonl"), "--format", "jsonl", "--feedback-only", "--out", str(tmp_path / "fb")]) == 0
    assert initialised("fb", folder=tmp_path)["build"]["format"] == "feedback"


@pytest.mark.slow
def test_the_whole_recipe_trains_and_compares(tmp_path: Path) -> None:
    (tmp_path / "g.jsonl").write_text("\n".join(map(json.dumps, graded(40))))
    initialised("g.jsonl", folder=tmp_path)
    done = mmpo("run", "recipe.yaml", "--set", "training.max_steps=2", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["runs"]) == {"mmpo", "dpo"} and (tmp_path / "out").is_dir()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("prompt,completion\nWhat is it?,That.\n", ["score"]),
        ("prompt,chosen,rejected\nWhat is it?,That.,This.\n", ["score_chosen"]),
        ("a,b,c\n1,2,3\n", ["prompt"]),
        ('prompt,answers\nWhat is it?,"[""That."", ""This.""]"\n', ["--feedback-only", "mmpo judge"]),
        ("", ["is empty"]),
    ],
)
def test_what_holds_no_grades_is_refused(
    content: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "f.csv").write_text(content)
    refused(["init", str(tmp_path / "f.csv"), "--out", str(tmp_path / "r.yaml")], tmp_path, capsys, *words)


def test_a_recipe_that_is_there_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.yaml").write_text("mine")
    (tmp_path / "g.jsonl").write_text("\n".join(map(json.dumps, graded(9))))
    refused(["init", str(tmp_path / "g.jsonl"), "--out", str(tmp_path / "r.yaml")], tmp_path, capsys, "exists already", "--out")
