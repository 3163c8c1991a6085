"""Texts as Argilla's page shows them: what a model or a person wrote stays text there, and comes back to the letter.

In Argilla 2.8 hostile text without Markdown reaches the page and a frame of it. With Markdown tags vanish from sight, pictures are fetched
from wherever a text says, and dollar amounts turn into formulas. So nothing goes there as it is:

plain      &, < and > as HTML entities: the page shows each character that was written
markdown   an invisible word joiner behind every &, <, $, every ! before a bracket and every javascript, vbscript and data before a
           colon, so that none of them begins HTML, a formula, a picture or a script
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from html import escape

JOINER = "\u2060"
TEXTS_KEPT = 256
"""Texts whose joined form is kept: the same reply stands in many pairs of a prompt."""
SCHEMES = ("javascript", "vbscript", "data")
BEGINS = re.compile(rf"[&<$]|!(?=\[|{JOINER})|(?i:{'|'.join(SCHEMES)})(?=:|{JOINER})")
# The joiner first: it is rare, and a search for it skips through the text.
JOINED = re.compile(rf"{JOINER}(?:(?<=[&<$!]{JOINER})|{'|'.join(rf'(?<=(?i:{one}){JOINER})' for one in SCHEMES)})")


@dataclass(frozen=True)
class Display:
    """A way to show texts. shown and written undo each other exactly; markdown: whether the fields render it."""

    shown: Callable[[str], str]
    written: Callable[[str], str]
    markdown: bool
    summary: str


def _as_entities(text: str) -> str:
    return escape(text, quote=False)


def _from_entities(text: str) -> str:
    """The way back, of these three alone: `html.unescape` would read others too, which were never sent."""
    return text.replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&")


@lru_cache(TEXTS_KEPT)
def _joined(text: str) -> str:
    return BEGINS.sub(lambda found: found.group() + JOINER, text)


def _parted(text: str) -> str:
    return JOINED.sub("", text)


DISPLAYS: dict[str, Display] = {
    "plain": Display(_as_entities, _from_entities, False, "every character as it was written"),
    "markdown": Display(_joined, _parted, True, "headings, lists, tables and code as Markdown; no HTML, pictures or formulas"),
}
"""The family of `--display`."""
