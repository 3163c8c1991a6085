"""What batches bring: each row of a file of results into an outcome, durable before it counts."""

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from mmpo.annotate.batch.api import BatchSettings
from mmpo.annotate.client import Answer, Endpoint, Failure, Request, Stop, failure_of_status, refusal_of

UNDONE = ("batch_expired", "batch_cancelled")
NO_TEXTS: dict[str, Any] = {"messages": []}


@dataclass
class SubmittedBatch:
    """One batch of ours. at: seconds since the epoch. asked: key → request without its texts; an outcome takes it out of there.

    again: how many of its requests failed by a fault that passes. others: requests that an earlier run asked and this one has no use
    for; their answers are paid and kept all the same.
    """

    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    at: float = field(default_factory=time.time)
    id: str = ""
    asked: dict[bytes, Request] = field(default_factory=dict)
    others: set[bytes] = field(default_factory=set)
    again: int = 0


@dataclass(eq=False)
class Results:
    """Takes in the rows of one judge's batches; check, done and release as in `run.Batches`.

    settled: requests that have their outcome in this run and that the journal would not keep from being asked again.
    """

    endpoint: Endpoint
    check: Callable[[Request, Answer | Failure], Answer | Failure]
    done: Callable[[Request, Answer | Failure], Awaitable[None]]
    release: Callable[[Request], None]
    settings: BatchSettings
    stop: Stop
    settled: set[bytes] = field(default_factory=set)
    _tries: Counter[bytes] = field(default_factory=Counter)

    async def take(self, batch: SubmittedBatch, rows: list[Any]) -> None:
        """Make the outcomes in some rows of results durable; they share their commits."""
        await asyncio.gather(*[work for row in rows if (work := self._taken(batch, row)) is not None])

    def _taken(self, batch: SubmittedBatch, row: Any) -> Awaitable[None] | None:
        key = _key_in(row)
        if key in batch.others:
            batch.others.discard(key)
            return self._keep(key, row)
        request = batch.asked.get(key)
        if request is None:
            return None
        outcome = outcome_of(row, request, self.endpoint)
        if isinstance(outcome, Failure) and outcome.reason in UNDONE:
            return None
        del batch.asked[key]
        if isinstance(outcome, Failure) and self._again(request, outcome):
            batch.again += 1
            self.release(request)
            return None
        return self.settle(request, self.check(request, outcome))

    def _again(self, request: Request, failure: Failure) -> bool:
        """Whether a request is asked again, in this run or, where all requests would fail, in the next one."""
        if failure.kind == "run":
            self.stop(failure.reason, self.endpoint.scrubbed(failure.message))
            return True
        if failure.kind == "request":
            return False
        self._tries[request.key] += 1
        return self._tries[request.key] <= self.settings.retries

    async def settle(self, request: Request, outcome: Answer | Failure) -> None:
        """Make the last word on a request in this run durable."""
        await self.done(request, outcome)
        self._tries.pop(request.key, None)
        if isinstance(outcome, Failure) or not self.settings.keep_answers:
            self.settled.add(request.key)  # the journal does not keep these from being asked again

    async def _keep(self, key: bytes, row: Any) -> None:
        """Keep an answer that this run has no use for; another one may have, and it is paid."""
        request = Request(key, NO_TEXTS, 0, 0)
        outcome = outcome_of(row, request, self.endpoint)
        if isinstance(outcome, Answer) or outcome.answer:
            await self.done(request, outcome)


def light(request: Request) -> Request:
    """The request without its texts: hundreds of thousands of them may wait for their batches. The names of its parameters stay, since a
    refusal may be about one."""
    return replace(request, body={**request.body, **NO_TEXTS})


def _key_in(row: Any) -> bytes:
    """The key of the request that a row of results is about; b"" where it is about none of ours."""
    with suppress(KeyError, TypeError, ValueError):
        return bytes.fromhex(row["custom_id"])
    return b""


def outcome_of(row: Any, request: Request, endpoint: Endpoint) -> Answer | Failure:
    """The answer in a row of results, or why there is none; kinds and reasons are those of a request by itself.

    row: {"custom_id", "response": {"status_code", "body"} or null, "error": {"code", "message"} or null}, as OpenAI's reference has it.
    """
    response = _object(row.get("response"))
    status = response.get("status_code")
    status = status if isinstance(status, int) else 0
    if status == 200:
        found = endpoint.read(response.get("body"), request.body, 0.0)
        if isinstance(found, Answer) and not found.prompt_tokens:  # no usage was reported, and the texts are not kept
            return replace(found, prompt_tokens=request.prompt_tokens)
        return found
    refusal = refusal_of(response.get("body") or row.get("error") or "the request failed in its batch")
    failure = failure_of_status(status, refusal, sent=request.body, secrets=endpoint.secrets)
    if failure.kind in ("run", "request"):
        return failure
    code = next((code for code in refusal.codes if code.isidentifier()), "")
    reason = code or (failure.reason if status else "batch_error")
    return replace(failure, kind="transient", reason=reason)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
