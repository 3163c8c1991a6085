"""Rows of a batch's results: replies and refusals in any shape are read as those of single requests; a slow transfer ends."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from raw_endpoint import Came, chat, raw_endpoint

from mmpo.annotate.batch import api
from mmpo.annotate.batch.api import BatchApi, BatchSettings, CallRefused
from mmpo.annotate.batch.results import light, outcome_of
from mmpo.annotate.client import Answer, Endpoint, EndpointSettings, Failure, Request, Stop

REQUEST = Request(b"k" * 16, {"messages": []}, 40, 8)
SETTINGS = BatchSettings(10, 10_000, 0.1, retries=0, outage_timeout=0.0)


def row(status: int | None, body: Any, error: Any = None) -> dict[str, Any]:
    response = None if status is None else {"status_code": status, "body": body}
    return {"custom_id": REQUEST.key.hex(), "response": response, "error": error}


def read(line: dict[str, Any], request: Request = REQUEST) -> Answer | Failure:
    async def run() -> Answer | Failure:
        async with Endpoint(EndpointSettings("m", "http://127.0.0.1:9/v1"), 5.0) as endpoint:
            return outcome_of(line, request, endpoint)

    return asyncio.run(run())


@pytest.mark.parametrize("usage", [None, {"prompt_tokens": -100, "completion_tokens": 10**30}])
def test_a_reply_in_parts_is_read_and_impossible_figures_are_estimated(usage: Any) -> None:
    found = read(row(200, chat([{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "C"}], usage=usage)))
    assert isinstance(found, Answer) and (found.choices[0].text, found.choices[0].thinking) == ("C", "Hm.")
    assert found.prompt_tokens == 40 and 0 < found.reply_tokens < 10


@pytest.mark.parametrize(
    ("line", "kind", "said"),
    [
        (row(400, {"detail": "temperature must be 1"}), "request", "temperature must be 1"),
        (row(400, "temperature must be 1"), "request", "temperature must be 1"),
        (row(402, {"error": "top up"}), "run", "no credit left: top up"),
        (row(500, {"detail": "later"}), "transient", "later"),
        (row(200, {"error": {"code": 402, "message": "top up"}}), "run", "no credit left: top up"),
        (row(200, "<html>"), "transient", "no chat completion"),
        (row(None, None, {"code": "batch_expired", "message": "too late"}), "transient", "too late"),
        (row("200", {}), "transient", "failed in its batch"),  # type: ignore[arg-type]
    ],
)
def test_refusals_in_any_shape_are_read(line: dict[str, Any], kind: str, said: str) -> None:
    found = read(line)
    assert isinstance(found, Failure) and found.kind == kind and said in found.message


@pytest.mark.parametrize(("asked", "kind"), [({"logprobs": True}, "request"), ({}, "run")])
def test_a_refusal_of_a_parameter_that_was_sent_is_no_word_about_the_key(asked: dict[str, Any], kind: str) -> None:
    """Of a request that waits in a batch the texts are gone, the names of its parameters are not."""
    waiting = light(Request(REQUEST.key, {"messages": [{"role": "user", "content": "q"}], **asked}, 40, 8))
    assert waiting.body["messages"] == []
    found = read(row(403, {"error": {"message": "parameter logprobs: not offered for this model"}}), waiting)
    assert isinstance(found, Failure) and found.kind == kind


def results(parts: Iterator[bytes] | bytes, folder: Path, timeout: float = 5.0) -> list[Any]:
    """The rows of a file of results as an endpoint sends it."""

    async def run() -> list[Any]:
        taken: list[Any] = []

        async def take(rows: list[Any]) -> None:
            taken.extend(rows)

        async with Endpoint(EndpointSettings("m", server.base_url), timeout) as endpoint:
            await BatchApi(endpoint, SETTINGS, Stop()).results("file-1", folder, take)
        return taken

    def answering(came: Came) -> tuple[int, dict[str, str], Any]:
        return 200, {}, parts

    with raw_endpoint(answering) as server:
        return asyncio.run(run())


def test_a_row_with_numbers_or_characters_that_are_none_costs_no_other_row(tmp_path: Path) -> None:
    lines = [json.dumps(row(200, chat("C"))), json.dumps(row(200, chat("\ud800", usage={"prompt_tokens": float("nan")})))]
    found = results("\n".join(lines).encode(), tmp_path)
    assert [one["response"]["body"]["choices"][0]["message"]["content"] for one in found] == ["C", "?"]


def test_a_transfer_that_never_ends_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "SLOWEST", 1 << 20)
    stop = time.monotonic() + 20.0

    def drips() -> Iterator[bytes]:
        while time.monotonic() < stop:
            time.sleep(0.05)
            yield b" "

    with pytest.raises(CallRefused, match="time limit"):
        results(drips(), tmp_path, timeout=1.0)
    assert time.monotonic() < stop - 10
