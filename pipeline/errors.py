"""The errors of mmpo.

    MmpoError
    ├── UserError        the user's input, options or configuration are wrong      exit 2
    │   └── InvalidValue     a number that a formula does not allow                exit 2
    └── PartialResult    finished in part; the same command resumes                exit 3

A message names what was given, what is allowed and the next move; it is all that a user sees, never a traceback.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class MmpoError(Exception):
    """Base of every error that mmpo raises on purpose."""


class UserError(MmpoError):
    """The input, an option or the configuration is wrong: exit status 2."""


class InvalidValue(UserError, ValueError):
    """A number that a formula does not allow: a ValueError in Python, exit status 2 on the command line."""


class PartialResult(MmpoError):
    """Finished in part; what succeeded is safe and the same command resumes: exit status 3."""


def unknown_name(kind: str, given: object, allowed: Iterable[str]) -> UserError:
    """The error for a name that is in no table; it names the closest known one and lists all.

    >>> print(unknown_name("format", "ultrafedback", ["shp", "ultrafeedback"]))
    unknown format 'ultrafedback'; did you mean 'ultrafeedback'? Known: shp, ultrafeedback
    """
    names = list(allowed)
    return UserError(f"unknown {kind} {given!r}{closest(given, names) or '.'} Known: {', '.join(names)}")


def closest(given: object, allowed: Sequence[str], cutoff: float = 0.5) -> str:
    """The part of a message that names the closest allowed name, or nothing where none is close."""
    close = get_close_matches(str(given), allowed, n=1, cutoff=cutoff)
    return f"; did you mean {close[0]!r}?" if close else ""
