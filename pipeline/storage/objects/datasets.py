"""A dataset folder in an object store, read: the copy of it on this machine, checked by its manifest's digests."""

import re
from pathlib import Path
from typing import Any

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.storage.files import atomic_folder, file_digest, text_digest
from mmpo.pipeline.storage.manifest import MANIFEST, manifest_files, manifest_text, parsed_manifest, safe_name
from mmpo.pipeline.storage.objects.addresses import Address, address_of, url_of
from mmpo.pipeline.storage.objects.cache import cache_folder, fetch_files, prepare, used
from mmpo.pipeline.storage.objects.client import NotThere, StoreBucket, Stored
from mmpo.pipeline.storage.objects.fetch import fetched

OURS = re.compile(r".*\.mmpo-[0-9a-f]{16}(\.[A-Za-z0-9]+)?")
"""How the names of files in a store end, whichever dataset they are of."""
STORED = "stored"
"""The key of a manifest in an object store that says under which names the files stand there; it is not in the folder's own."""


class NoDataset(UserError):
    """Nothing that is a dataset of mmpo stands at an address."""


def on_disk(given: str | Path) -> Path:
    """A folder or file by its path; for the address of a dataset, or of one object, in an object store, the copy of it in the cache.

    The copy of a dataset is made where there is none of this very manifest, whole or not at all, each file compared with its
    digest. Raises UserError where there is no dataset, where a file is gone or is not what the manifest says, where the disk is too small.
    """
    url = url_of(given)
    if url is None:
        return Path(given)
    address = address_of(url)
    if not address.key:
        raise UserError(f"{url}: names a bucket; a dataset has a key in it, {url}/KEY")
    try:
        return _dataset(address)
    except NotThere:
        return _dataset(address)  # another took its place while it was read


def dataset_at(given: str | Path) -> Path | None:
    """The dataset folder of mmpo at a path, or the copy of the one at an address; None where there is none."""
    if url_of(given) is None:
        return Path(given) if (Path(given) / MANIFEST).is_file() else None
    try:
        return on_disk(given)
    except NoDataset:
        return None


def _dataset(address: Address) -> Path:
    bucket = StoreBucket(address)
    try:
        text = bucket.read(address.inside(MANIFEST).key).decode(errors="replace")
    except NotThere as error:
        if bucket.holds(address.key):
            return fetched([address])[0][0]
        there = bucket.listing(address.key)
        what = f"it holds {len(there):,} other objects, or an upload that did not come to its end" if there else "nothing is there"
        raise NoDataset(f"{address.url} has no {MANIFEST}: it is no dataset of mmpo ({what}); `mmpo build` writes one") from error
    manifest = parsed_manifest(text, address.url)
    folder = cache_folder("datasets") / text_digest(f"{address.url}\n{text}") / address.key.rpartition("/")[2]
    if not folder.is_dir():
        _fetch(bucket, address, manifest, folder)
    used(folder.parent)
    return folder


def _fetch(bucket: StoreBucket, address: Address, manifest: dict[str, Any], folder: Path) -> None:
    stored = manifest.pop(STORED, {})
    digests = {safe_name(name, address.url): digest for name, digest in manifest_files(manifest).items()}
    found = {
        name: Stored(address.inside(stored.get(name, name)), int((digest or {}).get("bytes", 0)), "")
        for name, digest in digests.items()
    }
    if any(digest is None for digest in digests.values()):
        found = {name: bucket.about(one.address.key) for name, one in found.items()}
    prepare(sum(one.bytes for one in found.values()), folder)
    with atomic_folder(folder) as part:
        for name in found:
            (part / name).parent.mkdir(parents=True, exist_ok=True)
        fetch_files(bucket, {part / name: one for name, one in found.items()}, address.url)
        for name, digest in digests.items():
            if digest is not None and (held := file_digest(part / name)) != digest:
                raise UserError(
                    f"{found[name].address.url} is not what its manifest says (sha256 {held['sha256']}): it was changed in the store or "
                    "damaged on the way. Try again, or write the dataset there again"
                )
        (part / MANIFEST).write_text(manifest_text(manifest), encoding="utf-8")
