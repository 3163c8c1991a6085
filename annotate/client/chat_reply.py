"""From the bytes of a reply to an answer: chat completions in the shapes that servers and gateways give them, or why there is none.

Content as text or as typed parts, thinking apart or among them, errors under status 200, streams that nobody asked for, numbers that
can't be.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson

from mmpo.annotate.client.failures import failure_of_status, refusal_of, scrub, without_key
from mmpo.annotate.client.request import Answer, Choice, Failure, Token, estimated_tokens

MOST_TOKENS = 10_000_000
"""No request takes more tokens than this: a greater figure of an endpoint is none."""
NEVER = -1000.0
"""A log-probability as low is a server's minus infinity (-9999 at most of them), which says nothing of the token."""
SHOWN = 200
"""Characters shown of a reply that can't be read."""
THINKING = ("reasoning_content", "reasoning", "thinking")
"""Keys of a message under which servers give what a model thought before it answered."""
ERRORS = ("error", "detail", "errors", "message")


class NoCompletion(ValueError):
    """What came is no chat completion; the message says what it is."""


def read_reply(
    reply: Any, body: Mapping[str, Any], seconds: float, secrets: Sequence[str] = (), wait: float | None = None
) -> Answer | Failure:
    """The answer in a reply that came under status 200. reply: its bytes, or the JSON in them. wait: seconds that an error asks to wait."""
    try:
        return answer_of(_decoded(reply) if isinstance(reply, bytes) else reply, body, seconds, secrets, wait)
    except (NoCompletion, AttributeError, KeyError, TypeError, ValueError) as error:
        what = error if isinstance(error, NoCompletion) else "the reply is no chat completion"
        content = reply[: 4 * SHOWN].decode(errors="replace") if isinstance(reply, bytes) else str(reply)
        begins = " ".join(content.split())[:SHOWN]
        return Failure(
            "transient", "invalid_json", f"{what}; it begins: {scrub(begins, *secrets)}" if begins else "the reply is empty"
        )


def answer_of(
    reply: Any, body: Mapping[str, Any], seconds: float, secrets: Sequence[str] = (), wait: float | None = None
) -> Answer | Failure:
    """The answer in a chat completion, as JSON gives it. Raises NoCompletion where it is none."""
    if not isinstance(reply, Mapping):
        raise NoCompletion("the reply is no chat completion")
    choices, usage = reply.get("choices"), reply.get("usage")
    if not isinstance(choices, list) or not choices:
        if any(reply.get(key) for key in ERRORS):
            return _error(reply, body, secrets, wait)
        if choices == []:
            return Failure("transient", "empty_choices", "the endpoint returned no choice")
        raise NoCompletion("the reply is no chat completion: it holds no list of `choices`")
    found = []
    for choice in choices:
        one, refusal = _choice(choice)
        if refusal:
            paid, words = _answer((), usage, body, seconds, ""), without_key(refusal, *secrets)
            return Failure("request", "refused", scrub(refusal, *secrets)[:300], answer=paid, withheld=replace(one, text=words))
        if one.finish == "content_filter":
            paid = _answer((), usage, body, seconds, one.text)
            words = replace(one, text=without_key(one.text, *secrets))
            return Failure("request", "content_filter", "the endpoint's filter withheld the reply", answer=paid, withheld=words)
        if one.finish == "error" or choice.get("error"):
            said = choice.get("error") or reply.get("error") or "the endpoint ended the reply by an error"
            return _error({"error": said}, body, secrets, wait)
        texts = {name: without_key(getattr(one, name), *secrets) for name in ("text", "thinking", "calls")}
        found.append(replace(one, **texts))
    return _answer(tuple(found), usage, body, seconds, "".join(choice.text + choice.thinking for choice in found))


def _error(reply: Any, body: Mapping[str, Any], secrets: Sequence[str], wait: float | None) -> Failure:
    """An error under status 200, by the code that it gives instead of a status."""
    refusal = refusal_of(reply)
    status = next((int(code) for code in refusal.codes if re.fullmatch("[45][0-9][0-9]", code)), 0)
    if not status and any("rate_limit" in code.lower() or "exhausted" in code.lower() for code in refusal.codes):
        status = 429
    return failure_of_status(status, refusal, wait, sent=body, secrets=secrets)


def _choice(choice: Any) -> tuple[Choice, str]:
    """One reply and the words of a refusal to give one, "" where there are none. Raises NoCompletion."""
    message = choice.get("message") if isinstance(choice, Mapping) else None
    if not isinstance(message, Mapping):
        raise NoCompletion("the reply is no chat completion: a choice holds no `message`")
    text, thinking, refusal = _content(message.get("content"))
    thinking += next((value for key in THINKING if isinstance(value := message.get(key), str) and value), "")
    refusal = str(message.get("refusal") or refusal)
    called = message.get("tool_calls")
    calls = json.dumps(called, ensure_ascii=False) if called else ""
    return Choice(text, str(choice.get("finish_reason") or "stop"), _tokens(choice.get("logprobs")), thinking, calls), refusal


def _content(content: Any) -> tuple[str, str, str]:
    """Text, thinking and refusal of a message's content: a text, one typed part, or a list of them. Raises NoCompletion."""
    if isinstance(content, Mapping) and not {"type", "text"} & content.keys():  # the JSON that was asked for, not as a text
        content = json.dumps(content, ensure_ascii=False)
    text, thinking, refusal = [], [], []
    for part in content if isinstance(content, list) else [content]:
        if part is None:
            continue
        kind = str(part.get("type") or "text").lower() if isinstance(part, Mapping) else "text"
        if "think" in kind or "reason" in kind:
            thinking.append("".join(_texts(part)))
        elif "refusal" in kind:
            refusal.append(str(part.get("refusal") or "refused"))
        elif isinstance(part, str | int | float | Mapping):
            text.append("".join(_texts(part)))
        else:
            raise NoCompletion("the reply's content is neither text nor a list of parts")
    return "".join(text), "".join(thinking), "".join(refusal)


def _texts(part: Any) -> Iterator[str]:
    """The texts in a part, however deep."""
    if isinstance(part, str | int | float):
        yield str(part)
    for one in part if isinstance(part, list) else ():
        yield from _texts(one)
    if isinstance(part, Mapping):
        yield from _texts(next((part[key] for key in ("text", *THINKING, "value", "summary", "content") if part.get(key)), None))


def _answer(choices: tuple[Choice, ...], usage: Any, body: Mapping[str, Any], seconds: float, text: str) -> Answer:
    """usage: as the endpoint reports it; what it does not say, or can't be, is estimated."""
    counts = usage if isinstance(usage, Mapping) else {}
    prompt, reply = _count(counts.get("prompt_tokens")), _count(counts.get("completion_tokens"))
    if prompt is None:
        prompt = sum(estimated_tokens(message["content"]) for message in body["messages"])
    return Answer(choices, prompt, reply if reply is not None else estimated_tokens(text) if text else 0, seconds)


def _count(value: Any) -> int | None:
    """A number of tokens; None where it is not one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST_TOKENS:
        return None
    return int(value) if value == int(value) else None


def _tokens(logprobs: Any) -> tuple[Token, ...]:
    """The tokens with the alternatives that are fit for use: a text and a number above `NEVER` each. None where their list has another
    shape."""
    rows = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) and isinstance(row.get("token"), str) for row in rows):
        return ()
    return tuple(Token(row["token"], tuple(_alternatives(row.get("top_logprobs")))) for row in rows)


def _alternatives(tops: Any) -> Iterator[tuple[str, float]]:
    for top in tops if isinstance(tops, list | tuple) else ():
        token, logprob = (top.get("token"), top.get("logprob")) if isinstance(top, Mapping) else (None, None)
        if isinstance(token, str) and isinstance(logprob, int | float) and NEVER < logprob < math.inf:
            yield token, float(logprob)


# Bytes into JSON


def _decoded(content: bytes) -> Any:
    """The JSON in a reply, which may be one chunk after the other. Raises NoCompletion."""
    if content.lstrip()[:5] in (b"data:", b"event") or content.startswith(b":"):
        return _assembled(_events(content))
    return loads(content)


def loads(content: bytes) -> Any:
    """JSON of others, also with the NaN, Infinity and lone surrogates that Python's writers let through. Raises NoCompletion."""
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        pass
    try:
        value = json.loads(content)
        return json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
    except (ValueError, RecursionError):
        raise NoCompletion("the reply is no JSON") from None


def _events(content: bytes) -> Iterator[Any]:
    """The data of server-sent events. Raises NoCompletion where they end before the reply does."""
    ended = False
    for line in content.splitlines():
        data = line.removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
        if data == b"[DONE]":
            ended = True
        elif data:
            chunk = loads(data)
            if not isinstance(chunk, Mapping):
                raise NoCompletion("the reply is a stream of something else than chunks of a chat completion")
            choices = chunk.get("choices")
            ended |= bool(chunk.get("error")) or any(one.get("finish_reason") for one in choices or () if isinstance(one, Mapping))
            yield chunk
    if not ended:
        raise NoCompletion("the reply is a stream that breaks off")


def _assembled(chunks: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The chat completion that a stream spells."""
    choices: dict[Any, dict[str, Any]] = {}
    whole: dict[str, Any] = {"choices": []}
    for chunk in chunks:
        whole |= {key: chunk[key] for key in ("usage", "error") if chunk.get(key)}
        for part in chunk.get("choices") or ():
            if not isinstance(part, Mapping):
                raise NoCompletion("the reply is a stream of something else than chunks of a chat completion")
            choice = choices.setdefault(part.get("index", 0), {"message": {"content": []}, "logprobs": {"content": []}})
            choice["finish_reason"] = part.get("finish_reason") or choice.get("finish_reason")
            delta = part.get("delta") or part.get("message") or {}
            for key in (*THINKING, "refusal"):
                if isinstance(delta.get(key), str):
                    choice["message"][key] = choice["message"].get(key, "") + delta[key]
            content = delta.get("content")
            choice["message"]["content"] += content if isinstance(content, list) else [content]
            choice["logprobs"]["content"] += (part.get("logprobs") or {}).get("content") or []
    whole["choices"] = list(choices.values())
    return whole
