"""Grades at the ends of their scales: counted for every source, by whatever put them there, and said by build, validate and page."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from folders import write_rows

from mmpo.pipeline import BuildOptions, build, validate
from mmpo.pipeline.report import write_report
from mmpo.pipeline.storage import read_manifest

ODDS = {"output_1": "r", "generator_1": "g", "generator_2": "m", "annotator": "j"}


def alpaca(folder: Path, preferences: dict[str, float]) -> Path:
    rows = [{"instruction": "Q", **ODDS, "output_2": text, "preference": p} for text, p in preferences.items()]
    return write_rows(folder / "rows.jsonl", rows)


def check(folder: Path, name: str) -> dict[str, Any]:
    return next(one for one in validate(folder)["checks"] if one["name"] == name)


def test_what_a_clip_cuts_off_is_counted_everywhere_also_by_way_of_feedback(tmp_path: Path) -> None:
    """Log-odds of .0001, .001 and .01 are -9.2, -6.9 and -4.6: a clip at 6 makes a tie of the first two, at 4 all three pairs are ties."""
    path = alpaca(tmp_path, {"a": 1.0001, "b": 1.001, "c": 1.01, "d": 1.5})
    clipped = {"alpaca-eval": {"grades": 8, "at_ends": 2, "transform": "clip"}}
    build(path, tmp_path / "graded", options=BuildOptions("alpaca-eval", clip=6, feedback_only=True))
    for source, out, options in (
        (path, tmp_path / "direct", BuildOptions("alpaca-eval", clip=6)),
        (tmp_path / "graded", tmp_path / "later", BuildOptions("feedback")),
    ):
        summary, manifest = build(source, out, options=options), read_manifest(out)
        assert summary["saturated"] == manifest["saturated"] == clipped
        assert (summary["ties_at_ends"], manifest["ties_at_ends"]) == (1, 1)  # and d ties with the reference at 0, which is no end
        assert any("2 of 8 grades were clipped" in line for line in summary["warnings"])
        found = check(out, "scale ends")
        assert (found["status"], found["count"]) == ("pass", 2) and "1 pairs are ties there" in found["message"]
        page = write_report(out, tmp_path / "page.html").read_text()
        assert "grades at an end of their scale" in page and "clipped grades" in page
    assert read_manifest(tmp_path / "direct")["recipe"]["clip"] == 6 and "clip" not in read_manifest(tmp_path / "later")["recipe"]
    assert check(tmp_path / "graded", "scale ends")["count"] == 2
    assert build(path, tmp_path / "low", options=BuildOptions("alpaca-eval", clip=4))["ties_at_ends"] == 3
    assert check(tmp_path / "low", "scale ends")["status"] == "warn"


@pytest.mark.parametrize(
    ("options", "at_ends", "ties"), [({"scale": (1, 5)}, 3, 1), ({"scale": (1, 5), "normalise": "minmax"}, 3, 1), ({}, None, None)]
)
def test_raters_grades_at_the_ends_are_counted_and_blamed_on_no_transform(
    tmp_path: Path, options: dict[str, Any], at_ends: int | None, ties: int | None
) -> None:
    rows = [{"prompt": "q", "completion": text, "score": score} for text, score in {"a": 5, "b": 5, "c": 1, "d": 3}.items()]
    summary = build(
        write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "out", options=BuildOptions("jsonl", kind="human", **options)
    )
    assert summary["saturated"] == {"jsonl": {"grades": 4, "at_ends": at_ends, "transform": None}}
    assert summary["ties_at_ends"] == ties and not any("clipped" in line for line in summary["warnings"])
    assert check(tmp_path / "out", "scale ends")["status"] == ("unknown" if at_ends is None else "pass")


def test_gaps_at_their_limit_are_counted_on_both_sides(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "first": "a", "second": text, "gap": gap} for text, gap in {"b": 3, "c": -3, "d": 1}.items()]
    summary = build(write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "out", options=BuildOptions("jsonl", scale=(-3, 3)))
    assert summary["saturated"] == {"jsonl": {"grades": 3, "at_ends": 2, "transform": None}} and summary["ties_at_ends"] is None


def test_real_log_odds_are_ties_by_the_clip_and_hardly_at_sixteen(tmp_path: Path, real_data: Path) -> None:
    """All pairs of the first forty prompts; over all 643 prompts and 1,024,234 pairs the shares are .569, .296 and .002."""
    table = pq.read_table(real_data / "alpaca_eval2_pref.parquet")
    table = table.filter(pc.is_in(table["prompt_id"], pc.unique(table["prompt_id"]).slice(0, 40)))
    names = {
        "prompt": "instruction",
        "reference": "output_1",
        "response": "output_2",
        "generator": "generator_2",
        "preference": "preference",
    }
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.table({new: table[old] for old, new in names.items()}), file)
    kept = table.filter(
        pc.and_(pc.not_equal(table["response"], table["reference"]), pc.greater(pc.utf8_length(table["response"]), 0))
    )
    p = np.asarray(kept["preference"]) - 1
    with np.errstate(divide="ignore"):
        odds = np.abs(np.log(p / (1 - p)))
    share = {}
    for clip in (6, 10, 16):
        found = build(file, tmp_path / f"out{clip}", options=BuildOptions("alpaca-eval", clip=clip))
        assert found["saturated"]["alpaca-eval"]["at_ends"] == (odds > clip).sum()
        share[clip] = int(check(tmp_path / f"out{clip}", "ties")["count"]) / sum(found["pairs"].values())
    assert share[6] > 0.5 > share[10] > 0.2 and share[16] < 0.01
