"""Actors: processes of a Ray that hold something large, such as a model, each with a GPU of its own where the nodes have any.

What an actor holds is made on its machine, by a function. Calls are handed out as actors have room for them. What is lost with an actor
is asked of others, and another one takes its place.
"""

import os
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from mmpo.pipeline.engines.local import interrupts_wait, prepare_worker
from mmpo.pipeline.engines.travel import go_to
from mmpo.pipeline.errors import UserError, printable
from mmpo.pipeline.progress import say

CALL_TRIES = 10
"""How often a call is made whose actor is lost each time."""
START_TRIES = 4
"""How many actors in a row may be lost before they have made what they hold."""
LONG_START = 30.0
"""Seconds without an actor that are worth a line."""
LOOK_SECONDS = 1.0


class Held(Protocol):
    """What an actor holds. about: what those of all actors have in common, or they would give different results."""

    about: Mapping[str, Any]

    def __call__(self, *arguments: Any) -> Any: ...


class _Actor:
    def start(self, directory: str, make: Callable[[], Held]) -> tuple[str, Mapping[str, Any]]:
        # Not when it is created: an error would come back as the death of an actor.
        prepare_worker()
        go_to(directory)
        try:
            self.held = make()
        except UserError as error:
            raise said_of_node(error) from error
        return socket.gethostname(), self.held.about

    def call(self, *arguments: Any) -> Any:
        return self.held(*arguments)

    def tell(self, name: str, *arguments: Any) -> None:
        getattr(self.held, name)(*arguments)


def said_of_node(error: UserError) -> UserError:
    """The error of an actor, with its node's name."""
    return UserError(f"node {socket.gethostname()} of the Ray cluster: {error}")


def value_of(ray: Any, ref: Any) -> Any:
    """What a task or a call came to. Its error is raised as it was there; RayError: it was lost."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise error.cause from error


def room_for(count: int, sizes: Sequence[int]) -> float:
    """The GPUs, or the CPUs, that each of so many actors can have on nodes of these sizes; below 1, several share one.

    >>> room_for(2, [4, 4]), room_for(3, [4, 4]), room_for(8, [4, 4]), room_for(9, [4, 4])
    (4, 2, 1, 0.5)
    """
    for each in range(max(sizes), 0, -1):
        if sum(size // each for size in sizes) >= count:
            return each
    return 1 / -(-count // sum(sizes))


class Actors:
    """The places for actors that a Ray has. count: how many there are in all; device: cuda or cpu, where they compute."""

    def __init__(
        self, ray: Any, nodes: Sequence[Mapping[str, Any]], check: Callable[[Sequence[str]], None], count: int | None
    ) -> None:
        self._ray, self.check = ray, check
        gpus, cpus = ([int(node["Resources"].get(kind, 0)) for node in nodes] for kind in ("GPU", "CPU"))
        self._kind, self.device, self._sizes = ("num_gpus", "cuda", gpus) if any(gpus) else ("num_cpus", "cpu", cpus)
        self.count = count or sum(self._sizes)

    def about(self) -> dict[str, Any]:
        """What a manifest says of them."""
        return {"actors": self.count, "device": self.device}

    @contextmanager
    def holding(self, make: Callable[[], Held], *, calls: int = 2, threads: int = 1, share: int = 1) -> Iterator["ActorPool"]:
        """Actors that hold what the function makes, until the block ends; it is pickled, and so are arguments and results.

        calls: most calls handed to an actor at a time; threads: of which it works on so many; share: into how many equal parts the places
        are cut, of which this is one.
        """
        count = max(1, self.count // share)
        each = room_for(count * share, self._sizes)
        needs: dict[str, Any] = {"num_cpus": 0, self._kind: min(each, 1) if self._kind == "num_gpus" else each}
        pool = ActorPool(self._ray, make, count, calls, {**needs, "max_concurrency": threads + (threads > 1)})
        try:
            yield pool
        finally:
            with interrupts_wait():
                pool.close()


class ActorPool:
    """Actors that hold the same: one more with each call, until there are `count`."""

    def __init__(self, ray: Any, make: Callable[[], Held], count: int, calls: int, needs: Mapping[str, Any]) -> None:
        self.count, self._ray, self._make, self._calls = count, ray, make, calls
        self._about: Mapping[str, Any] | None = None
        self._remote = ray.remote(_Actor).options(**needs, max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD")
        self._waiting: deque[tuple[Any, tuple[Any, ...]]] = deque()
        self._open: dict[Any, tuple[int, Any, tuple[Any, ...]]] = {}
        self._starting: dict[Any, int] = {}
        self._actors: dict[int, Any] = {}
        self._ready: Counter[int] = Counter()
        """Of each actor that has started, the calls that it has."""
        self._tries: Counter[Any] = Counter()
        self._lost_starts = self._begun = 0
        self._since: float | None = time.monotonic()
        self._failure: Exception | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing was asked that has not been answered."""
        return not (self._waiting or self._open or self._failure)

    def start(self) -> None:
        """Have all actors begin, without any call yet."""
        while len(self._actors) < self.count:
            self._add()

    def about(self) -> Mapping[str, Any]:
        """What the actors hold, once one of them has started."""
        self.start()
        while self._about is None:
            self._look(LOOK_SECONDS)
        return self._about

    def put(self, key: Any, *arguments: Any) -> None:
        """Have an actor called with these arguments; the result comes with the key."""
        self._waiting.append((key, arguments))
        if len(self._actors) < self.count:
            self._add()

    def take(self, timeout: float) -> list[tuple[Any, Any]]:
        """Keys and results that have come, waiting so many seconds for the first one. Raises the error of a call as it was raised there,
        UserError for one that can't be done."""
        self._hand_out()
        return self._look(timeout)

    def withdraw(self) -> list[Any]:
        """The keys of calls that no actor has yet: they are not made."""
        keys = [key for key, _ in self._waiting]
        self._waiting.clear()
        return keys

    def results(self, calls: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """The number and the result of each call, as they come."""
        for number, arguments in enumerate(calls):
            self.put(number, *arguments)
        while not self.idle:
            yield from self.take(LOOK_SECONDS)

    def tell(self, name: str, *arguments: Any) -> None:
        """Call this method of what each actor holds, beside other calls."""
        for number in self._ready:
            self._actors[number].tell.remote(name, *arguments)

    def close(self) -> None:
        """End all actors."""
        for actor in self._actors.values():
            with suppress(Exception):  # it may be gone, and so may Ray
                self._ray.kill(actor)
        self._actors.clear()
        self._ready.clear()

    def _add(self) -> None:
        self._begun += 1
        actor = self._actors[self._begun] = self._remote.remote()
        self._starting[actor.start.remote(os.getcwd(), self._make)] = self._begun

    def _hand_out(self) -> None:
        while self._waiting and self._ready:
            number, calls = min(self._ready.items(), key=lambda item: item[1])
            if calls >= self._calls:
                return
            key, arguments = self._waiting.popleft()
            self._open[self._actors[number].call.remote(*arguments)] = number, key, arguments
            self._ready[number] += 1

    def _look(self, timeout: float) -> list[tuple[Any, Any]]:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        refs = [*self._open, *self._starting]
        if self._ray.wait(refs, num_returns=1, timeout=timeout)[0]:
            done, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0)
        else:
            done = []
        found: list[tuple[Any, Any]] = []
        for ref in done:
            try:
                found += self._came(ref)
            except Exception as error:
                if not found:
                    raise
                self._failure = error  # at the next look: what came before it is to be kept
                break
        if self._ready:
            self._since = None
        elif self._since is None:
            self._since = time.monotonic()
        elif time.monotonic() - self._since > LONG_START:
            self._since = float("inf")
            say("Ray: no actor is at work yet: each waits for a free GPU or CPU (ray status), then loads its model")
        return found

    def _came(self, ref: Any) -> list[tuple[Any, Any]]:
        """What came of a call, with its key; nothing of a start, and of a call that is lost."""
        if ref in self._starting:
            self._started(ref, self._starting.pop(ref))
            return []
        number, key, arguments = self._open.pop(ref)
        if number in self._ready:
            self._ready[number] -= 1
        try:
            value = value_of(self._ray, ref)
        except self._ray.exceptions.RayError as error:
            self._lost(number)
            self._tries[key] += 1
            if self._tries[key] == CALL_TRIES:
                raise UserError(
                    f"--engine ray: {CALL_TRIES} actors were lost at the same work: {_last_line(error)}. Look at memory and logs of "
                    "the nodes (ray status); the same command goes on from what came before"
                ) from error
            self._waiting.appendleft((key, arguments))
            return []
        del self._tries[key]
        return [(key, value)]

    def _started(self, ref: Any, number: int) -> None:
        try:
            node, about = value_of(self._ray, ref)
        except self._ray.exceptions.RayError as error:
            self._lost_starts += 1
            if self._lost_starts == START_TRIES:
                raise UserError(
                    f"--engine ray: {START_TRIES} actors in a row were lost while they loaded their model: {_last_line(error)}. Look at "
                    "memory and logs of the nodes (ray status), or let fewer share a node: --workers"
                ) from error
            self._lost(number)
            return
        first = self._about = about if self._about is None else self._about
        differs = sorted(name for name in {*about, *first} if about.get(name) != first.get(name))
        if differs:
            raise UserError(
                f"node {node} of the Ray cluster has another model under the same name ({', '.join(differs)} differ): put the same files "
                "where all nodes see them under this name"
            )
        self._lost_starts, self._ready[number] = 0, 0

    def _lost(self, number: int) -> None:
        """Another actor takes the place of a lost one; its calls come back one by one."""
        actor = self._actors.pop(number, None)
        if actor is None:
            return
        del self._ready[number]
        with suppress(Exception):
            self._ray.kill(actor)
        say("Ray: an actor is lost; another one takes its place, and what it was at is done again")
        self._add()


def _last_line(error: BaseException) -> str:
    return printable((str(error).strip().splitlines() or [type(error).__name__])[-1], 300)
