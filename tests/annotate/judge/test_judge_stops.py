"""Stopping and going on: SIGKILL at any moment, Ctrl-C once and twice, a budget, two runs at once; and looking without asking."""

import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from cases import asked, candidates, comparisons, judged, mmpo, of, words
from command import ended, started, wait_for

from mmpo.annotate.client import Budget, load_prices


def reached(server: Any, requests: int, process: "subprocess.Popen[str]") -> None:
    """Wait until so many requests have come, or the process has ended."""
    wait_for(lambda: server.counts()["requests"] >= requests, process)


@pytest.mark.slow
def test_killed_at_twenty_random_moments_every_request_is_answered_once(openai_server: Any, tmp_path: Path) -> None:
    in_flight, moments = 8, random.Random(4)
    server = openai_server({"latency": {"median": 0.05, "p99": 0.4}})
    feedback, out = candidates(tmp_path / "in", 130, 3), tmp_path / "out"
    command = words(feedback, out, server, "--concurrency", str(in_flight))
    kills = 0
    for _ in range(20):
        process = started(*command)
        reached(server, server.counts()["requests"] + 1, process)
        time.sleep(moments.uniform(0.0, 0.6))
        if process.poll() is None:
            kills += 1
        process.kill()
        ended(process)
    done = mmpo(*command)
    assert done.returncode == 0, done.stderr
    assert kills >= 15
    found = comparisons(out)
    assert len(found) == 780 == len({(one["first_id"], one["second_id"]) for one in found})
    # Answers that arrived are never paid again; those in flight at a kill may be.
    again = Counter(record["digest"] for record in server.log() if record["status"] == 200 and record["sent"])
    repeated = (
        sum(count - 1 for count in again.values()) - again.most_common(1)[0][1] + 1
    )  # the probe repeats until it is journaled
    assert repeated <= kills * in_flight
    assert judged(feedback, tmp_path / "direct", server)["finished"]
    assert comparisons(tmp_path / "direct") == found


def test_the_first_interrupt_finishes_what_is_in_flight_and_writes_what_there_is(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server({"latency": 0.3})
    feedback, out = candidates(tmp_path / "in", 60, 3), tmp_path / "out"
    process = started(*words(feedback, out, server, "--concurrency", "10"))
    reached(server, 35, process)
    process.send_signal(signal.SIGINT)
    messages = ended(process)
    assert process.returncode == 3, messages
    assert "Ctrl-C again leaves at once" in messages and "same command again" in messages and "Traceback" not in messages
    log = server.log()
    assert all(record["sent"] for record in log)
    assert len(comparisons(out)) == len(log) - 1  # all that was sent, the probe apart, was waited for
    assert mmpo(*words(feedback, out, server)).returncode == 0
    assert len(comparisons(out)) == 360 and server.counts()["answered_again"] == 0


def test_the_second_interrupt_leaves_at_once_and_loses_only_what_was_in_flight(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server({"latency": 0.05})
    feedback, out = candidates(tmp_path / "in", 60, 3), tmp_path / "out"
    process = started(*words(feedback, out, server, "--concurrency", "4"))
    reached(server, 40, process)
    server.plan({"faults": [{"kind": "hang"}]})
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    messages = ended(process)
    assert process.returncode == 130 and messages.endswith("interrupted\n") and "Traceback" not in messages
    assert not out.exists()
    server.plan({"faults": []})
    assert mmpo(*words(feedback, out, server)).returncode == 0
    assert len(comparisons(out)) == 360 and server.counts()["answered_again"] == 0


def test_interrupted_before_the_first_answer(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server()
    feedback, out = candidates(tmp_path / "in", 5, 3), tmp_path / "out"
    judged(feedback, tmp_path / "first", server, limit=1, journal=str(tmp_path / "out.judge.sqlite"), rubrics=("honesty",))
    server.plan({"latency": 2.0})
    process = started(*words(feedback, out, server, "--timeout", "1", "--retries", "50"))
    reached(server, 10, process)
    process.send_signal(signal.SIGINT)
    messages = ended(process)
    assert process.returncode == 3 and "before the first answer" in messages and not out.exists()


def write_prices(path: Path) -> str:
    path.write_text("batch: 0.5\nmodels:\n  judge-a: [100, 1000]\n")
    return str(path)


def test_a_budget_is_never_passed_and_counts_what_was_paid_before(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server({"latency": 0.01})
    feedback, out, prices = candidates(tmp_path / "in", 40, 3), tmp_path / "out", write_prices(tmp_path / "prices.yaml")
    summary = judged(feedback, out, server, prices=prices, max_cost=2.0)
    [told] = summary["judges"]
    assert summary["stopped"] == "budget" and not summary["finished"] and told["left"] > 0
    counts = server.counts()
    probe = server.log()[0]
    paid = (counts["prompt_tokens"] * 100 + counts["completion_tokens"] * 1000) / 1e6
    assert 1.5 < summary["cost"] <= 2.0 and paid - summary["cost"] < 0.1 and probe["status"] == 200
    before = server.counts()["requests"]
    again = judged(feedback, out, server, prices=prices, max_cost=2.0)
    assert again["stopped"] == "budget" and server.counts()["requests"] - before <= 3 and again["cost"] <= 2.0
    done = judged(feedback, out, server, prices=prices, max_cost=200.0)
    assert done["finished"] and server.counts()["answered_again"] == 0


def test_prices_are_found_by_a_dated_release_and_halved_for_batches() -> None:
    prices = load_prices()
    assert prices.of("gpt-4o-mini-2024-07-18") == prices.of("gpt-4o-mini") and prices.of("my-own") is None
    batch, plain = prices.of("gpt-4o", batch=True), prices.of("gpt-4o")
    assert batch and plain and batch.of(1e6, 1e6) == plain.of(1e6, 1e6) / 2


def test_the_budget_sets_aside_what_is_in_flight() -> None:
    budget = Budget(most=10.0, spent=4.0)
    assert budget.reserve(b"a", 3.0) and budget.reserve(b"b", 3.0) and not budget.reserve(b"c", 0.5)
    budget.settle(b"a", 1.0)
    assert budget.reserve(b"c", 2.0) and not budget.reserve(b"d", 0.1)
    budget.release(b"b")
    assert budget.reserve(b"d", 3.0) and budget.spent == 5.0


def test_what_was_set_aside_comes_back_to_the_last_bit() -> None:
    """(.1 + .2 + .3) - .1 - .2 - .3 is above 0 in floating point: a run that waits for the rest would never end."""
    budget = Budget(most=1.0)
    for key, cost in ((b"a", 0.1), (b"b", 0.2), (b"c", 0.3)):
        assert budget.reserve(key, cost)
    for key in (b"a", b"b", b"c"):
        budget.settle(key, 0.0)
    assert budget.held == 0.0


def test_a_dry_run_asks_nothing_and_is_about_right(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server()
    feedback, out, prices = candidates(tmp_path / "in", 30, 3), tmp_path / "out", write_prices(tmp_path / "prices.yaml")
    command = words(feedback, out, server, "--prices", prices)
    done = mmpo(*command, "--dry-run", "--json")
    assert done.returncode == 0 and done.stderr.startswith("180 requests over 30 prompts")
    told = json.loads(done.stdout)
    assert told["requests"] == told["left"] == 180 and server.counts()["requests"] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "in.jsonl", "prices.yaml"]
    real = json.loads(mmpo(*command, "--json").stdout)
    assert told["left_cost"] == pytest.approx(real["cost"], rel=0.25)
    after = json.loads(mmpo(*command, "--dry-run", "--json").stdout)
    assert after["left"] == 0 and after["answered"] == 180 and after["left_cost"] == 0


def test_the_status_tells_what_is_done_and_what_failed(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server({"faults": [{"kind": "content_filter", "contains": "Question 1?"}]})
    feedback, out = candidates(tmp_path / "in", 4, 3), tmp_path / "out"
    assert mmpo(*words(feedback, out, server)).returncode == 3
    before = server.counts()["requests"]
    done = mmpo(*words(feedback, out, server), "--status", "--json")
    told = json.loads(done.stdout)
    assert (told["requests"], told["answered"], told["left"]) == (24, 18, 6) and server.counts()["requests"] == before
    assert "content_filter 6" in done.stderr and told["judges"][0]["spent_tokens"] > 0


def test_two_runs_at_once_are_refused_and_so_is_what_is_no_journal(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server({"latency": 0.2})
    feedback, out = candidates(tmp_path / "in", 30, 3), tmp_path / "out"
    process = started(*words(feedback, out, server, "--concurrency", "4"))
    reached(server, 4, process)
    second = mmpo(*words(feedback, out, server))
    process.kill()
    ended(process)
    assert second.returncode == 2 and "another `mmpo judge` is at work" in second.stderr
    other = tmp_path / "thesis.txt"
    other.write_text("not a database, but more than a hundred bytes of text: " + "x" * 100)
    wrong = mmpo(*words(feedback, out, server, "--journal", str(other)))
    assert wrong.returncode == 2 and "thesis.txt" in wrong.stderr and other.read_text().startswith("not a")


def test_the_journal_holds_no_prompt_and_no_candidate(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server()
    judged(candidates(tmp_path / "in", 3, 2), tmp_path / "out", server)
    raw = (tmp_path / "out.judge.sqlite").read_bytes()
    assert b"Question" not in raw and b"Answer 1" not in raw
    assert of(tmp_path / "out.judge.sqlite", "SELECT count(*) FROM answers") == [(6,)]
    assert not [name for name in os.listdir(tmp_path) if name.endswith(("-wal", "-shm"))]
    assert asked(server) == 7
