"""One judge's endpoint: the openai client, one request at a time, everything that can go wrong as a value.

The client's own retries are off: waiting, retrying and giving up are decided in one place, `engine`.
"""

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import orjson

from mmpo.annotate.client.failures import failure_of, scrub, without_key
from mmpo.annotate.client.request import Answer, Choice, Failure, Token, estimated_tokens
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.options import Count, Positive

if TYPE_CHECKING:
    from openai import AsyncOpenAI

OPENAI = "https://api.openai.com/v1"

LOCAL_KEY = "none"
"""What servers without keys are sent: the client insists on one."""
REQUESTS_PER_POOL = 32
"""Requests at once over one pool of connections: a pool looks at all of its connections twice a request, and with 512 requests in flight
that is half of the CPU.
"""


def public_url(url: str) -> str:
    """The address without user, password and query, as it may be written down.

    >>> public_url("https://me:secret@host:8000/v1?key=1")
    'https://host:8000/v1'
    >>> public_url("http://[::1]:6900")
    'http://[::1]:6900'
    """
    parts = urlsplit(url)
    name = parts.hostname or ""
    host = (f"[{name}]" if ":" in name else name) + (f":{parts.port}" if parts.port else "")
    return f"{parts.scheme}://{host}{parts.path}"


@dataclass(frozen=True)
class EndpointSettings:
    """A model at an OpenAI-compatible endpoint, and what it bears: requests in flight, requests and tokens a minute (None: not known).

    api_key_env: the environment variable with the key. extra_body: sent along with every request.
    """

    model: str
    base_url: str = OPENAI
    api_key_env: str = "OPENAI_API_KEY"
    concurrency: Count | None = None
    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For messages."""
        return self.model


def api_key(judge: EndpointSettings) -> str:
    """The key from the judge's environment variable; servers other than OpenAI's may do without. Raises UserError."""
    key = os.environ.get(judge.api_key_env, "").strip()
    if not key and judge.base_url.rstrip("/") == OPENAI:
        raise UserError(
            f"judge {judge.name}: the environment variable {judge.api_key_env} is not set; export the API key there, "
            "or name another endpoint by --base-url or another variable by --api-key-env"
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError(
            f"judge {judge.name}: the key in {judge.api_key_env} holds characters that no key has (line breaks, letters beyond ASCII); "
            "export it again"
        )
    return key or LOCAL_KEY


class Endpoint:
    """The openai client of one judge, `client`, and more of them beside it as requests at once become many; an async context manager."""

    def __init__(self, judge: EndpointSettings, timeout: float) -> None:
        self.judge, self._timeout = judge, timeout
        self._key = api_key(judge)
        self._secret = self._key if self._key != LOCAL_KEY else None
        self.client = self._new()
        self._pools = [_Pool(self.client)]

    def _new(self) -> "AsyncOpenAI":
        import openai

        timeout = openai.Timeout(self._timeout, connect=min(10.0, self._timeout))
        return openai.AsyncOpenAI(api_key=self._key, base_url=self.judge.base_url, max_retries=0, timeout=timeout)

    async def __aenter__(self) -> "Endpoint":
        return self

    async def __aexit__(self, *error: object) -> None:
        for pool in self._pools:
            await pool.client.close()

    async def ask(self, body: Mapping[str, Any]) -> Answer | Failure:
        """Send one request; never raises for what an endpoint can do.

        Bytes go out and come in: the client's typed ways there and back cost a quarter of a request's CPU.
        """
        import httpx2

        started, pool = time.monotonic(), self._pool()
        pool.busy += 1
        try:
            response = await pool.client.post("/chat/completions", cast_to=httpx2.Response, content=orjson.dumps(body))
        except ValueError as error:  # the client lets the JSON decoder's own error through
            return Failure("transient", "invalid_json", self.scrubbed(str(error))[:300])
        except Exception as error:
            return self.failure(error)
        finally:
            pool.busy -= 1
        return self.read(response.content, body, time.monotonic() - started)

    def _pool(self) -> "_Pool":
        """The first pool with room, so that few connections stay warm; a new one where there is none."""
        for pool in self._pools:
            if pool.busy < REQUESTS_PER_POOL:
                return pool
        self._pools.append(_Pool(self._new()))
        return self._pools[-1]

    def read(self, content: bytes, body: Mapping[str, Any], seconds: float) -> Answer | Failure:
        """The answer in a reply's bytes."""
        try:
            return answer_of(orjson.loads(content), body, seconds, self._secret)
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
            return Failure("transient", "invalid_json", f"the reply is no chat completion: {type(error).__name__}: {error}"[:300])

    def failure(self, error: Exception) -> Failure:
        """The failure behind an exception of the client; errors of our own are raised again."""
        return failure_of(error, self._secret)

    def scrubbed(self, text: str) -> str:
        """The text without this judge's key."""
        return scrub(text, self._secret)


@dataclass
class _Pool:
    """A client with connections of its own. busy: requests under way."""

    client: "AsyncOpenAI"
    busy: int = 0


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
        found.append(Choice(without_key(text, secret), finish, _tokens(choice.get("logprobs"))))
    return _answer(tuple(found), usage, body, seconds, "".join(choice.text for choice in found))


def _answer(choices: tuple[Choice, ...], usage: Mapping[str, Any], body: Mapping[str, Any], seconds: float, text: str) -> Answer:
    prompt, reply = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if prompt is None:
        prompt = sum(estimated_tokens(message["content"]) for message in body["messages"])
    return Answer(choices, int(prompt), int(reply if reply is not None else estimated_tokens(text) if text else 0), seconds)


def _tokens(logprobs: Any) -> tuple[Token, ...]:
    """The tokens with the alternatives that are fit for use: a text and a finite number each."""
    rows = (logprobs or {}).get("content") or ()
    return tuple(Token(str(row["token"]), tuple(_alternatives(row.get("top_logprobs") or ()))) for row in rows)


def _alternatives(tops: Any) -> Iterator[tuple[str, float]]:
    for top in tops:
        token, logprob = top.get("token"), top.get("logprob")
        if isinstance(token, str) and isinstance(logprob, int | float) and logprob == logprob:
            yield token, float(logprob)
