"""What all parsers of judges' replies share: the result, the refusal, and the reply made safe without moving a character."""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from mmpo.pipeline.thinking import thinking_spans

Span = tuple[int, int]

# Form feeds stand for what was taken out: white space to every pattern, and droppable later, since none survives from the reply itself.
GONE = "\f"
_ANSI = re.compile(r"(?:\x1b\[|\x9b)[0-?]{0,32}[ -/]{0,8}[@-~]")
_EMPTY_FENCE = re.compile(r"```\w{0,20}\s*```")
_EDGE = "\"'*_`“”‘’"


class Unparsable(Exception):
    """The reply holds no grade that may be used. `reason` is a value of its own, to be counted, never turned into a grade.

    empty                nothing but white space
    unclosed_thinking    a thinking block was opened and the reply ends inside it
    no_verdict           text, and no grade in it
    truncated            JSON that breaks off
    out_of_scale         grades, and none of them was offered
    missing_label        something that was to be graded has no grade
    ambiguous            two different grades of the same thing in one verdict
    not_applicable       "N/A" for every aspect
    not_a_ranking        ranks that no order of the candidates has
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class ParsedReply:
    """What a reply says. values: what is graded → its value. spans: the same keys → [start, end) of the grade's label, in characters of
    the original reply. rationale: the text apart from the verdict and from thinking blocks; may be empty."""

    values: dict[str, float]
    spans: dict[str, Span]
    rationale: str


class _Readable(dict[int, str]):
    """For str.translate: full-width forms become ASCII, odd spaces and invisible characters a space; always one for one."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        category = unicodedata.category(character)
        if 0xFF01 <= code <= 0xFF5E:
            made = chr(code - 0xFEE0)
        elif character in "\r\v\f\x85\u2028\u2029":
            made = "\n"
        elif category == "Cs":
            made = "\ufffd"
        elif category in ("Cc", "Cf", "Zs") and character not in "\n\t":
            made = " "
        else:
            made = "-" if character == "−" else character
        self[code] = made
        return made


_READABLE = _Readable()


def plain(text: str) -> str:
    """The text without control, invisible and full-width characters; as long as it was.

    >>> plain("［［８］］\\x00：−2")
    '[[8]] :-2'
    """
    return text.translate(_READABLE)


def readable(reply: str) -> str:
    """The reply as the parsers read it, of the same length, so that positions are positions in the reply: terminal sequences and
    thinking blocks (<think>, <thinking>, <thought>, <reasoning>, ◁think▷) are blanked, the rest is `plain`.

    A closing tag that nothing opened (templates open it in the prompt) ends a block that began with the reply. Unparsable("empty"),
    or ("unclosed_thinking") where the reply ends inside a block.
    """
    text = _without_thinking(plain(_ANSI.sub(lambda match: " " * len(match[0]), reply)))
    if not text.strip():
        raise Unparsable("empty")
    return text


def _without_thinking(text: str) -> str:
    spans = thinking_spans(text)
    if spans is None:
        raise Unparsable("unclosed_thinking")
    return blanked(text, spans)


def blanked(text: str, spans: Iterable[Span]) -> str:
    """The text with white space, of the same length, in place of these spans, which do not overlap."""
    parts, done = [], 0
    for start, end in sorted(spans):
        parts += [text[done:start], GONE * (end - start)]
        done = end
    return "".join(parts) + text[done:]


def apart(text: str, spans: Iterable[Span]) -> str:
    """The readable text without the verdicts at these spans (quotes and emphasis around them go too), stripped."""
    kept, done = [], 0
    for start, end in sorted(spans):
        while start > done and text[start - 1] in _EDGE:
            start -= 1
        while end < len(text) and text[end] in _EDGE + ".":
            end += 1
        kept.append(text[done : max(start, done)])
        done = max(end, done)
    rest = "".join([*kept, text[done:]]).replace(GONE, "")
    return re.sub(r"\n{3,}", "\n\n", _EMPTY_FENCE.sub("", rest)).strip()


def first_and_last_line(text: str) -> tuple[Span, Span]:
    """The places of the first and of the last line that hold anything, without the white space at the text's ends."""
    start, end = len(text) - len(text.lstrip()), len(text.rstrip())
    stop = text.find("\n", start, end)
    return (start, end if stop < 0 else stop), (max(start, text.rfind("\n", 0, end) + 1), end)
