"""The OpenAI Batch API: requests in files, submitted, watched, read, and asked again where a batch expired or failed in part.

Every step is in the journal before it counts, so that a killed run picks its batches up again: an intent (with a token that goes along as
the batch's metadata) before a batch is created, its id afterwards, its answers when they are read.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from mmpo.annotate.endpoint import Endpoint, answer_of
from mmpo.annotate.engine import Stop
from mmpo.annotate.failures import OF_THE_RUN, failure_of
from mmpo.annotate.journal import Journal
from mmpo.annotate.options import JudgeOptions
from mmpo.annotate.request import Answer, Failure, Request

__all__ = ["Batches"]

FINAL = ("completed", "expired", "failed", "cancelled")
OPEN_AT_ONCE = 10
FRUITLESS_ROUNDS = 3
LISTED = 500
"""How many of the account's newest batches are searched for one whose id was lost in a crash."""
DONE = "UPDATE batches SET status = ? WHERE token = ?"
FORGET = "DELETE FROM batched WHERE token = ?"


@dataclass
class _File:
    """Requests on their way into one batch. asked: key → request without its body."""

    token: str
    path: Path
    size: int = 0
    asked: dict[bytes, Request] = field(default_factory=dict)
    batch: str = ""


class Batches:
    """Asks one judge through the Batch API; the same callbacks as `engine.Engine`.

    pending: starts a pass over the requests that have no answer yet.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        pending: Callable[[], AsyncIterator[Request]],
        check: Callable[[Request, Answer | Failure], Answer | Failure],
        done: Callable[[Request, Answer | Failure], Awaitable[None]],
        journal: Journal,
        options: JudgeOptions,
        stop: Stop,
        *,
        afford: Callable[[Request], bool],
        release: Callable[[Request], None],
    ) -> None:
        self.client = endpoint.client.with_options(max_retries=options.retries)
        self.endpoint, self.pending, self.check, self.done = endpoint, pending, check, done
        self.journal, self.options, self.stop, self.afford, self.release = journal, options, stop, afford, release
        self.judge = endpoint.judge.name
        self.given_up: set[bytes] = set()
        self.open: list[_File] = []
        self.settled = 0
        self.submitted = 0
        self.told = ""

    async def run(self) -> None:
        """Until every request is answered or given up, or after a stop; batches that are under way go on at the provider."""
        try:
            await self._adopt()
            fruitless = 0
            while not self.stop.reason:
                before = self.settled
                sent = await self._round()
                if not sent or self.stop.reason:
                    return
                fruitless = 0 if self.settled > before else fruitless + 1
                if fruitless == FRUITLESS_ROUNDS:
                    self.stop(
                        "batches", f"{fruitless} rounds of batches brought no answer; the last said: {self.told or 'nothing'}"
                    )
        except Exception as error:
            failure = failure_of(error, None)  # raises what is not the client's
            self.stop(failure.reason, self.endpoint.scrubbed(failure.message))

    # Batches of an earlier run

    async def _adopt(self) -> None:
        """Take over what an earlier run submitted, wait for it and read it."""
        for path in self.journal.path.parent.glob(f"{self.journal.path.name}.batch-*.jsonl"):
            path.unlink(missing_ok=True)  # of a killed run: this one holds the journal's lock
        query = "SELECT token, batch FROM batches WHERE judge = ? AND status NOT IN ('read', 'lost')"
        known: dict[str, Any] = dict(self.journal.rows(query, (self.judge,)))
        lost = [token for token, batch in known.items() if not batch]
        if lost:
            known.update(await self._found(set(lost)))
        for token in [token for token, batch in known.items() if not batch]:
            del known[token]  # it was never created: its requests are asked again
            self.journal.write([(DONE, ("lost", token)), (FORGET, (token,))])
        if not known:
            return
        files = {token: _File(token, Path(), batch=str(batch)) for token, batch in known.items()}
        async for request in self.pending():
            rows = self.journal.rows("SELECT token FROM batched WHERE key = ?", (request.key,))
            if rows and rows[0][0] in files:
                files[rows[0][0]].asked[request.key] = _light(request)
        self.open = list(files.values())
        while self.open and not self.stop.reason:
            await self._look()

    async def _found(self, tokens: set[str]) -> dict[str, str]:
        """Ids of batches that were created right before a crash, by the token in their metadata."""
        found: dict[str, str] = {}
        count = 0
        async for batch in self.client.batches.list(limit=100):
            token = (batch.metadata or {}).get("mmpo")
            if token in tokens:
                found[str(token)] = batch.id
            count += 1
            if count >= LISTED:
                break
        return found

    # New batches

    async def _round(self) -> int:
        """Submit everything that is pending and read what comes back; how many requests were submitted."""
        file = self._new_file()
        sent = 0
        stream = file.path.open("wb")
        try:
            async for request in self.pending():
                if self.stop.reason or request.key in self.given_up:
                    continue
                line = _line(request)
                if file.asked and (
                    len(file.asked) >= self.options.batch_requests or file.size + len(line) > self.options.batch_bytes
                ):
                    stream.close()
                    sent += len(file.asked)
                    await self._submit(file)
                    file = self._new_file()
                    stream = file.path.open("wb")
                if not self.afford(request):
                    self.stop("budget", "the budget has no room for another request")
                    continue
                stream.write(line)
                file.size += len(line)
                file.asked[request.key] = _light(request)
            stream.close()
            if file.asked and self.stop.reason in ("", "budget"):
                sent += len(file.asked)
                await self._submit(file)
        finally:
            stream.close()
            file.path.unlink(missing_ok=True)
        while self.open and self.stop.reason in ("", "budget"):
            await self._look()
        return sent

    def _new_file(self) -> _File:
        token = uuid.uuid4().hex
        return _File(token, self.journal.path.with_name(f"{self.journal.path.name}.batch-{token}.jsonl"))

    async def _submit(self, file: _File) -> None:
        while len(self.open) >= OPEN_AT_ONCE and self.stop.reason in ("", "budget"):
            await self._look()
        intent = ("INSERT INTO batches (token, judge, status, requests, at) VALUES (?, ?, 'submitting', ?, unixepoch())",
                  (file.token, self.judge, len(file.asked)))  # fmt: skip
        keys = [("INSERT OR REPLACE INTO batched VALUES (?, ?)", (key, file.token)) for key in file.asked]
        await asyncio.to_thread(self.journal.write, [intent, *keys])
        try:
            uploaded = await self.client.files.create(file=file.path, purpose="batch")
            batch = await self.client.batches.create(
                input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"mmpo": file.token}
            )
        finally:
            file.path.unlink(missing_ok=True)
        file.batch = batch.id
        update = "UPDATE batches SET batch = ?, file = ?, status = ? WHERE token = ?"
        self.journal.write([(update, (batch.id, uploaded.id, "submitted", file.token))])
        self.submitted += len(file.asked)
        self.open.append(file)

    # Results

    async def _look(self) -> None:
        """Look at every open batch once, read those that are done, and wait a while."""
        for file in list(self.open):
            batch = await self.client.batches.retrieve(file.batch)
            if batch.status in FINAL:
                self.open.remove(file)
                await self._read(file, batch)
        waited = 0.0
        while self.open and waited < self.options.batch_poll and self.stop.reason in ("", "budget"):
            await asyncio.sleep(min(0.25, self.options.batch_poll))
            waited += 0.25

    async def _read(self, file: _File, batch: Any) -> None:
        """Take in the answers and errors of a batch; what has neither (expired, failed) is left for the next round."""
        for name in (batch.output_file_id, batch.error_file_id):
            if name:
                content = await self.client.files.content(name)
                for line in content.content.splitlines():
                    await self._take(file, line)
        for request in file.asked.values():
            self.release(request)
        told = [f"{error.code}: {error.message}" for error in (batch.errors.data or [])] if batch.errors else []
        self.told = self.endpoint.scrubbed(told[0]) if told else self.told or batch.status
        fatal = next((one for one in told if one.split(":")[0] in OF_THE_RUN), None)
        if fatal:
            self.stop("batch", self.endpoint.scrubbed(fatal))
        self.journal.write([(DONE, ("read", file.token)), (FORGET, (file.token,))])

    async def _take(self, file: _File, line: bytes) -> None:
        if not line.strip():
            return
        row = orjson.loads(line)
        request = file.asked.pop(bytes.fromhex(row["custom_id"]), None)
        if request is None:
            return
        outcome = self._outcome(request, row)
        if isinstance(outcome, Failure) and outcome.kind != "request":
            self.release(request)
            if outcome.kind == "run":
                self.stop(outcome.reason, outcome.message)
            return
        if isinstance(outcome, Failure):
            self.given_up.add(request.key)
        self.settled += 1
        await self.done(request, outcome)

    def _outcome(self, request: Request, row: dict[str, Any]) -> Answer | Failure:
        response, error = row.get("response") or {}, row.get("error") or {}
        status = int(response.get("status_code") or 0)
        if status == 200:
            try:
                return self.check(request, answer_of(response["body"], request.body, 0.0))
            except (KeyError, TypeError, AttributeError, ValueError) as wrong:
                return Failure("transient", "invalid_json", str(wrong)[:300])
        told = ((response.get("body") or {}).get("error") or {}) if status else error
        code, message = str(told.get("code") or ""), self.endpoint.scrubbed(str(told.get("message") or ""))[:500]
        if code in OF_THE_RUN or status in (401, 403, 404):
            return Failure("run", code or f"status_{status}", message)
        if 400 <= status < 500 and status not in (408, 409, 425, 429):
            return Failure("request", code or f"status_{status}", message)
        return Failure("transient", code or "batch_error", message)


def _light(request: Request) -> Request:
    """The request without its texts: hundreds of thousands of them may wait for their batches."""
    return Request(request.key, {"messages": []}, request.prompt_tokens, request.reply_tokens, request.prompt_id, request.asked)


def _line(request: Request) -> bytes:
    return orjson.dumps(
        {"custom_id": request.key.hex(), "method": "POST", "url": "/v1/chat/completions", "body": request.body},
        option=orjson.OPT_APPEND_NEWLINE,
    )
