"""Feedback and pairs from DataFrames and Datasets, with the options that files have, and back."""

import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pytest
from command import graded
from folders import write_rows

from mmpo.annotate import JudgeOptions, agree, calibrate, judge, select
from mmpo.pipeline import (
    BuildOptions,
    UserError,
    build,
    build_pairs,
    load_pairs,
    read_feedback,
    show,
    to_dataset,
    to_pandas,
    validate,
    write_dataset,
)

SAMPLE = "data/human_graded_pairs.jsonl"
MESSY = [
    {"Frage": "Was ist groß?", "Antwort": "Die Sonne.", "Anna": "4,5", "Ben": "N/A", "Nr": 1},
    {"Frage": "Was ist groß?", "Antwort": "Der Mond.", "Anna": 2, "Ben": "1,5", "Nr": 2},
]
READ: dict[str, Any] = {
    "columns": {"prompt": "Frage", "completion": "Antwort", "score": "Anna+Ben"}, "decimal": ",", "na": ("N/A",), "scale": (1, 5),
}  # fmt: skip


def without_names(feedback: pa.Table) -> list[dict[str, Any]]:
    """Its rows without what names the format that they were read in."""
    return [{name: value for name, value in row.items() if name != "source"} for row in feedback.to_pylist()]


@pytest.mark.parametrize(
    "make", [pd.DataFrame, datasets.Dataset.from_list, pa.Table.from_pylist], ids=["pandas", "datasets", "pyarrow"]
)
def test_a_table_is_read_as_a_file_of_the_same_rows(make: Any, tmp_path: Path) -> None:
    rows = graded(20)
    path = write_rows(tmp_path / "grades.jsonl", rows)
    expected = read_feedback(path, "jsonl", scale=(1, 9), rater="ann")
    assert without_names(read_feedback(make(rows), scale=(1, 9), rater="ann")) == without_names(expected)
    assert build_pairs(read_feedback(make(rows), rater="ann"))["quality_margin"].equals(build_pairs(expected)["quality_margin"])


def test_a_format_that_is_plain_to_see_may_be_left_out(tmp_path: Path) -> None:
    """As with `mmpo build`: by the columns of the file, or by its kind where they are named."""
    path = write_rows(tmp_path / "grades.jsonl", graded(20))
    assert read_feedback(path).equals(read_feedback(path, "jsonl"))
    pd.DataFrame(MESSY).to_csv(tmp_path / "grades.csv", index=False)
    assert read_feedback(tmp_path / "grades.csv", **READ).equals(read_feedback(tmp_path / "grades.csv", "csv", **READ))
    write_rows(tmp_path / "other.jsonl", [{"a": 1, "b": 2}])
    with pytest.raises(UserError, match=r"--format is missing. The columns of .*other.jsonl \('a', 'b'\) fit none of"):
        read_feedback(tmp_path / "other.jsonl")


def test_cells_of_a_frame_are_read_as_those_of_a_file() -> None:
    [row] = read_feedback(pd.DataFrame(MESSY), **READ).to_pylist()
    assert [(one["completion"], one["rater"], one["score"]) for one in row["ratings"]] == [
        (0, "Anna", 4.5), (1, "Anna", 2.0), (1, "Ben", 1.5)
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["float32", "Float32", "float[pyarrow]", "float16", "decimal"])
def test_numbers_of_a_frame_are_the_decimals_they_were_written_from(kind: str) -> None:
    """Averages of 1.1 and 1.3 and of 1.2 twice are a tie, which the error of single precision would make a win by 6e-8."""
    given = [1.1, 1.3, 1.2, 1.2, None]
    decimals = [None if one is None else Decimal(str(one)) for one in given]
    score = pd.Series(decimals if kind == "decimal" else given, dtype="object" if kind == "decimal" else kind)
    frame = pd.DataFrame({"prompt": "Q", "completion": list("aabbc"), "rater": list("xyxyx"), "score": score})
    [pair] = build_pairs(read_feedback(frame)).to_pylist()
    assert (pair["quality_margin"], pair["score_chosen"], pair["preferring"]) == (0.0, 1.2, 1)


def test_what_pandas_has_for_nothing_is_no_grade() -> None:
    nothing = [None, float("nan"), pd.NA, pd.NaT]
    frame = pd.DataFrame({"prompt": ["Q"] * 5, "completion": list("abcde"), "score": pd.Series([*nothing, 3], dtype=object)})
    [row] = read_feedback(frame).to_pylist()
    assert [one["score"] for one in row["ratings"]] == [3.0] and len(row["completions"]) == 5


def test_a_dataset_with_an_index_keeps_to_it() -> None:
    chosen = datasets.Dataset.from_list(graded(20)).filter(lambda row: row["score"] > 5, load_from_cache_file=False)
    assert read_feedback(chosen).num_rows == len({row["prompt"] for row in graded(20) if row["score"] > 5})


@pytest.mark.parametrize("there", [to_pandas, to_dataset])
def test_there_and_back(there: Any, tmp_path: Path) -> None:
    feedback = read_feedback(SAMPLE, "jsonl", scale=(-2, 2))
    assert read_feedback(there(feedback), "feedback").to_pylist() == feedback.to_pylist()
    pairs = build_pairs(feedback)
    write_dataset(pairs, tmp_path / "pairs")
    write_dataset(there(pairs), tmp_path / "again")
    assert load_pairs(tmp_path / "again").to_pylist() == load_pairs(tmp_path / "pairs").to_pylist()


def test_nested_cells_are_lists_and_dicts() -> None:
    frame = to_pandas(build_pairs(read_feedback(SAMPLE, "jsonl")))
    assert frame["chosen"][0] == [{"role": "assistant", "content": frame["chosen"][0][0]["content"]}]
    assert frame["quality_margin"].dtype == float


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (datasets.DatasetDict({"train": datasets.Dataset.from_list(MESSY[1:])}), "'train'"),
        (datasets.Dataset.from_list(MESSY[1:]).to_iterable_dataset(), "without streaming"),
        (pd.DataFrame([[1, 2]], columns=["prompt", "prompt"]), "two columns of the name 'prompt'"),
        (pd.DataFrame({"prompt": ["Q"], "completion": [object()], "score": [1]}), "row 0 of the DataFrame"),
        (pd.DataFrame({"prompt": ["Q"], "text": ["A"]}), "DataFrame"),
        (pa.table({"prompt": ["Q"]}).to_batches()[0], "pyarrow.table(...)"),
        (MESSY, "rows in a list: pandas.DataFrame(...) makes a table of them"),
        (MESSY[0], "rows in a dict"),
        (None, "NoneType is neither a path nor a table (DataFrame, Dataset, Table)"),
        (3, "int is neither a path nor a table"),
    ],
)
def test_what_is_no_table_of_grades_is_refused(given: Any, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        read_feedback(given)


def test_options_of_a_table_may_be_those_of_the_command() -> None:
    """A scale as text, and columns that have numbers for names, as a table without a header has."""
    frame = pd.DataFrame(MESSY).set_axis([0, 1, 2, 3, 4], axis=1)
    given = {"columns": {"prompt": 0, "completion": 1, "score": "2+3"}, "decimal": ",", "na": "N/A", "scale": "1:5"}
    [row] = read_feedback(frame, **given).to_pylist()
    assert [(one["score"], one["low"], one["high"]) for one in row["ratings"]] == [
        (4.5, 1, 5),
        (2.0, 1, 5),
        (1.5, 1, 5),
    ]
    with pytest.raises(UserError, match="unknown option of read_feedback 'colums'; did you mean 'columns'"):
        read_feedback(frame, colums={})
    with pytest.raises(UserError, match="scale: "):
        read_feedback(frame, **{**given, "scale": "5"})


FRAME, PAIRS_OF_IT = pd.DataFrame(MESSY), build_pairs(read_feedback(SAMPLE, "jsonl"))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: build_pairs(FRAME), "build_pairs: DataFrame is no table of FEEDBACK; read_feedback(...) makes one"),
        (lambda: build_pairs(PAIRS_OF_IT), "build_pairs: the table lacks completions, ratings"),
        (lambda: agree(FRAME), "agree: DataFrame is no table of FEEDBACK"),
        (lambda: calibrate(FRAME, to="Anna"), "calibrate: DataFrame is no table of FEEDBACK"),
        (lambda: select(FRAME), "select: DataFrame is no table of FEEDBACK"),
        (lambda: select(PAIRS_OF_IT), "select: the table lacks completions"),
        (lambda: write_dataset(FRAME[["Frage"]], "out"), "write_dataset: the table lacks prompt_id"),
        (lambda: build(FRAME, "out", options=BuildOptions(format="csv")), "read_feedback takes tables"),
        (lambda: judge(PAIRS_OF_IT, "out", options=JudgeOptions(model="m")), "pyarrow.lib.Table is no path"),
        (lambda: validate(PAIRS_OF_IT), "pyarrow.lib.Table is no path"),
        (lambda: load_pairs(FRAME), "pandas.DataFrame is no path"),
        (lambda: show(FRAME), "pandas.DataFrame is no path"),
        (lambda: to_pandas(FRAME), "DataFrame is no Table of pyarrow"),
        (lambda: to_dataset(FRAME), "DataFrame is no Table of pyarrow"),
    ],
)
def test_a_table_where_another_is_needed_is_refused_in_words(call: Any, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        call()


def test_other_formats_are_read_from_tables_as_well() -> None:
    chat = [{"role": "user", "content": "Name a planet."}]
    chosen, rejected = ([*chat, {"role": "assistant", "content": text}] for text in ("Mars.", "The moon."))
    rows = [{"chosen": chosen, "rejected": rejected, "margin": 3.0}]
    for given in (pd.DataFrame(rows), datasets.Dataset.from_list(rows)):
        assert build_pairs(read_feedback(given, "trl"))["quality_margin"].to_pylist() == [3.0]
