"""The plan of the test server: whom it plays, what it can and cannot do, how slow it is and what goes wrong."""

import math
import time
from typing import Any, Literal

from pydantic import BaseModel, Field, PrivateAttr
from simulated_judge import Capabilities, JudgeModel, Refusal, chance, unit

Z99 = 2.3263478740408408
"""The 99th percentile of the standard normal distribution."""

STATUS: dict[str, tuple[int, str | None, str | None, str]] = {
    "rate_limit": (429, "rate_limit_exceeded", "requests", "Rate limit reached for requests."),
    "quota": (429, "insufficient_quota", "insufficient_quota", "You exceeded your current quota."),
    "server_error": (500, None, "server_error", "The server had an error while processing your request."),
    "bad_gateway": (502, None, "server_error", "Bad gateway."),
    "unavailable": (503, None, "server_error", "The engine is currently overloaded."),
    "auth": (401, "invalid_api_key", None, "Incorrect API key provided."),
    "forbidden": (403, "forbidden", None, "Your project has no access to this model."),
    "model": (404, "model_not_found", None, "The model does not exist or you have no access to it."),
    "context": (400, "context_length_exceeded", None, "This model's maximum context length is 8192 tokens."),
    "content_policy": (400, "content_filter", None, "The response was filtered by the content management policy."),
    "status": (400, None, None, "Planned error."),
}
"""Faults that answer at once, nothing being done: status, code, type and message. `status` takes the plan's status and message."""

REPLY: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "content_filter": ({"content": None}, {"finish_reason": "content_filter", "logprobs": None}),
    "refusal": ({"content": None, "refusal": "I'm sorry, but I cannot help with comparing these."}, {"logprobs": None}),
    "length": ({"content": ""}, {"finish_reason": "length", "logprobs": {"content": []}}),
    "unparsable": ({"content": "Both have their merits, and it is hard to say more."}, {"logprobs": None}),
    "no_logprobs": ({}, {"logprobs": None}),
    "empty_choices": ({}, {}),
    "low_mass": ({}, {}),
}
"""Faults of a chat reply: what they change in each choice's message, and in the choice."""

WIRE = ("bad_json", "cut_json", "reset", "close", "hang", "slow", "down")
"""Faults of how it is sent: a page of HTML under status 200, half of the JSON under a content-length that fits, half of the reply and
a reset, an end before the status line, no answer at all, a late one, and an outage: all connections end and the port refuses new ones."""


class Fault(BaseModel, extra="forbid"):
    """One planned fault: all conditions that are given must hold. The first that strikes a request is the one.

    at: sequence numbers on its route, from 1. probability: in [0, 1], drawn from the seed, the body's digest and how often that body
    has come, so it does not depend on the order of requests. contains: in the prompt (chat, batch_line) or in the body (other routes).
    attempts: only the first so many times that a body comes. times: strikes so many times in all. seconds: delay of the answer
    (`slow`), or how long `down` is. headers: of a refusal. mass: what `low_mass` leaves to the grades.
    """

    kind: Literal[(*STATUS, *REPLY, *WIRE)]  # type: ignore[valid-type]
    route: str = "chat"
    at: list[int] | None = None
    probability: float = 1.0
    contains: str = ""
    attempts: int | None = None
    times: int | None = None
    seconds: float = 0.0
    headers: dict[str, str] | None = None
    mass: float = 0.05
    status: int | None = None
    message: str | None = None
    _struck: int = PrivateAttr(0)

    def strikes(self, record: Any, text: str, *draw: int) -> bool:
        """Whether it strikes the request of this record; if so it is counted. draw: the plan's seed and the place of this fault."""
        struck = (
            self.route == record["route"]
            and (self.times is None or self._struck < self.times)
            and (self.at is None or record["seq"] in self.at)
            and (self.attempts is None or record["attempt"] <= self.attempts)
            and self.contains in text
            and (self.probability == 1 or chance(*draw, record["digest"], record["attempt"]) < self.probability)
        )
        self._struck += struck
        return struck

    def refusal(self) -> Refusal:
        """What a fault of STATUS answers."""
        status, code, type, message = STATUS[self.kind]
        return Refusal(self.status or status, self.message or message, code, type=type, headers=self.headers)

    def spoil(self, reply: dict[str, Any]) -> None:
        """Does to a chat reply what a fault of REPLY does."""
        message, rest = REPLY.get(self.kind, ({}, {}))
        for choice in reply["choices"]:
            choice["message"] |= message
            choice |= rest
        if self.kind == "empty_choices":
            reply["choices"] = []


class RateLimit(BaseModel, extra="forbid"):
    """A bucket that holds burst_seconds' worth of requests, starts full and refills evenly; a 429 says when to come again."""

    requests_per_minute: float
    burst_seconds: float = 60.0
    _level: float = PrivateAttr(math.inf)
    _then: float = PrivateAttr(0.0)

    def admit(self) -> None:
        """Takes a request from the bucket. Raises Refusal where there is none; that costs nothing."""
        rate, now = self.requests_per_minute / 60, time.monotonic()
        self._level = min(max(1.0, rate * self.burst_seconds), self._level + (now - self._then) * rate)
        self._then = now
        if self._level < 1 - 1e-9:
            headers = {"retry-after": str(math.ceil((1 - self._level) / rate))}
            raise Refusal(429, "Rate limit reached on requests per min.", "rate_limit_exceeded", type="requests", headers=headers)
        self._level -= 1


class Plan(BaseModel, extra="forbid"):
    """What the server plays, can do and does wrong; without any key it is fast and faultless.

    worth: words and their worth, see simulated_judge.Qualities.
    models: how each judge grades; there are no others, unless none is listed: then all grade as `defaults`. latency: seconds, or
    {median, p99} of a lognormal distribution of them, drawn by seed and sequence number. api_keys: those that are let in; null: any, and
    none. keep_bodies: the log holds every chat request's body. batch_seconds: from a batch's creation to its end; one beyond a limit
    fails. batch_expire: {share, times}: the next batches expire with that share of their requests done. batch_fail: {code, message,
    line, times}: the next batches fail at validation.
    """

    models: dict[str, JudgeModel] = Field(default_factory=dict)
    worth: dict[str, float] = Field(default_factory=dict)
    defaults: JudgeModel = JudgeModel()
    capabilities: Capabilities = Capabilities()
    faults: list[Fault] = Field(default_factory=list)
    latency: float | dict[str, float] = 0.0
    rate_limit: RateLimit | None = None
    api_keys: list[str] | None = None
    seed: int = 0
    keep_bodies: bool = False
    batch_seconds: float = 0.0
    batch_max_requests: int = 50_000
    batch_max_bytes: int = 200_000_000
    batch_enqueued_tokens: int | None = None
    batch_expire: dict[str, Any] | None = None
    batch_fail: dict[str, Any] | None = None

    def drawn_latency(self, sequence: int) -> float:
        """The latency of the chat request of that sequence number, in seconds: median·(p99/median)^(z/z₉₉)."""
        if not isinstance(self.latency, dict):
            return self.latency
        median, p99 = self.latency["median"], self.latency["p99"]
        return median * (p99 / median) ** (unit("latency", self.seed, sequence) / Z99)
