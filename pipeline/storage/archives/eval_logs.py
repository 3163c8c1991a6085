"""Logs of inspect_ai: a ZIP of JSON files, packed by Zstandard, which Python's zipfile does not unpack before 3.14."""

import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
import zstandard

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.storage.text_files import InputFile

HEADER, STARTED, SAMPLES = "header.json", "_journal/start.json", "samples/"
STILL_WRITTEN = (
    "the evaluation has not ended, or was broken off: the log is still at its start. Read it when the evaluation has ended; `inspect "
    "eval-retry LOG` completes one that was broken off"
)
_STORED, _DEFLATED, _ZSTANDARD = 0, 8, 93
_LOCAL_HEADER = 30
"""Bytes of what stands before a member, without its name and extra field, whose lengths are its last four bytes."""


def log_rows(file: InputFile, parse: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """A row per sample, in the layout of a log written as JSON: the header's keys and `samples`, a list of this one.

    parse(bytes): (value, reason or None, evidence), as `rows.parse_line`. Raises UserError: no log, one still being written, damage.
    """
    try:
        with zipfile.ZipFile(file.path) as archive, Path(file.path).open("rb") as raw:
            members = {info.filename: info for info in archive.infolist()}  # of a sample written twice the later one
            if HEADER not in members:
                if STARTED in members:
                    raise UserError(f"{file.name}: {STILL_WRITTEN}")
                raise UserError(f"{file.name}: is a ZIP archive, but no log of inspect_ai: it holds no {HEADER}")
            header = orjson.loads(_unpacked(raw, members[HEADER], file.name))
            header = {name: value for name, value in header.items() if name not in ("results", "stats", "reductions")}
            names = [name for name in members if name.startswith(SAMPLES) and name.endswith(".json")]

            def samples() -> Iterator[Any]:
                for name in names:
                    sample, reason, evidence = parse(_unpacked(raw, members[name], file.name))
                    if reason:
                        raise UserError(f"{file.name}: {name} in it is damaged ({reason}: {evidence.get('error')})")
                    yield sample

            header["eval"] = with_scorers(header.get("eval"), samples())
            for number, sample in enumerate(samples(), 1):
                yield number, {**header, "samples": [sample]}
    except (zipfile.BadZipFile, OSError, zlib.error, zstandard.ZstdError, orjson.JSONDecodeError) as error:
        raise UserError(
            f"{file.name}: is no readable log of inspect_ai ({error}). One that is being written or copied just now can be read when that "
            "has ended"
        ) from error


def with_scorers(about: Any, samples: Iterable[Any]) -> Any:
    """`eval` of a log; of an older one, that names no scorers, with those of any sample, which are then looked through."""
    if not isinstance(about, Mapping) or about.get("scorers"):
        return about
    scores = (sample.get("scores") for sample in samples if isinstance(sample, Mapping))
    names = {str(name) for one in scores if isinstance(one, Mapping) for name in one}
    return {**about, "scorers": [{"name": name} for name in sorted(names)]}


def _unpacked(raw: Any, info: zipfile.ZipInfo, name: str) -> bytes:
    raw.seek(info.header_offset)
    before = raw.read(_LOCAL_HEADER)
    raw.seek(int.from_bytes(before[26:28], "little") + int.from_bytes(before[28:30], "little"), 1)
    packed = raw.read(info.compress_size)
    if info.compress_type == _ZSTANDARD:
        content = zstandard.ZstdDecompressor().decompressobj().decompress(packed)
    elif info.compress_type == _DEFLATED:
        content = zlib.decompress(packed, wbits=-15)
    elif info.compress_type == _STORED:
        content = packed
    else:
        raise UserError(f"{name}: {info.filename} in it is packed by an unknown method ({info.compress_type})")
    if zlib.crc32(content) != info.CRC:
        raise UserError(f"{name}: {info.filename} in it is damaged; fetch or copy the log again")
    return content
