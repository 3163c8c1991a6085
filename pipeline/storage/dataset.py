"""The dataset folder: written whole or not at all, with a manifest, a Hugging Face dataset card and everything that was dropped."""

import ctypes
import errno
import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.tables import METADATA_KEY, SCHEMA_VERSION, SPLITS

__all__ = ["MANIFEST", "PartWriter", "card", "check_out", "read_manifest", "replacing", "split_files", "write_manifest"]

MANIFEST = "manifest.json"
ROW_GROUPS_PER_FILE = 8
STATISTICS = ["prompt_id", "quality_margin", "margin_se", "score_chosen", "score_rejected", "preferring", "raters"]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a dataset folder. Raises UserError where there is none or it is of another schema version."""
    path = folder / MANIFEST
    if not folder.is_dir():
        raise UserError(f"no such dataset folder: {folder}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{folder} has no {MANIFEST}: it is no dataset of mmpo; `mmpo build` writes one") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("schema_version") != SCHEMA_VERSION:
        version = manifest.get("schema_version") if isinstance(manifest, dict) else None
        raise UserError(f"{folder}: schema version {version!r}; this mmpo reads {SCHEMA_VERSION}. Build the dataset again")
    return manifest


def check_out(out: Path) -> None:
    """Refuse an output folder that exists and holds anything that we did not write. Raises UserError."""
    if not out.exists() and not out.is_symlink():
        parent = out.absolute().parent
        while not parent.exists():
            parent = parent.parent
        if not parent.is_dir():
            raise UserError(f"--out {out}: {parent} is a file, no folder")
        return
    if not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder that does not exist yet")
    inside = sorted(path.name for path in out.iterdir())
    if not inside:
        return
    if MANIFEST not in inside:
        raise UserError(
            f"--out {out} exists and holds something else ({', '.join(inside[:3])}); name another folder or move it away"
        )
    manifest = read_manifest(out)
    foreign = sorted(set(inside) - {str(name).split("/")[0] for name in manifest.get("files", [])} - {MANIFEST})
    if foreign:
        raise UserError(
            f"--out {out} is a dataset but also holds {', '.join(foreign[:3])}, which mmpo did not write; move that away"
        )


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A temporary sibling of `out` that takes its place when the block ends well, in one step, and vanishes when it does not.

    Killed at any moment, either the old folder stands or the new one. Left-overs of killed builds are cleaned up here.
    """
    check_out(out)
    out = out.absolute()
    temporary = out.parent / f".{out.name}.building-{socket.gethostname()}-{os.getpid()}"
    try:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(out)
            temporary.mkdir()  # inside, so that an interrupt right behind it removes it again
        except OSError as error:
            raise UserError(f"--out {out}: can't be written: {error.strerror or error}") from error
        yield temporary
        _take_place(temporary, out)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"--out {out}: the disk is full; nothing was written. Free some space and run it again") from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_leftovers(out: Path) -> None:
    """Remove the temporary folders of builds of `out` on this machine whose process is gone."""
    prefix = f".{out.name}.building-{socket.gethostname()}-"
    for path in out.parent.glob(f".{out.name}.building-*"):
        number = path.name.removeprefix(prefix)
        if path.name.startswith(prefix) and number.isdigit() and not _alive(int(number)):
            shutil.rmtree(path, ignore_errors=True)


def _alive(process: int) -> bool:
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _take_place(temporary: Path, out: Path) -> None:
    if not out.exists() or not any(out.iterdir()):
        os.rename(temporary, out)  # onto an empty folder, too, this is one step
        return
    if _exchange(temporary, out):
        return
    # Without an atomic exchange (not Linux) there is a moment with no folder at all, never one with half of it.
    old = temporary.with_name(temporary.name + "-old")
    os.rename(out, old)
    os.rename(temporary, out)
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step (Linux renameat2 with RENAME_EXCHANGE); False where the system has no such call."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    at_cwd, exchange = -100, 2
    return rename is not None and rename(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchange) == 0


class PartWriter:
    """Parquet files of one split, a row group a table, a new file every eight row groups (about 512 MiB before compression)."""

    def __init__(self, folder: Path, prefix: str, metadata: Mapping[str, Any]) -> None:
        self.folder = folder
        self.prefix = prefix
        self.metadata = {"schema_version": SCHEMA_VERSION, **metadata}
        self.paths: list[Path] = []
        self._writer: pq.ParquetWriter | None = None
        self._groups = 0

    def write(self, table: pa.Table) -> None:
        """Append the table as one row group.

        A dictionary of up to 64 MiB, not 1: texts that occur in many pairs are compressed and stored once a row group.
        """
        if not table.num_rows:
            return
        if self._writer is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"{self.prefix}-{len(self.paths):05d}.parquet"
            self.paths.append(path)
            self._writer = pq.ParquetWriter(
                path,
                table.schema.remove_metadata(),
                compression="zstd",
                store_schema=False,
                dictionary_pagesize_limit=64 << 20,
                write_statistics=[name for name in STATISTICS if name in table.column_names],
            )
            self._groups = 0
        self._writer.write_table(table, row_group_size=table.num_rows)
        self._groups += 1
        if self._groups >= ROW_GROUPS_PER_FILE:
            self.close()

    def close(self) -> None:
        """Finish the current file."""
        if self._writer is not None:
            self._writer.add_key_value_metadata({METADATA_KEY: json.dumps(self.metadata, ensure_ascii=False).encode()})
            self._writer.close()
            self._writer = None


def split_files(folder: Path, split: str) -> list[Path]:
    """The Parquet files of a split, in order; empty where there is none."""
    return sorted((folder / split).glob("*.parquet"))


def write_manifest(folder: Path, values: Mapping[str, Any]) -> None:
    """Write manifest.json with the schema version, the given values and the list of the folder's files."""
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    text = json.dumps({"schema_version": SCHEMA_VERSION, **values, "files": files}, ensure_ascii=False, indent=2)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def card(splits: Sequence[str], counts: Mapping[str, int], recipe: Mapping[str, Any], *, feedback: bool = False) -> str:
    """The README.md of a dataset folder: a Hugging Face dataset card whose head lists the splits."""
    names = splits or SPLITS[:1]
    head = ["---", "configs:", "- config_name: default", "  data_files:"]
    for name in names:
        head += [f"  - split: {'train' if feedback else name}", f"    path: {name}/*.parquet"]
    head += ["tags:", "- preference", "- margins", "- mmpo", "---", ""]
    what = "Graded feedback, one row a prompt" if feedback else "Preference pairs with quality margins"
    body = [
        f"# {what}",
        "",
        "Made with `mmpo`. Columns: see the data contract of mmpo; `quality_margin` says how much better the chosen reply is."
        if not feedback
        else "Made with `mmpo`: candidate replies and every grade that they were given.",
        "",
        "| split | rows |",
        "|---|---|",
        *(f"| {name} | {counts.get(name, 0):,} |" for name in names),
        "",
        "```json",
        json.dumps(recipe, ensure_ascii=True, indent=2, default=str),
        "```",
        "",
    ]
    return "\n".join(head + body)
