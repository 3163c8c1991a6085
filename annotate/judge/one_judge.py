"""One judge at work: the requests that have no answer yet, the budget, what was counted; by single requests or by batches."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field

from mmpo.annotate.batch.run import Batches, refuse_open_batches
from mmpo.annotate.client.cost import Budget, Price
from mmpo.annotate.client.endpoint import Endpoint
from mmpo.annotate.client.journal import Journal
from mmpo.annotate.client.rate_limits import Limits
from mmpo.annotate.client.request import Answer, Failure, Request
from mmpo.annotate.client.scheduler import Engine, Stop
from mmpo.annotate.judge.options import JudgeOptions
from mmpo.annotate.judge.questions import Questions
from mmpo.annotate.rows import Feedback, rows_of

__all__ = ["Counts", "Running", "needs_scores"]

ROWS_AT_ONCE = 32
PESSIMISM = 1.3
"""How much longer prompts may be in tokens than estimated, until the endpoint has said."""


@dataclass
class Counts:
    """What a judge has done in this run. total: requests of the run; cached: answered before it; priced: its cost is known."""

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

    @property
    def done(self) -> int:
        """Requests that need nothing more in this run."""
        return self.cached + self.answered + sum(self.failed.values())


def needs_scores(options: JudgeOptions) -> bool:
    """Whether the choice of pairs looks at grades that are there already."""
    return options.mode == "pairwise" and options.pairs in ("auto", "chain", "best-worst")


class Running:
    """Asks one judge everything that the journal has no answer to."""

    def __init__(
        self,
        questions: Questions,
        endpoint: Endpoint,
        feedback: Feedback,
        journal: Journal,
        budget: Budget,
        price: Price | None,
        stop: Stop,
        total: int,
    ) -> None:
        self.questions, self.endpoint, self.feedback, self.journal = questions, endpoint, feedback, journal
        self.budget, self.price, self.stop = budget, price, stop
        self.options, self.judge = questions.options, questions.judge
        self.counts = Counts(total, price is not None)
        self._estimated = 1.0
        self._billed = PESSIMISM
        judge, options = self.judge, self.options
        if not options.batch and options.cache:
            refuse_open_batches(journal, judge.name)
        self.limits = Limits(judge.concurrency or options.concurrency, judge.requests_per_minute, judge.tokens_per_minute)
        self.engine = Engine(
            self._send, self._done, self.limits, stop, retries=options.retries, patience=options.patience,
            afford=self._afford, release=lambda request: budget.release(request.key), others=lambda: budget.held > 0,
        )  # fmt: skip

    async def run(self) -> None:
        """Until everything is answered or given up, or the run is stopped."""
        if not self.options.batch:
            await self.engine.run(self.pending())
            return
        batches = Batches(
            self.endpoint, self.pending, self.questions.checked, self._done, self.journal, self.options, self.stop,
            afford=self._afford, release=lambda request: self.budget.release(request.key), under_way=self._under_way,
        )  # fmt: skip
        await batches.run()

    def _under_way(self, waiting: int, again: int) -> None:
        self.counts.in_flight, self.counts.retried = waiting, again

    async def pending(self) -> AsyncGenerator[Request, None]:
        """The requests without an answer, in the order of the input. Rows are read and rendered in a thread, one chunk ahead."""
        cached = seen = 0
        before = self.counts.answered if self.options.cache else 0  # by an earlier pass of this run: the journal has these too
        chunks = self._chunks()
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

    def _chunks(self) -> Iterator[tuple[list[Request], int]]:
        scores = needs_scores(self.options)
        for table in self.feedback.tables(ROWS_AT_ONCE):
            rows = [
                row
                for row in rows_of(table, scores=scores, reference=self.options.reference)
                if self.feedback.wanted(row.prompt_id)
            ]
            requests = [request for row in rows for question in self.questions.of(row) for request in question.requests]
            left = self._unanswered(requests) if self.options.cache else requests
            yield left, len(requests) - len(left)

    def _unanswered(self, requests: list[Request]) -> list[Request]:
        known = self.journal.answers([request.key for request in requests])
        missing = [request for request in requests if not self.questions.usable(request, known.get(request.key))]
        # A reply that could not be read then may be readable now (another --min-mass, a newer reader): it is paid.
        failures = self.journal.failures([request.key for request in missing])
        readable: dict[bytes, Answer] = {}
        for request in missing:
            failure = failures.get(request.key)
            if failure is not None and failure.answer is not None and failure.answer.choices:
                outcome = self.questions.checked(request, failure.answer)
                if isinstance(outcome, Answer):
                    readable[request.key] = outcome
        if readable:
            self.journal.promote(self.judge.name, readable)
        return [request for request in missing if request.key not in readable]

    def _cost(self, prompt_tokens: float, reply_tokens: float) -> float:
        return self.price.of(prompt_tokens, reply_tokens) if self.price else 0.0

    def _afford(self, request: Request) -> bool:
        longer = max(1.0, self._billed / self._estimated)
        return self.budget.reserve(request.key, self._cost(request.prompt_tokens * longer, request.reply_tokens))

    async def _send(self, request: Request) -> Answer | Failure:
        return self.questions.checked(request, await self.endpoint.ask(request.body))

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
            counts.in_flight, counts.retried = self.engine.tally.in_flight, self.engine.tally.retried
