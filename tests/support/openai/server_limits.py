"""Time on the test server: drawn latencies and enforced rate limits."""

import math
from collections.abc import Callable

from server_http import Answer, error_answer
from server_judge import unit
from server_plan import Latency, RateLimit

__all__ = ["RateLimiter", "draw_latency"]

Z99 = 2.3263478740408408
"""The 99th percentile of the standard normal distribution."""


def draw_latency(latency: Latency, seed: int, sequence: int) -> float:
    """The latency of the request of that sequence number, in seconds: median·exp(σz), σ = ln(p99/median)/z₉₉."""
    if latency.median == latency.p99:
        return latency.median
    return latency.median * math.exp(math.log(latency.p99 / latency.median) / Z99 * unit("latency", seed, sequence))


class Bucket:
    """Tokens that refill evenly; `level` is what is there now."""

    def __init__(self, per_minute: float, burst_seconds: float, now: float) -> None:
        self.rate = per_minute / 60
        self.capacity = max(1.0, self.rate * burst_seconds)
        self.level, self.then = self.capacity, now

    def refill(self, now: float) -> None:
        """Adds what came since."""
        self.level = min(self.capacity, self.level + (now - self.then) * self.rate)
        self.then = now

    def wait(self, amount: float) -> float:
        """Seconds until so much is there; 0 if it is. More than the bucket ever holds waits for a full one."""
        short = min(amount, self.capacity) - self.level
        return short / self.rate if short > 1e-9 else 0.0


class RateLimiter:
    """Requests and tokens a minute as a plan limits them. Requests that are turned away cost nothing but are counted."""

    def __init__(self, limit: RateLimit | None, clock: Callable[[], float], violations: int = 0) -> None:
        now = clock()
        self.limit, self.clock = limit or RateLimit(), clock
        self.violations = violations
        self.buckets = {
            name: Bucket(per_minute, self.limit.burst_seconds, now)
            for name, per_minute in (("requests", self.limit.requests_per_minute), ("tokens", self.limit.tokens_per_minute))
            if per_minute is not None
        }

    def admit(self, tokens: float) -> tuple[dict[str, str], Answer | None]:
        """The headers of the reply to a request of so many tokens (prompt and limit), and the 429 if it is turned away."""
        if not self.buckets:
            return {}, None
        now = self.clock()
        costs = {"requests": 1.0, "tokens": tokens}
        for bucket in self.buckets.values():
            bucket.refill(now)
        waits = {name: bucket.wait(costs[name]) for name, bucket in self.buckets.items()}
        wait = max(waits.values())
        if not wait:
            for name, bucket in self.buckets.items():
                bucket.level -= min(costs[name], bucket.capacity)
        headers = {}
        for name, bucket in self.buckets.items():
            headers[f"x-ratelimit-limit-{name}"] = f"{bucket.rate * 60:.0f}"
            headers[f"x-ratelimit-remaining-{name}"] = f"{max(0.0, bucket.level):.0f}"
            headers[f"x-ratelimit-reset-{name}"] = _duration((bucket.capacity - bucket.level) / bucket.rate)
        if not wait:
            return headers, None
        self.violations += 1
        if self.limit.retry_after in ("both", "seconds"):
            headers["retry-after"] = str(math.ceil(wait))
        if self.limit.retry_after in ("both", "ms"):
            headers["retry-after-ms"] = str(math.ceil(wait * 1000))
        name = max(waits, key=waits.__getitem__)
        message = f"Rate limit reached on {name} per min. Please try again in {_duration(wait)}."
        return headers, error_answer(429, message, name, None, "rate_limit_exceeded", headers)


def _duration(seconds: float) -> str:
    """As the API writes it: 120ms, 1.5s, 6m0s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, 60)
    return f"{minutes:.0f}m{rest:.0f}s" if minutes else f"{rest:.3g}s"
