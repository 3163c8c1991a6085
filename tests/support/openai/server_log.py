"""What the test server remembers of the requests that came: one record each, and figures over them."""

import time
from collections import Counter
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from server_faults import FAULTS

__all__ = ["Ledger", "Record"]


@dataclass(slots=True)
class Record:
    """One request that came, by HTTP or as a line of a batch.

    seq: counts from 1 on its route, in order of arrival. digest: blake2b-128 of the body. attempt: how often this body has
    come, from 1. key: the API key received. arrived, finished: seconds since the epoch. latency: seconds by which the answer
    was held back. status: null where none was sent. sent: the kernel took the whole reply (the other side may still have
    died before it read it). body: kept where the plan says so. custom_id, batch: of a line of a batch.
    """

    seq: int
    route: str
    digest: str
    attempt: int
    model: str
    key: str
    arrived: float
    latency: float = 0.0
    status: int | None = None
    fault: str | None = None
    sent: bool = False
    finished: float | None = None
    body: Any = None
    custom_id: str | None = None
    batch: str | None = None


class Ledger:
    """Records of chat requests and of lines of batches, and counts of everything."""

    def __init__(self) -> None:
        self.chat: list[Record] = []
        self.lines: list[Record] = []
        self.sequence: Counter[str] = Counter()
        self.attempts: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self.in_flight = self.most_in_flight = self.bugs = 0

    def arrival(self, route: str, raw: bytes, body: Any, key: str, keep: bool) -> Record:
        """The record of a request that has come; chat requests and lines are kept, others only counted."""
        self.sequence[route] += 1
        digest = blake2b(raw, digest_size=16).hexdigest()
        self.attempts[route + digest] += 1
        model = body.get("model") if isinstance(body, dict) else None
        name = model if isinstance(model, str) else ""
        record = Record(self.sequence[route], route, digest, self.attempts[route + digest], name, key, time.time())
        record.body = body if keep else None
        kept = {"chat": self.chat, "batch_line": self.lines}.get(route)
        if kept is not None:
            kept.append(record)
        return record

    def started(self) -> None:
        """A request is being answered from now on."""
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)

    def ended(self, record: Record, status: int | None, sent: bool) -> None:
        """It no longer is."""
        self.in_flight -= 1
        record.status, record.sent, record.finished = status, sent, time.time()

    def spent(self, usage: dict[str, int] | None) -> None:
        """Adds to the tokens used."""
        for name, count in (usage or {}).items():
            self.tokens[name] += count

    def counts(self) -> dict[str, Any]:
        """Figures over chat requests: answered counts good replies, answered_again those whose body had one before."""
        good = Counter(record.digest for record in self.chat if record.sent and record.status == 200 and _whole(record))
        struck = [record.fault for record in [*self.chat, *self.lines] if record.fault is not None]
        return {
            "requests": len(self.chat),
            "answered": sum(good.values()),
            "answered_again": sum(good.values()) - len(good),
            "distinct_bodies": len({record.digest for record in self.chat}),
            "by_status": Counter(str(record.status) for record in self.chat if record.finished is not None),
            "by_fault": Counter(struck),
            "by_route": self.sequence,
            "in_flight": self.in_flight,
            "most_in_flight": self.most_in_flight,
            "prompt_tokens": self.tokens["prompt_tokens"],
            "completion_tokens": self.tokens["completion_tokens"],
            "bugs": self.bugs,
        }


def _whole(record: Record) -> bool:
    """Nothing was wrong with the reply: asking again would be asking twice."""
    return record.fault is None or FAULTS[record.fault].stage == "delay"
