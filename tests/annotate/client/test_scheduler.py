"""The scheduler: places in flight, retries, reasons to stop, errors and cancellation, by a clock that jumps.

Times are exact to the timers' resolution, seconds take no time, and a run that would hang raises at once.
"""

import asyncio
import heapq
import selectors
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpo.annotate.client import (
    MAX_FAILURES_WITHOUT_SUCCESS,
    RATE_LIMIT_RETRIES,
    Answer,
    Failure,
    Limits,
    Request,
    Scheduler,
    Stop,
)

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

    async def requests(self, count: int) -> AsyncGenerator[Request, None]:
        """So many requests; notes that it was closed."""
        try:
            for number in range(count):
                yield request(number)
        finally:
            self.closed = True

    def scheduler(self, slots: int, **options: Any) -> Scheduler:
        """The scheduler that asks this world; options replace what it is given."""
        given = {"done": self.done, "afford": self.afford, "release": self.release, "stop": Stop(), "retries": 3}
        return Scheduler(self.send, limits=Limits(slots), **{**given, "outage_timeout": 60.0, **options})

    def run(self, count: int, slots: int = 4, **options: Any) -> tuple[Scheduler, float]:
        """All of it; the scheduler and the seconds that it took."""

        async def work() -> tuple[Scheduler, float]:
            scheduler, requests = self.scheduler(slots, **options), self.requests(count)
            await scheduler.run(requests)
            assert self.closed  # by the scheduler: `requests` is still held here
            return scheduler, asyncio.get_running_loop().time()

        return running(work)


def makespan(latencies: Sequence[float], slots: int) -> float:
    """List scheduling: each next one takes the place that is free first."""
    free = [0.0] * slots
    for latency in latencies:
        heapq.heapreplace(free, free[0] + latency)
    return max(free)


milliseconds = st.integers(1, 50).map(lambda value: value / 1000)


@settings(max_examples=150, deadline=None)
@given(st.lists(milliseconds, min_size=1, max_size=120), st.integers(1, 9), st.integers(0, 300).map(lambda value: value / 1000))
def test_no_place_is_ever_idle_and_none_too_many_is_taken(latencies: list[float], slots: int, writing: float) -> None:
    """No barrier: the run takes exactly as long as list scheduling, and writing an answer holds no place however long it takes."""
    world = World(lambda number, _: (latencies[number], ANSWER), writing=writing)
    scheduler, seconds = world.run(len(latencies), slots)
    # The answer that is written last is the one that came last.
    assert seconds == pytest.approx(makespan(latencies, slots) + writing, abs=2 * TICK * (len(latencies) + 1))
    assert world.most == min(slots, len(latencies)) == scheduler.limits.high_water
    assert world.done_with == {number: [ANSWER] for number in range(len(latencies))} and scheduler.tally.answered == len(latencies)


def test_answers_that_wait_for_the_journal_are_bounded() -> None:
    world = World(lambda number, _: (0.001, ANSWER), writing=1.0)
    _, seconds = world.run(100, 4, max_unwritten=10)
    assert world.most_unwritten <= 10 and seconds == pytest.approx(10, abs=0.1)


outcomes = st.sampled_from([ANSWER, failure("transient"), failure("rate_limit"), failure("rate_limit", 0.2), failure("request")])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(outcomes, min_size=1, max_size=8), min_size=1, max_size=20), st.integers(1, 5), st.integers(0, 3))
def test_every_request_ends_once_and_what_was_set_aside_for_it_is_given_back(
    plans: list[list[Answer | Failure]], slots: int, retries: int
) -> None:
    """Whatever happens: one outcome a request, the last one that came; a reservation a try (`World` refuses two); none left."""
    world = World(lambda number, attempt: (0.01, plans[number][min(attempt, len(plans[number])) - 1]))
    scheduler, _ = world.run(len(plans), slots, retries=retries)
    assert set(world.done_with) == set(range(len(plans))) and world.most <= slots
    for number, plan in enumerate(plans):
        assert world.done_with[number] == [plan[min(world.tries[number], len(plan)) - 1]]
        assert world.tries[number] <= 1 + retries + RATE_LIMIT_RETRIES * retries
    assert world.affords == scheduler.tally.attempts == world.tries.total() == len(plans) + scheduler.tally.retried
    assert not world.reserved and world.closed and scheduler.tally.in_flight == 0
    assert scheduler.tally.answered + sum(scheduler.tally.failed.values()) == len(plans)


@pytest.mark.parametrize(("kind", "tries"), [("request", 1), ("transient", 1 + 3), ("rate_limit", 1 + 3 * RATE_LIMIT_RETRIES)])
def test_retries_are_finite_and_go_by_the_kind_of_failure(kind: str, tries: int) -> None:
    world = World(lambda number, attempt: (0.01, failure(kind) if number == 0 else ANSWER))
    scheduler, _ = world.run(2)
    assert world.tries == {0: tries, 1: 1} and world.done_with[0] == [failure(kind)]
    assert scheduler.tally.failed == {f"reason_{kind}": 1} and scheduler.stop.reason == ""


def test_waits_double_up_to_a_minute_and_what_the_endpoint_says_comes_first() -> None:
    world = World(lambda number, attempt: (0.0, failure("transient", 7.0 if attempt == 3 else None)))
    world.run(1, retries=10)
    waits = [after - before for before, after in zip(world.starts[0], world.starts[0][1:])]
    for attempt, wait in enumerate(waits):
        longest = min(60.0, 0.5 * 2**attempt)
        assert wait == pytest.approx(7.0) if attempt == 2 else longest / 2 - TICK <= wait <= longest + TICK
    assert len(waits) == 10


def test_a_request_that_waits_for_its_retry_holds_no_place() -> None:
    world = World(lambda number, attempt: (1.0, failure("transient", 30.0) if (number, attempt) == (0, 1) else ANSWER))
    _, seconds = world.run(4, slots=1)
    assert [world.starts[number][0] for number in range(4)] == pytest.approx([0, 1, 2, 3], abs=1e-4)
    assert world.starts[0][1] == pytest.approx(31, abs=1e-4) and seconds == pytest.approx(32, abs=1e-4)


# --- stopping ---------------------------------------------------------------------------------------------------------


def test_what_is_wrong_with_the_run_stops_it_and_is_counted_against_no_request() -> None:
    world = World(lambda number, _: (0.01, failure("run") if number == 5 else ANSWER))
    scheduler, _ = world.run(100, slots=2)
    assert (scheduler.stop.reason, scheduler.stop.message) == ("reason_run", "message of run")
    assert world.tries.total() <= 5 + 2 and 5 not in world.done_with and not scheduler.tally.failed
    assert not world.reserved and world.in_flight == 0 and world.closed


def test_failures_without_any_answer_are_hopeless_and_with_one_they_are_not() -> None:
    scheduler, _ = World(lambda number, _: (0.01, failure("request"))).run(300, slots=4)
    assert scheduler.stop.reason == "hopeless" and 0 <= scheduler.tally.attempts - MAX_FAILURES_WITHOUT_SUCCESS <= 3
    scheduler, _ = World(lambda number, _: (0.01, failure("request") if number else ANSWER)).run(300, slots=1)
    assert scheduler.stop.reason == "" and scheduler.tally.failed == {"reason_request": 299}


def test_a_budget_waits_for_what_is_in_flight_and_ends_the_run_when_nothing_is() -> None:
    """Of 30, 10 are set aside for a request that turns out to cost 1: three at once, and 21 of them until 10 more would pass 30."""
    spent, held = 0, set[bytes]()

    def afford(request: Request) -> bool:
        if spent + 10 * len(held) + 10 > 30:
            return False
        held.add(request.key)
        return True

    async def done(request: Request, outcome: Answer | Failure) -> None:
        nonlocal spent
        held.remove(request.key)
        spent += 1

    world = World(lambda number, _: (0.01, ANSWER))
    scheduler, _ = world.run(100, slots=8, afford=afford, release=lambda request: held.remove(request.key), done=done)
    assert scheduler.stop.reason == "budget" and world.most == 3
    assert scheduler.tally.answered == 21 == spent and not held


def test_an_endpoint_that_is_away_gets_one_scout_at_a_time_and_is_given_up_after_the_patience() -> None:
    world = World(lambda number, _: (0.01, failure("unreachable")))
    scheduler, seconds = world.run(20, slots=5, outage_timeout=60.0)
    assert scheduler.stop.reason == "unreachable" and 60 <= seconds < 60 + 16
    assert world.tries.total() <= 5 + 12 and not world.done_with and not world.reserved

    def back_after_30(number: int, _: int) -> tuple[float, Answer | Failure]:
        return 0.01, ANSWER if asyncio.get_running_loop().time() >= 30 else failure("unreachable")

    world = World(back_after_30)
    scheduler, seconds = world.run(20, slots=5, retries=0)
    assert scheduler.stop.reason == "" and scheduler.tally.answered == 20 and 30 <= seconds < 30 + 16


@pytest.mark.parametrize(
    ("seconds", "outcome", "requests", "end", "done"),
    [(5.0, ANSWER, 100, 5.0, 3), (0.1, failure("transient", 500.0), 3, 1.0, 0)],
    ids=["what is in flight is finished", "a retry that waits does not hold it up"],
)
def test_a_stop_from_outside_is_seen_at_once(
    seconds: float, outcome: Answer | Failure, requests: int, end: float, done: int
) -> None:
    world = World(lambda number, _: (seconds, outcome))

    async def work() -> tuple[Scheduler, float]:
        scheduler = world.scheduler(3)
        task = asyncio.create_task(scheduler.run(world.requests(requests)))
        await asyncio.sleep(1.0)
        scheduler.stop("interrupted", "by hand")
        await task
        return scheduler, asyncio.get_running_loop().time()

    scheduler, ended = running(work)
    assert ended == pytest.approx(end, abs=1e-4) and len(world.done_with) == done and scheduler.tally.attempts == 3
    assert world.closed and not world.reserved


@pytest.mark.parametrize("many", [1, 20])
def test_what_ends_one_judge_wakes_the_others_out_of_their_longest_wait(many: int) -> None:
    """One judge is told to come again in ten minutes; the other's key is refused after a second, and nobody waits for the rest."""
    waits = World(lambda number, _: (0.01, failure("rate_limit", 600.0)))
    refused = World(lambda number, _: (1.0, failure("run")))

    async def work() -> tuple[Stop, float]:
        stop = Stop()
        schedulers = [waits.scheduler(4, stop=stop), refused.scheduler(4, stop=stop)]
        await asyncio.gather(*(one.run(world.requests(many)) for one, world in zip(schedulers, (waits, refused), strict=True)))
        return stop, asyncio.get_running_loop().time()

    stop, ended = running(work)
    assert stop.reason == "reason_run" and ended == pytest.approx(1.0, abs=1e-3)
    assert not waits.reserved and not refused.reserved


def test_a_signal_reaches_every_waiter_also_when_another_one_begins_to_wait_at_that_moment() -> None:
    async def work() -> float:
        stop = Stop()
        await stop.wait(0)
        waits = [asyncio.create_task(stop.wait(600.0)) for _ in range(3)]
        stop("forbidden", "the key has no access")
        waits.append(asyncio.create_task(stop.wait(0.5)))
        await asyncio.gather(*waits)
        return asyncio.get_running_loop().time()

    assert running(work) <= 1.0


def test_what_a_run_waits_for_is_known_while_nothing_is_in_flight() -> None:
    world = World(lambda number, attempt: (1.0, failure("rate_limit", 30.0) if attempt == 1 else ANSWER))

    async def work() -> list[tuple[float, str] | None]:
        scheduler = world.scheduler(2)
        task = asyncio.create_task(scheduler.run(world.requests(2)))
        seen = []
        for _ in range(4):
            await asyncio.sleep(10.5)
            seen.append(scheduler.waiting())
        await task
        return seen

    assert running(work) == [
        (pytest.approx(left, abs=1e-3), "message of rate_limit") for left in (20.5, 10.0)
    ] + [None, None]  # fmt: skip


@pytest.mark.parametrize("where", ["done", "requests"])
def test_an_error_of_ours_stops_the_run_and_comes_out_when_what_was_in_flight_has_ended(where: str) -> None:
    world, error = World(lambda number, _: (1.0 + number, ANSWER)), OSError("no space left")

    async def done(one: Request, outcome: Answer | Failure) -> None:
        if where == "done" and one.key == request(1).key:
            raise error
        await world.done(one, outcome)

    async def requests() -> AsyncGenerator[Request, None]:
        async for one in world.requests(100):
            if where == "requests" and one.key == request(4).key:
                raise error
            yield one

    async def work() -> float:
        scheduler = world.scheduler(4, done=done)
        with pytest.raises(OSError) as raised:
            await scheduler.run(requests())
        assert raised.value is error
        assert len(asyncio.all_tasks()) == 1
        return asyncio.get_running_loop().time()

    seconds = running(work)
    assert world.in_flight == 0 and world.cancelled == 0 and len(world.tries) <= 6
    assert seconds == pytest.approx(max(starts[0] + 1.0 + number for number, starts in world.starts.items()), abs=1e-4)


def test_cancelling_the_run_cancels_what_is_in_flight() -> None:
    world = World(lambda number, _: (100.0, ANSWER))

    async def work() -> float:
        task = asyncio.create_task(world.scheduler(7).run(world.requests(100)))
        await asyncio.sleep(1.0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(asyncio.all_tasks()) == 1
        return asyncio.get_running_loop().time()

    assert running(work) == pytest.approx(1.0, abs=1e-4)
    assert world.cancelled == 7 and world.in_flight == 0 and not world.done_with and world.closed
