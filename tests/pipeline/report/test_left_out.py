"""What a build left out is shown by reason, with examples, and on the page with what the build warned of."""

import json
from pathlib import Path

import pytest
from folders import write_rows

from mmpo.cli.main import run
from mmpo.pipeline import BuildOptions, build
from mmpo.pipeline.build.mixture import draw_position
from mmpo.pipeline.report import rejects, write_report
from mmpo.pipeline.tables import prompt_id

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


def test_prompts_that_are_not_drawn_and_what_is_theirs_each_have_a_unit_and_a_share_of_it(tmp_path: Path) -> None:
    """Half of 40 prompts of one source (two replies and two grades each) and all 10 of another (three replies)."""
    one = [{"prompt": f"q{p}", "completion": c, "score": n} for p in range(40) for n, c in enumerate("ab")]
    other = [{"prompt": f"o{p}", "completion": c, "score": n} for p in range(10) for n, c in enumerate("abc")]
    sources = [
        {"name": name, "inputs": str(write_rows(tmp_path / f"{name}.jsonl", rows)), "format": "jsonl", "share": share}
        for name, rows, share in (("one", one, 0.5), ("other", other, 1))
    ]
    summary = build((), tmp_path / "out", options=BuildOptions(sources=sources))
    gone = 40 - sum(draw_position(0, prompt_id([{"role": "user", "content": f"q{p}"}])) < 0.5 for p in range(40))
    assert 5 < gone < 35
    assert summary["rejected"] == {
        "not_drawn": gone, "completion_of_undrawn_prompt": 2 * gone, "grade_of_undrawn_prompt": 2 * gone,
    }  # fmt: skip
    assert {
        name: (found["unit"], found["count"], found["share"]) for name, found in rejects(tmp_path / "out")["reasons"].items()
    } == {
        "not_drawn": ("prompt", gone, gone / 50),
        "completion_of_undrawn_prompt": ("completion", 2 * gone, 2 * gone / 110),
        "grade_of_undrawn_prompt": ("grade", 2 * gone, 2 * gone / 110),
    }
    page = write_report(tmp_path / "out", tmp_path / "page.html").read_text()
    assert "grade_of_undrawn_prompt" in page and "completion_of_undrawn_prompt" in page


def test_a_reason_that_two_units_have_is_there_for_each(dataset: Path) -> None:
    """As formats of a user's own may name it, and as older datasets have it."""
    manifest = json.loads((dataset / "manifest.json").read_text())
    for unit, count in (("completion", 6), ("grade", 12)):
        manifest["counts"].setdefault("share", {})[unit] = {
            "in": 5 * count, "created": 0, "out": 4 * count, "merged": 0, "dropped": {"prompt_not_drawn": count},
        }  # fmt: skip
    (dataset / "manifest.json").write_text(json.dumps(manifest))
    found = rejects(dataset)["reasons"]
    assert [(name, one["unit"], one["count"], one["share"]) for name, one in found.items() if "drawn" in name] == [
        ("prompt_not_drawn (grade)", "grade", 12, 1 / 5), ("prompt_not_drawn", "completion", 6, 1 / 5),
    ]  # fmt: skip


def test_the_page_shows_both(dataset: Path, tmp_path: Path) -> None:
    page = write_report(dataset, tmp_path / "page.html").read_text()
    assert "score_not_a_number" in page
    assert "What the build warned of" not in page
    build(write_rows(tmp_path / "ties.jsonl", [{**row, "score": 1} for row in ROWS]), dataset, options=BuildOptions(format="jsonl"))
    assert "ties: every margin is 0" in write_report(dataset, tmp_path / "page.html").read_text()
