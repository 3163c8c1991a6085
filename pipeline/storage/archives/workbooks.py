"""Excel workbooks: the rows of one sheet, as those of CSV. Read by openpyxl, where it is installed."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

from mmpo.pipeline.errors import UserError, unknown_name
from mmpo.pipeline.storage.text_files import InputFile, NumberCell, column_names

WORKBOOKS = (".xlsx", ".xlsm")
EXPORT = "save the sheet as CSV UTF-8 (in Excel: Save As; in LibreOffice: Save As, Text CSV)"


def sheet_of(file: InputFile) -> str:
    """The sheet that is read: the one named, else the only one that holds anything.

    Raises UserError: openpyxl is not installed, no workbook, no such sheet, several sheets and none of them named.
    """
    with _opened(file) as book:
        names = [sheet.title for sheet in book.worksheets]
        if file.sheet is not None:
            if file.sheet not in names:
                raise unknown_name(f"sheet of {file.name}", file.sheet, names)
            return file.sheet
        held = [sheet.title for sheet in book.worksheets if any(_holds(row) for row in sheet.iter_rows(values_only=True))]
    if len(held) > 1:
        raise UserError(
            f"{file.name} has {len(held)} sheets, {', '.join(map(repr, held))}: name the one to read, --sheet {held[0]!r}"
        )
    if not held:
        raise UserError(f"{file.name}: its sheets are empty")
    return held[0]


def workbook_rows(file: InputFile) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows under the header, the first row that holds anything, each with its number in the sheet; cells as those of CSV: texts, and
    None for empty ones. Numbers are `NumberCell`s; of formulas the values that were saved with them."""
    name = sheet_of(file)
    with _opened(file) as book:
        rows = ((number, row) for number, row in enumerate(book[name].iter_rows(values_only=True), 1) if _holds(row))
        _, header = next(rows)
        width = max(place for place, cell in enumerate(header, 1) if cell is not None)
        names = column_names([str(cell or "").strip() for cell in header[:width]], file)
        for number, row in rows:
            if beyond := [cell for cell in row[width:] if cell is not None]:
                raise UserError(
                    f"{file.name}, sheet {name!r}, row {number}: {str(beyond[0])[:40]!r} stands right of the columns that the first row "
                    "names; name its column there, or take it away"
                )
            yield number, dict(zip(names, (_cell(cell) for cell in (*row, *[None] * width)), strict=False))


def _holds(row: tuple[Any, ...]) -> bool:
    return any(cell is not None and cell != "" for cell in row)


def _cell(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value or None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return NumberCell(value)
    return value.isoformat() if isinstance(value, date | datetime | time) else str(value)


@contextmanager
def _opened(file: InputFile) -> Iterator[Any]:
    try:
        import openpyxl
    except ImportError as error:
        raise UserError(
            f"{file.name} is an Excel workbook, and openpyxl, which reads them, is not installed: pip install 'mmpo[excel]'; or {EXPORT}"
        ) from error
    try:
        with Path(file.path).open("rb") as raw:
            book = openpyxl.load_workbook(raw, read_only=True, data_only=True)
            try:
                yield book
            finally:
                book.close()
    except (zipfile.BadZipFile, KeyError, ValueError, SyntaxError, EOFError) as error:
        raise UserError(
            f"{file.name} is no readable workbook (truncated, damaged or encrypted: {error}); open it and {EXPORT}"
        ) from error
