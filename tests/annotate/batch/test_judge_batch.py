"""`mmpo judge --batch` against an emulator of ours of the OpenAI Batch API: what is sent, asked again, and never paid twice."""

import time
from collections import Counter
from math import inf
from pathlib import Path
from typing import Any

import pytest
from batch_cases import FAST, REQUESTS, answered, paid_once, sent, uploads, using
from cases import built, candidates, comparisons, judged, of, ratings

from mmpo.annotate.batch import Queue
from mmpo.pipeline.errors import PartialResult, UserError


@pytest.mark.parametrize("mode", ["pairwise", "pointwise", "listwise"])
def test_batches_give_the_grades_of_single_requests(mode: str, openai_server: Any, tmp_path: Path) -> None:
    server, feedback = openai_server({"batch_seconds": 0.3}), candidates(tmp_path / "in")
    alone = judged(feedback, tmp_path / "alone", server, mode=mode)
    summary = judged(feedback, tmp_path / "out", server, mode=mode, batch_requests=7, **FAST)
    assert summary["finished"]
    assert comparisons(tmp_path / "out") == comparisons(tmp_path / "alone")
    assert ratings(tmp_path / "out") == ratings(tmp_path / "alone")
    [told], [before] = summary["judges"], alone["judges"]
    assert {name: told[name] for name in ("answered", "prompt_tokens", "grades")} == {
        name: before[name] for name in ("answered", "prompt_tokens", "grades")
    }
    assert paid_once(server, told["requests"])
    assert {path.name for path in tmp_path.iterdir() if "out" in path.name} == {"out", "out.judge.sqlite", "out.judge.sqlite.lock"}


@pytest.mark.parametrize(
    ("limits", "files"), [({"batch_requests": 10}, 4), ({"batch_requests": 36}, 1), ({"batch_bytes": 20_000}, None)]
)
def test_files_are_split_at_the_limits(limits: dict[str, int], files: int | None, openai_server: Any, tmp_path: Path) -> None:
    server = openai_server(
        {"batch_max_requests": limits.get("batch_requests", 50_000), "batch_max_bytes": limits.get("batch_bytes", 10**9)}
    )
    summary = judged(candidates(tmp_path / "in"), tmp_path / "out", server, **FAST, **limits)
    sizes = uploads(server)
    assert summary["finished"] and paid_once(server) and sum(map(len, sent(server))) == REQUESTS
    assert max(map(len, sent(server))) <= limits.get("batch_requests", inf) and max(sizes) <= limits.get("batch_bytes", inf)
    # As few files as the limits allow: two that follow one another never fit into one.
    assert len(sizes) == (files or len(sizes)) and all(a + b > limits.get("batch_bytes", 0) for a, b in zip(sizes, sizes[1:]))


def test_a_request_that_no_file_can_hold_is_a_failure_of_its_own(openai_server: Any, tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {i}?", "completions": ["a", text]} for i, text in enumerate(("b", "word " * 4000))]
    server, feedback = openai_server({}), built(tmp_path / "in", rows)
    summary = judged(feedback, tmp_path / "out", server, batch_bytes=10_000, **FAST)
    assert summary["judges"][0]["failed"] == {"too_long_for_a_batch": 2} and summary["judges"][0]["answered"] == 2
    assert max(uploads(server)) <= 10_000


def test_what_expired_is_sent_again_and_what_was_answered_is_not(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server({"batch_expire": {"share": 0.5, "times": 1}})
    # No request's fault: it isn't counted among the retries.
    summary = judged(candidates(tmp_path / "in"), tmp_path / "out", server, retries=0, **FAST)
    files = sent(server)
    assert summary["finished"] and summary["judges"][0]["retried"] == REQUESTS // 2
    assert sorted(map(len, files)) == [REQUESTS // 2, REQUESTS] and paid_once(server)
    assert of(summary["journal"], "SELECT count(*) FROM answers") == [(REQUESTS,)]
    assert of(summary["journal"], "SELECT requests FROM spent") == [(REQUESTS,)]
    assert of(summary["journal"], "SELECT status FROM batches") == [("read",), ("read",)]


def test_lines_that_fail_by_a_passing_fault_are_sent_again_and_the_others_given_up(openai_server: Any, tmp_path: Path) -> None:
    faults = [
        {"kind": "rate_limit", "route": "batch_line", "contains": "Question 1?", "attempts": 1},
        {"kind": "server_error", "route": "batch_line", "contains": "Question 2?", "attempts": 2},
        {"kind": "empty_choices", "route": "batch_line", "contains": "Question 3?", "attempts": 1},
        {"kind": "context", "route": "batch_line", "contains": "Question 4?"},
    ]
    server = openai_server({"faults": faults})
    summary = judged(candidates(tmp_path / "in"), tmp_path / "out", server, **FAST)
    [told] = summary["judges"]
    assert not summary["finished"] and told["failed"] == {"context_length_exceeded": 6} and told["retried"] == 6 + 12 + 6
    assert told["answered"] == len(comparisons(tmp_path / "out")) == REQUESTS - 6
    assert [len(file) for file in reversed(sent(server))] == [36, 18, 6]
    # The same command asks for those that were given up, and for nothing else.
    server.plan({"faults": []})
    assert judged(tmp_path / "in", tmp_path / "out", server, **FAST)["finished"]
    assert [len(file) for file in reversed(sent(server))] == [36, 18, 6, 6]


def test_retries_of_a_line_are_counted(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server({"faults": [{"kind": "unavailable", "route": "batch_line", "contains": "Question 1?"}]})
    summary = judged(candidates(tmp_path / "in"), tmp_path / "out", server, retries=2, **FAST)
    assert summary["judges"][0]["failed"] == {"server_error": 6}
    assert [len(file) for file in reversed(sent(server))] == [36, 6, 6]


def test_replies_that_can_not_be_read_are_failures_with_the_reply_beside_them(openai_server: Any, tmp_path: Path) -> None:
    faults = [
        {"kind": "unparsable", "route": "batch_line", "contains": "Question 1?"},
        {"kind": "refusal", "route": "batch_line", "contains": "Question 2?"},
        {"kind": "low_mass", "route": "batch_line", "contains": "Question 3?", "mass": 0.1},
    ]
    summary = judged(candidates(tmp_path / "in"), tmp_path / "out", openai_server({"faults": faults}), **FAST)
    [told] = summary["judges"]
    assert sum(told["failed"].values()) == 18 and told["failed"]["refused"] == told["failed"]["low_mass"] == 6
    rows = of(summary["journal"], "SELECT reason, reply, prompt_tokens FROM failures")
    assert all(tokens > 0 for _, _, tokens in rows)  # paid, and counted
    assert all(b"merits" in reply for reason, reply, _ in rows if reason not in ("refused", "low_mass"))
    assert of(summary["journal"], "SELECT requests FROM spent") == [(REQUESTS,)]


def test_a_batch_that_fails_at_validation_is_sent_again(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server({"batch_fail": {"code": "internal", "message": "Try again.", "line": None, "times": 2}})
    assert judged(candidates(tmp_path / "in"), tmp_path / "out", server, **FAST)["finished"] and paid_once(server)


@pytest.mark.parametrize(
    ("plan", "last"),
    [
        ({"batch_fail": {"code": "invalid_json_line", "message": "This line is bad.", "times": 99}}, "This line is bad"),
        ({"batch_expire": {"share": 0.0, "times": 99}}, "expired"),
    ],
)
def test_batches_that_bring_nothing_end_the_run(plan: dict[str, Any], last: str, openai_server: Any, tmp_path: Path) -> None:
    server = openai_server(plan)
    with pytest.raises(PartialResult, match=f"3 batches in a row brought nothing; the last one: .*{last}"):
        judged(candidates(tmp_path / "in"), tmp_path / "out", server, **FAST)
    assert server.counts()["batches"] == 3 and not (tmp_path / "out").exists()
    server.plan(dict.fromkeys(plan))
    assert judged(tmp_path / "in", tmp_path / "out", server, **FAST)["finished"] and paid_once(server)


@pytest.mark.parametrize("code", ["billing_hard_limit_reached", "model_not_found"])
def test_what_is_wrong_with_all_batches_stops_at_the_first(code: str, openai_server: Any, tmp_path: Path) -> None:
    server = openai_server({"batch_fail": {"code": code, "message": "No.", "times": 99}})
    with pytest.raises(UserError if code == "model_not_found" else PartialResult, match="No"):
        judged(candidates(tmp_path / "in"), tmp_path / "out", server, **FAST)
    assert server.counts()["batches"] == 1


def test_credit_that_runs_out_within_a_batch_keeps_what_was_answered(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server({"faults": [{"kind": "quota", "route": "batch_line", "contains": "Question 1?"}]})
    summary = judged(candidates(tmp_path / "in"), tmp_path / "out", server, batch_requests=18, **FAST)
    [told] = summary["judges"]
    assert summary["stopped"] == "insufficient_quota" and told["failed"] == {} and 0 < told["answered"] < REQUESTS
    server.plan({"faults": []})
    assert judged(tmp_path / "in", tmp_path / "out", server, **FAST)["finished"] and paid_once(server)


@pytest.mark.parametrize("each", [REQUESTS, 12])
def test_a_full_queue_is_waited_for_and_not_hammered(each: int, openai_server: Any, tmp_path: Path) -> None:
    feedback = candidates(tmp_path / "in")
    server = openai_server({})
    judged(feedback, tmp_path / "all", server, **FAST)
    tokens = sum(uploads(server)) // 4
    server = openai_server({"batch_enqueued_tokens": int(tokens * 0.55), "batch_seconds": 0.6})
    began = time.monotonic()
    summary = judged(feedback, tmp_path / "out", server, batch_requests=each, **FAST)
    took = time.monotonic() - began
    assert summary["finished"] and paid_once(server) and comparisons(tmp_path / "out") == comparisons(tmp_path / "all")
    assert took > 1.1  # the limit allows half of it at once
    ends = using(server, _ends)
    assert (
        ends["completed"] + ends["failed"] == server.counts()["batches"] and 1 <= ends["failed"] <= 4 < ends["completed"] + 2 <= 10
    )


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


def test_no_cache_asks_everything_anew_once(openai_server: Any, tmp_path: Path) -> None:
    server, feedback = openai_server({}), candidates(tmp_path / "in")
    judged(feedback, tmp_path / "out", server, **FAST)
    summary = judged(feedback, tmp_path / "out", server, cache=False, batch_requests=10, **FAST)
    assert summary["finished"] and set(answered(server).values()) == {2} and len(answered(server)) == REQUESTS


def test_two_judges_share_a_journal(openai_server: Any, tmp_path: Path) -> None:
    server, feedback = openai_server({"batch_seconds": 0.2}), candidates(tmp_path / "in")
    summary = judged(feedback, tmp_path / "out", server, ["judge-a", "judge-b"], batch_requests=10, **FAST)
    assert summary["finished"] and paid_once(server, 2 * REQUESTS) and server.counts()["batches"] == 8
    assert Counter(one["rater"] for one in comparisons(tmp_path / "out")) == {"judge-a": REQUESTS, "judge-b": REQUESTS}
