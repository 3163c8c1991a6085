"""Published sets and exports that were saved as CSV: every format's own example says the same there as in JSON lines."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from folders import write_rows
from source_cases import collected, graded_texts, reasons, sample_options

from mmpo.pipeline import UserError, build, load_pairs, read_feedback
from mmpo.pipeline.sources import SOURCES
from mmpo.pipeline.sources.literals import is_numpys_print, structure

SAMPLES = {
    f"{name} {place}": (name, one)
    for name, source in SOURCES.items()
    for place, one in enumerate(source.samples)
    if name not in ("jsonl", "csv") and not source.unfold and not isinstance(one.content, str)
}


@pytest.mark.parametrize("written", ["as pandas writes it", "with JSON in its cells"])
@pytest.mark.parametrize("name", SAMPLES)
def test_every_example_from_csv(name: str, written: str, tmp_path: Path) -> None:
    format, sample = SAMPLES[name]
    rows = [dict(row) for row in sample.content]  # type: ignore[arg-type]
    files = [write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "rows.csv"]
    if written == "with JSON in its cells":
        rows = [
            {key: json.dumps(value) if isinstance(value, (list, dict)) else value for key, value in row.items()} for row in rows
        ]
    pd.DataFrame(rows).to_csv(files[1], index=False)
    found = []
    for given in files:
        build(given, tmp_path / f"{given.suffix}.out", options=sample_options(format, sample))
        pairs = load_pairs(tmp_path / f"{given.suffix}.out").to_pylist()
        found.append([(pair["chosen"][0]["content"], pair["rejected"][0]["content"], pair["quality_margin"]) for pair in pairs])
    assert found[0] == found[1] and found[0][0][0] == "Mars, the red one."


HELPSTEER = "prompt,response,helpfulness,correctness,coherence,complexity,verbosity\n4,5,4,4,4,2,1\n4,True, 0,4,4,n/a,1\n"


def test_texts_stay_texts_and_other_words_are_refused(tmp_path: Path) -> None:
    """A prompt "4" with the replies "5" and "True"; a space before a number is none of it, and n/a is no number."""
    (tmp_path / "hs.csv").write_text(HELPSTEER)
    found = collected(tmp_path / "hs.csv", "helpsteer")
    assert graded_texts(found)[0] == ("4", "5", 4.0, "annotators", "helpfulness")
    assert [text for _, text, *_ in graded_texts(found)] == ["5"] * 5
    assert reasons(found) == {"score_not_a_number": 1}
    (tmp_path / "hs.csv").write_text(HELPSTEER.replace("n/a", "2"))
    assert graded_texts(collected(tmp_path / "hs.csv", "helpsteer"))[5] == ("4", "True", 0.0, "annotators", "helpfulness")


def test_columns_of_no_example_have_their_kinds(tmp_path: Path) -> None:
    """A deleted message is none, "False" is not true; a second evaluation of a chat is one."""
    message = {
        "message_id": "t",
        "parent_id": None,
        "message_tree_id": "t",
        "role": "prompter",
        "text": "Q",
        "rank": None,
        "deleted": False,
    }
    replies = [
        {**message, "message_id": text, "parent_id": "t", "role": "assistant", "text": text, "rank": n, "deleted": gone}
        for n, (text, gone) in enumerate((("a", False), ("b", True), ("c", False)))
    ]
    found = collected(write_rows(tmp_path / "oasst.csv", [message, *replies]), "oasst")
    assert graded_texts(found) == [("Q", "a", 0.0, "people", "overall"), ("Q", "c", -2.0, "people", "overall")]
    assert reasons(found) == {"deleted": 1}
    votes: list[dict[str, Any]] = [
        {"model_a": "m", "model_b": "n", "prompt": '["Q"]', "response_a": '["a"]', "response_b": '["b"]', "winner_model_a": 1,
         "winner_model_b": 0, "winner_tie": 0, "evaluation_order": order} for order in (1, 2)
    ]  # fmt: skip
    found = collected(write_rows(tmp_path / "arena.csv", votes), "arena")
    assert (len(graded_texts(found)), reasons(found)) == (1, {"earlier_turns_missing": 1})


def test_numbers_of_pairs_need_no_decimal_mark(tmp_path: Path) -> None:
    rows = [{"prompt": "Q", "chosen": "a", "rejected": "b", "score_chosen": 4.5, "score_rejected": 2}]
    found = graded_texts(collected(write_rows(tmp_path / "rows.csv", rows), "trl"))
    assert found == [("Q", "a", 4.5, "rows", "overall"), ("Q", "b", 2.0, "rows", "overall")]


WEBGPT = "question,answer_0,answer_1,score_0,score_1\n"


def test_decimal_commas_are_read_in_formats_with_columns_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "webgpt.csv"
    path.write_text(WEBGPT.replace(",", ";") + "Q;A;B;-0,5;0,5\nR;C;D;−1;1\n", encoding="utf-8")
    assert graded_texts(collected(path, "webgpt", decimal=",")) == [
        ("Q", "A", "B", -0.5, "annotators", "overall"), ("R", "C", "D", -1.0, "annotators", "overall")
    ]  # fmt: skip
    [reject] = collected(path, "webgpt").rejects.to_pylist()
    assert (reject["row"], reject["reason"]) == (2, "score_not_a_number")
    assert json.loads(reject["evidence"])["hint"] == "score_0: --decimal , reads it; score_1: --decimal , reads it"


@pytest.mark.parametrize(
    ("cell", "decimal", "hint"),
    [
        ("1,234", None, "write 1234 where the comma parts thousands or, where the comma is the decimal mark, --decimal , reads 1.234"),
        ("1,234,567", None, "write 1234567 where the comma parts thousands"), ("2.5", ",", "--decimal . reads it"),
        ("1.234,5", ",", "write 1234,5: thousands are not parted"),
        ("1.234,5", None, "write 1234,5 and give --decimal ,: thousands are not parted"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("format", ["webgpt", "csv"])
def test_a_number_that_may_be_two_is_refused_with_what_mends_it(
    cell: str, decimal: str | None, hint: str, format: str, tmp_path: Path
) -> None:
    head = WEBGPT if format == "webgpt" else "prompt,completion,score\n"
    path = tmp_path / "rows.csv"
    path.write_text(head + (f'Q,A,B,"{cell}",1\n' if format == "webgpt" else f'Q,A,"{cell}"\n'), encoding="utf-8")
    [reject] = collected(path, format, decimal=decimal).rejects.to_pylist()
    told = json.loads(reject["evidence"])["hint"]
    assert reject["reason"] == "score_not_a_number" and told == ("score_0: " if format == "webgpt" else "") + hint


def test_a_decimal_mark_means_nothing_where_numbers_are_no_text(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"question": "Q", "answer_0": "A", "answer_1": "B", "score_0": 1, "score_1": 0}])
    with pytest.raises(UserError, match="--decimal says how numbers are written in CSV"):
        collected(path, "webgpt", decimal=",")


NUMPYS = [
    "['A' 'B']", "['A'\n 'B']", "array(['A', 'B'], dtype=object)", "[0.5 1. ]", "[ 1 -2]", "[nan 1.]",
    "[   0    1    2 ... 1997 1998 1999]",
    "[{'text': 'A'} {'text': 'B'}]", "[array([1, 2]) array([3])]", "[None 'a']",
]  # fmt: skip
LISTS = [
    "['A', 'B']",
    "[\"A\", \"it's 'x' 'y'\"]",
    "[0.5, -1.0]",
    "[]",
    "[{'text': \"a 'b' 'c' 1 2\"}]",
    "['1 2', '3 4']",
    "[[1, 2], [3]]",
]


@pytest.mark.parametrize("cell", NUMPYS)
def test_what_numpy_prints_of_a_list_is_refused_by_name_and_never_read_as_another(cell: str, tmp_path: Path) -> None:
    assert is_numpys_print(cell) and structure(cell) is None
    path = tmp_path / "rows.csv"
    pd.DataFrame([{"prompt": "Q", "completions": cell, "scores": "[1, 2]"}]).to_csv(path, index=False)
    [reject] = collected(path, "csv").rejects.to_pylist()
    assert reject["reason"] == "numpys_print" and "JSON lines or Parquet" in json.loads(reject["evidence"])["hint"]


@pytest.mark.parametrize("cell", LISTS)
def test_lists_as_python_and_json_write_them_are_no_print_of_numpys(cell: str) -> None:
    assert not is_numpys_print(cell) and structure(cell) is not None


def test_a_list_that_datasets_wrote_into_csv_is_refused_in_formats_with_columns_of_their_own(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Human: Q", "answers": [{"answer": "A", "model": "m", "rank": 1.0}, {"answer": "B", "model": "m", "rank": 2.0}]}
    ]
    path = tmp_path / "rows.csv"
    pd.DataFrame([{**row, "answers": str(np.array(row["answers"], dtype=object))} for row in rows]).to_csv(path, index=False)
    [reject] = collected(path, "nectar").rejects.to_pylist()
    assert reject["reason"] == "not_a_list" and json.loads(reject["evidence"])["hint"].startswith(
        "answers: the cell is what numpy prints"
    )


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
def test_lines_may_end_as_on_any_machine(end: str, tmp_path: Path) -> None:
    """Excel's "CSV (Macintosh)" ends them by a carriage return alone; newlines inside cells stay what they are."""
    lines = ["prompt,completion,score", '"What is\nit?",a,3', '"What is\nit?","b, or c",4', ""]
    (tmp_path / "rows.csv").write_bytes(end.join(lines).encode())
    [row] = read_feedback(tmp_path / "rows.csv").to_pylist()
    assert row["prompt"][0]["content"] == "What is\nit?"
    texts = [one["text"] for one in row["completions"]]
    assert {texts[one["completion"]]: one["score"] for one in row["ratings"]} == {"a": 3.0, "b, or c": 4.0}


def test_a_carriage_return_inside_a_cell_ends_no_line(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b'prompt,completion,"the\rscore"\nQ,"a\rb",3\nQ,c,4\n')
    [row] = read_feedback(tmp_path / "rows.csv", columns={"score": "the\rscore"}).to_pylist()
    assert sorted(one["text"] for one in row["completions"]) == ["a\rb", "c"]
