"""Addresses in object stores, s3://BUCKET/KEY, whether they come as text or as a Path, which takes one of the two slashes away."""

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePath

from mmpo.pipeline.errors import UserError, unknown_name

URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/{1,2}(?P<rest>.*)", re.DOTALL)
SAME = {"gcs": "gs", "s3a": "s3", "s3n": "s3"}
STORES = ("s3", "gs", "az", "abfs", "adl", "hdfs", "oci", "oss", "sftp", "webdav", "smb", "memory")
"""Schemes of addresses: the first two are read and written by pyarrow, the others by fsspec."""
NONE = {
    **dict.fromkeys(("http", "https", "ftp"), "a web address is no object store: fetch the file first (curl -LO), and name it"),
    **dict.fromkeys(("file", "local"), "a file on this machine is named by its path alone"),
    "hf": "a dataset of the Hub is read as hub:OWNER/NAME, and written by `mmpo push`",
}
"""Schemes that are none of a store, and what to do instead."""


@dataclass(frozen=True)
class Address:
    """An object, or what begins the keys of several: of `s3://bucket/a/b` the scheme s3, the bucket and the key a/b, "" for all of it."""

    scheme: str
    bucket: str
    key: str

    @property
    def url(self) -> str:
        """As it is written."""
        return f"{self.scheme}://{self.bucket}" + (f"/{self.key}" if self.key else "")

    def at(self, key: str) -> "Address":
        """Another one in the same bucket."""
        return Address(self.scheme, self.bucket, key)

    def inside(self, name: str) -> "Address":
        """What has this name under it, taken for a folder."""
        return self.at(f"{self.key}/{name}" if self.key else name)


def url_of(given: str | Path) -> str | None:
    """The address that a text or a Path stands for, None where it is a path on this machine.

    >>> url_of("s3://bucket/rows"), url_of(Path("s3://bucket/rows")), url_of("rows.jsonl"), url_of("hub:owner/name")
    ('s3://bucket/rows', 's3://bucket/rows', None, None)
    """
    found = URL.fullmatch(given if isinstance(given, str) else given.as_posix() if isinstance(given, PurePath) else _path(given))
    if found is None:
        return None
    scheme = found["scheme"].lower()
    return f"{SAME.get(scheme, scheme)}://{found['rest']}"


def _path(given: object) -> str:
    """The path that something else stands for. Raises UserError where it is none, such as a table or a number."""
    if isinstance(given, os.PathLike) and isinstance(path := os.fspath(given), str):
        return path
    raise UserError(
        f"{type(given).__module__}.{type(given).__name__} is no path: give a text or a Path. Tables are read by "
        "mmpo.pipeline.read_feedback and written by write_dataset"
    )


def name_of(given: str | Path) -> str:
    """A path or an address for messages and summaries."""
    return url_of(given) or str(given)


def address_of(url: str) -> Address:
    """The parts of an address that `url_of` gave. Raises UserError where it is none that can be read or written."""
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    if "@" in bucket:
        raise UserError(
            f"{scheme}://…@{bucket.rpartition('@')[2]}: an address with credentials or an account in it would be kept in manifests: give "
            "them where the store's own tools look for them (environment variables, a profile), and SCHEME://BUCKET/KEY here"
        )
    if scheme in NONE:
        raise UserError(f"{url}: {NONE[scheme]}")
    if scheme not in STORES:
        raise unknown_name("scheme of an address", scheme, STORES)
    if not bucket:
        raise UserError(f"{url}: names no bucket; an address is {scheme}://BUCKET/KEY")
    return Address(scheme, bucket, key.strip("/"))


def refuse_url(path: str | Path, what: str) -> None:
    """Raise UserError where the path of what is written to this machine's disk only is an address."""
    if url := url_of(path):
        raise UserError(f"{what} {url}: it is written to a path on this machine, not to an object store; dataset folders can be")
