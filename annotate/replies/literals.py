"""JSON and Python literals inside a reply, with the place of every value. Nothing is evaluated.

The standard readers give no positions, stop at a trailing comma, and take either quotation marks or apostrophes. This one reads objects,
lists, strings, numbers and bare words, in time linear in the reply.
"""

import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from mmpo.annotate.replies.text import ParsedReply, Span, Unparsable, apart, plain

GRADE_KEYS = ("grade", "score", "rating", "verdict", "value")
_TOKEN = re.compile(
    r"""\s*+(?:(?P<mark>[{}\[\]:,])|"(?P<double>(?:[^"\\]++|\\.)*+)"|'(?P<single>(?:[^'\\]++|\\.)*+)'"""
    r"""|(?P<bare>[-+]?\w[-+\w./]{0,60}+))""",
    re.DOTALL,
)
# Lists of anything but objects say nothing of grades, and prose is full of them: [1], [[8]].
_OPEN = re.compile(r"\{(?=\s*+[\"'}])|\[(?=\s*+\{)")
_CLOSING = {"{": "}", "[": "]"}
_NOTHING_MORE = re.compile(r"\s*+(?:[\"']|\Z)")
_MAX_DEPTH = 20


@dataclass(frozen=True)
class Literal:
    """A value of a reply. span: its place, inside the quotation marks for a string. kind: "{", "[", "double", "single" or "bare".

    text: of a scalar. members: names and values of an object; the values of a list under the name "".
    """

    span: Span
    kind: str
    text: str = ""
    members: "tuple[tuple[str, Literal], ...]" = ()

    @property
    def scalar(self) -> bool:
        """Neither object nor list."""
        return self.kind not in _CLOSING

    @property
    def quoted(self) -> bool:
        """A string."""
        return self.kind in ("double", "single")

    def get(self, *names: str) -> "Literal | None":
        """The last member with one of these names (letter case and "_" for " " aside); None where this has none."""
        return next((value for key, value in reversed(self.members) if key_of(key) in names), None)

    def within(self) -> "Iterator[Literal]":
        """This and everything inside it, outer before inner."""
        yield self
        for _, value in self.members:
            yield from value.within()

    def strings(self, without: Collection[Span]) -> list[str]:
        """The strings in here save those at the places of `without`: what an object says besides its grades."""
        return [one.text.strip() for one in self.within() if one.quoted and one.text.strip() and one.span not in without]


@dataclass
class Literals:
    """The outermost objects and lists of a reply in their order. broken_off: one was begun and the reply ended in it."""

    outermost: list[Literal]
    broken_off: bool = False

    def all(self, kind: str) -> list[Literal]:
        """Every object ("{") or list ("[") at any depth, in the order of the reply, outer before inner."""
        return [value for outer in self.outermost for value in outer.within() if value.kind == kind]

    def nothing(self) -> Unparsable:
        """The refusal where none of these is what was looked for."""
        return Unparsable("truncated" if self.broken_off else "no_verdict")


class _Broken(Exception):
    """No literal here; `at` is how far it was read."""

    def __init__(self, at: int) -> None:
        super().__init__(at)
        self.at = at


def key_of(key: str) -> str:
    """A member's name as names are compared: lower case, "_" for spaces and dashes."""
    return re.sub(r"[\s_-]+", "_", key.strip()).lower()


def literals(text: str) -> Literals:
    """The objects and lists of a readable reply.

    Attempts that fail draw on a budget of about the reply's length; a reply made to exhaust it (thousands of brackets that open
    and never close) has no literals at all, rather than the first few.
    """
    result, at, budget = Literals([]), 0, len(text) + 20_000
    while match := _OPEN.search(text, at):
        try:
            value = _value(text, match.start(), 0)
        except _Broken as broken:
            budget -= broken.at - match.start() + 1
            if budget < 0:
                return Literals([])
            result.broken_off |= match[0] == "{" and broken.at == len(text)
            at = match.end()
        else:
            result.outermost.append(value)
            at = value.span[1]
    return result


def _next(text: str, at: int) -> re.Match[str]:
    token = _TOKEN.match(text, at)
    if token is None:
        # A string without an end was searched to the end of the reply.
        raise _Broken(len(text) if _NOTHING_MORE.match(text, at) else at)
    return token


def _value(text: str, at: int, depth: int) -> Literal:
    token = _next(text, at)
    kind = token["mark"] or token.lastgroup or ""
    if kind in _CLOSING and depth < _MAX_DEPTH:
        return _container(text, token, depth + 1)
    if token["mark"]:
        raise _Broken(token.end())
    return Literal(token.span(kind), kind, _unescaped(token))


def _container(text: str, opening: re.Match[str], depth: int) -> Literal:
    kind, at = opening["mark"], opening.end()
    members: list[tuple[str, Literal]] = []
    while (token := _next(text, at))["mark"] != _CLOSING[kind]:
        name = ""
        if kind == "{":
            if token.lastgroup not in ("double", "single") or (colon := _next(text, token.end()))["mark"] != ":":
                raise _Broken(token.end())
            name, at = _unescaped(token), colon.end()
        value = _value(text, at, depth)
        members.append((name, value))
        behind = _next(text, value.span[1] + value.quoted)
        if behind["mark"] not in (",", _CLOSING[kind]):
            raise _Broken(behind.end())
        at = behind.end() if behind["mark"] == "," else behind.start("mark")
    return Literal((opening.start("mark"), token.end()), kind, members=tuple(members))


def _unescaped(token: re.Match[str]) -> str:
    kind = token.lastgroup or ""
    body = token[kind]
    if "\\" not in body:
        return body
    double = re.sub(r'\\\'|"', lambda match: "'" if match[0] == "\\'" else '\\"', body) if kind == "single" else body
    try:
        return plain(json.loads(f'"{double}"', strict=False))
    except ValueError:
        return body


def last_that_holds(candidates: Sequence[Literal], read: Callable[[Literal], ParsedReply]) -> ParsedReply | None:
    """What the last candidate says that can be read; the last one's refusal where none can; None without candidates."""
    refusal: Unparsable | None = None
    for candidate in reversed(candidates):
        try:
            return read(candidate)
        except Unparsable as error:
            refusal = refusal or error
    if refusal:
        raise refusal
    return None


def rationale(text: str, cut: Collection[Span], said: Sequence[str] = ()) -> str:
    """The text apart from the verdicts at `cut`, and what objects there say besides their grades."""
    return "\n".join(part for part in (apart(text, cut), *said) if part)
