"""Bad days of judging: planned faults, what is asked again or given up and never taken for an answer; kills, Ctrl-C, a budget, looking."""

import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from cases import candidates
from command import ended, environment, started, stopped, wait_for

from mmpo.annotate.client import Budget, load_prices, retry_after, scrub
from mmpo.pipeline.errors import PartialResult, UserError

REQUESTS = 6 * 3 * 2
KILLS = int(os.environ.get("MMPO_KILLS", "5"))
PASSING = {
    "500": {"kind": "server_error"},
    "502": {"kind": "bad_gateway"},
    "503": {"kind": "unavailable"},
    "429 without Retry-After": {"kind": "rate_limit"},
    "429 with Retry-After": {"kind": "rate_limit", "headers": {"retry-after": "2"}},
    "429 with Retry-After as a date": {"kind": "rate_limit", "headers": {"retry-after": "Sat, 01 Jan 2000 00:00:00 GMT"}},
    "429 with retry-after-ms": {"kind": "rate_limit", "headers": {"retry-after-ms": "200"}},
    "reset in mid-body": {"kind": "reset"},
    "closed before the status line": {"kind": "close"},
    "invalid JSON": {"kind": "bad_json"},
    "truncated JSON": {"kind": "cut_json"},
    "empty choices": {"kind": "empty_choices"},
    "no reply at all": {"kind": "hang"},
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_passing_faults_are_asked_again_until_every_request_has_its_answer(
    fault: dict[str, Any], judging: Any, openai_server: Any
) -> None:
    job = judging()
    job.judge("clean")
    # Strikes the first try of a third of the requests.
    job.server = openai_server({"faults": [{**fault, "probability": 0.34, "attempts": 1}], "seed": 3})
    started = time.monotonic()
    summary = job.judge(timeout=2.0)
    assert time.monotonic() - started >= (2.0 if fault.get("headers") == {"retry-after": "2"} else 0.0)
    struck = sum(job.count("by_fault").values())
    assert summary["finished"] and struck >= 3 and struck - 3 <= summary["judges"][0]["retried"] <= struck
    assert job.comparisons() == job.comparisons("clean")
    assert job.count("answered") in (REQUESTS + 1, REQUESTS + 2) and job.count("answered_again") == 0


@pytest.mark.parametrize(
    ("headers", "now", "seconds"),
    [
        ({"retry-after": "3"}, 0.0, 3.0),
        ({"retry-after": "3", "retry-after-ms": "250"}, 0.0, 0.25),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 40.0, 60.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 400.0, 0.0),
        ({"retry-after": "soon"}, 0.0, None),
        ({"retry-after": "nan"}, 0.0, None),
        ({"retry-after": "1e9"}, 0.0, 600.0),
        ({}, 0.0, None),
    ],
)
def test_headers_that_say_when(headers: dict[str, str], now: float, seconds: float | None) -> None:
    assert retry_after(headers, now=now) == seconds


GIVEN_UP = {
    "content filter": ({"kind": "content_filter"}, {}, "content_filter"),
    "content policy": ({"kind": "content_policy"}, {}, "content_filter"),
    "refusal": ({"kind": "refusal"}, {}, "refused"),
    "too long for the model": ({"kind": "context"}, {}, "context_length_exceeded"),
    "unparsable": ({"kind": "unparsable"}, {}, None),
    "log-probabilities cover little": ({"kind": "low_mass", "mass": 0.1}, {}, "low_mass"),
    "log-probabilities are needed": ({"kind": "no_logprobs"}, {"logprobs": "need"}, "no_logprobs"),
    "truncated reasoning": ({"kind": "length"}, {"reasoning": True}, "cut_off"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "options", "reason"), GIVEN_UP.values(), ids=GIVEN_UP)
def test_what_can_not_be_answered_is_counted_kept_and_never_an_answer(
    fault: dict[str, Any], options: dict[str, Any], reason: str | None, judging: Any
) -> None:
    job = judging({"faults": [{**fault, "contains": "Question 1?"}]})
    summary = job.judge(**options)
    [told] = summary["judges"]
    assert not summary["finished"] and sum(told["failed"].values()) == 6 and told["answered"] == REQUESTS - 6
    assert reason is None or set(told["failed"]) == {reason}
    assert len(job.comparisons()) == REQUESTS - 6
    counts = json.loads((job.out / "manifest.json").read_text())["counts"]["judge"]["request"]
    assert counts["created"] == counts["out"] + sum(counts["dropped"].values()) == REQUESTS
    assert job.rows("SELECT count(*) FROM answers") == [(REQUESTS - 6,)]
    assert job.rows("SELECT count(*) FROM failures") == [(6,)]
    rejects = pq.read_table(job.out / "rejects.parquet").to_pylist()
    assert len(rejects) == 6 and {one["stage"] for one in rejects} == {"judge"}
    if fault["kind"] == "unparsable":
        assert "hard to say more" in json.loads(rejects[0]["evidence"])["reply"]
    # The same command asks for these six only, and takes them when they come.
    job.server.plan({"faults": []})
    before = job.count("answered")
    assert job.judge(**options)["finished"]
    assert job.count("answered") - before == 6 and len(job.comparisons()) == REQUESTS


def test_a_reply_of_little_mass_is_paid_once_and_read_again_when_less_is_asked(judging: Any) -> None:
    job = judging({"defaults": {"mass": 0.4}}, 2, 2)
    with pytest.raises(UserError, match="low_mass"):
        job.judge()
    before = job.count("answered")
    summary = job.judge(min_mass=0.3)
    assert summary["finished"] and job.count("answered") == before and summary["judges"][0]["mean_mass"] == pytest.approx(0.4)
    # What was read with less is no answer any more when more is asked for; it is counted, not written.
    with pytest.raises(UserError, match="low_mass"):
        job.judge(min_mass=0.5)


def test_log_probabilities_missing_from_one_reply_leave_its_letter(judging: Any) -> None:
    job = judging({"faults": [{"kind": "no_logprobs", "contains": "Question 1?"}]})
    assert job.judge()["finished"]
    bare = [one for one in job.comparisons() if one["spread"] is None]
    assert len(bare) == 6 and all(one["gap"] == round(one["gap"]) for one in bare)


@pytest.mark.parametrize(("kind", "told"), [("auth", "key"), ("forbidden", "access"), ("model", "model"), ("quota", "credit")])
def test_what_is_wrong_with_all_requests_stops_at_the_first(kind: str, told: str, judging: Any) -> None:
    job = judging({"faults": [{"kind": kind}]}, 40)
    with pytest.raises(UserError, match=told):
        job.judge()
    assert job.count("requests") == 1 and not job.out.exists()


def probed(judging: Any, latency: float, *rows: Any) -> Any:
    """A job whose journal knows already what the endpoint can do, and one prompt's answers."""
    job = judging({"latency": latency}, *rows)
    job.judge("first", limit=1, journal=str(job.journal))
    return job


@pytest.mark.slow
def test_credit_that_runs_out_keeps_what_there_is(judging: Any) -> None:
    job = probed(judging, 0.02, 40)
    job.server.plan({"faults": [{"kind": "quota", "contains": "Question 39?"}]})
    summary = job.judge(concurrency=4)
    [told] = summary["judges"]
    assert summary["stopped"] == "insufficient_quota" and told["left"] > 0 and told["failed"] == {}
    assert len(job.comparisons()) == told["answered"] > 0
    job.server.plan({"faults": []})
    assert job.judge()["finished"]
    assert job.count("answered_again") == 0


def test_a_run_that_gets_nothing_but_refusals_stops_itself(judging: Any) -> None:
    job = probed(judging, 0.0, 1, 2)
    job.server.plan({"faults": [{"kind": "unparsable"}]})
    with pytest.raises(PartialResult, match="none was answered"):
        job.judge(feedback=candidates(job.folder / "others", 200, start=500), concurrency=4)
    assert job.count("requests") < 100


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [6, pytest.param(60, marks=[pytest.mark.slow, pytest.mark.whole])])
def test_an_endpoint_that_is_away_for_a_while_costs_nothing_but_time(seconds: int, judging: Any) -> None:
    job = probed(judging, 0.01, 40)
    job.server.plan({"faults": [{"kind": "down", "seconds": seconds, "contains": "Question 30?", "times": 1}]})
    started = time.monotonic()
    # Fewer retries than the outage has seconds: waiting for the endpoint is not counted against a request.
    assert job.judge(retries=1)["finished"] and time.monotonic() - started >= seconds
    assert len(job.comparisons()) == 240 and job.count("answered_again") == 0


@pytest.mark.slow
def test_an_endpoint_that_is_not_there(judging: Any) -> None:
    job = judging({}, 2, 2)
    job.server.stop()
    done = job.mmpo()
    assert done.returncode == 3 and "does not answer" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("given", [True, False], ids=["given", "found"])
def test_the_rates_that_were_given_are_kept_and_others_are_found(given: bool, judging: Any) -> None:
    limit = {"requests_per_minute": 600, "burst_seconds": 6} if given else {"requests_per_minute": 1200, "burst_seconds": 1}
    job = judging({"latency": 0.0 if given else 0.01, "rate_limit": limit}, 20)
    summary = job.judge(**({"requests_per_minute": 600} if given else {}))
    assert summary["finished"] and ("429" in job.count("by_status")) != given and job.count("answered_again") == 0


def test_the_key_stands_in_no_file_and_in_no_message(judging: Any, tmp_path: Path) -> None:
    key = "sk-proj-Very0Secret9Key4711abcdef"
    faults = [
        {"kind": "status", "status": 400, "message": f"bad request by {key}", "contains": "Question 1?"},
        {"kind": "status", "status": 500, "message": f"error for {key}", "contains": "Question 2?", "attempts": 1},
    ]
    job = judging({"api_keys": [key], "faults": faults})
    done = job.mmpo("--json", env=environment(OPENAI_API_KEY=key))
    assert done.returncode == 3, done.stderr
    wrong = job.mmpo("--out", tmp_path / "wrong", "--no-cache", env=environment(OPENAI_API_KEY=key + "x"))
    assert wrong.returncode == 2 and "key" in wrong.stderr
    assert "Very0Secret" not in job.written() + done.stderr + done.stdout + wrong.stderr
    assert scrub("as sk-abcdefgh12 says", "other") == "as [key] says"


@pytest.mark.slow
def test_a_full_disk_loses_no_answer(judging: Any) -> None:
    job = judging({"latency": 0.01}, 60, 4)
    done = job.mmpo(disk=150_000)
    assert done.returncode == 3, done.stderr
    assert "are safe" in done.stderr and "Traceback" not in done.stderr and not job.out.exists()
    [(kept,)] = job.rows("SELECT count(*) FROM answers")
    assert kept > 0
    before = job.count("answered")
    assert job.mmpo().returncode == 0
    assert job.count("answered") - before == 720 - kept and len(job.comparisons()) == 720


@pytest.mark.slow
def test_killed_at_random_moments_every_request_is_answered_once(judging: Any) -> None:
    in_flight, moments, prompts = 8, random.Random(4), 40 + 5 * KILLS
    job = judging({"latency": {"median": 0.05, "p99": 0.4}}, prompts)
    command = job.words("--concurrency", in_flight)
    kills = 0
    for _ in range(KILLS):
        process = started(*command)
        wait_for(job.came(job.count("requests") + 1), process)
        time.sleep(moments.uniform(0.0, 0.6))
        kills += process.poll() is None
        process.kill()
        ended(process)
    done = job.mmpo("--concurrency", in_flight)
    assert done.returncode == 0, done.stderr
    assert kills >= 3 * KILLS // 4
    found = job.comparisons()
    assert len(found) == 6 * prompts == len({(one["first_id"], one["second_id"]) for one in found})
    # Answers that arrived are never paid again; those in flight at a kill may be, and the probe repeats until it is journaled.
    again = Counter(record["digest"] for record in job.server.log() if record["status"] == 200 and record["sent"])
    assert sum(count - 1 for count in again.values()) - again.most_common(1)[0][1] + 1 <= kills * in_flight
    assert job.judge("direct")["finished"]
    assert job.comparisons("direct") == found


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_interrupted_before_the_first_answer(judging: Any) -> None:
    job = judging({}, 5)
    job.judge("first", limit=1, journal=str(job.journal), rubrics=("honesty",))
    job.server.plan({"latency": 2.0})
    done = stopped(*job.words("--timeout", "1", "--retries", "50"), when=job.came(10), by=signal.SIGINT)
    assert done.returncode == 3 and "before the first answer" in done.stderr and not job.out.exists()


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_two_runs_at_once_are_refused_and_so_is_what_is_no_journal(judging: Any, tmp_path: Path) -> None:
    job = judging({"latency": 0.2}, 400)  # longer than the second command takes to start
    process = started(*job.words("--concurrency", "4"))
    wait_for(job.came(4), process)
    second = job.mmpo()
    process.kill()
    ended(process)
    assert second.returncode == 2 and "another run is at work" in second.stderr
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
