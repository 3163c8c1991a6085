"""JSON lines and JSON arrays as rows; one malformed line costs one line."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import orjson

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.storage.decompress import BOM, blocks, lines

OnReject = Callable[[int, str, Mapping[str, Any]], None]
"""Called with the row's number, the reason and the evidence of a row that can't be read."""

SHOWN_BYTES = 200


def line_rows(raw: Iterable[bytes], first_row: int, on_reject: OnReject) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects in lines of JSON, each with its 1-based line number; blank lines are skipped, bad ones told.

    Reasons: malformed_json, invalid_utf8, not_an_object.
    """
    loads = orjson.loads
    for number, line in enumerate(raw, first_row):
        try:
            row = loads(line)
        except orjson.JSONDecodeError:
            if not line or line.isspace():
                continue
            row, reason, evidence = parse_line(line)
            if reason:
                on_reject(number, reason, evidence)
                continue
        if type(row) is not dict:
            on_reject(number, "not_an_object", {"type": type(row).__name__, "line": _shown(line)})
            continue
        yield number, row


def parse_line(line: bytes) -> tuple[Any, str | None, dict[str, Any]]:
    """A line that orjson refuses, once more with the standard library: (value, None, {}) or (None, reason, evidence).

    It reads NaN, Infinity and escaped lone surrogates, which the checks of the values then refuse by their own names.
    """
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        return None, "invalid_utf8", {"byte": error.start + 1, "line": _shown(line)}
    try:
        return json.loads(text), None, {}
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
    value, reason, evidence = _loads(raw)
    if reason:
        told = evidence.get("error") or f"byte {evidence['byte']} is no UTF-8"
        raise UserError(f"{path}: is no readable JSON array ({reason}: {told}). One object a line is read as JSON lines")
    for number, row in enumerate(value if isinstance(value, list) else [value], 1):
        if isinstance(row, dict):
            yield number, row
        else:
            on_reject(number, "not_an_object", {"type": type(row).__name__})


def _loads(raw: bytes) -> tuple[Any, str | None, dict[str, Any]]:
    try:
        return orjson.loads(raw), None, {}
    except orjson.JSONDecodeError:
        return parse_line(raw)


def _shown(line: bytes) -> str:
    return line[:SHOWN_BYTES].decode(errors="backslashreplace")
