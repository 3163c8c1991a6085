"""Bad input to `mmpo build`: bad rows are counted, and limited; nothing half-written is left by a full disk or Ctrl-C."""

import json
import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from command import mmpo, stopped
from commands import graded, lines, refused
from folders import write_rows

from mmpo.cli.main import run


def build(source: Path, out: Path, *more: str) -> list[str]:
    return ["build", str(source), "--format", "jsonl", "--out", str(out), *more]


@pytest.mark.parametrize(
    "bad",
    [b"\xff\xfe broken", b"[1, 2]", b"{not json", b'{"prompt": "p", "completion": "c", "score": NaN}'],
    ids=["utf8", "no object", "malformed", "nan"],
)
def test_a_file_of_bad_lines_is_refused_and_one_line_costs_one_line(
    bad: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    half, one = tmp_path / "half.jsonl", tmp_path / "one.jsonl"
    half.write_bytes((bad + b"\n") * 30 + lines(graded(20)).encode())
    refused(build(half, out), tmp_path, capsys)
    one.write_bytes(lines(graded(100)).encode() + bad + b"\n")
    assert run([*build(one, out), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert sum(summary["rejected"].values()) == 1
    assert sum(summary["pairs"].values()) == 300
    [reject] = pq.read_table(out / "rejects.parquet").to_pylist()
    assert (
        (reject["unit"], reject["row"]) == ("line", 301)
        and reject["reason"] in summary["rejected"]
        and "one.jsonl" in reject["file"]
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"score": "good"}, "score_not_a_number"),
        ({"score": 11}, "score_out_of_scale"),
        ({"completion": ""}, "empty_completion"),
        ({"score": True}, "score_not_a_number"),
    ],
)
def test_bad_values_are_rejected_rows_and_many_of_them_stop_the_build(
    change: dict[str, Any], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    many = write_rows(tmp_path / "many.jsonl", [{**row, **change} if i % 2 else row for i, row in enumerate(graded(60))])
    refused(build(many, out, "--scale", "1:10"), tmp_path, capsys, "90 of 180 lines", reason, "line 2")
    assert run([*build(many, out, "--scale", "1:10", "--max-rejects", "0.6"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rejected"][reason] == 90


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    # A limit on the size of a file stands for the full disk: writing fails with an OSError in the same places.
    source, out = write_rows(tmp_path / "many.jsonl", graded(4_000)), tmp_path / "out"
    done = mmpo(*build(source, out), disk=20_000)
    assert done.returncode == 2, done.stderr
    assert "error: " in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["many.jsonl"]


def test_interrupt_is_130_and_leaves_nothing(tmp_path: Path) -> None:
    source, out = write_rows(tmp_path / "many.jsonl", graded(40_000, answers=4)), tmp_path / "out"
    done = stopped(*build(source, out), when=lambda: len(list(tmp_path.iterdir())) > 1, by=signal.SIGINT)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many.jsonl"]
