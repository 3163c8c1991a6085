"""The clients that `judge.py` compares, each a process of its own: prints what it measured as one line of JSON.

    python benchmarks/judge_clients.py mmpo FEEDBACK OUT JOURNAL URL IN_FLIGHT REQUESTS
    python benchmarks/judge_clients.py semaphore|gather BODIES URL IN_FLIGHT

`semaphore` and `gather` send the same bodies by the plain openai client and keep nothing: the first starts a request whenever one of
the places is free, the second waits for all of a batch before it starts the next one.
"""

import asyncio
import json
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["MODEL", "main"]

MODEL = "judge-a"
CHECKPOINT = 20_000
"""After so many answers the memory is looked at for the first time."""


def peak() -> float:
    """The largest resident set of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Marks:
    """What `mmpo` judging says of itself: when asking began and ended, and the memory at a checkpoint and at the end of asking."""

    def __init__(self, requests: int) -> None:
        self.values: dict[str, float] = {}
        self.requests, self.next_line = requests, CHECKPOINT

    def __call__(self, counts: Mapping[str, Any], phase: str) -> None:
        if "began" not in self.values:
            self.values |= {"began": time.time(), "cpu_before": time.process_time()}
        answered = sum(one.answered for one in counts.values())
        if answered >= self.next_line:
            self.values.setdefault("peak_at_checkpoint", peak())
            print(f"  {answered:,} of {self.requests:,} requests, {peak():.0f} MiB", file=sys.stderr, flush=True)
            self.next_line += CHECKPOINT
        if phase == "writing":  # everything is in the journal by now, and durable
            cpu = time.process_time() - self.values["cpu_before"]
            self.values |= {"ended": time.time(), "cpu": cpu, "peak_of_asking": peak()}


def ours(feedback: str, out: str, journal: str, url: str, in_flight: int, requests: int) -> dict[str, float]:
    """The judge of this project; asking and writing."""
    from mmpo.annotate.judge import JudgeOptions, judge

    marks = Marks(requests)
    options = JudgeOptions(model=MODEL, base_url=url, concurrency=in_flight, journal=journal)
    summary = judge(feedback, out, options=options, progress=marks)
    if not summary["finished"] or summary["judges"][0]["answered"] != requests:
        raise RuntimeError(f"not every request was answered: {summary}")
    return {**marks.values, "peak_of_all": peak()}


def bare(pattern: str, bodies_file: str, url: str, in_flight: int) -> dict[str, float]:
    """The openai client by itself, after one request that warms it up (as the probe of a judging run does)."""
    bodies = [json.loads(line) for line in Path(bodies_file).read_text(encoding="utf-8").splitlines()]
    return asyncio.run(_bare(pattern, bodies, url, in_flight))


async def _bare(pattern: str, bodies: list[dict[str, Any]], url: str, in_flight: int) -> dict[str, float]:
    from openai import AsyncOpenAI

    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=120.0) as client:

        async def ask(body: dict[str, Any]) -> str:
            reply = await client.chat.completions.create(**body)
            return reply.choices[0].message.content or ""

        await ask({**bodies[0], "max_tokens": 1})
        began, cpu = time.time(), time.process_time()
        replies = await PATTERNS[pattern](ask, bodies, in_flight)
        values = {"began": began, "ended": time.time(), "cpu": time.process_time() - cpu, "peak_of_all": peak()}
    if not all(replies) or len(replies) != len(bodies):
        raise RuntimeError("not every request was answered")
    return values


async def semaphore(ask: Any, bodies: list[dict[str, Any]], in_flight: int) -> list[str]:
    """A task a request, `in_flight` of them at work."""
    places = asyncio.Semaphore(in_flight)

    async def one(body: dict[str, Any]) -> str:
        async with places:
            return await ask(body)

    return await asyncio.gather(*(one(body) for body in bodies))


async def gather(ask: Any, bodies: list[dict[str, Any]], in_flight: int) -> list[str]:
    """Batches of `in_flight`, each as long as its slowest request."""
    replies: list[str] = []
    for start in range(0, len(bodies), in_flight):
        replies += await asyncio.gather(*(ask(body) for body in bodies[start : start + in_flight]))
    return replies


PATTERNS = {"semaphore": semaphore, "gather": gather}


def main(arguments: list[str]) -> None:
    """The command."""
    kind, *rest = arguments
    if kind == "mmpo":
        feedback, out, journal, url, in_flight, requests = rest
        values = ours(feedback, out, journal, url, int(in_flight), int(requests))
    else:
        bodies, url, in_flight = rest
        values = bare(kind, bodies, url, int(in_flight))
    print(json.dumps(values))


if __name__ == "__main__":
    main(sys.argv[1:])
