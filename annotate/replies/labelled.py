"""Replies that grade several labelled texts at once: the format `labelled`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from mmpo.annotate.replies.grade import alone
from mmpo.annotate.replies.label import Label, ends_here, label_of, labels_pattern
from mmpo.annotate.replies.literals import Literal, Literals, literals, texts
from mmpo.annotate.replies.objects import GRADE_KEYS
from mmpo.annotate.replies.text import ParsedReply, Span, Unparsable, apart, blanked
from mmpo.annotate.scales import Scale

__all__ = ["labelled"]

_NAME_KEYS = ("label", "name", "id", "response", "model", "candidate")
_WHO = r"(?:response|answer|assistant|model|completion|candidate|option|output|text)s?"


@dataclass
class _Verdict:
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
    members = _from_literals(text, found, scale, names)
    lines = _from_lines(blanked(text, {one.span for one in found.found if one.members or _is_list(one)}), scale, names)
    verdicts = sorted([*members, *lines], key=lambda verdict: verdict.start)
    for verdict in reversed(verdicts):
        reason = verdict.refusal(names)
        if reason == "ambiguous" and len(verdict.labels) == len(names):
            raise Unparsable(reason)
        if reason is None:
            return _found(text, verdict, names)
    if verdicts:
        raise Unparsable(verdicts[-1].refusal(names) or "ambiguous")
    raise Unparsable("truncated" if found.broken_off else "no_verdict")


def _found(text: str, verdict: _Verdict, names: Sequence[str]) -> ParsedReply:
    spans = {name: verdict.labels[name].span for name in names}
    said = texts(verdict.inside, list(spans.values())) if verdict.inside else []
    rationale = "\n".join(part for part in (apart(text, verdict.cut), *said) if part)
    return ParsedReply({name: float(verdict.labels[name].value or 0.0) for name in names}, spans, rationale)


def _is_list(value: Literal) -> bool:
    return any(item.members is not None for item in value.items or ())


def _from_literals(text: str, found: Literals, scale: Scale, names: Sequence[str]) -> list[_Verdict]:
    known, _ = _patterns(tuple(names), tuple(scale.labels))
    verdicts = []
    for outer in found.found:
        for value in outer.within():
            if value.scalar:
                continue
            verdict = _Verdict(value.start, outer, cut=[outer.span])
            for name, given in _graded(value):
                match = known.fullmatch(name)
                score = given if given.scalar else given.get(*GRADE_KEYS)
                if match and score is not None and score.scalar:
                    label = alone(text, *score.span, scale, any_case=True)
                    verdict.add(match["name"], label or Label(None, score.span))
            if verdict.labels:
                verdicts.append(verdict)
    return verdicts


def _graded(value: Literal) -> list[tuple[str, Literal]]:
    """What an object or a list of objects grades: names as they are written, and the values beside them."""
    if value.members is not None:
        return list(value.members)
    named = [(item.get(*_NAME_KEYS), item) for item in value.items or () if item.members is not None]
    return [(name.text, item) for name, item in named if name is not None]


def _from_lines(text: str, scale: Scale, names: Sequence[str]) -> list[_Verdict]:
    """Runs of graded labels; a new run begins with a label that a complete one has already."""
    verdicts: list[_Verdict] = []
    for match in _patterns(tuple(names), tuple(scale.labels))[1].finditer(text):
        if not ends_here(text, match.end()):
            continue
        name = match["name"]
        complete = verdicts and len(verdicts[-1].labels) == len(names)
        if not verdicts or (complete and name in verdicts[-1].labels):
            verdicts.append(_Verdict(match.start("name")))
        verdicts[-1].add(name, label_of(match, scale, any_case=True))
        verdicts[-1].cut.append(match.span())
    return verdicts
