"""Excel workbooks: a sheet is read as CSV is, but for numbers, which are numbers; what can't be read says how to export it."""

import datetime
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from command import refused
from folders import write_rows
from source_cases import collected, graded_texts

from mmpo.pipeline import BuildOptions, UserError, build, load_pairs, read_feedback
from mmpo.pipeline.build import peek
from mmpo.pipeline.storage import plan, resolve_inputs, rows

openpyxl = pytest.importorskip("openpyxl", reason="the extra excel is not installed: pip install 'mmpo[excel]'")
HEADER = ["prompt", "completion", "score"]


def workbook(path: Path, **sheets: Sequence[Sequence[Any]]) -> Path:
    """A workbook of sheets with these rows."""
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, content in sheets.items():
        sheet = book.create_sheet(name)
        for row in content:
            sheet.append(list(row))
    book.save(path)
    return path


def read(path: Path, **options: Any) -> list[tuple[int, dict[str, Any]]]:
    [chunk] = plan(resolve_inputs([path], "csv", **options))
    return [(number, dict(row)) for number, row in rows(chunk, lambda *told: pytest.fail(str(told)))]


def test_cells_are_texts_numbers_and_dates_as_people_see_them(tmp_path: Path) -> None:
    day = datetime.date(2026, 3, 1)
    path = workbook(
        tmp_path / "a.xlsx",
        S=[[], ["text", " n ", None, "d", None], ["a", 4.0, True, day], [], ["", 2.5, None, None], ["é\nb", -3]],
    )
    assert read(path) == [
        (3, {"text": "a", "n": "4", "column 3": "true", "d": "2026-03-01T00:00:00"}),
        (5, {"text": None, "n": "2.5", "column 3": None, "d": None}), (6, {"text": "é\nb", "n": "-3", "column 3": None, "d": None}),
    ]  # fmt: skip


@pytest.mark.parametrize("decimal", [None, ","])
def test_a_sheet_says_what_the_same_csv_says(decimal: str | None, tmp_path: Path) -> None:
    """Replies that are numbers are texts; numbers need no decimal mark, texts beside them do."""
    content = [["q", 41, 3], ["q", "b", 1.5], ["q2", "c", 2], ["q2", "d", 4]]
    options = BuildOptions(format="csv", decimal=decimal, rater="anna", scale=(1, 5))
    build(workbook(tmp_path / "grades.xlsx", S=[HEADER, *content]), tmp_path / "one", options=options)
    texts = [[q, str(reply), str(score).replace(".", decimal or ".")] for q, reply, score in content]
    named = [dict(zip(HEADER, row, strict=True)) for row in texts]
    build(write_rows(tmp_path / "grades.csv", named), tmp_path / "two", options=options)
    one, two = (load_pairs(tmp_path / name) for name in ("one", "two"))
    assert one.equals(two) and sorted(one["quality_margin"].to_pylist()) == [1.5, 2.0]


def test_a_published_set_from_a_workbook(tmp_path: Path) -> None:
    head = ["question", "answer_0", "answer_1", "score_0", "score_1"]
    path = workbook(tmp_path / "webgpt.xlsx", S=[head, ["Q", "A", 7, -0.5, 0.5]])
    assert graded_texts(collected(path, "webgpt")) == [("Q", "A", "7", -0.5, "annotators", "overall")]
    assert graded_texts(collected(path, "webgpt", decimal=",")) == graded_texts(collected(path, "webgpt"))


def test_of_several_sheets_one_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = workbook(tmp_path / "a.xlsx", Mai=[HEADER, ["q", "a", 1]], Juni=[HEADER, ["q", "b", 2]], Leer=[])
    with pytest.raises(UserError, match=r"has 2 sheets, 'Mai', 'Juni': name the one to read, --sheet 'Mai'"):
        read(path)
    with pytest.raises(UserError, match=r"unknown sheet of .*a.xlsx 'Juli'; did you mean 'Juni'\? Known: Mai, Juni, Leer"):
        read(path, sheet="Juli")
    assert read(path, sheet="Juni") == [(2, {"prompt": "q", "completion": "b", "score": "2"})]
    assert read_feedback(path, "csv", sheet="Juni").num_rows == 1
    assert peek([path], BuildOptions(format="csv", sheet="Juni"))["rows"][0]["completions"][0]["text"] == "b"
    refused(["build", str(path), "--format", "csv", "--out", str(tmp_path / "o")], tmp_path, capsys, "--sheet 'Mai'")
    assert read(workbook(tmp_path / "b.xlsx", Leer=[], Mai=[HEADER, ["q", "a", 1]]))[0][0] == 2


@pytest.mark.parametrize(
    ("sheet", "options", "told"),
    [
        ([HEADER, ["q", "a", 1, "more"]], {}, r"row 2: 'more' stands right of the columns"),
        ([["a", "b", "a"], [1, 2, 3]], {}, "column names occur twice in the header: 'a'"), ([], {}, "its sheets are empty"),
        ([HEADER], {"separator": ";"}, "--sep is for text files"), ([HEADER], {"encoding": "cp1252"}, "--encoding is for text files"),
    ],
)  # fmt: skip
def test_what_a_sheet_can_not_be_is_refused(sheet: Any, options: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        read(workbook(tmp_path / "a.xlsx", S=sheet), **options)


def test_what_is_no_workbook_says_how_to_export_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = workbook(tmp_path / "a.xlsx", S=[HEADER, *[[f"q{i}", "a", i] for i in range(200)]])
    (tmp_path / "cut.xlsx").write_bytes(whole.read_bytes()[:3000])
    (tmp_path / "text.xlsx").write_bytes(b"prompt,completion,score\n")
    for name in ("cut.xlsx", "text.xlsx"):
        with pytest.raises(UserError, match=r"no readable workbook .*save the sheet as CSV UTF-8"):
            read(tmp_path / name)
    with pytest.raises(UserError, match="--sheet is for Excel workbooks"):
        read(write_rows(tmp_path / "a.csv", [{"a": 1}]), sheet="S")
    with pytest.raises(UserError, match="format 'jsonl' was named, but the file holds an Excel workbook; try --format csv"):
        resolve_inputs([whole], "jsonl")
    (tmp_path / "old.xls").write_bytes(b"\xd0\xcf\x11\xe0" + bytes(100))
    with pytest.raises(UserError, match=r"old.xls is an old Excel workbook \(.xls\): save it as .xlsx, or its sheet as CSV"):
        resolve_inputs([tmp_path / "old.xls"], "csv")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(UserError, match=r"pip install 'mmpo\[excel\]'; or save the sheet as CSV UTF-8"):
        read(whole)
