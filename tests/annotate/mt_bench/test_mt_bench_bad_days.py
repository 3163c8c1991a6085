"""Kills and Ctrl-C between turns and judgments: nothing is asked twice but what was in flight. And a model on this machine."""

import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from command import ended, mmpo, started, stopped, wait_for

IN_FLIGHT = 8
KILLS = int(os.environ.get("MMPO_KILLS", "5"))


@pytest.mark.slow
def test_killed_in_any_stage_nothing_is_asked_twice_but_what_was_in_flight(bench: Any) -> None:
    questions = 8 * KILLS
    job, moments = bench({"latency": {"median": 0.03, "p99": 0.2}}, questions), random.Random(3)
    command = job.words("--concurrency", IN_FLIGHT)
    for _ in range(KILLS):
        process = started(*command)
        assert wait_for(job.came(job.server.counts()["requests"] + 2 * questions // KILLS), process)
        time.sleep(moments.uniform(0.0, 0.2))
        assert process.poll() is None
        process.kill()
        ended(process)
    done = mmpo(*command, "--json")
    assert done.returncode == 0, done.stderr
    came = [one for one in job.server.log() if one["sent"] and not {"Say hello.", "2 + 2"} & set(_words(one["body"]))]
    again = Counter(one["digest"] for one in came)
    assert len(again) == 4 * questions  # two answers and two judgments
    assert len(came) - len(again) <= KILLS * IN_FLIGHT
    calm = job.run("calm")
    assert calm["models"] == json.loads(done.stdout)["models"] and calm["models"][0]["scores"] == 2 * questions


def _words(body: dict[str, Any]) -> list[str]:
    return [word for word in ("Say hello.", "2 + 2") if word in str(body["messages"])]


@pytest.mark.slow
@pytest.mark.parametrize(("after", "graded"), [(10, False), (100, True)])
def test_ctrl_c_keeps_what_came(after: int, graded: bool, bench: Any) -> None:
    job = bench({"latency": 0.1}, 40)
    done = stopped(*job.words("--concurrency", IN_FLIGHT), when=job.came(after), by=signal.SIGINT)
    assert done.returncode == 3 and "same command again" in done.stderr and "Traceback" not in done.stderr
    assert (job.folder / "out").exists() == graded
    assert all(one["sent"] for one in job.server.log())
    assert mmpo(*job.words()).returncode == 0
    assert len(job.lines("model_judgment/judge_single.jsonl")) == 80 and job.server.counts()["answered_again"] == 0


@pytest.mark.slow
def test_a_model_on_this_machine_answers(bench: Any, tmp_path: Path) -> None:
    from mmpo.train.model import tiny_model, tiny_tokenizer

    folder = tmp_path / "my-policy"
    tokenizer = tiny_tokenizer([f"First question {i}? Second question {i}? On it." for i in range(40)])
    tiny_model("policy", tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    job = bench({}, 2)
    words = ["evaluate", "mt-bench", "--model", f"{folder},called=mine", "--judge", "judge", "--questions", job.questions]
    words += ["--base-url", job.server.base_url, "--out", job.folder / "out", "--max-tokens", 12, "--json"]
    done = mmpo(*words)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert [(row["model"], row["scores"]) for row in summary["models"]] == [("mine", 4)]
    assert len(job.lines("model_answer/mine.jsonl")) == 2 and len(job.bodies("judge")) == 4
    assert mmpo(*words).returncode == 0 and len(job.bodies("judge")) == 4
