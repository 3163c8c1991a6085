"""Exports: the right columns, ties counted, whole or nothing; and what `mmpo gamma` says of the same folder."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from datasets import load_dataset
from folders import split_folder, write_rows

from mmpo.pipeline import build_pairs, read_feedback
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.margins import MEAN_TARGET, target_probability
from mmpo.pipeline.report import suggest_gamma
from mmpo.pipeline.storage import EXPORTS, export
from mmpo.pipeline.tables import PAIRS


def pair(number: int, margin: float, turns: int = 1) -> dict[str, Any]:
    """A pair whose texts hold a line separator that is no end of line in JSON lines."""
    prompt = [{"role": ("user", "assistant")[i % 2], "content": f"turn {i} of {number}\u2028"} for i in range(turns)]
    margin_and_source = {"quality_margin": margin, "margin_se": 0.5, "preferring": 1, "raters": 1, "kind": "ai", "source": "ours"}
    return {
        "prompt_id": f"{number:032x}",
        "chosen_id": "c" * 32,
        "rejected_id": "d" * 32,
        "prompt": prompt,
        "chosen": [{"role": "assistant", "content": f"reply {number}"}],
        "rejected": [{"role": "assistant", "content": "worse"}],
        **margin_and_source,
    }


def dataset(folder: Path, turns: int = 1) -> Path:
    """Five pairs in two train files, one of them tied, and two in test, one tied; no validation."""
    write_rows(folder / "train/part-00001.parquet", [pair(3, 3.0), pair(4, 4.0)], PAIRS)
    train, test = [pair(0, 1.0), pair(1, 0.0), pair(2, 2.0)], [pair(5, 0.0), pair(6, 1.5, turns)]
    return split_folder(folder, train=train, test=test)


def lines(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


@pytest.mark.parametrize("to", ["trl-dpo", "trl-reward"])
def test_trl(tmp_path: Path, to: str) -> None:
    summary = export(dataset(tmp_path / "data"), to, tmp_path / "out")
    assert summary["pairs"] == {"train": 4, "test": 1} and summary["ties_left_out"] == 2
    loaded = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in loaded.items()} == summary["pairs"]
    assert "margin" not in loaded["train"].column_names
    assert loaded["train"][0]["chosen"] == [{"role": "assistant", "content": "reply 0"}]
    assert min(loaded["train"]["quality_margin"]) > 0


def test_jsonl_keeps_every_column_and_ties(tmp_path: Path) -> None:
    summary = export(dataset(tmp_path / "data"), "jsonl", tmp_path / "pairs.jsonl")
    rows = lines(tmp_path / "pairs.jsonl")
    assert [row["split"] for row in rows] == ["train"] * 5 + ["test"] * 2 and summary["ties_left_out"] == 0
    assert set(rows[0]) == {*PAIRS.names, "split"}
    assert rows[4]["prompt"] == pair(4, 4.0)["prompt"]


@pytest.mark.parametrize("format", ["trl", "jsonl"])
def test_what_is_exported_is_read_again_though_its_scores_are_empty(tmp_path: Path, format: str) -> None:
    """As those of pairs that were made of comparisons are; a row that has scores goes by these."""
    export(dataset(tmp_path / "data"), "jsonl", tmp_path / "pairs.jsonl")
    pairs = build_pairs(read_feedback(tmp_path / "pairs.jsonl", format))
    assert sorted(pairs["quality_margin"].to_pylist()) == [0, 0, 1, 1.5, 2, 3, 4]
    rows = lines(tmp_path / "pairs.jsonl")
    path = write_rows(tmp_path / "mixed.jsonl", [{**row, "score_chosen": 5, "score_rejected": 3} for row in rows[:2]] + rows[2:])
    mixed = read_feedback(path, format)
    assert [sum(map(len, mixed[grades].to_pylist())) for grades in ("ratings", "comparisons")] == [4, 5]


def test_rewardbench_prompts_are_text_or_messages_never_both(tmp_path: Path) -> None:
    summary = export(dataset(tmp_path / "one"), "rewardbench", tmp_path / "one.jsonl")
    (row,) = lines(tmp_path / "one.jsonl")
    assert summary["pairs"] == {"test": 1} and summary["ties_left_out"] == 1
    expected = {"prompt": "turn 0 of 6\u2028", "chosen": "reply 6", "rejected": "worse", "subset": "ours", "id": 0}
    assert row == {**expected, "chosen_model": "unknown", "rejected_model": "unknown"}
    export(dataset(tmp_path / "three", turns=3), "rewardbench", tmp_path / "three.jsonl")
    assert len(lines(tmp_path / "three.jsonl")[0]["prompt"]) == 3


def test_refusals_leave_nothing(tmp_path: Path) -> None:
    data = dataset(tmp_path / "data")
    (tmp_path / "taken").write_text("mine")
    for source, to, out, message in (
        (data, "trl-dp", "x", "did you mean 'trl-dpo'"),
        (tmp_path / "nowhere", "jsonl", "x", "is not a folder"),
        (data, "jsonl", "taken", "exists already"),
    ):
        with pytest.raises(UserError, match=message):
            export(source, to, tmp_path / out)
    (data / "test" / "part-00000.parquet").write_bytes(b"PAR1 cut short")
    for to in EXPORTS:
        with pytest.raises(UserError, match=r"cannot read .*part-00000\.parquet"):
            export(data, to, tmp_path / "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "taken"]


def test_a_failure_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(parts: object, target: Path, rows: object) -> None:
        target.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(EXPORTS, "jsonl", dataclasses.replace(EXPORTS["jsonl"], write=write))
    with pytest.raises(UserError, match="the disk is full"):
        export(dataset(tmp_path / "data"), "jsonl", tmp_path / "x.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_gamma_reads_the_training_pairs(tmp_path: Path) -> None:
    found = suggest_gamma(dataset(tmp_path / "data"))
    margins = np.array([1.0, 2.0, 3.0, 4.0])
    assert (found["pairs"], found["ties"]) == (5, 1)
    assert target_probability(margins, found["gamma"]).mean() == pytest.approx(MEAN_TARGET, abs=1e-12)
    rows = found["what_each_gamma_makes"]
    (mine,) = [row for row in rows if row["note"] == "suggested"]
    assert mine["mean_target"] == pytest.approx(MEAN_TARGET) and mine["noise_aware"] < MEAN_TARGET
    assert [row["saturated"] for row in rows] == sorted(row["saturated"] for row in rows)
    with pytest.raises(UserError, match="none of the 1 pairs"):
        suggest_gamma(pa.Table.from_pylist([pair(0, 0.0)], schema=PAIRS))
