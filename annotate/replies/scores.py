"""Replies that score two texts together, "8 10": the format `two-scores`."""

import re
from collections.abc import Sequence

from mmpo.annotate.replies.label import NUMBER, ends_here, number_of
from mmpo.annotate.replies.text import ParsedReply, Span, Unparsable, apart
from mmpo.annotate.scales import Scale

__all__ = ["two_scores"]


def _number(name: str) -> str:
    """A number's pattern, its groups named after `name`."""
    return rf"(?P<{name}>{NUMBER.replace('P<of>', f'P<{name}_of>').replace('P<out>', f'P<{name}_out>')})"


_BLANK = r"[\s*_`]{0,4}"
_ONE, _TWO, _EACH = _number("one"), _number("two"), _number("each")
_WHO = r"(?<![A-Za-z])(?:assistant|model|response|answer|output|candidate|completion)s?[\s*_`]{1,3}"
_WHICH = rf"{_WHO}[\[(#]?(?P<which>1|2|a|b|one|two)(?![A-Za-z0-9])[\])]?"
_BOTH = rf"{_WHO}(?:1|a|one)\s{{1,3}}(?:and|&)\s{{1,3}}(?:{_WHO})?(?:2|b|two)(?![A-Za-z0-9])"
_SCORE = r"(?:scores?|rating|grade)"
_GAP = r"[^\n.\d:;]"
_NEAR = rf"(?:(?!{_WHO}){_GAP})"
_PAIR = rf"{_ONE}(?:\s{{0,3}}[,;|]\s{{0,3}}|\s{{1,3}}(?:and\s{{1,3}})?){_TWO}"
# "a score of 8" says enough; "a 8" does only with its "out of 10".
_GIVEN = rf"(?:{_SCORE}\s{{1,3}}(?:of|is|as)|(?P<weak>an?|as|at))\s{{1,3}}"


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE | re.ASCII)


_LINE = _compiled(rf"[\s*_`]{{0,9}}(?:{_SCORE}{_BLANK}:)?{_BLANK}[(\[]?\s{{0,3}}{_PAIR}\s{{0,3}}[)\]]?[\s*_`.]{{0,9}}")
# What a statement says is told by its groups: a pair (one, two), one score for both (each), or one of one text (which, one).
_STATEMENTS = (
    _compiled(rf"\b{_SCORE}\s{{1,3}}of\s{{1,3}}{_ONE}\s{{1,3}}(?:to|for)\s{{1,3}}{_WHICH}"),
    _compiled(rf"\b(?:output|tuple|{_SCORE}){_GAP}{{0,30}}(?:\bis\b|\bare\b|:){_BLANK}[(\[]\s{{0,3}}{_PAIR}\s{{0,3}}[)\]]"),
    _compiled(rf"{_BOTH}{_GAP}{{0,30}}\s(?:are|is|:)\s{{1,3}}{_PAIR}"),
    _compiled(rf"\bboth\s{_GAP}{{0,30}}(?:{_BOTH}{_GAP}{{0,40}})?\b{_GIVEN}{_EACH}"),
    _compiled(rf"{_WHICH}{_NEAR}{{0,60}}?\s{_GIVEN}{_ONE}(?!\s{{1,3}}(?:to|for)\s{{1,3}}{_WHO})"),
    _compiled(
        rf"{_WHICH}(?:['’]s)?{_BLANK}(?:\s{_SCORE})?{_BLANK}(?P<sep>[:=]|\bis\b){_BLANK}(?:{_SCORE}{_BLANK}:{_BLANK})?{_ONE}"
    ),
)
_SECOND = ("2", "b", "two")


def two_scores(text: str, scale: Scale, names: Sequence[str]) -> ParsedReply:
    """Two numbers that are all of the first line ("8 10", "8.0, 9.5"), as judges are told to begin; else those of the last line; else
    what the text says of each: "Assistant 1: 8", "give Assistant 2 a score of 9 out of 10", "the scores are (8, 9)", "both ... a score
    of 8", the last for each. A pair inside the text is none: it may be data that the judge discusses.

    Unparsable("missing_label") where only one of the two has a score. Source of the form: Vicuna's reviews (Chiang et al. 2023).
    """
    start, end = len(text) - len(text.lstrip()), len(text.rstrip())
    stop = text.find("\n", start, end)
    for span in ((start, end if stop < 0 else stop), (max(start, text.rfind("\n", 0, end) + 1), end)):
        line = _LINE.fullmatch(text, *span)
        if line and (values := _pair(line, scale)) is not None:
            return _found(text, values, names, [span])
    return _from_statements(text, scale, names)


def _meant(text: str, match: re.Match[str], groups: dict[str, str | None]) -> bool:
    """Whether the number is a score: not in "Assistant 1: 3 mistakes", nor in "both have a 3 step plan"."""
    if groups.get("weak"):
        return any(groups.get(name) for name in ("one_of", "one_out", "each_of", "each_out"))
    return not groups.get("sep") or ends_here(text, match.end())


def _score(match: re.Match[str], group: str, scale: Scale) -> tuple[float | None, Span]:
    number = re.match(r"[-+]?[\d.]+(?<!\.)", match[group])
    written = number[0] if number else match[group]
    value = number_of(written, match[f"{group}_of"] or match[f"{group}_out"], scale)
    return value, (match.start(group), match.start(group) + len(written))


def _pair(match: re.Match[str], scale: Scale) -> list[tuple[float | None, Span]] | None:
    scores = [_score(match, group, scale) for group in ("one", "two")]
    return None if any(value is None for value, _ in scores) else scores


def _from_statements(text: str, scale: Scale, names: Sequence[str]) -> ParsedReply:
    heard = sorted((match.end(), order, match) for order, pattern in enumerate(_STATEMENTS) for match in pattern.finditer(text))
    scores: list[list[tuple[float | None, Span]]] = [[], []]
    for _, _, match in heard:
        groups = match.groupdict()
        if not _meant(text, match, groups):
            continue
        if groups.get("each"):
            both = _score(match, "each", scale)
            said = [(0, both), (1, both)]
        elif "two" in groups:
            said = [(0, _score(match, "one", scale)), (1, _score(match, "two", scale))]
        else:
            said = [(int(match["which"].lower() in _SECOND), _score(match, "one", scale))]
        for which, score in said:
            scores[which].append(score)
    if not any(scores):
        raise Unparsable("no_verdict")
    offered = [[score for score in one if score[0] is not None] for one in scores]
    if not all(offered):
        raise Unparsable("out_of_scale" if all(scores) else "missing_label")
    return _found(text, [one[-1] for one in offered], names, [])


def _found(text: str, scores: list[tuple[float | None, Span]], names: Sequence[str], cut: list[Span]) -> ParsedReply:
    values = {name: float(value or 0.0) for name, (value, _) in zip(names, scores, strict=True)}
    return ParsedReply(values, {name: span for name, (_, span) in zip(names, scores, strict=True)}, apart(text, cut))
