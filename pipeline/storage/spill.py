"""Spill files: FEEDBACK rows cut by the hash of their prompt, so that all grades of a prompt meet again, in bounded memory and linear disk.

Positions are the first 64 bits of prompt ids. They are cut evenly into shards, and each shard into cells. A run of rows is sorted by
position and appended to one file per process and shard, as a segment: an index of the cells that it has rows of, their grades, and apart
from these their texts, as compressed Arrow batches. Neighbouring cells are read back together up to a limit of bytes; a cell beyond that
is cut again by the positions that it holds, so that only the rows of one prompt have to fit into memory whatever their number.
"""

import json
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from itertools import count
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc as ipc

from mmpo.pipeline.arrow import LARGE_FEEDBACK, flat, lists, offsets_of
from mmpo.pipeline.tables import REPLY_KEYS, TOOLS

ID_DIGITS = 32
LEAST_BATCH_BYTES = 256 << 10
"""Of a run, a cell should have so much: a batch costs some KiB beside its rows."""
_GRADED = ("note", "probabilities")
_TEXTS = {"completions": ("text", *REPLY_KEYS), "ratings": _GRADED, "comparisons": _GRADED}
"""Fields that are stored apart from the grades, beside the columns `prompt`, `extra` and `tools`."""
_HEX = np.full(256, 255, dtype=np.uint8)
_HEX[np.frombuffer(b"0123456789abcdef", dtype=np.uint8)] = np.arange(16)
_DIGITS = np.frombuffer("".join(f"{byte:02x}" for byte in range(256)).encode(), dtype=np.uint16)
_HEAD = struct.Struct("<5q")
"""Of a segment: how many cells, bytes of the schema of grades, where texts begin behind the index, bytes of their schema, bytes in all."""
_ENTRY = np.dtype([(name, "<i8") for name in ("cell", "rows", "light", "bytes", "grades", "grades_end", "texts", "texts_end")])
"""Of a cell in a segment: bytes in memory without texts (light) and with them; where its two batches begin and end behind the index."""
_ONE = b"all"
"""Key of a field's metadata: the value that all rows of the segment have, as JSON."""
_again = count()


@dataclass(frozen=True)
class Extent:
    """Whole segments that stand one after the other in a file, from byte `start` to byte `end`."""

    path: Path
    start: int
    end: int


def joined_extents(extents: Sequence[Extent]) -> list[Extent]:
    """The same with those as one that follow each other in a file: how many there are depends on processes, not on rows."""
    found: dict[Path, list[Extent]] = {}
    for one in extents:
        mine = found.setdefault(one.path, [])
        if mine and mine[-1].end == one.start:
            one = Extent(one.path, mine.pop().start, one.end)
        mine.append(one)
    return [one for mine in found.values() for one in mine]


def positions_of(ids: pa.Array) -> np.ndarray:
    """Where prompts fall in [0, 2^64), shape (rows,): by the first digits of ids of 32 hex digits, and so in the order of these; of other
    ids by a hash."""
    packed = _packed_ids(ids)
    if pa.types.is_fixed_size_binary(packed.type):
        raw = np.frombuffer(packed.buffers()[1], dtype=np.uint8).reshape(-1, ID_DIGITS // 2)[: len(ids), :8]
        return np.ascontiguousarray(raw).view(">u8").reshape(-1).astype(np.uint64)
    own = (_position_of(one) for one in ids.to_pylist())
    return np.fromiter(own, dtype=np.uint64, count=len(ids))


def _position_of(name: str | None) -> int:
    raw = (name or "").encode()
    digits = _HEX[np.frombuffer(raw, dtype=np.uint8)]
    if len(raw) == ID_DIGITS and (digits < 16).all():
        return int(name[:16] if name else "0", 16)
    return int.from_bytes(blake2b(raw, digest_size=8).digest(), "big")


def even_bounds(parts: int) -> np.ndarray:
    """Where each of so many equal parts of all positions begins, shape (parts,)."""
    return np.array([(part << 64) // parts for part in range(parts)], dtype=np.uint64)


def write_spill(table: pa.Table, folder: Path, shards: int, cells: int) -> dict[int, Extent]:
    """Append a FEEDBACK table (64-bit text offsets) to this process's spill files in the folder, each shard cut into so many cells.

    Returns, by shard, where its rows stand now. Files of other processes are not touched.
    """
    positions = positions_of(flat(table["prompt_id"]))
    order = np.argsort(positions, kind="stable")
    edges = np.append(np.searchsorted(positions[order], even_bounds(shards * cells)), len(order))
    run, found = _PackedRun.of(table), {}
    for shard in range(shards):
        own = edges[shard * cells : (shard + 1) * cells + 1]
        if own[-1] > own[0]:
            path = folder / f"{shard:05d}-{socket.gethostname()}-{os.getpid()}.spill"
            found[shard] = run.append(order[own[0] : own[-1]], own - own[0], path)
    return found


class _PackedRun(NamedTuple):
    """Both halves of rows as they are stored. expansion: bytes in memory without texts over those of the grades here: what is stored once,
    or as nothing, is many in memory."""

    grades: pa.RecordBatch
    texts: pa.RecordBatch
    expansion: float

    @classmethod
    def of(cls, table: pa.Table) -> "_PackedRun":
        grades, texts = _halves(table)
        return cls(grades, texts, (table.nbytes - texts.nbytes) / max(grades.nbytes, 1))

    def append(self, rows: np.ndarray, edges: np.ndarray, path: Path) -> Extent:
        """Write a segment of these rows, sorted by their cells. edges: where each cell begins among them, and the last one ends."""
        held = np.flatnonzero(np.diff(edges))
        entries = np.zeros(len(held), dtype=_ENTRY)
        entries["cell"], entries["rows"] = held, np.diff(edges)[held]
        parts, schemas, at = [], [], 0
        for name, end, half in (("grades", "grades_end", self.grades), ("texts", "texts_end", self.texts)):
            batch, sink = half.take(pa.array(rows)), pa.BufferOutputStream()
            schemas += [at, len(batch.schema.serialize())]
            with ipc.new_stream(sink, batch.schema, options=ipc.IpcWriteOptions(compression="lz4", use_threads=False)) as writer:
                for entry, low in zip(entries, edges[held].tolist(), strict=True):
                    piece = batch.slice(low, int(entry["rows"]))
                    entry[name] = at + (sink.tell() or schemas[-1])
                    writer.write_batch(piece)
                    entry[end] = at + sink.tell()
                    entry["bytes"] += piece.nbytes * (self.expansion if name == "grades" else 1)
                    entry["light"] += piece.nbytes * self.expansion if name == "grades" else 0
            parts.append(sink.getvalue())
            at += parts[-1].size
        with open(path, "ab") as file:
            start = file.tell()
            for part in (_HEAD.pack(len(held), *schemas[1:], at), entries.tobytes(), *parts):
                file.write(part)
            return Extent(path, start, file.tell())


class _Segment:
    """A segment of an open spill file."""

    def __init__(self, file: BinaryIO, at: int) -> None:
        file.seek(at)
        cells, grades, texts, texts_schema, size = _HEAD.unpack(file.read(_HEAD.size))
        self.file = file
        self.entries = np.frombuffer(file.read(cells * _ENTRY.itemsize), dtype=_ENTRY)
        self.data = at + _HEAD.size + self.entries.nbytes
        self.end = self.data + size
        self.schemas = {"grades": self._read(0, grades).to_pybytes(), "texts": self._read(texts, texts + texts_schema).to_pybytes()}

    def _read(self, start: int, end: int) -> pa.Buffer:
        self.file.seek(self.data + start)
        return pa.py_buffer(self.file.read(end - start))

    def batches(self, half: str, entries: np.ndarray) -> list[pa.RecordBatch]:
        """The batches of entries that follow one another. half: "grades" or "texts"."""
        start, schema = int(entries[half][0]), ipc.read_schema(pa.py_buffer(self.schemas[half]))
        raw = self._read(start, int(entries[f"{half}_end"][-1]))
        bounds = zip((entries[half] - start).tolist(), (entries[f"{half}_end"] - start).tolist(), strict=True)
        return [ipc.read_record_batch(raw.slice(low, high - low), schema) for low, high in bounds]


def read_spills(spills: Sequence[Sequence[Extent]], limit: int, scratch: Path, *, texts: bool = True) -> Iterator[list[pa.Table]]:
    """All rows of a shard in groups of whole prompts, by ascending positions: of each source the FEEDBACK table of a group, rows unsorted.

    spills: of every source, what it spilled of the shard. limit: bytes in memory that a group may have; one prompt may have more. scratch:
    a folder for what is cut again. texts: False leaves texts on disk: ids stand in the place of replies, and prompts are empty.
    """
    with ExitStack() as stack:
        files = {one.path: stack.enter_context(open(one.path, "rb")) for extents in spills for one in extents}
        sources = [[segment for one in extents for segment in _segments(files[one.path], one)] for extents in spills]
        entries = np.concatenate([np.zeros(0, _ENTRY), *(segment.entries for segments in sources for segment in segments)])
        cells, place = np.unique(entries["cell"], return_inverse=True)
        sizes = np.bincount(place, entries["bytes" if texts else "light"])
        for low, high in groups_within(sizes, limit):
            found = [[_within(segment, cells[low], cells[high - 1]) for segment in segments] for segments in sources]
            if sizes[low] > limit and (bounds := _finer_bounds(found, limit, texts)) is not None:
                with _cut_again(found, bounds, limit, scratch, texts) as again:
                    yield from read_spills(again, limit, scratch, texts=texts)
                continue
            yield [_table(own, texts) for own in found]


Held = list[tuple[_Segment, np.ndarray]]
"""Of a source: segments, each with the entries that are read of it."""


def _segments(file: BinaryIO, extent: Extent) -> Iterator[_Segment]:
    at = extent.start
    while at < extent.end:
        segment = _Segment(file, at)
        yield segment
        at = segment.end


def _within(segment: _Segment, first: int, last: int) -> tuple[_Segment, np.ndarray]:
    low, high = np.searchsorted(segment.entries["cell"], (first, last + 1))
    return segment, segment.entries[low:high]


def groups_within(sizes: np.ndarray, limit: float) -> Iterator[tuple[int, int]]:
    """Neighbours that have at most `limit` together, as (first, behind the last); what is larger stands alone.

    >>> list(groups_within(np.array([3, 4, 9, 1, 1]), 7))
    [(0, 2), (2, 3), (3, 5)]
    """
    ends, start = np.cumsum(sizes), 0
    while start < len(sizes):
        before = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, before + limit, side="right")), start + 1)
        yield start, stop
        start = stop


def _table(held: Held, texts: bool) -> pa.Table:
    """The rows of a source; batches of one layout are joined before they get the columns of FEEDBACK."""
    layouts: dict[tuple[bytes, bytes], tuple[list[pa.RecordBatch], list[pa.RecordBatch]]] = {}
    for segment, entries in held:
        if len(entries):
            key = segment.schemas["grades"], segment.schemas["texts"] if texts else b""
            grades, more = layouts.setdefault(key, ([], []))
            grades += segment.batches("grades", entries)
            more += segment.batches("texts", entries) if texts else []
    found = []
    for grades, more in layouts.values():
        halves = [pa.Table.from_batches(some).combine_chunks() for some in (grades, more) if some]
        grades.clear()
        more.clear()
        found.append(_whole(*halves))
    if len(found) == 1:  # as nearly always: all of it would be copied
        return found[0]
    return pa.concat_tables([LARGE_FEEDBACK.empty_table(), *found]).combine_chunks()


def _finer_bounds(sources: Sequence[Held], limit: int, texts: bool) -> np.ndarray | None:
    """Positions at which rows are to be cut so that no part has more bytes than the limit, but for one position's; None: they have one."""
    positions, weights = [np.zeros(0, np.uint64)], [np.zeros(0)]
    for segment, entries in (one for held in sources for one in held if len(one[1])):
        for entry, batch in zip(entries, segment.batches("grades", entries), strict=True):
            positions.append(positions_of(_unpacked_ids(batch.column("prompt_id"))))
            weights.append(np.full(batch.num_rows, entry["bytes" if texts else "light"] / batch.num_rows))
    distinct, place = np.unique(np.concatenate(positions), return_inverse=True)
    sizes = np.bincount(place, np.concatenate(weights))
    return distinct[[low for low, _ in groups_within(sizes, limit)]] if len(distinct) > 1 else None


@contextmanager
def _cut_again(sources: Sequence[Held], bounds: np.ndarray, limit: int, scratch: Path, texts: bool) -> Iterator[list[list[Extent]]]:
    """The rows of all sources spilled anew, cut at these bounds, into files of their own that go when the block ends."""
    stem = f"again-{socket.gethostname()}-{os.getpid()}-{next(_again)}"
    paths = [scratch / f"{stem}-{number}.spill" for number in range(len(sources))]
    try:
        yield [joined_extents(list(_spilled_again(*one, bounds, limit, texts))) for one in zip(sources, paths, strict=True)]
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


def _spilled_again(held: Held, path: Path, bounds: np.ndarray, limit: int, texts: bool) -> Iterator[Extent]:
    singles = [(segment, entries[at : at + 1]) for segment, entries in held for at in range(len(entries))]
    sizes = np.array([entry["bytes"][0] for _, entry in singles])
    for low, high in groups_within(sizes, limit):
        rows = _table(singles[low:high], texts)
        positions = positions_of(flat(rows["prompt_id"]))
        order = np.argsort(positions, kind="stable")
        edges = np.append(np.searchsorted(positions[order], bounds), len(order))
        yield _PackedRun.of(rows).append(order, edges, path)


def _packed_ids(ids: pa.Array) -> pa.Array:
    """Ids of 32 hex digits in 16 bytes each; others as they are."""
    ids = ids.cast(pa.string())
    if not len(ids) or ids.null_count:
        return ids
    ends = np.frombuffer(ids.buffers()[1], dtype=np.int32)[ids.offset : ids.offset + len(ids) + 1]
    if (np.diff(ends) != ID_DIGITS).any():
        return ids
    digits = _HEX[np.frombuffer(ids.buffers()[2], dtype=np.uint8)[ends[0] : ends[-1]]]
    if digits.max() > 15:
        return ids
    packed = digits[::2] << 4 | digits[1::2]
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(ID_DIGITS // 2), len(ids), [None, pa.py_buffer(packed)])


def _unpacked_ids(ids: pa.Array) -> pa.Array:
    """What `_packed_ids` packed."""
    if not pa.types.is_fixed_size_binary(ids.type):
        return ids
    width = ID_DIGITS // 2
    raw = np.frombuffer(ids.buffers()[1], dtype=np.uint8)[ids.offset * width : (ids.offset + len(ids)) * width]
    ends = np.arange(len(ids) + 1, dtype=np.int32) * ID_DIGITS
    return pa.StringArray.from_buffers(len(ids), pa.py_buffer(ends), pa.py_buffer(_DIGITS[raw]))


def _halves(table: pa.Table) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """The grades of a FEEDBACK table and its texts, row by row: without what is null everywhere, a value that all have once, in the schema,
    and lists that all have one value as these."""
    halves: tuple[list[tuple[pa.Array, pa.Field]], list[tuple[pa.Array, pa.Field]]] = ([], [])
    for field in LARGE_FEEDBACK:
        column = flat(table[field.name])
        if not pa.types.is_list(field.type):
            halves[field.name in ("extra", TOOLS)].append(_packed(field.name, column))
            continue
        inner, offsets = column.flatten(), offsets_of(column)
        apart = _TEXTS.get(field.name, [one.name for one in field.type.value_type])
        for half, texts in zip(halves, (False, True), strict=True):
            own = [_packed(one.name, inner.field(one.name)) for one in field.type.value_type if (one.name in apart) == texts]
            if any(one.metadata or not pa.types.is_null(one.type) for _, one in own):
                values = pa.StructArray.from_arrays([array for array, _ in own], fields=[one for _, one in own])
                packed = values if (np.diff(offsets) == 1).all() else lists(offsets[:-1], values)
                half.append((packed, pa.field(field.name, packed.type)))
    grades, texts = (
        pa.RecordBatch.from_arrays([array for array, _ in half], schema=pa.schema([one for _, one in half])) for half in halves
    )
    return grades, texts


def _packed(name: str, values: pa.Array) -> tuple[pa.Array, pa.Field]:
    if values.null_count == len(values):
        values = pa.nulls(len(values))
    elif name in ("id", "prompt_id"):
        values = _packed_ids(values)
    elif not values.null_count and not pa.types.is_nested(values.type) and _all_one(values):
        return pa.nulls(len(values)), pa.field(name, pa.null(), metadata={_ONE: json.dumps(values[0].as_py())})
    return values, pa.field(name, values.type)


def _all_one(values: pa.Array) -> bool:
    """Whether all values are the first one; 0.0 is left alone, which -0.0 equals."""
    if not values[0].equals(values[-1]):
        return False
    return bool(pc.all(pc.equal(values, values[0])).as_py()) and not (pa.types.is_floating(values.type) and values[0].as_py() == 0)


def _whole(grades: pa.Table, texts: pa.Table | None = None) -> pa.Table:
    """The FEEDBACK table that `_halves` cut; without its texts as `arrow.without_texts` leaves it."""
    halves = [half for half in (grades, texts) if half is not None]
    columns = []
    for field in LARGE_FEEDBACK:
        found = [(flat(half[field.name]), half.schema.field(field.name)) for half in halves if field.name in half.column_names]
        if not pa.types.is_list(field.type):
            columns.append(_unpacked(*(found or [(None, None)])[0], field.type, grades.num_rows))
            continue
        inner = [column.flatten() if pa.types.is_list(column.type) else column for column, _ in found]
        parts = {one.name: (values.field(one.name), one) for values in inner for one in values.type} if inner else {}
        if texts is None and field.name == "completions" and inner:
            parts["text"] = parts["id"]
        size, own = len(inner[0]) if inner else 0, list(field.type.value_type)
        values = [_unpacked(*parts.get(one.name, (None, None)), one.type, size) for one in own]
        listed = found and pa.types.is_list(found[0][0].type)
        starts = offsets_of(found[0][0])[:-1] if listed else np.arange(size) if found else np.zeros(grades.num_rows, dtype=np.int64)
        columns.append(lists(starts, pa.StructArray.from_arrays(values, fields=own)).cast(field.type))
    return pa.Table.from_arrays(columns, schema=LARGE_FEEDBACK)


def _unpacked(values: pa.Array | None, field: pa.Field | None, kind: pa.DataType, size: int) -> pa.Array:
    if values is None or field is None or pa.types.is_null(values.type):
        one = (field.metadata or {}).get(_ONE) if field is not None else None
        return pa.nulls(size, kind) if one is None else pa.repeat(pa.scalar(json.loads(one), kind), size)
    return _unpacked_ids(values).cast(kind)


class SpillPlan(NamedTuple):
    """How rows are spilled and read back. folder: for the files; shards: fixed by the input, so that the dataset is; cells: of each;
    run, group: bytes in memory of rows that are written, and that are read, together."""

    folder: Path
    shards: int
    cells: int
    run: int
    group: int
