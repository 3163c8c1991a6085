"""Inputs beyond the memory that a build may take: the same dataset in any memory, disk that grows with the input, and what is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import contents, write_rows

from mmpo.pipeline import BuildOptions, UserError, build
from mmpo.pipeline.build import stages
from mmpo.pipeline.build.workers import check_space, plan_build

WORDS = np.array([f"{stem}{end}" for stem in ("ab", "cor", "dun", "fel", "gri") for end in ("al", "em", "is", "ot", "ur")])


def graded(prompts: int, seed: int = 0, completions: int = 3) -> list[dict[str, Any]]:
    """So many completions of each prompt, each graded by two raters who differ, in words that hardly repeat."""
    draw = np.random.default_rng(seed)
    rows = []
    for number in range(completions * prompts):
        row = {"prompt": f"question {seed} {number % prompts}", "completion": f"{number} {' '.join(draw.choice(WORDS, 60))}"}
        rows += [{**row, "rater": f"r{rater}", "score": float(draw.integers(0, 4) + number % 9) / 3} for rater in range(2)]
    return rows


def files(folder: Path, count: int, prompts: int) -> Path:
    """A folder with so many files of graded rows."""
    folder.mkdir()
    for number in range(count):
        write_rows(folder / f"{number:02d}.jsonl", graded(prompts, number))
    return folder


def built(source: Path, out: Path, *, group_bytes: int = 1 << 30, **options: Any) -> dict[str, bytes | None]:
    """What a build leaves, file by file."""
    how = BuildOptions(format="jsonl", scale=(0, 4), **options)
    build(source, out, options=how, partition_bytes=64 << 10, group_bytes=group_bytes)
    return contents(out)


@pytest.mark.parametrize(
    "options",
    [{"normalise": "zscore"}, {"merge_raters": "rater-effects"}, {"feedback_only": True}, {"max_per_prompt": 1, "max_chars": 350}],
    ids=str,
)
def test_the_dataset_is_the_same_with_any_memory_and_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(stages, "BATCH_BYTES", 50_000)  # so that row groups end inside of what is read together
    source = files(tmp_path / "in", 3, 50)
    first = built(source, tmp_path / "a", workers=1, memory="8GB", **options)
    assert len(first) > 5
    for name, how in {
        "b": {"workers": 2, "memory": "1.5GB", "group_bytes": 150_000},
        "c": {"workers": 1, "memory": "480MiB", "group_bytes": 20_000},  # less than a cell: all is cut again
        "d": {"workers": 3, "scratch": tmp_path},
    }.items():
        assert built(source, tmp_path / name, **how, **options) == first
    assert {path.name for path in tmp_path.iterdir()} == {"in", "a", "b", "c", "d"}


@pytest.mark.parametrize(
    ("memory", "workers", "message"),
    [
        (
            "100MB",
            None,
            r"--memory 100 MB is too little for a batch of pairs: a process needs 470 MB at least \(--memory 470MB\)\.$",
        ),
        ("1GB", 2, r"--memory 1.0 GB is too little .*: 2 processes need 1150 MB at least .* With fewer --workers it is less"),
        ("2 cups", None, r"memory: '2 cups' is no size; write 2GB or 512MiB"),
        (0, None, "memory: 0"),
    ],
)
def test_memory_that_is_too_little_is_refused_with_the_least(
    tmp_path: Path, memory: str | int, workers: int | None, message: str
) -> None:
    write_rows(tmp_path / "in.jsonl", graded(100))
    with pytest.raises(UserError, match=message):
        built(tmp_path / "in.jsonl", tmp_path / "out", memory=memory, workers=workers)
    assert not (tmp_path / "out").exists()


def test_the_least_that_is_named_is_enough() -> None:
    for workers in (1, 4):
        with pytest.raises(UserError) as refused:
            plan_build(10**9, 10**9, 100, workers, 10**6, None, 8 << 20)
        least = int(str(refused.value).partition("(--memory ")[2].partition("MB")[0]) * 10**6
        assert plan_build(10**9, 10**9, 100, workers, least, None, 8 << 20).workers == workers


@pytest.mark.parametrize("size", [10**6, 10**9, 10**11, 10**13])
def test_a_plan_of_any_size_keeps_batches_large_and_memory_bounded(size: int) -> None:
    for memory in (2 * 10**9, 4 * 10**9, 10**12):
        plan = plan_build(size, size, 10**6, 2, memory, None, 8 << 20)
        assert plan.shards * plan.cells <= max(plan.shards, min(plan.run, plan.task) // (256 << 10))
        assert plan.workers * 6 * plan.group < memory and plan.workers * 3 * plan.run < memory
        assert plan.shards == plan_build(size, size, 10**6, 1, 8 * 10**9, None, 8 << 20).shards


def test_temporary_files_grow_with_the_input_and_not_beyond_it(tmp_path: Path) -> None:
    """One file and sixteen, each a chunk, cut so small that a build as it was would have written a batch for each of many cells."""

    def spilled(count: int) -> float:
        source, most = files(tmp_path / f"in{count}", count, 120), 0  # of fewer rows the schemas of one more shard are 6%

        def look(stage: str, done: int, total: int) -> None:
            nonlocal most
            most = max(
                most, sum(len(one) for name, one in contents(tmp_path / "scratch").items() if one and name.endswith(".spill"))
            )

        (tmp_path / "scratch").mkdir(exist_ok=True)
        how = BuildOptions(format="jsonl", scale=(0, 4), workers=1, scratch=tmp_path / "scratch")
        build(source, tmp_path / f"out{count}", options=how, progress=look, partition_bytes=64 << 10, group_bytes=200_000)
        return most / sum(path.stat().st_size for path in source.iterdir())

    one, sixteen = spilled(1), spilled(16)
    assert 0.05 < one <= 1.2
    assert sixteen <= 1.05 * one


@pytest.mark.slow
def test_four_times_the_input_takes_four_times_the_disk_and_no_more_memory() -> None:
    """114 MB of real grades and 456 MB, in the least memory; the benchmark looks on from outside."""
    script = Path(__file__).parents[3] / "benchmarks" / "build.py"
    how = ["--copies", "30", "--sizes", "1,4", "--memory", "480MiB", "--runs", "1", "--json"]
    done = subprocess.run([sys.executable, str(script), *how], capture_output=True, text=True, check=True)
    ratios = json.loads(done.stdout.splitlines()[-1])["ratios"]
    assert 0.1 < ratios["disk_over_input"] <= 1.2
    assert ratios["disk_growth_over_linear"] <= 1.05
    assert ratios["memory_4x_over_1x"] <= 1.15
    assert ratios["memory_mib"] <= 480


def test_a_prompt_that_is_larger_than_all_that_is_read_together_is_built_and_told(tmp_path: Path) -> None:
    """5,000 completions of one prompt beside others, where 100 kB are read together."""
    rows = [{"prompt": "the one", "completion": f"answer {number}", "score": number % 100} for number in range(5000)]
    write_rows(tmp_path / "in.jsonl", rows + graded(50))
    how = BuildOptions(format="jsonl", strategy="adjacent", scale=(0, 100), workers=1)
    made = build(tmp_path / "in.jsonl", tmp_path / "out", options=how, group_bytes=100_000)
    assert made["prompts"] == 51
    assert sum(made["pairs"].values()) == 4999 + 50 * 2
    assert not [line for line in made["warnings"] if "completions" in line]
    write_rows(tmp_path / "in.jsonl", rows[:500] + graded(50))
    made = build(tmp_path / "in.jsonl", tmp_path / "out", options=BuildOptions(format="jsonl", scale=(0, 100), workers=1))
    [told] = [line for line in made["warnings"] if "completions" in line]
    assert "has 500 completions, which make 124,750 of the 124,900 pairs" in told and "--max-per-prompt" in told


def test_a_disk_that_is_too_small_is_refused_with_what_is_needed(tmp_path: Path) -> None:
    check_space(tmp_path, 1000.0, "temporary files")
    with pytest.raises(UserError, match=r"temporary files need about 1,000,000.0 TB more, and .* are free.*--scratch"):
        check_space(tmp_path, 1e18, "temporary files")
    write_rows(tmp_path / "in.jsonl", graded(5))
    with pytest.raises(UserError, match=r"--scratch .*gone: no such folder"):
        built(tmp_path / "in.jsonl", tmp_path / "out", scratch=tmp_path / "gone")


BUILD = (
    "import sys; from mmpo.pipeline import BuildOptions, build; "
    'build(sys.argv[1], sys.argv[2], options=BuildOptions(format="jsonl", scale=(0, 4), workers=2, scratch=sys.argv[3]))'
)


@pytest.mark.parametrize("small", ["scratch", "out"])
def test_a_full_disk_is_told_with_what_was_held_and_leaves_nothing(tmp_path: Path, small: str) -> None:
    """A file system of its own in a mount namespace, too small for the temporary files, or for the dataset."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace can be made here")
    source = files(tmp_path / "in", 4, 400)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "out").mkdir()
    script = (
        f"mount -t tmpfs -o size=250k tmpfs {tmp_path}/{small} && {sys.executable} -c '{BUILD}' {source} {tmp_path}/out/set "
        f"{tmp_path}/scratch; code=$?; ls -A {tmp_path}/out {tmp_path}/scratch; exit $code"
    )
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    told = done.stderr.splitlines()[-1]
    assert told.startswith("mmpo.pipeline.errors.UserError: the disk")
    assert "need about" in told or "more was needed" in told
    assert done.stdout.split() == [f"{tmp_path}/out:", f"{tmp_path}/scratch:"]


def test_a_process_that_the_system_ends_is_told(tmp_path: Path) -> None:
    """As when memory runs out: the first worker that has read ends itself."""
    source = files(tmp_path / "in", 2, 400)
    (tmp_path / "scratch").mkdir()
    ends = 'import os; sys.modules["mmpo.pipeline.build.reading"].write_spill = lambda *_: os.kill(os.getpid(), 9); build(sys'
    code = BUILD.replace("build(sys", ends, 1)
    command = [sys.executable, "-c", code, str(source), str(tmp_path / "out"), str(tmp_path / "scratch")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    told = done.stderr.splitlines()[-1]
    assert told.startswith("mmpo.pipeline.errors.UserError: a process of the build was ended from outside") and "--memory" in told
    assert not contents(tmp_path / "scratch")


def test_what_a_killed_build_left_in_a_scratch_folder_goes_with_the_next(tmp_path: Path) -> None:
    source = files(tmp_path / "in", 2, 400)
    (tmp_path / "scratch").mkdir()
    code = BUILD.replace("build(sys", "import os; build(sys", 1).removesuffix(")") + (
        ", progress=lambda *_: os.kill(os.getpid(), 9))"
    )
    command = [sys.executable, "-c", code, str(source), str(tmp_path / "out"), str(tmp_path / "scratch")]
    assert subprocess.run(command, capture_output=True).returncode == -9
    [left] = os.listdir(tmp_path / "scratch")
    assert any(name.endswith(".spill") for name in contents(tmp_path / "scratch" / left))
    assert built(source, tmp_path / "out", scratch=tmp_path / "scratch")
    assert not contents(tmp_path / "scratch")
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out", "scratch"}
