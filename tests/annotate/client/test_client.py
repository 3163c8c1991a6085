"""The client: the body goes out as it was keyed, requests share few pools, no minute gets too many, an outage lets one scout through."""

import asyncio
from typing import Any

import pytest
from command import wait_for
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpo.annotate.client import (
    REQUESTS_PER_POOL,
    Answer,
    Bucket,
    Endpoint,
    EndpointSettings,
    Failure,
    Limits,
    failure_of_status,
    refusal_of,
)

BODY = {
    "model": "judge-a", "messages": [{"role": "user", "content": "Grüße: σ(γ·m), 日本, \u2028 <|im_end|>"}], "max_tokens": 8,
    "temperature": 0, "logprobs": True, "top_logprobs": 20, "guided_choice": ["A", "B"],
}  # fmt: skip


def asked_at_once(server: Any, many: int) -> tuple[list[Answer | Failure], int]:
    """What came back, and how many pools there were."""

    async def run() -> tuple[list[Answer | Failure], int]:
        async with Endpoint(EndpointSettings("judge-a", server.base_url), 20.0) as endpoint:
            found = await asyncio.gather(*(endpoint.ask(BODY) for _ in range(many)))
            again = await asyncio.gather(*(endpoint.ask(BODY) for _ in range(many)))
            return [*found, *again], len(endpoint._pools)

    return asyncio.run(run())


def test_the_body_and_the_key_arrive_as_they_are(openai_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-of-the-endpoint")
    server = openai_server({"keep_bodies": True, "api_keys": ["sk-test-of-the-endpoint"]})
    answers, _ = asked_at_once(server, 1)
    assert all(isinstance(answer, Answer) and answer.choices and answer.prompt_tokens > 0 for answer in answers)
    [first, _] = server.log()
    assert first["body"] == BODY and first["key"] == "sk-test-of-the-endpoint"


@pytest.mark.parametrize(("path", "hinted"), [("", True), ("/v1/other", False)])
def test_an_address_without_v1_is_told_where_nothing_is_found(openai_server: Any, path: str, hinted: bool) -> None:
    server = openai_server({})
    server.base_url = server.base_url.removesuffix("/v1") + path
    failure, _ = asked_at_once(server, 1)[0]
    assert isinstance(failure, Failure) and failure.reason == "not_found"
    assert (f"{server.base_url}/chat/completions was asked; most servers want /v1" in failure.message) == hinted


def test_many_requests_at_once_are_all_in_flight_and_later_ones_open_no_more_pools(openai_server: Any) -> None:
    server = openai_server({"latency": 0.3})
    answers, pools = asked_at_once(server, 3 * REQUESTS_PER_POOL + 1)
    assert all(isinstance(answer, Answer) for answer in answers) and pools == 4
    assert wait_for(lambda: server.counts()["connections"] == 0)  # it has seen that they were closed
    assert server.counts()["most_in_flight"] == 3 * REQUESTS_PER_POOL + 1


def test_a_request_that_fails_leaves_its_place_in_the_pool(openai_server: Any) -> None:
    server = openai_server({"faults": [{"kind": "server_error"}]})
    answers, pools = asked_at_once(server, REQUESTS_PER_POOL)
    assert [getattr(answer, "kind", "") for answer in answers] == ["transient"] * 2 * REQUESTS_PER_POOL and pools == 1


@pytest.mark.parametrize(
    ("status", "code", "kind", "reason"),
    [
        (404, "", "run", "not_found"),
        (400, "not_found", "request", "not_found"),
        (400, "model_not_found", "run", "model_not_found"),
        (403, "", "run", "forbidden"),
        (400, "forbidden", "request", "forbidden"),
        (302, "", "request", "status_302"),
        (0, "", "transient", "error_in_reply"),
        (503, "", "transient", "status_503"),
    ],
)
def test_a_status_ends_the_run_a_code_of_its_name_only_the_request(status: int, code: str, kind: str, reason: str) -> None:
    failure = failure_of_status(status, refusal_of({"error": {"code": code, "message": "so it is"}}))
    assert (failure.kind, failure.reason) == (kind, reason)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.lists(st.floats(0, 3), min_size=1, max_size=300))
def test_no_minute_gets_more_requests_than_its_limit(per_minute: int, gaps: list[float]) -> None:
    bucket, now, taken = Bucket(per_minute), 0.0, []
    for gap in gaps:
        now += gap * 60 / per_minute
        now += bucket.delay(1, now)
        bucket.take(1, now)
        taken.append(now)
    for start in taken:
        assert sum(start <= at < start + 60 for at in taken) <= per_minute + 1e-6 + (per_minute < 2)


def test_a_busy_bucket_uses_what_it_may() -> None:
    bucket, now = Bucket(600), 0.0
    for _ in range(600 * 5):
        now += bucket.delay(1, now)
        bucket.take(1, now)
    assert 300 <= now < 300 / 0.94


def test_a_request_larger_than_the_bucket_starts_when_it_is_full_and_is_paid_for_afterwards() -> None:
    bucket = Bucket(6_000)
    assert bucket.delay(50_000, 0.0) == 0.0
    bucket.take(50_000, 0.0)
    assert bucket.delay(1, 0.0) == pytest.approx((50_000 - 300 + 1) / bucket.rate)


def test_tokens_estimated_too_high_are_given_back() -> None:
    limits = Limits(8, tokens_per_minute=60_000)
    limits.started(3_000, 0.0)
    assert limits.delay(3_000, 0.0) > 0
    limits.answered(3_000, 0, 0.0)
    assert limits.delay(3_000, 0.0) == 0.0


def test_a_429_halves_once_for_all_that_were_under_way_and_recovers_by_one_a_round() -> None:
    limits = Limits(64)
    for _ in range(40):
        limits.limited(None, started=1.0, now=2.0)
    assert limits.slots() == 32
    limits.limited(None, started=2.5, now=3.0)
    assert limits.slots() == 16
    for _ in range(16):
        limits.answered(1, 1, 4.0)
    assert limits.slots() == 16 and limits.allowed == pytest.approx(17, abs=0.1)
    for _ in range(5_000):
        limits.answered(1, 1, 4.0)
    assert limits.slots() == 64
    for now in range(100):
        limits.limited(None, started=100.0 + now, now=100.5 + now)
    assert limits.slots() == 1


def test_retry_after_pauses_everything() -> None:
    limits = Limits(64)
    limits.limited(7.0, started=0.0, now=1.0)
    assert limits.delay(1, 1.0) == 7.0 and limits.delay(1, 8.0) == 0.0


def test_an_outage_lets_one_scout_through_and_ends_with_an_answer() -> None:
    limits = Limits(64)
    assert [limits.unreachable(0.0) for _ in range(64)] == [0.0] * 64
    assert limits.slots() == 1 and limits.delay(1, 0.0) == 0.5
    waits, now = [], 0.5
    for _ in range(8):
        assert limits.unreachable(now) == now
        waits.append(limits.delay(1, now))
        now += waits[-1]
    assert waits == [1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0, 15.0]
    limits.answered(1, 1, now)
    assert limits.slots() == 64 and limits.unreachable(now) == 0.0
