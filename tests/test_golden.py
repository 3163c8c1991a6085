"""What version 0.1.0 wrote is read and gone on with: FEEDBACK, PAIRS, a judge's journal, a killed training run, a reward model.

The files of tests/golden/v1 were made by version 0.1.0 (make_v1.py there says how) and never change; the figures beside them in
expected.json are what that version itself made of them when it went on.
"""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from command import mmpo
from openai_server import serving

from mmpo.pipeline import FEEDBACK, BuildOptions, build, load_feedback, load_pairs, validate
from mmpo.pipeline.storage import read_manifest

GOLDEN = Path(__file__).resolve().parent / "golden" / "v1"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture
def v1(tmp_path: Path) -> Path:
    """A copy of the golden files to work in."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "v1"))


def training() -> list[str]:
    """The options that both golden runs were trained with."""
    spec = importlib.util.spec_from_file_location("make_v1", GOLDEN / "make_v1.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.TRAINING


def test_feedback_of_v1_becomes_the_pairs_of_v1(v1: Path) -> None:
    assert load_feedback(v1 / "feedback").num_rows == 12
    build(v1 / "feedback", v1 / "again", options=BuildOptions(format="feedback", split=(0.7, 0.3, 0.0)))
    for split in ("train", "validation"):
        again, golden = load_pairs(v1 / "again", split).to_pylist(), load_pairs(v1 / "pairs", split).to_pylist()
        assert len(golden) == {"train": 30, "validation": 6}[split]
        assert again == golden


def test_grades_build_the_feedback_of_v1(v1: Path) -> None:
    options = BuildOptions(format="jsonl", scale=(1, 5), feedback_only=True)
    build(v1 / "grades.jsonl", v1 / "again", options=options)
    assert load_feedback(v1 / "again").to_pylist() == load_feedback(v1 / "feedback").to_pylist()


@pytest.mark.parametrize(
    "words",
    [
        ("validate", "pairs"),
        ("gamma", "pairs"),
        ("report", "pairs", "--out", "page.html"),
        ("export", "pairs", "--to", "trl-dpo", "--out", "export"),
        ("agree", "judged"),
        ("judge", "judged", "--model", "m", "--out", "out", "--dry-run", "--show", "1"),
    ],
)
def test_commands_read_the_tables_of_v1(v1: Path, words: tuple[str, ...]) -> None:
    done = mmpo(*words, cwd=v1)
    assert done.returncode == 0, done.stderr


def test_a_judges_journal_of_v1_holds_every_answer(v1: Path) -> None:
    golden = load_feedback(v1 / "judged").to_pylist()
    shutil.rmtree(v1 / "judged")
    with serving() as server:
        words = ["--mode", "pairwise", "--model", "judge-a", "--base-url", server.base_url, "--out", "judged"]
        done = mmpo("judge", "feedback", *words, cwd=v1)
        assert done.returncode == 0, done.stderr
        assert server.counts()["answered"] <= 1, "what was paid for is not asked again; a new address may be probed"
    again = load_feedback(v1 / "judged").to_pylist()
    assert sum(len(row["comparisons"]) for row in golden) == 72
    for row, before in zip(again, golden, strict=True):
        for one in row["comparisons"]:
            p = np.array(one.pop("probabilities"))  # which version 1 threw away, though its journal had what they are made of
            values = np.arange(3, -4, -1)
            assert one["gap"] == pytest.approx((p * values).sum() / p.sum(), abs=1e-9)
            assert one["spread"] ** 2 == pytest.approx((p * (values - one["gap"]) ** 2).sum() / p.sum(), abs=1e-9)
        for one in before["comparisons"]:
            assert one.pop("probabilities") is None
    assert again == golden


def test_grades_of_v1_and_of_a_judge_of_now_merge(v1: Path) -> None:
    with serving() as server:
        words = ["--model", "judge-b", "--base-url", server.base_url, "--limit", "4", "--out", "now"]
        assert mmpo("judge", "feedback", *words, cwd=v1).returncode == 0
    for out, feedback_only in (("merged", True), ("both", False)):
        build([v1 / "judged", v1 / "now"], v1 / out, options=BuildOptions(format="feedback", feedback_only=feedback_only))
    assert pq.read_schema(v1 / "merged/feedback/part-00000.parquet").remove_metadata().equals(FEEDBACK)
    found = [one for row in load_feedback(v1 / "merged").to_pylist() for one in row["comparisons"]]
    assert {(one["rater"], one["probabilities"] is None) for one in found} == {("judge-a", True), ("judge-b", False)}
    assert read_manifest(v1 / "merged")["schema_version"] == 2 and validate(v1 / "both")["ok"]


@pytest.mark.slow
def test_a_run_of_v1_that_was_killed_goes_on_from_its_checkpoint(v1: Path) -> None:
    words = ["train", "policy", "--data", "pairs", "--out", "policy", "--reference-cache", "cache", "--beta", "0.1", *training()]
    done = mmpo(*words, "--json", cwd=v1)
    assert done.returncode == 0, done.stderr
    assert "trained 16 steps" in done.stderr, "4 of the 20 steps were done by version 0.1.0"
    summary, expected = json.loads(done.stdout), EXPECTED["policy"]
    assert summary["steps"] == expected["steps"]
    assert summary["gamma"] == pytest.approx(expected["gamma"], rel=1e-12)
    assert summary["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-5)
    assert summary["metrics"]["loss"] == pytest.approx(expected["eval_loss"], rel=1e-5)


@pytest.mark.slow
def test_a_reward_model_of_v1_gives_the_same_scores(v1: Path) -> None:
    done = mmpo("evaluate", "reward", "--model", "reward", "--data", "pairs", "--split", "validation", "--json", cwd=v1)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    for name, value in EXPECTED["reward"].items():
        if name == "temperature":  # 0.1.0 fitted it on the very pairs that it scaled; now it comes of other pairs
            continue
        assert measured[name] == pytest.approx(value, rel=1e-5), name
