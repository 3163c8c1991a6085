"""Replies that choose between two texts called Output (a) and Output (b): the format `output-choice`."""

import re
from collections.abc import Sequence
from functools import lru_cache

from mmpo.annotate.replies.text import ParsedReply, Span, Unparsable, apart
from mmpo.annotate.scales import Scale

__all__ = ["output_choice"]

# The same sentence speaks of somebody else's opinion, or leaves the matter open.
_NOT_OURS = re.compile(
    r"\bassistants?\s{1,3}(?:\([a-z]\)\s{1,3})?(?:[a-z]{1,12}\s{1,3}){0,2}(?:argu|believ|claim|conclud|stat|suggest|prefer|favou?r|say|think|point)"
    r"|\b(?:whether|if|neither|nor|either|cannot|not\s{1,3}(?:clear|sure|true|certain|obvious|think|believe|say))\b[^,;]{0,60}\Z|\bor\s{1,3}\Z",
    re.IGNORECASE | re.ASCII,
)
_SENTENCE = 300
_ASIDE = re.compile(r"\s{1,3}(?:in\s{1,3}terms|in\s{1,3}(?:its|this|that)\s|at\s)", re.IGNORECASE | re.ASCII)


@lru_cache(maxsize=64)
def _patterns(labels: tuple[str, ...]) -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """What states a choice inside a sentence (two ways), and what is one where it has a line to itself."""
    output = rf"\boutput\s{{0,3}}\(\s{{0,2}}(?P<label>{'|'.join(map(re.escape, labels))})\s{{0,2}}\)"
    better = re.compile(
        rf"{output}[\"'*`]{{0,4}}\s{{1,3}}(?:is|would\s{{1,3}}be)\s{{1,3}}(?:(?:the|a|clearly|slightly|much|overall|definitely|still)\s{{1,3}}){{0,2}}"
        r"better\b",
        re.IGNORECASE | re.ASCII,
    )
    picked = re.compile(
        r"(?:\b(?:choose|select|prefer|pick|go\s{1,3}with)|\b(?:choice|verdict|answer)\s{1,3}is|"
        r"\bbetter\s{1,3}(?:output|response|option|answer|one)(?:\s{1,3}[a-z]{1,15}){0,8}\s{1,3}is)"
        rf"(?:\s{{0,3}}:)?\s{{1,3}}[\"'*`]{{0,4}}{output}",
        re.IGNORECASE | re.ASCII,
    )
    alone = re.compile(rf"[\s#>*\"'`]{{0,9}}{output}[\s.!*\"'`]{{0,9}}(?P<note>\s\(.*)?", re.IGNORECASE | re.ASCII | re.DOTALL)
    return better, picked, alone


def output_choice(text: str, scale: Scale, names: Sequence[str]) -> ParsedReply:
    """The last statement of a choice: "Output (b) is better", "I choose Output (b)", "the better output is Output (b)", or
    "Output (b)" alone on the first or the last line. Where the first line and the conclusion disagree the conclusion wins.

    LLMBar's recorded answers cannot arbitrate that: its parsers look for "(a)" before they look for "(b)", and so have (a) for 139 replies
    that conclude with (b). Where that order decides nothing, this rule agrees with all but 8 of 8,854.

    A mention is no choice, nor is what an assistant in a debate is said to argue, a question, or one aspect ("is better in terms of").
    """
    better, picked, alone = _patterns(tuple(scale.labels))
    stated = [match for match in better.finditer(text) if _ours(text, match) and not _ASIDE.match(text, match.end())]
    stated += [match for match in picked.finditer(text) if _ours(text, match)]
    choices = [match.span("label") for match in stated]
    lines = [(span, match) for span in _edges(text) if (match := alone.fullmatch(text, *span))]
    # A note in brackets may follow on a first line only: at the end it is a sentence cut short.
    opening = len(text) - len(text.lstrip())
    choices += [match.span("label") for span, match in lines if not match["note"] or span[0] == opening]
    if not choices:
        raise Unparsable("no_verdict")
    last = max(choices)
    value = _value(text[slice(*last)], scale)
    return ParsedReply({names[0]: value}, {names[0]: last}, apart(text, _own_line(text, last, better, alone)))


def _value(label: str, scale: Scale) -> float:
    return next(value for known, value in scale.labels.items() if known.lower() == label.lower())


def _ours(text: str, match: re.Match[str]) -> bool:
    """Whether a statement is the judge's own conclusion, by what comes before it in its sentence."""
    before = re.split(r"[.!?\n]", text[max(0, match.start() - _SENTENCE) : match.start()])[-1]
    return _NOT_OURS.search(before) is None


def _edges(text: str) -> list[Span]:
    """The first and the last line that hold anything."""
    start, end = len(text) - len(text.lstrip()), len(text.rstrip())
    stop = text.find("\n", start, end)
    return [(start, end if stop < 0 else stop), (max(start, text.rfind("\n", 0, end) + 1), end)]


def _own_line(text: str, label: Span, *patterns: re.Pattern[str]) -> list[Span]:
    """The choice's line, where it holds nothing else; a sentence that states the choice is part of the rationale."""
    start, stop = text.rfind("\n", 0, label[0]) + 1, text.find("\n", label[1])
    end = len(text) if stop < 0 else stop
    line = text[start:end].strip(" #>*\"'`.!\f")
    return [(start, end)] if any(pattern.fullmatch(line) for pattern in patterns) else []
