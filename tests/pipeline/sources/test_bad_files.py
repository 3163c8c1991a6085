"""Every format's own example, made wrong in the ways in which files go wrong: refused with words that help, left out and counted, or read
as before. Never a traceback, never another reply as the better one.
"""

import gzip
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folders import write_rows
from source_cases import sample_options

from mmpo.pipeline import BuildOptions, UserError, build, load_pairs
from mmpo.pipeline.sources import SOURCES, FormatSample

SAMPLES = {f"{name} {place}": (name, one) for name, source in SOURCES.items() for place, one in enumerate(source.samples)}
ROWS = {name: one for name, one in SAMPLES.items() if not isinstance(one[1].content, str)}
FIRST = {name.split()[0]: one for name, one in SAMPLES.items() if name.endswith(" 0")}
WITHOUT_FILE = ("no grade of the input is left", "would hold no pair", "Is a column gone?", "Aspects present")
"""What is said of a whole input."""
Pairs = list[tuple[str, str, float]]


class Tried:
    """Builds of a sample's file, changed, in a folder."""

    def __init__(self, folder: Path, format: str, sample: FormatSample) -> None:
        self.options = sample_options(format, sample, max_rejects=0.5)
        self.folder, self.suffix = folder, ".csv" if isinstance(sample.content, str) else ".jsonl"
        self.raw, self.rows = sample.text.encode(), [] if isinstance(sample.content, str) else [dict(row) for row in sample.content]

    def pairs(self, raw: bytes, suffix: str | None = None) -> Pairs:
        """Of the file: chosen, rejected and margin of every pair. Raises UserError, after which nothing is written, as the command does."""
        path = self.folder / f"given{suffix or self.suffix}"
        path.write_bytes(raw)
        try:
            build(path, self.folder / "out", options=self.options)
        except UserError as error:
            assert any(words in str(error) for words in (path.name, *WITHOUT_FILE)), error
            raise
        table = load_pairs(self.folder / "out")
        texts = ([one[0]["content"] for one in table[side].to_pylist()] for side in ("chosen", "rejected"))
        return sorted(zip(*texts, table["quality_margin"].to_pylist(), strict=True))

    def found(self, rows: list[dict[str, Any]]) -> Pairs | str:
        """The same of rows; the message where they are refused."""
        try:
            return self.pairs("".join(json.dumps(row) + "\n" for row in rows).encode())
        except UserError as error:
            return str(error)


def packed(raw: bytes) -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("rows.jsonl", raw)
    return whole.getvalue()


def parquet(raw: bytes) -> bytes:
    whole = io.BytesIO()
    pq.write_table(pa.table({"prompt": [raw.decode()]}), whole)
    return whole.getvalue()


NO_DATA: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "a web page": (lambda raw: b"<!DOCTYPE html>\n<html><head><title>Log in</title></head></html>\n", "is a web page"),
    "a pointer of Git LFS": (
        lambda raw: b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d" * 32 + b"\nsize 12345\n", "git lfs pull",
    ),
    "a packed file without the suffix": (gzip.compress, "is compressed by gzip: its name must end in"),
    "an archive": (packed, "is a ZIP archive"),
    "Parquet by the name of a text": (parquet, "Parquet"),
    "nothing": (lambda raw: b"", "holds no rows|the first line must name the columns"),
    "blank lines": (lambda raw: b"\n\n \n", "holds no rows|the first line must name the columns"),
    "an error as JSON": (
        lambda raw: b'{"error": "Repository Not Found"}\n', "Columns present|file holds JSON|is no log|holds neither|not_a",
    ),
    "an array that was cut off": (
        lambda raw: b'[\n{"prompt": "a"},\n{"prom', "no readable JSON array|file holds JSON|no CSV header|holds no rows",
    ),
    "no objects": (lambda raw: b"null\n3\n", "not_an_object|Columns present"),
}  # fmt: skip


@pytest.mark.parametrize("what", NO_DATA)
def test_what_is_no_data_is_named_for_what_it_is(tmp_path: Path, what: str) -> None:
    change, words = NO_DATA[what]
    for format, sample in FIRST.values():
        tried = Tried(tmp_path, format, sample)
        with pytest.raises(UserError, match=words):
            tried.pairs(change(tried.raw))
    assert not (tmp_path / "out").exists()


def test_a_packed_file_that_ends_too_early_is_refused(tmp_path: Path) -> None:
    for format, sample in FIRST.values():
        tried = Tried(tmp_path, format, sample)
        with pytest.raises(UserError, match="ends too early"):
            tried.pairs(gzip.compress(tried.raw)[:-9], tried.suffix + ".gz")


SAME: dict[str, Callable[[bytes], bytes]] = {
    "a byte-order mark": lambda raw: b"\xef\xbb\xbf" + raw,
    "line ends of Windows": lambda raw: raw.replace(b"\n", b"\r\n"),
    "UTF-16": lambda raw: raw.decode().encode("utf-16"),
    "no line end": lambda raw: raw.rstrip(b"\n"),
}


@pytest.mark.parametrize("format", FIRST)
def test_how_a_text_file_is_written_changes_nothing(tmp_path: Path, format: str) -> None:
    tried = Tried(tmp_path, *FIRST[format])
    whole = tried.pairs(tried.raw)
    assert {what: tried.pairs(change(tried.raw)) for what, change in SAME.items()} == dict.fromkeys(SAME, whole)


def through_pandas(rows: list[dict[str, Any]]) -> pa.Table:
    """As a frame that was written and read: lists are arrays, whole numbers beside gaps are floats."""
    return pa.Table.from_pandas(pa.Table.from_pylist(rows).to_pandas(), preserve_index=False)


def of_other_types(rows: list[dict[str, Any]]) -> pa.Table:
    """In which texts are dictionaries of wide ones and whole numbers narrow."""
    table = pa.Table.from_pylist(rows)
    wide = {pa.string(): pa.large_string(), pa.int64(): pa.int8()}
    for at, field in enumerate(table.schema):
        kind = wide.get(field.type)
        if kind is not None:
            column = table.column(at).cast(kind)
            table = table.set_column(at, field.name, column.dictionary_encode() if kind == pa.large_string() else column)
    return table


TABLES: dict[str, Callable[[list[dict[str, Any]]], pa.Table]] = {
    "of the rows": pa.Table.from_pylist,
    "of a frame": through_pandas,
    "of other types": of_other_types,
}


@pytest.mark.parametrize("name", [name for name, (format, _) in ROWS.items() if format not in ("jsonl", "inspect")])
def test_a_table_says_what_its_rows_do(tmp_path: Path, name: str) -> None:
    """Parquet, as the Hub keeps most sets; logs and files of the format jsonl are none."""
    tried = Tried(tmp_path, *ROWS[name])
    whole = tried.pairs(tried.raw)
    found = {}
    for what, made in TABLES.items():
        pq.write_table(made(tried.rows), tmp_path / "table.parquet", row_group_size=1)
        found[what] = tried.pairs((tmp_path / "table.parquet").read_bytes(), ".parquet")
    assert found == dict.fromkeys(TABLES, whole)


@pytest.mark.parametrize("name", ROWS)
def test_a_log_that_is_still_being_written_costs_its_last_line(tmp_path: Path, name: str) -> None:
    tried = Tried(tmp_path, *ROWS[name])
    last = tried.raw.splitlines()[-1]
    whole = tried.pairs(tried.raw)
    assert tried.pairs(tried.raw + last[: len(last) // 2]) == whole
    rejects = pq.read_table(tmp_path / "out/rejects.parquet")
    assert "malformed_json" in rejects["reason"].to_pylist()


def paths(value: Any, deep: bool, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys of a row; deep: and of what is inside, of a list those of its first item."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*at, key)
            if deep:
                yield from paths(inner, deep, (*at, key))
    elif isinstance(value, list) and value:
        yield from paths(value[0], deep, (*at, 0))


def without(value: Any, path: tuple[Any, ...], null: bool) -> Any:
    """The row without what stands at a path, in every item of a list; null: with null in its place."""
    head, *rest = path
    if isinstance(value, list):
        return [without(one, tuple(rest), null) if rest else one for one in value]
    if not isinstance(value, dict) or head not in value:
        return value
    if rest:
        return {**value, head: without(value[head], tuple(rest), null)}
    return {key: one for key, one in value.items() if key != head} | ({head: None} if null else {})


FALLS_BACK = {("helpsteer2 3", "all_preferences_unprocessed"), ("helpsteer3 0", "individual_preference")}
"""Where each person's grades are gone, the published one is read: another margin, the same reply."""


def gone(folder: Path, name: str, deep: bool) -> Iterator[tuple[str, Pairs | str, Pairs]]:
    """Of each key of a sample's rows what comes of the rows without it, and of the whole rows."""
    tried = Tried(folder, *ROWS[name])
    whole = tried.pairs(tried.raw)
    for path in dict.fromkeys(path for row in tried.rows for path in paths(row, deep)):
        for null in (False, True):
            yield str(path[0]), tried.found([without(row, path, null) for row in tried.rows]), whole


def check_gone(name: str, column: str, found: Pairs | str, whole: Pairs) -> bool:
    """Whether the rows are refused, or read with the same reply as the better one by the same margin (another where it FALLS_BACK)."""
    if isinstance(found, str):
        return True
    if (name, column) in FALLS_BACK:
        return [pair[:2] for pair in found] == [pair[:2] for pair in whole]
    return found == whole


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_a_column_that_is_gone_makes_no_other_margins(tmp_path: Path, name: str) -> None:
    wrong = [column for column, found, whole in gone(tmp_path, name, deep=False) if not check_gone(name, column, found, whole)]
    assert wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_what_is_gone_inside_a_column_makes_no_other_margins(tmp_path: Path, name: str) -> None:
    wrong = [column for column, found, whole in gone(tmp_path, name, deep=True) if not check_gone(name, column, found, whole)]
    assert wrong == []


def leaves(change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def changed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: changed(one) for key, one in value.items()}
        return [changed(one) for one in value] if isinstance(value, list) else change(value)

    return changed


def columns(change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda row: {key: change(value) for key, value in row.items()}


def in_columns(value: Any) -> Any:
    """A list of objects as an object of lists, as older releases of datasets keep it."""
    if isinstance(value, dict):
        return {key: in_columns(one) for key, one in value.items()}
    if not isinstance(value, list) or not value or not all(isinstance(one, dict) for one in value):
        return value
    return {key: [in_columns(one.get(key)) for one in value] for key in dict.fromkeys(key for one in value for key in one)}


def number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


OTHERWISE: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "numbers as text": leaves(lambda value: str(value) if number(value) else value),
    "whole numbers as floats": leaves(lambda value: float(value) if number(value) else value),
    "floats as whole numbers": leaves(lambda value: int(value) if isinstance(value, float) and value == int(value) else value),
    "truth as numbers": leaves(lambda value: int(value) if isinstance(value, bool) else value),
    "truth as text": leaves(lambda value: str(value) if isinstance(value, bool) else value),
    "noughts and ones as truth": leaves(lambda value: bool(value) if number(value) and value in (0, 1) else value),
    "columns as JSON": columns(lambda value: json.dumps(value) if isinstance(value, dict | list) else value),
    "columns as Python prints them": columns(lambda value: repr(value) if isinstance(value, dict | list) else value),
    "numbers in lists": columns(lambda value: [value] if number(value) else value),
    "objects of lists": columns(in_columns),
    "no numbers": leaves(lambda value: None if number(value) else value),
    "numbers that are none": leaves(lambda value: float("nan") if number(value) else value),
    "words in capitals": leaves(lambda value: value.upper() if isinstance(value, str) and " " not in value else value),
    "words with a space": leaves(lambda value: value + " " if isinstance(value, str) and " " not in value else value),
}
"""How one set's releases differ in the types of their columns."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_values_of_other_types_make_no_other_margins(tmp_path: Path, name: str) -> None:
    tried = Tried(tmp_path, *ROWS[name])
    whole = tried.pairs(tried.raw)
    found = {what: tried.found([change(row) for row in tried.rows]) for what, change in OTHERWISE.items()}
    assert {what: pairs for what, pairs in found.items() if not isinstance(pairs, str) and pairs != whole} == {}


OTHER_PROJECTS: dict[str, tuple[str, dict[str, Any], dict[str, str], str]] = {
    "marks in a text": (
        "label-studio", {"id": 1, "data": {"text": "Mars"}, "annotations": [{"id": 2, "completed_by": 1, "result": [
            {"from_name": "label", "type": "labels", "value": {"start": 0, "end": 4, "labels": ["PLANET"]}}]}]},
        {"gap": "label"}, "a project with other tags alone grades no texts"),
    "tasks to be annotated": (
        "label-studio", {"data": {"prompt": "q", "answer1": "a", "answer2": "b"}}, {"gap": "pw"}, "export the project as JSON"),
    "classes of texts": (
        "argilla-export", {"text": "a", "label.responses": ["x"], "label.responses.users": ["u"], "label.responses.status": ["submitted"]},
        {"score": "label"}, "needs the columns 'prompt', 'completion'"),
    "runs": ("mlflow", {"run_id": "r", "metrics.accuracy": 0.5}, {"score": "q"}, "traces have assessments, runs have none"),
    "traces that nobody assessed": (
        "mlflow", {"state": "OK", "request": "q", "response": "a", "assessments": []}, {"score": "q"}, "not_assessed 1"),
    "a configuration": ("promptfoo", {"prompts": ["x"], "providers": ["p"], "tests": []}, {}, "promptfoo export eval"),
    "outputs without assertions": (
        "promptfoo", {"prompt": {"raw": "q"}, "response": {"output": "a"}, "gradingResult": None}, {}, "not_graded 1"),
    "a log that has just begun": (
        "inspect", {"status": "started", "eval": {"task": "t"}, "samples": []}, {}, "the evaluation has not ended"),
    "another task": ("distilabel", {"instruction": "q", "generations": ["a", "b"], "rating": [9, 7]}, {}, "scores=COLUMN"),
    "answers": ("fastchat", {"question_id": 1, "model_id": "m", "choices": [{"turns": ["a"]}]}, {}, "model_answer hold no grades"),
    "outputs of models": ("alpaca-eval", {"instruction": "q", "output": "a", "generator": "m"}, {}, "model_outputs.json holds no grades"),
    "annotations without spans": (
        "phoenix", {"span_id": "1", "annotation_name": "q", "annotator_kind": "HUMAN", "result.score": 1}, {}, "two frames of Phoenix's"),
    "single replies": ("pku-saferlhf", {"prompt": "q", "response": "a", "is_safe": True}, {}, "Columns present"),
    "attacks": ("hh-rlhf", {"transcript": "\n\nHuman: q\n\nAssistant: a", "rating": 3.0}, {}, "Columns present"),
    "pairs with grades": ("hh-rlhf", {"chosen": "a", "rejected": "b", "chosen_rating": 4}, {}, "these pairs have grades"),
}  # fmt: skip


@pytest.mark.parametrize("what", OTHER_PROJECTS)
def test_an_export_of_another_kind_is_refused_with_the_next_move(tmp_path: Path, what: str) -> None:
    format, row, columns, words = OTHER_PROJECTS[what]
    path = write_rows(tmp_path / "export.jsonl", [row])
    with pytest.raises(UserError) as error:
        build(path, tmp_path / "out", options=BuildOptions(format=format, columns=columns))
    assert "export.jsonl" in str(error.value) and words in str(error.value)


ALIKE = {
    ("helpsteer", "helpsteer2"), ("helpsteer2", "helpsteer"), ("hh-rlhf", "skywork"), ("hh-rlhf", "tulu"), ("hh-rlhf", "wildfeedback"),
    ("hh-rlhf", "trl"), ("skywork", "tulu"), ("ultrafeedback-binarized", "jsonl"), ("jsonl", "ultrafeedback-binarized"),
}  # fmt: skip
"""Formats (first) that may read another one's file, where it holds the same columns of the same meaning."""


@pytest.mark.slow
@pytest.mark.parametrize("format", FIRST)
def test_a_file_of_another_format_is_refused_or_read_the_right_way_round(tmp_path: Path, format: str) -> None:
    reader = Tried(tmp_path, *FIRST[format])
    read = {}
    for name, (other, sample) in SAMPLES.items():
        if other == format:
            continue
        tried = Tried(tmp_path, other, sample)
        try:
            read[name] = reader.pairs(tried.raw, tried.suffix)
        except UserError:
            continue
    assert {(format, name.split()[0]) for name in read} <= ALIKE
    assert all(
        (chosen, rejected) == ("Mars, the red one.", "The moon.") for pairs in read.values() for chosen, rejected, _ in pairs
    )
