"""Folders that are written whole or not at all: kills, full disks, foreign folders, and what a dataset holds."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
from folders import changed, read_table, write_rows

from mmpo.pipeline import PAIRS, BuildOptions, UserError, build, load_pairs, validate
from mmpo.pipeline.tables import REJECTS, metadata

OPTIONS = BuildOptions(format="jsonl", kind="human", scale=(1, 5))


def ratings(path: Path, prompts: int, mark: str = "") -> Path:
    answers = [f"answer {c}{mark} " * 40 for c in range(4)]
    return write_rows(
        path,
        (
            {"prompt": f"question {p}", "completion": answer, "score": 1 + (p + c) % 5}
            for p in range(prompts)
            for c, answer in enumerate(answers)
        ),
    )


def test_a_dataset_opens_with_datasets_and_holds_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = build(ratings(tmp_path / "r.jsonl", 80), tmp_path / "out", options=OPTIONS)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {name: split.num_rows for name, split in loaded.items()} == {k: v for k, v in summary["pairs"].items() if v}
    assert summary["prompts"] == 80
    assert sum(summary["pairs"].values()) == 80 * 6
    schema = pq.read_schema(tmp_path / "out/train/part-00000.parquet")
    assert schema.remove_metadata().equals(PAIRS)
    assert metadata(schema)["schema_version"] == 1
    assert metadata(schema)["scales"] == [[1, 5]]
    assert pq.read_schema(tmp_path / "out/rejects.parquet").remove_metadata().equals(REJECTS)
    assert validate(tmp_path / "out")["ok"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_a_prompt_that_is_not_the_one_of_its_id_fails_wherever_its_row_is(tmp_path: Path) -> None:
    build(ratings(tmp_path / "r.jsonl", 80), tmp_path / "out", options=OPTIONS)
    part = tmp_path / "out/train/part-00000.parquet"
    table = read_table(part)
    names = table["prompt_id"].to_pylist()
    row = next(i for i in range(1, len(names)) if names[i] == names[i - 1])
    pq.write_table(changed(table, "prompt", {row: [{"role": "user", "content": "another question"}]}), part)
    checked = validate(tmp_path / "out")
    failed = [check for check in checked["checks"] if check["status"] == "fail"]
    assert not checked["ok"]
    assert any(f"row {row}" in check["message"] for check in failed), failed


def test_rejects_say_file_line_and_reason(tmp_path: Path) -> None:
    path = ratings(tmp_path / "r.jsonl", 80)
    lines = path.read_text().splitlines()
    lines[4] = "{broken"
    lines[9] = json.dumps({"prompt": "question 2", "completion": " ", "score": 3})
    path.write_text("\n".join(lines))
    summary = build(path, tmp_path / "out", options=OPTIONS)
    assert summary["rejected"] == {"empty_completion": 1, "malformed_json": 1}
    rows = pq.read_table(tmp_path / "out/rejects.parquet").to_pylist()
    assert [(row["unit"], row["row"], row["reason"], row["file"]) for row in rows] == [
        ("line", 5, "malformed_json", str(path)),
        ("line", 10, "empty_completion", str(path)),
    ]


def test_too_many_bad_lines_refuse_the_build_and_name_the_reason(tmp_path: Path) -> None:
    path = ratings(tmp_path / "r.jsonl", 10)
    path.write_text(path.read_text() + '{"prompt": "p", "completion": "c", "score": "good"}\n')
    with pytest.raises(UserError, match=r"1 of 41 lines .*score_not_a_number.*line 41"):
        build(path, tmp_path / "out", options=OPTIONS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("ours", [False, True])
def test_a_folder_that_holds_anything_else_is_left_alone(tmp_path: Path, ours: bool) -> None:
    path, out = ratings(tmp_path / "r.jsonl", 5), tmp_path / "out"
    if ours:
        build(path, out, options=OPTIONS)
    out.mkdir(exist_ok=True)
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"also holds thesis\.tex" if ours else "holds something else"):
        build(path, out, options=OPTIONS)
    assert (out / "thesis.tex").read_text() == "mine"


def test_no_pair_is_an_error_that_says_why(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "r.jsonl", [{"prompt": "p", "completion": "c", "score": 3}])
    with pytest.raises(UserError, match=r"no pair.*single_completion 1"):
        build(path, tmp_path / "out", options=OPTIONS)
    assert not (tmp_path / "out").exists()


def test_mixed_scales_are_listed(tmp_path: Path) -> None:
    for name, high in (("a", 5), ("b", 10)):
        options = BuildOptions(format="jsonl", scale=(1, high), feedback_only=True)
        build(ratings(tmp_path / f"{name}.jsonl", 5), tmp_path / name, options=options)
    both = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(UserError, match=r"mix 2 scales: 1..5 .*rater a.*; 1..10 .*rater b"):
        build(both, tmp_path / "out", options=BuildOptions(format="feedback"))
    build(both, tmp_path / "out", options=BuildOptions(format="feedback", normalise="minmax"))
    assert load_pairs(tmp_path / "out").num_rows == 30


def test_workers_change_nothing(tmp_path: Path) -> None:
    path = ratings(tmp_path / "r.jsonl", 6000)
    for workers in (1, 2):
        build(path, tmp_path / str(workers), options=BuildOptions(format="jsonl", workers=workers))
    one, two = (load_pairs(tmp_path / name).replace_schema_metadata(None) for name in "12")
    assert one.equals(two)
    names = [sorted(str(p.relative_to(tmp_path / run)) for p in (tmp_path / run).rglob("*")) for run in "12"]
    assert names[0] == names[1]


BUILD = """
import sys
from mmpo.pipeline import BuildOptions, build
build(sys.argv[1], sys.argv[2], options=BuildOptions(format="jsonl", workers=2))
print("done", flush=True)
"""


@pytest.mark.slow
def test_killed_at_twenty_random_moments_the_old_or_the_new_folder_stands(tmp_path: Path) -> None:
    old, new = ratings(tmp_path / "old.jsonl", 500, "old"), ratings(tmp_path / "new.jsonl", 5000, "new")
    out = tmp_path / "out"
    build(old, out, options=BuildOptions(format="jsonl"))
    before = load_pairs(out)
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", BUILD, str(new), str(tmp_path / "fresh")], check=True, capture_output=True)
    whole = time.monotonic() - start
    after = load_pairs(tmp_path / "fresh")
    random.seed(0)
    outcomes = set()
    for moment in range(20):
        process = subprocess.Popen([sys.executable, "-c", BUILD, str(new), str(out)], stdout=subprocess.PIPE)
        time.sleep(whole * (0.4 + 0.6 * (moment + random.random()) / 20))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        found = load_pairs(out).replace_schema_metadata(None)
        is_old = found.equals(before.replace_schema_metadata(None))
        assert is_old or found.equals(after.replace_schema_metadata(None))
        outcomes.add(is_old)
        if not is_old:
            shutil.rmtree(out)
            build(old, out, options=BuildOptions(format="jsonl"))
    assert True in outcomes
    build(old, out, options=BuildOptions(format="jsonl"))
    assert [path.name for path in tmp_path.glob(".out.part-*")] == []


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    """A file system of its own in a user namespace, small enough to run full."""
    script = (
        f"mkdir {tmp_path}/small && mount -t tmpfs -o size=600k tmpfs {tmp_path}/small && "
        f"{sys.executable} -c '{BUILD}' {ratings(tmp_path / 'r.jsonl', 4000)} {tmp_path}/small/out; code=$?; "
        f"ls -A {tmp_path}/small; exit $code"
    )
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace can be made here")
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert "the disk is full; nothing was written" in done.stderr
    assert done.stdout.strip() == ""
