"""Runs against endpoints as they are: keys in headers, figures that can't be, one judge that ends the run of all, waits that are told."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from cases import Judging
from command import environment
from openai_server import serving
from raw_endpoint import Came, chat, raw_endpoint

from mmpo.pipeline.errors import PartialResult, UserError

LOGPROBS = {"content": [{"token": "C", "top_logprobs": [{"token": "C", "logprob": -0.1}, {"token": "B", "logprob": -2.5}]}]}
TOO_MANY = {"kind": "rate_limit"}


def test_a_key_in_a_header_stands_in_no_file_and_in_no_message(tmp_path: Path) -> None:
    key, refused = "azure-Very0Secret9Key4711", []

    def answering(came: Came) -> tuple[int, dict[str, str], bytes]:
        if came.headers.get("api-key") != key or "api-version=1" not in came.path:
            refused.append(came)
        text = came.body["messages"][-1]["content"]
        if "Question 1?" in text:
            return 400, {}, json.dumps({"detail": f"refused for {key}"}).encode()
        return 200, {}, json.dumps(chat("C", logprobs=LOGPROBS)).encode()

    with raw_endpoint(answering) as server:
        job = Judging(server, tmp_path, 3, 2)
        server.base_url += "?api-version=1"
        done = job.mmpo("--json", "--header", "api-key=env:AZURE_KEY", "--header", "x-title=ours", env=environment(AZURE_KEY=key))
    assert done.returncode == 3 and not refused, done.stderr
    kept = [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
    assert not any("Very0Secret" in text for text in (done.stderr, done.stdout, *kept))
    recorded = json.loads((job.out / "manifest.json").read_text())["recipe"]["judges"][0]
    assert recorded["headers"] == {"api-key": "env:AZURE_KEY", "x-title": "ours"} and recorded["base_url"].endswith(
        "?api-version=1"
    )


@pytest.mark.parametrize("wrong", [-100, 10**30, "x"])
def test_figures_that_can_not_be_cost_nothing_of_the_sort_and_keep_the_answers(wrong: Any, tmp_path: Path) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("models:\n  judge-a: [100, 1000]\n")
    with raw_endpoint(chat("C", logprobs=LOGPROBS, usage={"prompt_tokens": wrong, "completion_tokens": wrong})) as server:
        job = Judging(server, tmp_path, 2, 2)
        summary = job.judge(prices=str(prices), max_cost=10.0)
    assert summary["finished"] and len(job.comparisons()) == 4
    [told] = summary["judges"]
    assert 0 < told["prompt_tokens"] < 5000 and 0 < told["cost"] < 1.0


@pytest.mark.parametrize("begun", [False, True], ids=["at the probe", "in the run"])
def test_a_wrong_key_of_one_judge_ends_the_run_while_another_is_told_to_wait(begun: bool, judging: Any) -> None:
    job = judging({}, 3, 2)
    with serving({}) as other:
        judges = [{"model": "judge-a"}, {"model": "judge-b", "base_url": other.base_url}]
        assert not begun or job.judge("first", judges, limit=1, journal=str(job.journal))["finished"]
        job.server.plan({"faults": [{**TOO_MANY, "headers": {"retry-after": "300"}}]})
        other.plan({"faults": [{"kind": "auth"}], "latency": 0.5})
        started = time.monotonic()
        with pytest.raises(UserError, match="API key"):
            job.judge("second", judges, feedback=job.feedback, rubrics=("honesty",), journal=str(job.journal))
        assert time.monotonic() - started < 60


@pytest.mark.slow
def test_a_probe_waits_as_it_is_told_says_so_and_takes_no_passing_fault_for_what_the_endpoint_can_not_do(judging: Any) -> None:
    """Without log-probabilities the second question of the probe asks for two replies at once; this one meets a 429."""
    job = judging(
        {"capabilities": {"logprobs": "off"}, "faults": [{**TOO_MANY, "headers": {"retry-after": "2.5"}, "at": [2]}]}, 2, 2
    )
    done = job.mmpo("--samples", 2)
    assert done.returncode == 0, done.stderr
    assert "judge-a: waiting until" in done.stderr and "Rate limit reached" in done.stderr
    # The probe's, then one request a question for both replies.
    assert len(job.comparisons()) == 4 and job.count("answered") == 2 + 4


def test_a_probe_is_as_patient_as_the_run(judging: Any) -> None:
    job = judging({"faults": [{**TOO_MANY, "headers": {"retry-after": "30"}}]}, 2, 2)
    started = time.monotonic()
    with pytest.raises(PartialResult, match="does not answer"):
        job.judge(patience=20.0)
    assert time.monotonic() - started < 20 and job.count("requests") == 1


@pytest.mark.slow
def test_what_a_run_waits_for_is_told(judging: Any) -> None:
    from mmpo.annotate.judge import JudgeOptions, judge
    from mmpo.cli.asking import told_of

    job = judging({}, 2, 2)
    job.judge("first", limit=1, journal=str(job.journal))
    job.server.plan({"faults": [{**TOO_MANY, "headers": {"retry-after": "3"}, "times": 2}]})
    seen = []

    def progress(counts: dict[str, Any], what: str) -> None:
        seen.extend(told_of(one) for one in counts.values())

    options = JudgeOptions(model="judge-a", base_url=job.server.base_url, journal=str(job.journal), concurrency=1)
    assert judge(job.feedback, job.out, options=options, progress=progress)["finished"]
    waits = [line for line in seen if "waiting until" in line]
    assert waits and all("Rate limit reached" in line and "(status 429)" in line for line in waits)
    assert "waiting" not in seen[-1]
