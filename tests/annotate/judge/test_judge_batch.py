"""`mmpo judge --batch` against an emulator of ours of the OpenAI Batch API: what is sent, asked again, and never paid twice.

Bad days come after: kills, Ctrl-C, lost replies, an endpoint that is away, a budget.
"""

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from math import inf
from random import Random
from typing import Any

import pytest
from cases import candidates
from command import environment, mmpo, stopped
from openai import OpenAI
from openai_server import Server, serving

from mmpo.annotate.batch import Queue
from mmpo.pipeline.errors import PartialResult, UserError

REQUESTS = 6 * 3 * 2
KILLS = int(os.environ.get("MMPO_KILLS", "6"))
FAST: dict[str, Any] = {"batch": True, "batch_poll": 0.1}
BATCH = ("--batch", "--batch-poll", "0.1")
"""The same for the command."""
CALLS = ("files.create", "batches.create", "batches.get", "files.content")


def sent(server: Server) -> list[int]:
    """The number of requests in each file of them that was uploaded, the first one first."""
    return [requests for _, requests in server.counts()["files"]]


def answered(server: Server) -> Counter[str]:
    """How often each line was answered well: what a provider would be paid for."""
    return Counter(row["custom_id"] for row in server.log("batch_line") if row["status"] == 200)


def paid_once(server: Server, requests: int = REQUESTS) -> bool:
    counts = answered(server)
    return len(counts) == requests and set(counts.values()) == {1}


def reached(server: Server, *routes: str, more: int = 1) -> Callable[[], bool]:
    """For `command.stopped`: whether so many more calls of these routes have come."""

    def calls() -> int:
        return sum(server.counts()["by_route"].get(route, 0) for route in routes)

    before = calls()
    return lambda: calls() >= before + more


@pytest.mark.parametrize("mode", ["pairwise", "pointwise", "listwise"])
def test_batches_give_the_grades_of_single_requests(mode: str, judging: Any) -> None:
    job = judging({"batch_seconds": 0.3})
    [before] = job.judge("alone", mode=mode)["judges"]
    summary = job.judge(mode=mode, batch_requests=7, **FAST)
    [told] = summary["judges"]
    assert summary["finished"] and job.comparisons() == job.comparisons("alone") and job.ratings() == job.ratings("alone")
    assert all(told[name] == before[name] for name in ("answered", "prompt_tokens", "grades"))
    assert paid_once(job.server, told["requests"])
    left = {path.name for path in job.folder.iterdir() if "out" in path.name}
    assert left == {"out", "out.judge.sqlite", "out.judge.sqlite.lock"}


@pytest.mark.parametrize(
    ("limits", "files"), [({"batch_requests": 10}, 4), ({"batch_requests": 36}, 1), ({"batch_bytes": 20_000}, None)]
)
def test_files_are_split_at_the_limits(limits: dict[str, int], files: int | None, judging: Any) -> None:
    requests, size = limits.get("batch_requests", inf), limits.get("batch_bytes", inf)
    job = judging({name.replace("batch_", "batch_max_"): value for name, value in limits.items()})
    summary = job.judge(**FAST, **limits)
    sizes, counts = zip(*job.count("files"))
    assert summary["finished"] and paid_once(job.server) and sum(counts) == REQUESTS
    assert max(counts) <= requests and max(sizes) <= size
    # As few files as the limits allow: two that follow one another never fit into one.
    assert len(sizes) == (files or len(sizes)) and all(a + b > limits.get("batch_bytes", 0) for a, b in zip(sizes, sizes[1:]))


def test_a_request_that_no_file_can_hold_is_a_failure_of_its_own(judging: Any) -> None:
    rows = [{"prompt": f"Question {i}?", "completions": ["a", text]} for i, text in enumerate(("b", "word " * 4000))]
    job = judging({}, rows)
    [told] = job.judge(batch_bytes=10_000, **FAST)["judges"]
    assert told["failed"] == {"too_long_for_a_batch": 2} and told["answered"] == 2
    assert max(size for size, _ in job.count("files")) <= 10_000


def test_what_expired_is_sent_again_and_what_was_answered_is_not(judging: Any) -> None:
    job = judging({"batch_expire": {"share": 0.5, "times": 1}})
    # No request's fault: it isn't counted among the retries.
    summary = job.judge(retries=0, **FAST)
    assert summary["finished"] and summary["judges"][0]["retried"] == REQUESTS // 2
    assert sent(job.server) == [REQUESTS, REQUESTS // 2] and paid_once(job.server)
    assert job.rows("SELECT count(*) FROM answers") == [(REQUESTS,)]
    assert job.rows("SELECT requests FROM spent") == [(REQUESTS,)]
    assert job.rows("SELECT status FROM batches") == [("read",), ("read",)]


def on_lines(*faults: dict[str, Any]) -> dict[str, Any]:
    """A plan where the first fault strikes the requests of question 1 in batches, the second those of question 2, ..."""
    return {"faults": [{**fault, "route": "batch_line", "contains": f"Question {i}?"} for i, fault in enumerate(faults, 1)]}


def test_lines_that_fail_by_a_passing_fault_are_sent_again_and_the_others_given_up(judging: Any) -> None:
    passing = [{"kind": kind, "attempts": tries} for kind, tries in (("rate_limit", 1), ("server_error", 2), ("empty_choices", 1))]
    job = judging(on_lines(*passing, {"kind": "context"}))
    summary = job.judge(**FAST)
    [told] = summary["judges"]
    assert not summary["finished"] and told["failed"] == {"context_length_exceeded": 6} and told["retried"] == 6 + 12 + 6
    assert told["answered"] == len(job.comparisons()) == REQUESTS - 6
    assert sent(job.server) == [36, 18, 6]
    # The same command asks for those that were given up, and for nothing else.
    job.server.plan({"faults": []})
    assert job.judge(**FAST)["finished"]
    assert sent(job.server) == [36, 18, 6, 6]
    again = judging(on_lines({"kind": "unavailable"}))
    assert again.judge("retried", retries=2, **FAST)["judges"][0]["failed"] == {"server_error": 6}
    assert sent(again.server) == [36, 6, 6]


def test_replies_that_can_not_be_read_are_failures_with_the_reply_beside_them(judging: Any) -> None:
    job = judging(on_lines({"kind": "unparsable"}, {"kind": "refusal"}, {"kind": "low_mass", "mass": 0.1}))
    [told] = job.judge(**FAST)["judges"]
    assert sum(told["failed"].values()) == 18 and told["failed"]["refused"] == told["failed"]["low_mass"] == 6
    rows = job.rows("SELECT reason, reply, prompt_tokens FROM failures")
    assert all(tokens > 0 for _, _, tokens in rows)  # paid, and counted
    assert all(b"merits" in reply for reason, reply, _ in rows if reason not in ("refused", "low_mass"))
    assert job.rows("SELECT requests FROM spent") == [(REQUESTS,)]


IN_A_ROW = "3 batches in a row brought nothing; the last one: .*"


def failing(code: str, message: str, times: int = 99) -> dict[str, Any]:
    """A plan whose next batches fail at validation."""
    return {"batch_fail": {"code": code, "message": message, "line": None, "times": times}}


ENDS: dict[str, tuple[dict[str, Any], type[Exception], str, int]] = {
    "bad lines": (failing("invalid_json_line", "This is bad."), PartialResult, f"{IN_A_ROW}This is bad", 3),
    "expired": ({"batch_expire": {"share": 0.0, "times": 99}}, PartialResult, f"{IN_A_ROW}expired", 3),
    "no credit": (failing("billing_hard_limit_reached", "No."), PartialResult, "No", 1),
    "unknown model": (failing("model_not_found", "No."), UserError, "No", 1),
}


@pytest.mark.slow
@pytest.mark.parametrize(("plan", "error", "message", "batches"), ENDS.values(), ids=ENDS)
def test_batches_that_bring_nothing_end_the_run(
    plan: dict[str, Any], error: type[Exception], message: str, batches: int, judging: Any
) -> None:
    job = judging(plan)
    with pytest.raises(error, match=message):
        job.judge(**FAST)
    assert job.count("batches") == batches and not job.out.exists()
    # Two that fail in passing are sent again.
    job.server.plan({**dict.fromkeys(plan), **failing("internal", "Try again.", 2)})
    assert job.judge(**FAST)["finished"] and paid_once(job.server)


def test_credit_that_runs_out_within_a_batch_keeps_what_was_answered(judging: Any) -> None:
    job = judging(on_lines({"kind": "quota"}))
    summary = job.judge(batch_requests=18, **FAST)
    [told] = summary["judges"]
    assert summary["stopped"] == "insufficient_quota" and told["failed"] == {} and 0 < told["answered"] < REQUESTS
    job.server.plan({"faults": []})
    assert job.judge(**FAST)["finished"] and paid_once(job.server)


@pytest.mark.slow
@pytest.mark.parametrize("each", [REQUESTS, 12])
def test_a_full_queue_is_waited_for_and_not_hammered(each: int, judging: Any, openai_server: Any) -> None:
    job = judging()
    job.judge("all", **FAST)
    tokens = sum(size for size, _ in job.count("files")) // 4
    job.server = openai_server({"batch_enqueued_tokens": int(tokens * 0.55), "batch_seconds": 0.6})
    began = time.monotonic()
    summary = job.judge(batch_requests=each, **FAST)
    took = time.monotonic() - began
    assert summary["finished"] and paid_once(job.server) and job.comparisons() == job.comparisons("all")
    assert took > 1.1  # the limit allows half of it at once
    ends = job.count("batches_by_status")
    assert ends["completed"] + ends["failed"] == job.count("batches")
    assert 1 <= ends["failed"] <= 4 < ends["completed"] + 2 <= 10


def test_how_much_the_queue_bears_is_learnt() -> None:
    queue = Queue(1000, 30.0)
    assert queue.part(0, 0, 0.0) == 1000 and queue.part(9000, 9, 0.0) == 1000 and queue.part(10_000, 10, 0.0) == 0
    queue.full(1000, 2000, 100.0)  # 3,000 were too many, 2,000 are in it: wait for one of them to end
    assert queue.part(2000, 2, 1e9) == 0
    queue.ended(well=True)
    assert queue.room == 3125 and queue.part(1000, 1, 100.0) == 1000 and queue.part(3000, 3, 100.0) == 0
    # None of ours is in it: halves, after waits of 1, 2, 4, ... looks, 20 at most.
    queue, now, waits = Queue(1000, 30.0), 0.0, []
    for _ in range(7):
        size = queue.part(0, 0, now)
        queue.full(size, 0, now)
        waits.append((size, queue.held_until - now))
        assert queue.part(0, 0, queue.held_until - 0.1) == 0
        now = queue.held_until
    assert waits == [(1000, 30), (250, 60), (62, 120), (15, 240), (3, 480), (1, 600), (1, 600)]


def test_no_cache_asks_everything_anew_once(judging: Any) -> None:
    job = judging()
    job.judge(**FAST)
    summary = job.judge(cache=False, batch_requests=10, **FAST)
    assert summary["finished"] and set(answered(job.server).values()) == {2} and len(answered(job.server)) == REQUESTS


def test_two_judges_share_a_journal(judging: Any) -> None:
    job = judging({"batch_seconds": 0.2})
    summary = job.judge(judges=["judge-a", "judge-b"], batch_requests=10, **FAST)
    assert summary["finished"] and paid_once(job.server, 2 * REQUESTS) and job.count("batches") == 8
    assert Counter(one["rater"] for one in job.comparisons()) == {"judge-a": REQUESTS, "judge-b": REQUESTS}


# --- bad days --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_at_any_moment_it_is_resumed_and_nothing_is_paid_twice(judging: Any) -> None:
    slow = [{"kind": "slow", "route": route, "seconds": 0.03} for route in CALLS]
    job = judging({"batch_seconds": 0.4, "faults": slow}, 90)
    command = job.words(*BATCH, "--batch-requests", "6")
    moments = Random(11)
    for _ in range(KILLS):
        # Before, within and after the answer to a call.
        stopped(*command, when=reached(job.server, *CALLS, more=moments.randint(1, 24)), after=moments.uniform(0, 0.05))
    before = job.rows("SELECT status, count(*) FROM batches GROUP BY status ORDER BY status")
    assert {status for status, _ in before} >= {"read", "submitted"}  # killed in the middle of it
    last = mmpo(*command)
    assert last.returncode == 0, last.stderr
    assert len(job.comparisons()) == 540 and paid_once(job.server, 540)
    assert job.rows("SELECT requests FROM spent") == [(540,)]
    assert job.rows("SELECT count(*) FROM batched") == [(0,)]
    left = {path.name for path in job.folder.iterdir()}
    assert left == {"in", "in.jsonl", "out", "out.judge.sqlite", "out.judge.sqlite.lock"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("route", "batches", "then"),
    [("batches.create", [(None, "submitting")], ["read"]), ("files.create", None, ["lost", "read"])],
    ids=["its batch is found by its token", "its batch was not made and is made again"],
)
def test_a_run_that_died_before_it_knew_its_batch(
    route: str, batches: list[tuple[None, str]] | None, then: list[str], judging: Any
) -> None:
    job = judging({"faults": [{"kind": "hang", "route": route}]})
    stopped(*job.words(*BATCH), when=reached(job.server, route))
    if batches:
        assert job.rows("SELECT batch, status FROM batches") == batches and job.count("batches") == 1
    job.server.plan({"faults": []})
    assert job.mmpo(*BATCH).returncode == 0
    assert job.count("batches") == 1 and paid_once(job.server) and len(job.comparisons()) == REQUESTS
    assert job.rows("SELECT status FROM batches ORDER BY at") == [(status,) for status in then]


@pytest.mark.slow
def test_ctrl_c_leaves_the_batches_running_and_the_same_command_takes_them_in(judging: Any) -> None:
    job = judging({"batch_seconds": 60})
    arguments = job.words(*BATCH, "--batch-requests", "12")
    done = stopped(*arguments, when=reached(job.server, "batches.get", more=4), by=signal.SIGINT)
    assert done.returncode == 3 and "Traceback" not in done.stderr and not job.out.exists()
    assert "3 batches go on at the provider" in done.stderr and "same command" in done.stderr
    looked = mmpo(*arguments, "--status", "--json")
    assert "3 batches under way" in looked.stderr and json.loads(looked.stdout)["judges"][0]["batches_open"] == 3
    # One by one, these requests would be paid a second time.
    alone = mmpo(*[word for word in arguments if word != "--batch"])
    assert alone.returncode == 2 and "run with --batch" in alone.stderr
    with serving({"batch_seconds": 0}) as other:  # another address does not know these batches: they are not taken for lost
        elsewhere = mmpo(*[str(word).replace(job.server.base_url, other.base_url) for word in arguments])
    assert elsewhere.returncode == 3 and "not known there" in elsewhere.stderr
    with OpenAI(base_url=job.server.base_url, api_key="key-1") as client:
        assert len([client.batches.cancel(batch.id) for batch in list(client.batches.list())]) == 3
    last = mmpo(*arguments)
    assert last.returncode == 3 and "cancelled at the provider" in last.stderr
    job.server.plan({"batch_seconds": 0})
    last = mmpo(*arguments)
    assert last.returncode == 0, last.stderr
    assert paid_once(job.server) and len(job.comparisons()) == REQUESTS


@pytest.mark.slow
def test_ctrl_c_and_then_all_is_there(judging: Any) -> None:
    job = judging({"batch_seconds": 4})
    assert stopped(*job.words(*BATCH), when=reached(job.server, "batches.get"), by=signal.SIGINT).returncode == 3
    assert job.mmpo(*BATCH).returncode == 0 and job.count("batches") == 1 and paid_once(job.server)


@pytest.mark.slow
def test_a_budget_is_kept_at_half_the_price(judging: Any, prices: str) -> None:
    job = judging({"batch_seconds": 0.2})
    alone = job.judge("alone", prices=prices)["cost"]
    budget = alone / 2 * 0.6
    for most in (budget * 0.5, budget):  # the second one resumes the first: the budget is that of the journal
        summary = job.judge(prices=prices, max_cost=most, batch_requests=5, **FAST)
        assert summary["stopped"] == "budget" and 0.75 * most < summary["cost"] <= most
        [told] = summary["judges"]
        assert told["failed"] == {} and told["answered"] + told["left"] == REQUESTS
        assert sum(answered(job.server).values()) == told["answered"]
    whole = job.judge(prices=prices, batch_requests=5, **FAST)
    assert whole["finished"] and whole["cost"] == pytest.approx(alone / 2) and paid_once(job.server)


@pytest.mark.slow
def test_a_budget_counts_what_a_killed_run_left_at_the_provider(judging: Any, prices: str) -> None:
    job = judging({"batch_seconds": 2})
    cost = job.judge("alone", prices=prices)["cost"] / 2
    arguments = job.words(*BATCH, "--prices", prices, "--max-cost", cost * 0.7)
    stopped(*arguments, when=reached(job.server, "batches.get"))
    last = mmpo(*arguments, "--json")
    told = json.loads(last.stdout)
    assert last.returncode == 3 and told["stopped"] == "budget" and told["cost"] <= cost * 0.7
    assert max(answered(job.server).values()) == 1


def test_a_wrong_key_stops_with_one_message(judging: Any) -> None:
    job = judging()
    others = candidates(job.folder / "others", 1, start=500)
    job.judge("first", feedback=others, journal=str(job.journal))  # what the probe found is known
    job.server.plan({"api_keys": ["sk-another-key-0001"]})
    done = job.mmpo(*BATCH)
    assert done.returncode == 2 and "key" in done.stderr and "Traceback" not in done.stderr
    assert job.count("batches") == 0 and "sk-test-of-the-run" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("route", CALLS)
@pytest.mark.parametrize("kind", ["down", "unavailable", "rate_limit", "reset", "close", "bad_json", "cut_json"])
def test_an_endpoint_that_is_away_or_stumbles_costs_nothing_but_time(kind: str, route: str, judging: Any) -> None:
    """A batch whose creation was not heard of is found, too, and not made again."""
    job = judging({"faults": [{"kind": kind, "route": route, "times": 1, "seconds": 1.5 if kind == "down" else 0.0}]})
    assert job.judge(retries=1, batch_requests=18, **FAST)["finished"] and job.count("batches") == 2 and paid_once(job.server)
    assert job.rows("SELECT requests FROM spent") == [(REQUESTS,)]


@pytest.mark.slow
def test_an_endpoint_that_stays_away_leaves_the_batches(judging: Any) -> None:
    job = judging({"batch_seconds": 1, "faults": [{"kind": "down", "route": "batches.get", "seconds": 3, "times": 1}]})
    with pytest.raises(PartialResult, match="1 batch goes on at the provider"):
        job.judge(retries=0, patience=0.5, **FAST)
    assert job.judge(**FAST)["finished"] and paid_once(job.server)


@pytest.mark.slow
def test_batches_that_the_provider_has_forgotten_are_asked_again(judging: Any, openai_server: Any) -> None:
    job = judging({"batch_seconds": 60})
    stopped(*job.words(*BATCH), when=reached(job.server, "batches.get"))
    job.server = openai_server()
    assert job.mmpo(*BATCH).returncode == 3 and job.count("batches") == 0
    job.rows("UPDATE batches SET at = at - 31 * 86400")
    assert job.mmpo(*BATCH).returncode == 0 and paid_once(job.server)


@pytest.mark.slow
def test_answers_that_a_smaller_run_has_no_use_for_are_kept(judging: Any) -> None:
    job = judging({"batch_seconds": 2})
    stopped(*job.words(*BATCH), when=reached(job.server, "batches.get"))
    pilot = job.judge("pilot", limit=2, journal=str(job.journal), **FAST)
    assert pilot["finished"] and len(job.comparisons("pilot")) == 12
    whole = job.judge(**FAST)
    assert whole["finished"] and job.count("batches") == 1 and paid_once(job.server) and len(job.comparisons()) == REQUESTS


@pytest.mark.slow
def test_the_key_stands_in_no_file_and_in_no_message(judging: Any) -> None:
    key = "sk-proj-Very0Secret9Key4711abcdef.tail"
    faults = [
        {"kind": "status", "status": 400, "message": f"bad request by {key}", "route": "batch_line", "contains": "Question 1?"},
        {"kind": "status", "status": 400, "message": f"no batch for {key}", "route": "batches.create", "at": [2]},
    ]
    job = judging({"api_keys": [key], "faults": faults})
    done = job.mmpo(*BATCH, "--batch-requests", "18", "--json", env=environment(OPENAI_API_KEY=key))
    assert done.returncode == 3 and "no batch for [key]" in done.stderr
    written = job.written() + done.stderr + done.stdout
    assert "Very0Secret" not in written and ".tail" not in written
