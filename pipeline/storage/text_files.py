"""The text of files: decompressed by their suffix, decoded, in lines; and the records of CSV."""

import codecs
import csv
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import zstandard

from mmpo.pipeline.errors import UserError


@dataclass(frozen=True)
class InputFile:
    """One file to read. name: as the user wrote it, for messages; kind: json, csv, parquet or arrow, or eval (a log of inspect_ai).

    encoding: of text (None: UTF-8); separator: of CSV (None: found in the header). sheet: of a workbook (None: the only one). repeats:
    whether a name may stand in the header again, as "name 2". revision: the commit that a Hub dataset's file is of. etag: the mark that an
    object store has of the content.
    """

    path: str
    kind: str
    name: str
    encoding: str | None = None
    separator: str | None = None
    repeats: bool = False
    revision: str | None = None
    sheet: str | None = None
    etag: str | None = None


class NumberCell(str):
    """A number's text where the file has a number: whatever the decimal mark of its texts is, this one is read as it is.

    >>> NumberCell(4.0), NumberCell(2.5).number
    ('4', 2.5)
    """

    number: int | float

    def __new__(cls, number: int | float) -> "NumberCell":
        made = super().__new__(cls, int(number) if isinstance(number, float) and number.is_integer() else number)
        made.number = number
        return made


BOM = b"\xef\xbb\xbf"
BLOCK_BYTES = 1 << 18

# A new decompressor per member or frame; both kinds have decompress(), eof and unused_data. The file object of zstandard 0.25 would be
# shorter, but ends without an error where a file is truncated.
COMPRESSIONS: dict[str, Callable[[], Any]] = {
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".zst": lambda: zstandard.ZstdDecompressor().decompressobj(),
}


def blocks(path: str, name: str | None = None) -> Iterator[bytes]:
    """The content of a file, decompressed by its suffix, in blocks of any size. name: the file's, for messages, where it is not its path.

    Raises UserError naming the file: missing, unreadable, truncated or damaged.
    """
    make = COMPRESSIONS.get(Path(path).suffix.lower())
    try:
        with open(path, "rb") as file:
            raw = iter(lambda: file.read(BLOCK_BYTES), b"")
            yield from raw if make is None else _decompressed(name or path, raw, make)
    except OSError as error:
        raise UserError(f"{name or path}: can't be read: {error.strerror or error}") from error


def _decompressed(name: str, raw: Iterator[bytes], make: Callable[[], Any]) -> Iterator[bytes]:
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
        raise UserError(f"{name}: the compressed data is damaged ({error}); fetch or write the file again") from error
    if started:
        raise UserError(f"{name}: the compressed data ends too early (truncated); fetch or write the file again")


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


def utf8_blocks(file: InputFile) -> Iterator[bytes]:
    """The text of a file, decompressed, as UTF-8. Raises UserError where its encoding does not fit.

    A byte that a one-byte encoding does not have stays what it is, so that it costs its row alone.
    """
    if file.encoding is None:
        yield from blocks(file.path, file.name)
        return
    decoder = codecs.getincrementaldecoder(file.encoding)("surrogateescape")
    try:
        for part in blocks(file.path, file.name):
            yield decoder.decode(part).encode("utf-8", "surrogateescape")
        yield decoder.decode(b"", True).encode("utf-8", "surrogateescape")
    except UnicodeError as error:
        raise UserError(f"{file.name}: is not written in {file.encoding} ({error}); --encoding names another one") from error


def lines(file: InputFile, ends: Callable[[Iterator[bytes]], Iterator[bytes]] = iter) -> Iterator[bytes]:
    """The lines of a file, decompressed, as UTF-8, without a leading byte order mark. ends: makes the ends of lines newlines."""
    for number, line in enumerate(split_lines(ends(utf8_blocks(file)))):
        yield line.removeprefix(BOM) if number == 0 else line


def _newlines(parts: Iterator[bytes]) -> Iterator[bytes]:
    """Text whose first line is followed by another behind a carriage return alone, as Excel's "CSV (Macintosh)" has them, with newlines."""
    first = next(parts, b"")
    head = re.sub(rb'"[^"]*("|$)', b"", first.partition(b"\n")[0].rstrip(b"\r"))
    alone = b"\r" in head
    for part in chain([first], parts):
        yield part.replace(b"\r", b"\n") if alone else part


# The module's own limit of 128 KiB is less than a long completion.
FIELD_BYTES = 1 << 28
ENCODING_HINT = "--encoding says how the file is written, such as cp1252 or utf-16"
SEPARATOR_LINE = re.compile(r"sep=(.)\s*", re.IGNORECASE)
NO_UTF8 = re.compile("[\udc80-\udcff]")


def csv_rows(file: InputFile, on_reject: Callable[[int, str, Mapping[str, Any]], None]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records under the header, each with the number of its first line; an empty cell is None, all others text; records of empty
    cells alone are skipped as blank lines are. A column without a name is called by its place, "column 3".

    Reasons: malformed_csv, wrong_number_of_cells, invalid_utf8.
    Raises UserError: no header, repeated column names, a quote that never closes.
    """
    csv.field_size_limit(FIELD_BYTES)
    # csv wants the newlines that a quoted cell may hold; bytes that are no UTF-8 become surrogates, found below.
    text = (line.decode(errors="surrogateescape") + "\n" for line in lines(file, _newlines))
    first, begin = next(text, ""), 2
    if named := SEPARATOR_LINE.fullmatch(first):  # which Excel reads, and some programs write for it
        file, first, begin = replace(file, separator=file.separator or named[1]), next(text, ""), 3
    names, separator = _header(file, first)
    above = begin - 1
    reader = csv.reader(text, delimiter=separator, strict=True)
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise UserError(f"{file.name}: the quoted cell that begins in the record of line {begin} never ends") from error
            on_reject(begin, "malformed_csv", {"error": str(error)})
            begin = reader.line_num + above + 1
            continue
        number, begin = begin, reader.line_num + above + 1
        if not any(cells):
            continue
        if len(cells) != len(names):
            told = {"cells": len(cells), "columns": len(names), "separator": separator}
            on_reject(
                number, "wrong_number_of_cells", {**told, "hint": "quote cells that hold the separator, or name another by --sep"}
            )
        elif wrong := [name for name, cell in zip(names, cells) if not cell.isascii() and NO_UTF8.search(cell)]:
            on_reject(number, "invalid_utf8", {"columns": wrong, "hint": ENCODING_HINT})
        else:
            yield number, {name: cell or None for name, cell in zip(names, cells)}


def _header(file: InputFile, first: str) -> tuple[list[str], str]:
    """Column names and separator from the first line: the separator given, the tab of .tsv, else the one that the line has most of."""
    if "\0" in first:
        raise UserError(
            f"{file.name}: the first line holds NUL characters, as UTF-16 without a byte-order mark does; name it by --encoding utf-16-le "
            "or utf-16-be"
        )
    path = Path(file.name)
    suffix = Path(path.stem).suffix.lower() if path.suffix.lower() in COMPRESSIONS else path.suffix.lower()
    bare = re.sub(r'"[^"]*"', "", first)
    separator = file.separator or ("\t" if suffix == ".tsv" else max(",;\t", key=bare.count))
    try:
        names = next(csv.reader([first], delimiter=separator, strict=True), [])
    except csv.Error as error:
        raise UserError(f"{file.name}: the first line is no CSV header: {error}") from error
    names = [column.strip() for column in names]
    if not any(names):
        raise UserError(f"{file.name}: the first line must name the columns, but it is empty")
    if any(NO_UTF8.search(column) for column in names):
        raise UserError(f"{file.name}: the names of the columns are no UTF-8; {ENCODING_HINT}")
    return column_names(names, file), separator


def column_names(names: list[str], file: InputFile) -> list[str]:
    """The names of the columns, each another; one without a name is called by its place. Raises UserError where one occurs twice."""
    names = [column or f"column {place}" for place, column in enumerate(names, 1)]
    if file.repeats:
        names = [column if (n := names[: at + 1].count(column)) == 1 else f"{column} {n}" for at, column in enumerate(names)]
    if len(set(names)) != len(names):
        twice = sorted({column for column in names if names.count(column) > 1})
        hint = " as promptfoo writes them for every output: --format promptfoo" if {"Score", "Status"} <= set(twice) else ""
        raise UserError(f"{file.name}: column names occur twice in the header: {', '.join(map(repr, twice))}{hint and ',' + hint}")
    return names
