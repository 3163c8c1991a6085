"""The OpenAI Batch API: requests in files, submitted, watched, read, and asked again where a batch expired or failed in part.

Every step is in the journal before it counts, so that a killed run picks its batches up again: an intent (with a token that goes along as
the batch's metadata) before a batch is created, its id afterwards, its answers when they are read.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from math import inf
from tempfile import TemporaryFile
from typing import IO, Any

from mmpo.annotate.batch.api import BatchApi, BatchSettings, CallRefused, Halted, line_of
from mmpo.annotate.batch.queue import Queue
from mmpo.annotate.batch.results import Results, SubmittedBatch, light
from mmpo.annotate.client import OF_THE_RUN, Answer, Endpoint, Failure, Journal, Request, Stop
from mmpo.pipeline.errors import PartialResult

FINAL = ("completed", "expired", "failed", "cancelled")
MAX_BATCHES_WITHOUT_SUCCESS = 3
"""So many batches in a row without an outcome for any of their requests end a run."""
FORGOTTEN_AFTER = 30 * 86_400.0
"""Seconds after which a provider may have forgotten a batch and its files."""
OPEN = "SELECT token, batch, at FROM batches WHERE judge = ? AND status NOT IN ('read', 'lost') ORDER BY at"
SUBMITTING = "INSERT INTO batches (token, judge, status, requests, at) VALUES (?, ?, 'submitting', ?, ?)"
SUBMITTED = "UPDATE batches SET batch = ?, status = 'submitted' WHERE token = ?"
ENDED = "UPDATE batches SET status = ? WHERE token = ?"
FORGET = "DELETE FROM batched WHERE token = ?"


@dataclass(eq=False)
class Batches:
    """Asks one judge through the Batch API; the same callbacks as `Scheduler`.

    pending: starts a pass over the requests that have no answer yet. under_way: called with how many requests wait in batches, and how many
    came back to be asked again.
    """

    endpoint: Endpoint
    pending: Callable[[], AsyncGenerator[Request, None]]
    check: Callable[[Request, Answer | Failure], Answer | Failure]
    done: Callable[[Request, Answer | Failure], Awaitable[None]]
    journal: Journal
    settings: BatchSettings
    stop: Stop
    afford: Callable[[Request], bool]
    release: Callable[[Request], None]
    under_way: Callable[[int, int], None]

    def __post_init__(self) -> None:
        self.results = Results(self.endpoint, self.check, self.done, self.release, self.settings, self.stop)
        self.judge = self.endpoint.judge.name
        self.folder = self.journal.path.absolute().parent
        self.api = BatchApi(self.endpoint, self.settings, self.stop)
        self.open: list[SubmittedBatch] = []
        self.retried = self.batches_without_success = 0
        self.spare: Request | None = None
        self.queue = Queue(self.settings.max_requests, self.settings.poll)

    async def run(self) -> None:
        """Until every request is answered or given up, or after a stop; batches that are under way go on at the provider."""
        try:
            await self._adopt()
            more = True
            while self.api.going():
                if more and not self.stop.reason:
                    more = await self._send()
                if not self.open and (self.stop.reason or not more):
                    break
                more = await self._wait() or more
        except Halted:
            pass
        except CallRefused as refused:
            self.stop(refused.failure.reason, f"{self.judge}, Batch API: {refused.failure.message}")
        except OSError as error:
            raise PartialResult(
                f"a file of requests can't be written to {self.folder}: {error.strerror or error}; make room and run the same "
                "command again"
            ) from error
        self._say_what_goes_on()

    def _say_what_goes_on(self) -> None:
        if not self.open or not self.stop.reason:
            return
        count = "1 batch goes" if len(self.open) == 1 else f"{len(self.open)} batches go"
        message = f"{self.judge}: {count} on at the provider, and the same command takes the answers in"
        if self.stop.reason == "interrupted":
            self.stop.override("batches_open", f"interrupted; {message}")
        else:
            self.stop.override(self.stop.reason, f"{self.stop.message}; {message}")

    # Batches of an earlier run

    async def _adopt(self) -> None:
        """Take over what an earlier run submitted, also where it died before it had learned a batch's id."""
        known = {token: SubmittedBatch(token, at, batch or "") for token, batch, at in self.journal.rows(OPEN, (self.judge,))}
        await self._find([batch for batch in known.values() if not batch.id])
        known = {token: batch for token, batch in known.items() if batch.id}
        if not known:
            return
        held = {key: token for key, token in self.journal.rows("SELECT key, token FROM batched") if token in known}
        async with aclosing(self.pending()) as requests:
            async for request in requests:
                token = held.pop(request.key, None)
                if token:
                    self.afford(request)
                    known[token].asked[request.key] = light(request)
                if not held or not self.api.going():
                    break
        for key, token in held.items():
            known[token].others.add(key)
        self.open = list(known.values())

    async def _find(self, unsure: list[SubmittedBatch]) -> None:
        if not unsure:
            return
        await self.api.pause(unsure[-1].at + self.settings.poll - time.time())  # it may be on its way into the list
        if not self.api.going():
            raise Halted
        found = await self.api.find({batch.token for batch in unsure}, unsure[0].at)
        for batch in unsure:
            batch.id = found.get(batch.token, "")
            if batch.id:
                self.journal.write([(SUBMITTED, (batch.id, batch.token))])
            else:  # it was never created: its requests are asked again
                self._forget(batch, "lost")

    # New batches

    async def _send(self) -> bool:
        """Submit what is pending and under way nowhere; whether there is more than can be sent now."""
        self.spare = None
        async with aclosing(self.pending()) as requests:
            while not self.stop.reason:
                most = self.queue.part(self._waiting(), len(self.open), time.monotonic())
                if not most:
                    return True
                batch = SubmittedBatch()
                with TemporaryFile(dir=self.folder) as stream:
                    why = await self._pack(batch, stream, requests, most)
                    if batch.asked and self.api.going():
                        await self._submit(batch, stream)
                if why == "budget" and not self.open:
                    self.stop("budget", "the budget has no room for another request")
                if why != "full":
                    return why != "end"
        return True

    def _waiting(self) -> int:
        return sum(len(batch.asked) for batch in self.open)

    async def _pack(self, batch: SubmittedBatch, stream: IO[bytes], requests: AsyncGenerator[Request, None], most: int) -> str:
        """Fill a file; why it holds no more: "full", "budget", "end" of the requests, or "stopped"."""
        size = 0
        while len(batch.asked) < most:
            request, self.spare = self.spare or await anext(requests, None), None
            if request is None or not self.api.going():
                return "end" if request is None else "stopped"
            if request.key in self.results.settled or any(request.key in one.asked for one in (batch, *self.open)):
                continue
            line = line_of(request)
            if len(line) > self.settings.max_bytes:
                message = f"a request of {len(line):,} bytes; one batch file takes {self.settings.max_bytes:,} (--batch-bytes)"
                await self.results.settle(request, Failure("request", "too_long_for_a_batch", message))
                continue
            if size + len(line) > self.settings.max_bytes:
                self.spare = request
                return "full"
            if not self.afford(request):
                return "budget"
            stream.write(line)
            size += len(line)
            batch.asked[request.key] = light(request)
        return "full"

    async def _submit(self, batch: SubmittedBatch, stream: IO[bytes]) -> None:
        intent = (SUBMITTING, (batch.token, self.judge, len(batch.asked), batch.at))
        keys = [("INSERT OR REPLACE INTO batched VALUES (?, ?)", (key, batch.token)) for key in batch.asked]
        await asyncio.to_thread(self.journal.write, [intent, *keys])
        file = await self.api.upload(stream, f"mmpo-{batch.token}.jsonl")
        if not self.api.going():
            raise Halted
        batch.id = await self.api.create(file, batch.token)
        self.journal.write([(SUBMITTED, (batch.id, batch.token))])
        self.open.append(batch)
        self.under_way(self._waiting(), self.retried)

    # Results

    async def _wait(self) -> bool:
        """Until a batch of ours has ended, or a wait for the provider's queue is over; whether requests are left to ask again."""
        while self.api.going():
            left = ended = False
            for batch in list(self.open):
                if self.stop.reason == "interrupted":
                    return left
                now = await self._state(batch)
                if now is None or now.status in FINAL:
                    ended = True
                    left = await self._read(batch, now) or left
            hold = self.queue.held_until - time.monotonic() if not self.open else inf
            if ended or hold <= 0:
                return left
            await self.api.pause(min(self.settings.poll, hold))
        return False

    async def _state(self, batch: SubmittedBatch) -> Any:
        """The batch as the provider has it; None: forgotten there. Raises CallRefused."""
        try:
            return await self.api.state(batch.id)
        except CallRefused as refused:
            if refused.failure.reason != "not_found":
                raise
            if time.time() - batch.at > FORGOTTEN_AFTER:
                return None
            day = time.strftime("%Y-%m-%d", time.localtime(batch.at))
            message = (
                f"the batch {batch.id} of {day} is not known there: use the address and the key with which it was submitted, or, where "
                "it is gone for good, another --journal"
            )
            raise CallRefused(Failure("run", "batch_not_found", message)) from None

    async def _read(self, batch: SubmittedBatch, now: Any) -> bool:
        """Take in what a batch brought; whether requests of it are left: expired, failed by a passing fault, or all of them."""
        whole = len(batch.asked)
        for file in (now.output_file_id, now.error_file_id) if now else ():
            try:
                await self.api.results(file, self.folder, lambda rows: self.results.take(batch, rows)) if file else None
            except CallRefused as refused:
                if refused.failure.reason != "not_found":  # deleted there: what it held is asked again
                    raise
        brought = whole - len(batch.asked)
        for request in batch.asked.values():
            self.release(request)
        self._forget(batch, "read")
        self.open.remove(batch)
        self.retried += len(batch.asked) + batch.again
        self._learn(batch, now, brought)
        self.under_way(self._waiting(), self.retried)
        return bool(batch.asked) or batch.again > 0

    def _learn(self, batch: SubmittedBatch, now: Any, brought: int) -> None:
        """What the end of a batch means for the next ones."""
        errors = {
            str(error.code): self.endpoint.scrubbed(str(error.message)) for error in (now and now.errors and now.errors.data) or ()
        }
        last = "; ".join(f"{code}: {message}" for code, message in errors.items()) or (now.status if now else "gone")
        fatal = next((code for code in errors if code in OF_THE_RUN), None)
        alone = not self.open
        if "token_limit_exceeded" in errors:
            self.queue.full(len(batch.asked), self._waiting(), time.monotonic())
            if len(batch.asked) > 1 or not alone:
                return
        else:
            self.queue.ended(well=brought > 0)
        self.batches_without_success = self.batches_without_success + 1 if batch.asked and not brought else 0
        if fatal:
            self.stop(fatal, f"{OF_THE_RUN[fatal]}: {errors[fatal]}")
        elif now and now.status == "cancelled":
            self.stop("cancelled", f"the batch {batch.id} was cancelled at the provider; the same command again asks for the rest")
        elif self.batches_without_success >= MAX_BATCHES_WITHOUT_SUCCESS:
            self.stop("batches", f"{MAX_BATCHES_WITHOUT_SUCCESS} batches in a row brought nothing; the last one: {last}")

    def _forget(self, batch: SubmittedBatch, status: str) -> None:
        self.journal.write([(ENDED, (status, batch.token)), (FORGET, (batch.token,))])


def open_batches(journal: Journal, judge: str) -> int:
    """How many batches of this judge are under way, or were when a run was killed."""
    return len(journal.rows(OPEN, (judge,)))
