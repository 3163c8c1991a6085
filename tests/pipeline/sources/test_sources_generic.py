"""Files of any columns: the row shapes, named columns, and what is refused; and TRL's preference format."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_cases import DATA, collected, dropped, ratings

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.sources import FeedbackBuilder, SourceOptions, collect, collect_parts, get_source, split_pair
from mmpo.pipeline.storage import plan, resolve_inputs


def add(row: dict[str, Any], format: str = "jsonl", **options: Any) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """One row as a FEEDBACK row, and unit and reason of what was dropped of it."""
    out = FeedbackBuilder(format)
    out.at("folder/people.jsonl", 1)
    get_source(format).parser(row.keys(), SourceOptions(**options), "folder/people.jsonl")(row, out)
    return out.finish().to_pylist()[0], [(reject[0], reject[2]) for reject in out.rejects]


def reason(row: dict[str, Any], format: str = "jsonl", **options: Any) -> tuple[str, bool]:
    return dropped(format, row, **options)


RATING = {"prompt": "Ask", "completion": "reply", "score": 4}


def test_one_row_per_rating() -> None:
    row, rejects = add(RATING, scale=(1.0, 5.0))
    assert ratings(row) == [(0, "people", "human", "overall", 4.0, 1.0, 5.0)] and rejects == []
    named = {**RATING, "model": "m", "rater": 7, "aspect": "style", "kind": "ai"}
    row, _ = add(named)
    assert ratings(row) == [(0, "7", "ai", "style", 4.0, None, None)] and row["completions"][0]["model"] == "m"
    row, _ = add({**RATING, "rater": None, "aspect": None, "kind": None}, rater="someone", kind="reward_model")
    assert ratings(row) == [(0, "someone", "reward_model", "overall", 4.0, None, None)]


def test_columns_of_other_names_and_prompts_of_messages() -> None:
    messages = [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "Ask"}]
    row = {"q": messages, "a": "reply", "grade": 2.5, "score": "not this one"}
    feedback, _ = add(row, columns={"prompt": "q", "completion": "a", "score": "grade"})
    assert feedback["prompt"] == messages and ratings(feedback)[0][4] == 2.5


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"score": "4"}, ("score_not_a_number", True)),
        ({"score": True}, ("score_not_a_number", True)),
        ({"score": float("nan")}, ("score_not_a_number", True)),
        ({"score": float("-inf")}, ("score_not_a_number", True)),
        ({"score": 10**400}, ("score_not_a_number", True)),
        ({"score": [4]}, ("score_not_a_number", True)),
        ({"score": 6}, ("score_out_of_scale", True)),
        ({"score": 0}, ("score_out_of_scale", True)),
        ({"completion": " \n"}, ("empty_completion", True)),
        ({"completion": None}, ("not_text", True)),
        ({"completion": "\ud800"}, ("lone_surrogate", True)),
        ({"prompt": ""}, ("empty_prompt", True)),
        ({"prompt": 5}, ("not_text", True)),
        ({"prompt": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, ("tool_call", True)),
        ({"kind": "robot"}, ("unknown_kind", True)),
    ],
)
def test_rows_that_can_not_be_used(changed: dict[str, Any], why: tuple[str, bool]) -> None:
    assert reason({**RATING, **changed}, scale=(1.0, 5.0)) == why


def test_no_grade_is_no_number() -> None:
    row, rejects = add({**RATING, "score": None})
    assert row["ratings"] == [] and len(row["completions"]) == 1 and rejects == [("grade", "no_grade")]


def test_a_column_missing_in_one_row_costs_that_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = (RATING, {"prompt": "Ask", "score": 1}, {"prompt": "A", "completion": "b"})
    path.write_text("\n".join(json.dumps(row) for row in lines))
    result = collected(path, "jsonl")
    assert result.rejects.select(["reason", "row", "evidence"]).to_pylist() == [
        {"reason": "missing_column", "row": 2, "evidence": '{"missing":"completion"}'},
        {"reason": "missing_column", "row": 3, "evidence": '{"missing":"score"}'},
    ]
    assert (result.lines, result.dropped, result.limited, result.feedback.num_rows) == (3, 2, 2, 1)


def test_one_row_per_prompt() -> None:
    row = {"prompt": "Ask", "completions": ["a", "b", "a", ""], "scores": [1, None, 3, 2], "models": [*"mnop"]}
    feedback, rejects = add(row)
    assert [(c["text"], c["model"]) for c in feedback["completions"]] == [("a", "m"), ("b", "n")]
    assert [grade[:1] + grade[4:5] for grade in ratings(feedback)] == [(0, 1.0), (0, 3.0)]
    assert rejects == [("completion", "empty_completion"), ("grade", "no_grade")]
    rejects = add({**row, "scores": [1, "2", 9, 2]}, scale=(1.0, 5.0))[1]
    assert rejects[:2] == [("grade", "score_not_a_number"), ("grade", "score_out_of_scale")]
    assert reason({**row, "scores": [1]}) == ("lengths_differ", True)
    assert reason({**row, "completions": "abcd"}) == ("not_a_list", True)


PAIR = {"prompt": "Ask", "chosen": "good", "rejected": "bad"}


def test_one_row_per_pair_by_scores() -> None:
    row, _ = add({**PAIR, "score_chosen": 2, "score_rejected": 3, "chosen_model": "m", "margin": 9})
    assert [grade[4] for grade in ratings(row)] == [2.0, 3.0] and row["comparisons"] == []
    assert row["completions"][0]["model"] == "m"
    assert reason({**PAIR, "rejected": "good", "score_chosen": 2, "score_rejected": 3}) == ("identical_texts", False)


def test_one_row_per_pair_by_its_margin() -> None:
    row, _ = add({**PAIR, "margin": 1.5}, scale=(1.0, 5.0), kind="ai")
    (comparison,) = row["comparisons"]
    assert (comparison["first"], comparison["second"], comparison["gap"], comparison["limit"]) == (0, 1, 1.5, 4.0)
    assert (comparison["rater"], comparison["kind"], comparison["aspect"]) == ("people", "ai", "overall")
    assert reason({**PAIR, "margin": 4.5}, scale=(1.0, 5.0)) == ("score_out_of_scale", True)
    scored = {**PAIR, "score_chosen": 2, "score_rejected": 3, "margin": 9}
    assert add(scored, columns={"margin": "margin"})[0]["comparisons"][0]["gap"] == 9.0


COMPARISON = {"prompt": "Ask", "first": "a", "second": "b", "gap": -2}


def test_one_row_per_comparison() -> None:
    row, _ = add({**COMPARISON, "rater": "r", "first_model": "m"}, scale=(-3.0, 3.0))
    (comparison,) = row["comparisons"]
    assert (comparison["first"], comparison["second"], comparison["gap"], comparison["limit"]) == (0, 1, -2.0, 3.0)
    assert comparison["rater"] == "r" and row["ratings"] == []
    assert reason({**COMPARISON, "second": "a"}) == ("identical_texts", False)
    assert reason({**COMPARISON, "gap": -4}, scale=(-3.0, 3.0)) == ("score_out_of_scale", True)
    with pytest.raises(UserError, match="symmetric"):
        add(COMPARISON, scale=(1.0, 5.0))


def test_candidates_without_scores() -> None:
    for row in (
        {"prompt": "Ask", "completion": "a"},
        {"prompt": "Ask", "completions": ["a", "b"]},
        PAIR,
        {"prompt": "Ask", "first": "a", "second": "b"},
    ):
        feedback, rejects = add(row, need_scores=False)
        assert feedback["completions"] and not feedback["ratings"] and not feedback["comparisons"] and rejects == []
        with pytest.raises(UserError, match="--feedback-only"):
            add(row)
    assert len(add(RATING, need_scores=False)[0]["ratings"]) == 1


def test_missing_columns_name_those_present() -> None:
    with pytest.raises(UserError) as caught:
        add({"question": "Ask", "completion": "b", "score": 1})
    for told in (
        "people.jsonl",
        "one row per rating (prompt, completion, score) needs the column 'prompt'",
        "'question'",
        "--columns",
    ):
        assert told in str(caught.value)
    with pytest.raises(UserError, match=r"'grade \(for score\)'.*Columns present: 'completion', 'prompt', 'score'"):
        add(RATING, columns={"score": "grade"})


def test_csv_cells_are_text_and_scores_still_numbers(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('prompt,completion,score\nAsk,"a, b",4.5\nAsk,b,\nAsk,c,good\nAsk,d,1_0\nAsk,e,nan\nAsk,f, 3 \n')
    result = collected(path, "csv", scale=(1.0, 5.0))
    rows = result.feedback.to_pylist()
    assert [(row["completions"][0]["text"], [r["score"] for r in row["ratings"]]) for row in rows] == [
        ("a, b", [4.5]),
        ("b", []),
        ("f", [3.0]),
    ]
    assert [(r["reason"], r["row"]) for r in result.rejects.to_pylist()] == [
        ("no_grade", 3),
        ("score_not_a_number", 4),
        ("score_not_a_number", 5),
        ("score_not_a_number", 6),
    ]
    (tmp_path / "wide.csv").write_text('prompt,completions,scores\nAsk,"[""a"", ""b""]","[1, 2]"\n')
    (row,) = collected(tmp_path / "wide.csv", "csv").feedback.to_pylist()
    assert [grade[4] for grade in ratings(row)] == [1.0, 2.0]


def test_parquet_rows_with_messages(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Ask"}]
    rows = [{"prompt": messages, "completions": ["a", "b"], "scores": [1.0, 2.0]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (row,) = collected(tmp_path / "rows.parquet", "parquet").feedback.to_pylist()
    assert row["prompt"] == messages and [grade[4] for grade in ratings(row)] == [1.0, 2.0]


def test_a_chunk_in_parts_is_the_chunk(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    lines = [f"Ask {i},reply {i},{'bad' if i % 7 == 3 else i}" for i in range(200)]
    path.write_text("\n".join(["prompt,completion,score", *lines, "too,many,cells,here"]))
    (chunk,) = plan(resolve_inputs([path], "csv"))
    source = get_source("csv")
    whole = collect(chunk, source, SourceOptions())
    parts = list(collect_parts(chunk, source, SourceOptions(), part_chars=1000))
    assert len(parts) > 3 and (whole.lines, whole.dropped, whole.limited) == (201, 30, 30)
    assert pa.concat_tables([part.feedback for part in parts]).equals(whole.feedback)
    assert pa.concat_tables([part.rejects for part in parts]).equals(whole.rejects)
    assert sum(part.lines for part in parts) == 201 and sum(part.limited for part in parts) == 30


# TRL


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 9, texts)]


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        (talk("Ask"), talk("Ask", "good")[1:], talk("Ask", "bad")[1:]),
        (talk("Ask"), talk("Ask", "good"), talk("Ask", "bad")),
        ("Ask", talk("Ask", "good"), talk("Ask", "bad")),
        (None, talk("Ask", "good"), talk("Ask", "bad")),
    ],
)
def test_trl_messages_with_the_prompt_outside_or_inside(prompt: Any, chosen: Any, rejected: Any) -> None:
    row = {"chosen": chosen, "rejected": rejected, "s1": 5, "s2": 2.5}
    row = row if prompt is None else {"prompt": prompt, **row}
    feedback, _ = add(row, "trl", columns={"score_chosen": "s1", "score_rejected": "s2"}, scale=(1.0, 5.0), kind="ai")
    assert feedback["prompt"] == talk("Ask")
    assert [completion["text"] for completion in feedback["completions"]] == ["good", "bad"]
    assert [grade[4:] for grade in ratings(feedback)] == [(5.0, 1.0, 5.0), (2.5, 1.0, 5.0)]


def test_trl_texts_share_their_prompt_as_in_trl() -> None:
    # The example in the docstring of TRL's extract_prompt.
    assert split_pair(None, "The sky is blue.", "The sky is green.") == ("The sky is", " blue.", " green.")
    assert split_pair("Ask", "good", "bad") == ("Ask", "good", "bad")
    turns = talk("one", "two", "three")
    assert split_pair(None, [*turns, *talk("", "x")[1:]], [*turns, *talk("", "y")[1:]]) == (turns, "x", "y")


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"chosen": "good", "rejected": "bad"}, ("no_prompt", True)),
        ({"chosen": talk("", "good")[1:], "rejected": talk("", "bad")[1:]}, ("no_prompt", True)),
        ({"chosen": talk("A", "good"), "rejected": talk("B", "bad")}, ("different_prompts", False)),
        ({"chosen": talk("A", "good"), "rejected": talk("A", "good")}, ("identical_texts", False)),
        ({"chosen": talk("A", "good"), "rejected": talk("A")}, ("last_message_not_assistant", True)),
        ({"chosen": [], "rejected": talk("A", "b")}, ("empty_completion", True)),
        ({"chosen": talk("A", "good"), "rejected": "bad"}, ("not_text", True)),
    ],
)
def test_trl_rows_that_can_not_be_used(row: dict[str, Any], why: tuple[str, bool]) -> None:
    assert reason({**row, "margin": 1}, "trl") == why


def test_trl_without_grades_says_how_to_name_them() -> None:
    with pytest.raises(UserError) as caught:
        add({**PAIR, "quality": 3}, "trl")
    for told in ("Columns present: 'chosen', 'prompt', 'quality', 'rejected'", "--columns score_chosen=", "margin=COLUMN"):
        assert told in str(caught.value)
    assert add({**PAIR, "quality": 3}, "trl", columns={"margin": "quality"})[0]["comparisons"][0]["gap"] == 3.0
    assert len(add(PAIR, "trl", need_scores=False)[0]["completions"]) == 2
    with pytest.raises(UserError, match="'rejected'"):
        add({"chosen": "a"}, "trl")


# The samples


def test_samples() -> None:
    grades = collected(DATA / "arena_grades.jsonl.gz", "jsonl", scale=(1.0, 10.0), kind="ai")
    assert (grades.lines, grades.dropped, grades.rejects.num_rows) == (2236, 0, 0)
    assert len(set(grades.feedback["prompt_id"].to_pylist())) == 120
    three = collected(DATA / "judge_samples.jsonl.gz", "jsonl", scale=(1.0, 5.0))
    assert (three.counts["grade"], three.rejects.num_rows) == (528, 0)
    people = collected(DATA / "human_graded_pairs.jsonl", "jsonl", scale=(-2.0, 2.0))
    assert (people.lines, people.dropped, people.limited) == (370, 4, 0)
    assert set(people.rejects["reason"].to_pylist()) == {"identical_texts"}
    gaps = {row["comparisons"][0]["gap"] for row in people.feedback.to_pylist()}
    assert gaps == {-2.0, -1.0, 0.0, 1.0, 2.0}
    assert sum(file.stat().st_size for file in DATA.iterdir()) < 3 << 20
