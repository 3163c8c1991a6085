"""Running the same function over many parts, on one core or on all of them, stopping at once when interrupted."""

import ctypes
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow as pa

from mmpo.pipeline.arrow import leave_pandas_out

Runner = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], Iterator[Any]]


def _start_worker(parent: int) -> None:
    """A worker leaves Ctrl-C to its parent, dies with it, computes on one core, and imports no pandas of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        set_death_signal = 1
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
    pa.set_cpu_count(1)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    leave_pandas_out()


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Ctrl-C inside waits for the end: neither a half-started pool nor a worker that does not ignore it yet sees one."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def running(workers: int) -> Iterator[Runner]:
    """A function that calls `work(*arguments)` for each tuple of arguments and yields the results in order.

    workers: processes; 1 runs everything here. An error ends all workers.
    """
    if workers <= 1:
        yield lambda work, tasks: (work(*task) for task in tasks)
        return
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(os.getpid(),))

    def in_order(work: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        with _interrupts_wait(), warnings.catch_warnings():
            # Python 3.12 warns of forking with threads; the threads are Arrow's, which are made for it.
            warnings.simplefilter("ignore", DeprecationWarning)
            return pool.map(work, *zip(*tasks, strict=True))

    try:
        yield in_order
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.kill()
        with suppress(RuntimeError):  # interrupted while it started: there is no thread to join yet
            pool.shutdown(wait=True, cancel_futures=True)
        raise
    pool.shutdown()
