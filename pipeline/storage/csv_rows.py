"""CSV files as rows of text, with the line on which each record begins."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.storage.decompress import COMPRESSIONS, lines
from mmpo.pipeline.storage.json_rows import OnReject

# The module's own limit of 128 KiB is less than a long completion.
FIELD_BYTES = 1 << 28


def csv_rows(path: str, on_reject: OnReject) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records under the header, each with the number of its first line; an empty cell is None, all others text.

    Separators: tab for .tsv; else the comma, or where the header has none, the semicolon or tab. Reasons:
    malformed_csv, wrong_number_of_cells, invalid_utf8.
    Raises UserError: no header, repeated column names, a quote that never closes.
    """
    csv.field_size_limit(FIELD_BYTES)
    # csv wants the newlines that a quoted cell may hold; bytes that are no UTF-8 become surrogates, found below.
    text = (line.decode(errors="surrogateescape") + "\n" for line in lines(path))
    first = next(text, "")
    header = _header(path, first)
    names, separator = header
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
            continue
        row = {name: cell if cell else None for name, cell in zip(names, cells)}
        if not "".join(cells).isascii() and any("\udc80" <= char <= "\udcff" for cell in cells for char in cell):
            on_reject(number, "invalid_utf8", {"columns": [name for name, cell in zip(names, cells) if not _utf8(cell)]})
            continue
        yield number, row


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


def _utf8(cell: str) -> bool:
    try:
        cell.encode()
    except UnicodeEncodeError:
        return False
    return True
