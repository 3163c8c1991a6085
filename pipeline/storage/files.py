"""How files and folders become whole or are not there (a temporary sibling, then renamed), locks, digests; for all packages."""

import ctypes
import errno
import hashlib
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from mmpo.pipeline.errors import UserError

LEFTOVER_SECONDS = 3600.0
LOCK_POLL_SECONDS = 0.05
_numbers = count()
_in_use: set[Path] = set()


@contextmanager
def atomic_file(path: str | Path, *, over_empty_folder: bool = False) -> Iterator[Path]:
    """A temporary sibling to write, or to make a folder of; it takes the place of `path` in one step when the block ends well.

    Killed at any moment, either what stood there stands or the new file. What killed runs left beside it is removed. over_empty_folder:
    a file may take the place of a folder that holds nothing. Raises UserError where it can't be written.
    """
    path = Path(path).absolute()
    temporary = _sibling(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)  # first: where processes have fixed ids, one that was killed left this very name
        _in_use.add(temporary)
        yield temporary
        if over_empty_folder and path.is_dir() and not temporary.is_dir():
            path.rmdir()
        os.replace(temporary, path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        _remove(temporary)
        _in_use.discard(temporary)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A temporary sibling folder that takes the place of the folder `path` in one step when the block ends well, else it vanishes.

    Killed at any moment, either the old folder stands or the new one. What killed runs left is removed. Raises UserError where it can't
    be made or the disk runs full; any other OSError of the block goes on.
    """
    path = Path(path).absolute()
    temporary = _sibling(path)
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(path)
            _in_use.add(temporary)
            temporary.mkdir()  # inside, so that an interrupt right behind it removes it again
        except OSError as error:
            raise _cannot_write(path, error) from error
        yield temporary
        _take_place(temporary, path)
    except OSError as error:
        if error.errno in _DISK_IS_FULL:
            raise _cannot_write(path, error) from error
        raise
    finally:
        _remove(temporary)
        _in_use.discard(temporary)


_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)


def _cannot_write(path: Path, error: OSError) -> UserError:
    if error.errno in _DISK_IS_FULL:
        return UserError(f"cannot write {path}: the disk is full; nothing was written. Free some space and run it again")
    return UserError(f"cannot write {path}: {error.strerror or error}")


def _sibling(path: Path) -> Path:
    return path.with_name(f".{path.name}.part-{socket.gethostname()}-{os.getpid()}-{next(_numbers)}")


def is_leftover(path: Path, of: Path) -> bool:
    """Whether `path` is what `atomic_file(of)` or `atomic_folder(of)` of a killed process left, here or, an hour old, elsewhere."""
    prefix = f".{of.name}.part-"
    host, _, process = path.name.removeprefix(prefix).rpartition("-")[0].rpartition("-")
    if not path.name.startswith(prefix) or not process.isdigit() or path in _in_use:
        return False
    if host == socket.gethostname():
        return not _alive(int(process))
    with suppress(FileNotFoundError):
        return path.is_file() and time.time() - path.stat().st_mtime > LEFTOVER_SECONDS
    return False


def _remove_leftovers(path: Path) -> None:
    start = f".{path.name.translate(_LITERALLY)}."
    for other in path.parent.glob(f"{start}part-*"):
        if is_leftover(other, path):
            _remove(other)
    for other in path.parent.glob(f"{start}building-{socket.gethostname().translate(_LITERALLY)}-*"):  # of version 0.1.0
        process = other.name.rpartition("-")[2]
        if process.isdecimal() and not _alive(int(process)):
            _remove(other)


_LITERALLY = str.maketrans({letter: f"[{letter}]" for letter in "*?["})


def _alive(process: int) -> bool:
    if process == os.getpid():  # what is ours and in use is known
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _take_place(temporary: Path, out: Path) -> None:
    if not out.exists() or not any(out.iterdir()):
        os.rename(temporary, out)  # onto an empty folder, too, this is one step
        return
    if _exchange(temporary, out):
        return
    # Without an atomic exchange (not Linux) there is a moment with no folder at all, never one with half of it.
    old = temporary.with_name(temporary.name + "-old")
    os.rename(out, old)
    os.rename(temporary, out)
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step (Linux renameat2 with RENAME_EXCHANGE); False where the system has no such call."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    at_cwd, exchange = -100, 2
    return rename is not None and rename(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchange) == 0


@contextmanager
def file_lock(path: str | Path, taken: str, *, seconds: float = 0.0, optional: bool = False) -> Iterator[int | None]:
    """Alone among those who lock the file `path`, which is made if need be and stays; its descriptor, which a child may inherit.

    The system lets go of the lock when the last process that holds the descriptor is gone: there are no stale locks. Raises
    UserError(taken) where another one still has it after so many seconds, OSError where there can be no lock (a folder that can't be
    written, a file system without locks): with `optional` the block then runs without, and gets None.
    """
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        if not optional:
            raise
        yield None
        return
    try:
        yield lock if _wait_for(lock, taken, time.monotonic() + seconds, optional) else None
    finally:
        os.close(lock)


def _wait_for(lock: int, taken: str, until: float, optional: bool) -> bool:
    from filelock import lock_descriptor  # imported here: most commands take no lock

    try:
        while not lock_descriptor(lock, blocking=False):
            if time.monotonic() >= until:
                raise UserError(taken)
            time.sleep(LOCK_POLL_SECONDS)
    except OSError:
        if not optional:
            raise
        return False
    return True


def digest(path: str | Path) -> str:
    """blake2b-256 of a file as it lies on disk, in hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


def text_digest(text: str, size: int = 16) -> str:
    """blake2b of a text, in hex digits; size: its bytes.

    >>> text_digest("mmpo", size=4)
    'cee3a974'
    """
    return hashlib.blake2b(text.encode(), digest_size=size).hexdigest()
