"""From a judge's reply to graded values: the expected value over the grade token's distribution, or the mean of several samples.

The distribution is renormalised over the offered labels; the probability that fell on them (the mass) is kept, and a reply with little of
it is no grade at all. The expected value beats the most likely grade in every mode (arXiv 2503.03064).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmpo.annotate.replies import Found, Unparsable, parse_reply
from mmpo.annotate.scales import Scale

__all__ = ["Choice", "Grade", "Reading", "Token", "expected", "read", "trimmed"]


@dataclass(frozen=True)
class Token:
    """One token of a reply: its text, and the most likely tokens in its place with their log-probabilities (maybe none)."""

    text: str
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Choice:
    """One reply. finish: the endpoint's finish_reason. tokens: empty where the endpoint gave no log-probabilities."""

    text: str
    finish: str = "stop"
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True)
class Grade:
    """value: on the scale. spread: the predictive standard deviation, None where one bare reply is all there is.

    mass: the probability that lay on the offered labels, None without log-probabilities.
    """

    value: float
    spread: float | None
    mass: float | None


@dataclass(frozen=True)
class Reading:
    """The grades of one request, by name, and the judge's words apart from its verdict."""

    grades: Mapping[str, Grade]
    rationale: str


def expected(top: Sequence[tuple[str, float]], scale: Scale) -> Grade:
    """The grade that a token's distribution stands for.

    top: tokens and natural log-probabilities. Tokens that spell a label apart from white space and quotes count for it ("C", " C",
    '"C'). Raises Unparsable where no label is among them.

    >>> from mmpo.annotate.scales import numbers
    >>> expected([("4", math.log(0.3)), (" 5", math.log(0.1)), ("The", math.log(0.6))], numbers(1, 5))
    Grade(value=4.25, spread=0.4330127..., mass=0.4)
    """
    probability = dict.fromkeys(scale.labels, 0.0)
    for token, logprob in top:
        label = token.strip(" \t\r\n\"'▁Ġ*[(")
        if label in probability:
            probability[label] += math.exp(min(logprob, 0.0))
    p = np.array(list(probability.values()))
    mass = float(p.sum())
    if mass <= 0:
        raise Unparsable("no_label_among_tokens")
    values = np.array([scale.labels[label] for label in probability])
    mean = float((p * values).sum() / mass)
    spread = math.sqrt(max(0.0, float((p * (values - mean) ** 2).sum() / mass)))
    return Grade(round(mean, 12), spread, round(min(mass, 1.0), 12))


def read(choices: Sequence[Choice], form: str, scale: Scale, names: Sequence[str], *, direct: bool, min_mass: float) -> Reading:
    """The grades that the replies to one request hold.

    form: how a reply is read (`replies.REPLIES`). direct: the grade is all that was asked for, so that the first token decides even
    where the reply starts with something else. Raises Unparsable: no verdict, cut off, low_mass, refused, content_filter.
    """
    readings: list[Reading] = []
    wrong: list[Unparsable] = []
    for choice in choices:
        try:
            readings.append(_read_one(choice, form, scale, names, direct, min_mass))
        except Unparsable as error:
            wrong.append(error)
    # Of several drawn, half must be readable: what is left out at random says little, what is left out often says something.
    if len(readings) < max(1, (len(choices) + 1) // 2):
        raise wrong[0] if wrong else Unparsable("empty_choices")
    if len(readings) == 1:
        return readings[0]
    return Reading(
        {name: _mean([r.grades[name] for r in readings if name in r.grades]) for name in _common(readings)}, readings[0].rationale
    )


def _common(readings: Sequence[Reading]) -> list[str]:
    return [name for name in readings[0].grades if all(name in reading.grades for reading in readings)]


def _mean(grades: Sequence[Grade]) -> Grade:
    """Several replies to one question: their mean, and their standard deviation around it (n − 1 below) as the spread of one."""
    values = np.array([grade.value for grade in grades])
    return Grade(float(values.mean()), float(values.std(ddof=1)), None)


def _read_one(choice: Choice, form: str, scale: Scale, names: Sequence[str], direct: bool, min_mass: float) -> Reading:
    if choice.finish == "content_filter":
        raise Unparsable("content_filter")
    one = direct and form == "grade" and any(token.top for token in choice.tokens)
    try:
        found = parse_reply(choice.text, form, scale, names)
    except Unparsable as error:
        reason = "cut_off" if choice.finish == "length" else error.reason
        if not one:
            raise Unparsable(reason) from None
        try:
            first = _first(choice.tokens, scale)
        except Unparsable:
            raise Unparsable(reason) from None
        return Reading({names[0]: _enough(first, min_mass)}, "")
    if choice.finish == "length" and not direct:
        # What was cut off may have held another verdict, the last one that counts.
        raise Unparsable("cut_off")
    if form == "ranking":
        last = max(len(found.values) - 1, 1)
        return Reading({name: Grade((last + 1 - rank) / last, None, None) for name, rank in found.values.items()}, found.rationale)
    return Reading({name: _graded(choice, found, name, scale, min_mass) for name in found.values}, found.rationale)


def _first(tokens: Sequence[Token], scale: Scale) -> Grade:
    place = next((token for token in tokens if token.text.strip()), None)
    if place is None:
        raise Unparsable("empty")
    return expected(place.top, scale)


def _graded(choice: Choice, found: Found, name: str, scale: Scale, min_mass: float) -> Grade:
    """The expected value at the token that spells the grade; the grade itself where that token's alternatives are not known."""
    value = found.values[name]
    top = _top_at(choice, found.spans.get(name))
    if not top or value not in scale.labels.values():
        return Grade(value, None, None)
    try:
        grade = expected(top, scale)
    except Unparsable:
        return Grade(value, None, None)
    return _enough(grade, min_mass)


def _enough(grade: Grade, min_mass: float) -> Grade:
    if grade.mass is not None and grade.mass < min_mass:
        raise Unparsable("low_mass")
    return grade


def _top_at(choice: Choice, span: tuple[int, int] | None) -> tuple[tuple[str, float], ...]:
    """The alternatives of the token that holds the span's first character; () where the tokens do not spell the reply there.

    A label of several tokens ("10") has no distribution of its own: ().
    """
    if span is None or not choice.tokens:
        return ()
    start = 0
    for token in choice.tokens:
        end = start + len(token.text)
        if start <= span[0] < end:
            label = choice.text[span[0] : span[1]]
            return token.top if label in token.text and choice.text.startswith(token.text, start) else ()
        start = end
    return ()


def trimmed(tokens: Sequence[Token], scale: Scale) -> tuple[Token, ...]:
    """The tokens with alternatives only where a label of the scale stands, or at the first one: what the journal keeps."""
    labels = set(scale.labels)
    first = next((i for i, token in enumerate(tokens) if token.text.strip()), -1)
    return tuple(
        token if i == first or any(label in token.text for label in labels) else Token(token.text) for i, token in enumerate(tokens)
    )
