"""Builds on Ray: the files and digests of a build on this machine, the same refusals, and no trace of either."""

import json
from pathlib import Path
from typing import Any

import pytest
from command import mmpo
from folders import contents, write_rows
from ray_cases import mmpo_inside, run_inside

TEXTS = ("A short reply.", "A longer reply, which says more of it.", "Another one.")
KINDS: dict[str, dict[str, Any]] = {
    "pairs": {"merge_raters": "rater-effects", "normalise": "zscore", "duplicates": ["prompts"], "similarity": 0.9, "shingle": 1},
    "feedback": {"feedback_only": True},
}


def rows(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Three replies to each prompt, each graded by two of three raters; every tenth prompt is the one before it."""
    return [
        {
            "prompt": f"Question {number - (number % 10 == 9)}: what of {(number - (number % 10 == 9)) * 7919 % 1000}?",
            "completion": f"{text} {number}",
            "rater": f"rater-{(number + place + one) % 3}",
            "score": 1 + (number * 31 + place * 17 + one * 5) % 10,
        }
        for number in range(first, first + count)
        for place, text in enumerate(TEXTS)
        for one in range(2)
    ]


def digests(folder: Path) -> dict[str, Any]:
    """What the manifest says, but for the engine."""
    return {name: value for name, value in json.loads((folder / "manifest.json").read_text()).items() if name != "engine"}


EVERYTHING = """
import json, sys
from pathlib import Path
from ray_cases import cluster
from mmpo.pipeline import BuildOptions, UserError, build

data, out, kinds = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
common = {"format": "jsonl", "scale": (1, 10)}
said = {}
ray = cluster(2)
for name, more in kinds.items():
    for engine in ({"workers": 1}, {"engine": "ray", "ray_address": ray.address}):
        options = BuildOptions(**common, **more, **engine)
        build(data, out / (name + engine.get("engine", "-local")), options=options, partition_bytes=20_000)
for engine in ({"workers": 1}, {"engine": "ray", "ray_address": ray.address}):
    try:
        build(data, out / "refused", options=BuildOptions(**common, split_by="column:topic", **engine), partition_bytes=20_000)
    except UserError as error:
        said["refused" + engine.get("engine", "-local")] = str(error)

# what is asked of a cluster before it is worked on
from ray._raylet import GcsClient
from mmpo.pipeline.engines import RayCluster
with RayCluster(None, ray.address) as engine:
    engine.check([str(data)])
    try:
        engine.check([str(data), "no/such/file.jsonl"])
    except UserError as error:
        said["unseen"] = str(error)
head = GcsClient(address=ray.address)
about = json.loads(head.internal_kv_get(b"CLUSTER_METADATA", b"cluster"))
for name, other in {"ray_version": "2.40.0", "python_version": "3.9.1"}.items():
    head.internal_kv_put(b"CLUSTER_METADATA", json.dumps({**about, name: other}).encode(), True, b"cluster")
    try:
        RayCluster(None, ray.address).__enter__()
    except UserError as error:
        said[name] = str(error)
ray.shutdown()
ours = about["ray_version"], about["python_version"]
print(json.dumps({"said": said, "left": sorted(path.name for path in out.iterdir()), "ours": ours}))
"""


@pytest.mark.slow
def test_a_cluster_of_two_nodes_builds_what_this_machine_does(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "grades.jsonl", [{**row, "topic": "a"} for row in rows(400)] + [{**rows(1)[0], "topic": "b"}])
    out = tmp_path / "out"
    out.mkdir()
    found = run_inside(EVERYTHING, data, out, json.dumps(KINDS))
    for name in KINDS:
        local, ray = out / f"{name}-local", out / f"{name}ray"
        assert digests(ray) == digests(local), name
        assert {path: held for path, held in contents(ray).items() if path != "manifest.json"} == {
            path: held for path, held in contents(local).items() if path != "manifest.json"
        }
        assert len(digests(local)["files"]) > 1, "one shard would show nothing"
        engine = json.loads((ray / "manifest.json").read_text())["engine"]
        assert engine == {"name": "ray", "version": found["ours"][0], "nodes": 2, "cpus": 2}
        assert json.loads((local / "manifest.json").read_text())["engine"] == {"name": "local"}
    assert found["left"] == sorted(f"{name}{engine}" for name in KINDS for engine in ("-local", "ray"))
    said = found["said"]
    assert said["refusedray"] == said["refused-local"]
    assert "topic" in said["refused-local"]
    assert "no/such/file.jsonl" in said["unseen"]
    assert "node 127.0.0.1" in said["unseen"]
    for name, other in (("ray_version", "2.40.0"), ("python_version", "3.9.1")):
        assert other in said[name]
        assert all(one in said[name] for one in found["ours"])


@pytest.mark.slow
def test_a_ray_of_its_own_goes_with_the_run(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "grades.jsonl", rows(50))
    words = ["build", data, "--format", "jsonl", "--scale", "1:10"]
    local = mmpo(*words, "--out", tmp_path / "local")
    home = {"TMPDIR": str(tmp_path), "HOME": str(tmp_path)}
    ray = mmpo_inside(*words, "--out", tmp_path / "ray", "--engine", "ray", "--workers", "2", **home)
    assert (ray.returncode, local.returncode) == (0, 0), ray.stderr
    assert digests(tmp_path / "ray") == digests(tmp_path / "local")
    said = [
        line for line in ray.stderr.replace(str(tmp_path / "ray"), str(tmp_path / "local")).splitlines() if "build: " not in line
    ]
    assert said == [line for line in local.stderr.splitlines() if "build: " not in line], "Ray's own words are not shown"
    assert ray.stdout == local.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grades.jsonl", "local", "ray"]
