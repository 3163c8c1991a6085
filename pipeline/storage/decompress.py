"""Files as blocks of bytes and as lines: plain, gzip and Zstandard, truncation and damage told from the end."""

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
