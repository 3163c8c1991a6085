"""Builds on Ray whose workers, nodes, head or driver are killed: the files and digests of a build that nobody disturbed, or a refusal."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command import MAIN, mmpo, wait_for
from ray_cases import environment, inside, mmpo_inside, namespace_of, processes_in, run_inside, workers_of

pytestmark = pytest.mark.slow
ROWS = 40_000
KILLS = int(os.environ.get("MMPO_KILLS", "4"))
Written = tuple[list[str], dict[str, Any]]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """The words of a build without its output, of some 20 MB, and the manifest of what it makes on this machine."""
    tmp_path = tmp_path_factory.mktemp("undisturbed")
    words = random.Random(0).choices([f"word{number}" for number in range(5000)], k=80 * ROWS)
    with open(tmp_path / "grades.jsonl", "w", encoding="utf-8") as file:
        for number in range(ROWS):
            said = " ".join(words[80 * number : 80 * number + 60])
            row = {
                "prompt": f"Question {number // 4}",
                "completion": said,
                "score": 1 + number * 31 % 10,
                "rater": f"r{number % 3}",
            }
            file.write(json.dumps(row) + "\n")
    line = ["build", str(tmp_path / "grades.jsonl"), "--format", "jsonl", "--scale", "1:10", "--raters", "rater-effects"]
    assert mmpo(*line, "--out", tmp_path / "local").returncode == 0
    return line, manifest(tmp_path / "local")


def manifest(folder: Path) -> dict[str, Any]:
    """Without the engine."""
    return {name: value for name, value in json.loads((folder / "manifest.json").read_text()).items() if name != "engine"}


def start(words: list[str], out: Path, *more: str) -> "subprocess.Popen[str]":
    line = [*inside(), sys.executable, "-c", MAIN, *words, "--out", str(out), "--engine", "ray", "--workers", "2", *more]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())


def test_workers_killed_at_random_moments(tmp_path: Path, written: Written) -> None:
    words, whole = written
    draw, killed = random.Random(0), 0
    for attempt in range(KILLS):
        with start(words, tmp_path / "ray") as process:
            try:
                while process.poll() is None and killed < KILLS:
                    if wait_for(lambda: workers_of(process.pid), process):
                        time.sleep(draw.random() / 2)
                        for one in workers_of(process.pid)[:1]:
                            os.kill(one, signal.SIGKILL)
                            killed += 1
                _, said = process.communicate(timeout=120)
            finally:
                process.kill()
        assert process.returncode == 0, said
        assert manifest(tmp_path / "ray") == whole, attempt
        if killed >= KILLS:
            break
    assert killed == KILLS
    assert [path.name for path in tmp_path.iterdir()] == ["ray"]


NODE = """
import json, sys
from ray_cases import cluster
from mmpo.pipeline import BuildOptions, build

ray = cluster(1)
nodes = [ray.add_node(num_cpus=1, object_store_memory=200 << 20) for _ in range(2)]
ray.wait_for_nodes()
lost = []

def lose(stage: str, done: int, all: int) -> None:
    if stage not in lost and 2 * done > all:
        ray.remove_node(nodes.pop(), allow_graceful=False)
        lost.append(stage)

own = {"engine": "ray", "ray_address": ray.address}
options = BuildOptions(format="jsonl", scale=(1, 10), merge_raters="rater-effects", **own)
build(sys.argv[1], sys.argv[2], options=options, progress=lose)
ray.shutdown()
print(json.dumps(lost))
"""


@pytest.mark.whole
def test_two_nodes_of_three_are_lost(tmp_path: Path, written: Written) -> None:
    words, whole = written
    assert run_inside(NODE, words[1], tmp_path / "ray") == ["read", "write"]
    assert manifest(tmp_path / "ray") == whole


HEAD = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
from command import MAIN, wait_for
from ray_cases import cluster, workers_of

port, out, words = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
line = [sys.executable, "-c", MAIN, *words, "--out", str(out), "--engine", "ray", "--ray-address", f"127.0.0.1:{port}"]
said = []
for killed in (True, False):
    ray = cluster(1, num_cpus=2, gcs_server_port=port)
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as process:
        if killed:
            assert wait_for(lambda: workers_of(os.getpid()), process)
            for one in workers_of(os.getpid()):
                os.kill(one, signal.SIGSTOP)  # what is at work may well end without the head, and the build with it
            ray.head_node.kill_gcs_server()
        began = time.monotonic()
        error = process.communicate(timeout=120)[1]
        said.append([process.returncode, error, time.monotonic() - began, sorted(path.name for path in out.parent.glob(".*"))])
    ray.shutdown()
print(json.dumps(said))
"""


def test_the_head_is_killed_and_the_same_command_begins_anew(tmp_path: Path, written: Written) -> None:
    words, whole = written
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    (code, said, seconds, left), (again, *_) = run_inside(HEAD, port, tmp_path / "ray", *words)
    assert code == 2
    assert f"the head of the Ray cluster at 127.0.0.1:{port} is gone" in said
    assert seconds < 50, "Ray itself takes a minute, and says nothing"
    assert left == []
    assert again == 0
    assert manifest(tmp_path / "ray") == whole


@pytest.mark.parametrize(("by", "code", "left"), [(signal.SIGKILL, -signal.SIGKILL, 1), (signal.SIGINT, 130, 0)])
def test_the_driver_is_killed_or_interrupted(tmp_path: Path, written: Written, by: int, code: int, left: int) -> None:
    words, whole = written
    with start(words, tmp_path / "ray") as process:
        try:
            assert wait_for(lambda: workers_of(process.pid), process)
            namespace = namespace_of(process.pid)
            process.send_signal(by)
            began = time.monotonic()
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == code, said
    assert "Traceback" not in said
    assert time.monotonic() - began < 20
    assert len(list(tmp_path.glob(".ray.*"))) == left
    assert mmpo_inside(*words, "--out", tmp_path / "ray", "--engine", "ray").returncode == 0
    assert manifest(tmp_path / "ray") == whole
    assert not list(tmp_path.glob(".ray.*")), "what the killed one left is gone"
    assert wait_for(lambda: not processes_in(namespace), seconds=120), processes_in(namespace)


THEIRS = """
import json, signal, sys
from pathlib import Path
import ray
from mmpo.pipeline import BuildOptions, build

out = Path(sys.argv[2])
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
options = BuildOptions(format="jsonl", scale=(1, 10), engine="ray")
stopped = []
for at in ("read", "write"):
    def progress(stage, done, every, at=at):
        if stage == at:
            signal.raise_signal(signal.SIGINT)
    try:
        build(sys.argv[1], out, options=options, partition_bytes=200_000, progress=progress)
    except KeyboardInterrupt:
        stopped.append(at)
left = sorted(path.name for path in out.parent.glob("*") if path.name.startswith((".", out.name)))
ray_is_there = ray.get(ray.remote(lambda: "here").remote())
pairs = build(sys.argv[1], out, options=options, partition_bytes=200_000)["pairs"]
print(json.dumps([stopped, left, ray_is_there, ray.is_initialized(), sum(pairs.values())]))
"""


@pytest.mark.whole
def test_a_ray_that_the_user_began_outlives_an_interrupted_build(tmp_path: Path, written: Written) -> None:
    words, whole = written
    stopped, left, answer, there, pairs = run_inside(THEIRS, words[1], tmp_path / "ray")
    assert (stopped, left, answer, there) == (["read", "write"], [], "here", True)
    assert pairs == sum(whole["rows"].values())
