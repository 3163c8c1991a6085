"""The loop that asks: starts requests as the limits allow, retries without holding a slot, decides when to stop.

A dispatcher starts the next request whenever a slot, the rates and the budget allow it; a request that must wait for its retry waits in a
heap, not in a slot; an answer leaves its slot before it is written to the journal, and counts when that is durable.
"""

import asyncio
import heapq
import random
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import KW_ONLY, dataclass, field

from mmpo.annotate.client.failures import backoff
from mmpo.annotate.client.rate_limits import Limits
from mmpo.annotate.client.request import Answer, Failure, Request

RATE_LIMIT_RETRIES = 5
"""A 429 is asked again so many times as often as another passing fault: it says that the endpoint is well."""
MAX_UNWRITTEN = 2_000
"""Answers that may wait for the journal before no more requests start."""
MAX_FAILURES_WITHOUT_SUCCESS = 50
"""So many failures, and not one answer yet, end a run: something is wrong with all requests."""


@dataclass
class Stop:
    """Why a run should start nothing more: "" (go on), "interrupted", "budget", or a failure of the whole run.

    All judges of a run share it and wait on it: for a stop, and for anything that ends at any of them.
    """

    reason: str = ""
    message: str = ""
    _waiters: set["asyncio.Future[None]"] = field(default_factory=set, repr=False)
    _loop: asyncio.AbstractEventLoop | None = field(default=None, repr=False)

    def __call__(self, reason: str, message: str) -> None:
        if not self.reason:
            self.override(reason, message)

    def override(self, reason: str, message: str) -> None:
        """Whatever else was stopping the run: this is the reason. May be called from another thread."""
        self.reason, self.message = reason, message
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.wake)

    def wake(self) -> None:
        """Something has ended: whoever waits looks again, every one of them."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, timeout: float | None = None) -> None:
        """Until a stop, or something ended at any judge, or so many seconds are over.

        Every waiter has a future of its own: with one event for all, a waiter that clears it takes the signal from one that has not
        begun to wait on it.
        """
        self._loop = asyncio.get_running_loop()
        if timeout is not None and timeout <= 0:
            await asyncio.sleep(0)
            return
        waiter = self._loop.create_future()
        self._waiters.add(waiter)
        try:
            await asyncio.wait([waiter], timeout=timeout)
        finally:
            self._waiters.discard(waiter)


@dataclass
class Tally:
    """What happened so far. attempts: requests sent; retried: those that came back with a passing fault."""

    answered: int = 0
    attempts: int = 0
    retried: int = 0
    in_flight: int = 0
    failed: Counter[str] = field(default_factory=Counter)


@dataclass(eq=False)
class Scheduler:
    """Asks one judge. send: one request, never raises. done: makes an outcome durable and counts it.

    afford: whether the budget has room for a request, called right before it starts; what it costs is settled in `done`.
    others: whether anybody else still holds a part of the budget that may come back.
    """

    send: Callable[[Request], Awaitable[Answer | Failure]]
    done: Callable[[Request, Answer | Failure], Awaitable[None]]
    limits: Limits
    stop: Stop
    _: KW_ONLY
    retries: int
    outage_timeout: float
    afford: Callable[[Request], bool] = lambda request: True
    release: Callable[[Request], None] = lambda request: None
    others: Callable[[], bool] = lambda: False
    max_unwritten: int = MAX_UNWRITTEN

    def __post_init__(self) -> None:
        self.tally = Tally()
        self._waiting: list[tuple[float, int, Request, int, int]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._started = 0
        self._error: BaseException | None = None
        self._why = ""

    def waiting(self) -> tuple[float, str] | None:
        """Seconds until the next try and why it is waited for; None while anything is in flight or may start."""
        if self.tally.in_flight or self.stop.reason or not self._waiting:
            return None
        seconds = max(self._waiting[0][0], self.limits.paused_until) - self._now()
        return (seconds, self._why) if seconds > 0 else None

    async def run(self, requests: AsyncGenerator[Request, None]) -> None:
        """Ask them all; returns when every one is answered or given up, or, after a stop, when nothing is in flight any more.

        Raises what `done` raises (a journal that can't be written), after what is in flight has ended.
        """
        exhausted = False
        try:
            while not self.stop.reason:
                request, attempt, limited = self._due()
                if request is None and not exhausted:
                    request = await anext(requests, None)
                    exhausted = request is None
                if request is not None:
                    if await self._admitted(request):
                        self._start(request, attempt, limited)
                    continue
                if exhausted and not self._waiting and not self._tasks:
                    return
                await self.stop.wait(self._waiting[0][0] - self._now() if self._waiting else None)
        except asyncio.CancelledError:
            for task in self._tasks:
                task.cancel()
            raise
        finally:
            while self._tasks:
                await asyncio.wait(self._tasks)
            await requests.aclose()
        if self._error is not None:
            raise self._error

    def _due(self) -> tuple[Request | None, int, int]:
        if self._waiting and self._waiting[0][0] <= self._now():
            _, _, request, attempt, limited = heapq.heappop(self._waiting)
            return request, attempt, limited
        return None, 0, 0

    async def _admitted(self, request: Request) -> bool:
        """Wait for a slot, the rates and the budget; False after a stop."""
        while not self.stop.reason:
            if self.tally.in_flight >= self.limits.slots() or len(self._tasks) >= self.max_unwritten:
                await self.stop.wait(None)
                continue
            delay = self.limits.delay(request.tokens, self._now())
            if delay > 0:
                await self.stop.wait(delay)
                continue
            if self.afford(request):
                return True
            if not self._tasks and not self.others():
                self.stop("budget", "the budget has no room for another request")
                return False
            # What is in flight, here or at another judge, may cost less than was set aside for it.
            await self.stop.wait()
        return False

    def _start(self, request: Request, attempt: int, limited: int) -> None:
        self.limits.started(request.tokens, self._now())
        self.tally.in_flight += 1
        self.tally.attempts += 1
        self.limits.high_water = max(self.limits.high_water, self.tally.in_flight)
        task = asyncio.create_task(self._one(request, attempt, limited))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._error = task.exception()
            self.stop("error", str(task.exception()))
        self.stop.wake()

    async def _one(self, request: Request, attempt: int, limited: int) -> None:
        started = self._now()
        try:
            outcome = await self.send(request)
        finally:
            self.tally.in_flight -= 1
            self.stop.wake()
        if isinstance(outcome, Answer):
            self.limits.answered(request.tokens, outcome.prompt_tokens + outcome.reply_tokens, self._now())
            self.tally.answered += 1
            await self.done(request, outcome)
            return
        if outcome.kind != "unreachable":
            self.limits.reached()
        if self._again(request, outcome, attempt, limited, started):
            return
        if outcome.kind in ("run", "unreachable"):  # not this request's fault: it is left for the next run
            self.release(request)
            return
        self.tally.failed[outcome.reason] += 1
        failed = self.tally.failed.total()
        if not self.tally.answered and failed >= MAX_FAILURES_WITHOUT_SUCCESS:
            self.stop("hopeless", f"{failed} requests failed and none was answered; the last: {outcome.message}")
        await self.done(request, outcome)

    def _again(self, request: Request, failure: Failure, attempt: int, limited: int, started: float) -> bool:
        """Put a request that failed by a passing fault back into the heap; False where it is given up."""
        now, self._why = self._now(), failure.message
        wait = backoff(attempt + limited) * random.uniform(0.5, 1.0)
        if failure.kind == "run":
            self.stop(failure.reason, failure.message)
        elif failure.kind == "unreachable":
            away = self.limits.unreachable(now)
            if away <= self.outage_timeout:
                return self._later(request, self.limits.paused_until, attempt, limited)
            self.stop("unreachable", f"the endpoint could not be reached for {away:.0f} s: {failure.message}")
        elif failure.kind == "rate_limit" and limited < self.retries * RATE_LIMIT_RETRIES:
            self.limits.limited(failure.retry_after, started, now)
            return self._later(request, now + (failure.retry_after or wait), attempt, limited + 1)
        elif failure.kind == "transient" and attempt < self.retries:
            return self._later(request, now + (failure.retry_after or wait), attempt + 1, limited)
        return False

    def _later(self, request: Request, due: float, attempt: int, limited: int) -> bool:
        self.release(request)
        self._started += 1
        self.tally.retried += 1
        heapq.heappush(self._waiting, (due, self._started, request, attempt, limited))
        return True

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
