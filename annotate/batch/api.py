"""The calls of the OpenAI Batch API: passing faults are waited out, no batch is created twice, results pass through a file on the disk."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import islice
from os import SEEK_END
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, TypeVar

import orjson

from mmpo.annotate.client import Endpoint, Failure, Request, Stop, backoff, loads

CHAT = "/v1/chat/completions"
TOKEN = "mmpo"
"""The name in a batch's metadata of the token by which a batch is found whose id was lost."""
CLOCKS_DIFFER = 3600.0
"""Seconds by which the provider's clock may be behind ours, when its list is searched."""
ROWS_AT_ONCE = 500
SLOWEST = 10_000
"""Bytes a second below which a transfer is given up as hanging."""
PASSING = ("rate_limit", "transient", "unreachable")

T = TypeVar("T")


@dataclass(frozen=True)
class BatchSettings:
    """Of judging by batches: most requests and bytes in a file, seconds between looks, and what passing faults are worth.

    retries: how often a request, or a call, is tried again. outage_timeout: seconds for which a call is, whatever the retries.
    keep_answers: an answer in the journal is as good as one of this run.
    """

    max_requests: int
    max_bytes: int
    poll: float
    retries: int
    outage_timeout: float
    keep_answers: bool = True


class CallRefused(Exception):
    """A call that is refused for good, or whose passing faults did not pass; `failure` says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Halted(Exception):
    """The run was stopped while a call waited for its next try."""


class BatchApi:
    """One judge's Batch API."""

    def __init__(self, endpoint: Endpoint, settings: BatchSettings, stop: Stop) -> None:
        self.endpoint, self.client, self.settings, self.stop = endpoint, endpoint.client, settings, stop
        self._next_try, self._why = 0.0, ""

    def waiting(self) -> tuple[float, str] | None:
        """Seconds until the next try of a call that failed and why it did; None while no call waits for one."""
        seconds = self._next_try - time.monotonic()
        return (seconds, self._why) if seconds > 0 and self.going() else None

    def going(self) -> bool:
        """Whether to go on with the batches that are under way; a spent budget only keeps new ones from being made."""
        return self.stop.reason in ("", "budget")

    async def upload(self, stream: IO[bytes], name: str) -> str:
        """Send a file of requests; its id."""
        size = stream.seek(0, SEEK_END)

        async def once() -> str:
            stream.seek(0)
            return _id_of(await self.client.files.create(file=(name, stream), purpose="batch"))

        return await self._call(once, size)

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
                async with (
                    asyncio.timeout(self._seconds_for(0)) as limit,
                    self.client.files.with_streaming_response.content(file) as reply,
                ):
                    began = asyncio.get_running_loop().time()
                    async for part in reply.iter_bytes():
                        stream.write(part)
                        limit.reschedule(began + self._seconds_for(stream.tell()))
                stream.seek(0)
                while lines := list(islice(stream, ROWS_AT_ONCE)):
                    await take([loads(line) for line in lines if line.strip()])

        await self._call(once, None)

    def _seconds_for(self, size: int) -> float:
        """How long a transfer of so many bytes may take: the time limit of a request, and more for a file."""
        return self.endpoint.timeout + size / SLOWEST

    async def _call(self, once: Callable[[], Awaitable[T]], size: int | None = 0) -> T:
        """What `once` returns; passing faults are tried again for as long as the options say. Raises CallRefused, Halted.

        size: bytes that go over, None: once has a time limit of its own.
        """
        tries, since = 0, None
        while True:
            try:
                async with asyncio.timeout(None if size is None else self._seconds_for(size)):
                    return await once()
            except Exception as error:
                failure = self._failure(error)
            now = time.monotonic()
            since = now if since is None else since
            # Nobody is in a hurry here: what a batch waits for takes hours, so every passing fault is waited out like an outage.
            patient = now - since <= self.settings.outage_timeout or (
                failure.kind != "unreachable" and tries < self.settings.retries
            )
            if failure.kind not in PASSING or not patient:
                raise CallRefused(failure)
            tries += 1
            wait = failure.retry_after or backoff(tries)
            self._next_try, self._why = time.monotonic() + wait, failure.message
            await self.pause(wait)
            if not self.going():
                raise Halted

    def _failure(self, error: Exception) -> Failure:
        """What is behind an error; one that is not the client's is raised again."""
        if isinstance(error, ValueError):
            return Failure("transient", "invalid_json", f"the Batch API's reply can't be read: {error}"[:300])
        return self.endpoint.failure(error)

    async def pause(self, seconds: float) -> None:
        """Wait, but not beyond a stop."""
        until = time.monotonic() + seconds
        while self.going() and (left := until - time.monotonic()) > 0:
            await self.stop.wait(left)


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
