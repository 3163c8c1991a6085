"""The reference cache: log-probabilities of completions in a Parquet file, one row a completion.

A file holds the values of one fingerprint (weights, configuration, tokenizer, template, precision), which its metadata
names. Every save writes the whole file anew beside the old one and swaps them under a lock: a kill at any moment leaves
the one or the other, and two runs at once lose nothing of each other. Of two values for one key the first one stays, so
that a run that goes on finds the very values it began with.
"""

import fcntl
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.tables import metadata, with_metadata
from mmpo.train.model import Fingerprint

__all__ = ["CACHED", "ReferenceCache", "default_folder"]

CACHED = pa.schema(
    [
        pa.field("key", pa.binary(16)),
        pa.field("prompt_id", pa.string()),
        pa.field("tokens", pa.int32()),
        pa.field("logprob", pa.float64()),
    ]
)
"""One row a completion. key: blake2b-128 of its start and token ids; prompt_id: of the PAIRS it was first seen in;
tokens: the completion's, ≥ 1; logprob: the sum over them, in nats, < 0."""
_META = "reference_cache"
_LEFTOVER_SECONDS = 3600.0
_NEXT = "name another place with --reference-cache"


def default_folder() -> Path:
    """`reference` in the folder that MMPO_CACHE names, else in the user's cache folder (XDG_CACHE_HOME or ~/.cache)."""
    given = os.environ.get("MMPO_CACHE")
    if given:
        return Path(given) / "reference"
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmpo" / "reference"
    except RuntimeError as error:
        raise UserError(f"no home folder to keep the reference cache in: set MMPO_CACHE or {_NEXT}") from error


class ReferenceCache:
    """The values of one fingerprint that are known, and the file that keeps them.

    named: the file is the user's choice, and what does not belong there is refused; in a folder, where the file's name
    is ours, it is set aside. optional: nobody asked for this place, so that a run goes on without it where it can't be
    written.
    """

    def __init__(self, path: Path, fingerprint: Fingerprint, *, named: bool = False, optional: bool = False) -> None:
        self.path, self.fingerprint = path, fingerprint
        self.named, self.optional = named, optional
        self.writable = True
        self.set_aside = 0
        with _locked(path):
            self._held = self._read()

    @classmethod
    def open(cls, place: str | Path | None, fingerprint: Fingerprint) -> "ReferenceCache":
        """The cache at a place: a folder (one file a fingerprint), a *.parquet file, or None for `default_folder`.

        Writes nothing. Raises UserError for a file of another fingerprint, naming the parts that differ, and for one
        that can't be read.
        """
        path = default_folder() if place is None else Path(place)
        if path.suffix == ".parquet" and not path.is_dir():
            return cls(path, fingerprint, named=True)
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file: a reference cache is a folder or a file whose name ends in .parquet")
        return cls(path / f"{fingerprint.name}.parquet", fingerprint, optional=place is None)

    def lookup(self, keys: Sequence[bytes]) -> np.ndarray:
        """The log-probabilities of these keys, float64, shape (keys,), NaN where none is known."""
        index = pc.index_in(pa.array(keys, pa.binary(16)), value_set=self._held["key"].combine_chunks())
        return self._held["logprob"].combine_chunks().take(index).to_numpy(zero_copy_only=False)

    def add(self, rows: pa.Table) -> None:
        """Keeps these rows (schema CACHED), durably, and learns what other runs have added meanwhile.

        Raises UserError where the file can't be written; in the default place a warning says so, once, instead.
        """
        try:
            if self.writable:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with _locked(self.path):
                    self._held = _joined(self._read(), rows)
                    self._write(self._held)
                return
        except OSError as error:
            self._give_up(f"cannot write the reference cache {self.path}: {error.strerror or error}", error)
        self._held = _joined(self._held, rows)

    def _read(self) -> pa.Table:
        """The file's rows; of a file that is not this cache's, none (set aside) or a UserError."""
        try:
            with pq.ParquetFile(self.path, page_checksum_verification=True) as file:
                stored = metadata(file.schema_arrow).get(_META)
                table = file.read().select(CACHED.names).cast(CACHED) if stored else None
        except (FileNotFoundError, NotADirectoryError):
            return CACHED.empty_table()
        except PermissionError as error:
            self._give_up(f"cannot read the reference cache {self.path}: {error.strerror or error}", error)
            return CACHED.empty_table()
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            return self._refused(f"can't be read ({str(error).splitlines()[0][:200]})")
        if table is None:
            return self._refused("is no reference cache of this version of mmpo")
        differences = self.fingerprint.differences(stored)
        if differences:
            return self._refused(f"holds the values of another reference: {'; '.join(differences)}")
        return table

    def _give_up(self, message: str, error: OSError) -> None:
        """Ends the run; in the default place, goes on without a file."""
        if not self.optional:
            raise UserError(f"{message}. See to it, or {_NEXT}; what was saved before stays") from error
        print(f"warning: {message}; this run keeps its values to itself (set MMPO_CACHE or {_NEXT})", file=sys.stderr)
        self.writable = False

    def _refused(self, reason: str) -> pa.Table:
        if self.named:
            raise UserError(f"the reference cache {self.path} {reason}. Delete it to have its values computed again, or {_NEXT}")
        aside = self.path.with_suffix(".unreadable")
        try:
            self.path.replace(aside)
        except OSError as error:
            raise UserError(f"the reference cache {self.path} {reason}, nor be set aside ({error.strerror}): {_NEXT}") from error
        self.set_aside += 1
        print(f"warning: the reference cache {self.path} {reason}; set aside as {aside.name}, computing anew", file=sys.stderr)
        return CACHED.empty_table()

    def _write(self, table: pa.Table) -> None:
        """Whole or not at all; on the disk before it takes the old file's name."""
        for leftover in self.path.parent.glob(f".{self.path.name}.*.part"):  # of a run that was killed here
            with suppress(FileNotFoundError):
                if time.time() - leftover.stat().st_mtime > _LEFTOVER_SECONDS:
                    leftover.unlink()
        schema = with_metadata(CACHED, {_META: self.fingerprint.as_dict()})
        sibling = self.path.with_name(f".{self.path.name}.{uuid4().hex}.part")
        try:
            with open(sibling, "wb") as file:
                pq.write_table(table.cast(schema), file, compression="zstd", write_page_checksum=True)
                file.flush()
                os.fsync(file.fileno())
            sibling.replace(self.path)
        except BaseException:
            sibling.unlink(missing_ok=True)
            raise


def _joined(held: pa.Table, rows: pa.Table) -> pa.Table:
    """Both, without the rows whose key is held already."""
    new = pc.is_null(pc.index_in(rows["key"], value_set=held["key"].combine_chunks()))
    return pa.concat_tables([held.replace_schema_metadata(None), rows.filter(new)]).combine_chunks()


@contextmanager
def _locked(path: Path, seconds: float = 60.0) -> Iterator[None]:
    """Alone among the processes that use this file. The system lets go of the lock when its holder dies.

    A folder that can't be written, or a file system without locks, is used without: files are still swapped whole.
    """
    try:
        lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        yield
        return
    try:
        _wait_for(lock, path, seconds)
        yield
    finally:
        os.close(lock)


def _wait_for(lock: int, path: Path, seconds: float) -> None:
    until = time.monotonic() + seconds
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise UserError(f"another process has kept the reference cache {path} locked for {seconds:g} s: {_NEXT}") from None
            time.sleep(0.05)
        except OSError:
            return None
