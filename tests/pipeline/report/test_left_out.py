"""What a build left out is shown by reason, with examples, and on the page with what the build warned of."""

import json
from pathlib import Path

import pytest
from folders import write_rows

from mmpo.cli.main import run
from mmpo.pipeline import BuildOptions, build
from mmpo.pipeline.report import rejects, write_report

ROWS = [{"prompt": f"q{p}", "completion": f"{c}{p}", "score": p % 3 + (c == "a")} for p in range(30) for c in "ab"]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """30 pairs; a row that is no JSON, one whose score is a word, one prompt with one completion."""
    rows = [
        *ROWS,
        {"prompt": "x", "completion": "y", "score": "\x1b[1mfive[/x]\\[/b]"},
        {"prompt": "alone", "completion": "y", "score": 2},
    ]
    source = write_rows(tmp_path / "grades.jsonl", rows)
    source.write_text(source.read_text() + "{oops\n")
    build(source, tmp_path / "out", options=BuildOptions(format="jsonl", scale=(0, 4), max_rejects=0.5))
    return tmp_path / "out"


def test_reasons_with_counts_shares_and_examples(dataset: Path) -> None:
    found = rejects(dataset)["reasons"]
    assert {reason: (one["unit"], one["count"], one["share"]) for reason, one in found.items()} == {
        "malformed_json": ("line", 1, 1 / 63), "score_not_a_number": ("line", 1, 1 / 63), "single_completion": ("prompt", 1, 1 / 31),
    }  # fmt: skip
    [example] = found["score_not_a_number"]["examples"]
    assert (Path(example["file"]).name, example["row"]) == ("grades.jsonl", 61)
    assert "five" in example["details"]["score"]
    assert found["malformed_json"]["examples"][0]["row"] == 63
    assert rejects(dataset, examples=0)["reasons"]["malformed_json"]["examples"] == []


def test_the_command_prints_them_inert_and_as_json(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["rejects", str(dataset), "--json"]) == 0
    out, err = capsys.readouterr()
    assert set(json.loads(out)["reasons"]) == {"malformed_json", "score_not_a_number", "single_completion"}
    assert "grades.jsonl, row 61" in err
    assert "\x1b" not in err
    assert run(["rejects", str(dataset / "train")]) == 2
    (dataset / "rejects.parquet").write_bytes(b"PAR1")
    assert run(["rejects", str(dataset)]) == 2


def test_the_page_shows_both(dataset: Path, tmp_path: Path) -> None:
    page = write_report(dataset, tmp_path / "page.html").read_text()
    assert "score_not_a_number" in page
    assert "What the build warned of" not in page
    build(write_rows(tmp_path / "ties.jsonl", [{**row, "score": 1} for row in ROWS]), dataset, options=BuildOptions(format="jsonl"))
    assert "ties: every margin is 0" in write_report(dataset, tmp_path / "page.html").read_text()
