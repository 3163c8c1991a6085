"""How a task goes to another machine and comes back: its arguments and results, in which paths stay valid, and the files that they name.

A task gets folders of its own. What it needs is laid down there, and what it wrote comes back: as bytes, or, of the output, as files in a
folder beside where they belong, where the task's machine sees that. So a task that runs twice, or dies half-way, leaves nothing behind it.
"""

import io
import os
import pickle
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from mmpo.pipeline.engines.base import SPILLED
from mmpo.pipeline.engines.held import held_folder
from mmpo.pipeline.engines.local import prepare_worker

OUTPUT, SCRATCH = 0, 1
TOKEN = ".seen"
"""A file of the output folder: who reads in it what was written there sees the folder."""
ATTEMPTS = ".attempts"
STEM = "mmpo-task-"
Place = tuple[int, str]
"""A file in one of the two folders: OUTPUT or SCRATCH, and its path in there."""
Homes = tuple[Path, Path]
"""The two folders."""


def place_of(path: Path, homes: Homes) -> Place | None:
    """Of a path in the folders; the one for temporary files may lie in the other."""
    for home in (SCRATCH, OUTPUT):
        if path.is_relative_to(homes[home]):
            return home, str(path.relative_to(homes[home]))
    return None


class _Packer(pickle.Pickler):
    def __init__(self, file: io.BytesIO, homes: Homes) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.homes = homes
        self.places: dict[Place, None] = {}

    def persistent_id(self, obj: Any) -> Place | None:
        place = place_of(obj, self.homes) if isinstance(obj, Path) else None
        if place is not None:
            self.places[place] = None
        return place


class _Unpacker(pickle.Unpickler):
    def __init__(self, data: bytes, path_of: Callable[[Place], Path]) -> None:
        super().__init__(io.BytesIO(data))
        self.persistent_load = path_of


def packed(value: Any, homes: Homes) -> tuple[bytes, list[Place]]:
    """A value without the folders that its paths lie in, and the places that they name."""
    file = io.BytesIO()
    packer = _Packer(file, homes)
    packer.dump(value)
    return file.getvalue(), list(packer.places)


def unpacked(data: bytes, path_of: Callable[[Place], Path]) -> Any:
    """What `packed` packed, with paths as the function has them."""
    return _Unpacker(data, path_of).load()


class Parcel(NamedTuple):
    """A task: packed (work, arguments); the directory that it was given in; folders and small files that it needs; where the spilled files
    belong that come beside it."""

    data: bytes
    cwd: str
    folders: Sequence[Place]
    files: Mapping[Place, bytes]
    spilled: Sequence[Place]


class Returned(NamedTuple):
    """What a task came to: its packed result, files as bytes, and the folder in ATTEMPTS that holds its output, if any."""

    data: bytes
    files: Mapping[Place, pa.Buffer]
    attempt: str | None


def make_folder(homes: Homes, place: Place) -> None:
    """Make a folder in one that is there: in one that was removed meanwhile it does not come about."""
    path = homes[place[0]]
    for name in Path(place[1]).parts:
        path = path / name
        path.mkdir(exist_ok=True)


def go_to(directory: str) -> None:
    """Make relative paths mean what they mean where a task comes from, if the directory is here."""
    with suppress(OSError):
        os.chdir(directory)


def sees(folder: Path, token: str) -> bool:
    """Whether this machine sees the folder that another one wrote the token into."""
    try:
        return (folder / TOKEN).read_text() == token
    except OSError:
        return False


def at_work(parcel: Parcel, out: str, token: str, temporary: str | None, shards: int, *spilled: pa.Buffer) -> Any:
    """Do a task on this machine. out: the output folder where the task comes from, and the token in it; temporary: where folders for
    temporary files are made (the system's place); shards: for how many it may leave spilled files. Returns a Returned, and with shards
    after it the file of each, None where there is none.
    """
    prepare_worker()
    go_to(parcel.cwd)
    with _homes(Path(out), token, temporary) as homes:

        def path_of(place: Place) -> Path:
            return homes[place[0]] / place[1]

        for place in parcel.folders:
            make_folder(homes, place)
        for place, content in (*parcel.files.items(), *zip(parcel.spilled, spilled, strict=True)):
            make_folder(homes, (place[0], os.path.dirname(place[1])))
            path_of(place).write_bytes(content)
        work, arguments = unpacked(parcel.data, path_of)
        data, _ = packed(work(*arguments), homes)
        left: list[pa.Buffer | None] = [None] * shards
        files = {}
        direct = homes[OUTPUT].parent.name == ATTEMPTS
        for home in (SCRATCH,) if direct else (SCRATCH, OUTPUT):
            for path in sorted(homes[home].rglob("*")):
                place = home, str(path.relative_to(homes[home]))
                if path.is_dir() or place in parcel.files or place in parcel.spilled:
                    continue
                with pa.memory_map(str(path)) if path.stat().st_size else pa.BufferReader(b"") as content:
                    if path.suffix == SPILLED:
                        left[int(path.name.partition("-")[0])] = content.read_buffer()
                    else:
                        files[place] = content.read_buffer()
        found = Returned(data, files, homes[OUTPUT].name if direct else None)
        return (found, *left) if shards else found


@contextmanager
def _homes(out: Path, token: str, temporary: str | None) -> Iterator[Homes]:
    """Folders of a task's own."""
    with held_folder(STEM, temporary) as own:
        direct = sees(out, token)
        homes = (out / ATTEMPTS / uuid.uuid4().hex if direct else own / "out", own / "scratch")
        for home in homes:
            home.mkdir()  # not where the output is gone: it would stand there for good
        yield homes
