"""Datasets, folders and files that are whole or not there: kills, full disks, leftovers; and locks that die with their holder."""

import os
import random
import shutil
import signal
import socket
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
from mmpo.pipeline.storage import atomic_file, atomic_folder, file_lock, is_leftover
from mmpo.pipeline.tables import REJECTS, metadata

KILLS = int(os.environ.get("MMPO_KILLS", "8"))
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
    assert metadata(schema)["schema_version"] == 2
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
    failed = {check["name"]: check["message"] for check in checked["checks"] if check["status"] == "fail"}
    assert "digests" in failed and failed["prompt ids"].endswith(f"train/part-00000.parquet, row {row + 1}"), failed


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
def test_killed_at_random_moments_the_old_or_the_new_folder_stands(tmp_path: Path) -> None:
    old, out, new = ratings(500, "old"), tmp_path / "out", write_rows(tmp_path / "new.jsonl", ratings(5000, "new"))
    before = load_pairs(pairs_folder(out, old)).replace_schema_metadata(None)
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", BUILD, str(new), str(tmp_path / "fresh")], check=True, capture_output=True)
    whole = time.monotonic() - start
    after = load_pairs(tmp_path / "fresh").replace_schema_metadata(None)
    random.seed(0)
    outcomes = set()
    for moment in range(KILLS):
        process = subprocess.Popen([sys.executable, "-c", BUILD, str(new), str(out)], stdout=subprocess.PIPE)
        time.sleep(whole * (0.4 + 0.6 * (moment + random.random()) / KILLS))
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


# Files, folders and locks

DEAD = 2**22 + 1  # above the largest process id that Linux gives out


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "in/a.txt"
    with atomic_file(path) as temporary:
        temporary.write_text("old")
        assert not path.exists()
    with pytest.raises(RuntimeError), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert contents(tmp_path) == {"in": None, "in/a.txt": b"old"}


@pytest.mark.parametrize("writer", [atomic_file, atomic_folder])
def test_what_a_killed_process_of_the_same_id_left_is_removed(tmp_path: Path, writer: Any) -> None:
    """In a container every start may have the same process id, and the same first number."""
    with atomic_folder(tmp_path / "out") as one:
        start, _, number = one.name.rpartition("-")
    (tmp_path / "out").rmdir()
    for later in (1, 2):  # the names that this process gives next
        (tmp_path / f"{start}-{int(number) + later}").mkdir()
        (tmp_path / f"{start}-{int(number) + later}/part").touch()
    with writer(tmp_path / "out") as one:
        one.exists() or one.mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_in_place_of_a_file_must_be_empty(tmp_path: Path) -> None:
    for name, work in (("file", lambda path: path.write_text("x")), ("folder", lambda path: path.mkdir())):
        (tmp_path / name).mkdir()
        with atomic_file(tmp_path / name, over_empty_folder=True) as temporary:
            work(temporary)
    assert contents(tmp_path) == {"file": b"x", "folder": None}
    (tmp_path / "folder/note").write_text("mine")
    for name, message in (("folder", r"cannot write .*folder.*directory"), ("file/below", r"cannot write .*below")):
        with pytest.raises(UserError, match=message), atomic_file(tmp_path / name) as temporary:
            temporary.write_text("x")
    assert contents(tmp_path) == {"file": b"x", "folder": None, "folder/note": b"mine"}


def test_a_folder_takes_the_place_of_another_or_leaves_it(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with atomic_folder(tmp_path / "out") as folder:
            (folder / content).write_text(content)
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "out") as folder:
        (folder / "half").write_text("half")
        raise RuntimeError
    assert contents(tmp_path) == {"out": None, "out/new": b"new"}


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    host, path = socket.gethostname(), tmp_path / "a[1].txt"
    names = [
        f".a[1].txt.part-{host}-{DEAD}-0",  # dead
        f".a[1].txt.part-{host}-{os.getpid()}-99999",  # of a process that had our id
        f".a[1].txt.part-{host}-{os.getppid()}-0",  # alive
        ".a[1].txt.part-elsewhere-17-0",  # fresh
        ".a[1].txt.part-else-where-17-0",  # an hour old
        f".a1.txt.part-{host}-{DEAD}-0",  # of another file
        ".a[1].txt.part-mine",
        f".a[1].txt.part-{host}-{DEAD}-3.gone",  # dead while it removed it
    ]
    for name in names:
        (tmp_path / name).touch()
    os.utime(tmp_path / names[4], (time.time() - 4000,) * 2)
    assert [is_leftover(tmp_path / name, path) for name in names] == [True, True, False, False, True, False, False, True]
    with pytest.raises(UserError, match="meanwhile"), atomic_file(path) as first, atomic_file(path) as second:
        second.write_text("second")
        first.write_text("first")
    assert path.read_text() == "second"
    assert sorted(contents(tmp_path)) == sorted([names[2], names[3], names[5], names[6], "a[1].txt"])


HOLD = """
import subprocess, sys, time
from mmpo.pipeline.storage import file_lock
with file_lock(sys.argv[1], "taken") as lock:
    child = subprocess.Popen(["sleep", sys.argv[2]], pass_fds=(lock,)) if sys.argv[2] != "0" else None
    print(child.pid if child else 0, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("child_seconds", ["0", "1"])
def test_a_lock_ends_with_the_last_who_holds_it(tmp_path: Path, child_seconds: str) -> None:
    path = tmp_path / "x.lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path), child_seconds], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    try:
        with pytest.raises(UserError, match="wait for the other"), file_lock(path, "wait for the other"):
            pass
        began = time.monotonic()
        with pytest.raises(UserError, match="still taken"), file_lock(path, "still taken", seconds=0.3):
            pass
        assert time.monotonic() - began >= 0.3
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.communicate()
    with file_lock(path, "taken", seconds=10) as lock:
        assert lock is not None
        with pytest.raises(UserError, match="taken"), file_lock(path, "taken", optional=True):
            pass


def test_where_there_can_be_no_lock_one_may_go_on_without(tmp_path: Path) -> None:
    path = tmp_path / "missing/x.lock"
    with pytest.raises(FileNotFoundError), file_lock(path, "taken"):
        pass
    with file_lock(path, "taken", optional=True) as lock:
        assert lock is None
