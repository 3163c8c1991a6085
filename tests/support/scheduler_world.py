"""What the tests of the scheduler share: coroutines for `send` and `done` that remember what happened, and a clock that jumps.

Times are exact to the timers' resolution, seconds take no time, and a run that would hang raises at once.
"""

import asyncio
import selectors
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from mmpo.annotate.client import Answer, Failure, Limits, Request, Scheduler, Stop

__all__ = ["ANSWER", "TICK", "World", "failure", "request", "running"]

ANSWER = Answer((), 10, 1, 0.0)
TICK = 1e-6
"""Timers may go off so much early, each."""


class Jumping(selectors.SelectSelector):
    """Does not wait: the clock moves on instead, and a nanosecond a round, as a timer may go off that much early and is then set again."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("the run hangs: nothing will ever happen")
        self.now += max(timeout, 1e-9)
        return super().select(0)


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose seconds take no time."""

    def __init__(self) -> None:
        self.jumping = Jumping()
        super().__init__(self.jumping)

    def time(self) -> float:
        return self.jumping.now


def running(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """What the coroutine returns, by the clock that jumps."""
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(work())


def failure(kind: str, retry_after: float | None = None) -> Failure:
    """A failure of that kind."""
    return Failure(kind, f"reason_{kind}", f"message of {kind}", retry_after)


def request(number: int) -> Request:
    """The request of that number."""
    return Request(number.to_bytes(16, "big"), {}, 10, 1, number)


class World:
    """Answers request i at its k-th try by `plan(i, k)`: seconds and outcome. Remembers what happened, in seconds of the clock."""

    def __init__(self, plan: Callable[[int, int], tuple[float, Answer | Failure]], *, writing: float = 0.0) -> None:
        self.plan, self.writing = plan, writing
        self.tries: Counter[int] = Counter()
        self.starts: dict[int, list[float]] = {}
        self.done_with: dict[int, list[Answer | Failure]] = {}
        self.reserved: set[bytes] = set()
        self.affords = self.in_flight = self.most = self.unwritten = self.most_unwritten = self.cancelled = 0
        self.closed = False

    async def send(self, request: Request) -> Answer | Failure:
        """As an endpoint: never raises but when it is cancelled."""
        number = int.from_bytes(request.key, "big")
        self.tries[number] += 1
        self.starts.setdefault(number, []).append(asyncio.get_running_loop().time())
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            seconds, outcome = self.plan(number, self.tries[number])
            await asyncio.sleep(seconds)
            return outcome
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.in_flight -= 1

    async def done(self, request: Request, outcome: Answer | Failure) -> None:
        """As a journal: takes `writing` seconds."""
        self.unwritten += 1
        self.most_unwritten = max(self.most_unwritten, self.unwritten)
        await asyncio.sleep(self.writing)
        self.unwritten -= 1
        self.reserved.remove(request.key)
        self.done_with.setdefault(int.from_bytes(request.key, "big"), []).append(outcome)

    def afford(self, request: Request) -> bool:
        """As a budget without end; a request must not be set aside for twice."""
        assert request.key not in self.reserved
        self.reserved.add(request.key)
        self.affords += 1
        return True

    def release(self, request: Request) -> None:
        """Gives back what was set aside; KeyError where nothing was."""
        self.reserved.remove(request.key)

    async def requests(self, count: int) -> AsyncIterator[Request]:
        """So many requests; notes that it was closed."""
        try:
            for number in range(count):
                yield request(number)
        finally:
            self.closed = True

    def scheduler(self, slots: int, **options: Any) -> Scheduler:
        """The scheduler that asks this world; options replace what it is given."""
        given = {
            "done": self.done,
            "stop": Stop(),
            "retries": 3,
            "outage_timeout": 60.0,
            "afford": self.afford,
            "release": self.release,
        }
        return Scheduler(self.send, limits=Limits(slots), **{**given, **options})

    def run(self, count: int, slots: int = 4, **options: Any) -> tuple[Scheduler, float]:
        """All of it; the scheduler and the seconds that it took."""

        async def work() -> tuple[Scheduler, float]:
            scheduler, requests = self.scheduler(slots, **options), self.requests(count)
            await scheduler.run(requests)
            assert self.closed  # by the scheduler: `requests` is still held here
            return scheduler, asyncio.get_running_loop().time()

        return running(work)
