"""A model on this machine in the place of an endpoint: its engine works in a thread, and every reply goes the way of all answers."""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from mmpo.annotate.client import Answer, Endpoint, Failure, Stop, answer_of
from mmpo.annotate.generate.options import SampledModel
from mmpo.pipeline.errors import UserError


@dataclass(eq=False)
class LocalWork:
    """One request for an engine. body: as it would go to an endpoint; done: takes a chat completion, or the reason and the message of why
    there is none; may be called from any thread."""

    body: Mapping[str, Any]
    done: Callable[[Mapping[str, Any] | tuple[str, str]], None]
    began: float = field(default_factory=time.monotonic)


class LocalEngine(Protocol):
    """What writes replies on this machine. name: its model's in FEEDBACK; digest: of all that its replies depend on beside the request;
    slots: how many replies it writes at a time; most: tokens that a prompt and its reply may have together. It may have `machines`, what
    the manifest says of where it works (an engine's `about`)."""

    name: str
    digest: str
    slots: int
    most: int

    def serve(self, inbox: "queue.SimpleQueue[Any]", halted: Callable[[], bool]) -> None:
        """Answer the `LocalWork` that comes until None does. halted: asked at every token, whether to begin nothing more: what has not
        begun is then done with the reason "interrupted". What it raises ends the work."""
        ...


WAITING = 4
"""Requests that wait for each place of an engine: among them it finds those of like length, and those of one prompt."""


def check_local(engines: Sequence[LocalEngine], max_tokens: int, *, batch: bool, engine: str = "local") -> None:
    """Raise UserError where a reply of so many tokens leaves a model no room for a prompt, where models would be asked by batches, and
    where the options name an engine that none of them is on."""
    if engine != "local" and not engines:
        raise UserError(f"--engine {engine} is for models that this command runs itself: name one by --local DIR, or leave it out")
    if engine != "local" and (here := [one.name for one in engines if getattr(one, "engine", "local") == "local"]):
        raise UserError(
            f"engine {engine!r}: {here[0]} is a model in this process; make it by mmpo.train.local_models([...], engine={engine!r})"
        )
    if engines and batch:
        raise UserError("--batch is for models at endpoints; run those on this machine without it, into the same journal")
    for one in engines:
        if max_tokens >= one.most:
            raise UserError(
                f"--max-tokens {max_tokens} leaves {one.name} no room for a prompt: it takes {one.most:,} tokens of prompt and reply "
                "together. Give fewer"
            )


def endpoints_of(
    models: Sequence[SampledModel], local: Mapping[str, LocalEngine], timeout: float, stop: Stop
) -> list["LocalEndpoint | Endpoint"]:
    """What answers for each model: the engine of its name, else the endpoint that it is at."""
    return [LocalEndpoint(local[one.name], one, stop) if one.name in local else Endpoint(one, timeout) for one in models]


def settings_of(engine: LocalEngine) -> SampledModel:
    """The model as others are described: its digest goes along with every request, so that other weights are another model."""
    return SampledModel(
        engine.name, base_url="http://localhost", extra_body={"weights": engine.digest}, concurrency=engine.slots * (1 + WAITING)
    )


class LocalEndpoint:
    """An engine as an endpoint; an async context manager."""

    def __init__(self, engine: LocalEngine, judge: SampledModel, stop: Stop) -> None:
        self.judge, self._engine, self._stop = judge, engine, stop
        self._inbox: queue.SimpleQueue[LocalWork | None] = queue.SimpleQueue()
        self._open: set[asyncio.Future[Any]] = set()
        self._leaving = False

    async def __aenter__(self) -> "LocalEndpoint":
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._leaving = (
            kind is not None
        )  # somebody is in a hurry: the token at hand is waited for, and what is being written is lost
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join)

    def _halted(self) -> bool:
        if self._leaving:
            raise asyncio.CancelledError
        return bool(self._stop.reason)

    def _work(self) -> None:
        try:
            self._engine.serve(self._inbox, self._halted)
        except BaseException as error:  # whoever waits for a reply must hear of it
            self._tell(self._broken, error)

    def _tell(self, what: Callable[..., object], *values: object) -> None:
        """Have the loop call a function; after its end nobody hears of it any more."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(what, *values)

    def _broken(self, error: BaseException) -> None:
        for future in self._open:
            if not future.done():
                future.set_exception(error)

    async def ask(self, body: Mapping[str, Any]) -> Answer | Failure:
        """Answer one request."""
        if not self._thread.is_alive():
            return Failure("run", "local", f"{self.judge.name}: its engine has ended")
        future: asyncio.Future[Any] = self._loop.create_future()
        self._open.add(future)

        def done(outcome: Mapping[str, Any] | tuple[str, str]) -> None:
            self._tell(lambda: future.done() or future.set_result(outcome))

        work = LocalWork(body, done)
        self._inbox.put(work)
        try:
            outcome = await future
        finally:
            self._open.discard(future)
        if isinstance(outcome, tuple):
            reason, message = outcome
            return Failure("run" if reason == "interrupted" else "request", reason, message)
        return answer_of(outcome, body, time.monotonic() - work.began)
