"""Work in threads that Ctrl-C does not wait for: a transfer that hangs ends with the process."""

import queue
import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

Result = TypeVar("Result")
POLL_SECONDS = 0.1


def apart(work: Callable[[], Result]) -> Result:
    """What the function returns, called in a thread of its own: Ctrl-C is heard at once, and what it was doing is left behind."""
    [result] = side_by_side([work], 1)
    return result


def side_by_side(works: Iterable[Callable[[], Result]], threads: int) -> list[Result]:
    """What the functions return, in their order, up to `threads` of them called at once.

    The first error is raised as soon as it is there, and none that waits is begun then; so it is with Ctrl-C.
    """
    waiting = list(enumerate(works))[::-1]
    done: queue.SimpleQueue[tuple[int, Result | None, BaseException | None]] = queue.SimpleQueue()
    ended, left = threading.Event(), len(waiting)
    results: dict[int, Result | None] = {}

    def run() -> None:
        while not ended.is_set():
            try:
                number, work = waiting.pop()
            except IndexError:
                return
            try:
                done.put((number, work(), None))
            except BaseException as error:
                done.put((number, None, error))

    for _ in range(min(threads, left)):
        threading.Thread(target=run, daemon=True).start()
    try:
        while len(results) < left:
            try:
                number, result, error = done.get(timeout=POLL_SECONDS)  # on some systems a wait without end hears no Ctrl-C
            except queue.Empty:
                continue
            if error is not None:
                raise error
            results[number] = result
    finally:
        ended.set()
    return [results[number] for number in range(left)]  # type: ignore[misc]
