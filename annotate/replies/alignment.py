"""Which tokens spell a reply.

Endpoints that take thinking or channels out of a reply leave their tokens in its list of tokens, ahead of the reply's own. So tokens are
laid along the reply from its end, as far as they spell it; what lies before is not the reply's, and its alternatives are no grades.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mmpo.annotate.client import Token

_AFTER_THE_REPLY = re.compile(r"\s*(?:<[^<>\s]{1,40}>|\[EOS\])?\s*")
"""A token behind the reply's last character: white space that was stripped, or the end of a turn."""
_PIECES = str.maketrans({"▁": " ", "Ġ": " ", "Ċ": "\n"})
"""How tokenizers write white space inside, where a server shows their pieces undecoded."""


@dataclass(frozen=True)
class PlacedToken:
    """A token and the characters of the reply, [start, end), that it spells."""

    start: int
    end: int
    token: Token


def placed(text: str, tokens: Sequence[Token]) -> list[PlacedToken]:
    """The tokens that spell the end of the reply, in order, from the first one that does without a gap; none where the last does not.

    White space at the reply's ends may be missing from it or from them.

    >>> [(one.start, one.token.text) for one in placed("Verdict: C", [Token(t) for t in ("A", "</think>", "Ver", "dict:", " C", "</s>")])]
    [(0, 'Ver'), (3, 'dict:'), (8, ' C')]
    """
    found: list[PlacedToken] = []
    end = len(text.rstrip())
    for token in reversed(tokens):
        if end == 0:
            break
        start = next((at for piece in _written(token, last=not found) if (at := _start(text, piece, end)) is not None), None)
        if start is not None:
            found.append(PlacedToken(start, end, token))
            end = start
        elif token.text and (found or not _AFTER_THE_REPLY.fullmatch(token.text)):
            break
    return found[::-1]


def _written(token: Token, *, last: bool) -> Iterator[str]:
    for piece in (token.text, token.text.translate(_PIECES)):
        yield piece.rstrip() if last else piece


def _start(text: str, piece: str, end: int) -> int | None:
    """Where a piece begins that the text has right before `end`; white space before the text's first character does not count."""
    if piece and text.endswith(piece, 0, end):
        return end - len(piece)
    bare = piece.lstrip()
    return 0 if bare and bare == text[:end].lstrip() else None
