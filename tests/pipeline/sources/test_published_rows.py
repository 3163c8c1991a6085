"""Rows of published sets as they should not be: other files than JSON lines, layouts mixed in one file, any value in any place."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from folders import write_rows
from source_cases import add, collected, graded_texts, reasons, ultrafeedback

from mmpo.pipeline.sources import SOURCES, fitting

PUBLISHED = [name for name, source in SOURCES.items() if source.licence]
SAMPLES = [(name, place) for name in PUBLISHED for place in range(len(SOURCES[name].samples))]
ANYTHING: list[Any] = [
    None, 5, -1, "x", "", [], {}, [1], ["a"], [None], [[]], [{}], {"a": 1}, True, float("nan"), "a\ud800", 10**400,
    "[", '[{"role":"user"}]',
]  # fmt: skip


def rows_of(format: str, place: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in SOURCES[format].samples[place].text.splitlines()]


@pytest.mark.parametrize(("format", "place"), SAMPLES)
def test_a_layout_reads_the_same_from_parquet_and_from_an_array(tmp_path: Path, format: str, place: int) -> None:
    """Parquet fills up objects with nulls and makes numbers of one type."""
    rows = rows_of(format, place)
    first = graded_texts(collected(write_rows(tmp_path / "rows.jsonl", rows), format))
    assert first
    assert format in fitting(set().union(*rows))
    for name in ("rows.parquet", "rows.json"):
        result = collected(write_rows(tmp_path / name, rows), format)
        assert (graded_texts(result), result.limited) == (first, 0)


@pytest.mark.parametrize("format", PUBLISHED)
def test_layouts_mixed_in_one_file_are_all_read_and_foreign_rows_counted_with_their_place(tmp_path: Path, format: str) -> None:
    layouts = [rows_of(format, place) for place in range(len(SOURCES[format].samples))]
    alone = [grade for rows in layouts for grade in graded_texts(collected(write_rows(tmp_path / "rows.jsonl", rows), format))]
    rows = [row for rows in layouts for row in rows]
    foreign = {"task": "Name a planet.", "reply": "The moon.", "stars": 2}
    if SOURCES[format].joined:  # which take the same message twice for one
        rows, alone = layouts[0], alone[: len(alone) // 2]
    result = collected(write_rows(tmp_path / "mixed.jsonl", [*rows, foreign]), format)
    assert sorted(graded_texts(result), key=str) == sorted(alone, key=str)
    [told] = [one for one in result.rejects.to_pylist() if one["row"] == len(rows) + 1]
    assert (told["file"].endswith("mixed.jsonl"), told["unit"], result.dropped) == (True, "line", 1)


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
@pytest.mark.parametrize("format", sorted({name for name, place in SAMPLES if place}))
def test_layouts_mixed_in_a_table_leave_each_other_s_columns_empty(tmp_path: Path, format: str, suffix: str) -> None:
    layouts = [rows_of(format, place) for place in range(len(SOURCES[format].samples))]
    alone = [grade for rows in layouts for grade in graded_texts(collected(write_rows(tmp_path / "rows.jsonl", rows), format))]
    rows = [row for rows in layouts for row in rows]
    columns = dict.fromkeys(name for row in rows for name in row)
    path = write_rows(tmp_path / f"rows.{suffix}", [{name: row.get(name) for name in columns} for row in rows])
    assert sorted(graded_texts(collected(path, format)), key=str) == sorted(alone, key=str)


@pytest.mark.parametrize(("format", "place"), SAMPLES)
def test_a_list_or_an_object_that_a_table_keeps_as_text_is_read(tmp_path: Path, format: str, place: int) -> None:
    rows = rows_of(format, place)
    found = graded_texts(collected(write_rows(tmp_path / "rows.jsonl", rows), format))
    for name in dict.fromkeys(name for row in rows for name, value in row.items() if isinstance(value, list | dict)):
        kept = [{**row, name: json.dumps(row[name])} for row in rows]
        assert graded_texts(collected(write_rows(tmp_path / "rows.jsonl", kept), format)) == found, name


def test_ratings_that_stand_as_text_inside_a_completion_are_read(tmp_path: Path) -> None:
    """Else a 10 that was a 1 is taken for a 10."""
    rated = {"honesty": {"Rating": "1"}}
    rows = [
        ultrafeedback(overall_score=10, annotations=kept) for kept in (json.dumps(rated), {"honesty": json.dumps({"Rating": "1"})})
    ]
    result = collected(write_rows(tmp_path / "rows.jsonl", rows), "ultrafeedback")
    assert graded_texts(result) == [("Ask", "reply", 1.0, "gpt-4", "honesty")] * 2
    assert reasons(result) == {"ten_for_one": 2}


VOTE = {"model_a": "m", "model_b": "n", "winner": "model_a", "conversation_a": [], "conversation_b": []}
LISTED = {
    "model_a": "m",
    "model_b": "n",
    "winner_model_a": 1,
    "winner_model_b": 0,
    "winner_tie": 0,
    "prompt": '["Ask"]',
    "response_b": '["b"]',
}
SHP = {"history": "Ask", "human_ref_A": "a", "human_ref_B": "b", "score_A": 5, "score_B": 2}


@pytest.mark.parametrize(
    ("format", "row", "reason"),
    [
        ("arena", {**VOTE, "evaluation_order": "2"}, "earlier_turns_missing"),
        ("arena", {**LISTED, "response_a": "[null]"}, "not_text"),
        ("shp", {**SHP, "labels": "1"}, "unknown_winner"),
    ],
)
def test_what_is_wrong_with_a_row_is_said_by_its_name(tmp_path: Path, format: str, row: dict[str, Any], reason: str) -> None:
    assert reasons(collected(write_rows(tmp_path / "rows.jsonl", [row]), format)) == {reason: 1}


@pytest.mark.parametrize(("format", "place"), [("oasst", 1), ("prism", 1)])
def test_a_row_of_a_table_that_can_not_be_joined_is_counted(tmp_path: Path, format: str, place: int) -> None:
    rows = rows_of(format, place)
    found = graded_texts(collected(write_rows(tmp_path / "rows.jsonl", rows), format))
    bad = {**rows[-1], "turn": None}
    result = collected(write_rows(tmp_path / "rows.csv", [*rows, bad]), format)
    assert graded_texts(result) == found and reasons(result) == {"message_twice" if format == "oasst" else "malformed_turn": 1}


def _places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if before:
        yield before
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _places(inner, (*before, key))


def _with(row: dict[str, Any], place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    row = inner = copy.deepcopy(row)
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return row


@pytest.mark.parametrize(("format", "place"), SAMPLES)
def test_any_value_in_any_place_of_a_row_is_read_or_counted(tmp_path: Path, format: str, place: int) -> None:
    """Every row goes on or is told, none breaks the file; grades stay on their scale whatever is given."""
    rows = rows_of(format, place)
    changed = [_with(rows[0], where, value) for where in _places(rows[0]) for value in ANYTHING]
    text = "".join(json.dumps(row) + "\n" for row in [*rows, *changed])
    (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")
    result = collected(tmp_path / "rows.jsonl", format)
    assert SOURCES[format].joined or result.lines == len(rows) + len(changed)
    assert result.feedback.num_rows + sum(reasons(result).values()) >= result.lines
    for row in result.feedback.to_pylist():
        assert all(one["low"] is None or one["low"] <= one["score"] for one in row["ratings"])
        assert all(abs(one["gap"]) <= one["limit"] for one in row["comparisons"])


def test_community_alignment_from_its_own_csv(tmp_path: Path) -> None:
    """Whose turns that did not happen are empty cells."""
    row = {"conversation_id": 1, "annotator_id": "x", "first_turn_prompt": "Ask", "first_turn_response_a": "a"}
    row |= {"first_turn_response_b": "b, c", "first_turn_preferred_response": "response_b", "second_turn_prompt": None}
    row |= {"second_turn_preferred_response": None}
    result = collected(write_rows(tmp_path / "rows.csv", [row]), "community-alignment")
    assert graded_texts(result) == [("Ask", "b, c", "a", 1.0, "x", "overall")]
    assert (reasons(result), result.dropped) == ({}, 0)


def test_white_space_around_a_model_s_name_makes_no_other_model() -> None:
    assert add("ultrafeedback", ultrafeedback(model=" gpt-4\n")).row["completions"][0]["model"] == "gpt-4"
