"""This machine: the same function over many parts, in one process or in many, stopping at once when interrupted."""

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa

from mmpo.pipeline.arrow import leave_pandas_out

KEPT_BYTES = 64 << 20
"""Freed memory that a worker holds on to at most."""


def prepare_worker() -> None:
    """A worker computes on one core, and imports no pandas of its own."""
    pa.set_cpu_count(1)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    leave_pandas_out()


def _start_worker(parent: int) -> None:
    """A worker leaves Ctrl-C to its parent and dies with it. What was imported before is not searched again for cycles of objects."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        set_death_signal = 1
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        _keep_memory()
    gc.freeze()
    prepare_worker()


def _keep_memory() -> None:
    """Arrow's memory comes from the C library, too, which keeps what is freed for the next part: pages that go back to the system after
    each part and come anew were a twelfth of a build's CPU seconds."""
    with suppress(AttributeError):  # C libraries without it
        trim_threshold, mmap_threshold = -1, -3
        for option, size in ((trim_threshold, KEPT_BYTES), (mmap_threshold, KEPT_BYTES // 2)):
            ctypes.CDLL(None).mallopt(option, size)
        pa.set_memory_pool(pa.system_memory_pool())


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Ctrl-C inside waits for the end: neither a half-started pool nor a worker that does not ignore it yet sees one."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Here:
    """Files are where they are. pool: None runs tasks in this process."""

    def __init__(self, pool: ProcessPoolExecutor | None) -> None:
        self.pool = pool

    def __call__(self, work: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], *, shards: int = 0) -> Iterator[Any]:
        if self.pool is None:
            return (work(*task) for task in tasks)
        with interrupts_wait(), warnings.catch_warnings():
            # Python 3.12 warns of forking with threads; the threads are Arrow's, which are made for it.
            warnings.simplefilter("ignore", DeprecationWarning)
            return self.pool.map(work, *zip(*tasks, strict=True))

    def forget(self, paths: Iterable[Path]) -> None:
        for path in paths:
            path.unlink()


class ThisMachine:
    """Processes of this machine."""

    memory = None
    here = True

    def __init__(self, workers: int | None = None, address: str | None = None) -> None:
        self.workers = workers

    def __enter__(self) -> "ThisMachine":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def check(self, paths: Sequence[str]) -> None:
        pass

    @contextmanager
    def running(self, workers: int, folder: Path, scratch: Path, memory: int = 0) -> Iterator[_Here]:
        if workers <= 1:
            yield _Here(None)
            return
        import_module("numpy.ma")  # pyarrow's first look at an array of numpy wants it: once here rather than in every process
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(os.getpid(),))
        try:
            yield _Here(pool)
        except BaseException:
            for process in list((pool._processes or {}).values()):
                process.kill()
            with suppress(RuntimeError):  # interrupted while it started: there is no thread to join yet
                pool.shutdown(wait=True, cancel_futures=True)
            raise
        pool.shutdown()

    def actors(self, count: int | None = None) -> AbstractContextManager[None]:
        return nullcontext()

    def about(self) -> dict[str, Any]:
        return {"name": "local"}
