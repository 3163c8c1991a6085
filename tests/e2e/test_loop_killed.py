"""A loop that is killed in any stage of any round and started again makes the same files."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from loop_cases import Loop, environment, made
from openai_server import Server

KILLS = int(os.environ.get("MMPO_KILLS", "5"))
STAGES = ["generate", "judge", "feedback", "calibrate", "build", "train-mmpo", "evaluate-mmpo"]
SAMPLED = [f"sampled {name}" for name in ("generate", "beside", "judge")]
ALL = [*(f"round-1 {name}" for name in STAGES), "held-out", *(f"round-1/{name}" for name in SAMPLED)]
ALL += [*(f"round-2 {name}" for name in STAGES), *(f"round-2/{name}" for name in SAMPLED)]
MORTAL = """
import json, os, signal, sys, threading
import torch
torch.set_num_threads(1)
import mmpo.annotate.generate, mmpo.annotate.judge, mmpo.cli.recipe.run, mmpo.pipeline.report, mmpo.train.training, openai, scipy.optimize
import mmpo.annotate.calibrate.page, mmpo.train.evaluation, mmpo.train.inference
from mmpo.cli.main import run
from mmpo.cli.recipe.stages import Stages

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def killed_in(stage, seconds):
    plain = Stages.do
    def do(self, name, key, work, made, *read):
        def mortal():
            threading.Timer(seconds, die).start()
            work()
            die()  # done, and nobody has noted it
        return plain(self, name, key, mortal if self.name + name == stage else work, made, *read)
    Stages.do = do

for stage, seconds in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        if stage:
            killed_in(stage, seconds)
        os._exit(run(sys.argv[2:]))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Runs a command again and again, each time killed in another stage, at a moment of its own or just before the stage is noted as done."""


@pytest.fixture(scope="module")
def calm(models: Path, server: Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[Loop, Path]:
    """A loop that nobody kills, and where its folder is now: tables hold the names of what they were made from, so that the place where it
    was is left to those that are killed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "sk-test")
        folder = tmp_path_factory.mktemp("calm")
        loop = Loop(models, server, folder / "loop", "evaluate.measure=demo_loop:truth", "judge.concurrency=8")
        assert loop.run()[-1] == 0
    return loop, loop.out.rename(folder / "whole")


def killed(stages: list[str], seed: int, loop: Loop) -> list[str]:
    """Kill a loop in these stages, one after the other, and let it come to its end; the exit statuses."""
    moments = random.Random(seed)
    aims = [(stage, moments.choice((0.0, moments.uniform(0, 0.5), 60.0))) for stage in stages]
    line = [sys.executable, "-c", MORTAL, json.dumps([*aims, ("", 0)]), *loop.words]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=900, check=False)
    return done.stdout.split()


def different(one: Path, other: Path) -> list[str]:
    """The files of two loops that only one of them has, or that differ."""
    first, second = ({str(path.relative_to(out)): path.read_bytes() for path in made(out)} for out in (one, other))
    return [name for name in sorted(first.keys() | second.keys()) if first.get(name) != second.get(name)]


SOME = ["round-1 train-mmpo", "round-2 generate"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 1 + KILLS // 10))])
def test_killed_in_any_stage_of_any_round_it_makes_the_same_files(seed: int, calm: tuple[Loop, Path]) -> None:
    loop, whole = calm
    stages = ALL if seed else SOME
    try:
        assert killed(stages, seed, loop) == ["-9"] * len(stages) + ["0"]
        assert different(loop.out, whole) == []
        assert len(list(made(whole))) > 20
    finally:
        shutil.rmtree(loop.out, ignore_errors=True)
