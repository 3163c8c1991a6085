"""What the tests of judging by batches share: what was sent and answered at the emulator, and runs as processes that can be killed."""

import asyncio
import json
import subprocess
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from cases import words
from command import wait_for
from openai import AsyncOpenAI
from openai_server import Server

__all__ = [
    "CALLS",
    "FAST",
    "REQUESTS",
    "answered",
    "batch_words",
    "calls",
    "paid_once",
    "reached",
    "sent",
    "uploads",
    "using",
]

REQUESTS = 6 * 3 * 2
FAST: dict[str, Any] = {"batch": True, "batch_poll": 0.1}
CALLS = ("files.create", "batches.create", "batches.get", "files.content")


def using(server: Server, work: Callable[[AsyncOpenAI], Coroutine[Any, Any, Any]]) -> Any:
    """Runs work with a client of this server."""

    async def run() -> Any:
        async with AsyncOpenAI(base_url=server.base_url, api_key="key-1", max_retries=0, timeout=10) as client:
            return await work(client)

    return asyncio.run(run())


def sent(server: Server) -> list[list[str]]:
    """The custom_ids in each file of requests that was uploaded, the newest first."""

    async def work(client: Any) -> list[list[str]]:
        found = []
        async for file in client.files.list():
            if file.purpose == "batch":
                content = (await client.files.content(file.id)).content
                found.append([json.loads(line)["custom_id"] for line in content.splitlines()])
        return found

    return using(server, work)


def uploads(server: Server) -> list[int]:
    """The size of each file of requests that was uploaded, in bytes, the newest first."""

    async def work(client: Any) -> list[int]:
        return [file.bytes async for file in client.files.list() if file.purpose == "batch"]

    return using(server, work)


def answered(server: Server) -> Counter[str]:
    """How often each line was answered well: what a provider would be paid for."""
    return Counter(row["custom_id"] for row in server.batch_log() if row["status"] == 200)


def paid_once(server: Server, requests: int = REQUESTS) -> bool:
    counts = answered(server)
    return len(counts) == requests and set(counts.values()) == {1}


def batch_words(feedback: Path, out: Path, server: Server, *more: object) -> list[object]:
    """`mmpo judge --batch` with frequent looks."""
    return words(feedback, out, server, "--batch", "--batch-poll", "0.1", *more)


def calls(server: Server, *routes: str) -> int:
    """How many calls of these routes have come."""
    came = server.counts()["by_route"]
    return sum(came.get(route, 0) for route in routes)


def reached(server: Server, process: "subprocess.Popen[str]", *routes: str, times: int = 1) -> bool:
    """Wait until so many calls of these routes have come; False where the process ended before."""
    return wait_for(lambda: calls(server, *routes) >= times, process, 30)
