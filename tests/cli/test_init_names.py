"""`mmpo init` knows replies, grades and winners by the names of their columns and by what stands in them."""

import json
from pathlib import Path
from typing import Any

import pytest
from command import refused
from tables import QUESTIONS, TWO, built, initialised, replies, sheet

ARROWS = ("A >> B", "A > B", "They are about the same", "B > A", "B >> A")


@pytest.mark.parametrize(
    ("column", "words", "gaps"),
    [
        ("verdict", ARROWS, (2, 1, 0, -1, -2)),
        ("verdict", [f"[[{word.replace(' ', '')}]]" for word in ARROWS[:2]], (2, 1)),
        ("preference", (">>", ">", "=", "<", "<<"), (2, 1, 0, -1, -2)),
        ("preference", ("Strongly prefer A", "Slightly prefer A", "Neutral", "Slightly prefer B"), (2, 1, 0, -1)),
        ("loser", ("A", "B", "tie"), (-1, 1, 0)),
        ("Which is worse?", ("B", "A"), (1, -1)),
        ("better_or_worse", ("A", "B"), (1, -1)),
    ],
)
def test_words_of_two_replies_are_worth_what_they_say(
    column: str, words: tuple[str | int, ...], gaps: tuple[int, ...], tmp_path: Path
) -> None:
    rows = [{**row, column: words[i % len(words)]} for i, row in enumerate(TWO)]
    (tmp_path / "w.csv").write_text(sheet(rows))
    initialised("w.csv", folder=tmp_path)
    made = {row["prompt"][0]["content"]: row for row in built(tmp_path).to_pylist()}
    for i, q in enumerate(QUESTIONS):
        first = 1 if made[q]["chosen"][0]["content"].startswith("One") else -1
        assert first * made[q]["quality_margin"] == gaps[i % len(gaps)]


def test_a_survey_is_read_by_its_questions(tmp_path: Path) -> None:
    """Neither how sure raters are nor what they remark is a grade, a prompt or a reply; and a time is no prompt."""
    rows = replies(
        lambda q, n: {
            "Timestamp": "2026/01/01 10:00:00",
            "What was the question?": q,
            "What did it say?": f"Reply {n} to it.",
            "How good is the answer? (1-5)": n + 2,
            "How confident are you in your rating?": 5 - n,
            "Difficulty": 3 - n,
            "Any comments?": f"Of {q} it says {n}, as one may.",
        }
    )
    (tmp_path / "s.csv").write_text(sheet(rows))
    assert initialised("s.csv", folder=tmp_path)["build"]["columns"] == {
        "prompt": "What was the question?", "completion": "What did it say?", "score": "How good is the answer? (1-5)"}  # fmt: skip
    assert {row["chosen"][0]["content"] for row in built(tmp_path).to_pylist() if row["quality_margin"] == 2} == {"Reply 2 to it."}


@pytest.mark.parametrize(
    ("first", "second", "column", "words"),
    [
        ("Antwort A", "Antwort B", "Urteil", ("Antwort A ist besser", "Antwort B ist besser", "Gleich gut")),
        ("Réponse A", "Réponse B", "Préférence", ("Réponse A", "Réponse B", "Égalité")),
        ("Model A response", "Model B response", "Which model is better?", ("Model A", "Model B", "Both bad")),
    ],
)
def test_two_replies_are_known_by_their_sides(first: str, second: str, column: str, words: tuple[str, ...], tmp_path: Path) -> None:
    """Of columns of other names, too; the first of them had been read as the only reply."""
    rows = [{"Prompt shown": q, first: f"One {q}", second: f"Two {q}", column: words[i % 3]} for i, q in enumerate(QUESTIONS)]
    (tmp_path / "w.csv").write_text(sheet(rows))
    initialised("w.csv", folder=tmp_path)
    made = {row["prompt"][0]["content"]: row for row in built(tmp_path).to_pylist()}
    for i, q in enumerate(QUESTIONS):
        first_is_chosen = made[q]["chosen"][0]["content"].startswith("One")
        assert made[q]["quality_margin"] * (1 if first_is_chosen else -1) == (1, -1, 0)[i % 3]


@pytest.mark.parametrize(
    ("texts", "grades", "worth"),
    [
        (("gpt4", "llama", "mistral"), ("gpt4_score", "llama_score", "mistral_score"), (5, 2, 3)),
        (("Model A output", "Model B output"), ("Rank of model A", "Rank of model B"), (2, 1)),
        (("response_a", "response_b"), ("rank_a", "rank_b"), (1, 2)),
    ],
)
def test_replies_and_their_grades_are_told_apart_by_the_rest_of_their_names(
    texts: tuple[str, ...], grades: tuple[str, ...], worth: tuple[int, ...], tmp_path: Path
) -> None:
    rows = [{"prompt": q, **{name: f"By {name}: {q}" for name in texts}, **dict(zip(grades, worth))} for q in QUESTIONS]
    (tmp_path / "w.csv").write_text(sheet(rows))
    initialised("w.csv", folder=tmp_path)
    value = {f"By {name}": -mark if "rank" in grades[0].casefold() else mark for name, mark in zip(texts, worth)}
    made = built(tmp_path).to_pylist()
    assert len(made) == len(QUESTIONS) * (len(texts) * (len(texts) - 1) // 2)
    for row in made:
        chosen, rejected = (value[row[name][0]["content"].partition(":")[0]] for name in ("chosen", "rejected"))
        assert row["quality_margin"] == chosen - rejected > 0


@pytest.mark.parametrize(("replies", "grades", "best"), [("output", "grades", "R1"), ("responses", "ranks", "R0")])
def test_lists_of_replies_beside_lists_of_grades(replies: str, grades: str, best: str, tmp_path: Path) -> None:
    rows = [{"instruction": q, replies: ["R0", "R1", "R2"], grades: [1, 3, 2]} for q in QUESTIONS]
    (tmp_path / "l.jsonl").write_text("\n".join(map(json.dumps, rows)))
    initialised("l.jsonl", folder=tmp_path)
    made = [row["chosen"][0]["content"] for row in built(tmp_path).to_pylist() if row["quality_margin"] == 2]
    assert made == [best] * len(QUESTIONS)


@pytest.mark.parametrize("column", ["winner", "loser"])
def test_how_much_better_the_winner_is_stands_beside_it(column: str, tmp_path: Path) -> None:
    (tmp_path / "w.csv").write_text(sheet([{**row, column: "AB"[i % 2], "strength": i % 3 + 1} for i, row in enumerate(TWO)]))
    initialised("w.csv", folder=tmp_path)
    for row in built(tmp_path).to_pylist():
        i = QUESTIONS.index(row["prompt"][0]["content"])
        better = ("One", "Two")[i % 2] if column == "winner" else ("Two", "One")[i % 2]
        assert row["chosen"][0]["content"].startswith(better) and row["quality_margin"] == i % 3 + 1


@pytest.mark.parametrize(("column", "by"), [("winner", "its model's name"), ("preferred", "its text")])
def test_a_winner_by_its_name_or_text_is_refused(column: str, by: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A word for each model would be worth the same on whichever side the model stands."""
    rows: list[dict[str, Any]] = [{**row, "model_1": ("x", "y")[i % 2], "model_2": ("y", "x")[i % 2]} for i, row in enumerate(TWO)]
    said = [("x", "y")[i % 3 % 2] if column == "winner" else row["response_2"] for i, row in enumerate(rows)]
    (tmp_path / "w.csv").write_text(sheet([{**row, column: word} for row, word in zip(rows, said)]))
    told = refused(["init", str(tmp_path / "w.csv")], tmp_path, capsys, f"{column!r} names the better reply by {by}")
    assert "write left into it where that is 'response_1', right where it is 'response_2'" in told


def test_passages_are_no_replies_and_settings_no_grades(tmp_path: Path) -> None:
    rows = replies(
        lambda q, n: {
            "question": q,
            "passage_1": f"One says of {q} this.",
            "passage_2": f"Two says of {q} that {n} is so.",
            "generated by it": f"Reply {n} to it.",
            "version": 3 - n,
            "temperature": 1 - n / 4,
            "faithfulness": n + 1,
        }
    )
    (tmp_path / "r.csv").write_text(sheet(rows))
    assert initialised("r.csv", folder=tmp_path)["build"]["columns"] == {
        "prompt": "question", "completion": "generated by it", "score": "faithfulness"}  # fmt: skip


def test_numbered_votes_in_words_are_all_read(tmp_path: Path) -> None:
    rows = [{**row, **{f"annotator_{n}": "A" if n < 3 else "B" for n in (1, 2, 3)}} for row in TWO]
    (tmp_path / "v.csv").write_text(sheet(rows))
    initialised("v.csv", folder=tmp_path)
    assert {(round(row["quality_margin"], 6), row["preferring"], row["raters"]) for row in built(tmp_path).to_pylist()} == {
        (0.333333, 2, 3)
    }


def test_questions_about_one_context_are_prompts_of_their_own(tmp_path: Path) -> None:
    rows = replies(lambda q, n: {"context": "All of it.", "question": q, "answer": f"Reply {n} to it.", "grade": n + 1})
    (tmp_path / "c.csv").write_text(sheet(rows))
    assert initialised("c.csv", folder=tmp_path)["build"]["columns"]["prompt"] == "context+question"
    assert {row["prompt"][0]["content"] for row in built(tmp_path).to_pylist()} == {f"All of it.\n{q}" for q in QUESTIONS}
