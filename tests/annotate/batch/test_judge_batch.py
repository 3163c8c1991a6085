"""`mmpo judge --batch` against an emulator of ours of the OpenAI Batch API: what is sent, asked again, and never paid twice."""

import time
from collections import Counter
from math import inf
from typing import Any

import pytest
from batch_cases import FAST, REQUESTS, answered, paid_once, sent, uploads, using

from mmpo.annotate.batch import Queue
from mmpo.pipeline.errors import PartialResult, UserError


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
    counts, sizes = sent(job.server), uploads(job.server)
    assert summary["finished"] and paid_once(job.server) and sum(counts) == REQUESTS
    assert max(counts) <= requests and max(sizes) <= size
    # As few files as the limits allow: two that follow one another never fit into one.
    assert len(sizes) == (files or len(sizes)) and all(a + b > limits.get("batch_bytes", 0) for a, b in zip(sizes, sizes[1:]))


def test_a_request_that_no_file_can_hold_is_a_failure_of_its_own(judging: Any) -> None:
    rows = [{"prompt": f"Question {i}?", "completions": ["a", text]} for i, text in enumerate(("b", "word " * 4000))]
    job = judging({}, rows)
    [told] = job.judge(batch_bytes=10_000, **FAST)["judges"]
    assert told["failed"] == {"too_long_for_a_batch": 2} and told["answered"] == 2
    assert max(uploads(job.server)) <= 10_000


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
    job = judging(
        on_lines(
            {"kind": "rate_limit", "attempts": 1},
            {"kind": "server_error", "attempts": 2},
            {"kind": "empty_choices", "attempts": 1},
            {"kind": "context"},
        )
    )
    summary = job.judge(**FAST)
    [told] = summary["judges"]
    assert not summary["finished"] and told["failed"] == {"context_length_exceeded": 6} and told["retried"] == 6 + 12 + 6
    assert told["answered"] == len(job.comparisons()) == REQUESTS - 6
    assert sent(job.server) == [36, 18, 6]
    # The same command asks for those that were given up, and for nothing else.
    job.server.plan({"faults": []})
    assert job.judge(**FAST)["finished"]
    assert sent(job.server) == [36, 18, 6, 6]


def test_retries_of_a_line_are_counted(judging: Any) -> None:
    job = judging(on_lines({"kind": "unavailable"}))
    assert job.judge(retries=2, **FAST)["judges"][0]["failed"] == {"server_error": 6}
    assert sent(job.server) == [36, 6, 6]


def test_replies_that_can_not_be_read_are_failures_with_the_reply_beside_them(judging: Any) -> None:
    job = judging(on_lines({"kind": "unparsable"}, {"kind": "refusal"}, {"kind": "low_mass", "mass": 0.1}))
    [told] = job.judge(**FAST)["judges"]
    assert sum(told["failed"].values()) == 18 and told["failed"]["refused"] == told["failed"]["low_mass"] == 6
    rows = job.rows("SELECT reason, reply, prompt_tokens FROM failures")
    assert all(tokens > 0 for _, _, tokens in rows)  # paid, and counted
    assert all(b"merits" in reply for reason, reply, _ in rows if reason not in ("refused", "low_mass"))
    assert job.rows("SELECT requests FROM spent") == [(REQUESTS,)]


def test_a_batch_that_fails_at_validation_is_sent_again(judging: Any) -> None:
    job = judging({"batch_fail": {"code": "internal", "message": "Try again.", "line": None, "times": 2}})
    assert job.judge(**FAST)["finished"] and paid_once(job.server)


IN_A_ROW = "3 batches in a row brought nothing; the last one: .*"
ENDS: dict[str, tuple[dict[str, Any], type[Exception], str, int]] = {
    "bad lines": (
        {"batch_fail": {"code": "invalid_json_line", "message": "This line is bad.", "times": 99}},
        PartialResult,
        f"{IN_A_ROW}This line is bad",
        3,
    ),
    "expired": ({"batch_expire": {"share": 0.0, "times": 99}}, PartialResult, f"{IN_A_ROW}expired", 3),
    "no credit": ({"batch_fail": {"code": "billing_hard_limit_reached", "message": "No.", "times": 99}}, PartialResult, "No", 1),
    "unknown model": ({"batch_fail": {"code": "model_not_found", "message": "No.", "times": 99}}, UserError, "No", 1),
}


@pytest.mark.parametrize(("plan", "error", "message", "batches"), ENDS.values(), ids=ENDS)
def test_batches_that_bring_nothing_end_the_run(
    plan: dict[str, Any], error: type[Exception], message: str, batches: int, judging: Any
) -> None:
    job = judging(plan)
    with pytest.raises(error, match=message):
        job.judge(**FAST)
    assert job.count("batches") == batches and not job.out.exists()
    job.server.plan(dict.fromkeys(plan))
    assert job.judge(**FAST)["finished"] and paid_once(job.server)


def test_credit_that_runs_out_within_a_batch_keeps_what_was_answered(judging: Any) -> None:
    job = judging(on_lines({"kind": "quota"}))
    summary = job.judge(batch_requests=18, **FAST)
    [told] = summary["judges"]
    assert summary["stopped"] == "insufficient_quota" and told["failed"] == {} and 0 < told["answered"] < REQUESTS
    job.server.plan({"faults": []})
    assert job.judge(**FAST)["finished"] and paid_once(job.server)


@pytest.mark.parametrize("each", [REQUESTS, 12])
def test_a_full_queue_is_waited_for_and_not_hammered(each: int, judging: Any, openai_server: Any) -> None:
    job = judging()
    job.judge("all", **FAST)
    tokens = sum(uploads(job.server)) // 4
    job.server = openai_server({"batch_enqueued_tokens": int(tokens * 0.55), "batch_seconds": 0.6})
    began = time.monotonic()
    summary = job.judge(batch_requests=each, **FAST)
    took = time.monotonic() - began
    assert summary["finished"] and paid_once(job.server) and job.comparisons() == job.comparisons("all")
    assert took > 1.1  # the limit allows half of it at once
    ends = using(job.server, _ends)
    assert ends["completed"] + ends["failed"] == job.count("batches")
    assert 1 <= ends["failed"] <= 4 < ends["completed"] + 2 <= 10


async def _ends(client: Any) -> Counter[str]:
    return Counter([batch.status async for batch in client.batches.list()])


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
