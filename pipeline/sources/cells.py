"""What stands in a cell: numbers as spreadsheets and people write them, names, lists, a winner in words; and columns inside columns."""

import re
from collections.abc import Callable, Collection, Mapping
from operator import methodcaller
from typing import Any

from mmpo.pipeline.errors import BadRow
from mmpo.pipeline.sources.messages import structure

DECIMALS = (".", ",")
_FRACTION = re.compile(r"(.*\S)\s*(?:/\s*(\S+)|(%))")
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+")


class Cells:
    """How a file's cells are read. decimal: the decimal mark of numbers written as text (None: text is no number). na: texts that stand
    for no value. high: the scale's upper end, if it is known. gap_of: what a winner in words is worth.
    """

    def __init__(self, decimal: str | None, na: Collection[str], high: float | None, gap_of: Mapping[str, float]) -> None:
        self.decimal, self.na, self.high = decimal, frozenset(na), high
        self.gap_of = {word.strip().casefold(): gap for word, gap in gap_of.items()}

    def number(self, value: Any, field: str) -> Any:
        """The number in a cell, None where there is none; what is neither number nor text is left to the builder to refuse.

        "4/5" is 4 and "80%" is 80 where the scale ends at 5 or 100. Raises BadRow score_not_a_number with the option that would read it.
        """
        if not isinstance(value, str):
            return value
        text = value.strip()
        if not text or text in self.na:
            return None
        found = None if self.decimal is None else self._plain(text)
        if found is None and (part := _FRACTION.fullmatch(text)) and self.decimal is not None:
            whole = self._plain(part[2]) if part[2] else 100.0
            if whole is not None and whole == self.high:
                found = self._plain(part[1])
        if found is None:
            raise BadRow("score_not_a_number", {field: repr(value)[:80], "hint": self._hint(text, field)})
        return found

    def _plain(self, text: str) -> float | None:
        """A number with the decimal mark of the file. `float` would also take 1_000."""
        if self.decimal == ",":
            if "." in text:
                return None
            text = text.replace(",", ".")
        try:
            found = float(text.replace("−", "-"))
        except ValueError:
            return None
        return None if "_" in text or found - found else found

    def _hint(self, text: str, field: str) -> str:
        """The option that would read the text."""
        if self.decimal is None:
            return "--decimal . reads numbers that are written as text"
        part = _FRACTION.fullmatch(text)
        if part and self._plain(part[1]) is not None:
            return f"--scale LOW:{part[2] or 100} reads it as {part[1]}"
        if self.decimal == "." and _DECIMAL_COMMA.fullmatch(text):
            return "--decimal , reads it"
        if self.decimal == "," and Cells(".", (), None, {})._plain(text) is not None:
            return "--decimal . reads it"
        words = f"; --gap-of {text}=1,... gives words a gap" if field in ("gap", "margin") else ""
        return f"--na {text} reads it as no grade{words}"

    def gap(self, value: Any, field: str) -> Any:
        """A gap given by the word for the winner (--gap-of), or as a number. Raises BadRow: unknown_winner, score_not_a_number."""
        if not self.gap_of or value is None:
            return self.number(value, field)
        word = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()
        if not word or word in self.na:
            return None
        if word.casefold() not in self.gap_of:
            raise BadRow("unknown_winner", {field: word[:80], "known": list(self.gap_of), "hint": f"--gap-of {word[:80]}=..."})
        return self.gap_of[word.casefold()]

    def name(self, value: Any) -> str | None:
        """A rater's, an aspect's or a model's name without the white space around it; None where there is none.

        A number that was stored as 7.0 or NaN, since others are missing, is "7" or None.
        """
        if value is None or value != value:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        text = value.strip() if type(value) is str else str(value).strip()
        return text if text and text not in self.na else None

    def listed(self, value: Any) -> Any:
        """The list in a cell of a file whose cells are all text: as JSON, or as Python writes it; anything else stays what it is."""
        found = structure(value) if isinstance(value, str) else None
        return value if found is None else found


def is_empty(value: Any) -> bool:
    """Whether a cell holds nothing: null, an empty text, list or object, or one of nothing but those."""
    if isinstance(value, Mapping):
        return all(map(is_empty, value.values()))
    if isinstance(value, list):
        return all(map(is_empty, value))
    return value is None or (isinstance(value, str) and value.strip().lower() in ("", "[]", "{}", "null", "none"))


Read = Callable[[Mapping[str, Any]], Any]


def top_column(column: str, present: Collection[str]) -> str:
    """The column that a path begins with: `completions` of `completions[].text`; a column of that very name is itself.

    >>> top_column("reply.text", ["reply"]), top_column("reply.text", ["reply.text"])
    ('reply', 'reply.text')
    """
    return column if column in present else re.split(r"[.\[]", column, maxsplit=1)[0]


def reader(column: str, present: Collection[str]) -> Read:
    """The function that takes a column's value out of a row; `a.b` is inside an object, `a[].b` in each of a list of objects, `a[0].b`
    in the first of them. The column may hold objects or lists as JSON in a text.

    >>> reader("a[].b", ["a"])({"a": [{"b": 1}, {"b": 2}, {}]}), reader("a[0].b", ["a"])({"a": '[{"b": 1}]'})
    ([1, 2, None], 1)
    """
    top = top_column(column, present)
    steps = re.findall(r"\[\d*\]|[^.\[\]]+", column[len(top) :])
    if not steps:
        return methodcaller("get", column)
    return lambda row: _follow(row.get(top), steps)


def _follow(value: Any, steps: list[str]) -> Any:
    for place, step in enumerate(steps):
        if isinstance(value, str):
            value = structure(value)
        if step == "[]":
            return [_follow(one, steps[place + 1 :]) for one in value] if isinstance(value, list) else value
        if step[0] == "[":
            value = value[int(step[1:-1])] if isinstance(value, list) and int(step[1:-1]) < len(value) else None
        else:
            value = value.get(step) if isinstance(value, Mapping) else None
    return value


def terms(column: str, present: Collection[str]) -> list[tuple[str, float]]:
    """The columns that a grade is read from, each with its sign: one a rater where several are joined by +, `-COLUMN` turned round.

    >>> terms("anna+-ben", ["anna", "ben"]), terms("a+b", ["a+b"])
    ([('anna', 1.0), ('ben', -1.0)], [('a+b', 1.0)])
    """
    if column in present:
        return [(column, 1.0)]
    parts = [part.strip() for part in column.split("+")]
    return [(part, 1.0) if part in present or part[:1] != "-" else (part[1:].strip(), -1.0) for part in parts if part]
