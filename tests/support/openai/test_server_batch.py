"""The Batch API emulator against the real openai client: round trip, failures, expiry, limits, and a restart."""

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types import Batch
from openai_server import Server, serving
from server_client import pair, using

Start = Callable[..., Server]


def line(number: int, **body: Any) -> dict[str, Any]:
    text = pair(f"red {number}", "blue")
    request = {"model": "judge-a", "messages": [{"role": "user", "content": text}], "temperature": 0, "logprobs": True, **body}
    return {"custom_id": f"pair-{number}", "method": "POST", "url": "/v1/chat/completions", "body": request}


def jsonl(lines: list[Any]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in lines)


async def submit(client: AsyncOpenAI, content: bytes, **more: Any) -> Batch:
    file = await client.files.create(file=("pairs.jsonl", content), purpose="batch")
    assert file.bytes == len(content) and file.purpose == "batch"
    return await client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", **more)


async def ended(client: AsyncOpenAI, batch: Batch) -> Batch:
    until = time.monotonic() + 20
    while batch.status not in ("completed", "failed", "expired", "cancelled") and time.monotonic() < until:
        batch = await client.batches.retrieve(batch.id)
        await asyncio.sleep(0.01)
    return batch


async def results(client: AsyncOpenAI, identity: str | None) -> list[dict[str, Any]]:
    if identity is None:
        return []
    return [json.loads(row) for row in (await client.files.content(identity)).content.splitlines()]


def whole(server: Server, content: bytes, **more: Any) -> tuple[Batch, list[dict[str, Any]], list[dict[str, Any]]]:
    """The batch at its end, what its output file and its error file hold."""

    async def work(client: AsyncOpenAI) -> tuple[Batch, list[dict[str, Any]], list[dict[str, Any]]]:
        batch = await ended(client, await submit(client, content, **more))
        return batch, await results(client, batch.output_file_id), await results(client, batch.error_file_id)

    return using(server, work)


def test_a_round_trip_gives_what_chat_gives(openai_server: Start) -> None:
    server = openai_server({})
    lines = [line(number) for number in range(30)]
    batch, done, failed = whole(server, jsonl(lines), metadata={"run": "7"})
    assert batch.status == "completed" and batch.metadata == {"run": "7"} and not failed and batch.error_file_id is None
    assert batch.request_counts and (batch.request_counts.total, batch.request_counts.completed) == (30, 30)
    ids = [row["custom_id"] for row in done]
    assert sorted(ids) == sorted(one["custom_id"] for one in lines) and ids != [one["custom_id"] for one in lines]
    assert all(row["response"]["status_code"] == 200 and row["error"] is None for row in done)
    direct = using(server, lambda client: client.chat.completions.create(**line(4)["body"]))
    [same] = [row["response"]["body"] for row in done if row["custom_id"] == "pair-4"]
    assert same["choices"][0]["message"]["content"] == direct.choices[0].message.content
    assert len(server.batch_log()) == 30 and server.counts()["by_route"]["chat"] == 1


def test_statuses_follow_the_clock(openai_server: Start) -> None:
    server = openai_server({"batch_seconds": 1.0})

    async def watch(client: AsyncOpenAI) -> list[str]:
        batch = await submit(client, jsonl([line(number) for number in range(10)]))
        seen = [batch.status]
        while seen[-1] != "completed":
            batch = await client.batches.retrieve(batch.id)
            assert batch.request_counts and batch.request_counts.completed <= batch.request_counts.total <= 10
            seen += [batch.status] if batch.status != seen[-1] else []
            await asyncio.sleep(0.02)
        return seen

    assert using(server, watch) == ["validating", "in_progress", "finalizing", "completed"]


def test_failed_lines_stand_in_the_error_file(openai_server: Start) -> None:
    faults = [
        {"kind": "rate_limit", "route": "batch_line", "contains": "red 3\n"},
        {"kind": "server_error", "route": "batch_line", "contains": "red 5\n"},
        {"kind": "content_filter", "route": "batch_line", "contains": "red 6\n"},
    ]
    batch, done, failed = whole(openai_server({"faults": faults}), jsonl([line(n) for n in range(8)] + [line(8, n=1000)]))
    assert batch.status == "completed" and batch.request_counts and batch.request_counts.failed == 3
    statuses = {row["custom_id"]: row["response"]["status_code"] for row in failed}
    assert statuses == {"pair-3": 429, "pair-5": 500, "pair-8": 400}
    assert {row["custom_id"] for row in done} == {f"pair-{n}" for n in (0, 1, 2, 4, 6, 7)}
    [filtered] = [row["response"]["body"] for row in done if row["custom_id"] == "pair-6"]
    assert filtered["choices"][0]["finish_reason"] == "content_filter"


def test_an_expired_batch_keeps_what_was_done(openai_server: Start) -> None:
    server = openai_server({"batch_expire": {"share": 0.4, "times": 1}})
    batch, done, failed = whole(server, jsonl([line(number) for number in range(10)]))
    assert batch.status == "expired" and len(done) == 4 and len(failed) == 6
    assert {row["error"]["code"] for row in failed} == {"batch_expired"} and all(row["response"] is None for row in failed)
    again, _, _ = whole(server, jsonl([line(number) for number in range(10)]))
    assert again.status == "completed" and len(server.batch_log()) == 14


@pytest.mark.parametrize(
    ("content", "code", "at"),
    [
        (jsonl([line(0), line(1), line(0)]), "duplicate_custom_id", 3),
        (jsonl([line(0)]) + b'{"custom_id": "x", \n', "invalid_json_line", 2),
        (jsonl([{**line(0), "url": "/v1/embeddings"}]), "invalid_url", 1),
        (jsonl([{"custom_id": "x", "method": "POST"}]), "missing_required_parameter", 1),
        (jsonl([line(0), line(1, model="judge-b")]), "mismatched_model", 2),
        (b"", "empty_file", None),
        (jsonl([{**line(0), "custom_id": 7}]), "invalid_request", 1),
        (jsonl([line(number) for number in range(6)]), "request_limit_exceeded", None),
        (jsonl([line(0, user="x" * 5000)]), "file_size_limit_exceeded", None),
    ],
)
def test_validation_fails_the_whole_batch(openai_server: Start, content: bytes, code: str, at: int | None) -> None:
    server = openai_server({"batch_max_requests": 5, "batch_max_bytes": 4000})
    batch, done, failed = whole(server, content)
    assert batch.status == "failed" and batch.errors and batch.errors.data and not done and not failed
    assert (batch.errors.data[0].code, batch.errors.data[0].line) == (code, at) and batch.errors.data[0].message
    assert server.batch_log() == []


def test_a_planned_failure_is_over_after_its_times(openai_server: Start) -> None:
    content = jsonl([line(number) for number in range(4)])
    server = openai_server({"batch_fail": {"code": "internal", "message": "Try again.", "line": None}})
    failed, _, _ = whole(server, content)
    assert failed.errors and failed.errors.data and failed.errors.data[0].code == "internal"
    assert whole(server, content)[0].status == "completed"


def test_enqueued_tokens_are_those_of_batches_that_have_not_ended(openai_server: Start) -> None:
    content = jsonl([line(number) for number in range(4)])
    server = openai_server({"batch_seconds": 60, "batch_enqueued_tokens": int(len(content) / 4 * 1.5)})

    async def work(client: AsyncOpenAI) -> tuple[Batch, Batch, Batch]:
        first = await submit(client, content)
        await asyncio.to_thread(server.plan, {"batch_seconds": 0})
        second = await ended(client, await submit(client, content))
        await client.batches.cancel(first.id)
        return await ended(client, first), second, await ended(client, await submit(client, content))

    first, second, third = using(server, work)
    assert (first.status, second.status, third.status) == ("cancelled", "failed", "completed")
    assert second.errors and second.errors.data and second.errors.data[0].code == "token_limit_exceeded"


def test_cancelling_keeps_what_was_done(openai_server: Start) -> None:
    server = openai_server({"batch_seconds": 30})

    async def work(client: AsyncOpenAI) -> tuple[Batch, Batch, list[dict[str, Any]]]:
        batch = await submit(client, jsonl([line(number) for number in range(5)]))
        cancelling = await client.batches.cancel(batch.id)
        batch = await ended(client, batch)
        with pytest.raises(openai.BadRequestError):
            await client.batches.cancel(batch.id)
        return cancelling, batch, await results(client, batch.error_file_id)

    cancelling, batch, failed = using(server, work)
    assert cancelling.status == "cancelling" and batch.status == "cancelled" and batch.cancelled_at
    assert [row["error"]["code"] for row in failed] == ["batch_cancelled"] * 5


def test_lists_are_paged_newest_first(openai_server: Start) -> None:
    async def work(client: AsyncOpenAI) -> tuple[list[str], list[str], list[str]]:
        made = [(await submit(client, jsonl([line(number)]))).id for number in range(5)]
        listed = [batch.id async for batch in client.batches.list(limit=2)]
        page = await client.batches.list(limit=2, after=made[3])
        return made, listed, [batch.id for batch in page.data]

    made, listed, page = using(openai_server({}), work)
    assert listed == made[::-1] and page == [made[2], made[1]]


def test_a_lost_reply_leaves_a_batch_that_the_list_shows(openai_server: Start) -> None:
    server = openai_server({"faults": [{"kind": "close", "route": "batches.create", "times": 1}]})

    async def work(client: AsyncOpenAI) -> list[Batch]:
        with pytest.raises(openai.APIConnectionError):
            await submit(client, jsonl([line(0)]), metadata={"mine": "yes"})
        return [batch async for batch in client.batches.list()]

    [batch] = using(server, work)
    assert batch.metadata == {"mine": "yes"}


def test_batches_outlive_the_server(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    with serving({"batch_seconds": 0.5}, state=state) as server:
        batch = using(server, lambda client: submit(client, jsonl([line(number) for number in range(3)])))
        server.kill()
    with serving({}, state=state, port=server.port) as after:

        async def work(client: AsyncOpenAI) -> tuple[Batch, list[dict[str, Any]]]:
            done = await ended(client, batch)
            return done, await results(client, done.output_file_id)

        done, rows = using(after, work)
    assert after.port == server.port and done.status == "completed" and len(rows) == 3
