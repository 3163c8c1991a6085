"""One bucket of an object store: listing, reading in ranges, writing; what fails in passing is tried again, all else is told in our words.

Amazon S3 and what speaks its protocol (AWS_ENDPOINT_URL), and Google Cloud Storage, by the file systems of pyarrow; other schemes by
fsspec, where the library that it wants is installed. Credentials come from where these look for them, and are never printed.
"""

import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.storage.objects.addresses import Address
from mmpo.pipeline.storage.objects.threads import apart, side_by_side

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

Result = TypeVar("Result")
BLOCK_BYTES = 8 << 20
THREADS = 8
TRIES, UPLOAD_TRIES = 5, 8
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 30.0
CONNECT_SECONDS, REQUEST_SECONDS = 10.0, 30.0
PATIENCE_SECONDS = 180.0
"""After so long nothing is tried again, however few tries there were: a store that answers nothing takes long each time."""
NO_RIGHT = ("ACCESS_DENIED", "AccessDenied", "HTTP status 403", "Forbidden", "PERMISSION_DENIED", "Permission denied")
NOT_KNOWN = (
    "INVALID_ACCESS_KEY_ID", "InvalidAccessKeyId", "SIGNATURE_DOES_NOT_MATCH", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken",
    "INVALID_CLIENT_TOKEN_ID", "UNRECOGNIZED_CLIENT", "HTTP status 401", "UNAUTHENTICATED", "NoCredentialsError", "Unable to locate cred",
)  # fmt: skip
NO_BUCKET = ("NO_SUCH_BUCKET", "NoSuchBucket", "Bucket not found", "bucket does not exist")
NOTHING_THERE = "No such file or directory"
"""How pyarrow says of Google's store, by a plain OSError, that nothing has that prefix."""
ELSEWHERE = ("HTTP status 301", "PermanentRedirect", "AuthorizationHeaderMalformed", "HTTP status 307")
PERMANENT = re.compile(r"HTTP status 4(?!08|29)\d\d|NO_SUCH_UPLOAD|VALIDATION|INVALID_PARAMETER|MethodNotAllowed|NotImplemented")
"""How the errors of stores begin to read, where trying again would not help."""
WHERE = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile (AWS_PROFILE); AWS_ENDPOINT_URL names a store that is not Amazon's",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or `gcloud auth application-default login`",
}
"""Where credentials are looked for."""


@dataclass(frozen=True)
class Stored:
    """An object: its size in bytes, and the store's mark of this very content (its ETag; else its size and time)."""

    address: Address
    bytes: int
    etag: str


class NotThere(UserError):
    """There is no such object, or no longer."""


class StoreBucket:
    """A bucket of a store. Raises UserError from every method: no such bucket or object, no right, a store that fails or is not reached."""

    def __init__(self, address: Address) -> None:
        self.scheme, self.name = address.scheme, address.bucket
        self.address = address.at("")

    @cached_property
    def files(self) -> "FileSystem":
        """The file system. Imported and connected here: most commands meet no store."""
        from pyarrow import fs

        if self.scheme == "s3":
            endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
            region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
            options: dict[str, Any] = {"endpoint_override": endpoint} if endpoint else {}
            if not endpoint and not region:
                region = fs.resolve_s3_region(self.name)
            return fs.S3FileSystem(
                region=region,
                retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=2),
                connect_timeout=CONNECT_SECONDS,
                request_timeout=REQUEST_SECONDS,
                allow_delayed_open=True,  # small objects in one request
                **options,
            )
        if self.scheme == "gs":
            emulator = os.environ.get("STORAGE_EMULATOR_HOST")
            host = emulator.partition("://")[2] or emulator if emulator else None
            options = {"endpoint_override": host, "scheme": "http", "anonymous": True} if host else {}
            return fs.GcsFileSystem(retry_time_limit=timedelta(seconds=15), **options)
        return fs.PyFileSystem(fs.FSSpecHandler(_fsspec(self.scheme)))

    def listing(self, prefix: str) -> dict[str, int]:
        """The objects under a key taken for a folder, in order: name below it → bytes. What only stands for a folder is left out."""
        from pyarrow import fs

        base = f"{self.name}/{prefix}" if prefix else self.name

        def listed() -> dict[str, int]:
            found = self.files.get_file_info(fs.FileSelector(base, recursive=True))
            return {one.path.lstrip("/").removeprefix(f"{base}/"): int(one.size) for one in found if one.type == fs.FileType.File}

        try:
            return dict(sorted(self._tried("listing", self.address.at(prefix), listed).items()))
        except NotThere:
            return {}

    def about(self, key: str) -> Stored:
        """An object. Raises NotThere."""
        address = self.address.at(key)

        def looked() -> Stored:
            with self.files.open_input_file(f"{self.name}/{key}") as file:
                told = {name.lower(): value for name, value in (file.metadata() or {}).items()}
                size, mark = file.size(), told.get("etag", b"").decode().strip('"')
            if not mark:
                info = self.files.get_file_info(f"{self.name}/{key}")
                mark = f"{size}-{info.mtime_ns or 0}"
            return Stored(address, size, mark)

        return self._tried("reading", address, looked)

    def holds(self, key: str) -> bool:
        """Whether there is an object of this very key."""
        try:
            self.about(key)
        except NotThere:
            return False
        return True

    def read(self, key: str) -> bytes:
        """A small object, whole. Raises NotThere."""

        def whole() -> bytes:
            with self.files.open_input_file(f"{self.name}/{key}") as file:
                size, content = file.size(), file.readall()
            if len(content) != size:
                raise OSError(f"the reply ended after {len(content)} of {size} bytes")
            return bytes(content)

        return self._tried("reading", self.address.at(key), whole)

    def blocks(self, one: Stored, path: Path, on_bytes: Callable[[int], None], most: int | None = None) -> list[Callable[[], None]]:
        """The works that fetch an object into a file of its size, block by block and in any order. most: only so many of its bytes."""
        size = one.bytes if most is None else min(most, one.bytes)
        with path.open("wb") as file:
            file.truncate(size)

        def work(start: int) -> Callable[[], None]:
            def fetch() -> None:
                count = min(BLOCK_BYTES, size - start)

                def read() -> bytes:
                    with self.files.open_input_file(f"{self.name}/{one.address.key}") as file:
                        content = bytes(file.read_at(count, start))
                    if len(content) != count:
                        raise OSError(f"the reply ended after {len(content)} of {count} bytes")
                    return content

                content = self._tried("reading", one.address, read)
                with path.open("r+b") as file:
                    file.seek(start)
                    file.write(content)
                on_bytes(count)

            return fetch

        return [work(start) for start in range(0, size, BLOCK_BYTES)]

    def upload(self, source: Path | bytes, key: str) -> None:
        """Write an object, whole. compression: pyarrow would pack what is named *.gz once more."""

        def send() -> None:
            with self.files.open_output_stream(f"{self.name}/{key}", compression=None) as out:
                if isinstance(source, bytes):
                    out.write(source)
                    return
                with source.open("rb") as file:
                    while block := file.read(BLOCK_BYTES):
                        out.write(block)

        self._tried("writing", self.address.at(key), send, UPLOAD_TRIES)

    def remove(self, keys: Iterable[str]) -> None:
        """Remove objects; those that are gone already are."""

        def work(key: str) -> Callable[[], None]:
            def remove() -> None:
                with suppress(NotThere):
                    self._tried("removing", self.address.at(key), lambda: self.files.delete_file(f"{self.name}/{key}"))

            return remove

        side_by_side([work(key) for key in keys], THREADS)

    def _tried(self, doing: str, address: Address, work: Callable[[], Result], tries: int = TRIES) -> Result:
        """What the function returns, called again, with longer and longer waits, where the store or the network failed."""
        wait, began = FIRST_WAIT_SECONDS, time.monotonic()
        here = threading.current_thread() is threading.main_thread()
        for attempt in range(1, tries + 1):
            try:
                return apart(work) if here else work()
            except UserError:
                raise
            except FileNotFoundError as error:
                raise self._nothing(doing, address) from error
            except ImportError as error:
                raise UserError(f"{address.url}: the library for {self.scheme}:// is not installed ({error})") from error
            except Exception as error:
                told = " ".join(str(error).split())
                if told.startswith(NOTHING_THERE):
                    raise self._nothing(doing, address) from error
                if permanent := self._permanent(doing, address, told):
                    raise permanent from error
                if attempt == tries or time.monotonic() - began > PATIENCE_SECONDS:
                    raise UserError(
                        f"{address.url}: {doing} failed {attempt} times, the store can't be reached or fails ({_short(told)}); check the "
                        f"address, then try again{self._endpoint()}"
                    ) from error
                time.sleep(wait * random.uniform(0.5, 1.0))
                wait = min(2 * wait, LONGEST_WAIT_SECONDS)
        raise AssertionError("the last try returns or raises")

    def _nothing(self, doing: str, address: Address) -> UserError:
        if doing == "writing":
            return UserError(f"{address.url}: there is no bucket {self.name!r}; make it, or check the name")
        return NotThere(f"{address.url}: there is no such object")

    def _permanent(self, doing: str, address: Address, told: str) -> UserError | None:
        """What an error means that comes again however often one tries."""
        where = WHERE.get(self.scheme, "where its own tools look for them")
        if any(word in told for word in NOT_KNOWN):
            return UserError(f"{address.url}: the store does not take the credentials ({_short(told)}): they come from {where}")
        if any(word in told for word in NO_RIGHT):
            return UserError(
                f"{address.url}: the store refuses {doing}: the credentials have no right to it, or there are none. They come from "
                f"{where}"
            )
        if any(word in told for word in NO_BUCKET) or re.match("Bucket .* not found$", told):
            return UserError(f"{address.url}: there is no bucket {self.name!r}; make it, or check the name{self._endpoint()}")
        if any(word in told for word in ELSEWHERE):
            return UserError(f"{address.url}: the bucket is in another region; name it in AWS_REGION ({_short(told)})")
        return UserError(f"{address.url}: the store refuses {doing} ({_short(told)})") if PERMANENT.search(told) else None

    def _endpoint(self) -> str:
        named = self.scheme == "s3" and (os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"))
        return f" (the endpoint is {named.rpartition('@')[2]})" if named else ""


def _short(told: str) -> str:
    """The store's own words without the ids of its requests, and without what follows them."""
    return re.sub(r" ?\(Request ID: [^)]*\)", "", told.partition("AWS Error ")[2] or told)[:200]


def _fsspec(scheme: str) -> Any:
    """A file system of fsspec's. Raises ImportError where its library is missing."""
    import fsspec

    return fsspec.filesystem(scheme)
