"""A column that `--columns` gives to one field is read as no other, whatever its own name; columns that only later rows have are read."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from folders import write_rows
from source_cases import add, collected, graded_texts, reasons

from mmpo.pipeline import BuildOptions, build, read_feedback
from mmpo.pipeline.arrow import narrow
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.grades import merge_prompts
from mmpo.pipeline.sources import SourceOptions, collect, get_source
from mmpo.pipeline.sources.collect import table_inside
from mmpo.pipeline.storage import plan, resolve_inputs


@pytest.mark.parametrize("format", ["jsonl", "parquet", "csv"])
@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"model": "system"}, ([("user", "Q")], "m", "anna")),
        ({"model": "system", "system": "system"}, ([("system", "m"), ("user", "Q")], "m", "anna")),
        ({"model": "rater"}, ([("system", "m"), ("user", "Q")], "anna", "rows")),
        ({"rater": "images", "model": "system"}, ([("user", "Q")], "m", "ben")),
    ],
)
def test_a_column_given_to_one_field_is_no_other_field(tmp_path: Path, format: str, columns: dict[str, str], told: Any) -> None:
    row = {"prompt": "Q", "completion": "A", "score": 1, "system": "m", "rater": "anna"}
    row |= {"images": "ben"} if "rater" in columns else {}
    [found] = collected(write_rows(tmp_path / f"rows.{format}", [row]), format, columns=columns).feedback.to_pylist()
    prompt = [(one["role"], one["content"]) for one in found["prompt"]]
    assert (prompt, found["completions"][0]["model"], found["ratings"][0]["rater"]) == told


def test_a_column_given_to_a_field_is_no_other_field_where_only_later_rows_have_more(tmp_path: Path) -> None:
    row = {"prompt": "Q", "completion": "A", "score": 1, "system": "m"}
    rows = [{**row, "prompt": f"Q{n}"} for n in range(30)] + [{**row, "tools": "[]"}]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    *_, last = collected(path, "jsonl", columns={"model": "system"}).feedback.to_pylist()
    assert [one["role"] for one in last["prompt"]] == ["user"]


@pytest.mark.parametrize(("format", "rater"), [("mlflow", "traces"), ("jsonl", "traces")])
def test_a_format_s_usual_columns_yield_to_those_given(tmp_path: Path, format: str, rater: str) -> None:
    source = {"source_type": "HUMAN", "source_id": "anna"}
    trace = {"assessment_name": "quality", "source": source, "feedback": {"value": 5.0}, "valid": True}
    rows = {
        "mlflow": {"state": "OK", "request": "Q", "response": "A", "assessments": [trace]},
        "jsonl": {"request": "Q", "response": "A", "quality": 5, "rater": "anna"},
    }
    columns = {"prompt": "request", "completion": "response", "score": "quality", "model": "rater"}
    [found] = collected(write_rows(tmp_path / "traces.jsonl", [rows[format]]), format, columns=columns).feedback.to_pylist()
    assert (found["completions"][0]["model"], found["ratings"][0]["rater"]) == ("anna", rater)


def test_a_field_whose_column_is_given_away_is_said_to_be_missing(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"prompt": "Q", "completion": "A", "score": 1}])
    with pytest.raises(UserError, match="'completion' is given to model"):
        collected(path, "jsonl", columns={"model": "completion"})


@pytest.mark.parametrize(
    ("winner", "by", "gap"),
    [("left", "2", 2.0), ("right", "3", -3.0), ("tie", None, 0.0), ("tie", "2", 0.0), ("left", None, None), (None, "2", None)],
)
def test_who_won_times_by_how_much(winner: str | None, by: str | None, gap: float | None) -> None:
    """Of a tie nobody says by how much; of a winner without it, the gap is not known."""
    row = {"prompt": "Q", "first": "a", "second": "b", "winner": winner, "by": by}
    words = {"gap_of": {"left": 1.0, "right": -1.0, "tie": 0.0}, "scale": (-3.0, 3.0)}
    found = add("csv", row, columns={"gap": "winner*by"}, **words)
    numbers = [one[2] for one in found.gaps]
    assert (numbers, found.rejects) == (([gap], []) if gap is not None else ([], [("grade", "no_grade")]))


@pytest.mark.parametrize(("winner", "by", "gap"), [(0, None, 0.0), (1, None, None), (-1, 2, -2.0), (0, 3, 0.0)])
def test_a_winner_in_numbers_times_by_how_much(winner: int, by: int | None, gap: float | None) -> None:
    row = {"prompt": "Q", "first": "a", "second": "b", "winner": winner, "by": by}
    assert [one[2] for one in add("jsonl", row, columns={"gap": "winner*by"}).gaps] == ([] if gap is None else [gap])


LATE: dict[str, dict[str, Any]] = {
    "who graded": {"rater": "anna", "aspect": "style", "kind": "ai", "model": "m"},
    "what no format knows": {"notes": "anything", "another": 1},
}


@pytest.mark.parametrize("name", LATE)
def test_columns_that_only_later_rows_have_are_read_however_a_file_is_cut(name: str, tmp_path: Path) -> None:
    more, options = LATE[name], {"scale": (1, 5), "rater": "x"}
    rows = [
        {"prompt": f"q{i % 50}", "completion": f"r{i}", "score": i % 5 + 1, **(more if i >= 150 and i % 3 else {})}
        for i in range(300)
    ]
    halves = [write_rows(tmp_path / f"{part}.jsonl", rows[150 * part :][:150]) for part in range(2)]
    files = {
        "lines": write_rows(tmp_path / "rows.jsonl", rows),
        "backwards": write_rows(tmp_path / "back.jsonl", rows[::-1]),
        "packed": tmp_path / "rows.jsonl.gz",
        "two files": halves,
    }
    files["packed"].write_bytes(gzip.compress(files["lines"].read_bytes()))
    found = {cut: read_feedback(path, "jsonl", **options).to_pylist() for cut, path in files.items()}
    chunks = plan(resolve_inputs([files["lines"]], "jsonl"), 2000)
    parts = [collect(one, get_source("jsonl"), SourceOptions(**options)).feedback for one in chunks]
    found["chunks"] = narrow(merge_prompts(pa.concat_tables(parts).combine_chunks())[0]).to_pylist()
    assert len(chunks) > 5
    assert {cut: one == found["lines"] for cut, one in found.items()} == dict.fromkeys(found, True)
    raters = {grade["rater"] for row in found["lines"] for grade in row["ratings"]}
    assert raters == ({"x", "anna"} if "notes" not in more else {"x"})


@pytest.mark.parametrize("format", ["jsonl", "parquet", "csv"])
@pytest.mark.parametrize(
    ("cells", "columns"),
    [
        ({"grades": [5, 3, 4], "who": ["ann", "ben", None]}, {"score": "grades", "rater": "who"}),
        ({"q": {"grades": [5, 3, 4], "users": ["ann", "ben", None]}}, {"score": "q.grades", "rater": "q.users"}),
        ({"q": [{"by": "ann", "n": 5}, {"by": "ben", "n": 3}, {"by": None, "n": 4}]}, {"score": "q[].n", "rater": "q[].by"}),
    ],
)
def test_a_list_of_grades_is_one_for_each_rater_in_the_list_beside_it(
    tmp_path: Path, format: str, cells: dict[str, Any], columns: dict[str, str]
) -> None:
    row = {name: json.dumps(cell) if format == "csv" else cell for name, cell in cells.items()}
    layouts = [{"completion": "A"}, {"first": "A", "second": "B"}, {"chosen": "A", "rejected": "B"}]
    for texts, field in zip(layouts, ("score", "gap", "margin")):
        path = write_rows(tmp_path / f"rows.{format}", [{"prompt": "Q", **texts, **row}])
        result = collected(path, format, columns={field: columns["score"], "rater": columns["rater"]})
        assert [grade[-3:-1] for grade in graded_texts(result)] == [(5.0, "ann"), (3.0, "ben"), (4.0, "rows")]
        assert (result.limited, reasons(result)) == (0, {})


@pytest.mark.parametrize(
    ("text", "columns", "told"),
    [
        (
            "prompt,a1,a2,s1,s2\nQ,x,y,1,2\n",
            {"completion": "a1+a2", "score": "s1+s2+s1"},
            "2 columns of replies .a1, a2. and 3 of scores",
        ),
        (
            "q,Reply 1,Reply 2,Reply 3,Rank 1,Rank 2,Rank 3\nQ,x,y,z,1,2,3\n",
            {},
            "holds 3 replies, .*prompt=COLUMN,completions=Reply 1.Reply 2.Reply 3,scores=-Rank 1.-Rank 2.-Rank 3' reads them",
        ),
        ("who,what,completion,score\nQ,x,y,1\n", {"model": "who+what"}, "needs the column 'who.what'.*Only grades, a prompt"),
        ("prompt|completion|score\nQ|x|1\n", {}, "needs the columns 'prompt'.*parted by '.'.*--sep"),
    ],
)
def test_a_file_that_is_laid_out_otherwise_is_told_what_to_do(
    tmp_path: Path, text: str, columns: dict[str, str], told: str
) -> None:
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(UserError, match=told):
        collected(tmp_path / "rows.csv", "csv", columns=columns)


@pytest.mark.parametrize("format", ["jsonl", "parquet", "csv"])
@pytest.mark.parametrize("fields", [("completions", "scores", "models"), ("completion", "score", "model")])
def test_a_column_for_each_reply_of_a_row_is_read(tmp_path: Path, format: str, fields: tuple[str, str, str]) -> None:
    """Where a row has fewer replies than columns the rest is empty; a grade without a reply is told."""
    cells = [
        ("x", 1, "m", "y", 2, "n", "z", 3, "o"),
        ("x", 4, "m", "y", 5, "n", "", None, ""),
        ("x", 1, "m", "y", 2, "n", "", 3, ""),
    ]
    names = [f"{name}_{end}" for end in "abc" for name in ("response", "stars", "model")]
    rows = [{"prompt": f"Q{at}", **dict(zip(names, row))} for at, row in enumerate(cells)]
    columns = dict(zip(fields, ("response_a+response_b+response_c", "stars_a+stars_b+stars_c", "model_a+model_b+model_c")))
    result = collected(write_rows(tmp_path / f"rows.{format}", rows), format, columns=columns)
    three = [("Q0", "x", 1.0), ("Q0", "y", 2.0), ("Q0", "z", 3.0)]
    assert [one[:3] for one in graded_texts(result)] == [
        *three,
        ("Q1", "x", 4.0),
        ("Q1", "y", 5.0),
        ("Q2", "x", 1.0),
        ("Q2", "y", 2.0),
    ]
    assert [one["model"] for one in result.feedback.to_pylist()[0]["completions"]] == ["m", "n", "o"]
    assert reasons(result) in ({"empty_completion": 1}, {"not_text": 1})  # of CSV an empty cell is null


GRADED = [{"prompt": "Q", "completion": text, "score": score} for text, score in (("a", 3), ("b", 4))]
COLUMNS = {name: [row[name] for row in GRADED] for name in GRADED[0]}


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ({"data": GRADED}, "its rows lie under 'data', it seems: `jq -c '.[\"data\"][]'` writes them as lines"),
        ({"version": 1, "the rows": GRADED}, "`jq -c '.[\"the rows\"][]'`"),
        ({name: dict(enumerate(cells)) for name, cells in COLUMNS.items()}, "frame.to_json(FILE, orient='records', lines=True)"),
        (COLUMNS, "frame.to_json(FILE, orient='records', lines=True)"),
        ({"columns": [*COLUMNS], "index": [0, 1], "data": [[*row.values()] for row in GRADED]}, "orient='records'"),
    ],
)
@pytest.mark.parametrize("format", ["", "jsonl"])
def test_a_table_in_one_object_is_told_how_it_becomes_rows(held: Any, words: str, format: str, tmp_path: Path) -> None:
    (tmp_path / "grades.json").write_text(json.dumps(held, indent=1))
    with pytest.raises(UserError, match=re.escape(words)):
        read_feedback(tmp_path / "grades.json", format)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q", "completions": ["a", "b"], "scores": [3, 4]},
        {"chosen": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "a"}],
         "rejected": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "b"}]},
        {"prompt": "Q", "completions": [{"text": "a", "score": 3}, {"text": "b", "score": 4}]},
    ],
)  # fmt: skip
def test_one_row_with_lists_is_a_row(row: Any) -> None:
    assert not table_inside([row])[1]


@pytest.mark.parametrize(
    ("columns", "rater", "graded"),
    [
        ({"score": "grades"}, "gpt", [(5.0, "gpt", "overall"), (3.0, "gpt", "overall")]),
        ({"score": "grades.0+grades.1"}, None, [(5.0, "grades.0", "overall"), (3.0, "grades.1", "overall")]),
        ({"score": "clear+short"}, "gpt", [(4.0, "gpt", "clear"), (2.0, "gpt", "short")]),
        ({"score": "clear+short"}, None, [(4.0, "clear", "overall"), (2.0, "short", "overall")]),
        ({"score": "grades+clear"}, "gpt", [(5.0, "gpt", "grades"), (3.0, "gpt", "grades"), (4.0, "gpt", "clear")]),
    ],
)
def test_whose_several_grades_are(
    columns: dict[str, str], rater: str | None, graded: list[tuple[float, str, str]], tmp_path: Path
) -> None:
    """A name that is given for the rater stands for a column of it: a list is its repeats, columns are its aspects."""
    row = {"prompt": "Q", "completion": "A", "grades": [5, 3], "clear": 4, "short": 2}
    result = collected(write_rows(tmp_path / "rows.jsonl", [row]), "jsonl", columns=columns, rater=rater)
    assert [grade[2:] for grade in graded_texts(result)] == graded


@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_a_prompt_in_several_columns_is_joined(format: str, tmp_path: Path) -> None:
    rows = [{"task": "Translate.", "input": text, "completion": "A", "score": 1} for text in ("Bonjour.", "")]
    columns = {"prompt": "task+input"}
    result = collected(write_rows(tmp_path / f"rows.{format}", rows), format, columns=columns)
    assert [one[0]["content"] for one in result.feedback["prompt"].to_pylist()] == ["Translate.\nBonjour.", "Translate."]
    path = write_rows(tmp_path / "chats.jsonl", [{**rows[0], "task": [{"role": "user", "content": "Q"}]}])
    assert reasons(collected(path, "jsonl", columns=columns)) == {"not_text": 1}
    with pytest.raises(UserError, match="other"):
        collected(path, "jsonl", columns={"prompt": "task+other"})


def test_aspects_and_raters_are_named_once(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"prompt": "Q", "completion": "A", "a": 1, "b": 2, "aspect": "x"}])
    with pytest.raises(UserError, match="are named already"):
        collected(path, "jsonl", columns={"score": "a+b"}, rater="gpt")


@pytest.mark.parametrize(("system", "told"), [("GPT4-5shot", 2), ("Be brief.", 0)])
def test_a_system_message_of_one_word_is_told(system: str, told: int, tmp_path: Path) -> None:
    """It is the name of who answered, where replies of different systems then make no pairs."""
    rows = [{"prompt": "Q", "completion": f"A {n}", "score": n, "system": system} for n in range(2)]
    summary = build(write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "out", options=BuildOptions(format="jsonl"))
    assert sum("--columns model=system" in one for one in summary["warnings"]) == min(told, 1)
