"""Files into rows: a plan of chunks that can be read anywhere and in any order, and the rows of one chunk.

Reads JSON lines and arrays, CSV (these three also as .gz and .zst, truncation and damage told from the end), Parquet and Arrow. One
malformed line costs one line.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from mmpo.pipeline.arrow import UNREADABLE
from mmpo.pipeline.contract import check_names
from mmpo.pipeline.errors import BadRow, UserError
from mmpo.pipeline.storage.archives import WORKBOOKS, log_rows, workbook_rows
from mmpo.pipeline.storage.text_files import BLOCK_BYTES, BOM, COMPRESSIONS, ENCODING_HINT, InputFile, csv_rows, lines, utf8_blocks

OnReject = Callable[[int, str, Mapping[str, Any]], None]
"""Called with the row's number, the reason and the evidence of a row that can't be read."""

SHOWN_BYTES = 200


def line_rows(raw: Iterable[bytes], first_row: int, on_reject: OnReject, name: str = "") -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects in lines of JSON, each with its 1-based line number; blank lines are skipped, bad ones told.

    Reasons: malformed_json, invalid_utf8, not_an_object. Raises UserError where one of the first has a key twice.
    """
    looked_at = 0
    for number, line in enumerate(raw, first_row):
        if not line or line.isspace():
            continue
        if looked_at < FIRST_ROWS:
            looked_at += 1
            _check_keys(line, f"{name}, line {number}")
        row, reason, evidence = parse_line(line)
        if reason:
            on_reject(number, reason, evidence)
        elif type(row) is not dict:
            on_reject(number, "not_an_object", {"type": type(row).__name__, "line": _shown(line)})
        else:
            yield number, row


FIRST_ROWS, FIRST_BYTES = 20, 1 << 20
"""How many rows of a chunk, and how much of an array, keys are looked at in: who writes one twice does so in every row."""


def _pairs(found: list[tuple[str, Any]]) -> dict[Any, Any]:
    """An object of JSON; of one that has a key twice the key alone, under None."""
    row: dict[Any, Any] = dict(found)
    names = [name for name, _ in found]
    return row if len(row) == len(found) else {None: next(name for name in names if names.count(name) > 1)}


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs)


def _check_keys(raw: bytes, where: str) -> None:
    """Raises UserError where one of the first objects has a key twice: readers differ in which of the two values they take."""
    text = raw[:FIRST_BYTES].decode(errors="replace").lstrip("\ufeff \t\r\n[") if raw else ""
    for _ in range(FIRST_ROWS):
        try:
            row, end = _DECODER.raw_decode(text)
        except (ValueError, RecursionError):
            return  # the text ends here, or it is no JSON, which is told where it is read
        if isinstance(row, dict) and None in row:
            raise UserError(f"{where}: two values have the key {row[None]!r}, so that none is known to be meant; rename one")
        text = text[end:].lstrip(", \t\r\n")


def parse_line(line: bytes) -> tuple[Any, str | None, dict[str, Any]]:
    """JSON by orjson, what that refuses once more by the standard library: (value, None, {}) or (None, reason, evidence).

    The second reads NaN, Infinity and escaped lone surrogates, which the checks of the values then refuse by their own names.
    """
    try:
        return orjson.loads(line), None, {}
    except orjson.JSONDecodeError:
        line = line.removesuffix(b"\n")
    try:
        return json.loads(line.decode()), None, {}
    except UnicodeDecodeError as error:
        return None, "invalid_utf8", {"byte": error.start + 1, "line": _shown(line), "hint": ENCODING_HINT}
    except (ValueError, RecursionError) as error:
        hint = {"hint": f"{ENCODING_HINT} (here NUL characters: utf-16-le?)"} if b"\0" in line else {}
        return None, "malformed_json", {"error": str(error), "line": _shown(line)} | hint


def holds_array(file: InputFile) -> bool:
    """Whether a JSON file is one array rather than lines: it starts with "[" and its first line is no array by itself,
    or is one that holds objects. An object over several lines is also read whole."""
    for line in lines(file):
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


def array_rows(file: InputFile, on_reject: OnReject) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON array (or one object) with their 1-based position. Raises UserError: unreadable."""
    raw = b"".join(utf8_blocks(file)).removeprefix(BOM)
    _check_keys(raw, file.name)
    value, reason, evidence = parse_line(raw)
    if reason:
        told = evidence.get("error") or f"byte {evidence['byte']} is no UTF-8"
        raise UserError(f"{file.name}: is no readable JSON array ({reason}: {told}). One object a line is read as JSON lines")
    for number, row in enumerate(value if isinstance(value, list) else [value], 1):
        if isinstance(row, dict):
            yield number, row
        else:
            on_reject(number, "not_an_object", {"type": type(row).__name__})


def _shown(line: bytes) -> str:
    return line.removesuffix(b"\n")[:SHOWN_BYTES].decode(errors="backslashreplace")


BATCH_ROWS = 1024
WHOLE = -1
"""In the place of a row group: all of them."""


@dataclass(frozen=True)
class Chunk:
    """A part of a file that is read on its own; picklable.

    kind: lines (a byte range of JSON lines), stream (compressed JSON lines), array, csv, parquet (row group) or arrow.
    offset, length: bytes for `lines`; the row group's index (or WHOLE) and its rows for `parquet`; else 0 and the file's size.
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


def plan(files: Sequence[InputFile], chunk_bytes: int = 16 << 20, *, whole: bool = False) -> list[Chunk]:
    """The chunks of the files, in order: plain JSON lines cut at newlines, Parquet by row groups, all else whole. whole: cut nothing.

    Raises UserError where a file can't be opened or its footer is damaged.
    """
    chunks: list[Chunk] = []
    for file in files:
        try:
            size = Path(file.path).stat().st_size
            if file.kind == "parquet":
                groups = list(_row_groups(file, size))
                chunks += (
                    [Chunk(file, "parquet", WHOLE, sum(one.length for one in groups), 1, size)] if whole and groups else groups
                )
            elif file.kind == "json" and holds_array(file):
                chunks.append(Chunk(file, "array", 0, size, 1, size))
            elif file.kind == "json" and file.encoding is None and Path(file.path).suffix.lower() not in COMPRESSIONS:
                chunks += _line_ranges(file, max(size, 1) if whole else chunk_bytes)
            else:
                kind = {"json": "stream"}.get(file.kind, file.kind)
                chunks.append(Chunk(file, kind, 0, size, 1, size))
        except OSError as error:
            raise UserError(f"{file.name}: can't be read: {error.strerror or error}") from error
    return chunks


def _line_ranges(file: InputFile, chunk_bytes: int) -> Iterator[Chunk]:
    """Byte ranges that end behind a newline, and the numbers of their first lines (so the file is read once)."""
    with open(file.path, "rb") as raw:
        size, start, row = raw.seek(0, 2), 0, 1
        while start < size:
            least = min(start + max(chunk_bytes, 1), size)
            raw.seek(least - 1)
            end = least - 1 + max(len(raw.readline()), 1)  # no line where the file was cut short meanwhile
            yield Chunk(file, "lines", start, end - start, row, end - start)
            row += _newlines(raw, start, end) if end < size else 0
            start = end


def _newlines(raw: BinaryIO, start: int, end: int) -> int:
    raw.seek(start)
    blocks = (np.frombuffer(raw.read(min(BLOCK_BYTES, end - at)), np.uint8) for at in range(start, end, BLOCK_BYTES))
    return sum(int(np.count_nonzero(block == ord("\n"))) for block in blocks)


def _row_groups(file: InputFile, size: int) -> Iterator[Chunk]:
    try:
        with pq.ParquetFile(file.path) as parquet:
            groups = [parquet.metadata.row_group(i).num_rows for i in range(parquet.metadata.num_row_groups)]
    except UNREADABLE as error:
        raise _damaged(file, error) from error
    row = 1
    for index, count in enumerate(groups):
        yield Chunk(file, "parquet", index, count, row, size // len(groups))
        row += count


def rows(chunk: Chunk, on_reject: OnReject) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The rows of a chunk, each with its 1-based number: the line (JSON lines, CSV) or the row in its file. The cells of Parquet and
    Arrow are made into objects of Python when they are asked for; what can't be raises BadRow unreadable_cell then.

    A row that can't be read goes to on_reject(number, reason, evidence) and costs nothing else.
    Raises UserError naming the file where it is truncated or damaged.
    """
    if chunk.kind == "lines":
        return line_rows(_range(chunk), chunk.first_row, on_reject, chunk.name)
    if chunk.kind == "stream":
        return line_rows(lines(chunk.file), 1, on_reject, chunk.name)
    if chunk.kind == "array":
        return array_rows(chunk.file, on_reject)
    if chunk.kind == "eval":
        return log_rows(chunk.file, parse_line)
    if chunk.kind == "csv":
        if Path(chunk.file.path).suffix.lower() in WORKBOOKS:
            return workbook_rows(chunk.file)
        return csv_rows(chunk.file, on_reject)
    return _table_rows(chunk)


def _range(chunk: Chunk) -> Iterator[bytes]:
    """The lines of a byte range with their ends, a block at a time, so that each is parsed while the processor's caches hold it."""
    start, end = BOM if chunk.offset == 0 else b"", chunk.offset + chunk.length
    try:
        with open(chunk.file.path, "rb", BLOCK_BYTES) as raw:
            at = raw.seek(chunk.offset)
            while at < end and (line := raw.readline()):
                at += len(line)
                yield line.removeprefix(start)
                start = b""
    except OSError as error:
        raise UserError(f"{chunk.name}: can't be read: {error.strerror or error}") from error


def _table_rows(chunk: Chunk) -> Iterator[tuple[int, Mapping[str, Any]]]:
    number = chunk.first_row
    with _opened(chunk) as (_, batches):
        for batch in batches:
            cells = _Cells(batch)
            for place in range(batch.num_rows):
                yield number, _TableRow(cells, place)
                number += 1


class _Cells:
    """The columns of a batch as lists, each made when it is first asked for: what no one reads may hold anything."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.batch = batch
        self.names = dict.fromkeys(batch.schema.names)
        self.lists: dict[str, list[Any]] = {}
        self.row_bytes = batch.nbytes // max(batch.num_rows, 1)

    def column(self, name: str) -> list[Any]:
        """One column's cells."""
        column = self.batch.column(name)
        try:
            found = _shortest(column).to_pylist()
            if "halffloat" in str(column.type):  # Arrow has no shortest text of these
                found = [_with_halves(column.type, value) for value in found]
        except (ValueError, OverflowError, pa.ArrowException):
            found = [_cell(name, value) for value in column]
        self.lists[name] = found
        return found


def _shortest(column: pa.Array) -> pa.Array:
    """The column with single-precision numbers, also in lists and objects, as the decimals they were written from: 1.1, not 1.10000002384.

    The error of such a precision is far above the step that grades are rounded to, and would break true ties.
    """
    text, number, same = (_with_singles_as(column.type, made) for made in (pa.string(), pa.float64(), pa.float32()))
    return column if number == same else column.cast(text).cast(number)


def _with_halves(kind: pa.DataType, value: Any) -> Any:
    """A cell with its numbers of half precision as `_shortest` has those of single precision."""
    if value is None:
        return None
    if pa.types.is_float16(kind):
        return float(str(np.float16(value)))
    if pa.types.is_struct(kind):
        return {field.name: _with_halves(field.type, value[field.name]) for field in kind.fields}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return [_with_halves(kind.value_type, one) for one in value]
    return value


def _with_singles_as(kind: pa.DataType, made: pa.DataType) -> pa.DataType:
    """The type with another one in the place of single precision."""
    if pa.types.is_float32(kind):
        return made
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_with_singles_as(field.type, made)) for field in kind.fields])
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_with_singles_as(kind.value_type, made), kind.list_size)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.large_list(_with_singles_as(kind.value_type, made))
    return kind


@dataclass(frozen=True)
class _Unreadable:
    """A cell that Python has no object for."""

    column: str
    why: str


def _cell(name: str, value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except (ValueError, OverflowError, pa.ArrowException) as error:
        return _Unreadable(name, str(error))


class _TableRow(Mapping[str, Any]):
    """One row of a batch."""

    __slots__ = ("_cells", "_place")

    def __init__(self, cells: _Cells, place: int) -> None:
        self._cells, self._place = cells, place

    def __getitem__(self, name: str) -> Any:
        if name not in self._cells.names:
            raise KeyError(name)
        return self.get(name)

    def get(self, name: str, default: Any = None) -> Any:
        """What is asked of every row; the mixin's own takes three times as long."""
        column = self._cells.lists.get(name)
        if column is None:
            if name not in self._cells.names:
                return default
            column = self._cells.column(name)
        value = column[self._place]
        if type(value) is _Unreadable:
            raise BadRow("unreadable_cell", {"column": name, "error": value.why[:SHOWN_BYTES]})
        return value

    def __contains__(self, name: object) -> bool:
        return name in self._cells.names

    def __iter__(self) -> Iterator[str]:
        return iter(self._cells.names)

    def __len__(self) -> int:
        return len(self._cells.names)

    @property
    def size(self) -> int:
        """About how many bytes it has."""
        return self._cells.row_bytes


def size_of(value: Any) -> int:
    """About how much text a row or a value holds."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, _TableRow):
        return value.size
    if isinstance(value, Mapping):
        return sum(map(size_of, value.values()))
    return sum(map(size_of, value)) if isinstance(value, list) else 8


def table(chunk: Chunk) -> pa.Table:
    """A chunk of Parquet or Arrow as a table. Raises UserError where the file is truncated or damaged."""
    with _opened(chunk) as (schema, batches):
        return pa.Table.from_batches(list(batches), schema)


@contextmanager
def _opened(chunk: Chunk) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
    """The schema of a chunk of Parquet or Arrow, and its rows in small batches."""
    try:
        if chunk.kind == "parquet":
            with pq.ParquetFile(chunk.file.path, page_checksum_verification=True) as parquet:
                check_names(parquet.schema_arrow, chunk.name)
                groups = None if chunk.offset == WHOLE else [chunk.offset]
                yield parquet.schema_arrow, parquet.iter_batches(batch_size=BATCH_ROWS, row_groups=groups)
            return
        with pa.memory_map(chunk.file.path) as source:
            in_file = source.read(6) == b"ARROW1"  # `datasets` writes streams, Feather and others files
            source.seek(0)
            reader: Any = pa.ipc.open_file(source) if in_file else pa.ipc.open_stream(source)
            found = map(reader.get_batch, range(reader.num_record_batches)) if in_file else iter(reader)
            check_names(reader.schema, chunk.name)
            yield reader.schema, (batch.slice(at, BATCH_ROWS) for batch in found for at in range(0, batch.num_rows, BATCH_ROWS))
    except UNREADABLE as error:
        raise _damaged(chunk.file, error) from error


def _damaged(file: InputFile, error: Exception) -> UserError:
    spoken = "Parquet" if file.kind == "parquet" else "Arrow"
    return UserError(f"{file.name}: is no readable {spoken} file (truncated or damaged): {error}")
