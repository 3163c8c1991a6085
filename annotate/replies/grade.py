"""Replies with one grade: the formats `grade` and `double-bracket`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from mmpo.annotate.replies.label import Label, ends_here, label_of, labels_pattern
from mmpo.annotate.replies.literals import Literal, Literals, literals, texts
from mmpo.annotate.replies.text import ParsedReply, Span, Unparsable, apart, blanked
from mmpo.annotate.scales import Scale

__all__ = ["alone", "double_bracket", "grade"]

_KEYS = ("verdict", "grade", "score", "rating", *(f"final_{name}" for name in ("verdict", "grade", "score", "rating", "answer")))
_CUE = r"(?:(?<![A-Za-z0-9_])(?:verdict|grade|rating|score|final\s{1,3}(?:answer|decision|choice))(?![A-Za-z])|评分|評価|评级|判定)"
_OPENS = r"[\s*_`\"'“”‘’(\[{<$#>]{0,20}"
_CLOSES = r"[\s*_`\"'“”‘’)\]}>.!,:;$]{0,20}"
_REST_OF_LINE = re.compile(r"[^\S\n]{0,9}[*_`\"'“”’)\]}>.]{0,9}[^\S\n]{0,9}(?:\n|\Z)")
_LEFT_OPEN = re.compile(r"[\"“‘(\[{]")
_NAMED = r"(?:(?:option|choice|label|grade|an?)\s{1,3}[*_`\"'(\[]{0,4})?"


@dataclass(frozen=True)
class _Verdict:
    """One statement of a grade. span: all of it; inside: the outermost object that holds it."""

    label: Label
    span: Span
    inside: Literal | None = None


@lru_cache(maxsize=64)
def _patterns(labels: tuple[str, ...]) -> dict[str, re.Pattern[str]]:
    label = labels_pattern(labels)
    flags = re.IGNORECASE | re.ASCII
    return {
        "bracket": re.compile(rf"\[\[[\s*\"']{{0,5}}(?:[^\[\]\n:]{{1,20}}:)?[\s*\"']{{0,5}}{label}[\s*\"']{{0,5}}\]\]", flags),
        "boxed": re.compile(
            rf"\\boxed\s{{0,3}}\{{\s{{0,5}}(?:\\[a-z]{{1,10}}\s{{0,3}}\{{\s{{0,5}})?{label}\s{{0,5}}\}}{{1,2}}", flags
        ),
        "cue": re.compile(
            rf"{_CUE}[\s*_`\"'“”‘’\]]{{0,8}}(?:\([^()\n]{{0,30}}\)|\[[^\[\]\n]{{0,30}}\])?[\s*_`\"'“”‘’]{{0,8}}"
            rf"(?P<sep>[:=>]|\bis\b)(?P<opens>{_OPENS}{_NAMED}){label}",
            flags,
        ),
        "alone": re.compile(rf"{_OPENS}(?:[Oo]ption\s{{1,3}}|[Cc]hoice\s{{1,3}})?[*_`\"'(\[]{{0,4}}{label}{_CLOSES}", re.ASCII),
    }


def alone(text: str, start: int, end: int, scale: Scale, *, any_case: bool = False) -> Label | None:
    """The grade that is all there is between start and end, quotes, emphasis, brackets and a full stop aside; else None."""
    match = _patterns(tuple(scale.labels))["alone"].fullmatch(text, start, end)
    if match is None:
        return None
    label = label_of(match, scale, any_case=any_case)
    before, after = text[start : label.span[0]], text[label.span[1] : end]
    # "[[1" was cut short, and may have been going to be 10.
    if any(before.count(opening) > after.count(closing) for opening, closing in ("[]", "()", "{}")):
        return None
    lower = text[label.span[0] : label.span[1]].islower()
    return None if label.value is None and lower else label


def _bracketed(text: str, scale: Scale) -> list[_Verdict]:
    matches = _patterns(tuple(scale.labels))["bracket"].finditer(text)
    return [_Verdict(label_of(match, scale, any_case=True), match.span()) for match in matches]


def _boxed(text: str, scale: Scale) -> list[_Verdict]:
    matches = _patterns(tuple(scale.labels))["boxed"].finditer(text)
    return [_Verdict(label_of(match, scale, any_case=True), match.span()) for match in matches]


def _cued(text: str, scale: Scale, broken_off: bool) -> list[_Verdict]:
    """ "Verdict: C" and its like. Where the grade could be a word of a sentence ("Verdict: A better ...", "the score is 3 points
    lower") it must end there; on a line below its cue it must be all of that line ("Score:", then "1. First, ...")."""
    found = []
    end = len(text.rstrip())
    for match in _patterns(tuple(scale.labels))["cue"].finditer(text):
        label = label_of(match, scale, any_case=True)
        doubtful = match["sep"].lower() == "is" or match["label"].upper() in ("A", "I")
        below = "\n" in text[match.end("sep") : match.start("label")]
        if below and not _REST_OF_LINE.match(text, match.end()):
            continue
        # '[[1' or '{"score": 1' at the very end was cut short, and may have been going to be 10.
        member = broken_off and text[max(0, match.start() - 1)] in "\"'"
        cut = match.end() >= end and (member or _LEFT_OPEN.search(match["opens"]) is not None)
        if not cut and (not doubtful or ends_here(text, match.end())):
            found.append(_Verdict(label, match.span()))
    return found


def _in_objects(text: str, found: Literals, scale: Scale) -> list[_Verdict]:
    """{"verdict": "C", ...}: the whole object is the verdict, so that what its other members quote is none."""
    verdicts = []
    for outer in found.found:
        graded = [(one, one.get(*_KEYS)) for one in outer.within() if one.members is not None]
        values = [value for _, value in graded if value is not None and value.scalar]
        for value in values:
            label = alone(text, *value.span, scale, any_case=True) or _leading(text, value, scale)
            verdicts.append(_Verdict(label, outer.span, outer))
    return verdicts


def _leading(text: str, value: Literal, scale: Scale) -> Label:
    """The grade that a string begins with ("C: much better"), else one that no scale offers."""
    match = re.compile(labels_pattern(tuple(scale.labels)), re.ASCII).match(text, value.start)
    if match and match.end() <= value.end and ends_here(text, match.end()):
        return label_of(match, scale, any_case=True)
    return Label(None, value.span)


def _line(text: str, scale: Scale, *, last: bool) -> list[_Verdict]:
    """The last line (or the first) where it is a grade and nothing else."""
    start, end = len(text) - len(text.lstrip()), len(text.rstrip())
    if last:
        start = max(start, text.rfind("\n", 0, end) + 1)
    else:
        end = end if (stop := text.find("\n", start, end)) < 0 else stop
    label = alone(text, start, end, scale)
    return [] if label is None else [_Verdict(label, (start, end))]


def _chosen(text: str, verdicts: list[_Verdict], name: str) -> ParsedReply:
    offered = [verdict for verdict in verdicts if verdict.label.value is not None]
    if not offered:
        raise Unparsable("out_of_scale" if verdicts else "no_verdict")
    last = max(offered, key=lambda verdict: verdict.label.span)
    rest = texts(last.inside, [last.label.span]) if last.inside else []
    rationale = "\n".join(part for part in (apart(text, [last.span]), *rest) if part)
    return ParsedReply({name: float(last.label.value or 0.0)}, {name: last.label.span}, rationale)


def grade(text: str, scale: Scale, names: Sequence[str]) -> ParsedReply:
    """The last verdict that the scale offers. A verdict is stated: [[C]], "Verdict: C" (grade, rating, score, final answer),
    \\boxed{C}, {"verdict": "C"}; or a label that is all of the last line, or of the whole reply.

    Letters count in lower case only where stated. A label in a sentence is none. Verdicts outside the scale ("8/10" on 1 to 5, "4.5"
    without decimals) are passed over; Unparsable("out_of_scale") where there are no others. A label that is all of the first line
    counts where nothing else does: judges told to answer with a letter go on to explain it.
    """
    found = literals(text)
    objects = _in_objects(text, found, scale)
    rest = blanked(text, {verdict.span for verdict in objects})
    verdicts = [
        *objects,
        *_bracketed(rest, scale),
        *_boxed(rest, scale),
        *_cued(rest, scale, found.broken_off),
        *_line(rest, scale, last=True),
    ]
    if not any(verdict.label.value is not None for verdict in verdicts):
        verdicts += _line(rest, scale, last=False)
    return _chosen(text, verdicts, names[0])


def double_bracket(text: str, scale: Scale, names: Sequence[str]) -> ParsedReply:
    """[[8]], [[7.5]], [[rating: 2]], [[评分：2]]: the last that the scale offers, and nothing else, since a reply cut short
    holds numbers but no rating. Source: the judge prompts of MT-bench (Zheng et al. 2023, arXiv 2306.05685)."""
    return _chosen(text, _bracketed(text, scale), names[0])
