"""A stand-in for Ray, as far as pools of actors ask for it: actors of this process, which answer at once or die as planned.

Its calls are made when their results are asked for. As an engine it is used in tests of what actors hold.
"""

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar

from mmpo.pipeline.engines import Actors


class RayError(Exception):
    """What the stand-in says of a lost actor."""


class RayTaskError(RayError):
    """What it says of an error that was raised in one."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Ref:
    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work


class Method:
    """A method of a remote actor, which is the number `number` of its kind; `dies` says when a call ends with its actor."""

    def __init__(self, ray: "StandIn", number: int, method: Callable[..., Any]) -> None:
        self.ray, self.number, self.method = ray, number, method

    def remote(self, *arguments: Any) -> Ref:
        name, number = self.method.__name__, self.number

        def work() -> Any:
            nonlocal arguments
            if number in self.ray.dead or self.ray.dies(number, name, arguments):
                self.ray.dead.add(number)
                raise RayError("The actor died")
            try:
                if self.ray.pickles:
                    arguments = pickle.loads(pickle.dumps(arguments))
                return self.method(*arguments)
            except Exception as error:
                raise RayTaskError(error) from error

        if name == "call":
            self.ray.handed.append((number, *arguments))
        return Ref(work)


class StandIn:
    """The little of Ray that a pool asks for."""

    class exceptions:
        RayError = RayError
        RayTaskError = RayTaskError

    def __init__(self, dies: Callable[[int, str, tuple[Any, ...]], bool] = lambda *_: False, *, pickles: bool = False) -> None:
        self.dies, self.pickles = dies, pickles
        self.dead: set[int] = set()
        self.handed: list[tuple[Any, ...]] = []
        self.asked: dict[str, Any] = {}
        self.created = 0

    def remote(self, kind: type) -> Any:
        def options(**needs: Any) -> Any:
            self.asked.update(needs)
            return SimpleNamespace(remote=lambda: self._create(kind))

        return SimpleNamespace(options=options)

    def _create(self, kind: type) -> Any:
        self.created += 1
        actor = kind()
        methods = {name: Method(self, self.created, getattr(actor, name)) for name in ("start", "call", "tell")}
        return type("Actor", (), {"number": self.created, **methods})()

    def wait(self, refs: Sequence[Ref], num_returns: int, timeout: float) -> tuple[list[Ref], list[Ref]]:
        return list(refs[:num_returns]), list(refs[num_returns:])

    def get(self, ref: Ref) -> Any:
        return ref.work()

    def kill(self, actor: Any) -> None:
        self.dead.add(actor.number)


class StandInEngine:
    """An engine of two nodes of one CPU each. ray: the stand-in that it uses; checked: the files that the last one was asked for."""

    ray: StandIn

    checked: ClassVar[list[str]] = []

    def __init__(self, workers: int | None = None, address: str | None = None) -> None:
        self.checked.clear()

    def __enter__(self) -> "StandInEngine":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    @contextmanager
    def actors(self, count: int | None = None) -> Iterator[Actors]:
        yield Actors(self.ray, [{"Resources": {"CPU": 1.0}}] * 2, self.checked.extend, count)

    def about(self) -> dict[str, Any]:
        return {"name": "stand-in"}
