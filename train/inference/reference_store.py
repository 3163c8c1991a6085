"""The reference cache: log-probabilities of completions in an SQLite file, as the judge's journal is kept in one.

A file holds the values of one fingerprint (weights, configuration, tokenizer, template, precision), which it names. A save
is whole and on the disk, or it is not there; several processes may read and write at once. Of two values for one key the
first one stays, so that a run that goes on finds the very values it began with. What version 0.1.0 kept in a Parquet file
is taken over from it once.
"""

import os
import sqlite3
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.progress import say
from mmpo.pipeline.tables import metadata
from mmpo.train.model import Fingerprint

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS fingerprint (id INTEGER PRIMARY KEY CHECK (id = 1), parts TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS logprobs (key BLOB PRIMARY KEY, logprob REAL NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID",
)
"""One row per completion. key: blake2b-128 of its start and token ids; logprob: the sum over its tokens, in nats, < 0;
checksum: CRC-32 of both, for SQLite has none of its own and a changed digit would train on."""
KEYS_PER_QUERY = 500
LOCK_SECONDS = 60.0
OPTION = "--reference-cache"
"""Which names the place, unless it is another; messages call the file by it."""
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
"""What SQLite says of a file whose bytes have changed; and, on reading, SQLITE_ERROR of names in its schema."""

Value = TypeVar("Value")


def default_folder() -> Path:
    """`reference` in the folder that MMPO_CACHE names, else in the user's cache folder (XDG_CACHE_HOME or ~/.cache)."""
    given = os.environ.get("MMPO_CACHE")
    if given:
        return Path(given) / "reference"
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmpo" / "reference"
    except RuntimeError as error:
        raise UserError(f"no home folder to keep what is computed in: set MMPO_CACHE or {_elsewhere(OPTION)}") from error


def _elsewhere(option: str) -> str:
    return f"name another place with {option}"


class _Unusable(Exception):
    """A file that is not this store's; the text says why."""


class ReferenceStore:
    """The values of one fingerprint that are known, and the file that keeps them.

    older: a Parquet file of version 0.1.0 to begin with. named: the file is the user's choice, and what does not belong
    there is refused; in a folder, where the file's name is ours, it is set aside. optional: nobody asked for this place, so
    that a run goes on without it where it can't be written.
    """

    def __init__(
        self,
        path: Path,
        fingerprint: Fingerprint,
        older: Path,
        *,
        named: bool = False,
        optional: bool = False,
        lock_seconds: float = LOCK_SECONDS,
        option: str = OPTION,
    ) -> None:
        self.path, self.fingerprint = path, fingerprint
        self.named, self.optional, self.lock_seconds = named, optional, lock_seconds
        self.writable = True
        self.called, self.elsewhere = option.removeprefix("--").replace("-", " "), _elsewhere(option)
        self._older: dict[bytes, float] = {}
        begun = os.path.exists(path) and self._connected("rw", self._is_ours)
        if not begun and self.writable and os.path.exists(older):
            self._older = self._read_parquet(older)

    @classmethod
    def open(
        cls, place: str | Path | None, fingerprint: Fingerprint, *, lock_seconds: float = LOCK_SECONDS, option: str = OPTION
    ) -> "ReferenceStore":
        """The store at a place: a folder (one file per fingerprint), a *.sqlite file, or None for `default_folder`.

        A *.parquet file, as version 0.1.0 kept, stands for the *.sqlite file beside it, which goes on with its values.
        lock_seconds: how long to wait for another process that writes; option: by which the place was named. Writes nothing.
        Raises UserError for a file of another fingerprint, naming the parts that differ, and for one that can't be read.
        """
        path = default_folder() if place is None else Path(place)
        named = path.suffix in (".sqlite", ".parquet") and not os.path.isdir(path)
        if not named and os.path.exists(path) and not os.path.isdir(path):
            raise UserError(
                f"{path} is a file: a {option.removeprefix('--').replace('-', ' ')} is a folder or a file whose name ends in .sqlite"
            )
        name = path if named else path / fingerprint.name
        own, older = name.with_suffix(".sqlite"), name.with_suffix(".parquet")
        return cls(own, fingerprint, older, named=named, optional=place is None, lock_seconds=lock_seconds, option=option)

    def lookup(self, keys: Sequence[bytes]) -> np.ndarray:
        """The log-probabilities of these keys, float64, shape (keys,), NaN where none is known."""

        def read(db: sqlite3.Connection) -> dict[bytes, float]:
            found: dict[bytes, float] = {}
            if not self._is_ours(db):
                return found
            for start in range(0, len(keys), KEYS_PER_QUERY):
                part = keys[start : start + KEYS_PER_QUERY]
                query = f"SELECT key, logprob, checksum FROM logprobs WHERE key IN ({','.join('?' * len(part))})"
                for key, logprob, checksum in db.execute(query, part):
                    if checksum != _checksum(key, logprob):
                        raise _Unusable("can't be read (a value in it has changed)")
                    found[key] = logprob
            return found

        there = self.writable and os.path.exists(self.path)
        known = self._older | ((self._connected("rw", read) or {}) if there else {})
        return np.array([known.get(key, np.nan) for key in keys], dtype=np.float64)

    def add(self, keys: Iterable[bytes], logprobs: Iterable[float]) -> None:
        """Keeps these values, durably; without any, shows that the file can be written.

        Raises UserError where it can't; in the default place a warning says so, once, instead.
        """
        new = {**dict(zip(keys, map(float, logprobs), strict=True)), **self._older}
        rows = [(key, logprob, _checksum(key, logprob)) for key, logprob in new.items()]

        def write(db: sqlite3.Connection) -> None:
            db.execute("BEGIN IMMEDIATE")
            if not self._is_ours(db):
                for statement in SCHEMA:
                    db.execute(statement)
                db.execute("INSERT INTO fingerprint VALUES (1, ?)", (orjson.dumps(self.fingerprint.as_dict()).decode(),))
            db.executemany("INSERT OR IGNORE INTO logprobs VALUES (?, ?, ?)", rows)
            db.execute("COMMIT")
            self._older = {}

        if not self.writable:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            return self._give_up(f"cannot write the {self.called} {self.path}: {error.strerror or error}", error)
        self._connected("rwc", write)

    def _is_ours(self, db: sqlite3.Connection) -> bool:
        """Whether the file has tables (a run may have been killed at its first save). _Unusable: those of something else."""
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not tables:
            return False
        stored = db.execute("SELECT parts FROM fingerprint").fetchone() if {"fingerprint", "logprobs"} <= tables else None
        self._check_fingerprint(orjson.loads(stored[0]) if stored else None)
        return True

    def _check_fingerprint(self, stored: dict | None) -> None:
        if not stored:
            raise _Unusable(f"is no {self.called} of this version of mmpo")
        differences = self.fingerprint.differences(stored)
        if differences:
            raise _Unusable(f"holds the values of another model: {'; '.join(differences)}")

    def _connected(self, mode: str, work: Callable[[sqlite3.Connection], Value]) -> Value | None:
        """What `work` gives on the open file; None where there is nothing to be had of it. Killed or failed in its midst, the
        file is as it was. mode: of SQLite, rw or rwc.
        """
        try:
            if os.path.exists(self.path) and not os.path.isfile(self.path):  # which raise nothing
                raise _Unusable("can't be read (it is no file)")
            address = f"{self.path.absolute().as_uri()}?mode={mode}"
            with closing(sqlite3.connect(address, timeout=self.lock_seconds, isolation_level=None, uri=True)) as db:
                return work(db)
        except _Unusable as error:
            self._set_aside(str(error))
        except (ValueError, TypeError, struct.error) as error:  # a changed byte can make another type of a value
            self._set_aside(f"can't be read ({error})")
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code not in DAMAGED and not (mode == "rw" and code == sqlite3.SQLITE_ERROR):
                self._give_up(f"cannot {'read' if mode == 'rw' else 'write'} the {self.called} {self.path}: {error}", error)
                return None
            self._set_aside(f"can't be read ({error})")
        return None if mode == "rw" else self._connected(mode, work)

    def _give_up(self, message: str, error: Exception) -> None:
        """Ends the run; in the default place, goes on without a file."""
        if not self.optional:
            raise UserError(f"{message}. See to it, or {self.elsewhere}; what was saved before stays") from error
        say(f"warning: {message}; this run keeps its values to itself (set MMPO_CACHE or {self.elsewhere})")
        self.writable = False

    def _refuse_if_named(self, path: Path, reason: str) -> None:
        if self.named:
            raise UserError(f"the {self.called} {path} {reason}. Delete it to have its values computed again, or {self.elsewhere}")

    def _set_aside(self, reason: str) -> None:
        self._refuse_if_named(self.path, reason)
        aside = self.path.with_suffix(".unreadable")
        try:
            self.path.replace(aside)
            self.path.with_name(f"{self.path.name}-journal").unlink(missing_ok=True)  # it would be applied to the next file
        except OSError as error:
            raise UserError(
                f"the {self.called} {self.path} {reason}, nor be set aside ({error.strerror}): {self.elsewhere}"
            ) from error
        say(f"warning: the {self.called} {self.path} {reason}; set aside as {aside.name}, computing anew")

    def _read_parquet(self, path: Path) -> dict[bytes, float]:
        """The values in a file of version 0.1.0; none, with a warning, of one in a folder that is not this reference's."""
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                self._check_fingerprint(metadata(file.schema_arrow).get("reference_cache"))
                table = file.read(columns=["key", "logprob"])
            values = dict(zip(table["key"].to_pylist(), table["logprob"].to_pylist(), strict=True))
        except (_Unusable, OSError, ValueError, KeyError, pa.ArrowException) as error:
            reason = str(error) if isinstance(error, _Unusable) else f"can't be read ({str(error).splitlines()[0][:200]})"
            self._refuse_if_named(path, reason)
            say(f"warning: the {self.called} {path} {reason}; it is left as it is, computing anew")
            return {}
        say(f"{self.called}: {path}, of an earlier version, has {len(values)} values, which go on in {self.path}")
        return values


def _checksum(key: bytes, logprob: float) -> int:
    return zlib.crc32(struct.pack("<d", logprob), zlib.crc32(key))
