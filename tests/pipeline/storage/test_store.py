"""Folders that are written whole or not at all: kills, full disks, foreign folders, and what a dataset holds."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from folders import changed, contents, feedback_folder, pairs_folder, read_table, write_rows

from mmpo.pipeline import PAIRS, BuildOptions, UserError, build, load_pairs, validate
from mmpo.pipeline.tables import REJECTS, metadata

RATED = {"kind": "human", "scale": (1, 5)}


def ratings(prompts: int, mark: str = "") -> list[dict[str, Any]]:
    answers = list(enumerate(f"answer {c}{mark} " * 40 for c in range(4)))
    return [
        {"prompt": f"question {p}", "completion": answer, "score": 1 + (p + c) % 5} for p in range(prompts) for c, answer in answers
    ]


def test_a_dataset_opens_with_datasets_and_holds_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = build(write_rows(tmp_path / "r.jsonl", ratings(80)), tmp_path / "out", options=BuildOptions(format="jsonl", **RATED))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {name: split.num_rows for name, split in loaded.items()} == {k: v for k, v in summary["pairs"].items() if v}
    assert sum(summary["pairs"].values()) == summary["prompts"] * 6 == 480
    schema = pq.read_schema(tmp_path / "out/train/part-00000.parquet")
    assert schema.remove_metadata().equals(PAIRS)
    assert metadata(schema)["schema_version"] == 1
    assert metadata(schema)["scales"] == [[1, 5]]
    assert pq.read_schema(tmp_path / "out/rejects.parquet").remove_metadata().equals(REJECTS)
    assert validate(tmp_path / "out")["ok"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_a_prompt_that_is_not_the_one_of_its_id_fails_wherever_its_row_is(tmp_path: Path) -> None:
    pairs_folder(tmp_path / "out", ratings(80), **RATED)
    part = tmp_path / "out/train/part-00000.parquet"
    table = read_table(part)
    names = table["prompt_id"].to_pylist()
    row = next(i for i in range(1, len(names)) if names[i] == names[i - 1])
    pq.write_table(changed(table, "prompt", {row: [{"role": "user", "content": "another question"}]}), part)
    checked = validate(tmp_path / "out")
    failed = [check for check in checked["checks"] if check["status"] == "fail"]
    assert not checked["ok"]
    assert any(f"row {row}" in check["message"] for check in failed), failed


def test_a_dataset_with_anything_else_in_it_is_left_alone(tmp_path: Path) -> None:
    out = pairs_folder(tmp_path / "out", ratings(5), **RATED)
    (out / "thesis.tex").write_text("mine")
    before = contents(out)
    with pytest.raises(UserError, match=r"also holds thesis\.tex"):
        pairs_folder(out, ratings(5), **RATED)
    assert contents(out) == before


def test_mixed_scales_are_listed(tmp_path: Path) -> None:
    both = [feedback_folder(tmp_path / name, ratings(5), scale=(1, high)) for name, high in (("a", 5), ("b", 10))]
    with pytest.raises(UserError, match=r"mix 2 scales: 1..5 .*rater a.*; 1..10 .*rater b"):
        build(both, tmp_path / "out", options=BuildOptions(format="feedback"))
    build(both, tmp_path / "out", options=BuildOptions(format="feedback", normalise="minmax"))
    assert load_pairs(tmp_path / "out").num_rows == 30


def test_workers_change_nothing(tmp_path: Path) -> None:
    for workers in (1, 2):
        pairs_folder(tmp_path / str(workers), ratings(6000), workers=workers)
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
    old, out, new = ratings(500, "old"), tmp_path / "out", write_rows(tmp_path / "new.jsonl", ratings(5000, "new"))
    before = load_pairs(pairs_folder(out, old)).replace_schema_metadata(None)
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", BUILD, str(new), str(tmp_path / "fresh")], check=True, capture_output=True)
    whole = time.monotonic() - start
    after = load_pairs(tmp_path / "fresh").replace_schema_metadata(None)
    random.seed(0)
    outcomes = set()
    for moment in range(20):
        process = subprocess.Popen([sys.executable, "-c", BUILD, str(new), str(out)], stdout=subprocess.PIPE)
        time.sleep(whole * (0.4 + 0.6 * (moment + random.random()) / 20))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        found = load_pairs(out).replace_schema_metadata(None)
        is_old = found.equals(before)
        assert is_old or found.equals(after)
        outcomes.add(is_old)
        if not is_old:
            shutil.rmtree(out)
            pairs_folder(out, old)
    assert True in outcomes
    pairs_folder(out, old)
    assert [path.name for path in tmp_path.glob(".out.part-*")] == []


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    """A file system of its own in a user namespace, small enough to run full."""
    script = (
        f"mkdir {tmp_path}/small && mount -t tmpfs -o size=600k tmpfs {tmp_path}/small && "
        f"{sys.executable} -c '{BUILD}' {write_rows(tmp_path / 'r.jsonl', ratings(4000))} {tmp_path}/small/out; code=$?; "
        f"ls -A {tmp_path}/small; exit $code"
    )
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace can be made here")
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert "the disk is full; nothing was written" in done.stderr
    assert done.stdout.strip() == ""
