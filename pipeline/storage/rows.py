"""Files into rows: a plan of chunks that can be read anywhere and in any order, and the rows of one chunk.

Reads JSON lines and arrays, CSV (these three also as .gz and .zst, truncation and damage told from the end), Parquet and Arrow. One
malformed line costs one line.
"""

import csv
import json
import mmap
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from mmpo.pipeline.errors import UserError

BOM = b"\xef\xbb\xbf"
BLOCK_BYTES = 1 << 18

# A new decompressor per member or frame; both kinds have decompress(), eof and unused_data. The file object of zstandard 0.25 would be
# shorter, but ends without an error where a file is truncated.
COMPRESSIONS: dict[str, Callable[[], Any]] = {
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".zst": lambda: zstandard.ZstdDecompressor().decompressobj(),
}


def blocks(path: str) -> Iterator[bytes]:
    """The content of a file, decompressed by its suffix, in blocks of any size.

    Raises UserError naming the file: missing, unreadable, truncated or damaged.
    """
    make = COMPRESSIONS.get(Path(path).suffix.lower())
    try:
        with open(path, "rb") as file:
            raw = iter(lambda: file.read(BLOCK_BYTES), b"")
            yield from raw if make is None else _decompressed(path, raw, make)
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror or error}") from error


def _decompressed(path: str, raw: Iterator[bytes], make: Callable[[], Any]) -> Iterator[bytes]:
    frame, started = make(), False
    try:
        for block in raw:
            while block:
                started = True
                text = frame.decompress(block)
                block = b""
                if frame.eof:
                    # Files may be several members end to end, and padded with zeros.
                    block, frame, started = frame.unused_data.lstrip(b"\0"), make(), False
                if text:
                    yield text
    except (zlib.error, zstandard.ZstdError) as error:
        raise UserError(f"{path}: the compressed data is damaged ({error}); fetch or write the file again") from error
    if started:
        raise UserError(f"{path}: the compressed data ends too early (truncated); fetch or write the file again")


def split_lines(parts: Iterator[bytes]) -> Iterator[bytes]:
    """The lines in consecutive blocks of bytes, without their newline; only b"\\n" ends a line (U+2028 does not).

    >>> list(split_lines(iter([b"a", b"b\\nc", b"\\n"])))
    [b'ab', b'c']
    """
    carry: list[bytes] = []
    for part in parts:
        found = part.split(b"\n")
        carry.append(found[0])
        if len(found) > 1:
            yield b"".join(carry)
            yield from found[1:-1]
            carry = [found[-1]]
    rest = b"".join(carry)
    if rest:
        yield rest


def lines(path: str) -> Iterator[bytes]:
    """The lines of a file, decompressed, without a leading byte order mark."""
    for number, line in enumerate(split_lines(blocks(path))):
        yield line.removeprefix(BOM) if number == 0 else line


OnReject = Callable[[int, str, Mapping[str, Any]], None]
"""Called with the row's number, the reason and the evidence of a row that can't be read."""

SHOWN_BYTES = 200


def line_rows(raw: Iterable[bytes], first_row: int, on_reject: OnReject) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects in lines of JSON, each with its 1-based line number; blank lines are skipped, bad ones told.

    Reasons: malformed_json, invalid_utf8, not_an_object.
    """
    for number, line in enumerate(raw, first_row):
        if not line or line.isspace():
            continue
        row, reason, evidence = parse_line(line)
        if reason:
            on_reject(number, reason, evidence)
        elif type(row) is not dict:
            on_reject(number, "not_an_object", {"type": type(row).__name__, "line": _shown(line)})
        else:
            yield number, row


def parse_line(line: bytes) -> tuple[Any, str | None, dict[str, Any]]:
    """JSON by orjson, what that refuses once more by the standard library: (value, None, {}) or (None, reason, evidence).

    The second reads NaN, Infinity and escaped lone surrogates, which the checks of the values then refuse by their own names.
    """
    try:
        return orjson.loads(line), None, {}
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(line.decode()), None, {}
    except UnicodeDecodeError as error:
        return None, "invalid_utf8", {"byte": error.start + 1, "line": _shown(line)}
    except (ValueError, RecursionError) as error:
        return None, "malformed_json", {"error": str(error), "line": _shown(line)}


def holds_array(path: str) -> bool:
    """Whether a JSON file is one array rather than lines: it starts with "[" and its first line is no array by itself,
    or is one that holds objects. An object over several lines is also read whole."""
    for line in lines(path):
        if not line or line.isspace():
            continue
        start = line.lstrip()[:1]
        if start not in (b"[", b"{"):
            return False
        value, reason, _ = parse_line(line)
        if start == b"{":
            return reason is not None and line.strip() == b"{"
        return reason is not None or (isinstance(value, list) and any(isinstance(item, dict) for item in value))
    return False


def array_rows(path: str, on_reject: OnReject) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON array (or one object) with their 1-based position. Raises UserError: unreadable."""
    raw = b"".join(blocks(path)).removeprefix(BOM)
    value, reason, evidence = parse_line(raw)
    if reason:
        told = evidence.get("error") or f"byte {evidence['byte']} is no UTF-8"
        raise UserError(f"{path}: is no readable JSON array ({reason}: {told}). One object a line is read as JSON lines")
    for number, row in enumerate(value if isinstance(value, list) else [value], 1):
        if isinstance(row, dict):
            yield number, row
        else:
            on_reject(number, "not_an_object", {"type": type(row).__name__})


def _shown(line: bytes) -> str:
    return line[:SHOWN_BYTES].decode(errors="backslashreplace")


# The module's own limit of 128 KiB is less than a long completion.
FIELD_BYTES = 1 << 28
NO_UTF8 = re.compile("[\udc80-\udcff]")


def csv_rows(path: str, on_reject: OnReject) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records under the header, each with the number of its first line; an empty cell is None, all others text.

    Separators: tab for .tsv; else the comma, or where the header has none, the semicolon or tab. Reasons:
    malformed_csv, wrong_number_of_cells, invalid_utf8.
    Raises UserError: no header, repeated column names, a quote that never closes.
    """
    csv.field_size_limit(FIELD_BYTES)
    # csv wants the newlines that a quoted cell may hold; bytes that are no UTF-8 become surrogates, found below.
    text = (line.decode(errors="surrogateescape") + "\n" for line in lines(path))
    names, separator = _header(path, next(text, ""))
    reader = csv.reader(text, delimiter=separator, strict=True)
    begin = 2
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise UserError(f"{path}: the quoted cell that begins in the record of line {begin} never ends") from error
            on_reject(begin, "malformed_csv", {"error": str(error)})
            begin = reader.line_num + 2
            continue
        number, begin = begin, reader.line_num + 2
        if not cells:
            continue
        if len(cells) != len(names):
            on_reject(number, "wrong_number_of_cells", {"cells": len(cells), "columns": len(names)})
        elif wrong := [name for name, cell in zip(names, cells) if not cell.isascii() and NO_UTF8.search(cell)]:
            on_reject(number, "invalid_utf8", {"columns": wrong})
        else:
            yield number, {name: cell or None for name, cell in zip(names, cells)}


def _header(path: str, first: str) -> tuple[list[str], str]:
    """Column names and separator from the first line."""
    name = Path(path)
    suffix = Path(name.stem).suffix.lower() if name.suffix.lower() in COMPRESSIONS else name.suffix.lower()
    separator = "\t" if suffix == ".tsv" else next((sign for sign in ",;\t" if sign in first), ",")
    try:
        names = next(csv.reader([first], delimiter=separator, strict=True), [])
    except csv.Error as error:
        raise UserError(f"{path}: the first line is no CSV header: {error}") from error
    names = [column.strip() for column in names]
    if not any(names):
        raise UserError(f"{path}: the first line must name the columns, but it is empty")
    if len(set(names)) != len(names):
        twice = sorted({column for column in names if names.count(column) > 1})
        raise UserError(f"{path}: column names occur twice in the header: {', '.join(map(repr, twice))}")
    return names, separator


BATCH_ROWS = 1024


@dataclass(frozen=True)
class InputFile:
    """One file to read. name: as the user wrote it, for messages; kind: json, csv, parquet or arrow."""

    path: str
    kind: str
    name: str


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
    with _opened(chunk) as (_, batches):
        for batch in batches:
            for row in batch.to_pylist():
                yield number, row
                number += 1


def table(chunk: Chunk) -> pa.Table:
    """A chunk of Parquet or Arrow as a table. Raises UserError where the file is truncated or damaged."""
    with _opened(chunk) as (schema, batches):
        return pa.Table.from_batches(list(batches), schema)


@contextmanager
def _opened(chunk: Chunk) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
    """The schema of a chunk of Parquet or Arrow, and its rows in small batches."""
    try:
        if chunk.kind == "parquet":
            with pq.ParquetFile(chunk.file.path) as parquet:
                yield parquet.schema_arrow, parquet.iter_batches(batch_size=BATCH_ROWS, row_groups=[chunk.offset])
            return
        with pa.memory_map(chunk.file.path) as source:
            in_file = source.read(6) == b"ARROW1"  # `datasets` writes streams, Feather and others files
            source.seek(0)
            reader: Any = pa.ipc.open_file(source) if in_file else pa.ipc.open_stream(source)
            found = map(reader.get_batch, range(reader.num_record_batches)) if in_file else iter(reader)
            yield reader.schema, (batch.slice(at, BATCH_ROWS) for batch in found for at in range(0, batch.num_rows, BATCH_ROWS))
    except (pa.ArrowInvalid, OSError) as error:
        raise _damaged(chunk.file, error) from error


def _damaged(file: InputFile, error: Exception) -> UserError:
    spoken = "Parquet" if file.kind == "parquet" else "Arrow"
    return UserError(f"{file.name}: is no readable {spoken} file (truncated or damaged): {error}")
