"""How files and folders become whole or are not there (a temporary sibling, then renamed), locks, digests; for all packages."""

import ctypes
import errno
import hashlib
import io
import os
import shutil
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from mmpo.pipeline.errors import UserError

LEFTOVER_SECONDS = 3600.0
LOCK_POLL_SECONDS = 0.05
_numbers = count()
_in_use: set[Path] = set()

FileDigest = Mapping[str, str | int]
"""{"sha256": 64 hex digits, "bytes": the size}."""
Identity = tuple[int, ...] | None
"""What tells whether the same file still stands somewhere, unchanged; None: there is none."""


@contextmanager
def atomic_file(path: str | Path, *, over_empty_folder: bool = False, stood: Identity | Literal["now"] = "now") -> Iterator[Path]:
    """A temporary sibling to write, or to make a folder of; it takes the place of `path` in one step when the block ends well.

    Killed at any moment, either what stood there stands or the new file. What killed runs left beside it is removed. over_empty_folder:
    a file may take the place of a folder that holds nothing. Of a link the target is written, and the link stays; what is no plain file
    (a device, a pipe) is written into. stood: the `identity` of what may be replaced, where the work began earlier than the writing.
    Raises UserError where it can't be written, and where a file came or changed there meanwhile.
    """
    _refuse_url(path)
    given = Path(path).absolute()
    into = _written_into(given)
    with TemporaryDirectory(prefix="mmpo-") if into else nullcontext() as private:
        path = Path(private, given.name) if private else Path(os.path.realpath(given))
        temporary = _sibling(path)
        with own_errors(given, path, temporary):
            if path.is_dir() and not over_empty_folder:
                raise UserError(f"cannot write {given}: it is a directory")
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(path)  # first: where processes have fixed ids, one that was killed left this very name
            before = identity(path) if stood == "now" else stood
            _in_use.add(temporary)
            yield temporary
            if into:
                with open(temporary, "rb") as whole, open(given, "wb") as device:
                    shutil.copyfileobj(whole, device)
            else:
                _put(temporary, path, before, over_empty_folder)


def _put(temporary: Path, path: Path, before: Identity, over_empty_folder: bool) -> None:
    """Rename a file or folder to `path`, where still stands what stood there before."""
    if over_empty_folder and path.is_dir() and not temporary.is_dir():
        path.rmdir()
    elif not path.is_dir() and identity(path) != before:
        raise _came_meanwhile(path)
    if before is None and not temporary.is_dir():
        try:
            os.link(temporary, path)  # the one way not to replace what comes at this very moment
            return
        except FileExistsError:
            raise _came_meanwhile(path) from None
        except OSError:  # a file system without hard links
            pass
    os.replace(temporary, path)


def _came_meanwhile(path: Path) -> UserError:
    return UserError(
        f"cannot write {path}: a file came or changed there meanwhile, and is left alone. Name another, or move it away"
    )


def identity(path: str | Path) -> Identity:
    """Of what stands at `path`, links followed."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _refuse_url(path: str | Path) -> None:
    from mmpo.pipeline.storage.objects.addresses import refuse_url  # imported here: that room imports this file

    refuse_url(path, "cannot write")


def _written_into(path: Path) -> bool:
    """Whether `path` is a device, a pipe or an open file's own name (/dev/stdout), which nothing may take the place of."""
    try:
        kind = path.stat().st_mode
    except OSError:
        return False
    folder = os.path.realpath(path.parent)
    return not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)) or folder == "/dev" or folder.startswith("/proc/")


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A temporary sibling folder that takes the place of the folder `path` in one step when the block ends well, else it vanishes.

    Killed at any moment, either the old folder stands or the new one. What killed runs left is removed. Of a link the folder that it
    names is replaced, and the link stays. Raises UserError where it can't be made or written; any other OSError of the block goes on.
    """
    _refuse_url(path)
    given = Path(path).absolute()
    path = Path(os.path.realpath(given))
    temporary = _sibling(path)
    with own_errors(given, path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        _in_use.add(temporary)
        temporary.mkdir()  # inside, so that an interrupt right behind it removes it again
        yield temporary
        _take_place(temporary, path)


@contextmanager
def temporary_folder(stem: Path) -> Iterator[Path]:
    """A folder beside `stem`, called like it, that vanishes when the block ends. What killed runs left there is removed."""
    folder = _sibling(stem)
    try:
        _remove_leftovers(stem)
        _in_use.add(folder)
        folder.mkdir()
        yield folder
    finally:
        remove(folder)
        _in_use.discard(folder)


@contextmanager
def own_errors(path: Path, target: Path, temporary: Path) -> Iterator[None]:
    """Makes errors of writing UserErrors that name `path` as it was given, and removes the temporary file or folder in the end.

    What else a block does (it may read for minutes) keeps its errors: they name another file.
    """
    try:
        yield
    except OSError as error:
        names = [Path(os.fsdecode(name)) for name in (error.filename, error.filename2) if isinstance(name, str | bytes | Path)]
        if error.errno in _DISK_IS_FULL:
            what = "the disk is full; nothing was written. Free some space and run it again"
        elif not names or any(
            name in (path, target) or name.is_relative_to(temporary) or temporary.is_relative_to(name) for name in names
        ):
            what = error.strerror or str(error)
        else:
            raise
        raise UserError(f"cannot write {path}: {what}") from error
    finally:
        remove(temporary)
        _in_use.discard(temporary)


_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)


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
            remove(other)
    for other in path.parent.glob(f"{start}building-{socket.gethostname().translate(_LITERALLY)}-*"):  # of version 0.1.0
        process = other.name.rpartition("-")[2]
        if process.isdecimal() and not _alive(int(process)):
            remove(other)


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


def remove(path: Path) -> None:
    """Remove a file or a folder, as far as that goes. A folder is given another name first: whoever may still write into it, as tasks on
    other machines do, no longer finds it, and can't make a file where all others are gone."""
    if path.is_dir():
        with suppress(OSError):  # where a folder with an open file keeps its name, as on Windows
            path = path.rename(path.with_name(f"{path.name}.gone"))
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


class HashedFile(io.RawIOBase):
    """A file to write whose SHA-256 and size are known as soon as it is closed: `digest`."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb")  # noqa: SIM115 - closed by `close`
        self._hash = hashlib.sha256()
        self._bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self._hash.update(view)
        self._bytes += view.nbytes
        return self._file.write(view)

    def tell(self) -> int:
        return self._bytes

    def flush(self) -> None:
        if not self._file.closed:
            self._file.flush()

    def close(self) -> None:
        self._file.close()
        super().close()

    @property
    def digest(self) -> FileDigest:
        """Of what was written so far, as the manifest keeps it."""
        return {"sha256": self._hash.hexdigest(), "bytes": self._bytes}


def file_digest(path: Path) -> FileDigest:
    """SHA-256 and size of a file as it lies on disk."""
    with open(path, "rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": file.tell()}


def digest(path: str | Path) -> str:
    """blake2b-256 of a file as it lies on disk, in hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, _blake2b).hexdigest()


_blake2b = partial(hashlib.blake2b, digest_size=32)


class Digests:
    """Of files by `digest`, taken in a thread beside other work from `begin` on; those that are not there yet when they are asked for are
    waited for, or taken then. The thread ends with the block, wherever it is."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths, self._found = list(paths), dict[str, str]()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Not before processes are forked."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._take, daemon=True)
            self._thread.start()

    def of(self, path: str) -> str:
        """Raises OSError where it can't be read."""
        if self._thread is not None:
            self._thread.join()
        return self._found.get(path) or digest(path)

    def __enter__(self) -> "Digests":
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _take(self) -> None:
        for path in self._paths:
            with suppress(OSError), open(path, "rb") as file:  # it is said to whoever asks for it
                taken = _blake2b()
                while (piece := file.read(1 << 22)) and not self._over.is_set():
                    taken.update(piece)
                if self._over.is_set():
                    return
                self._found[path] = taken.hexdigest()


def text_digest(text: str, size: int = 16) -> str:
    """blake2b of a text, in hex digits; size: its bytes.

    >>> text_digest("mmpo", size=4)
    'cee3a974'
    """
    return hashlib.blake2b(text.encode(), digest_size=size).hexdigest()
