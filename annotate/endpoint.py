"""One judge's endpoint: the openai client, one request at a time, everything that can go wrong as a value.

The client's own retries are off: waiting, retrying and giving up are decided in one place, `engine`.
"""

import os
import time
from collections.abc import Mapping
from typing import Any

import orjson

from mmpo.annotate.failures import failure_of, scrub
from mmpo.annotate.options import OPENAI, Judge
from mmpo.annotate.reading import Choice, Token
from mmpo.annotate.request import Answer, Failure, estimated_tokens
from mmpo.pipeline.errors import UserError

__all__ = ["Endpoint", "answer_of", "api_key"]

LOCAL_KEY = "none"
"""What servers without keys are sent: the client insists on one."""


def api_key(judge: Judge) -> str:
    """The key from the judge's environment variable; servers other than OpenAI's may do without. Raises UserError."""
    key = os.environ.get(judge.api_key_env, "").strip()
    if not key and judge.base_url.rstrip("/") == OPENAI:
        raise UserError(
            f"judge {judge.name}: the environment variable {judge.api_key_env} is not set; export the API key there, "
            "or name another endpoint by --base-url or another variable by --api-key-env"
        )
    return key or LOCAL_KEY


class Endpoint:
    """The openai client of one judge; an async context manager."""

    def __init__(self, judge: Judge, timeout: float) -> None:
        import openai

        self.judge = judge
        self._key = api_key(judge)
        self._secret = self._key if self._key != LOCAL_KEY else None
        self.client = openai.AsyncOpenAI(
            api_key=self._key, base_url=judge.base_url, max_retries=0, timeout=openai.Timeout(timeout, connect=min(10.0, timeout))
        )

    async def __aenter__(self) -> "Endpoint":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.client.close()

    async def ask(self, body: Mapping[str, Any]) -> Answer | Failure:
        """Send one request; never raises for what an endpoint can do."""
        started = time.monotonic()
        try:
            raw = await self.client.chat.completions.with_raw_response.create(**arguments(body))
        except ValueError as error:  # the client lets the JSON decoder's own error through
            return Failure("transient", "invalid_json", self.scrubbed(str(error))[:300])
        except Exception as error:
            return failure_of(error, self._secret)
        return self.read(raw.http_response.content, body, time.monotonic() - started)

    def read(self, content: bytes, body: Mapping[str, Any], seconds: float) -> Answer | Failure:
        """The answer in a reply's bytes."""
        try:
            return answer_of(orjson.loads(content), body, seconds, self._secret)
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
            return Failure("transient", "invalid_json", f"the reply is no chat completion: {type(error).__name__}: {error}"[:300])

    def scrubbed(self, text: str) -> str:
        """The text without this judge's key."""
        return scrub(text, self._secret)


KNOWN = frozenset(
    [
        "messages",
        "model",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "n",
        "seed",
        "logprobs",
        "top_logprobs",
        "response_format",
        "stop",
        "reasoning_effort",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
        "user",
        "service_tier",
    ]
)


def arguments(body: Mapping[str, Any]) -> dict[str, Any]:
    """The client's arguments: what it doesn't know goes along as extra_body."""
    own = {name: value for name, value in body.items() if name in KNOWN}
    extra = {name: value for name, value in body.items() if name not in KNOWN}
    return {**own, "extra_body": extra} if extra else own


def answer_of(reply: Any, body: Mapping[str, Any], seconds: float, secret: str | None = None) -> Answer | Failure:
    """The answer in a chat completion. Raises KeyError, TypeError or ValueError where it is none."""
    choices = reply["choices"]
    if not choices:
        return Failure("transient", "empty_choices", "the endpoint returned no choice")
    usage = reply.get("usage") or {}
    found = []
    for choice in choices:
        message = choice["message"]
        refusal = message.get("refusal")
        if refusal:
            return Failure("request", "refused", scrub(str(refusal), secret)[:300], answer=_answer((), usage, body, seconds, ""))
        text = message.get("content") or ""
        finish = str(choice.get("finish_reason") or "stop")
        if finish == "content_filter":
            paid = _answer((), usage, body, seconds, text)
            return Failure("request", "content_filter", "the endpoint's filter withheld the reply", answer=paid)
        found.append(Choice(scrub(text, secret), finish, _tokens(choice.get("logprobs"))))
    return _answer(tuple(found), usage, body, seconds, "".join(choice.text for choice in found))


def _answer(choices: tuple[Choice, ...], usage: Mapping[str, Any], body: Mapping[str, Any], seconds: float, text: str) -> Answer:
    prompt, reply = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if prompt is None:
        prompt = sum(estimated_tokens(message["content"]) for message in body["messages"])
    return Answer(choices, int(prompt), int(reply if reply is not None else estimated_tokens(text) if text else 0), seconds)


def _tokens(logprobs: Any) -> tuple[Token, ...]:
    rows = (logprobs or {}).get("content") or ()
    return tuple(
        Token(row["token"], tuple((top["token"], top["logprob"]) for top in row.get("top_logprobs") or ())) for row in rows
    )
