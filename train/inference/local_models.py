"""The models that `generate --local` names, in this process or on the actors of a Ray, each of which answers by a model of its own."""

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mmpo.pipeline.engines import ENGINES, ActorPool, check_engine
from mmpo.pipeline.options import options_from
from mmpo.train.data import NAMED_TEMPLATES
from mmpo.train.inference.local_model import LocalModel
from mmpo.train.options import LocalOptions

LOOK_SECONDS = 0.05
"""Within which a request that comes is handed on, and a stop is heard of."""
WAITING = 4
"""Requests that wait in an actor for each place of its model, which takes those together that are alike."""


class AnsweringModel:
    """A LocalModel at work in a thread, in an actor, which calls it from many."""

    def __init__(self, options: LocalOptions) -> None:
        self.model = LocalModel(**asdict(options))
        self.about = {"digest": self.model.digest, "most": self.model.most}
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._lock, self._open, self._halted = threading.Lock(), set[Future[Any]](), False
        self._error: BaseException | None = None
        threading.Thread(target=self._work, daemon=True).start()

    def halt(self, halted: bool) -> None:
        """Begin nothing more, or do again."""
        self._halted = halted

    def __call__(self, body: Mapping[str, Any]) -> Mapping[str, Any] | tuple[str, str]:
        """The outcome of a request, as `serve` gives it."""
        future: Future[Any] = Future()
        with self._lock:
            if self._error is not None:
                raise self._error
            self._open.add(future)
        self._inbox.put(SimpleNamespace(body=body, done=future.set_result))
        try:
            return future.result()
        finally:
            with self._lock:
                self._open.discard(future)

    def _work(self) -> None:
        try:
            self.model.serve(self._inbox, lambda: self._halted)
        except BaseException as error:  # whoever waits for a reply must hear of it
            with self._lock:
                self._error = error
                for future in self._open:
                    if not future.done():
                        future.set_exception(error)


class ModelOnActors:
    """What writes replies on the actors of a pool; like a LocalModel otherwise. Open requests of an actor that is lost go to others."""

    engine = "ray"

    def __init__(self, pool: ActorPool, options: LocalOptions, machines: Mapping[str, Any]) -> None:
        self.machines = machines
        about = pool.about()
        self.name, self.digest, self.most = options.name, about["digest"], about["most"]
        self.slots = options.batch * pool.count
        self._pool, self._numbers, self._halted = pool, count(), False

    def serve(self, inbox: "queue.SimpleQueue[Any]", halted: Callable[[], bool]) -> None:
        """As `LocalModel.serve`."""
        self._halt(False)
        works: dict[int, Any] = {}
        open_ = True
        while open_ or works:
            while open_ and (not inbox.empty() or not works):
                work = inbox.get()
                open_ = work is not None
                if work is not None:
                    number = next(self._numbers)
                    works[number] = work
                    self._pool.put(number, work.body)
            if halted():
                self._halt(True)
                for number in set(self._pool.withdraw()) & works.keys():
                    works.pop(number).done(("interrupted", "stopped before this reply had begun"))
            if works:
                for number, outcome in self._pool.take(LOOK_SECONDS):
                    if number in works:  # else of a run that was left at once
                        works.pop(number).done(outcome)

    def _halt(self, halted: bool) -> None:
        if halted != self._halted:
            self._halted = halted
            self._pool.tell("halt", halted)


@contextmanager
def local_models(
    models: Sequence[Mapping[str, Any]], *, engine: str = "local", ray_address: str | None = None, workers: int | None = None
) -> Iterator[list[Any]]:
    """Models for `mmpo.annotate.generate(..., local=...)`, each from the fields of `LocalOptions`, as long as the block lasts.

    engine: "local", in this process, or "ray": on actors of the Ray at that address, or of one of its own on this machine; one for each
    GPU, without GPUs for each CPU, or so many `workers`, shared out evenly among the models. Raises UserError.

    >>> from mmpo.annotate import GenerateOptions, generate
    >>> with local_models([{"model": "my-model"}]) as local:  # doctest: +SKIP
    ...     generate("prompts.jsonl", "candidates", options=GenerateOptions(format="jsonl", n=4), local=local)
    """
    check_engine(engine, ray_address, workers)
    asked = [options_from(LocalOptions, dict(one), where="a local model's ") for one in models]
    with ExitStack() as stack:
        opened = stack.enter_context(ENGINES[engine](None, ray_address))
        actors = stack.enter_context(opened.actors(workers))
        if actors is None:
            yield [LocalModel(**asdict(one)) for one in asked]
            return
        templates = [one.chat_template for one in asked if one.chat_template not in NAMED_TEMPLATES]
        files = [path for path in (*(one.model for one in asked), *templates) if Path(path).exists()]
        actors.check(list(dict.fromkeys(files)))
        pools = []
        for one in asked:
            threads = one.batch * (1 + WAITING)
            held = partial(AnsweringModel, one)
            pools.append(stack.enter_context(actors.holding(held, calls=threads, threads=threads, share=len(asked))))
            pools[-1].start()
        machines = opened.about() | actors.about()
        yield [ModelOnActors(pool, one, machines) for pool, one in zip(pools, asked, strict=True)]
