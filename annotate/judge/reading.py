"""From a judge's reply to graded values: the expected value over the grade token's distribution, or the mean of several samples.

The distribution is renormalised over the offered labels; the probability that lay on them is kept, and a reply with little of it is no
grade at all. The expected value beats the most likely grade in every mode (arXiv 2503.03064).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np
import orjson

from mmpo.annotate.client import Choice, Token
from mmpo.annotate.replies import REPLIES, ParsedReply, Unparsable, parse_reply
from mmpo.annotate.scales import Scale

VERSION = 1
"""Of all that turns a raw reply into grades, here and in replies/: with another one, replies that were read before are read again."""


@dataclass(frozen=True)
class Grade:
    """value: on the scale. std: the predictive standard deviation, None where one bare reply is all there is.

    label_probability: what lay on the offered labels, from 0 to 1, None without log-probabilities.
    """

    value: float
    std: float | None
    label_probability: float | None


@dataclass(frozen=True)
class Reading:
    """The grades of one reply, or of several to one question, by name, and the judge's words apart from its verdict."""

    grades: Mapping[str, Grade]
    rationale: str


ReadReply = Reading | str
"""One reply as it was read; a text is the reason why it holds no grade."""


@dataclass(frozen=True)
class Reader:
    """How the replies to a question are read.

    form: one of `replies.REPLIES`. names: what is graded. direct: the grade is all that was asked for, so that the first token decides
    even where the reply starts with something else. min_label_probability: below it a reply holds no grade. need_logprobs: so does one
    without log-probabilities.
    """

    form: str
    scale: Scale
    names: Sequence[str]
    direct: bool
    min_label_probability: float
    need_logprobs: bool = False

    @cached_property
    def digest(self) -> bytes:
        """What a kept reading depends on besides the reply."""
        scale = [list(self.scale.labels.items()), self.scale.decimals]
        values = [VERSION, self.form, scale, list(self.names), self.direct, self.min_label_probability, self.need_logprobs]
        return blake2b(orjson.dumps(values), digest_size=16).digest()

    def each(self, choices: Sequence[Choice]) -> list[ReadReply]:
        """Every reply by itself."""
        lacking = self.need_logprobs and not any(token.top for choice in choices for token in choice.tokens)
        found: list[ReadReply] = []
        for choice in choices:
            try:
                reading = self._one(choice)
                found.append("no_logprobs" if lacking else reading)
            except Unparsable as error:
                found.append(error.reason)
        return found

    def _one(self, choice: Choice) -> Reading:
        """The grades of one reply. Raises Unparsable: no verdict, cut_off, low_mass, content_filter."""
        if choice.finish == "content_filter":
            raise Unparsable("content_filter")
        try:
            parsed = parse_reply(choice.text, self.form, self.scale, self.names)
        except Unparsable as error:
            reason = "cut_off" if choice.finish == "length" else error.reason
            if not (self.direct and REPLIES[self.form].grades == "one" and any(token.top for token in choice.tokens)):
                raise Unparsable(reason) from None
            try:
                first = self._first(choice.tokens)
            except Unparsable:
                raise Unparsable(reason) from None
            return Reading({self.names[0]: self._enough(first)}, "")
        if choice.finish == "length" and not self.direct:
            # What was cut off may have held another verdict, the last one that counts.
            raise Unparsable("cut_off")
        if REPLIES[self.form].grades == "ranks":
            last = max(len(parsed.values) - 1, 1)
            grades = {name: Grade((last + 1 - rank) / last, None, None) for name, rank in parsed.values.items()}
        else:
            grades = {name: self._graded(choice, parsed, name) for name in parsed.values}
        return Reading(grades, parsed.rationale)

    def _first(self, tokens: Sequence[Token]) -> Grade:
        place = next((token for token in tokens if token.text.strip()), None)
        if place is None:
            raise Unparsable("empty")
        return expected(place.top, self.scale)

    def _graded(self, choice: Choice, parsed: ParsedReply, name: str) -> Grade:
        """The expected value at the token that spells the grade; the grade itself where that token's alternatives are not known."""
        value = parsed.values[name]
        top = _top_at(choice, parsed.spans.get(name))
        if not top or value not in self.scale.labels.values():
            return Grade(value, None, None)
        try:
            grade = expected(top, self.scale)
        except Unparsable:
            return Grade(value, None, None)
        return self._enough(grade)

    def _enough(self, grade: Grade) -> Grade:
        if grade.label_probability is not None and grade.label_probability < self.min_label_probability:
            raise Unparsable("low_mass")
        return grade

    def trimmed(self, tokens: Sequence[Token]) -> tuple[Token, ...]:
        """The tokens with alternatives only where a label of the scale stands, or at the first one: what the journal keeps."""
        labels = set(self.scale.labels)
        first = next((i for i, token in enumerate(tokens) if token.text.strip()), -1)
        return tuple(
            token if i == first or any(label in token.text for label in labels) else Token(token.text)
            for i, token in enumerate(tokens)
        )


def expected(top: Sequence[tuple[str, float]], scale: Scale) -> Grade:
    """The grade that a token's distribution stands for.

    top: tokens and natural log-probabilities. Tokens that spell a label apart from white space and quotes count for it ("C", " C",
    '"C'). Raises Unparsable where no label is among them.

    >>> from mmpo.annotate.scales import numbers
    >>> expected([("4", math.log(0.3)), (" 5", math.log(0.1)), ("The", math.log(0.6))], numbers(1, 5))
    Grade(value=4.25, std=0.4330127..., label_probability=0.4)
    """
    probability = dict.fromkeys(scale.labels, 0.0)
    for token, logprob in top:
        label = token.strip(" \t\r\n\"'▁Ġ*[(")
        if label in probability:
            probability[label] += math.exp(min(logprob, 0.0))
    p = np.array(list(probability.values()))
    total = float(p.sum())
    if total <= 0:
        raise Unparsable("no_label_among_tokens")
    values = np.array([scale.labels[label] for label in probability])
    mean = float((p * values).sum() / total)
    std = math.sqrt(max(0.0, float((p * (values - mean) ** 2).sum() / total)))
    return Grade(round(mean, 12), std, round(min(total, 1.0), 12))


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


def combined(replies: Sequence[ReadReply]) -> Reading:
    """What the replies to one question say together: the mean of each grade. Raises Unparsable where too few hold grades."""
    readings = [one for one in replies if isinstance(one, Reading)]
    # Of several drawn, half must be readable: what is left out at random says little, what is left out often says something.
    if len(readings) < max(1, (len(replies) + 1) // 2):
        raise Unparsable(next((one for one in replies if isinstance(one, str)), "empty_choices"))
    if len(readings) == 1:
        return readings[0]
    common = [name for name in readings[0].grades if all(name in reading.grades for reading in readings)]
    return Reading({name: _mean([reading.grades[name] for reading in readings]) for name in common}, readings[0].rationale)


def _mean(grades: Sequence[Grade]) -> Grade:
    """Several replies to one question: their mean, and their standard deviation around it (n − 1 below) as the spread of one."""
    values = np.array([grade.value for grade in grades])
    return Grade(float(values.mean()), float(values.std(ddof=1)), None)


def dumps(replies: Sequence[ReadReply]) -> bytes:
    """Replies as they were read, as the journal keeps them; `loads` gives the same values back."""
    return orjson.dumps([one if isinstance(one, str) else _plain(one) for one in replies])


def _plain(reading: Reading) -> Any:
    grades = {name: (grade.value, grade.std, grade.label_probability) for name, grade in reading.grades.items()}
    return [grades, reading.rationale]


def loads(raw: bytes) -> list[ReadReply]:
    """Back from the journal."""
    return [
        one if isinstance(one, str) else Reading({name: Grade(*values) for name, values in one[0].items()}, one[1])
        for one in orjson.loads(raw)
    ]
