"""Scores by actors of a Ray: those of one process, also where an actor or the run is killed, and from the same cache."""

import json
from collections import Counter
from dataclasses import replace

import pytest
from command import refused
from folders import feedback_folder, read_table
from ray_cases import mmpo_inside, run_inside
from ray_stand_in import StandIn, StandInEngine

from mmpo.pipeline import UserError
from mmpo.pipeline.engines import ENGINES
from mmpo.pipeline.storage import read_manifest
from mmpo.train import score
from mmpo.train.scoring.actors import OnActors

PROMPTS = 40
EVERYTHING = """
import json, os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from ray_cases import cluster, workers_of
from mmpo.pipeline import UserError
from mmpo.train import score
from mmpo.train.inference import ReferenceStore
from mmpo.train.scoring.actors import OnActors

feedback, reward, policy, folder = sys.argv[1:5]
out = Path(folder)
ray = cluster(1, num_cpus=2, _system_config={"worker_niceness": 0})  # as other processes have it; Ray's is 15
# passes of few tokens, so that there are many groups of prompts
common = {"tokens_per_batch": 40, "engine": "ray", "ray_address": ray.address}
plain, stored = ReferenceStore.add, []

def add(store, keys, values):
    plain(store, keys, values)
    stored.extend(f"{store.path.name} {key.hex()}" for key in keys)
    if keys and at_first:
        at_first.pop()()

ReferenceStore.add = add
said = {}

def kill():
    said["killed"] = workers_of(os.getpid())[:1]
    os.kill(said["killed"][0], signal.SIGKILL)

def interrupt():
    raise KeyboardInterrupt

at_first = [kill]
score(feedback, [reward, policy], out / "both", cache=out / "cache", **common)
said["both"] = [len(stored), len(set(stored))]
stored.clear()
at_first = [interrupt]
try:
    score(feedback, reward, out / "stopped", cache=out / "of-stopped", **common)
except KeyboardInterrupt:
    said["stopped"] = [len(stored), (out / "stopped").exists()]
call = OnActors.__call__

def unseen(actors, *arguments):
    moved = Path(actors.name).rename(out / "elsewhere")
    try:
        yield from call(actors, *arguments)
    finally:
        moved.rename(actors.name)

OnActors.__call__ = unseen
try:
    score(feedback, reward, out / "unseen", cache=out / "of-unseen", **common)
except UserError as error:
    said["unseen"] = str(error)
ray.shutdown()
print(json.dumps(said))
"""


def grades_of(folder):
    """{(completion id, rater): score} of a FEEDBACK folder."""
    rows = read_table(folder / "feedback").to_pylist()
    return {
        (row["completions"][grade["completion"]]["id"], grade["rater"]): grade["score"] for row in rows for grade in row["ratings"]
    }


def without_engine(folder):
    """The manifest, but for what depends on the last digits of scores."""
    return {name: value for name, value in read_manifest(folder).items() if name not in ("engine", "files")}


@pytest.fixture(scope="module")
def feedback(tmp_path_factory):
    rows = [{"prompt": f"Question {i}?", "completions": [f"Answer {j} to {i}." for j in range(3)]} for i in range(PROMPTS)]
    return feedback_folder(tmp_path_factory.mktemp("feedback") / "feedback", rows)


def test_actors_give_what_one_process_gives(trained, feedback, tmp_path, monkeypatch):
    """A stand-in for Ray loses the second actor at its second call."""
    calls = Counter()

    def dies(number, name, arguments):
        calls[number, name] += 1
        return number == 2 and name == "call" and calls[number, name] == 2

    ray = StandInEngine.ray = StandIn(dies, pickles=True)
    monkeypatch.setitem(ENGINES, "ray", StandInEngine)
    models = list(trained.values())[::-1]
    score(feedback, models, tmp_path / "local", cache=tmp_path / "of-local", tokens_per_batch=40)
    score(feedback, models, tmp_path / "ray", cache=tmp_path / "cache", tokens_per_batch=40, engine="ray")
    assert ray.created == 3, "for three models"
    local = grades_of(tmp_path / "local")
    assert len(local) == 2 * 3 * PROMPTS
    assert grades_of(tmp_path / "ray") == pytest.approx(local, abs=1e-5)
    assert without_engine(tmp_path / "ray") == without_engine(tmp_path / "local")
    assert read_manifest(tmp_path / "ray")["engine"] == {"name": "stand-in", "actors": 2, "device": "cpu"}
    handed = len(ray.handed)
    score(feedback, models, tmp_path / "again", cache=tmp_path / "of-local", tokens_per_batch=40, engine="ray")
    assert (len(ray.handed), ray.created) == (handed, 3), "the cache is one for both engines"
    assert grades_of(tmp_path / "again") == local


def test_another_model_under_the_same_name_is_told(trained, feedback, tmp_path, monkeypatch):
    StandInEngine.ray = StandIn()
    monkeypatch.setitem(ENGINES, "ray", StandInEngine)
    call = OnActors.__call__

    def changed(actors, *arguments):
        actors.fingerprint = replace(actors.fingerprint, weights="0" * 32)
        yield from call(actors, *arguments)

    monkeypatch.setattr(OnActors, "__call__", changed)
    with pytest.raises(UserError, match=r"node .* is another model there \(weights differ\)"):
        score(feedback, trained["reward"], tmp_path / "out", cache=tmp_path / "cache", engine="ray")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_actors_of_which_one_is_killed_give_what_one_process_gives(trained, feedback, tmp_path, capfd):
    said = run_inside(EVERYTHING, feedback, trained["reward"], trained["policy"], tmp_path, timeout=600)
    score(feedback, list(trained.values())[::-1], tmp_path / "local", cache=tmp_path / "of-local", tokens_per_batch=40)
    local = grades_of(tmp_path / "local")
    assert len(local) == 2 * 3 * PROMPTS
    assert grades_of(tmp_path / "both") == pytest.approx(local, abs=1e-5)
    assert without_engine(tmp_path / "both") == without_engine(tmp_path / "local")
    engine = read_manifest(tmp_path / "both")["engine"]
    assert {**engine, "version": ""} == {"name": "ray", "version": "", "nodes": 1, "cpus": 2, "actors": 2, "device": "cpu"}
    assert read_manifest(tmp_path / "local")["engine"] == {"name": "local"}
    assert said["killed"]
    # a reward model, a policy and its reference
    assert said["both"] == [3 * 3 * PROMPTS, 3 * 3 * PROMPTS], "nothing is stored twice"
    before, written = said["stopped"]
    assert 0 < before < 3 * PROMPTS
    assert not written
    capfd.readouterr()
    score(feedback, trained["reward"], tmp_path / "stopped", cache=tmp_path / "of-stopped")
    assert f"{before} of {3 * PROMPTS} completions are in" in capfd.readouterr().err, "the cache is one for both engines"
    reward = {key: value for key, value in local.items() if key[1] == "reward"}
    assert grades_of(tmp_path / "stopped") == pytest.approx(reward, abs=1e-5)
    assert f"does not see {trained['reward']}" in said["unseen"]
    assert "node 127.0.0.1" in said["unseen"]


@pytest.mark.slow
@pytest.mark.whole
def test_a_ray_of_its_own_goes_with_the_run(trained, feedback, tmp_path):
    words = ["score", feedback, "--model", trained["reward"], "--out", tmp_path / "ray", "--cache", tmp_path / "cache", "--json"]
    done = mmpo_inside(*words, "--engine", "ray", "--workers", "1", TMPDIR=str(tmp_path), HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["raters"][0]["grades"] == 3 * PROMPTS
    assert "Traceback" not in done.stderr and "lost" not in done.stderr
    assert read_manifest(tmp_path / "ray")["engine"]["actors"] == 1
    assert not [path.name for path in tmp_path.iterdir() if path.name not in ("ray", "cache")]


def test_an_address_without_a_ray_and_options_of_ray_alone_are_refused(trained, feedback, tmp_path, capsys):
    words = ["score", str(feedback), "--model", str(trained["reward"]), "--out", str(tmp_path / "out")]
    pytest.importorskip("ray")
    assert "no Ray is there" in refused(
        [*words, "--engine", "ray", "--ray-address", "127.0.0.1:1"], tmp_path, capsys, "127.0.0.1:1"
    )
    refused([*words, "--ray-address", "127.0.0.1:1"], tmp_path, capsys, "goes with --engine ray")
    refused([*words, "--workers", "2"], tmp_path, capsys, "--workers 2 goes with --engine ray")
    message = refused([*words, "--engine", "spark"], tmp_path, capsys)
    assert "'spark' is not 'local' or 'ray'" in message
    nothing = [word if word != str(feedback) else str(tmp_path / "none") for word in words]
    refused(
        [*nothing, "--engine", "ray", "--ray-address", "127.0.0.1:1"], tmp_path, capsys, "no such dataset folder"
    )  # before any Ray
