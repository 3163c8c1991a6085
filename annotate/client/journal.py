"""The journal: every finished request, durable before it counts. An SQLite file in WAL mode, keyed by the exact request.

Answers are what a judge said and could be read. Failures (refusals, replies that can't be read, requests that were given up) are kept
beside them with the raw reply, are never taken for answers, and are asked again by the next run. What was paid is added up for both.
What was read in a raw reply stands beside it, with the digest of how it was read and the time at which the reply was written: another
reader, or a reply that a version without this table put there, is read anew.
No key, no prompt and no candidate is stored: a request can be rendered again from FEEDBACK.
"""

import asyncio
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from mmpo.annotate.client.request import Answer, Failure
from mmpo.pipeline.errors import PartialResult, UserError
from mmpo.pipeline.storage import file_lock

SCHEMA_VERSION = 1
READINGS = """
CREATE TABLE IF NOT EXISTS readings (key BLOB PRIMARY KEY, at REAL NOT NULL, reader BLOB NOT NULL,
    reading BLOB NOT NULL) WITHOUT ROWID;
"""
SCHEMA = f"""{READINGS}CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, judge TEXT NOT NULL, reply BLOB NOT NULL, prompt_tokens INTEGER NOT NULL,
    reply_tokens INTEGER NOT NULL, seconds REAL NOT NULL, at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS failures (key BLOB PRIMARY KEY, judge TEXT NOT NULL, reason TEXT NOT NULL, message TEXT NOT NULL,
    reply BLOB, prompt_tokens INTEGER NOT NULL, reply_tokens INTEGER NOT NULL, at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spent (judge TEXT PRIMARY KEY, requests INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL,
    reply_tokens INTEGER NOT NULL, cost REAL NOT NULL, seconds REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batches (token TEXT PRIMARY KEY, judge TEXT NOT NULL, batch TEXT, file TEXT, status TEXT NOT NULL,
    requests INTEGER NOT NULL, at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batched (key BLOB PRIMARY KEY, token TEXT NOT NULL) WITHOUT ROWID;
"""
READ = (
    "INSERT OR REPLACE INTO readings SELECT key, at, ?, ? FROM (SELECT key, at FROM answers WHERE key = ? "
    "UNION ALL SELECT key, at FROM failures WHERE key = ?)"
)
KEYS_PER_QUERY = 500

Record = tuple[bytes, Answer | Failure, float]
"""key, outcome, what it cost in US dollars (0 where the price is not known)."""


class Journal:
    """One open journal; only one process may write to it at a time."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._waiting: list[tuple[str, Record, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None
        self.read_only = read_only
        self._open = ExitStack()
        if not read_only:
            self._lock_file()
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            if not read_only:
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
                self._db.executescript(SCHEMA)
            elif not self.rows("SELECT 1 FROM sqlite_master WHERE name = 'readings'"):
                # The file stays as it is: the table of readings is one of this connection only.
                self._db.executescript(READINGS.replace("TABLE", "TEMP TABLE"))
            self._check_version()
        except sqlite3.DatabaseError as error:
            self._open.close()
            raise UserError(
                f"--journal {path}: it can't be used: {error}. Name a file that does not exist yet, or a journal of mmpo"
            ) from error

    def _check_version(self) -> None:
        version = self.meta("schema_version")
        if version is None and not self.read_only:
            self.set_meta("schema_version", SCHEMA_VERSION)
        elif version is not None and version != SCHEMA_VERSION:
            raise UserError(f"--journal {self.path}: schema version {version}; this mmpo reads {SCHEMA_VERSION}. Name another file")

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and let others at it."""
        self._db.close()
        self._open.close()

    def _lock_file(self) -> None:
        """Hold the journal's lock file, so that no other run pays for the same requests. Raises UserError where another one does."""
        taken = f"--journal {self.path}: another run is at work with it; wait for it, or name another journal"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._open.enter_context(file_lock(self.path.with_name(self.path.name + ".lock"), taken))
        except OSError as error:
            raise UserError(f"--journal {self.path}: can't be written: {error.strerror or error}") from error

    # What is known

    def answers(self, keys: Sequence[bytes]) -> dict[bytes, Answer]:
        """The answers to these requests, of those that have one."""
        rows = self._by_key("SELECT key, reply, prompt_tokens, reply_tokens, seconds FROM answers", keys)
        return {key: Answer.loads(reply, prompt, reply_tokens, seconds) for key, reply, prompt, reply_tokens, seconds in rows}

    def times(self, keys: Sequence[bytes]) -> dict[bytes, float]:
        """When the answers to these requests came, of those that have one, in seconds since the epoch."""
        return dict(self._by_key("SELECT key, at FROM answers", keys))

    def readings(self, keys: Sequence[bytes]) -> dict[bytes, tuple[bytes, bytes] | None]:
        """What was read in the answers to these requests, of those that have one, as `Answer.reading`."""
        query = "SELECT answers.key, reader, reading FROM answers LEFT JOIN readings USING (key, at)"
        return {key: (reader, reading) if reader else None for key, reader, reading in self._by_key(query, keys)}

    def keep_readings(self, answers: Mapping[bytes, Answer]) -> None:
        """Keep what was read in answers and failures that are here already."""
        self.write([(READ, (*answer.reading, key, key)) for key, answer in answers.items() if answer.reading])

    def failures(self, keys: Sequence[bytes]) -> dict[bytes, Failure]:
        """What became of these requests at the last try, of those that failed; `answer` is the reply that could not be read."""
        query = (
            "SELECT failures.key, reason, message, reply, prompt_tokens, reply_tokens, reader, reading FROM failures "
            "LEFT JOIN readings USING (key, at)"
        )
        found = {}
        for key, reason, message, reply, prompt, reply_tokens, *reading in self._by_key(query, keys):
            answer = Answer.loads(reply, prompt, reply_tokens, 0.0) if reply else None
            if answer and reading[0]:
                answer = replace(answer, reading=tuple(reading))
            found[key] = Failure("request", reason, message, answer=answer)
        return found

    def spent(self) -> dict[str, dict[str, float]]:
        """By judge: requests, prompt_tokens, reply_tokens, cost (US dollars) and seconds of everything that was ever paid."""
        names = ("requests", "prompt_tokens", "reply_tokens", "cost", "seconds")
        rows = self.rows(f"SELECT judge, {', '.join(names)} FROM spent")
        return {judge: dict(zip(names, values)) for judge, *values in rows}

    def replied(self) -> dict[str, tuple[int, float]]:
        """By judge: how many answers are kept, and the mean of their tokens as billed, thinking included."""
        rows = self.rows("SELECT judge, count(*), avg(reply_tokens) FROM answers GROUP BY judge")
        return {judge: (count, mean) for judge, count, mean in rows}

    def _by_key(self, query: str, keys: Sequence[bytes]) -> Iterator[tuple[Any, ...]]:
        for start in range(0, len(keys), KEYS_PER_QUERY):
            part = keys[start : start + KEYS_PER_QUERY]
            yield from self.rows(f"{query} WHERE key IN ({','.join('?' * len(part))})", part)

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of a query; none where the file holds no tables yet (a run was killed in its first moment)."""
        try:
            with self._lock:
                return self._db.execute(query, values).fetchall()
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):
                return []
            raise

    def meta(self, name: str) -> Any:
        """A value kept beside the answers (what a probe found); None where there is none."""
        rows = self.rows("SELECT value FROM meta WHERE name = ?", (name,))
        return orjson.loads(rows[0][0]) if rows else None

    def set_meta(self, name: str, value: Any) -> None:
        """Keep a JSON value."""
        self.write([("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, orjson.dumps(value).decode()))])

    # What happens

    async def put(self, judge: str, record: Record) -> None:
        """Returns when the outcome is on the disk. Outcomes that arrive meanwhile share the next commit."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((judge, record, future))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_waiting())
        await future

    async def _write_waiting(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            failed: Exception | None = None
            try:
                await asyncio.to_thread(self.put_all, [(judge, record) for judge, record, _ in batch])
            except Exception as error:
                failed = error
            for _, _, future in batch:
                if not future.done():
                    future.set_exception(failed) if failed else future.set_result(None)

    def put_all(self, records: Iterable[tuple[str, Record]]) -> None:
        """Write outcomes in one transaction."""
        now = time.time()
        self.write([statement for judge, record in records for statement in _statements(judge, record, now)])

    def promote(self, judge: str, readable: Mapping[bytes, Answer]) -> None:
        """Replies that could not be read before and can be now become answers; they are paid already."""
        now = time.time()
        self.write([statement for key, answer in readable.items() for statement in _answered(key, judge, answer, now)])

    def write(self, statements: Sequence[tuple[str, Sequence[Any]]]) -> None:
        """Carry out the statements, all or none; none where the journal is only looked at. Raises PartialResult: the disk is full."""
        if self.read_only or not statements:
            return
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                for query, values in statements:
                    self._db.execute(query, values)
                self._db.execute("COMMIT")
            except sqlite3.DatabaseError as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise PartialResult(
                    f"the journal {self.path} can't be written ({error}): all answers in it are safe; make room and run the same "
                    "command again"
                ) from error


def _statements(judge: str, record: Record, now: float) -> Iterator[tuple[str, Sequence[Any]]]:
    key, outcome, cost = record
    answer = outcome if isinstance(outcome, Answer) else outcome.answer
    if isinstance(outcome, Answer):
        yield from _answered(key, judge, outcome, now)
    else:
        raw, prompt, reply = None, 0, 0
        if answer:
            raw, prompt, reply = answer.dumps() if answer.choices else None, answer.prompt_tokens, answer.reply_tokens
        row = (key, judge, outcome.reason, outcome.message, raw, prompt, reply, now)
        yield "DELETE FROM answers WHERE key = ?", (key,)  # asked anew, or no longer readable: it is no answer any more
        yield "INSERT OR REPLACE INTO failures VALUES (?,?,?,?,?,?,?,?)", row
        if answer and answer.reading:
            yield "INSERT OR REPLACE INTO readings VALUES (?,?,?,?)", (key, now, *answer.reading)
    yield "DELETE FROM batched WHERE key = ?", (key,)
    if answer:
        yield spent_by(judge, answer, cost)


def _answered(key: bytes, judge: str, answer: Answer, now: float) -> Iterator[tuple[str, Sequence[Any]]]:
    yield "DELETE FROM failures WHERE key = ?", (key,)
    values = (key, judge, answer.dumps(), answer.prompt_tokens, answer.reply_tokens, answer.seconds, now)
    yield "INSERT OR REPLACE INTO answers VALUES (?,?,?,?,?,?,?)", values
    if answer.reading:
        yield "INSERT OR REPLACE INTO readings VALUES (?,?,?,?)", (key, now, *answer.reading)


def spent_by(judge: str, answer: Answer, cost: float, *, probe: bool = False) -> tuple[str, Sequence[Any]]:
    """The statement that adds what an answer took to what its judge has spent; a probe's tokens count, but it is no request of a run."""
    prompt, reply, seconds = answer.prompt_tokens, answer.reply_tokens, 0.0 if probe else answer.seconds
    return (
        "INSERT INTO spent VALUES (?,?,?,?,?,?) ON CONFLICT (judge) DO UPDATE SET requests = requests + excluded.requests, prompt_tokens = "
        "prompt_tokens + excluded.prompt_tokens, reply_tokens = reply_tokens + excluded.reply_tokens, cost = cost + excluded.cost, "
        "seconds = seconds + excluded.seconds",
        (judge, int(not probe), prompt, reply, cost, seconds),
    )
