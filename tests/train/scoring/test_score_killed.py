"""Kills: what was computed is there, and nothing is computed twice but what was under way."""

import os
import sqlite3
from collections import Counter
from contextlib import closing

import pytest
from command import environment, wait_for
from folders import contents, feedback_folder
from warm import TRAINING

from mmpo.train import score
from mmpo.train.inference import reference

KILLS = int(os.environ.get("MMPO_KILLS", "3"))
LOGGED = """
import sys
import torch
torch.set_num_threads(1)
import mmpo.train.inference.reference as reference
from mmpo.cli.main import run

plain = reference.predict_values
def logged(model, kind, prompts, **options):
    with open(sys.argv[1], "a") as log:
        log.write(" ".join(reference._key(item).hex() for prompt in prompts for item in prompt.completions) + "\\n")
    return plain(model, kind, prompts, **options)
reference.predict_values = logged
sys.exit(run(sys.argv[2:]))
"""
SMALL_CHUNKS = 40
"""Tokens of a pass: a few completions."""


def kept(cache):
    """How many values are in the files of a cache folder."""
    total = 0
    for file in cache.glob("*.sqlite"):
        with closing(sqlite3.connect(file)) as db:
            if db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'logprobs'").fetchone()[0]:
                total += db.execute("SELECT count(*) FROM logprobs").fetchone()[0]
    return total


def rows(prompts=40):
    return [{"prompt": f"Question {i}?", "completions": [f"Answer {j} to {i}." for j in range(3)]} for i in range(prompts)]


def test_an_interrupted_run_goes_on_with_what_is_missing(trained, tmp_path, monkeypatch):
    feedback, cache = feedback_folder(tmp_path / "feedback", rows()), tmp_path / "cache"
    plain, computed = reference.predict_values, []

    def noted(model, kind, prompts, **options):
        if len(computed) == 3:
            computed.append([])
            raise KeyboardInterrupt
        computed.append([reference._key(item) for prompt in prompts for item in prompt.completions])
        return plain(model, kind, prompts, **options)

    def run():
        return score(feedback, trained["reward"], tmp_path / "out", cache=cache, tokens_per_batch=SMALL_CHUNKS)

    monkeypatch.setattr(reference, "predict_values", noted)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert kept(cache) == sum(map(len, computed)) > 0
    assert not (tmp_path / "out").exists()
    assert run()["raters"][0]["grades"] == 120
    keys = [key for chunk in computed for key in chunk]
    assert len(keys) == len(set(keys)) == 120


@pytest.mark.slow
def test_a_run_killed_again_and_again_computes_nothing_twice_but_what_was_under_way(trained, tmp_path):
    feedback, cache, log = feedback_folder(tmp_path / "feedback", rows(40 * KILLS)), tmp_path / "cache", tmp_path / "log"
    words = ["score", feedback, "--model", trained["reward"], "--tokens-per-batch", SMALL_CHUNKS, "--out", tmp_path / "out"]
    line = [str(log), *map(str, words), "--cache", str(cache)]
    kills, before, under_way = 0, 0, []
    for number in range(KILLS):
        aim = 120 * (number + 1) * KILLS // (KILLS + KILLS // 2 + 1)  # far enough from the end for a kill that comes late
        with TRAINING.begin(LOGGED, line, environment()) as process:
            try:
                if not wait_for(lambda aim=aim: cache.exists() and kept(cache) >= aim, process):
                    break
            finally:
                process.kill()
        kills += 1
        assert kept(cache) >= max(aim, before)  # nothing that was there is lost
        before = kept(cache)
        under_way.append(log.read_text().splitlines()[-1].split())
        assert not (tmp_path / "out").exists()
    assert kills == KILLS
    with TRAINING.begin(LOGGED, line, environment()) as process:
        said = process.communicate(240)
    assert process.returncode == 0, said
    computed = Counter(log.read_text().split())
    assert len(computed) == kept(cache) == 120 * KILLS
    twice = {key for key, count in computed.items() if count > 1}
    assert twice <= {key for chunk in under_way for key in chunk}
    score(feedback, trained["reward"], tmp_path / "whole", cache=tmp_path / "other", tokens_per_batch=SMALL_CHUNKS)
    assert contents(tmp_path / "out" / "feedback") == contents(tmp_path / "whole" / "feedback")
