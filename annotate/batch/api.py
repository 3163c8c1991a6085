"""The calls of the OpenAI Batch API: passing faults are waited out, no batch is created twice, results pass through a file on the disk."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, TypeVar

import orjson

from mmpo.annotate.client.endpoint import LOCAL_KEY, Endpoint, api_key
from mmpo.annotate.client.failures import failure_of
from mmpo.annotate.client.request import Failure, Request
from mmpo.annotate.judge.options import JudgeOptions

__all__ = ["BatchApi", "Halted", "Refused", "line_of"]

CHAT = "/v1/chat/completions"
TOKEN = "mmpo"
"""Under what name a batch's metadata holds the token by which a batch is found whose id was lost."""
CLOCKS_DIFFER = 3600.0
"""Seconds by which the provider's clock may be behind ours, when its list is searched."""
LINES_AT_ONCE = 500
STEP = 0.25
LONGEST_BACKOFF = 60.0
PASSING = ("rate_limit", "transient", "unreachable")

T = TypeVar("T")


class Refused(Exception):
    """A call that is refused for good, or whose passing faults did not pass; `failure` says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Halted(Exception):
    """The run was stopped while a call waited for its next try."""


class BatchApi:
    """One judge's Batch API. going: False once the run is stopped: then nothing is tried again."""

    def __init__(self, endpoint: Endpoint, options: JudgeOptions, going: Callable[[], bool]) -> None:
        self.client = endpoint.client.with_options(max_retries=0)
        self.options, self.going = options, going
        key = api_key(endpoint.judge)
        self._secret = key if key != LOCAL_KEY else None

    async def upload(self, stream: IO[bytes], name: str) -> str:
        """Send a file of requests; its id."""

        async def once() -> str:
            stream.seek(0)
            return _id_of(await self.client.files.create(file=(name, stream), purpose="batch"))

        return await self._call(once)

    async def create(self, file: str, token: str) -> str:
        """Make a batch of an uploaded file; its id. A try whose reply was lost may have made it, so every further one looks first."""
        started, tried = time.time(), False

        async def once() -> str:
            nonlocal tried
            found = await self._listed({token}, started) if tried else {}
            tried = True
            if token in found:
                return found[token]
            batch = await self.client.batches.create(
                input_file_id=file, endpoint=CHAT, completion_window="24h", metadata={TOKEN: token}
            )
            return _id_of(batch)

        return await self._call(once)

    async def find(self, tokens: set[str], since: float) -> dict[str, str]:
        """Token → id of the batches with these tokens that were created after `since` (seconds since the epoch)."""
        return await self._call(lambda: self._listed(tokens, since))

    async def _listed(self, tokens: set[str], since: float) -> dict[str, str]:
        found: dict[str, str] = {}
        async for batch in self.client.batches.list(limit=100):  # the newest first
            token = (batch.metadata or {}).get(TOKEN)
            if token in tokens:
                found[str(token)] = batch.id
            if len(found) == len(tokens) or (batch.created_at or since) < since - CLOCKS_DIFFER:
                break
        return found

    async def state(self, batch: str) -> Any:
        """The batch as the provider has it."""

        async def once() -> Any:
            reply = await self.client.batches.retrieve(batch)
            _id_of(reply)
            return reply

        return await self._call(once)

    async def results(self, file: str, folder: Path, take: Callable[[list[Any]], Awaitable[None]]) -> None:
        """Give the rows of a file of results to `take`, some at a time. A file that came broken is fetched again and given again."""

        async def once() -> None:
            with TemporaryFile(dir=folder) as stream:
                async with self.client.files.with_streaming_response.content(file) as reply:
                    async for part in reply.iter_bytes():
                        stream.write(part)
                stream.seek(0)
                while lines := list(islice(stream, LINES_AT_ONCE)):
                    await take([orjson.loads(line) for line in lines if line.strip()])

        await self._call(once)

    async def _call(self, once: Callable[[], Awaitable[T]]) -> T:
        """What `once` returns; passing faults are tried again for as long as the options say. Raises Refused, Halted."""
        tries, since = 0, None
        while True:
            try:
                return await once()
            except Exception as error:
                failure = self._failure(error)
            now = time.monotonic()
            since = now if since is None else since
            # Nobody is in a hurry here: what a batch waits for takes hours, so every passing fault has the patience of an outage.
            patient = now - since <= self.options.patience or (failure.kind != "unreachable" and tries < self.options.retries)
            if failure.kind not in PASSING or not patient:
                raise Refused(failure)
            tries += 1
            await self.pause(failure.retry_after or min(LONGEST_BACKOFF, 0.5 * 2 ** min(tries, 10)))
            if not self.going():
                raise Halted

    def _failure(self, error: Exception) -> Failure:
        """What is behind an error; one that is not the client's is raised again."""
        if isinstance(error, ValueError):
            return Failure("transient", "invalid_json", f"the Batch API's reply can't be read: {error}"[:300])
        if any(base.__name__ == "HTTPError" for base in type(error).__mro__):  # the transport's own, while a reply is streamed
            return Failure("transient", "connection_lost", f"{type(error).__name__}: {error}"[:300])
        return failure_of(error, self._secret)

    async def pause(self, seconds: float) -> None:
        """Wait, but not beyond a stop."""
        until = time.monotonic() + seconds
        while self.going() and (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(STEP, left))


def _id_of(reply: Any) -> str:
    """The id of an object of the API. Raises ValueError for anything else, such as a proxy's page."""
    found = getattr(reply, "id", None)
    if not isinstance(found, str) or not found:
        raise ValueError(f"it has no id: {str(reply)[:100]}")
    return found


def line_of(request: Request) -> bytes:
    """A request as a line of a batch's file."""
    row = {"custom_id": request.key.hex(), "method": "POST", "url": CHAT, "body": request.body}
    return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
