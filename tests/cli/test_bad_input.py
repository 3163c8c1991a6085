"""Bad input at the command: exit status 2, one message, nothing half-written; bad rows are counted, and limited."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from folders import write_rows

from mmpo.cli.main import run


def rows(count: int = 60, answers: int = 3) -> list[dict[str, Any]]:
    return [
        {"prompt": f"Question {i}?", "completion": f"Answer {j} to {i}.", "score": 1 + (3 * i + 2 * j) % 9}
        for i in range(count)
        for j in range(answers)
    ]


def lines(values: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "grades.jsonl", rows())


def refused(arguments: list[str], out: Path, capsys: pytest.CaptureFixture[str], *named: str) -> str:
    before = sorted(path.name for path in out.parent.iterdir())
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    message = captured.err[captured.err.index("error: ") :]
    assert captured.out == ""
    for name in named:
        assert name in message
    assert sorted(path.name for path in out.parent.iterdir()) == before
    return message


def build(source: Path | str, out: Path, *more: str, format: str = "jsonl") -> list[str]:
    return ["build", str(source), "--format", format, "--out", str(out), *more]


def write(tmp_path: Path, name: str, content: bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def test_missing_file_and_unknown_format(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    refused(build(tmp_path / "nowhere.jsonl", out), out, capsys, "nowhere.jsonl")
    refused(build(good, out, format="jsnl"), out, capsys, "jsnl", "jsonl")


@pytest.mark.parametrize("name", ["ultrafeedback", "shp", "alpaca-eval", "ultrafeedback-binarized"])
def test_wrong_format_named(name: str, good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    refused(build(good, out, format=name), out, capsys, name)


def test_truncated_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    packed = gzip.compress(lines(rows(400)).encode())
    refused(build(write(tmp_path, "cut.jsonl.gz", packed[: len(packed) // 2]), out), out, capsys, "cut.jsonl.gz")
    table = write_rows(tmp_path / "whole.parquet", rows(400))
    cut = write(tmp_path, "cut.parquet", table.read_bytes()[:-200])
    refused(build(cut, out, format="parquet"), out, capsys, "cut.parquet")


def test_missing_columns_are_named_with_those_present(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    refused(build(good, out, "--columns", "score=grade"), out, capsys, "grade", "completion")


@pytest.mark.parametrize(
    "bad",
    [b"\xff\xfe broken", b"[1, 2]", b"{not json", b'{"prompt": "p", "completion": "c", "score": NaN}'],
    ids=["utf8", "no object", "malformed", "nan"],
)
def test_a_file_of_bad_lines_is_refused_and_one_line_costs_one_line(
    bad: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    half = write(tmp_path, "half.jsonl", (bad + b"\n") * 30 + lines(rows(20)).encode())
    refused(build(half, out), out, capsys)
    one = write(tmp_path, "one.jsonl", lines(rows(100)).encode() + bad + b"\n")
    assert run([*build(one, out), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert sum(summary["rejected"].values()) == 1
    assert sum(summary["pairs"].values()) == 300
    [reject] = pq.read_table(out / "rejects.parquet").to_pylist()
    assert reject["row"] == 301 and reject["reason"] in summary["rejected"] and "one.jsonl" in reject["file"]


@pytest.mark.parametrize("change", [{"score": "good"}, {"score": 11}, {"completion": ""}, {"score": True}])
def test_bad_values_are_rejected_rows_and_many_of_them_stop_the_build(
    change: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    values = rows(60)
    many = write_rows(tmp_path / "many.jsonl", [{**row, **change} if i % 2 else row for i, row in enumerate(values)])
    refused(build(many, out, "--scale", "1:10"), out, capsys)
    assert run([*build(many, out, "--scale", "1:10", "--max-rejects", "0.6"), "--json"]) == 0
    assert sum(json.loads(capsys.readouterr().out)["rejected"].values()) >= 90


def test_a_line_separator_inside_a_string_is_no_line_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = [{**row, "completion": row["completion"] + "\u2028next"} for row in rows(20)]
    path, out = write_rows(tmp_path / "u2028.jsonl", values), tmp_path / "out"
    assert run([*build(path, out), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["rejected"] == {} and sum(summary["pairs"].values()) == 60


@pytest.mark.parametrize(
    "flags",
    [
        ["--strategy", "everything"],
        ["--normalise", "zscores"],
        ["--ties", "maybe"],
        ["--from", "votes"],
        ["--raters", "mode"],
        ["--split", "0.5,0.2,0.1"],
        ["--scale", "10:1"],
        ["--max-rejects", "2"],
        ["--min-margin", "-1"],
        ["--max-per-prompt", "0"],
        ["--seed", "x"],
        ["--columns", "nonsense"],
        ["--columns", "grade=score"],
        ["--no-such-flag"],
    ],
    ids=" ".join,
)
def test_unknown_option_values(flags: list[str], good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    refused(build(good, out, *flags), out, capsys, flags[0].removeprefix("--"), flags[-1].partition("=")[0])


def test_a_build_without_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    refused(build(write_rows(tmp_path / "single.jsonl", rows(30, answers=1)), out), out, capsys, "pair")
    refused(build(write(tmp_path, "empty.jsonl", b""), out), out, capsys)


def test_an_output_folder_that_holds_something_else(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter.txt").write_text("mine")
    refused(build(good, out), out, capsys, "thesis")
    assert (out / "chapter.txt").read_text() == "mine"


def test_gamma_below_zero_and_folders_that_are_no_dataset(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run(build(good, out)) == 0
    capsys.readouterr()
    refused(["validate", str(out), "--gamma", "-1"], out, capsys, "gamma")
    refused(["train", "reward", "--data", str(out), "--out", str(tmp_path / "m"), "--gamma", "-1"], out, capsys, "gamma")
    for command in (["validate"], ["report"], ["gamma"], ["export", "--to", "jsonl", "--out", str(tmp_path / "x")]):
        refused([command[0], str(tmp_path / "nowhere"), *command[1:]], out, capsys, "nowhere")
    refused(["export", str(out), "--to", "trl", "--out", str(tmp_path / "x")], out, capsys, "trl-dpo")


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    # A limit on the size of a file stands for the full disk: writing fails with an OSError in the same places.
    source, out = write_rows(tmp_path / "many.jsonl", rows(4_000)), tmp_path / "out"
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); from mmpo.cli.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *build(source, out)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "error: " in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["many.jsonl"]


def test_interrupt_is_130_and_leaves_nothing(tmp_path: Path) -> None:
    source, out = write_rows(tmp_path / "many.jsonl", rows(40_000, answers=4)), tmp_path / "out"
    code = "from mmpo.cli.main import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *build(source, out)],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    deadline = time.monotonic() + 60
    while process.poll() is None and len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 130, messages
    assert messages == "interrupted\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many.jsonl"]
