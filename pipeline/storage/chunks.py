"""Files into rows: a plan of chunks that can be read anywhere and in any order, and the rows of one chunk.

Reads JSON lines and arrays, CSV (these three also as .gz and .zst), Parquet and Arrow.
"""

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.storage.csv_rows import csv_rows
from mmpo.pipeline.storage.decompress import BOM, COMPRESSIONS, lines
from mmpo.pipeline.storage.inputs import InputFile
from mmpo.pipeline.storage.json_rows import OnReject, array_rows, holds_array, line_rows

BATCH_ROWS = 1024


@dataclass(frozen=True)
class Chunk:
    """A part of a file that is read on its own; picklable.

    kind: lines (a byte range of JSON lines), stream (compressed JSON lines), array, csv, parquet (row group) or arrow.
    offset, length: bytes for `lines`; the row group's index and its rows for `parquet`; else 0 and the file's size.
    first_row: the 1-based number of the first line or row in the file. size: about how many bytes it has on disk.
    """

    file: InputFile
    kind: str
    offset: int
    length: int
    first_row: int
    size: int

    @property
    def name(self) -> str:
        """The file's name, for messages and rejects."""
        return self.file.name

    @property
    def first(self) -> bool:
        """Whether this is the file's first chunk, on whose first rows the columns are checked."""
        return self.first_row == 1


def plan(files: Sequence[InputFile], chunk_bytes: int = 16 << 20) -> list[Chunk]:
    """The chunks of the files, in order: plain JSON lines cut at newlines, Parquet by row groups, all else whole.

    Raises UserError where a file can't be opened or its footer is damaged.
    """
    chunks: list[Chunk] = []
    for file in files:
        try:
            size = Path(file.path).stat().st_size
            if file.kind == "parquet":
                chunks += _row_groups(file, size)
            elif file.kind == "json" and holds_array(file.path):
                chunks.append(Chunk(file, "array", 0, size, 1, size))
            elif file.kind == "json" and Path(file.path).suffix.lower() not in COMPRESSIONS:
                chunks += _line_ranges(file, chunk_bytes)
            else:
                kind = {"json": "stream"}.get(file.kind, file.kind)
                chunks.append(Chunk(file, kind, 0, size, 1, size))
        except OSError as error:
            raise UserError(f"{file.name}: can't be read: {error.strerror or error}") from error
    return chunks


def _line_ranges(file: InputFile, chunk_bytes: int) -> Iterator[Chunk]:
    """Byte ranges that end behind a newline, and the numbers of their first lines (so the file is read once)."""
    with open(file.path, "rb") as raw:
        size = raw.seek(0, 2)
        if not size:
            return
        with mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as content:
            start, row = 0, 1
            while start < size:
                end = content.find(b"\n", min(start + max(chunk_bytes, 1), size) - 1) + 1 or size
                yield Chunk(file, "lines", start, end - start, row, end - start)
                if end < size:
                    row += _newlines(content, start, end)
                start = end


def _newlines(content: mmap.mmap, start: int, end: int) -> int:
    step = 1 << 24
    return sum(content[at : min(at + step, end)].count(b"\n") for at in range(start, end, step))


def _row_groups(file: InputFile, size: int) -> Iterator[Chunk]:
    try:
        with pq.ParquetFile(file.path) as parquet:
            groups = [parquet.metadata.row_group(i).num_rows for i in range(parquet.metadata.num_row_groups)]
    except (pa.ArrowInvalid, OSError) as error:
        raise _damaged(file, error) from error
    row = 1
    for index, count in enumerate(groups):
        yield Chunk(file, "parquet", index, count, row, size // len(groups))
        row += count


def rows(chunk: Chunk, on_reject: OnReject) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a chunk, each with its 1-based number: the line (JSON lines, CSV) or the row in its file.

    A row that can't be read goes to on_reject(number, reason, evidence) and costs nothing else.
    Raises UserError naming the file where it is truncated or damaged.
    """
    path = chunk.file.path
    if chunk.kind == "lines":
        return line_rows(_range(chunk), chunk.first_row, on_reject)
    if chunk.kind == "stream":
        return line_rows(lines(path), 1, on_reject)
    if chunk.kind == "array":
        return array_rows(path, on_reject)
    if chunk.kind == "csv":
        return csv_rows(path, on_reject)
    return _table_rows(chunk)


def _range(chunk: Chunk) -> list[bytes]:
    try:
        with open(chunk.file.path, "rb") as raw:
            raw.seek(chunk.offset)
            content = raw.read(chunk.length)
    except OSError as error:
        raise UserError(f"{chunk.name}: can't be read: {error.strerror or error}") from error
    return (content.removeprefix(BOM) if chunk.offset == 0 else content).split(b"\n")


def _table_rows(chunk: Chunk) -> Iterator[tuple[int, dict[str, Any]]]:
    number = chunk.first_row
    for batch in _batches(chunk):
        for row in batch.to_pylist():
            yield number, row
            number += 1


def table(chunk: Chunk) -> pa.Table:
    """A chunk of Parquet or Arrow as a table. Raises UserError where the file is truncated or damaged."""
    batches = list(_batches(chunk))
    return pa.Table.from_batches(batches) if batches else _schema(chunk).empty_table()


def _batches(chunk: Chunk) -> Iterator[pa.RecordBatch]:
    try:
        if chunk.kind == "parquet":
            with pq.ParquetFile(chunk.file.path) as parquet:
                yield from parquet.iter_batches(batch_size=BATCH_ROWS, row_groups=[chunk.offset])
            return
        with pa.memory_map(chunk.file.path) as source:
            # `datasets` writes streams, Feather and others files.
            if source.read(6) == b"ARROW1":
                reader = pa.ipc.open_file(source)
                found = (reader.get_batch(i) for i in range(reader.num_record_batches))
            else:
                source.seek(0)
                found = iter(pa.ipc.open_stream(source))
            for batch in found:
                yield from (batch.slice(at, BATCH_ROWS) for at in range(0, batch.num_rows, BATCH_ROWS))
    except (pa.ArrowInvalid, OSError) as error:
        raise _damaged(chunk.file, error) from error


def _schema(chunk: Chunk) -> pa.Schema:
    try:
        if chunk.kind == "parquet":
            return pq.read_schema(chunk.file.path)
        with pa.memory_map(chunk.file.path) as source:
            start = source.read(6)
            source.seek(0)
            return pa.ipc.open_file(source).schema if start == b"ARROW1" else pa.ipc.open_stream(source).schema
    except (pa.ArrowInvalid, OSError) as error:
        raise _damaged(chunk.file, error) from error


def _damaged(file: InputFile, error: Exception) -> UserError:
    spoken = "Parquet" if file.kind == "parquet" else "Arrow"
    return UserError(f"{file.name}: is no readable {spoken} file (truncated or damaged): {error}")
