"""Where what was fetched from object stores is kept on this machine, and fetching it side by side."""

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.progress import ProgressReporter, say
from mmpo.pipeline.storage.objects.client import THREADS, StoreBucket, Stored
from mmpo.pipeline.storage.objects.threads import side_by_side

KEPT_DAYS = 30
"""What was not used for so long is removed when something new is fetched."""
SPARE_BYTES = 64 << 20


def cache_folder(what: str) -> Path:
    """A folder of this name in the one that MMPO_CACHE names, else in the user's cache folder (XDG_CACHE_HOME or ~/.cache)."""
    given = os.environ.get("MMPO_CACHE")
    if given:
        return Path(given) / what
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmpo" / what
    except RuntimeError as error:
        raise UserError("no home folder to keep what is computed or fetched in: set MMPO_CACHE") from error


def fetch_files(bucket: StoreBucket, files: dict[Path, Stored], shown: str, most: int | None = None) -> None:
    """Fetch objects into files, all blocks side by side, with progress, and say how much it was."""
    total, done = sum(one.bytes if most is None else min(most, one.bytes) for one in files.values()), 0
    with ProgressReporter("fetching", "bytes") as progress:

        def on_bytes(count: int) -> None:
            nonlocal done
            done += count
            progress(shown, done, total)

        side_by_side([work for path, one in files.items() for work in bucket.blocks(one, path, on_bytes, most)], THREADS)
    what = f"{len(files):,} objects" if len(files) > 1 else "one object"
    say(f"fetched {what}, {total:,} bytes, of {shown} into {cache_folder('')}")


def prepare(needed: int, place: Path) -> None:
    """Make room for so many bytes in the cache. Raises UserError where the disk does not have them."""
    root = cache_folder("")
    for what in ("inputs", "datasets"):
        for entry in (root / what).glob("*"):
            if time.time() - entry.stat().st_mtime > KEPT_DAYS * 86_400:
                shutil.rmtree(entry, ignore_errors=True)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(place.parent).free
    except OSError as error:
        raise UserError(
            f"{root}: what is fetched can't be kept there ({error.strerror}); name another folder in MMPO_CACHE"
        ) from error
    if free < needed + SPARE_BYTES:
        raise UserError(
            f"{root}: {needed:,} bytes are to be fetched, and the disk has {free:,} free; free some, or name a folder on another disk in "
            "MMPO_CACHE"
        )


def used(entry: Path) -> None:
    """What is in the cache was used just now."""
    with suppress(OSError):  # somebody else's, which is read only
        os.utime(entry)
