"""Replies of every shape, read as what they are or refused in words; one deadline and one limit on the bytes of a reply."""

import asyncio
import gzip
import json
import math
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_endpoint import CHAT, Came, chat, raw_endpoint

from mmpo.annotate.client import Answer, Choice, Endpoint, EndpointSettings, Failure, failure_of_status, refusal_of
from mmpo.annotate.client import endpoint as the_endpoint
from mmpo.annotate.client.chat_reply import read_reply


def asked(answering: Any, timeout: float = 20.0, **settings: Any) -> Answer | Failure:
    """What one request to such an endpoint gives."""
    with raw_endpoint(answering) as server:
        return ask(EndpointSettings("m", server.base_url, **settings), timeout)


def ask(settings: EndpointSettings, timeout: float = 20.0) -> Answer | Failure:
    async def run() -> Answer | Failure:
        async with Endpoint(settings, timeout) as endpoint:
            return await endpoint.ask(CHAT)

    return asyncio.run(run())


def event(delta: Any, **more: Any) -> str:
    return "data: " + json.dumps({"choices": [{"index": 0, "delta": delta, **more}]}) + "\n\n"


THOUGHT = [{"type": "text", "text": "Let me "}, {"type": "text", "text": "compare."}]
LOGPROBS = {"content": [{"token": "C", "top_logprobs": [{"token": "C", "logprob": math.log(0.5)}]}]}


@pytest.mark.parametrize(
    ("reply", "text", "thinking"),
    [
        (chat([{"type": "thinking", "thinking": THOUGHT}, {"type": "text", "text": "C"}]), "C", "Let me compare."),
        (chat([{"type": "text", "text": "Verdict: "}, {"type": "text", "text": "C"}]), "Verdict: C", ""),
        (chat({"type": "text", "text": "C"}), "C", ""),
        (chat(["C"]), "C", ""),
        (chat(3), "3", ""),
        (chat({"grade": "C"}), '{"grade": "C"}', ""),
        (chat({"role": "assistant", "content": "C", "reasoning_content": "They want"}), "C", "They want"),
        (chat({"role": "assistant", "content": "C", "reasoning": "They want"}), "C", "They want"),
        (chat({"role": "assistant", "content": None, "reasoning_content": "A user"}, finish_reason="length"), "", "A user"),
        (chat("C", logprobs={"tokens": ["C"], "token_logprobs": [0.0]}), "C", ""),
        (chat("C", logprobs={"content": [{"token": "C", "top_logprobs": "none"}]}), "C", ""),
        (chat("C", logprobs=[1, 2]), "C", ""),
        (json.dumps(chat("C", logprobs={"content": [{"token": "C", "logprob": -math.inf}]})).encode(), "C", ""),
        (json.dumps(chat("\ud800 C")).encode(), "? C", ""),
        ((event({"content": "C"}) + "data: [DONE]\n\n").encode(), "C", ""),
        (
            (event({"role": "assistant", "reasoning_content": "They "}) + event({"reasoning_content": "want"}) + ": ping\n\n"
             + event({"content": "Verdict: "}) + event({"content": "C"}, finish_reason="stop")).encode(), "Verdict: C", "They want",
        ),
    ],
)  # fmt: skip
def test_a_reply_is_read_whatever_its_shape(reply: Any, text: str, thinking: str) -> None:
    found = asked(reply)
    assert isinstance(found, Answer)
    [choice] = found.choices
    assert (choice.text, choice.thinking) == (text, thinking)
    assert Answer.loads(found.dumps(), found.prompt_tokens, found.reply_tokens, found.seconds) == found


def test_a_stream_has_its_log_probabilities_and_its_figures() -> None:
    last = "data: " + json.dumps({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}) + "\n\ndata: [DONE]\n\n"
    found = asked((event({"content": "C"}, logprobs=LOGPROBS) + event({}, finish_reason="stop") + last).encode())
    assert isinstance(found, Answer) and (found.prompt_tokens, found.reply_tokens) == (7, 2)
    assert found.choices[0].tokens[0].top == (("C", math.log(0.5)),)


@pytest.mark.parametrize(
    ("reply", "kind", "reason", "said"),
    [
        ({"error": {"message": "too many", "code": 429}, "user_id": "u"}, "rate_limit", "rate_limit", "too many"),
        ({"error": {"message": "too many", "code": "rate_limit_exceeded"}}, "rate_limit", "rate_limit", "too many"),
        ({"error": {"message": "add credits", "code": 402}}, "run", "insufficient_quota", "no credit left: add credits"),
        ({"error": {"message": "no", "code": "model_not_found"}, "choices": []}, "run", "model_not_found", "no such model: no"),
        ({"error": "upstream is away"}, "transient", "error_in_reply", "upstream is away"),
        ({"object": "error", "message": "top_logprobs is too large", "code": 400}, "request", "status_400", "top_logprobs"),
        ({"detail": "not now"}, "transient", "error_in_reply", "not now"),
        (chat("half of", finish_reason="error", error={"message": "died", "code": 502}), "transient", "status_502", "died"),
        ({"choices": []}, "transient", "empty_choices", "no choice"),
        ({"choices": [{"text": "C"}]}, "transient", "invalid_json", "no `message`"),
        ({"answer": "C"}, "transient", "invalid_json", "no list of `choices`"),
        (
            b"<html><body>Please sign in</body></html>",
            "transient",
            "invalid_json",
            "begins: <html><body>Please sign in</body></html>",
        ),
        (b"", "transient", "invalid_json", "the reply is empty"),
        (b"[1, 2]", "transient", "invalid_json", "no chat completion; it begins: [1, 2]"),
        (b"[" * 5000, "transient", "invalid_json", "no JSON"),
        (event({"content": "C"}).encode(), "transient", "invalid_json", "breaks off"),
        (b'data: {"error": {"message": "overloaded", "code": 503}}\n\n', "transient", "status_503", "overloaded"),
        (chat({"role": "assistant", "content": None, "refusal": "I can't."}), "request", "refused", "I can't."),
        (chat([{"type": "refusal", "refusal": "I can't."}]), "request", "refused", "I can't."),
    ],
)
def test_what_is_no_answer_is_called_what_it_is(reply: Any, kind: str, reason: str, said: str) -> None:
    found = asked(reply)
    assert isinstance(found, Failure) and (found.kind, found.reason) == (kind, reason)
    assert said in found.message and not any(name in found.message for name in ("KeyError", "TypeError", "JSONDecodeError"))


@pytest.mark.parametrize(
    ("status", "body", "kind", "said"),
    [
        (403, {"error": {"message": "parameter logprobs: not offered for this model"}}, "request", "logprobs"),
        (403, {"detail": "not for you"}, "run", "the key has no access: not for you"),
        (403, {"error": "this user has no access to the model"}, "run", "the key has no access: this user"),
        (404, {"error": {"message": "max_tokens is not supported here", "code": "model_not_found"}}, "run", "no such model"),
        (
            422,
            {"detail": [{"loc": ["body", "logprobs"], "msg": "Extra inputs are not permitted"}]},
            "request",
            "logprobs: Extra inputs",
        ),
        (429, {"detail": "reduce max_tokens or come later"}, "rate_limit", "come later"),
        (500, {"detail": "parameter logprobs: not offered"}, "transient", "logprobs"),
        (502, b"<html>bad gateway</html>", "transient", "<html>bad gateway</html>"),
        (503, b"", "transient", "status 503, without a word"),
    ],
)
def test_a_refusal_goes_by_its_words_and_by_its_status(status: int, body: Any, kind: str, said: str) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    found = asked(lambda came: (status, {}, raw))
    assert isinstance(found, Failure) and found.kind == kind and said in found.message


@pytest.mark.parametrize("wrong", [-100, 1.5, 10**30, "x", True, 1e300, None, [3]])
def test_impossible_figures_are_estimated_and_cost_no_answer(wrong: Any) -> None:
    for usage in ({"prompt_tokens": wrong, "completion_tokens": wrong}, wrong):
        found = asked(chat("C", usage=usage))
        assert isinstance(found, Answer) and found.choices[0].text == "C"
        assert 0 < found.prompt_tokens < 100 and 0 < found.reply_tokens < 100


leaves = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.sampled_from(["text", "error", "C"])
)
KEYS = ("choices", "message", "content", "usage", "prompt_tokens", "logprobs", "token", "top_logprobs", "logprob", "error", "code", "type",
        "text", "detail", "finish_reason", "delta", "refusal", "thinking", "reasoning_content", "loc", "msg", "index")  # fmt: skip
bodies = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=20,
)
choices = st.fixed_dictionaries(
    {"message": st.dictionaries(st.sampled_from(KEYS), bodies, max_size=4)}, optional={"logprobs": bodies}
)
replies = bodies | st.fixed_dictionaries(
    {"choices": st.lists(choices | bodies, max_size=2)}, optional={"usage": bodies, "error": bodies}
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(replies, st.booleans())
def test_no_reply_of_any_shape_is_more_than_an_answer_or_a_failure(reply: Any, streamed: bool) -> None:
    raw = json.dumps(reply).encode()
    raw = b"data: " + raw + b"\n\ndata: [DONE]\n\n" if streamed else raw
    for found in (read_reply(raw, CHAT, 0.0), read_reply(reply, CHAT, 0.0), failure_of_status(400, refusal_of(raw), sent=CHAT)):
        if isinstance(found, Answer):
            assert 0 <= found.prompt_tokens <= 10_000_000 and 0 <= found.reply_tokens <= 10_000_000
            assert Answer.loads(found.dumps(), 0, 0, 0.0).choices == found.choices
        else:
            assert found.reason and found.message.encode()


def drips(part: bytes, pause: float) -> Any:
    """An endpoint that sends a part again and again."""
    stop = time.monotonic() + 30.0

    def parts() -> Iterator[bytes]:
        while time.monotonic() < stop:
            time.sleep(pause)
            yield part

    return lambda came: (200, {"Content-Type": "application/json"}, parts())


@pytest.mark.parametrize(("part", "pause"), [(b"{", 0.25), (b" " * 1000, 0.01)], ids=["a byte every .25 s", "white space for ever"])
def test_the_time_limit_is_of_the_whole_request(part: bytes, pause: float) -> None:
    started = time.monotonic()
    found = asked(drips(part, pause), timeout=1.0)
    assert isinstance(found, Failure) and (found.kind, found.reason) == ("transient", "timeout") and "--timeout" in found.message
    assert time.monotonic() - started < 6.0


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_a_reply_is_not_read_beyond_its_limit(status: int, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(the_endpoint, "MOST_REPLY_BYTES", 1 << 20)
    body, headers = (gzip.compress(b" " * (8 << 20)), {"Content-Encoding": "gzip"}) if packed else (b" " * (2 << 20), {})
    found = asked(lambda came: (status, headers, body))
    assert isinstance(found, Failure) and (found.kind, found.reason) == ("request", "reply_too_large")
    assert "1,048,576 bytes" in found.message


def test_query_and_headers_go_along_and_take_the_place_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-host")
    monkeypatch.setenv("AZURE_KEY", "azure-secret-0123456789")

    def answering(came: Came) -> tuple[int, dict[str, str], bytes]:
        return 400, {}, f'{{"error": "no such thing, {came.headers["api-key"]}"}}'.encode()

    with raw_endpoint(answering) as server:
        address = server.base_url.replace("/v1", "/openai/deployments/judge") + "?api-version=2024-10-21"
        headers = {"api-key": "env:AZURE_KEY", "x-title": "grades, with a comma"}
        found = ask(EndpointSettings("m", address, headers=headers))
        [came] = server.came
    assert came.path == "/openai/deployments/judge/chat/completions?api-version=2024-10-21" and came.body == CHAT
    assert (came.headers["api-key"], came.headers["x-title"]) == ("azure-secret-0123456789", "grades, with a comma")
    assert "authorization" not in came.headers
    assert isinstance(found, Failure) and found.message == "no such thing, [key] (status 400)"


def test_a_header_with_a_key_is_not_taken_along_to_another_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "a-secret")
    with raw_endpoint(chat("C")) as other:
        moved = {"Location": other.base_url + "/chat/completions"}
        found = asked(lambda came: (307, moved, b""), headers={"api-key": "env:MY_KEY"})
        assert not other.came
    assert isinstance(found, Failure) and found.kind == "request" and other.base_url in found.message


def test_thinking_apart_is_kept_and_a_reply_without_any_is_kept_as_before() -> None:
    plain = Answer((Choice("C"),), 1, 1, 0.0)
    assert json.loads(plain.dumps()) == [["C", "stop", []]]
