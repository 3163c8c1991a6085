"""How a grade is written, and replies with one grade: the formats `grade` and `double-bracket`."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache

from mmpo.annotate.replies.literals import Literal, Literals, literals, rationale
from mmpo.annotate.replies.text import ParsedReply, Span, Unparsable, blanked, first_and_last_line
from mmpo.annotate.scales import Scale

# "4", "+2", "7.5", "4/5", "4 out of 5"; no piece of a word, a date, a range, a percentage or a number with a decimal comma.
NUMBER = (
    r"[-+]?\d{1,9}(?:\.\d{1,9})?(?![\d_A-Za-z%])(?!\s{0,2}[.,]\d)(?!\s{0,3}(?:[-–~]|to\s)\s{0,3}\d)"
    r"(?:\s{0,3}/\s{0,3}(?P<of>\d{1,9}(?:\.\d{1,3})?)(?![\d/])|\s{1,3}out\s{1,3}of\s{1,3}(?:a\s{1,3})?(?P<out>\d{1,9})(?!\d)"
    r"|(?!\s{0,3}/\s{0,3}\d)(?!\s{1,3}out\s{1,3}of\b))"
)
# A letter is a grade where it stands by itself: not in "B+", "B-grade", "B>A", "A or B", "B's".
_STANDS_ALONE = (
    r"(?![A-Za-z0-9_+-])(?!['’][A-Za-z])"
    r"(?!\s{0,3}(?:[<>=]{1,3}|/|or\b|to\b|and\b|vs\b\.?)\s{0,3}[\"'*(\[]{0,3}(?-i:[A-Z])(?![A-Za-z]))"
)
_FIGURES = re.compile(r"[-+]?\d{1,9}(?:\.\d{1,9})?", re.ASCII)
_END = re.compile(r"[^\S\n]{0,9}(?:\n|\Z|[.,;:!?)\]}>\"'“”’*_`|<(\\$–—-]|because\b|since\b)")
_KEYS = ("verdict", "grade", "score", "rating", *(f"final_{name}" for name in ("verdict", "grade", "score", "rating", "answer")))
_CUE = r"(?:(?<![A-Za-z0-9_])(?:verdict|grade|rating|score|final\s{1,3}(?:answer|decision|choice))(?![A-Za-z])|评分|評価|评级|判定)"
_OPENS = r"[\s*_`\"'“”‘’(\[{<$#>]{0,20}"
_CLOSES = r"[\s*_`\"'“”‘’)\]}>.!,:;$]{0,20}"
# What may stand before a label that is all there is on a line: no cue by itself, as the answer to the prompt may be what is meant.
_SAID = (
    r"(?i:(?:my\s{1,3}|the\s{1,3}|final\s{1,3})?(?:answer|choice|decision|judge?ment|preference|option|label)[*_`]{0,4}\s{0,3}[:=])"
)
_REST_OF_LINE = re.compile(r"[^\S\n]{0,9}[*_`\"'“”’)\]}>.]{0,9}[^\S\n]{0,9}(?:\n|\Z)")
_LEFT_OPEN = re.compile(r"[\"“‘(\[{]")
_NAMED = r"(?:(?:option|choice|label|grade|an?)\s{1,3}[*_`\"'(\[]{0,4})?"


@dataclass(frozen=True)
class Label:
    """A grade as it was written. value: None where the scale does not offer it; span: of the label itself, without "/5".

    statement: the place of all that states it, "Verdict: 4/5". inside: the outermost object where one does.
    """

    value: float | None
    span: Span
    statement: Span
    inside: Literal | None = None


@lru_cache(maxsize=64)
def _numbers(labels: tuple[str, ...]) -> dict[float, str]:
    """The labels that are numbers, by number."""
    numbers: dict[float, str] = {}
    for label in labels:
        with suppress(ValueError):
            numbers[float(label)] = label
    return numbers


@lru_cache(maxsize=64)
def labels_pattern(labels: tuple[str, ...]) -> str:
    """A pattern (groups `label`, `of`, `out`) for any label of these, any number and any single letter, so that grades which were
    not offered are seen too."""
    numbers = _numbers(labels).values()
    words = sorted((re.escape(label) for label in labels if label not in numbers), key=len, reverse=True)
    return rf"(?P<label>(?:{'|'.join([*words, '[A-Za-z]'])}){_STANDS_ALONE}|{NUMBER})"


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
        "alone": re.compile(
            rf"{_OPENS}(?P<said>{_SAID}{_OPENS})?(?:[Oo]ption\s{{1,3}}|[Cc]hoice\s{{1,3}})?[*_`\"'(\[]{{0,4}}{label}{_CLOSES}",
            re.ASCII,
        ),
        "leading": re.compile(label, re.ASCII),
    }


def ends_here(text: str, at: int) -> bool:
    """Whether a grade that stops at this place is followed by punctuation or the end of its line, not by more of a sentence."""
    return _END.match(text, at) is not None


def number_of(text: str, of: str | None, scale: Scale) -> float | None:
    """What a number is worth: its label's value; itself between the ends of a scale with decimals; None where it isn't offered, or
    is out of another maximum than the scale's ("8/10" on 1 to 5)."""
    number = float(text)
    if of is not None and float(of) != scale.high:
        return None
    label = _numbers(tuple(scale.labels)).get(number)
    if label is not None:
        return scale.labels[label]
    return number if scale.decimals and scale.low <= number <= scale.high else None


def label_of(match: re.Match[str], scale: Scale, *, any_case: bool) -> Label:
    """The grade that a match of `labels_pattern` found. any_case: "c" counts as "C"."""
    written, start = match["label"], match.start("label")
    if written in scale.labels:
        return Label(scale.labels[written], match.span("label"), match.span())
    if number := _FIGURES.match(written):
        return Label(number_of(number[0], match["of"] or match["out"], scale), (start, start + number.end()), match.span())
    cased = (value for label, value in scale.labels.items() if any_case and label.lower() == written.lower())
    return Label(next(cased, None), match.span("label"), match.span())


def alone(text: str, start: int, end: int, scale: Scale, *, any_case: bool = False) -> Label | None:
    """The grade that is all there is between start and end, quotes, emphasis, brackets and a full stop aside; else None."""
    match = _patterns(tuple(scale.labels))["alone"].fullmatch(text, start, end)
    if match is None:
        return None
    label = label_of(match, scale, any_case=any_case or match["said"] is not None)
    before, after = text[start : label.span[0]], text[label.span[1] : end]
    # "[[1" was cut short, and may have been going to be 10.
    if any(before.count(opening) > after.count(closing) for opening, closing in ("[]", "()", "{}")):
        return None
    lower = text[label.span[0] : label.span[1]].islower()
    return None if label.value is None and lower else label


def _stated(form: str, text: str, scale: Scale) -> list[Label]:
    """[[C]], \\boxed{C}: where a grade stands as that form has it."""
    return [label_of(match, scale, any_case=True) for match in _patterns(tuple(scale.labels))[form].finditer(text)]


def _cued(text: str, scale: Scale, broken_off: bool) -> list[Label]:
    """ "Verdict: C" and its like. Where the grade could be a word of a sentence ("Verdict: A better ...", "the score is 3 points
    lower") it must end there; on a line below its cue it must be all of that line ("Score:", then "1. First, ...")."""
    found = []
    end = len(text.rstrip())
    for match in _patterns(tuple(scale.labels))["cue"].finditer(text):
        doubtful = match["sep"].lower() == "is" or match["label"].upper() in ("A", "I")
        below = "\n" in text[match.end("sep") : match.start("label")]
        if below and not _REST_OF_LINE.match(text, match.end()):
            continue
        # '[[1' or '{"score": 1' at the very end was cut short, and may have been going to be 10.
        member = broken_off and text[max(0, match.start() - 1)] in "\"'"
        cut = match.end() >= end and (member or _LEFT_OPEN.search(match["opens"]) is not None)
        if not cut and (not doubtful or ends_here(text, match.end())):
            found.append(label_of(match, scale, any_case=True))
    return found


def _in_objects(text: str, found: Literals, scale: Scale) -> list[Label]:
    """{"verdict": "C", ...}: the whole object is the verdict, so that what its other members quote is none."""
    values = [(outer, one.get(*_KEYS)) for outer in found.outermost for one in outer.within()]
    return [
        replace(alone(text, *value.span, scale, any_case=True) or _leading(text, value, scale), statement=outer.span, inside=outer)
        for outer, value in values
        if value is not None and value.scalar
    ]


def _leading(text: str, value: Literal, scale: Scale) -> Label:
    """The grade that a string begins with ("C: much better"), else one that no scale offers."""
    match = _patterns(tuple(scale.labels))["leading"].match(text, value.span[0])
    if match and match.end() <= value.span[1] and ends_here(text, match.end()):
        return label_of(match, scale, any_case=True)
    return Label(None, value.span, value.span)


def _chosen(text: str, labels: list[Label], name: str) -> ParsedReply:
    offered = [label for label in labels if label.value is not None]
    if not offered:
        raise Unparsable("out_of_scale" if labels else "no_verdict")
    last = max(offered, key=lambda label: label.span)
    words = rationale(text, [last.statement], last.inside.strings([last.span]) if last.inside else ())
    return ParsedReply({name: float(last.value or 0.0)}, {name: last.span}, words)


def grade(text: str, scale: Scale, names: Sequence[str]) -> ParsedReply:
    """The last verdict that the scale offers. A verdict is stated: [[C]], "Verdict: C" (grade, rating, score, final answer),
    \\boxed{C}, {"verdict": "C"}; or a label that is all of the last line, or of the whole reply ("C", "Answer: C", "Choice: C").

    Letters count in lower case only where stated. A label in a sentence is none. Verdicts outside the scale ("8/10" on 1 to 5, "4.5"
    without decimals) are passed over; Unparsable("out_of_scale") where there are no others. A label that is all of the first line
    counts where nothing else does: judges asked to answer with a letter go on to explain it.
    """
    found = literals(text)
    objects = _in_objects(text, found, scale)
    rest = blanked(text, {label.statement for label in objects})
    first, last = (alone(rest, *line, scale) for line in first_and_last_line(rest))
    labels = [
        *objects,
        *_stated("bracket", rest, scale),
        *_stated("boxed", rest, scale),
        *_cued(rest, scale, found.broken_off),
        *([last] if last else []),
    ]
    if first and not any(label.value is not None for label in labels):
        labels.append(first)
    return _chosen(text, labels, names[0])


def double_bracket(text: str, scale: Scale, names: Sequence[str]) -> ParsedReply:
    """[[8]], [[7.5]], [[rating: 2]], [[评分：2]]: the last that the scale offers, and nothing else, since a reply cut short
    holds numbers but no rating. Source: the judge prompts of MT-bench (Zheng et al. 2023, arXiv 2306.05685)."""
    return _chosen(text, _stated("bracket", text, scale), names[0])
