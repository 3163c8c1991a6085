"""`mmpo init`: the recipe that it writes for files as people have them runs at once, and reads what stands in them."""

import json
import re
import shlex
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import graded, mmpo, refused
from tables import QUESTIONS, TWO, built, initialised, replies, sheet

from mmpo.cli.main import run
from mmpo.pipeline import load_pairs

ROOT = Path(__file__).resolve().parents[2]


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
WIDE = sheet(
    [{"Query": q, **{f"Answer {end}": f"{end} {q}" for end in "ABC"}, "Rank A": 2, "Rank B": 3, "Rank C": 1} for q in QUESTIONS]
)
TEXT_NUMBERS = "\n".join(
    json.dumps({"query": q, "completion": f"R {n} {q}", "grade": f"{n},5" if n else None}) for q in QUESTIONS for n in range(3)
)
DIRTY = "\n".join([*(json.dumps(row) for row in graded(40)), *(['{"prompt": "cut off'] * 5)])
BOM = "\ufeff" + sheet(replies(lambda q, n: {"Prompt": q, "Response": f"Reply {n}.", "Score": n, "Date": "2026-01-05"}))
PLACES = sheet(replies(lambda q, n: {"prompt": q, "response": f"Reply {n}.", "grades": f"[{n + 1}, {n + 2}, 5]"}))
LISTS = "\n".join(
    json.dumps({"prompt": q, "response": f"R {n} {q}", "helpful": [n, 4], "clear": [n + 1, 5]}) for q in QUESTIONS for n in range(3)
)
SYSTEMS = sheet(
    replies(
        lambda q, n: {
            "source": q,
            "seg": n + 3,
            "system": f"MT-{n}",
            "output": f"It is {n}.",
            "mqm_score": -n,
            "n_major": n,
            "n_minor": 2,
        }
    )
)
LABELS = sheet([{**row, "difficulty": i % 3, "label": "ab"[i % 2]} for i, row in enumerate(TWO)])
STRENGTHS = ("a-is-better", "a-is-slightly-better", "tie", "b-is-slightly-better")
SLIGHT = sheet([{**row, "preference": STRENGTHS[i % 4]} for i, row in enumerate(TWO)])
ALPACA = sheet(
    [{"instruction": f"Do {i}.", "input": q if i % 3 else "", "response1": "One.", "response2": "Two.", "annotator1": 1,
      "annotator2": 1 + i % 2} for i, q in enumerate(QUESTIONS)]
)  # fmt: skip
VOTES = "\n".join(json.dumps({**row, "machine": 1, "annotators": [1, 2, 1 + i % 2]}) for i, row in enumerate(TWO))

MESSY: dict[str, tuple[str, str | None, str, dict[str, Any]]] = {
    "german": ("umfrage.csv", "cp1252", GERMAN, {
        "columns": {"prompt": "Frage", "completion": "Antwort", "score": "Anna+Ben"}, "decimal": ",", "na": ["N/A"], "encoding": "cp1252"}),
    "winners": ("votes.tsv", None, WINNERS, {"gap_of": {"model_a": 1.0, "model_b": -1.0, "tie": 0.0}}),
    "fractions": ("ratings.csv", None, FRACTIONS, {"scale": [1, 5], "format": "csv"}),
    "scored": ("pairs.json", None, SCORED, {"columns": {"score_chosen": "chosen_score", "score_rejected": "rejected_score"}}),
    "nested": ("n.jsonl", None, NESTED, {"columns": {"prompt": "question", "completions": "answers[].text", "scores": "answers[].score"}}),
    "sides": ("sides.jsonl", None, SIDES, {"scale": [1, 7]}),
    "wide": ("wide.csv", None, WIDE, {"scale": [-3, -1], "columns": {
        "prompt": "Query", "completions": "Answer A+Answer B+Answer C", "scores": "-Rank A+-Rank B+-Rank C"}}),
    "text-numbers": ("t.jsonl", None, TEXT_NUMBERS, {"decimal": ","}),
    "dirty": ("dirty.jsonl", None, DIRTY, {"max_rejects": 0.05}),
    "bom": ("excel.csv", None, BOM, {"columns": {"prompt": "Prompt", "completion": "Response", "score": "Score"}}),
    "places": ("p.csv", None, PLACES, {"columns": {"completion": "response", "score": "grades.0+grades.1+grades.2"}, "rater": None}),
    "lists": ("l.jsonl", None, LISTS, {
        "columns": {"completion": "response", "score": "helpful+clear"}, "rater": "annotators", "score": "mean", "scale": [0, 5]}),
    "systems": ("mt.csv", None, SYSTEMS, {
        "columns": {"prompt": "source", "completion": "output", "score": "mqm_score", "model": "system"}}),
    "labels": ("labels.csv", None, LABELS, {
        "columns": {"first": "response_1", "second": "response_2", "gap": "label"}, "gap_of": {"a": 1.0, "b": -1.0, "tie": 0.0}}),
    "slight": ("slight.csv", None, SLIGHT, {"na": None, "gap_of": {
        "a-is-better": 2.0, "a-is-slightly-better": 1.0, "tie": 0.0, "b-is-slightly-better": -1.0, "b-is-better": -2.0}}),
    "alpaca": ("a.csv", None, ALPACA, {"gap_of": {"1": 1.0, "2": -1.0}, "columns": {
        "prompt": "instruction+input", "first": "response1", "second": "response2", "gap": "annotator1+annotator2"}}),
    "votes": ("votes.jsonl", None, VOTES, {
        "columns": {"first": "response_1", "second": "response_2", "gap": "annotators.0+annotators.1+annotators.2"},
        "gap_of": {"1": 1.0, "2": -1.0}}),
}  # fmt: skip


@pytest.mark.parametrize("name", MESSY)
def test_a_recipe_for_a_messy_file_runs_at_once(name: str, tmp_path: Path) -> None:
    file, encoding, text, expected = MESSY[name]
    (tmp_path / file).write_text(text, encoding=encoding or "utf-8", newline="")
    found = initialised(file, folder=tmp_path)["build"]
    assert {key: found.get(key) for key in expected} == expected
    assert "different scales" not in (tmp_path / "recipe.yaml").read_text()
    pairs = built(tmp_path)
    assert pairs.num_rows >= len(QUESTIONS) and max(pairs["quality_margin"].to_pylist()) > 0


@pytest.mark.slow
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


def test_numbers_of_any_name_beside_two_replies_are_no_preference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.jsonl").write_text("\n".join(json.dumps({**row, "difficulty": i % 3}) for i, row in enumerate(TWO)))
    assert "needs the column 'gap'" in refused(["init", str(tmp_path / "r.jsonl")], tmp_path, capsys)


def test_words_that_say_something_are_not_read_as_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = ["model_a", "model_b", "model_a wins on points", "skip"]
    (tmp_path / "r.csv").write_text(sheet([{**row, "winner": said[i % 4]} for i, row in enumerate(TWO)]))
    told = refused(
        ["init", str(tmp_path / "r.csv")], tmp_path, capsys, "--gap-of 'model_a=1,model_b=-1,model_a wins on points=...'"
    )
    assert "'skip'" not in told


def test_a_text_that_no_rows_share_is_no_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = replies(
        lambda q, n: {"session": QUESTIONS.index(q), "response": f"R {n} {q}", "remarks": f"Of {q} it says {n}.", "score": n}
    )
    (tmp_path / "r.csv").write_text(sheet(rows))
    refused(["init", str(tmp_path / "r.csv")], tmp_path, capsys, "needs the column 'prompt'")


def test_what_a_head_does_not_hold_is_read_as_well(tmp_path: Path) -> None:
    """Rows that come later may name the other side, or a tie."""
    rows = [{"prompt": q, "first": "one two", "second": "three four", "winner": "right"} for q in QUESTIONS]
    (tmp_path / "w.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert initialised("w.jsonl", folder=tmp_path)["build"]["gap_of"] == {"right": -1.0, "left": 1.0, "tie": 0.0}


def test_a_workbook_is_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zipfile.ZipFile(tmp_path / "b.xlsx", "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")
    told = refused(["init", str(tmp_path / "b.xlsx"), "--out", str(tmp_path / "r.yaml")], tmp_path, capsys)
    assert "Excel" in told and "CSV" in told


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
        (
            "q,r,grade\nWhat?,That.,3\n",
            ["field=column,... These are options of `mmpo build`; what it reads with them is shown by `mmpo build "],
        ),
        ('prompt,answers\nWhat is it?,"[""That."", ""This.""]"\n', ["--feedback-only", "mmpo judge"]),
        ("", ["is empty"]),
    ],
)
def test_what_holds_no_grades_is_refused(
    content: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "f.csv").write_text(content)
    told = refused(["init", str(tmp_path / "f.csv"), "--out", str(tmp_path / "r.yaml")], tmp_path, capsys)
    assert [word for word in words if word not in told] == [] and ",. " not in told


def test_a_recipe_that_is_there_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.yaml").write_text("mine")
    (tmp_path / "g.jsonl").write_text("\n".join(map(json.dumps, graded(9))))
    told = refused(["init", str(tmp_path / "g.jsonl"), "--out", str(tmp_path / "r.yaml")], tmp_path, capsys)
    assert "exists already" in told and "--out" in told
    assert (tmp_path / "r.yaml").read_text() == "mine"


def compared(values: list[Any], first: str = "response_a", second: str = "response_b", column: str = "winner") -> str:
    """Two replies a question, One and Two, and a number beside them."""
    return sheet(
        [{"prompt": q, first: f"One {q}", second: f"Two {q}", column: values[i % len(values)]} for i, q in enumerate(QUESTIONS)]
    )


@pytest.mark.parametrize(
    ("values", "gaps"),
    [
        ([1, 2, 3, 4, 5, 6, 7], ["1=3,2=2,3=1,4=0,5=-1,6=-2,7=-3", "1=-3,2=-2,3=-1,4=0,5=1,6=2,7=3"]),
        ([1, 5], ["1=2,2=1,3=0,4=-1,5=-2", "1=-2,2=-1,3=0,4=1,5=2"]),
        ([0, 3, 10], ["0=5,1=4,2=3,3=2,4=1,5=0,6=-1,7=-2,8=-3,9=-4,10=-5", "0=-5,1=-4,2=-3,3=-2,4=-1,5=0,6=1,7=2,8=3,9=4,10=5"]),
        ([0, 1], ["0=1,1=-1", "0=-1,1=1"]),
        ([False, True], ["false=1,true=-1", "false=-1,true=1"]),
        ([0, 1, 2], ["0=1,1=0,2=-1", "0=-1,1=0,2=1", "0=0,1=1,2=-1"]),
    ],
)
def test_which_end_is_which_is_not_guessed(
    values: list[int], gaps: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And each of the lines that the error proposes builds what it says."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.csv").write_text(compared(values))
    assert run(["init", "w.csv"]) == 2 and not (tmp_path / "w.yaml").exists()
    told = capsys.readouterr().err
    lines = [line.partition(": mmpo ")[2] for line in told.splitlines() if ": mmpo " in line]
    assert [shlex.split(line)[shlex.split(line).index("--gap-of") + 1] for line in lines] == gaps
    for place, line in enumerate(lines[:2]):
        words = shlex.split(line)
        assert run([*words[:-1], f"pairs{place}"]) == 0
        better = {
            row["prompt"][0]["content"]: row["chosen"][0]["content"][:3]
            for row in load_pairs(tmp_path / f"pairs{place}").to_pylist()
        }
        assert better[QUESTIONS[0]] == ("One", "Two")[place]  # its grade is the lowest


def test_a_long_scale_between_two_replies_is_not_guessed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "w.csv").write_text(compared([0, 30, 35, 92]))
    told = refused(["init", str(tmp_path / "w.csv"), "--out", str(tmp_path / "r.yaml")], tmp_path, capsys)
    assert "50 minus the grade" in told and "minus 50" in told


@pytest.mark.parametrize("base", [0, 1])
def test_a_winner_by_the_number_in_the_replies_names(base: int, tmp_path: Path) -> None:
    (tmp_path / "w.csv").write_text(compared([base, base + 1], f"response_{base}", f"response_{base + 1}"))
    assert initialised("w.csv", folder=tmp_path)["build"]["gap_of"] == {f"{base}": 1.0, f"{base + 1}": -1.0}
    for row in built(tmp_path).to_pylist():
        number = QUESTIONS.index(row["prompt"][0]["content"])
        assert row["chosen"][0]["content"][:3] == ("One", "Two")[number % 2]


@pytest.mark.parametrize(
    ("columns", "scale"),
    [
        (["rank"], [-3, -1]), (["Platz"], [-3, -1]), (["error rate"], [-3, -1]), (["toxicity_score"], [-3, -1]), (["Schulnote"], [-3, -1]),
        (["Antwort", "Note"], [-3, -1]), (["Rang Anna", "Rang Ben"], [-3, -1]), (["harmlessness"], [1, 3]), (["note"], [1, 3]),
    ],
)  # fmt: skip
def test_less_is_better_by_its_name(columns: list[str], scale: list[int], tmp_path: Path) -> None:
    reply = columns.pop(0) if len(columns) > 1 and columns[0] == "Antwort" else "completion"
    (tmp_path / "r.csv").write_text(
        sheet(replies(lambda q, n: {"prompt": q, reply: f"Reply {n} to it.", **dict.fromkeys(columns, n + 1)}))
    )
    made = initialised("r.csv", folder=tmp_path)["build"]
    assert made["scale"] == scale and made["columns"]["score"] == "+".join(f"{'-' * (scale[0] < 0)}{name}" for name in columns)
    best = {row["chosen"][0]["content"] for row in built(tmp_path).to_pylist() if row["quality_margin"] == 2}
    assert best == {"Reply 0 to it." if scale[0] < 0 else "Reply 2 to it."}
    assert (
        "is better" in (text := (tmp_path / "recipe.yaml").read_text()) or "taken for better" in text or "harmlessness" in columns
    )


def test_a_turned_score_asks_for_a_turned_scale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.csv").write_text(sheet(replies(lambda q, n: {"prompt": q, "completion": f"R {n}.", "rank": n + 1})))
    words = ["build", str(tmp_path / "r.csv"), "--format", "csv", "--columns", "score=-rank", "--out", str(tmp_path / "pairs")]
    refused([*words, "--scale", "1:3"], tmp_path, capsys, "score_out_of_scale", "--scale -3:-1")
    assert run([*words, "--scale", "-3:-1"]) == 0


def test_totals_and_what_is_of_other_scales_are_told(tmp_path: Path) -> None:
    rows = replies(
        lambda q, n: {"prompt": q, "completion": f"R {n}.", "Anna": n + 1, "Ben": 5 * n, "Mittel": n, "total": n, "errors": n}
    )
    (tmp_path / "r.csv").write_text(sheet(rows))
    assert initialised("r.csv", folder=tmp_path)["build"]["columns"] == {"score": "Anna+Ben"}
    text = (tmp_path / "recipe.yaml").read_text()
    assert "# 'Mittel', 'total': not read" in text and "# 'errors': less is better" in text
    assert "Anna 1 to 3, Ben 0 to 10" in text and "# normalise: zscore" in text


@pytest.mark.parametrize(
    "name", ["Prüfer", "Bewerterin", "Gutachter", "Annotator", "Labeler", "judge_name", "coder", "rated by", "Team"]
)
def test_raters_are_known_by_their_column(name: str, tmp_path: Path) -> None:
    rows = [
        {"prompt": q, "completion": f"R {n}.", name: who, "score": n + 1}
        for q in QUESTIONS
        for n in range(3)
        for who in ("an", "be")
    ]
    (tmp_path / "r.csv").write_text(sheet(rows))
    found = initialised("r.csv", folder=tmp_path)["build"].get("columns", {}).get("rater")
    assert found == (None if name == "Team" else name)
    warned = "WARNING: 72 replies stand in several rows" in (tmp_path / "recipe.yaml").read_text()
    assert warned == (name == "Team")


@pytest.mark.parametrize("grades", [("bad", "ok", "good"), ("★", "★★", "★★★")])
def test_words_are_no_grades(grades: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.csv").write_text(sheet(replies(lambda q, n: {"prompt": q, "completion": f"R {n}.", "score": grades[n]})))
    refused(
        ["init", str(tmp_path / "r.csv"), "--out", str(tmp_path / "r.yaml")], tmp_path, capsys, "words or stars", "write a number"
    )
    assert run(["build", str(tmp_path / "r.csv"), "--format", "csv", "--peek", "--json"]) == 0
    assert "words and stars are no grades: write numbers" in capsys.readouterr().out


def test_errors_name_the_command_that_has_the_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.csv").write_text(
        sheet(replies(lambda q, n: {"prompt": q, "completion": f"R {n}.", "score": f"{n} of 5 points"}))
    )
    told = refused(["init", str(tmp_path / "r.csv"), "--out", str(tmp_path / "r.yaml")], tmp_path, capsys, "--format csv --peek")
    assert "nobody has graded" not in told and "of `mmpo build`" in told


def test_a_column_without_any_grade_is_said_to_be_ungraded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.csv").write_text(sheet(replies(lambda q, n: {"prompt": q, "completion": f"R {n}.", "score": ""})))
    told = refused(["init", str(tmp_path / "r.csv"), "--out", str(tmp_path / "r.yaml")], tmp_path, capsys)
    assert "be used. Where nobody has graded yet: `mmpo build" in told and "graded." in told


def test_the_command_that_init_prints_can_be_pasted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my grades.jsonl").write_text("\n".join(map(json.dumps, graded(9))))
    recipe = tmp_path / "my recipe.yaml"
    assert run(["init", str(tmp_path / "my grades.jsonl"), "--out", str(recipe)]) == 0
    told = capsys.readouterr()
    for text in (told.out + told.err, recipe.read_text()):
        [command] = re.findall(r"mmpo run (.*?)(?:\)|  +does)", text)
        assert shlex.split(command) == [str(recipe)]
