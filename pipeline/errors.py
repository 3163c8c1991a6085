"""The errors of mmpo.

    MmpoError
    ├── UserError        the user's input, options or configuration are wrong      exit 2
    │   └── InvalidValue     a number that a formula does not allow                exit 2
    └── PartialResult    finished in part; the same command resumes                exit 3

A message names what was given, what is allowed and the next move; it is all that a user sees, never a traceback. Text of data may stand in
it: whatever goes to a terminal is made inert on the way (`inert`), in this one place. `BadRow` is apart: it costs one row of the input,
which is counted by its reason.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")

ADDRESS = re.compile(r"\b(s3|gs|az|abfs|adl|hdfs|oci|oss|sftp|webdav|smb|memory):/(?=[\w.-])")


def printable(text: object, most: int | None = 200) -> str:
    r"""The text for a message or a table, on one line: control and direction characters are spelled out; at most `most` characters.

    >>> printable("\x1b[1mbold\x1b[0m")
    '\\x1b[1mbold\\x1b[0m'
    """
    spelled = UNSEEN.sub(lambda found: found.group().encode("unicode_escape").decode(), str(text))
    return spelled if most is None or len(spelled) <= most else spelled[: most - 1] + "…"


def inert(message: str) -> str:
    r"""A message for a terminal: as `printable`, of any length, its line ends kept; addresses in object stores with both their slashes, one
    of which a Path takes away.

    >>> inert("two\nlines\x07"), inert("s3:/bucket/pairs: ok")
    ('two\nlines\\x07', 's3://bucket/pairs: ok')
    """
    return "\n".join(ADDRESS.sub(r"\1://", printable(line, None)) for line in message.split("\n"))


class MmpoError(Exception):
    """Base of every error that mmpo raises on purpose."""


class UserError(MmpoError):
    """The input, an option or the configuration is wrong: exit status 2."""


class InvalidValue(UserError, ValueError):
    """A number that a formula does not allow: a ValueError in Python, exit status 2 on the command line."""


class PartialResult(MmpoError):
    """Finished in part; what succeeded is safe and the same command resumes: exit status 3."""


class BadRow(Exception):
    """The current row can't be used; it is dropped whole, with its reason.

    reason: one of the short names that rejects.parquet and the summary count by.
    evidence: a JSON object that lets a person see why.
    limited: whether it counts against `--max-rejects` (unreadable or invalid) or not (a known defect of the format, a filter).
    unit: what was dropped, normally "line".
    """

    def __init__(self, reason: str, evidence: Mapping[str, Any] | None = None, *, limited: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.evidence = evidence
        self.limited = limited


def unknown_name(kind: str, given: object, allowed: Iterable[str]) -> UserError:
    """The error for a name that is in no table; it names the closest known one and lists all.

    >>> print(unknown_name("format", "ultrafedback", ["shp", "ultrafeedback"]))
    unknown format 'ultrafedback'; did you mean 'ultrafeedback'? Known: shp, ultrafeedback
    """
    names = list(allowed)
    return UserError(f"unknown {kind} {given!r}{closest(given, names) or '.'} Known: {', '.join(names)}")


def closest(given: object, allowed: Sequence[str], cutoff: float = 0.5) -> str:
    """The part of a message that names the closest allowed name, or nothing where none is close."""
    close = nearest(str(given), allowed, cutoff)
    return f"; did you mean {close!r}?" if close else ""


def nearest(given: str, allowed: Collection[str], cutoff: float = 0.6) -> str | None:
    """The allowed name that differs in capitals alone, else the most similar one, None where none is (0 to 1, difflib's ratio).

    >>> nearest("Q", ["a", "q"]), nearest("qality", ["gap", "quality"]), nearest("Q", ["gap"])
    ('q', 'quality', None)
    """
    close = [one for one in allowed if one.casefold() == given.casefold()] or get_close_matches(given, allowed, 1, cutoff)
    return close[0] if close else None
