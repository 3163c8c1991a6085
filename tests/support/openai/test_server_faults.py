"""The test server's faults, limits and latencies, as the real openai client meets them."""

import asyncio
import json
import math
import socket
import statistics
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion
from openai_server import Server
from server_app import App
from server_client import pair, using
from server_limits import draw_latency
from server_plan import Latency

Start = Callable[..., Server]


def request(number: int = 0, **more: Any) -> dict[str, Any]:
    return {"model": "judge-a", "messages": [{"role": "user", "content": pair(f"red {number}", "blue")}], "temperature": 0, **more}


def ask_all(server: Server, bodies: list[dict[str, Any]], at_once: int = 1, **options: Any) -> list[Any]:
    """The replies or exceptions, in the order of the bodies; no retries unless asked for."""

    async def work(client: AsyncOpenAI) -> list[Any]:
        turn = asyncio.Semaphore(at_once)

        async def one(body: dict[str, Any]) -> ChatCompletion:
            async with turn:
                return await client.chat.completions.create(**body)

        return await asyncio.gather(*(one(body) for body in bodies), return_exceptions=True)

    return using(server, work, **options)


def struck(server: Server, **more: Any) -> Any:
    return ask_all(server, [request(**more)])[0]


# --- answers that are errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "error", "code"),
    [
        ("rate_limit", openai.RateLimitError, "rate_limit_exceeded"),
        ("quota", openai.RateLimitError, "insufficient_quota"),
        ("server_error", openai.InternalServerError, None),
        ("bad_gateway", openai.InternalServerError, None),
        ("unavailable", openai.InternalServerError, None),
        ("auth", openai.AuthenticationError, "invalid_api_key"),
        ("forbidden", openai.PermissionDeniedError, "forbidden"),
        ("model", openai.NotFoundError, "model_not_found"),
        ("context", openai.BadRequestError, "context_length_exceeded"),
        ("content_policy", openai.BadRequestError, "content_filter"),
    ],
)
def test_error_answers(openai_server: Start, kind: str, error: type[openai.APIStatusError], code: str | None) -> None:
    server = openai_server({"faults": [{"kind": kind, "times": 1}]})
    refused, after = ask_all(server, [request(), request()])
    assert isinstance(refused, error) and refused.code == code
    assert isinstance(after, ChatCompletion)
    first, second = server.log()
    assert (first["status"], first["fault"], second["status"], second["fault"]) == (refused.status_code, kind, 200, None)
    assert server.counts()["by_fault"] == {kind: 1}


def test_retry_after_in_its_three_spellings(openai_server: Start) -> None:
    at = [{"at": [1], "retry_after": 2}, {"at": [2], "retry_after_ms": 150}, {"at": [3], "retry_after_date": 3}, {"at": [4]}]
    server = openai_server({"faults": [{"kind": "rate_limit", **one} for one in at]})
    headers = [refused.response.headers for refused in ask_all(server, [request()] * 4)]
    assert headers[0]["retry-after"] == "2" and headers[1]["retry-after-ms"] == "150"
    assert 2 < parsedate_to_datetime(headers[2]["retry-after"]).timestamp() - time.time() <= 4
    assert not [name for name in headers[3] if name.startswith("retry")]
    server.plan({"faults": [{"kind": "rate_limit", "times": 1, "retry_after_ms": 300}]})
    start = time.monotonic()
    [reply] = ask_all(server, [request()], max_retries=2)
    assert isinstance(reply, ChatCompletion) and time.monotonic() - start >= 0.3


# --- replies that are broken ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["reset", "close"])
def test_broken_connections(openai_server: Start, kind: str) -> None:
    server = openai_server({"faults": [{"kind": kind, "at": [1]}]})
    broken, after = ask_all(server, [request(), request()])
    assert isinstance(broken, openai.APIConnectionError) and not isinstance(broken, openai.APITimeoutError)
    assert isinstance(after, ChatCompletion)
    first, _ = server.log()
    assert not first["sent"] and first["status"] == (200 if kind == "reset" else None)


def test_a_reset_is_a_reset_in_mid_body(openai_server: Start) -> None:
    server = openai_server({"faults": [{"kind": "reset"}]})
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        body = b'{"model": "m", "messages": [{"role": "user", "content": "x"}]}'
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        part = connection.recv(1 << 16)
        assert b"200 OK" in part and b'"id"' in part and b'"usage"' not in part
        with pytest.raises(ConnectionResetError):
            connection.recv(1 << 16)


def test_a_hanging_request_ends_with_the_client(openai_server: Start) -> None:
    server = openai_server({"faults": [{"kind": "hang", "at": [1]}]})
    started = time.time()
    [lost] = ask_all(server, [request()], timeout=0.3)
    assert isinstance(lost, openai.APITimeoutError)
    until = time.monotonic() + 10
    while not any(record["finished"] for record in server.log()) and time.monotonic() < until:
        time.sleep(0.01)
    [record] = server.log()
    assert record["status"] is None and not record["sent"] and record["finished"] - started >= 0.3
    assert server.counts()["in_flight"] == 0


@pytest.mark.parametrize("kind", ["bad_json", "cut_json"])
def test_bodies_that_are_no_json_are_answered_with_200(openai_server: Start, kind: str) -> None:
    """The client raises json's own error, not one of openai's: whoever calls it must expect both."""
    server = openai_server({"faults": [{"kind": kind}]})
    with pytest.raises(ValueError):
        raise struck(server)
    assert server.log()[0]["status"] == 200 and server.counts()["answered"] == 0


def test_replies_without_a_verdict(openai_server: Start) -> None:
    kinds = ["empty_choices", "content_filter", "refusal", "length", "unparsable", "no_logprobs"]
    server = openai_server({"faults": [{"kind": kind, "at": [place + 1]} for place, kind in enumerate(kinds)]})
    replies = ask_all(server, [request(logprobs=True)] * len(kinds))
    assert replies[0].choices == []
    filtered, refusal, length, rambling, silent = (reply.choices[0] for reply in replies[1:])
    assert filtered.message.content is None and filtered.finish_reason == "content_filter"
    assert refusal.message.content is None and refusal.message.refusal
    assert length.message.content == "" and length.finish_reason == "length" and length.logprobs.content == []
    assert len(rambling.message.content) > 20
    assert len(silent.message.content) == 1 and silent.logprobs is None


def test_low_mass_leaves_little_to_the_grades(openai_server: Start) -> None:
    server = openai_server({"faults": [{"kind": "low_mass", "mass": 0.02}]})
    [token] = struck(server, logprobs=True, top_logprobs=20).choices[0].logprobs.content
    grades = sum(math.exp(top.logprob) for top in token.top_logprobs if top.token in "ABCDEFG")
    assert grades == pytest.approx(0.02) and token.top_logprobs[0].token not in "ABCDEFG"


# --- whom a fault strikes ---------------------------------------------------------------------------------------------


def test_conditions_hold_together(openai_server: Start) -> None:
    server = openai_server(
        {"faults": [{"kind": "context", "contains": "red 3\n", "attempts": 1}, {"kind": "auth", "model": "other"}]}
    )
    bodies = [request(number) for number in range(5)] * 2 + [request(0, model="other")]
    replies = ask_all(server, bodies)
    assert [place for place, reply in enumerate(replies) if isinstance(reply, Exception)] == [3, 10]
    digest = server.log()[2]["digest"]
    server.plan({"faults": [{"kind": "server_error", "prefix": digest[:8]}]})
    assert [isinstance(reply, Exception) for reply in ask_all(server, bodies[:5])] == [False, False, True, False, False]


def test_chances_do_not_depend_on_the_order(openai_server: Start) -> None:
    plan = {"seed": 3, "faults": [{"kind": "server_error", "probability": 0.3}]}
    bodies = [request(number) for number in range(200)]
    there = ask_all(openai_server(plan), bodies, at_once=20)
    back = ask_all(openai_server(plan), bodies[::-1], at_once=20)[::-1]
    failed = [isinstance(reply, Exception) for reply in there]
    assert failed == [isinstance(reply, Exception) for reply in back]
    assert 35 <= sum(failed) <= 85  # 60 expected, standard deviation 6.5


# --- time -------------------------------------------------------------------------------------------------------------


def test_latency_is_drawn_in_order_of_arrival_and_kept(openai_server: Start) -> None:
    server = openai_server({"latency": {"median": 0.05, "p99": 0.5}, "seed": 4})
    ask_all(server, [request(number) for number in range(40)], at_once=40)
    log = server.log()
    assert [record["latency"] for record in log] == [draw_latency(Latency(0.05, 0.5), 4, seq) for seq in range(1, 41)]
    assert all(record["finished"] - record["arrived"] >= record["latency"] - 0.002 for record in log)
    assert server.counts()["most_in_flight"] >= 20
    server.plan({"latency": 0.0, "faults": [{"kind": "slow", "seconds": 0.2, "at": [41]}]})
    struck(server)
    assert server.log()[-1]["latency"] == 0.2


def test_drawn_latencies_have_their_median_and_99th_percentile() -> None:
    drawn = sorted(draw_latency(Latency(0.2, 5.0), 0, seq) for seq in range(20_000))
    assert statistics.median(drawn) == pytest.approx(0.2, rel=0.05)
    assert drawn[19_800] == pytest.approx(5.0, rel=0.15)


def test_rate_limits_are_enforced_and_counted(openai_server: Start) -> None:
    """Ten requests of burst, then 10 a second: the next one has to wait for what the headers say."""
    server = openai_server({"rate_limit": {"requests_per_minute": 600, "burst_seconds": 1}})
    replies = ask_all(server, [request(number) for number in range(20)], at_once=20)
    refused = [reply for reply in replies if isinstance(reply, openai.RateLimitError)]
    assert 5 <= len(refused) <= 10 and server.counts()["rate_limit_violations"] == len(refused)
    headers = refused[-1].response.headers
    assert headers["retry-after"] == "1" and 0 < int(headers["retry-after-ms"]) <= 100
    assert headers["x-ratelimit-limit-requests"] == "600" and headers["x-ratelimit-remaining-requests"] == "0"
    time.sleep(0.25)
    assert isinstance(struck(server), ChatCompletion)
    server.plan({"rate_limit": {"tokens_per_minute": 6000, "burst_seconds": 1}})
    first, second = ask_all(server, [request(max_tokens=90), request(1, max_tokens=90)])
    assert isinstance(first, ChatCompletion) and isinstance(second, openai.RateLimitError) and second.type == "tokens"


def test_down_for_a_while_on_the_same_port(openai_server: Start) -> None:
    server = openai_server({"latency": 2.0})

    async def work(client: AsyncOpenAI) -> tuple[Any, float]:
        waiting = asyncio.create_task(client.chat.completions.create(**request()))
        await asyncio.sleep(0.3)
        await asyncio.to_thread(server.plan, {"down": 0.6, "latency": 0.0})
        start = time.monotonic()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port), timeout=5)
        with pytest.raises(openai.APIConnectionError):
            await waiting
        with pytest.raises(openai.APIConnectionError):
            await client.chat.completions.create(**request())
        await asyncio.to_thread(server.counts)  # waits until it is back
        return await client.chat.completions.create(**request()), time.monotonic() - start

    reply, seconds = using(server, work)
    assert isinstance(reply, ChatCompletion) and 0.5 < seconds < 5
    assert [record["sent"] for record in server.log()] == [False, True]


def test_a_fault_can_bring_it_down(openai_server: Start) -> None:
    server = openai_server({"faults": [{"kind": "down", "seconds": 0.3, "at": [2]}]})
    first, second, third, *_ = ask_all(server, [request(number) for number in range(3)])
    assert isinstance(first, ChatCompletion)
    assert isinstance(second, openai.APIConnectionError) and isinstance(third, openai.APIConnectionError)
    assert [record["seq"] for record in server.log()] == [1, 2]
    assert isinstance(struck(server), ChatCompletion)


def test_an_outage_leaves_nothing_marked_as_sent_that_was_due_in_the_same_moment() -> None:
    async def work() -> list[Any]:
        app = App({"latency": 0.05}, {}, None)
        reader, writer = await asyncio.open_connection("127.0.0.1", await app.gate.listen(0))
        body = json.dumps(request()).encode()
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
        while not app.ledger.chat:
            await asyncio.sleep(0.001)
        loop = asyncio.get_running_loop()
        loop.call_later(0.01, app.go_down, 60)
        loop.call_soon(time.sleep, 0.2)  # a busy machine: the outage and the answer are both due when the loop looks again
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        app.gate.reservation.close()
        return app.ledger.chat

    (record,) = asyncio.run(work())
    assert not record.sent and record.status is None


def test_keys_are_checked_where_the_plan_names_some(openai_server: Start) -> None:
    server = openai_server({"api_keys": ["other"]})
    assert isinstance(struck(server), openai.AuthenticationError)
    server.plan({"api_keys": ["other", "key-1"]})
    assert isinstance(struck(server), ChatCompletion)
