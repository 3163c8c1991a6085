"""What the tests of judging by batches share: what was sent and answered at the emulator."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from openai import AsyncOpenAI
from openai_server import Server

REQUESTS = 6 * 3 * 2
FAST: dict[str, Any] = {"batch": True, "batch_poll": 0.1}
BATCH = ("--batch", "--batch-poll", "0.1")
"""The same for the command."""
CALLS = ("files.create", "batches.create", "batches.get", "files.content")


def using(server: Server, work: Callable[[AsyncOpenAI], Coroutine[Any, Any, Any]]) -> Any:
    """Runs work with a client of this server."""

    async def run() -> Any:
        async with AsyncOpenAI(base_url=server.base_url, api_key="key-1", max_retries=0, timeout=10) as client:
            return await work(client)

    return asyncio.run(run())


def sent(server: Server) -> list[int]:
    """The number of requests in each file of them that was uploaded, the first one first; none came twice in a file."""

    async def work(client: Any) -> list[int]:
        found = []
        async for file in client.files.list():
            if file.purpose == "batch":
                content = (await client.files.content(file.id)).content
                found.append(len({json.loads(line)["custom_id"] for line in content.splitlines()}))
        return found[::-1]

    return using(server, work)


def uploads(server: Server) -> list[int]:
    """The size of each file of requests that was uploaded, in bytes, the newest first."""

    async def work(client: Any) -> list[int]:
        return [file.bytes async for file in client.files.list() if file.purpose == "batch"]

    return using(server, work)


def answered(server: Server) -> Counter[str]:
    """How often each line was answered well: what a provider would be paid for."""
    return Counter(row["custom_id"] for row in server.log("batch_line") if row["status"] == 200)


def paid_once(server: Server, requests: int = REQUESTS) -> bool:
    counts = answered(server)
    return len(counts) == requests and set(counts.values()) == {1}


def calls(server: Server, *routes: str) -> int:
    """How many calls of these routes have come."""
    came = server.counts()["by_route"]
    return sum(came.get(route, 0) for route in routes)


def reached(server: Server, *routes: str, times: int = 1) -> Callable[[], bool]:
    """For `command.stopped`: whether so many calls of these routes have come."""
    return lambda: calls(server, *routes) >= times
