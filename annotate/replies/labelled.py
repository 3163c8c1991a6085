"""Replies that grade several things at once: the formats `labelled` and `aspects-json`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from mmpo.annotate.replies.grade import Label, alone, ends_here, label_of, labels_pattern
from mmpo.annotate.replies.literals import GRADE_KEYS, Literal, Literals, key_of, last_that_holds, literals, rationale
from mmpo.annotate.replies.text import ParsedReply, Span, Unparsable, blanked
from mmpo.annotate.scales import Scale

_NAME_KEYS = ("label", "name", "id", "response", "model", "candidate")
_WHO = r"(?:response|answer|assistant|model|completion|candidate|option|output|text)s?"
_NOT_APPLICABLE = re.compile(r"\s*(?:n\s?/\s?a|na|none|null|not[\s_]applicable)\.?\s*", re.IGNORECASE)


@dataclass
class _Set:
    """The grades that one object, or one run of lines, gives. Two different grades of one label make it ambiguous."""

    start: int
    inside: Literal | None = None
    labels: dict[str, Label] = field(default_factory=dict)
    cut: list[Span] = field(default_factory=list)
    ambiguous: bool = False

    def add(self, name: str, label: Label) -> None:
        known = self.labels.setdefault(name, label)
        self.ambiguous |= known.value != label.value

    def refusal(self, names: Sequence[str]) -> str | None:
        """Why this is no verdict, or None where every name has one grade that was offered."""
        if self.ambiguous:
            return "ambiguous"
        if any(label.value is None for label in self.labels.values()):
            return "out_of_scale"
        return None if len(self.labels) == len(names) else "missing_label"


@lru_cache(maxsize=64)
def _patterns(names: tuple[str, ...], labels: tuple[str, ...]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """A member's name that means one of `names`; and "A: 4" where a line, or a place in a list, begins."""
    any_name = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    edge = r"[\s*_`\"'(\[#]{0,6}"
    name = rf"(?:(?i:{_WHO})\s{{1,3}})?[*_`\"'(\[]{{0,4}}(?P<name>{any_name})(?![A-Za-z0-9])[*_`\"')\]]{{0,4}}"
    line = rf"(?:^|(?<=[,;|\n]))(?:[^\S\n]{{0,9}}[-*•]\s)?{edge}{name}(?:(?<=\])|[^\S\n]{{0,4}}(?:[:=]|[-–—]\s|→|->))[ \t*_`\"'(\[]{{0,9}}"
    pattern = rf"{line}(?:(?:grade|score|rating){edge}[:=]{edge})?{labels_pattern(labels)}"
    return re.compile(rf"\s*{name}\s*", re.ASCII), re.compile(pattern, re.ASCII | re.MULTILINE)


def labelled(text: str, scale: Scale, names: Sequence[str]) -> ParsedReply:
    """A grade for each label, in any order: {"A": 4, "B": 2}, {"grades": {"A": {"grade": 4, "reason": ".."}, ..}},
    [{"label": "A", "grade": 4}, ..], or "A: 4", "[A] 4", "**A**: 4/5" on lines or in a row.

    The last complete set wins: exactly one offered grade for every name. A label is bound to what stands beside it, never to its
    place. Without one: "ambiguous" (one label, two grades; this is final where such a set comes last), "out_of_scale" or "missing_label".
    """
    found = literals(text)
    graded = {outer.span for outer in found.outermost if any(outer.kind == "{" or item.kind == "{" for _, item in outer.members)}
    sets = [*_from_literals(text, found, scale, names), *_from_lines(blanked(text, graded), scale, names)]
    sets.sort(key=lambda one: one.start)
    for one in reversed(sets):
        refusal = one.refusal(names)
        if refusal == "ambiguous" and len(one.labels) == len(names):
            raise Unparsable(refusal)
        if refusal is None:
            spans = {name: one.labels[name].span for name in names}
            values = {name: float(one.labels[name].value or 0.0) for name in names}
            return ParsedReply(
                values, spans, rationale(text, one.cut, one.inside.strings(list(spans.values())) if one.inside else ())
            )
    if sets:
        raise Unparsable(sets[-1].refusal(names) or "ambiguous")
    raise found.nothing()


def _from_literals(text: str, found: Literals, scale: Scale, names: Sequence[str]) -> list[_Set]:
    known, _ = _patterns(tuple(names), tuple(scale.labels))
    sets = []
    for outer, value in [(whole, part) for whole in found.outermost for part in whole.within() if not part.scalar]:
        one = _Set(value.span[0], outer, cut=[outer.span])
        for name, given in _members(value):
            match = known.fullmatch(name)
            score = given if given.scalar else given.get(*GRADE_KEYS)
            if match and score is not None and score.scalar:
                label = alone(text, *score.span, scale, any_case=True)
                one.add(match["name"], label or Label(None, score.span, score.span))
        if one.labels:
            sets.append(one)
    return sets


def _members(value: Literal) -> list[tuple[str, Literal]]:
    """What an object or a list of objects grades: names as they are written, and the values beside them."""
    if value.kind == "{":
        return list(value.members)
    return [(name.text, item) for _, item in value.members if (name := item.get(*_NAME_KEYS)) is not None]


def _from_lines(text: str, scale: Scale, names: Sequence[str]) -> list[_Set]:
    """Runs of graded labels; a new run begins with a label that a complete one has already."""
    sets: list[_Set] = []
    for match in _patterns(tuple(names), tuple(scale.labels))[1].finditer(text):
        if not ends_here(text, match.end()):
            continue
        name = match["name"]
        if not sets or (len(sets[-1].labels) == len(names) and name in sets[-1].labels):
            sets.append(_Set(match.start("name")))
        sets[-1].add(name, label_of(match, scale, any_case=True))
        sets[-1].cut.append(match.span())
    return sets


def aspects_json(text: str, scale: Scale, names: Sequence[str]) -> ParsedReply:
    """{"helpfulness": {"reason": "...", "score": "4"}, "clarity": 5, "depth": "N/A"}: the last object that grades every aspect.

    Fences, prose around it, trailing commas and either quotes are fine. "N/A" (or null) is a value of its own: such an aspect has
    none here, and Unparsable("not_applicable") if all are. An aspect that isn't there: "missing_label"; a grade that isn't offered:
    "out_of_scale"; two different ones: "ambiguous"; an object that breaks off: "truncated".
    """
    found = literals(text)
    wanted = {key_of(name) for name in names}
    keys = [(one, {key_of(key) for key, _ in one.members}) for one in found.all("{")]
    result = last_that_holds([one for one, own in keys if wanted <= own], lambda one: _aspects(text, one, scale, names))
    if result is None:
        some = any(wanted & own for _, own in keys)
        raise Unparsable("missing_label") if some and not found.broken_off else found.nothing()
    return result


def _aspects(text: str, graded: Literal, scale: Scale, names: Sequence[str]) -> ParsedReply:
    values: dict[str, float] = {}
    spans: dict[str, Span] = {}
    reasons: list[str] = []
    for name in names:
        given = [value for key, value in graded.members if key_of(key) == key_of(name)]
        scores = [one if one.scalar else one.get(*GRADE_KEYS) for one in given]
        without = [score.span for score in scores if score]
        reasons += [f"{name}: {reason}" for one in given if not one.scalar for reason in one.strings(without)]
        if any(score is None or not score.scalar for score in scores):
            raise Unparsable("missing_label")
        if len({score.text for score in scores if score}) > 1:
            raise Unparsable("ambiguous")
        score = scores[-1]
        if score is None or _NOT_APPLICABLE.fullmatch(score.text):
            continue
        label = alone(text, *score.span, scale, any_case=True)
        if label is None or label.value is None:
            raise Unparsable("out_of_scale")
        values[name], spans[name] = label.value, label.span
    if not values:
        raise Unparsable("not_applicable")
    return ParsedReply(values, spans, rationale(text, [graded.span], reasons))
