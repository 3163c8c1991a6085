"""Folders for temporary files that no killed process leaves behind for good."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.storage.files import file_lock

LOCK = "lock"


@contextmanager
def held_folder(stem: str, parent: str | Path | None = None) -> Iterator[Path]:
    """A new folder that vanishes when the block ends. parent: None: the system's place for temporary files. Those whose names begin with
    the stem, that are this user's and that no living process holds are removed: the system lets go of a killed one's lock. Anybody may
    put a folder or a link beside ours."""
    parent = Path(parent or tempfile.gettempdir())
    folder = Path(tempfile.mkdtemp(prefix=".mmpo-", dir=parent))
    for other in parent.glob(f"{stem}*"):
        with suppress(UserError, OSError):
            own = other.lstat().st_uid == folder.lstat().st_uid and not other.is_symlink()
            if own and (other / LOCK).exists():
                with file_lock(other / LOCK, "it is held"):
                    _remove(other)
    try:
        with file_lock(folder / LOCK, "it is held", optional=True):
            with suppress(PermissionError):  # where a folder with an open file keeps its name, as on Windows
                folder = folder.rename(
                    folder.with_name(f"{stem}{folder.name.removeprefix('.mmpo-')}")
                )  # held before it has the name
            yield folder
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a folder, the lock last: by that the next one finds what could not go, as where processes of Ray still write into it."""
    with suppress(OSError):
        for path in folder.iterdir():
            if path.name != LOCK:
                shutil.rmtree(path, ignore_errors=True)
                path.unlink(missing_ok=True)
        shutil.rmtree(folder)
