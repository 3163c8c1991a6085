"""How fast a judge may be asked: requests and tokens a minute, requests in flight, and how long to pause after a 429.

All times are seconds of a monotonic clock, given by the caller, so that the rules can be tested without waiting.
"""

from dataclasses import dataclass

from mmpo.annotate.client.failures import backoff

MAX_OUTAGE_WAIT = 15.0
BURST = 0.05
"""Share of a minute's allowance that may be used at once; the refill is what is left of it, so that no minute exceeds the limit."""


@dataclass
class Bucket:
    """A token bucket of which any 60 seconds give at most `per_minute`; one that asks for more than it holds runs into debt."""

    per_minute: float
    level: float = 0.0
    at: float | None = None

    @property
    def capacity(self) -> float:
        """The most that it holds."""
        return max(1.0, self.per_minute * BURST)

    @property
    def rate(self) -> float:
        """Refill a second."""
        return max(self.per_minute - self.capacity, self.per_minute * 0.5) / 60

    def _refill(self, now: float) -> None:
        if self.at is None:
            self.level = self.capacity
        else:
            self.level = min(self.capacity, self.level + (now - self.at) * self.rate)
        self.at = now

    def delay(self, amount: float, now: float) -> float:
        """Seconds until `amount` may be taken (an amount above the capacity: until the bucket is full)."""
        self._refill(now)
        return max(0.0, (min(amount, self.capacity) - self.level) / self.rate)

    def take(self, amount: float, now: float) -> None:
        """Take it (or, negative, give back what was estimated too high)."""
        self._refill(now)
        self.level = min(self.capacity, self.level - amount)


class Limits:
    """What one judge's endpoint bears. most: requests in flight; `allowed` of them right now."""

    def __init__(self, most: int, requests_per_minute: float | None = None, tokens_per_minute: float | None = None) -> None:
        self.most = most
        self.allowed = float(most)
        self.high_water = 0
        self.paused_until = 0.0
        self.unreachable_since: float | None = None
        self._requests = Bucket(requests_per_minute) if requests_per_minute else None
        self._tokens = Bucket(tokens_per_minute) if tokens_per_minute else None
        self._cut_at = float("-inf")
        self._outages = 0

    def slots(self) -> int:
        """Requests that may be in flight now; a single scout while the endpoint can't be reached."""
        return 1 if self.unreachable_since is not None else max(1, int(self.allowed))

    def delay(self, tokens: float, now: float) -> float:
        """Seconds until the next request with so many tokens may start."""
        waits = [self.paused_until - now]
        if self._requests:
            waits.append(self._requests.delay(1, now))
        if self._tokens:
            waits.append(self._tokens.delay(tokens, now))
        return max(0.0, *waits)

    def started(self, tokens: float, now: float) -> None:
        """A request with so many (estimated) tokens starts."""
        if self._requests:
            self._requests.take(1, now)
        if self._tokens:
            self._tokens.take(tokens, now)

    def reached(self) -> None:
        """The endpoint sent something, be it an error."""
        self.unreachable_since = None
        self._outages = 0

    def answered(self, estimated: float, used: float, now: float) -> None:
        """An answer came: the endpoint is there, bears a little more, and took `used` tokens instead of `estimated`."""
        self.reached()
        self.allowed = min(float(self.most), self.allowed + 1.0 / max(self.allowed, 1.0))
        if self._tokens:
            self._tokens.take(used - estimated, now)

    def limited(self, retry_after: float | None, started: float, now: float) -> None:
        """A 429 came to a request that started at `started`: half as many in flight (once for all that were under way then)."""
        if started >= self._cut_at:
            self.allowed = max(1.0, self.allowed / 2)
            self._cut_at = now
        if retry_after:
            self.paused_until = max(self.paused_until, now + retry_after)

    def unreachable(self, now: float) -> float:
        """No connection: pause, longer each time up to 15 s. Returns for how long the endpoint has been away."""
        if self.unreachable_since is None:
            self.unreachable_since = now
        if self.paused_until <= now:
            self.paused_until = now + backoff(self._outages, longest=MAX_OUTAGE_WAIT)
            self._outages += 1
        return now - self.unreachable_since
