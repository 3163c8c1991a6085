"""The scheduler: places in flight, retries, reasons to stop, errors and cancellation, by a clock that jumps (scheduler_world.py)."""

import asyncio
import heapq
from collections.abc import AsyncIterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduler_world import ANSWER, TICK, World, failure, request, running

from mmpo.annotate.client import (
    MAX_FAILURES_WITHOUT_SUCCESS,
    RATE_LIMIT_RETRIES,
    Answer,
    Failure,
    Request,
    Scheduler,
)


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


def test_one_slow_request_delays_nobody() -> None:
    world = World(lambda number, _: (10.0 if number == 0 else 0.01, ANSWER))
    world.run(400, 4)
    assert max(starts[0] for starts in world.starts.values()) == pytest.approx(399 / 3 * 0.01, abs=0.02)


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
    assert (
        scheduler.stop.reason == "hopeless"
        and MAX_FAILURES_WITHOUT_SUCCESS <= scheduler.tally.attempts <= MAX_FAILURES_WITHOUT_SUCCESS + 3
    )
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


def test_a_stop_from_outside_is_seen_at_once_and_what_is_in_flight_is_finished() -> None:
    world = World(lambda number, _: (5.0, ANSWER))

    async def work() -> tuple[Scheduler, float]:
        scheduler = world.scheduler(3)
        task = asyncio.create_task(scheduler.run(world.requests(100)))
        await asyncio.sleep(1.0)
        scheduler.stop("interrupted", "by hand")
        await task
        return scheduler, asyncio.get_running_loop().time()

    scheduler, seconds = running(work)
    assert seconds == pytest.approx(5.0, abs=1e-4) and len(world.done_with) == 3 == scheduler.tally.attempts and world.closed


def test_a_retry_that_waits_does_not_hold_up_a_stop() -> None:
    world = World(lambda number, _: (0.1, failure("transient", 500.0)))

    async def work() -> float:
        scheduler = world.scheduler(3)
        task = asyncio.create_task(scheduler.run(world.requests(3)))
        await asyncio.sleep(1.0)
        scheduler.stop("interrupted", "by hand")
        await task
        return asyncio.get_running_loop().time()

    assert running(work) == pytest.approx(1.0, abs=1e-4) and not world.reserved


@pytest.mark.parametrize("where", ["done", "requests"])
def test_an_error_of_ours_stops_the_run_and_comes_out_when_what_was_in_flight_has_ended(where: str) -> None:
    world, error = World(lambda number, _: (1.0 + number, ANSWER)), OSError("no space left")

    async def done(one: Request, outcome: Answer | Failure) -> None:
        if where == "done" and one.key == request(1).key:
            raise error
        await world.done(one, outcome)

    async def requests() -> AsyncIterator[Request]:
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
