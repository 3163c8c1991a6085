"""A dataset folder into an object store: whole or not there, although stores rename nothing.

Every file is written under a name with a digest of its content, which nothing else has, and the manifest, which says what stands under
which name, last and in one request. Until then the older dataset stands. What a run that was stopped left, the next one uses or removes.
"""

import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.progress import ProgressReporter, say
from mmpo.pipeline.storage.files import own_errors, temporary_folder, text_digest
from mmpo.pipeline.storage.manifest import MANIFEST, manifest_files, manifest_text, parsed_manifest
from mmpo.pipeline.storage.objects.addresses import Address, address_of
from mmpo.pipeline.storage.objects.cache import cache_folder
from mmpo.pipeline.storage.objects.client import THREADS, NotThere, StoreBucket
from mmpo.pipeline.storage.objects.datasets import OURS, STORED
from mmpo.pipeline.storage.objects.threads import side_by_side

WRITING = ".mmpo-writing"
"""The object that stands beside a dataset while it is written, and says by whom."""


def check_target(url: str) -> str | None:
    """Refuse an address at which anything stands that mmpo did not write; the text of the manifest that stands there, None for none.

    Raises UserError. What an upload left that did not come to its end is ours.
    """
    address = address_of(url)
    if not address.key:
        raise UserError(f"--out {url} is a whole bucket; name a key in it, such as {url.rstrip('/')}/pairs")
    bucket = StoreBucket(address)
    there = bucket.listing(address.key)
    foreign = [name for name in there if name not in (MANIFEST, WRITING) and not OURS.fullmatch(name)]
    text = None
    if MANIFEST in there:
        text = bucket.read(address.inside(MANIFEST).key).decode(errors="replace")
        manifest = parsed_manifest(text, f"--out {address.url}")
        foreign = [name for name in foreign if name not in manifest_files(manifest)]
    if foreign:
        told = "is a dataset but also holds" if text is not None else "exists and holds something else:"
        raise UserError(
            f"--out {address.url} {told} {', '.join(foreign[:3])}, which mmpo did not write; name another, or move that away"
        )
    if not there and bucket.holds(address.key):
        raise UserError(f"--out {address.url} is an object; name a key under which nothing stands yet")
    return text


@contextmanager
def publishing(url: str, check: Callable[[Path], Any]) -> Iterator[Path]:
    """A temporary folder on this machine whose content becomes the dataset at an address when the block ends well.

    check: called with the finished folder, raises where it is no dataset. Raises UserError where the store can't be written (before the
    block), where something else came there meanwhile, and where the upload fails; then what stood there stands.
    """
    before = check_target(url)
    address = address_of(url)
    bucket = StoreBucket(address)
    place = cache_folder("uploads") / text_digest(address.url) / address.key.rpartition("/")[2]
    place.parent.mkdir(parents=True, exist_ok=True)
    with _announced(bucket, address), temporary_folder(place) as folder, own_errors(place, place, folder):
        yield folder
        check(folder)
        if check_target(url) != before:
            raise UserError(f"--out {address.url}: another dataset came there meanwhile and is left alone; nothing was written")
        _publish(bucket, address, folder)


@contextmanager
def _announced(bucket: StoreBucket, address: Address) -> Iterator[None]:
    """Say in the store, as long as the block is, that a dataset is being written; which also shows, before the work, that it may be."""
    key = address.inside(WRITING).key
    try:
        other = json.loads(bucket.read(key))
    except (NotThere, ValueError):
        other = None
    mine = {"host": socket.gethostname(), "process": os.getpid()}
    if isinstance(other, dict) and other.get("host") != mine["host"]:
        say(
            f"warning: {address.url}: {other.get('host')} was writing there, and did not end: if it still runs, the one that ends later "
            "is refused"
        )
    bucket.upload(json.dumps(mine).encode(), key)
    try:
        yield
    except Exception:
        with suppress(UserError):
            bucket.remove([key])
        raise


def stored_name(name: str, digest: Mapping[str, Any]) -> str:
    """The name in a store of a file of a dataset folder.

    >>> stored_name("train/part-00000.parquet", {"sha256": "0123456789abcdef" * 4})
    'train/part-00000.mmpo-0123456789abcdef.parquet'
    """
    path = PurePosixPath(name)
    return path.with_name(f"{path.stem}.mmpo-{str(digest['sha256'])[:16]}{path.suffix}").as_posix()


def _publish(bucket: StoreBucket, address: Address, folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    files = {name: digest for name, digest in manifest_files(manifest).items() if digest is not None}
    names = {name: stored_name(name, digest) for name, digest in files.items()}
    sizes = {names[name]: int(digest["bytes"]) for name, digest in files.items()}
    there = bucket.listing(address.key)
    missing = [name for name in files if there.get(names[name]) != sizes[names[name]]]
    total, done = sum(sizes[names[name]] for name in missing), 0
    with ProgressReporter("uploading", "bytes") as progress:

        def work(name: str) -> Callable[[], None]:
            def send() -> None:
                nonlocal done
                bucket.upload(folder / name, address.inside(names[name]).key)
                done += sizes[names[name]]
                progress(address.url, done, total)

            return send

        side_by_side([work(name) for name in missing], THREADS)
    text = manifest_text({**manifest, STORED: names})
    _compare(bucket, address, sizes)
    bucket.upload(text.encode(), address.inside(MANIFEST).key)
    old = [name for name in bucket.listing(address.key) if name not in sizes and name != MANIFEST]
    bucket.remove(address.inside(name).key for name in old)
    _compare(bucket, address, sizes)
    if bucket.read(address.inside(MANIFEST).key) != text.encode():
        raise UserError(
            f"--out {address.url}: another dataset took its place at the same moment; write this one to another address"
        )
    say(f"uploaded {len(missing):,} of {len(files):,} files, {total:,} bytes, to {address.url}")


def _compare(bucket: StoreBucket, address: Address, sizes: Mapping[str, int]) -> None:
    """Raise UserError where the store does not hold what was uploaded."""
    there = bucket.listing(address.key)
    wrong = [name for name, size in sizes.items() if there.get(name) != size]
    if wrong:
        raise UserError(
            f"--out {address.url}: the store does not hold {', '.join(wrong[:3])} as uploaded; another run may be writing there at the "
            "same time. Give the same command again, or name another address"
        )
