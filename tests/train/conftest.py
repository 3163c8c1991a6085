"""Fixtures: a small PAIRS table with a signal that a tiny model can learn, as a table and as a dataset folder."""

import json
import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from folders import split_folder
from training_cases import make_pairs, prompts_of
from warm import TRAINING

from mmpo.train.model import tiny_tokenizer

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pairs() -> pa.Table:
    """12 prompts with 2 to 8 completions: 1 to 28 pairs each, some of them ties."""
    return make_pairs(12, [2, 8, 3, 5])


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder with 20 training, 6 validation and 8 test prompts."""
    return split_folder(
        tmp_path_factory.mktemp("data") / "pairs",
        train=make_pairs(20, [2, 6, 3], seed=1),
        validation=make_pairs(6, [3], seed=2),
        test=make_pairs(8, [4], seed=3),
    )


@pytest.fixture(scope="session")
def unfinished() -> Callable[[Path], None]:
    """Marks the run in a folder as one that was killed before it could say that it had ended."""

    def mark(out: Path) -> None:
        path = out / "mmpo.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "finished": False}))

    return mark


@pytest.fixture
def fresh_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """An empty default reference cache for one test alone."""
    monkeypatch.setenv("MMPO_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def tokenizer(pairs: pa.Table) -> Any:
    """The tiny model's tokenizer for the texts of `pairs`."""
    texts = [m["content"] for name in ("prompt", "chosen", "rejected") for row in pairs[name].to_pylist() for m in row]
    return tiny_tokenizer(texts, 400)


@pytest.fixture(scope="session")
def prompts(pairs: pa.Table, tokenizer: Any) -> list[Any]:
    """Those of `pairs`, rendered."""
    return prompts_of(pairs, tokenizer)


@pytest.fixture(scope="session")
def tiny_options() -> Callable[..., Any]:
    """Makes the options of a run of a second or two."""
    from mmpo.train.options import TrainOptions

    def make(kind: str, data: Any = "", out: Any = "", **changes: Any) -> TrainOptions:
        sizes = {"pairs_per_step": 10, "tiny_size": 16, "tiny_layers": 1, "tiny_vocab": 400}
        return TrainOptions(kind, data=str(data), out=str(out), **{**sizes, **changes})  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def train_tiny(tiny_options: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """Runs what `tiny_options` makes; `callbacks`: transformers'."""
    from mmpo.train.training import train_policy, train_reward

    def train(kind: str, data: Any, out: Any, callbacks: Any = (), **changes: Any) -> dict[str, Any]:
        return {"policy": train_policy, "reward": train_reward}[kind](tiny_options(kind, data, out, **changes), callbacks)

    return train


@pytest.fixture
def trainer_of(pairs: pa.Table, tokenizer: Any, tmp_path: Path, tiny_options: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a trainer of two steps. model: default a tiny one; data: default `pairs`; run: what else `tiny_options` takes; the rest
    goes to the trainer.
    """
    from mmpo.train.model import tiny_model
    from mmpo.train.training import PolicyTrainer, RewardTrainer, training_arguments

    def make(kind: str = "policy", model: Any = None, run: Any = None, data: Any = pairs, **options: Any) -> Any:
        model = tiny_model(kind, tokenizer, size=32, layers=1) if model is None else model
        args = training_arguments(tiny_options(kind, out=tmp_path, **{"max_steps": 2, "learning_rate": 1e-2, **(run or {})}))
        trainer = PolicyTrainer if kind == "policy" else RewardTrainer
        return trainer(model, args, data, **{"processing_class": tokenizer, "gamma": 1.0, **options})

    return make


@pytest.fixture(scope="session")
def trained(dataset: Path, train_tiny: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of a policy and of a reward model that were trained for a moment on `dataset`."""
    out = tmp_path_factory.mktemp("trained")
    for kind in ("policy", "reward"):
        train_tiny(kind, dataset, out / kind, epochs=4, learning_rate=3e-3)
    return {kind: out / kind for kind in ("policy", "reward")}


@pytest.fixture(scope="session")
def record_of() -> Callable[[Path], dict[str, Any]]:
    """What `mmpo.json` in a folder holds."""
    return lambda out: json.loads((out / "mmpo.json").read_text())


@pytest.fixture(scope="session")
def same_weights() -> Callable[..., bool]:
    """Whether the models of two folders are the same, bit for bit."""
    from mmpo.train.model import load_pretrained

    def same(kind: str, one: Any, other: Any) -> bool:
        first, second = (load_pretrained(kind, str(folder))[0].state_dict() for folder in (one, other))
        return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)

    return same


MEET = """
import os, sys, torch
torch.set_num_threads(1)
rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
if world > 1:  # through a file: a launcher's meeting point would listen on every interface
    torch.distributed.init_process_group("gloo", init_method="file://" + os.environ["MEETING"], rank=rank, world_size=world)
    from mmpo.train.distributed import leave_at_exit
    leave_at_exit()

def child(work):
    pid = os.fork()
    if not pid:
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return pid
"""


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[subprocess.CompletedProcess[str]]]:
    """Runs a script in `world` processes at once, with what a launcher tells each of its place; `rank`, `world`
    and `child` (which forks) are known in it. Returns exit codes and outputs; the processes are killed after `seconds`.
    """

    def run(script: str, *arguments: str, world: int = 2, seconds: float = 240, **environment: str) -> list[Any]:
        folder = tmp_path_factory.mktemp("meeting")
        places = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MEETING": str(folder / "point")}
        begun = []
        for rank in range(world):
            place = {**places, "RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else {}
            env = {**os.environ, **TRAINING.environment, **place, **environment}
            begun.append(TRAINING.begin(MEET + script, arguments, env))
        with ThreadPoolExecutor(world) as pool:  # each reads one, so that none waits for another one's reader
            try:
                said = list(pool.map(lambda one: one.communicate(seconds), begun))
            finally:
                for one in begun:
                    one.kill()
                    one.__exit__()
        return [subprocess.CompletedProcess(one.args, one.wait(), *out) for one, out in zip(begun, said, strict=True)]

    return run
