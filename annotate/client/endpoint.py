"""One judge's endpoint: one request at a time, everything that can go wrong as a value.

Chat completions go over the connections of the openai client, without its way there and back: bytes go out and come in, within one
deadline a request and one limit on its bytes. Waiting, retrying and giving up are decided in one place, `scheduler`.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import orjson

from mmpo.annotate.client.address import (
    CHAT,
    CREDENTIALS,
    ENVIRONMENT,
    LOCAL_KEY,
    EndpointSettings,
    api_key,
    given_headers,
    http_client,
    public_url,
)
from mmpo.annotate.client.chat_reply import read_reply
from mmpo.annotate.client.failures import failure_of, failure_of_status, refusal_of, retry_after, scrub
from mmpo.annotate.client.request import Answer, Failure
from mmpo.pipeline.errors import UserError

if TYPE_CHECKING:
    import httpx2
    from openai import AsyncOpenAI

REQUESTS_PER_POOL = 32
"""Requests at once over one pool of connections: a pool looks at all of its connections twice a request, and with 512 requests in flight
that is half of the CPU.
"""
MOST_REPLY_BYTES = 64 << 20
"""A reply is not read beyond: some 30,000 tokens with twenty alternatives each are as long."""


class Endpoint:
    """The openai client of one judge, `client`, and pools of connections that become more as requests at once do; an async context manager.

    timeout: seconds for a whole request, until the last byte of its reply.
    """

    def __init__(self, judge: EndpointSettings, timeout: float) -> None:
        import openai

        self.judge, self.timeout = judge, timeout
        key, headers = api_key(judge), given_headers(judge)
        from_environment = (headers[name] for name in headers if judge.headers[name].startswith(ENVIRONMENT))
        self.secrets = tuple(value for value in (key, *from_environment) if value != LOCAL_KEY)
        self._pools = [_Pool(http_client(judge, timeout))]
        parts = urlsplit(judge.base_url.strip())
        path = parts.path.rstrip("/").removesuffix(CHAT)
        self._url = urlunsplit((parts.scheme, parts.netloc, path + CHAT, parts.query, ""))
        own: dict[str, Any] = {name.title() if name.lower() == "authorization" else name: headers[name] for name in headers}
        if any(name.lower() in CREDENTIALS for name in own):
            own.setdefault("Authorization", openai.Omit())
        self.client: AsyncOpenAI = openai.AsyncOpenAI(
            api_key=key, base_url=urlunsplit((parts.scheme, parts.netloc, path, "", "")), max_retries=0, timeout=timeout,
            default_headers=own, default_query=dict(parse_qsl(parts.query, keep_blank_values=True)), http_client=self._pools[0].http,
        )  # fmt: skip
        self._headers = self._sent_headers()

    def _sent_headers(self) -> dict[str, str]:
        """What the openai client sends along: its own, those of its environment variables, the judge's, the key. Raises UserError."""
        all_of_them = {**self.client.auth_headers, **self.client.default_headers}
        sent = {name: value for name, value in all_of_them.items() if isinstance(value, str)}
        for name, value in sent.items():
            if not (value.isascii() and value.isprintable()):
                raise UserError(
                    f"{self.judge.name}: the header {name} would hold characters that no header has; it comes from --header or from "
                    "OPENAI_ORG_ID, OPENAI_PROJECT_ID or OPENAI_CUSTOM_HEADERS in the environment"
                )
        return sent

    async def __aenter__(self) -> "Endpoint":
        return self

    async def __aexit__(self, *error: object) -> None:
        for pool in self._pools:
            await pool.http.aclose()

    async def ask(self, body: Mapping[str, Any]) -> Answer | Failure:
        """Send one request; never raises for what an endpoint can do."""
        started, pool = time.monotonic(), self._pool()
        pool.busy += 1
        try:
            sent = pool.http.stream("POST", self._url, headers=self._headers, content=orjson.dumps(body))
            async with asyncio.timeout(self.timeout), sent as response:
                content = await _read(response)
        except _TooLong:
            message = f"the reply passed {MOST_REPLY_BYTES:,} bytes, which no chat completion needs, and was not read on"
            return Failure("request", "reply_too_large", message)
        except Exception as error:
            return self.failure(error)
        finally:
            pool.busy -= 1
        wait = retry_after(response.headers)
        if response.is_success:
            return read_reply(content, body, time.monotonic() - started, self.secrets, wait)
        refusal = refusal_of(_moved(response) if response.is_redirect else content)
        failure = failure_of_status(response.status_code, refusal, wait, sent=body, secrets=self.secrets)
        if failure.reason != "not_found" or "/v1" in self._url:
            return failure
        return replace(
            failure, message=f"{failure.message}. {public_url(self._url)} was asked; most servers want /v1 in --base-url"
        )

    def _pool(self) -> "_Pool":
        """The first pool with room, so that few connections stay warm; a new one where there is none."""
        for pool in self._pools:
            if pool.busy < REQUESTS_PER_POOL:
                return pool
        self._pools.append(_Pool(http_client(self.judge, self.timeout)))
        return self._pools[-1]

    def read(self, reply: Any, body: Mapping[str, Any], seconds: float) -> Answer | Failure:
        """The answer in a reply, given as its bytes or as the JSON in them."""
        return read_reply(reply, body, seconds, self.secrets)

    def failure(self, error: Exception) -> Failure:
        """The failure behind an exception of the client; errors of our own are raised again."""
        return failure_of(error, self.secrets)

    def scrubbed(self, text: str) -> str:
        """The text without this judge's keys."""
        return scrub(text, *self.secrets)


@dataclass
class _Pool:
    """Connections of their own. busy: requests under way."""

    http: "httpx2.AsyncClient"
    busy: int = 0


class _TooLong(Exception):
    """A reply passes MOST_REPLY_BYTES."""


async def _read(response: "httpx2.Response") -> bytes:
    """The bytes of a reply, unpacked. Raises _TooLong."""
    parts, size = [], 0
    async for part in response.aiter_bytes():
        size += len(part)
        if size > MOST_REPLY_BYTES:
            raise _TooLong
        parts.append(part)
    return b"".join(parts)


def _moved(response: "httpx2.Response") -> str:
    """The words about a redirect that is not followed, or leads nowhere."""
    try:
        to = public_url(response.headers.get("location", ""))
    except ValueError:
        to = "an address that is none"
    return f"the endpoint sends requests on to {to}; name that address by --base-url"
