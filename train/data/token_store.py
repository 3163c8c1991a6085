"""Token ids kept beside a dataset, in PATH.tokens/KEY: rendered once for a tokenizer, a template, limits and texts, by whichever process
comes first; the others, and the runs that follow, map them into their memory.

A key's folder is whole or not there. Where nothing can be written beside the dataset every process renders for itself.
"""

import json
import os
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmpo.pipeline.storage import atomic_folder, file_lock, is_leftover
from mmpo.train.data.render import Rendered, Renderer
from mmpo.train.data.rendering import Names, conversations
from mmpo.train.messages import warn

VERSION = 1
"""Of the layout, and of what is rendered from a text; a change of either must raise it."""
KEPT = 6
"""Keys that a dataset keeps; those that were not used for longest go."""
LOCK_SECONDS = 24 * 3600.0
IDS, ROWS, ABOUT = "ids.bin", "rows.npy", "about.json"
_ROW = np.dtype([("begin", np.int64), ("length", np.int32), ("start", np.int32), ("truncated", np.bool_), ("same", "V8")])
"""A completion: where its ids begin and how many they are, 0 where it was left out; as `Rendered` says; and the blake2b-64 of its ids."""
_SAID = ("prompts", "completions", "trimmed", "too_long", "first_refusal")
"""Of a Renderer, with its counts and the roles it did not write: what is said of what it changed or dropped."""


@dataclass(frozen=True)
class TokenStore:
    """Where the ids of a split are kept. data: a dataset folder or a Parquet file; files: its parts; tokenizer: the digest of what decides
    which ids a text gets, the chat template apart."""

    data: Path
    files: tuple[Path, ...]
    tokenizer: str

    @property
    def folder(self) -> Path:
        """Beside the dataset."""
        whole = Path(os.path.abspath(self.data))
        return whole.with_name(f"{whole.name}.tokens")

    def key(self, names: Names, renderer: Renderer) -> str:
        """32 hexadecimal digits, of all that the ids depend on."""
        seen = [(file.name, (about := file.stat()).st_size, about.st_mtime_ns) for file in self.files]
        packages = [version(name) for name in ("mmpo", "transformers", "tokenizers")]
        limits = [renderer.max_length, renderer.max_prompt_length, renderer.thinking, renderer.graded_part]
        written = [self.tokenizer, renderer.tokenizer.get_chat_template(), *limits]
        whole = blake2b(json.dumps([VERSION, packages, written, seen]).encode(), digest_size=16)
        for array in (names.prompts, names.completions):
            for buffer in array.buffers()[1:]:
                whole.update(buffer or b"")
        return whole.hexdigest()


@dataclass(frozen=True)
class TokenIds:
    """items: the completions of `Names`, None where one was left out; same: a number for each, the same for the same ids; written: whether
    their prompt was, (prompts,); largest: the largest token id of all of them."""

    items: list[Rendered | None]
    same: np.ndarray
    written: np.ndarray
    largest: int


def completions_of(
    names: Names, batches: Callable[[], Iterable[pa.Table]], renderer: Renderer, store: TokenStore | None = None
) -> TokenIds:
    """All completions of `names` rendered, with the renderer's counts; read from the store where it has them, else kept there."""
    if store is None:
        return _in_memory(names, batches(), renderer)
    place = store.folder / store.key(names, renderer)
    try:
        store.folder.mkdir(exist_ok=True)
        with file_lock(store.folder / ".lock", f"{store.folder} is being written by another process", seconds=LOCK_SECONDS):
            if (found := _read(place, renderer)) is not None:
                return found
            with atomic_folder(place) as folder:
                _write(folder, names, batches(), renderer)
            _forget(store.folder)
            found = _read(place, None)
    except OSError as error:
        warn([f"token ids are not kept in {store.folder} ({error.strerror or error}): every run reads and renders the texts again"])
        renderer.reset()
        return _in_memory(names, batches(), renderer)
    if found is None:
        raise RuntimeError(f"{place} was written and can't be read")
    return found


def _in_memory(names: Names, batches: Iterable[pa.Table], renderer: Renderer) -> TokenIds:
    items: list[Rendered | None] = [None] * len(names.completions)
    written = np.zeros(len(names.prompts), dtype=bool)
    for number, places, rendered in conversations(batches, names, renderer):
        written[number] = rendered is not None
        for place, item in zip(places, rendered or (), strict=False):
            items[place] = item
    same = np.array([b"" if item is None else _digest(item.ids.tobytes()) for item in items], dtype="V8")
    return TokenIds(items, same, written, max((int(item.ids.max()) for item in items if item is not None), default=0))


def _write(folder: Path, names: Names, batches: Iterable[pa.Table], renderer: Renderer) -> None:
    rows = np.zeros(len(names.completions), dtype=_ROW)
    written, begin, check = np.zeros(len(names.prompts), dtype=bool), 0, 0
    largest = 0
    with open(folder / IDS, "wb", buffering=1 << 20) as file:
        for number, places, rendered in conversations(batches, names, renderer):
            written[number] = rendered is not None
            for place, item in zip(places, rendered or (), strict=False):
                if item is None:
                    continue
                data = item.ids.astype("<i4").tobytes()
                file.write(data)
                check, largest = zlib.crc32(data, check), max(largest, int(item.ids.max()))
                rows[place] = (begin, len(item.ids), item.start, item.truncated, _digest(data))
                begin += len(item.ids)
    np.save(folder / ROWS, rows)
    about = {name: getattr(renderer, name) for name in _SAID} | {"counts": renderer.counts, "unwritten": sorted(renderer.unwritten)}
    about |= {
        "tokens": begin,
        "checksum": check,
        "rows": zlib.crc32(rows.tobytes()),
        "written": np.packbits(written).tobytes().hex(),
    }
    (folder / ABOUT).write_text(json.dumps(about | {"of": len(written), "largest": largest}), encoding="utf-8")


def _read(place: Path, renderer: Renderer | None) -> TokenIds | None:
    """What a key's folder holds, None where there is none or it is damaged; the renderer then says what it said when it wrote it."""
    try:
        about: dict[str, Any] = json.loads((place / ABOUT).read_text(encoding="utf-8"))
        rows = np.load(place / ROWS, allow_pickle=False)
        if _checksum(place / IDS) != about["checksum"] or rows.dtype != _ROW or zlib.crc32(rows.tobytes()) != about["rows"]:
            raise ValueError("its bytes have changed")
        ids = np.asarray(np.memmap(place / IDS, dtype="<i4", mode="r")) if about["tokens"] else np.zeros(0, np.int32)
        places = rows.tolist()
        items = [Rendered(ids[at : at + length], start, cut) if length else None for at, length, start, cut, _ in places]
        written = np.unpackbits(np.frombuffer(bytes.fromhex(about["written"]), np.uint8), count=about["of"]).astype(bool)
        found = TokenIds(items, rows["same"], written, about["largest"])
        if renderer is not None:
            renderer.counts, renderer.unwritten = Counter(about["counts"]), set(about["unwritten"])
            for name in _SAID:
                setattr(renderer, name, about[name])
        os.utime(place / ABOUT)
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        warn([f"{place} can't be used ({error}): the texts are rendered again"])
        shutil.rmtree(place, ignore_errors=True)
        return None
    return found


def _digest(ids: bytes) -> bytes:
    return blake2b(ids, digest_size=8).digest()


def _checksum(path: Path) -> int:
    found = 0
    with open(path, "rb") as file:
        while data := file.read(1 << 20):
            found = zlib.crc32(data, found)
    return found


def _forget(folder: Path) -> None:
    """Of all keys the newest are left, and nothing of processes that were killed while they wrote another."""
    keys = sorted(folder.glob(f"*/{ABOUT}"), key=lambda path: path.stat().st_mtime, reverse=True)
    killed = [path for path in folder.glob(".*.part-*") if is_leftover(path, folder / path.name[1:].partition(".part-")[0])]
    for path in [*(key.parent for key in keys[KEPT:]), *killed]:
        shutil.rmtree(path, ignore_errors=True)
