"""The limits: no minute gets more than it may, 429 halves once for all that were under way, an outage lets one scout through."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpo.annotate.client import Bucket, Limits


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.lists(st.floats(0, 3), min_size=1, max_size=300))
def test_no_minute_gets_more_requests_than_its_limit(per_minute: int, gaps: list[float]) -> None:
    bucket, now, taken = Bucket(per_minute), 0.0, []
    for gap in gaps:
        now += gap * 60 / per_minute
        now += bucket.delay(1, now)
        bucket.take(1, now)
        taken.append(now)
    for start in taken:
        assert sum(start <= at < start + 60 for at in taken) <= per_minute + 1e-6 + (per_minute < 2)


def test_a_busy_bucket_uses_what_it_may() -> None:
    bucket, now = Bucket(600), 0.0
    for _ in range(600 * 5):
        now += bucket.delay(1, now)
        bucket.take(1, now)
    assert 300 <= now < 300 / 0.94


def test_a_request_larger_than_the_bucket_starts_when_it_is_full_and_is_paid_for_afterwards() -> None:
    bucket = Bucket(6_000)
    assert bucket.delay(50_000, 0.0) == 0.0
    bucket.take(50_000, 0.0)
    assert bucket.delay(1, 0.0) == pytest.approx((50_000 - 300 + 1) / bucket.rate)


def test_tokens_estimated_too_high_are_given_back() -> None:
    limits = Limits(8, tokens_per_minute=60_000)
    limits.started(3_000, 0.0)
    assert limits.delay(3_000, 0.0) > 0
    limits.answered(3_000, 0, 0.0)
    assert limits.delay(3_000, 0.0) == 0.0


def test_a_429_halves_once_for_all_that_were_under_way_and_recovers_by_one_a_round() -> None:
    limits = Limits(64)
    for _ in range(40):
        limits.limited(None, started=1.0, now=2.0)
    assert limits.slots() == 32
    limits.limited(None, started=2.5, now=3.0)
    assert limits.slots() == 16
    for _ in range(16):
        limits.answered(1, 1, 4.0)
    assert limits.slots() == 16 and limits.allowed == pytest.approx(17, abs=0.1)
    for _ in range(5_000):
        limits.answered(1, 1, 4.0)
    assert limits.slots() == 64
    for now in range(100):
        limits.limited(None, started=100.0 + now, now=100.5 + now)
    assert limits.slots() == 1


def test_retry_after_pauses_everything() -> None:
    limits = Limits(64)
    limits.limited(7.0, started=0.0, now=1.0)
    assert limits.delay(1, 1.0) == 7.0 and limits.delay(1, 8.0) == 0.0


def test_an_outage_lets_one_scout_through_and_ends_with_an_answer() -> None:
    limits = Limits(64)
    assert [limits.unreachable(0.0) for _ in range(64)] == [0.0] * 64
    assert limits.slots() == 1 and limits.delay(1, 0.0) == 0.5
    waits = []
    now = 0.5
    for _ in range(8):
        away = limits.unreachable(now)
        assert away == now
        waits.append(limits.delay(1, now))
        now += waits[-1]
    assert waits == [1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0, 15.0]
    limits.answered(1, 1, now)
    assert limits.slots() == 64 and limits.unreachable(now) == 0.0
