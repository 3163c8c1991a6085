"""`mmpo agree` from files to tables and JSON: what it prints, what it refuses, what it loads."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from folders import feedback_folder

from mmpo.annotate.agreement import agree
from mmpo.cli.main import run
from mmpo.pipeline import BuildOptions, build

Said = tuple[dict[str, Any], str]


@pytest.fixture
def people(root: Path, tmp_path: Path) -> Path:
    """The shipped grades of two people as a FEEDBACK folder."""
    rows = [json.loads(line) for line in (root / "data" / "human_graded_pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    return feedback_folder(tmp_path / "people", rows, scale=(-2, 2), kind="human")


@pytest.fixture
def jury(people: Path, tmp_path: Path) -> Path:
    """The same beside a judge that sees each pair in both orders: the first person's grade, a step toward the first shown."""
    rows = [json.loads(line) for line in people.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()]
    grades = [
        {"prompt": row["prompt"], "first": row[first], "second": row[second], "gap": sign * float(row["gap"]) + 1, "rater": "gpt"}
        for row in rows[::2]
        for first, second, sign in (("first", "second", 1), ("second", "first", -1))
    ]
    judged = feedback_folder(tmp_path / "judged", grades, scale=(-3, 3), kind="ai")
    build([people, judged], tmp_path / "all", options=BuildOptions(format="feedback", feedback_only=True))
    return tmp_path / "all"


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """`mmpo agree WORDS --json`: what it prints as JSON, and the tables."""

    def command(*words: object) -> Said:
        assert run(["agree", *map(str, words), "--json"]) == 0
        captured = capsys.readouterr()
        return json.loads(captured.out), captured.err

    return command


def test_people_alone(people: Path, said: Callable[..., Said], capsys: pytest.CaptureFixture[str]) -> None:
    summary, tables = said(people)
    assert summary == json.loads(json.dumps(agree(people)))
    assert "0.893 [0.835, 0.948]" in tables and "annotator-1" in tables and "widest possible" in tables
    assert run(["agree", str(people)]) == 0
    assert capsys.readouterr().out == ""


def test_a_judge_against_people(jury: Path, said: Callable[..., Said]) -> None:
    """The step toward the first cancels over both orders; a verdict flips where a step outweighs the grade: grades of 0 and ±1."""
    summary, tables = said(jury, "--bootstrap", 100)
    [gpt] = [row for row in summary["position"] if row["name"] == "gpt"]
    assert gpt["orders"] == "both" and gpt["toward_first"] == 1 and gpt["se"] is None
    assert gpt["to_second"] == 0 and 0.3 < gpt["to_first"] == gpt["flips"] < 1
    [like] = [row for row in summary["pairs"] if (row["first"], row["second"]) == ("annotator-1", "gpt")]
    assert like["accuracy"] == 1 and like["spearman"] == 1
    # The same grades on ±2 and on ±3: in agreement but for the scale.
    assert 0.9 < like["alpha_interval"] < 1
    [calibrated] = summary["calibration"]
    assert calibrated["votes"] == 2 * calibrated["units"] == 366 and 0 < calibrated["ece_vote"] < 0.2
    assert summary["overall"]["all"]["raters"] == 3 and summary["overall"]["judges"] is None
    headings = ("two by two", "against the mean of people", "all at once", "longest wins", "verdict flips", "best γ", "by |margin|")
    assert not [heading for heading in headings if heading not in tables]


def test_filters_and_reference_raters(jury: Path, said: Callable[..., Said]) -> None:
    summary, _ = said(jury, "--rater", "gpt,annotator-2", "--against", "annotator-1", "--bootstrap", 0)
    assert [row["name"] for row in summary["raters"]] == ["annotator-2", "gpt"] and summary["yardstick"] == "annotator-1"
    assert [row["accuracy"] for row in summary["against"]] == [pytest.approx(0.8932, abs=5e-5), 1]
    assert all(row["accuracy_95"] is None for row in summary["against"])


def test_one_rater_has_tables_of_its_own(jury: Path, said: Callable[..., Said]) -> None:
    summary, tables = said(jury, "--kind", "ai")
    assert summary["pairs"] == []
    assert "agreement needs two raters; gpt is the only one" in tables
    assert "verdict flips" in tables and "prefers longer" in tables and "two by two" not in tables


def test_it_needs_no_extra(people: Path) -> None:
    """The package krippendorff is what the tests compare with; the command does without it, and without torch."""
    code = "import sys; from mmpo.cli.main import run; status = run(sys.argv[1:]); print(status, *sys.modules)"
    command = [sys.executable, "-c", code, "agree", str(people), "--bootstrap", "10"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    status, *modules = done.stdout.split()
    assert status == "0", done.stderr
    assert not {"krippendorff", "torch", "scipy", "openai"} & set(modules)
