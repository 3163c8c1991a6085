"""What a text query means in the embedded Argilla: which words a record's fields must and must not hold. Pure; no imports of the
server.

Words must all occur, in any of the fields, in upper or lower case; "in quotes" the words in a row; a minus before a word: must not
occur; `|` between: either side will do.
"""

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

TERM = re.compile(r'(-?)"([^"]*)"?|(\S+)')


def terms_of(query: str) -> list[list[tuple[bool, str]]]:
    """Alternatives, each a list of (wanted, text) in folded case; no alternatives where the query holds no text.

    >>> terms_of('Blue "deep sea" -whale | red')
    [[(True, 'blue'), (True, 'deep sea'), (False, 'whale')], [(True, 'red')]]
    """
    alternatives: list[list[tuple[bool, str]]] = [[]]
    for minus, quoted, word in TERM.findall(query):
        if word == "|":
            alternatives.append([])
            continue
        wanted = not (minus or word.startswith("-"))
        text = " ".join((quoted or word.lstrip("+-").rstrip("*")).casefold().split())
        if text:
            alternatives[-1].append((wanted, text))
    return [terms for terms in alternatives if terms]


def pack(query: str, fields: Sequence[str]) -> str:
    """A query over these fields as one string, for `matches`; empty where the query holds no text."""
    terms = terms_of(query)
    return json.dumps({"fields": list(fields), "terms": terms}) if terms else ""


@lru_cache(maxsize=32)
def _unpacked(packed: str) -> tuple[list[str], list[list[tuple[bool, str]]]]:
    query = json.loads(packed)
    return query["fields"], query["terms"]


def matches(values: str | None, packed: str) -> bool:
    """Whether a record's fields, as the JSON object that the server stores, answer a packed query.

    >>> matches('{"text": "Über den Wolken", "chat": [{"role": "user", "content": "Hi"}]}', pack("über hi", ["text", "chat"]))
    True
    """
    names, alternatives = _unpacked(packed)
    fields = json.loads(values or "{}")
    texts = [" ".join(_text(fields.get(name)).casefold().split()) for name in names]
    return any(all(wanted == any(text in field for field in texts) for wanted, text in terms) for terms in alternatives)


def _text(value: Any) -> str:
    """The text of a field: of a chat what was said, of a custom field all of it."""
    if isinstance(value, list) and all(isinstance(turn, dict) and "content" in turn for turn in value):
        return "\n".join(str(turn["content"]) for turn in value)
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
