"""The endpoint's client: the body goes out as it was keyed, the key goes along, and many requests at once share few pools."""

import asyncio
from typing import Any

import pytest
from command import wait_for

from mmpo.annotate.client import REQUESTS_PER_POOL, Answer, Endpoint, EndpointSettings, Failure, failure_of_status

BODY = {
    "model": "judge-a",
    "messages": [{"role": "user", "content": "Grüße: σ(γ·m), 日本, \u2028 <|im_end|>"}],
    "max_tokens": 8,
    "temperature": 0,
    "logprobs": True,
    "top_logprobs": 20,
    "guided_choice": ["A", "B"],
}


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
        (0, "", "transient", "status_0"),
        (503, "", "transient", "status_503"),
    ],
)
def test_a_status_ends_the_run_a_code_of_its_name_only_the_request(status: int, code: str, kind: str, reason: str) -> None:
    failure = failure_of_status(status, code, "so it is")
    assert (failure.kind, failure.reason) == (kind, reason)
