"""One model at work: the requests that have no answer yet, the budget, what was counted; by single requests or by batches."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from mmpo.annotate.asking.options import AskingOptions
from mmpo.annotate.batch import Batches, BatchSettings, open_batches
from mmpo.annotate.client import (
    Answer,
    Budget,
    Endpoint,
    EndpointSettings,
    Failure,
    Journal,
    Limits,
    Price,
    Request,
    Scheduler,
    Stop,
)
from mmpo.pipeline.errors import UserError

TOKEN_SAFETY_FACTOR = 1.3
"""How much longer prompts may be in tokens than estimated, until the endpoint has said how long they are."""


@dataclass
class Counts:
    """What a model has done in this run. total: requests of the run; cached: answered before it; priced: its cost is known.

    waiting: seconds until the next try and why it is waited for, None while nothing is waited for.
    """

    total: int
    priced: bool = True
    cached: int = 0
    answered: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    reply_tokens: int = 0
    cost: float = 0.0
    in_flight: int = 0
    retried: int = 0
    started: float = field(default_factory=time.monotonic)
    waiting: Callable[[], tuple[float, str] | None] = lambda: None

    @property
    def done(self) -> int:
        """Requests that need nothing more in this run."""
        return self.cached + self.answered + sum(self.failed.values())


class Endpointlike(Protocol):
    """What answers requests: an `Endpoint`, or a model on this machine. judge: its settings."""

    judge: EndpointSettings

    async def ask(self, body: Mapping[str, Any]) -> Answer | Failure:
        """Answer one request; never raises for what can go wrong with it."""
        ...


@dataclass(eq=False)
class Asker:
    """Asks one model everything that the journal has no answer to. total: requests of the run; word: what the model is in messages."""

    endpoint: Endpointlike
    options: AskingOptions
    journal: Journal
    budget: Budget
    price: Price | None
    stop: Stop
    total: int
    word: str = "judge"

    def __post_init__(self) -> None:
        self.judge = self.endpoint.judge
        self.counts = Counts(self.total, self.price is not None)
        self._estimated, self._billed = 1.0, TOKEN_SAFETY_FACTOR
        under_way = open_batches(self.journal, self.judge.name)
        if under_way and not self.options.batch and self.options.cache:
            # Asking one by one would pay for their requests a second time.
            raise UserError(
                f"{self.word} {self.judge.name}: batches of an earlier run are under way ({under_way}, journal {self.journal.path}); run "
                "with --batch until they are in, or name another --journal"
            )

    def chunks(self) -> Iterator[tuple[list[Request], int]]:
        """The requests that have no answer yet, some at a time, each time with how many others have one. Called in a thread."""
        raise AssertionError("each kind of run has its own")

    def checked(self, request: Request, outcome: Answer | Failure) -> Answer | Failure:
        """The outcome as it is kept."""
        return outcome

    async def run(self) -> None:
        """Until everything is answered or given up, or the run is stopped."""
        judge, options = self.judge, self.options
        if options.batch:
            settings = BatchSettings(
                options.batch_requests,
                options.batch_bytes,
                options.batch_poll,
                options.retries,
                options.patience,
                keep_answers=options.cache,
            )
            batches = Batches(
                cast(Endpoint, self.endpoint), self.pending, self.checked, self._done, self.journal, settings, self.stop,
                afford=self._afford, release=self._release, under_way=self._under_way,
            )  # fmt: skip
            self.counts.waiting = batches.api.waiting
            await batches.run()
            return
        limits = Limits(judge.concurrency or options.concurrency, judge.requests_per_minute, judge.tokens_per_minute)
        self.scheduler = Scheduler(
            self._send, self._done, limits, self.stop, retries=options.retries, outage_timeout=options.patience,
            afford=self._afford, release=self._release, others=lambda: self.budget.held > 0,
        )  # fmt: skip
        self.counts.waiting = self.scheduler.waiting
        await self.scheduler.run(self.pending())

    def _under_way(self, waiting: int, again: int) -> None:
        self.counts.in_flight, self.counts.retried = waiting, again

    async def pending(self) -> AsyncGenerator[Request, None]:
        """The requests without an answer, in the order of the input. Rows are read and rendered in a thread, one chunk ahead."""
        cached = seen = 0
        before = self.counts.answered if self.options.cache else 0  # by an earlier pass of this run: the journal has these too
        chunks = self.chunks()
        coming = asyncio.create_task(asyncio.to_thread(next, chunks, None))
        try:
            while (chunk := await coming) is not None:
                requests, known = chunk
                cached += known
                seen += known + len(requests)
                self.counts.cached = max(self.counts.cached, cached - before)
                coming = asyncio.create_task(asyncio.to_thread(next, chunks, None))
                for request in requests:
                    yield request
            self.counts.total = seen  # best-worst of a prompt without grades asks nothing
        finally:
            coming.cancel()

    # Money and outcomes

    def _cost(self, prompt_tokens: float, reply_tokens: float) -> float:
        return self.price.of(prompt_tokens, reply_tokens) if self.price else 0.0

    def _afford(self, request: Request) -> bool:
        longer = max(1.0, self._billed / self._estimated)
        return self.budget.reserve(request.key, self._cost(request.prompt_tokens * longer, request.reply_tokens))

    def _release(self, request: Request) -> None:
        self.budget.release(request.key)

    async def _send(self, request: Request) -> Answer | Failure:
        return self.checked(request, await self.endpoint.ask(request.body))

    async def _done(self, request: Request, outcome: Answer | Failure) -> None:
        answer = outcome if isinstance(outcome, Answer) else outcome.answer
        cost = self._cost(answer.prompt_tokens, answer.reply_tokens) if answer else 0.0
        await self.journal.put(self.judge.name, (request.key, outcome, cost))
        self.budget.settle(request.key, cost)
        counts = self.counts
        counts.cost += cost
        if answer:
            counts.prompt_tokens += answer.prompt_tokens
            counts.reply_tokens += answer.reply_tokens
            self._estimated += request.prompt_tokens
            self._billed += answer.prompt_tokens
        if isinstance(outcome, Answer):
            counts.answered += 1
        else:
            counts.failed[outcome.reason] += 1
        if not self.options.batch:
            counts.in_flight, counts.retried = self.scheduler.tally.in_flight, self.scheduler.tally.retried
