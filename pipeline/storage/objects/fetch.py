"""Inputs in object stores: which objects an address names, and the copies of them that are read."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.storage.files import temporary_folder, text_digest
from mmpo.pipeline.storage.objects.addresses import Address, address_of
from mmpo.pipeline.storage.objects.cache import cache_folder, fetch_files, prepare, used
from mmpo.pipeline.storage.objects.client import THREADS, StoreBucket, Stored
from mmpo.pipeline.storage.objects.threads import side_by_side

MAGIC = re.compile(r"[*?[]")
HEAD_BYTES = 32 << 20
"""Of the first object, where it is only looked at."""


@dataclass(frozen=True)
class Found:
    """The objects that an address names: one, those that a pattern fits, or all below it (`folder`: their names there)."""

    address: Address
    names: tuple[str, ...]
    folder: bool

    def url(self, name: str) -> str:
        """The address of one of them."""
        return self._at(name).url

    def _at(self, name: str) -> Address:
        return self.address.inside(name) if self.folder else self.address.at(name)

    def addresses(self, names: Sequence[str]) -> list[Address]:
        """Of some of them."""
        return [self._at(name) for name in names]


def objects_at(url: str) -> Found:
    """What an address names. Raises UserError where nothing is there, or the store does not say."""
    address = address_of(url)
    bucket = StoreBucket(address)
    if address.key and not url.endswith("/"):
        if not MAGIC.search(address.key):
            below = bucket.listing(address.key)  # first: of all requests this one tells why it is refused
            if bucket.holds(address.key):
                return Found(address, (address.key,), False)
            if below:
                return Found(address, tuple(below), True)
            raise UserError(f"{url}: there is no such object, and none whose key begins with {address.key}/")
        from fsspec.utils import glob_translate

        fixed = MAGIC.split(address.key)[0].rpartition("/")[0]
        there = {f"{fixed}/{name}" if fixed else name for name in bucket.listing(fixed)}
        fits = re.compile(glob_translate(address.key))
        names = sorted(key for key in there if key == address.key or (fits.match(key) and not _hidden(key, address.key)))
        if not names:
            raise UserError(f"no object matches {url!r}")
        return Found(address, tuple(names), False)
    below = bucket.listing(address.key)
    if not below:
        raise UserError(f"{url}: nothing is there")
    return Found(address, tuple(below), True)


def _hidden(key: str, pattern: str) -> bool:
    """Whether a part of the key begins with a point that the pattern does not name."""
    return any(part.startswith(".") for part in key.split("/")) and "/." not in f"/{pattern}"


def fetched(found: Sequence[Address], *, head: bool = False) -> list[tuple[Path, Stored]]:
    """The objects as files in the cache, under their own names. head: large ones only to so many of their bytes that a look at them needs.

    Raises UserError: a store that fails, an object that changed while it was read, a disk that is too small.
    """
    if not found:
        return []
    bucket = StoreBucket(found[0])
    before = side_by_side([lambda key=one.key: bucket.about(key) for one in found], THREADS)
    paths = [_place(one, head and one.bytes > HEAD_BYTES) for one in before]
    missing = {path: one for path, one in zip(paths, before, strict=True) if not path.is_file()}
    if missing:
        most = HEAD_BYTES if head else None
        prepare(sum(min(one.bytes, most or one.bytes) for one in missing.values()), paths[0].parent)
        shown = found[0].url + (f" and {len(found) - 1:,} more" if len(found) > 1 else "")
        with temporary_folder(cache_folder("inputs") / "fetching") as part:
            files = {part / str(number): one for number, one in enumerate(missing.values())}
            fetch_files(bucket, files, shown, most)
            for one in side_by_side([lambda key=one.address.key: bucket.about(key) for one in missing.values()], THREADS):
                if one not in missing.values():
                    raise UserError(f"{one.address.url}: the object changed while it was read; try again")
            for source, path in zip(files, missing, strict=True):
                path.parent.mkdir(parents=True, exist_ok=True)
                source.replace(path)
    for path in paths:
        used(path.parent)
    return list(zip(paths, before, strict=True))


def _place(one: Stored, head: bool) -> Path:
    name = one.address.key.rpartition("/")[2]
    return cache_folder("inputs") / text_digest(f"{one.address.url}\n{one.etag}\n{one.bytes}\n{head}") / name
