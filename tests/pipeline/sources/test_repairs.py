"""What a build of any format left out or repaired is counted, said, and as `validate` wants it: repairs were kept, and are no loss."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from command import mmpo
from folders import write_rows
from source_cases import sample_options

from mmpo.pipeline import BuildOptions, build, validate
from mmpo.pipeline.report import rejects
from mmpo.pipeline.sources import SOURCES

SAMPLES = {f"{name} {place}": (name, one) for name, source in SOURCES.items() for place, one in enumerate(source.samples)}
# Format → rows with one known defect, the repair's name and unit, and the margin of the one pair that it leaves.
DEFECTS: dict[str, tuple[dict[str, Any], str, str, float]] = {
    "shp": (
        {"history": "Q", "human_ref_A": "a", "human_ref_B": "b", "score_A": 4, "score_B": 31, "labels": 1},
        "label_disagrees_repaired", "line", 27.0,
    ),
    "ultrafeedback-binarized": (
        {"prompt": "Q", "chosen": "a", "rejected": "b", "score_chosen": 3, "score_rejected": 8},
        "chosen_scored_lower_repaired", "line", 5.0,
    ),
    # ranks 1 and 2 of 7 are the grades 7 and 6
    "nectar": (
        {"prompt": "\n\nHuman: Q\n\nAssistant: ", "answers": [
            {"answer": "b", "model": "s", "rank": 2.0}, {"answer": "a\n\nHuman: more?\n\nAssistant: yes", "model": "l", "rank": 1.0}]},
        "turns_in_reply_cut", "completion", 1.0,
    ),
    # the aspects average 1.5, moved from 1-5 to 1-10: 1 + .5 * 9 / 4 = 2.125; 8 - 2.125
    "ultrafeedback": (
        {"instruction": "Q", "completions": [
            {"model": "s", "response": "a", "overall_score": 10, "fine-grained_score": 1.5},
            {"model": "l", "response": "b", "overall_score": 8}]},
        "ten_for_one_repaired", "grade", 5.875,
    ),
}  # fmt: skip


@pytest.mark.parametrize("format", DEFECTS)
def test_a_repair_is_said_apart_from_what_was_left_out(format: str, tmp_path: Path) -> None:
    row, repair, unit, margin = DEFECTS[format]
    given = write_rows(tmp_path / "rows.jsonl", [row])
    done = mmpo("build", given, "--format", format, "--fix-known-defects", "--out", tmp_path / "out", "--split", "1,0,0", "--json")
    told = json.loads(done.stdout)
    assert (told["repaired"], told["rejected"], told["examples"][0]["margin"]) == ({repair: 1}, {}, margin)
    assert "repaired and kept" in done.stderr and "left out" not in done.stderr
    checks = {check["name"]: check["status"] for check in validate(tmp_path / "out")["checks"]}
    assert (checks["rejects"], checks["counts"], "fail" in checks.values()) == ("pass", "pass", False)
    found = rejects(tmp_path / "out")["reasons"][repair]
    assert (found["unit"], found["stage"], found["count"], len(found["examples"])) == (unit, "repair", 1, 1)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    manifest["counts"]["source"][unit]["repaired"][repair] = 2
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    assert {one["name"]: one["status"] for one in validate(tmp_path / "out")["checks"]}["rejects"] == "fail"


@pytest.mark.parametrize("name", SAMPLES)
def test_builds_of_every_layout_pass_validate(name: str, tmp_path: Path) -> None:
    format, sample = SAMPLES[name]
    given = tmp_path / f"given{'.csv' if isinstance(sample.content, str) else '.jsonl'}"
    given.write_text(sample.text, encoding="utf-8")
    fixed = {"fix_known_defects": True} if format in DEFECTS else {}
    build(given, tmp_path / "out", options=sample_options(format, sample, **fixed))
    assert [check for check in validate(tmp_path / "out")["checks"] if check["status"] == "fail"] == []


def test_what_formats_of_ones_own_leave_out_is_counted_by_any_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_units.py").write_text(
        "def parse(row, out, options):\n"
        "    out.prompt(row['q'])\n"
        "    for text, score in row['a']:\n"
        "        out.rating(out.completion(text), score, rater='r')\n"
        "    out.reject('footnote', unit='note', limited=False)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    given = write_rows(tmp_path / "rows.jsonl", [{"q": f"Q{n}", "a": [["x", 2], ["y", n]]} for n in range(3)])
    told = build(given, tmp_path / "out", options=BuildOptions(format="own_units:parse", split=(1, 0, 0), workers=1))
    sys.modules.pop("own_units")
    assert told["rejected"] == {"footnote": 3}
    assert [check for check in validate(tmp_path / "out")["checks"] if check["status"] == "fail"] == []
