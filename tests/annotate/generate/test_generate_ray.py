"""Candidates by actors of a Ray: the replies of one process for the same seeds, also where an actor is killed."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from command import refused
from folders import write_rows
from ray_cases import run_inside
from ray_stand_in import StandIn, StandInEngine

from mmpo.annotate import GenerateOptions, generate
from mmpo.annotate.client import Journal
from mmpo.cli.main import run
from mmpo.pipeline import load_feedback
from mmpo.pipeline.engines import ENGINES
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.storage import read_manifest
from mmpo.train import local_models

PROMPTS = 30
OPTIONS: dict[str, Any] = {"n": 2, "max_tokens": 40, "keep": ("cut",)}
RUNS = {"plain": {}, "killed": {"n": 1, "max_tokens": 300}}
"""Sampled, for the likeliest token of a model with random weights ends its reply."""
BY_ROUNDING = 2
"""Texts that may differ: beside other replies logits differ by 1e-7, and a chance may fall between the two."""
EVERYTHING = """
import json, os, signal, sys
from ray_cases import cluster, workers_of
from mmpo.annotate import GenerateOptions, generate
from mmpo.train import local_models

prompts, folder, out, runs = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
ray = cluster(1, num_cpus=2, _system_config={"worker_niceness": 0})  # as other processes have it; Ray's is 15
killed = []

def kill(counts, event):
    if not killed and counts and counts["tiny"].answered:
        killed.extend(workers_of(os.getpid())[:1])
        os.kill(killed[0], signal.SIGKILL)

with local_models([{"model": folder, "called": "tiny", "batch": 4}], engine="ray", ray_address=ray.address) as local:
    for name, more in runs.items():
        options = GenerateOptions(**{**more, "keep": tuple(more["keep"])}, engine="ray")
        generate(prompts, f"{out}/{name}", options=options, local=local, progress=kill if name == "killed" else None)
ray.shutdown()
print(json.dumps(killed))
"""


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = [{"prompt": f"Question {i}?"} for i in range(PROMPTS)]
    return str(write_rows(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", rows))


def texts(folder: Path) -> list[tuple[str, str]]:
    return [(row["prompt_id"], one["text"]) for row in load_feedback(folder).to_pylist() for one in row["completions"]]


@pytest.mark.slow
def test_actors_write_what_one_process_writes(folder: Path, prompts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for Ray, whose actors write one reply at a time, loses the second one at its third call."""
    calls = Counter[tuple[int, str]]()

    def dies(number: int, name: str, arguments: Any) -> bool:
        calls[number, name] += 1
        return number == 2 and name == "call" and calls[number, name] == 3

    ray = StandInEngine.ray = StandIn(dies, pickles=True)
    monkeypatch.setitem(ENGINES, "ray", StandInEngine)
    options = {**OPTIONS, "n": 1}
    model = {"model": str(folder), "called": "tiny", "batch": 4}
    with local_models([model]) as local:
        generate(prompts, tmp_path / "local", options=GenerateOptions(**options), local=local)
    with local_models([model], engine="ray") as local:
        assert (local[0].slots, local[0].name) == (8, "tiny")
        summary = generate(prompts, tmp_path / "ray", options=GenerateOptions(**options, engine="ray"), local=local)
    assert ray.created == 3
    assert summary["models"][0]["requests"] == PROMPTS
    ours, theirs = texts(tmp_path / "local"), texts(tmp_path / "ray")
    assert len(ours) > PROMPTS // 2
    assert len(set(ours) ^ set(theirs)) <= BY_ROUNDING
    assert read_manifest(tmp_path / "ray")["engine"] == {"name": "stand-in", "actors": 2, "device": "cpu"}
    assert read_manifest(tmp_path / "local")["engine"] == {"name": "local"}
    left = {name: value for name, value in read_manifest(tmp_path / "ray")["recipe"].items() if name != "feedback"}
    assert left == {name: value for name, value in read_manifest(tmp_path / "local")["recipe"].items() if name != "feedback"}


def test_a_dry_run_starts_nothing(
    folder: Path, prompts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(ENGINES, "ray", None)
    words = ["generate", prompts, "--out", str(tmp_path / "out"), "--dry-run", "--json", "--engine", "ray", "--workers", "3"]
    assert run([*words, "--ray-address", "127.0.0.1:1", "--local", f"{folder},called=tiny", "--max-tokens", "40"]) == 0
    assert json.loads(capsys.readouterr().out)["requests"] == 4 * PROMPTS
    refused([*words, "--model", "m"], tmp_path, capsys, "--engine ray is for models that this command runs itself")


@pytest.mark.slow
@pytest.mark.whole
def test_two_actors_write_what_one_process_writes(folder: Path, prompts: str, tmp_path: Path) -> None:
    runs = {name: {**OPTIONS, **more} for name, more in RUNS.items()}
    (tmp_path / "ray").mkdir()
    assert run_inside(EVERYTHING, prompts, folder, tmp_path / "ray", json.dumps(runs), timeout=600), "an actor was killed"
    with local_models([{"model": str(folder), "called": "tiny", "batch": 4}]) as local:
        for name, options in runs.items():
            summary = generate(prompts, tmp_path / name, options=GenerateOptions(**options), local=local)
            ours, theirs = texts(tmp_path / name), texts(tmp_path / "ray" / name)
            assert len(ours) > PROMPTS // 2
            assert len(set(ours) ^ set(theirs)) <= BY_ROUNDING
            # the journal is one for both engines: nothing is asked again
            journal = str(tmp_path / "ray" / f"{name}.generate.sqlite")
            again = generate(prompts, tmp_path / f"{name}-again", options=GenerateOptions(**options, journal=journal), local=local)
            assert again["models"][0]["requests"] == summary["models"][0]["requests"] == options["n"] * PROMPTS
            assert texts(tmp_path / f"{name}-again") == theirs
            with Journal(Path(journal), read_only=True) as opened:
                assert opened.spent()["tiny"]["requests"] == options["n"] * PROMPTS, "each reply was kept once"


def test_an_engine_that_no_model_is_on_is_refused(
    folder: Path, prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray")
    words = ["generate", prompts, "--out", str(tmp_path / "out"), "--n", "1"]
    refused(
        [*words, "--model", "m", "--engine", "ray"], tmp_path, capsys, "--engine ray is for models that this command runs itself"
    )
    local = [*words, "--local", str(folder)]
    refused([*local, "--engine", "ray", "--ray-address", "127.0.0.1:1"], tmp_path, capsys, "no Ray is there", "127.0.0.1:1")
    refused([*local, "--ray-address", "127.0.0.1:1"], tmp_path, capsys, "goes with --engine ray")
    refused([*local, "--workers", "2"], tmp_path, capsys, "--workers 2 goes with --engine ray")
    with (
        local_models([{"model": str(folder)}]) as here,
        pytest.raises(UserError, match=r"local_models\(\[\.\.\.\], engine='ray'\)"),
    ):
        generate(prompts, tmp_path / "out", options=GenerateOptions(engine="ray"), local=here)
    wrong: dict[str, dict[str, Any]] = {
        "did you mean 'ray'": {"engine": "rya"},
        "workers 0: at least": {"engine": "ray", "workers": 0},
    }
    for told, given in wrong.items():
        with pytest.raises(UserError, match=told), local_models([{"model": str(folder)}], **given):
            pass


def test_the_names_of_templates_are_no_files_that_nodes_must_see(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(ENGINES, "ray", StandInEngine)
    template = tmp_path / "own.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    for name in ("tokenizer", "plain"):
        (tmp_path / name).mkdir()
    StandInEngine.ray = StandIn()
    models = [{"model": str(folder), "called": name, "chat_template": name} for name in ("tokenizer", "plain", str(template))]
    with local_models(models, engine="ray"):
        pass
    assert StandInEngine.checked == [str(folder), str(template)]
