"""`mmpo agree` from files to tables and JSON: what it prints, what it refuses, what it loads."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from folders import write_rows

from mmpo.annotate.agreement import agree
from mmpo.cli.main import run


def built(source: Path, out: Path, *more: str) -> Path:
    assert run(["build", str(source), "--format", "jsonl", "--out", str(out), "--feedback-only", *more]) == 0
    return out


@pytest.fixture
def people(root: Path, tmp_path: Path) -> Path:
    """The shipped grades of two people as a FEEDBACK folder."""
    return built(root / "data" / "human_graded_pairs.jsonl", tmp_path / "people", "--scale=-2:2", "--rater-kind", "human")


@pytest.fixture
def jury(root: Path, people: Path, tmp_path: Path) -> Path:
    """The same beside a judge that sees each pair in both orders: the first person's grade, a step toward the first shown, 3 at most."""
    rows = [json.loads(line) for line in (root / "data" / "human_graded_pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    grades = []
    for row in rows[::2]:
        for first, second, sign in (("first", "second", 1), ("second", "first", -1)):
            gap = sign * float(row["gap"]) + 1
            grades.append(
                {"prompt": row["prompt"], "first": row[first], "second": row[second], "gap": gap, "rater": "gpt", "kind": "ai"}
            )
    judged = built(write_rows(tmp_path / "gpt.jsonl", grades), tmp_path / "judged", "--scale=-3:3")
    out = tmp_path / "all"
    assert run(["build", str(people), str(judged), "--format", "feedback", "--feedback-only", "--out", str(out)]) == 0
    return out


def test_people_alone(people: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(["agree", str(people), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == json.loads(json.dumps(agree(people)))
    assert "0.893 [0.835, 0.948]" in said.err and "annotator-1" in said.err and "widest possible" in said.err
    assert run(["agree", str(people)]) == 0
    assert capsys.readouterr().out == ""


def test_a_judge_against_people(jury: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The step toward the first cancels over both orders; a verdict flips where a step outweighs the grade: grades of 0 and ±1."""
    capsys.readouterr()
    assert run(["agree", str(jury), "--bootstrap", "100", "--json"]) == 0
    said = capsys.readouterr()
    summary = json.loads(said.out)
    [gpt] = [row for row in summary["position"] if row["name"] == "gpt"]
    assert gpt["orders"] == "both" and gpt["toward_first"] == 1 and gpt["se"] == 0
    assert gpt["to_second"] == 0 and 0.3 < gpt["to_first"] == gpt["flips"] < 1
    [like] = [row for row in summary["pairs"] if (row["first"], row["second"]) == ("annotator-1", "gpt")]
    assert like["accuracy"] == 1 and like["spearman"] == 1
    # The same grades on ±2 and on ±3: in agreement but for the scale.
    assert 0.9 < like["alpha_interval"] < 1
    [calibrated] = summary["calibration"]
    assert calibrated["votes"] == 2 * calibrated["units"] == 366 and 0 < calibrated["ece_vote"] < 0.2
    assert summary["overall"]["all"]["raters"] == 3 and summary["overall"]["judges"] is None
    for heading in (
        "two by two",
        "against the mean of people",
        "all at once",
        "longest wins",
        "verdict flips",
        "best γ",
        "by |margin|",
    ):
        assert heading in said.err


def test_filters_and_reference_raters(jury: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(["agree", str(jury), "--rater", "gpt,annotator-2", "--against", "annotator-1", "--bootstrap", "0", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in summary["raters"]] == ["annotator-2", "gpt"] and summary["yardstick"] == "annotator-1"
    assert [row["accuracy"] for row in summary["against"]] == [pytest.approx(0.8932, abs=5e-5), 1]
    assert all(row["accuracy_95"] is None for row in summary["against"])


def test_one_rater_has_tables_of_its_own(jury: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(["agree", str(jury), "--kind", "ai", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["pairs"] == []
    assert "agreement needs two raters; gpt is the only one" in said.err
    assert "verdict flips" in said.err and "prefers longer" in said.err and "two by two" not in said.err


def test_it_needs_no_extra(people: Path) -> None:
    """The package krippendorff is what the tests compare with; the command does without it, and without torch."""
    code = "import sys; from mmpo.cli.main import run; status = run(sys.argv[1:]); print(status, *sys.modules)"
    command = [sys.executable, "-c", code, "agree", str(people), "--bootstrap", "10"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    status, *modules = done.stdout.split()
    assert status == "0", done.stderr
    assert not {"krippendorff", "torch", "scipy", "openai"} & set(modules)
