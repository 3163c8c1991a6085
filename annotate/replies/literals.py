"""JSON and Python literals inside a reply, with the place of every value. Nothing is evaluated.

The standard readers tell no positions, stop at a trailing comma, and take either quotation marks or apostrophes. This one reads objects,
lists, strings, numbers and bare words, in time linear in the reply.
"""

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from mmpo.annotate.replies.text import Span, plain

__all__ = ["Literal", "Literals", "key_of", "literals", "texts"]

_TOKEN = re.compile(
    r"""\s*+(?:(?P<mark>[{}\[\]:,])|"(?P<double>(?:[^"\\]++|\\.)*+)"|'(?P<single>(?:[^'\\]++|\\.)*+)'"""
    r"""|(?P<bare>[-+]?\w[-+\w./]{0,60}+))""",
    re.DOTALL,
)
# Lists of anything but objects say nothing of grades, and prose is full of them: [1], [[8]].
_OPEN = re.compile(r"\{(?=\s*+[\"'}])|\[(?=\s*+\{)")
_NOTHING_MORE = re.compile(r"\s*+(?:[\"']|\Z)")
_DEEPEST = 20


@dataclass(frozen=True)
class Literal:
    """A value of a reply: [start, end) is its place, inside the quotation marks for a string. An object has `members`, a list has
    `items`, all else is a scalar with its `text`."""

    start: int
    end: int
    text: str = ""
    quoted: bool = False
    items: "tuple[Literal, ...] | None" = None
    members: "tuple[tuple[str, Literal], ...] | None" = None

    @property
    def span(self) -> Span:
        """[start, end)."""
        return self.start, self.end

    @property
    def scalar(self) -> bool:
        """Neither object nor list."""
        return self.items is None and self.members is None

    def get(self, *names: str) -> "Literal | None":
        """The last member with one of these names (letter case and "_" for " " aside); None where this has none."""
        found = [value for key, value in self.members or () if key_of(key) in names]
        return found[-1] if found else None

    def within(self) -> "Iterator[Literal]":
        """This and everything inside it, outer before inner."""
        yield self
        for value in (*(self.items or ()), *(value for _, value in self.members or ())):
            yield from value.within()


@dataclass
class Literals:
    """The outermost objects and lists of a reply in their order. broken_off: one was begun and the reply ended in it."""

    found: list[Literal] = field(default_factory=list)
    broken_off: bool = False

    def objects(self) -> list[Literal]:
        """Every object at any depth, in the order of the reply, outer before inner."""
        return [value for outer in self.found for value in outer.within() if value.members is not None]

    def lists(self) -> list[Literal]:
        """Every list at any depth, in the order of the reply, outer before inner."""
        return [value for outer in self.found for value in outer.within() if value.items is not None]


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
    result, at, budget = Literals(), 0, len(text) + 20_000
    while match := _OPEN.search(text, at):
        try:
            value = _value(text, match.start(), 0)
        except _Broken as broken:
            budget -= broken.at - match.start() + 1
            if budget < 0:
                return Literals()
            result.broken_off |= match[0] == "{" and broken.at == len(text)
            at = match.end()
        else:
            result.found.append(value)
            at = value.end
    return result


def _next(text: str, at: int) -> re.Match[str]:
    token = _TOKEN.match(text, at)
    if token is None:
        # A string without an end was searched to the end of the reply.
        raise _Broken(len(text) if _NOTHING_MORE.match(text, at) else at)
    return token


def _value(text: str, at: int, depth: int) -> Literal:
    token = _next(text, at)
    mark, kind = token["mark"], token.lastgroup or ""
    if mark == "{" and depth < _DEEPEST:
        return _object(text, token, depth + 1)
    if mark == "[" and depth < _DEEPEST:
        return _list(text, token, depth + 1)
    if mark:
        raise _Broken(token.end())
    return Literal(*token.span(kind), text=_unescaped(token[kind], kind), quoted=kind != "bare")


def _object(text: str, opening: re.Match[str], depth: int) -> Literal:
    members: list[tuple[str, Literal]] = []
    at = opening.end()
    while (key := _next(text, at))["mark"] != "}":
        kind = key.lastgroup or ""
        if kind not in ("double", "single") or _next(text, key.end())["mark"] != ":":
            raise _Broken(key.end())
        value = _value(text, _next(text, key.end()).end(), depth)
        members.append((_unescaped(key[kind], kind), value))
        at = _after(text, value, "}")
    return Literal(opening.start("mark"), key.end(), members=tuple(members))


def _list(text: str, opening: re.Match[str], depth: int) -> Literal:
    items: list[Literal] = []
    at = opening.end()
    while (token := _next(text, at))["mark"] != "]":
        items.append(_value(text, at, depth))
        at = _after(text, items[-1], "]")
    return Literal(opening.start("mark"), token.end(), items=tuple(items))


def _after(text: str, value: Literal, closing: str) -> int:
    """Where to read on behind a value: past a comma, or at the closing bracket."""
    token = _next(text, value.end + value.quoted)
    if token["mark"] == ",":
        return token.end()
    if token["mark"] != closing:
        raise _Broken(token.end())
    return token.start("mark")


def _unescaped(body: str, kind: str) -> str:
    if "\\" not in body:
        return body
    double = re.sub(r'\\\'|"', lambda match: "'" if match[0] == "\\'" else '\\"', body) if kind == "single" else body
    try:
        return plain(json.loads(f'"{double}"', strict=False))
    except ValueError:
        return body


def texts(value: Literal, without: Collection[Span]) -> list[str]:
    """The strings inside a value save those at the places of `without`: what an object says besides its grades."""
    return [one.text.strip() for one in value.within() if one.quoted and one.text.strip() and one.span not in without]
