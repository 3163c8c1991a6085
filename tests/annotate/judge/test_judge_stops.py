"""Stopping and going on: SIGKILL at any moment, Ctrl-C once and twice, a budget, two runs at once; and looking without asking."""

import json
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from command import ended, started, stopped, wait_for

from mmpo.annotate.client import Budget, load_prices


@pytest.mark.slow
def test_killed_at_twenty_random_moments_every_request_is_answered_once(judging: Any) -> None:
    in_flight, moments = 8, random.Random(4)
    job = judging({"latency": {"median": 0.05, "p99": 0.4}}, 130)
    command = job.words("--concurrency", in_flight)
    kills = 0
    for _ in range(20):
        process = started(*command)
        wait_for(job.came(job.count("requests") + 1), process)
        time.sleep(moments.uniform(0.0, 0.6))
        kills += process.poll() is None
        process.kill()
        ended(process)
    done = job.mmpo("--concurrency", in_flight)
    assert done.returncode == 0, done.stderr
    assert kills >= 15
    found = job.comparisons()
    assert len(found) == 780 == len({(one["first_id"], one["second_id"]) for one in found})
    # Answers that arrived are never paid again; those in flight at a kill may be, and the probe repeats until it is journaled.
    again = Counter(record["digest"] for record in job.server.log() if record["status"] == 200 and record["sent"])
    assert sum(count - 1 for count in again.values()) - again.most_common(1)[0][1] + 1 <= kills * in_flight
    assert job.judge("direct")["finished"]
    assert job.comparisons("direct") == found


def test_the_first_interrupt_finishes_what_is_in_flight_and_writes_what_there_is(judging: Any) -> None:
    job = judging({"latency": 0.3}, 60)
    done = stopped(*job.words("--concurrency", "10"), when=job.came(35), by=signal.SIGINT)
    assert done.returncode == 3, done.stderr
    assert "Ctrl-C again leaves at once" in done.stderr and "same command again" in done.stderr and "Traceback" not in done.stderr
    log = job.server.log()
    assert all(record["sent"] for record in log)
    assert len(job.comparisons()) == len(log) - 1  # all that was sent, the probe apart, was waited for
    assert job.mmpo().returncode == 0
    assert len(job.comparisons()) == 360 and job.count("answered_again") == 0


def test_the_second_interrupt_leaves_at_once_and_loses_only_what_was_in_flight(judging: Any) -> None:
    job = judging({"latency": 0.05}, 60)
    process = started(*job.words("--concurrency", "4"))
    assert wait_for(job.came(40), process)
    job.server.plan({"faults": [{"kind": "hang"}]})
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    messages = ended(process)
    assert process.returncode == 130 and messages.endswith("interrupted\n") and "Traceback" not in messages
    assert not job.out.exists()
    job.server.plan({"faults": []})
    assert job.mmpo().returncode == 0
    assert len(job.comparisons()) == 360 and job.count("answered_again") == 0


def test_interrupted_before_the_first_answer(judging: Any) -> None:
    job = judging({}, 5)
    job.judge("first", limit=1, journal=str(job.journal), rubrics=("honesty",))
    job.server.plan({"latency": 2.0})
    done = stopped(*job.words("--timeout", "1", "--retries", "50"), when=job.came(10), by=signal.SIGINT)
    assert done.returncode == 3 and "before the first answer" in done.stderr and not job.out.exists()


def test_a_budget_is_never_passed_and_counts_what_was_paid_before(judging: Any, prices: str) -> None:
    job = judging({"latency": 0.01}, 40)
    summary = job.judge(prices=prices, max_cost=20.0)
    assert summary["stopped"] == "budget" and not summary["finished"] and summary["judges"][0]["left"] > 0
    counts = job.server.counts()
    paid = (counts["prompt_tokens"] * 1000 + counts["completion_tokens"] * 2000) / 1e6
    assert 15 < summary["cost"] <= 20 and paid - summary["cost"] < 1 and job.server.log()[0]["status"] == 200
    again = job.judge(prices=prices, max_cost=20.0)
    assert again["stopped"] == "budget" and job.count("requests") - counts["requests"] <= 3 and again["cost"] <= 20
    assert job.judge(prices=prices, max_cost=2000.0)["finished"] and job.count("answered_again") == 0


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


def test_a_dry_run_asks_nothing_and_is_about_right(judging: Any, prices: str, tmp_path: Path) -> None:
    job = judging({}, 30)

    done = job.mmpo("--prices", prices, "--dry-run", "--json")
    assert done.returncode == 0 and done.stderr.startswith("180 requests over 30 prompts")
    told = json.loads(done.stdout)
    assert told["requests"] == told["left"] == 180 and job.count("requests") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "in.jsonl", "prices.yaml"]
    assert told["left_cost"] == pytest.approx(json.loads(job.mmpo("--prices", prices, "--json").stdout)["cost"], rel=0.25)
    after = json.loads(job.mmpo("--prices", prices, "--dry-run", "--json").stdout)
    assert after["left"] == 0 and after["answered"] == 180 and after["left_cost"] == 0


def test_the_status_tells_what_is_done_and_what_failed(judging: Any) -> None:
    job = judging({"faults": [{"kind": "content_filter", "contains": "Question 1?"}]}, 4)
    assert job.mmpo().returncode == 3
    before = job.count("requests")
    done = job.mmpo("--status", "--json")
    told = json.loads(done.stdout)
    assert (told["requests"], told["answered"], told["left"]) == (24, 18, 6) and job.count("requests") == before
    assert "content_filter 6" in done.stderr and told["judges"][0]["spent_tokens"] > 0


def test_two_runs_at_once_are_refused_and_so_is_what_is_no_journal(judging: Any, tmp_path: Path) -> None:
    job = judging({"latency": 0.2}, 30)
    process = started(*job.words("--concurrency", "4"))
    wait_for(job.came(4), process)
    second = job.mmpo()
    process.kill()
    ended(process)
    assert second.returncode == 2 and "another `mmpo judge` is at work" in second.stderr
    other = tmp_path / "thesis.txt"
    other.write_text("not a database, but more than a hundred bytes of text: " + "x" * 100)
    wrong = job.mmpo("--journal", other)
    assert wrong.returncode == 2 and "thesis.txt" in wrong.stderr and other.read_text().startswith("not a")


def test_the_journal_holds_no_prompt_and_no_candidate(judging: Any, tmp_path: Path) -> None:
    job = judging({}, 3, 2)
    job.judge()
    raw = job.journal.read_bytes()
    assert b"Question" not in raw and b"Answer 1" not in raw
    assert job.rows("SELECT count(*) FROM answers") == [(6,)]
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(("-wal", "-shm"))]
    assert job.count("answered") == 7
