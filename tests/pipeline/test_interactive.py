"""What Python shows: short lines for summaries, tables and folders, nothing of data unescaped; and an interrupted build leaves nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pyarrow as pa
import pytest
from command import graded, wait_for
from folders import contents, write_rows

import mmpo.annotate
import mmpo.pipeline
import mmpo.train
from mmpo.pipeline import BuildOptions, DatasetFolder, UserError, build, build_pairs, read_feedback, show, validate
from mmpo.pipeline.interactive import Summary, shown_table

SAMPLE = "data/human_graded_pairs.jsonl"


@pytest.mark.parametrize("package", [mmpo.pipeline, mmpo.annotate, mmpo.train], ids=lambda package: package.__name__)
def test_dir_is_the_surface(package: object) -> None:
    assert dir(package) == sorted(package.__all__)  # type: ignore[attr-defined]


def test_a_build_prints_as_a_line_and_is_still_a_dict(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "grades.jsonl", [*graded(20), *graded(20)[:1]])
    summary = build([source], tmp_path / "pairs", options=BuildOptions(format="jsonl", split=(0.5, 0, 0.5), ties="drop"))
    assert isinstance(summary, dict) and json.loads(orjson.dumps(summary)) == json.loads(json.dumps(summary)) == dict(summary)
    counts = summary["pairs"]
    assert repr(summary).startswith(f"Pairs: {counts['train']} train, 0 validation, {counts['test']} test; 20 prompts; ")
    assert repr(DatasetFolder(tmp_path / "pairs")) == repr(show(tmp_path / "pairs"))
    assert repr(show(tmp_path / "pairs")).startswith(f"Pairs: {counts['train']} train, 0 validation")
    assert len(DatasetFolder(tmp_path / "pairs")) == sum(counts.values())
    assert repr(validate(tmp_path / "pairs")).startswith("Sound: ")
    with pytest.raises(UserError, match="none"):
        show(tmp_path / "none")


def test_tables_in_a_line() -> None:
    feedback = read_feedback(SAMPLE, "jsonl", scale=(-2, 2))
    pairs = build_pairs(feedback)
    assert repr(show(feedback)) == "Feedback: 183 prompts; 366 completions, 366 comparisons by annotator-1, annotator-2"
    ties = sum(margin == 0 for margin in pairs["quality_margin"].to_pylist())
    mean = sum(pairs["quality_margin"].to_pylist()) / 183
    assert repr(show(pairs)) == f"Pairs: 183 of 183 prompts; margins 0 to 2, {mean:.4g} in the mean; {ties} ties"
    assert repr(show(pairs.slice(0, 0))) == "Pairs: none"
    assert repr(show(feedback.slice(0, 0))) == "Feedback: 0 prompts;  by nobody"


def test_data_is_escaped() -> None:
    bad = "<script>alert(1)</script>"
    table = pa.table({"prompt": [[{"role": "user", "content": bad}]], "quality_margin": [1.0], "prompt_id": ["a"]})
    shown = shown_table(table)._repr_html_() + Summary({bad: bad})._repr_html_()
    assert "<script" not in shown and "&lt;script&gt;" in shown


BUILD = """
import sys, time
from pathlib import Path
from mmpo.pipeline import BuildOptions, build
def progress(stage, done, total):
    Path(sys.argv[3]).touch()
    time.sleep(.5)
try:
    build([sys.argv[1]], sys.argv[2], options=BuildOptions(format="jsonl", workers=2), progress=progress)
except KeyboardInterrupt:
    print("interrupted")
"""


def children(process: int) -> list[str]:
    """The processes that a process has started and that run still, with what they run."""
    return Path(f"/proc/{process}/task/{process}/children").read_text().split()


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="asks /proc for the processes that are left")
def test_an_interrupted_cell_leaves_nothing(tmp_path: Path) -> None:
    """A notebook interrupts its kernel alone, where Ctrl-C on a terminal reaches every process."""
    for part in range(6):
        write_rows(tmp_path / "grades" / f"{part}.jsonl", graded(8000)[part::6])
    began = tmp_path / "began"
    line = [sys.executable, "-c", BUILD, str(tmp_path / "grades"), str(tmp_path / "pairs"), str(began)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert wait_for(began.exists, process)
            left = children(process.pid)
            assert left
            os.kill(process.pid, signal.SIGINT)
            said, _ = process.communicate(timeout=30)
        finally:
            process.kill()
    assert said.strip() == "interrupted" and process.returncode == 0
    assert sorted({name.split("/")[0] for name in contents(tmp_path)}) == ["began", "grades"]
    until = time.monotonic() + 10
    while [one for one in left if Path(f"/proc/{one}").exists()] and time.monotonic() < until:
        time.sleep(0.05)
    assert [one for one in left if Path(f"/proc/{one}").exists()] == []
