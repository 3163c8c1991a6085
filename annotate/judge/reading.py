"""From a judge's reply to graded values: the expected value over the grade token's distribution, or the mean of several samples.

The distribution is that of the token which spells the grade in the visible reply (`replies.placed`), never one of a thought, of an empty
reply or of one that was cut off. It is renormalised over the offered labels; the probability that lay on them is kept, and a reply with
little of it is no grade at all. The expected value beats the most likely grade in every mode (arXiv 2503.03064).
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np
import orjson

from mmpo.annotate.client import Choice
from mmpo.annotate.replies import REPLIES, ParsedReply, PlacedToken, Unparsable, parse_reply, placed, readable
from mmpo.annotate.scales import Scale

VERSION = 3
"""Of all that turns a raw reply into grades, here and in replies/: with another one, replies that were read before are read again."""


MOST_MASS = 1.01
"""What the alternatives at one token may sum to: beyond it the numbers are logits, or probabilities in place of their logarithms."""
LEAST_MASS = 1e-3
"""Less than this on all alternatives at each token is no distribution: the likeliest of them is one of a vocabulary's most likely."""
MOST_UNCLEAR = 0.01
"""What may lie on tokens that begin several labels ("1" of 1 and 10) where nothing says which, before the distribution is unknown."""
EDGES = " \t\r\n\"'▁Ġ*[](){}`"
"""Around a label in its token."""

Alternatives = Sequence[tuple[str, float]]
"""Tokens that could have stood in one place, with their natural log-probabilities."""


@dataclass(frozen=True)
class Grade:
    """value: on the scale. std: the predictive standard deviation, None where one bare reply is all there is.

    label_probability: what lay on the offered labels, from 0 to 1, None without log-probabilities. probabilities: of each offered label,
    in the scale's order; they sum to label_probability (shares of several bare replies: to 1). None where no distribution is known.
    """

    value: float
    std: float | None
    label_probability: float | None
    probabilities: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Reading:
    """The grades of one reply, or of several to one question, by name, and the judge's words apart from its verdict.

    mark: a digest of the whole reply, thinking included, by which replies are told apart.
    """

    grades: Mapping[str, Grade]
    rationale: str
    mark: str = ""


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
        found: list[ReadReply] = []
        for choice in choices:
            try:
                found.append(replace(self._one(choice), mark=_mark(choice)))
            except Unparsable as error:
                found.append(error.reason)
        return found

    def _one(self, choice: Choice) -> Reading:
        """The grades of one reply. Raises Unparsable: no verdict, cut_off, low_mass, no_logprobs, impossible_logprobs, content_filter."""
        if choice.finish == "content_filter":
            raise Unparsable("content_filter")
        try:
            parsed = parse_reply(choice.text, self.form, self.scale, self.names)
        except Unparsable:
            if choice.finish == "length":
                raise Unparsable("cut_off") from None
            first = self._first(choice) if self.direct and REPLIES[self.form].grades == "one" else None
            if first is None:
                raise
            return Reading({self.names[0]: self._enough(first)}, "")
        if choice.finish == "length" and not self.direct:
            # What was cut off may have held another verdict, the last one that counts.
            raise Unparsable("cut_off")
        if REPLIES[self.form].grades == "ranks":
            if self.need_logprobs and not any(token.top for token in choice.tokens):
                raise Unparsable("no_logprobs")
            last = max(len(parsed.values) - 1, 1)
            grades = {name: Grade((last + 1 - rank) / last, None, None) for name, rank in parsed.values.items()}
        else:
            tokens = placed(choice.text, choice.tokens)
            grades = {name: self._graded(choice.text, tokens, parsed, name) for name in parsed.values}
        return Reading(grades, parsed.rationale)

    def _first(self, choice: Choice) -> Grade | None:
        """The grade at the visible reply's first token; None where its alternatives are not known or hold no label.

        None too where that token spells a label and words follow: "A is better: C" begins with a letter that is no verdict.
        """
        tokens = placed(choice.text, choice.tokens)
        place = _place(tokens, _visible_start(choice.text))
        if place is None:
            return None
        here = tokens[place]
        spoken = _label(here.token.text, self.scale.labels) in self.scale.labels and any(map(str.isalnum, choice.text[here.end :]))
        return None if spoken else expected_at(tokens, place, "", self.scale)

    def _graded(self, text: str, tokens: Sequence[PlacedToken], parsed: ParsedReply, name: str) -> Grade:
        """The expected value at the token that spells the grade; the grade itself where that token's alternatives are not known."""
        value, span = parsed.values[name], parsed.spans.get(name)
        place = _place(tokens, span[0]) if span and value in self.scale.labels.values() else None
        grade = None if span is None or place is None else expected_at(tokens, place, text[slice(*span)], self.scale)
        if grade is not None:
            return self._enough(grade)
        if self.need_logprobs:
            raise Unparsable("no_logprobs")
        return Grade(value, None, None)

    def _enough(self, grade: Grade) -> Grade:
        if grade.label_probability is not None and grade.label_probability < self.min_label_probability:
            raise Unparsable("low_mass")
        return grade

    def trimmed(self, choice: Choice) -> Choice:
        """The reply with what the journal keeps: the tokens that spell it, with alternatives at the first visible one, where a label of
        the scale stands, and behind that where a label may go on."""
        labels = set(self.scale.labels)
        goes_on = any(len(label) > 1 for label in labels)
        tokens = placed(choice.text, choice.tokens)
        first, kept, after_label = _place(tokens, _visible_start(choice.text)), [], False
        for place, token in enumerate(one.token for one in tokens):
            has_label = any(label in token.text for label in labels) or _label(token.text, labels) in labels
            has_label = has_label or (goes_on and _begins(token.text, labels))
            kept.append(token if place == first or has_label or after_label else replace(token, top=()))
            after_label = goes_on and has_label
        return replace(choice, tokens=tuple(kept))


def _label(token: str, labels: Collection[str]) -> str:
    """What a token spells, white space and quotes aside; a small letter as the capital where only that is a label.

    >>> _label(" c", ["A", "B", "C"]), _label("c", ["C", "c"]), _label("cat", ["CAT"])
    ('C', 'c', 'cat')
    """
    text = token.strip(EDGES)
    return text.upper() if len(text) == 1 and text not in labels and text.upper() in labels else text


def _begins(token: str, labels: Collection[str]) -> bool:
    text = token.strip(EDGES)
    return bool(text) and any(label.startswith(text) for label in labels)


def _mark(choice: Choice) -> str:
    return blake2b(f"{choice.thinking}\0{choice.text}".encode(errors="replace"), digest_size=6).hexdigest()


def _visible_start(text: str) -> int:
    """The place of the first character that is neither white space nor thinking; the text's length where there is none."""
    try:
        visible = readable(text)
    except Unparsable:
        return len(text)
    return len(visible) - len(visible.lstrip())


def _place(tokens: Sequence[PlacedToken], at: int) -> int | None:
    """Which token holds a character of the reply."""
    return next((i for i, one in enumerate(tokens) if one.start <= at < one.end), None)


def has_distributions(choice: Choice) -> bool:
    """Whether a reply comes with alternatives that can be used: at tokens that spell it, and with probabilities that can be. An empty one
    (its thinking was cut off) does where any token has them."""
    tokens = [one.token for one in placed(choice.text, choice.tokens)] if choice.text.strip() else choice.tokens
    tops = [token.top for token in tokens]
    return any(len(top) > 1 and _mass(top) >= LEAST_MASS for top in tops) and all(_mass(top) <= MOST_MASS for top in tops)


def _mass(top: Alternatives) -> float:
    return sum(math.exp(min(logprob, 1.0)) for _, logprob in top)


def expected_at(tokens: Sequence[PlacedToken], place: int, label: str, scale: Scale) -> Grade | None:
    """The grade by the alternatives of one token of a reply. label: as it stands there; "" where none was found.

    None: no alternatives, none with a label, the token spells something else, or much lies on what may be one label or another.
    Raises Unparsable("impossible_logprobs").
    """
    top, written = tokens[place].token.top, tokens[place].token.text.strip(EDGES)
    begun = bool(written) and label.startswith(written) and not scale.decimals  # "4" of 4.5 is no 4
    if not top or not (begun or label in tokens[place].token.text):
        return None
    then = tokens[place + 1].token.top if place + 1 < len(tokens) else ()
    try:
        return expected(top, scale, written, label, then)
    except Unparsable as error:
        if error.reason == "impossible_logprobs":
            raise
        return None


def expected(top: Alternatives, scale: Scale, written: str = "", label: str = "", then: Alternatives = ()) -> Grade:
    """The grade that a token's distribution stands for.

    top: what could have stood there. Tokens that spell a label apart from white space, quotes and case count for it ("C", " c", '"C'). One
    that only begins one (the "1" of "10") counts for it too, and where it begins several, as what follows says: written: the token that
    stands there; label: the whole label there; then: what could have followed. Raises Unparsable: no_label_among_tokens,
    impossible_logprobs, unclear_label.

    >>> from mmpo.annotate.scales import numbers
    >>> expected([("4", math.log(0.3)), (" 5", math.log(0.1)), ("The", math.log(0.6))], numbers(1, 5)).value
    4.25
    """
    if max(_mass(top), _mass(then)) > MOST_MASS:
        raise Unparsable("impossible_logprobs")
    spelled = [(_label(token, scale.labels), math.exp(logprob)) for token, logprob in top]
    probability, unclear = dict.fromkeys(scale.labels, 0.0), 0.0
    longer = [one for one in scale.labels if len(one) > 1 and not any(text == one for text, _ in spelled)]
    for text, share in spelled:
        meant = [text] if text in probability else []
        if longer and text:
            meant += [one for one in longer if one != text and one.startswith(text)]
        if len(meant) > 1 and text == written and (then or label == text):
            rest = {one[len(text) :]: one for one in meant if one != text}
            went = {token: math.exp(logprob) for token, logprob in then if token in rest}
            for token, part in went.items():
                probability[rest[token]] += share * part
            share *= max(0.0, 1.0 - sum(went.values()))
            meant = [one for one in meant if one == text]
        if len(meant) == 1:
            probability[meant[0]] += share
        elif meant:
            unclear += share
    p = np.array(list(probability.values()))
    total = float(p.sum())
    if total + unclear <= 0:
        raise Unparsable("no_label_among_tokens")
    if unclear > MOST_UNCLEAR * (total + unclear):
        raise Unparsable("unclear_label")
    values = np.array([scale.labels[label] for label in probability])
    mean = float((p * values).sum() / total)
    std = math.sqrt(max(0.0, float((p * (values - mean) ** 2).sum() / total)))
    return Grade(round(mean, 12), std, round(min(total, 1.0), 12), tuple(p.tolist()))


def combined(replies: Sequence[ReadReply], scale: Scale | None = None, *, drawn: bool = True) -> Reading:
    """What the replies to one question say together: the mean of each grade. Raises Unparsable where too few hold grades.

    scale: the one that they are on, so that bare grades become shares of it. drawn: whether they were drawn at random; else they are
    one reply, given several times.
    """
    readings = [one for one in replies if isinstance(one, Reading)]
    # Of several drawn, half must be readable: what is left out at random says little, what is left out often says something.
    if len(readings) < max(1, (len(replies) + 1) // 2):
        raise Unparsable(next((one for one in replies if isinstance(one, str)), "empty_choices"))
    if len(readings) == 1 or not drawn:
        return readings[0]
    common = [name for name in readings[0].grades if all(name in reading.grades for reading in readings)]
    return Reading({name: _mean([reading.grades[name] for reading in readings], scale) for name in common}, readings[0].rationale)


def differ(replies: Sequence[ReadReply]) -> bool | None:
    """Whether the replies drawn to one question are not all the same, words and thoughts included; None where fewer than two were read."""
    if sum(isinstance(one, Reading) for one in replies) < 2:
        return None
    return len({one if isinstance(one, str) else one.mark for one in replies}) > 1


def _mean(grades: Sequence[Grade], scale: Scale | None) -> Grade:
    """Several replies drawn to one question: their mean, and the spread of one: their variance around it (n − 1 below) and, where each
    has a distribution of its own, the mean of those variances (law of total variance)."""
    values = np.array([grade.value for grade in grades])
    within = np.mean([(grade.std or 0.0) ** 2 for grade in grades])
    masses = [grade.label_probability for grade in grades if grade.label_probability is not None]
    shares = [_shares(grade, scale) for grade in grades]
    known = [one for one in shares if one is not None]
    return Grade(
        float(values.mean()),
        math.sqrt(float(values.var(ddof=1) + within)),
        float(np.mean(masses)) if len(masses) == len(grades) else None,
        tuple(np.mean(known, axis=0).tolist()) if len(known) == len(grades) else None,
    )


def _shares(grade: Grade, scale: Scale | None) -> tuple[float, ...] | None:
    """A grade's distribution over the labels; of a bare grade all is on its own label."""
    if grade.probabilities is not None or scale is None:
        return grade.probabilities
    values = list(scale.labels.values())
    return tuple(float(place == values.index(grade.value)) for place in range(len(values))) if grade.value in values else None


def dumps(replies: Sequence[ReadReply]) -> bytes:
    """Replies as they were read, as the journal keeps them; `loads` gives the same values back."""
    return orjson.dumps([one if isinstance(one, str) else _plain(one) for one in replies])


def _plain(reading: Reading) -> Any:
    grades = {name: (g.value, g.std, g.label_probability, g.probabilities) for name, g in reading.grades.items()}
    return [grades, reading.rationale, reading.mark]


def loads(raw: bytes) -> list[ReadReply]:
    """Back from the journal."""
    return [
        one if isinstance(one, str) else Reading({name: _grade(*values) for name, values in one[0].items()}, *one[1:])
        for one in orjson.loads(raw)
    ]


def _grade(value: float, std: float | None, label_probability: float | None, probabilities: list[float] | None) -> Grade:
    return Grade(value, std, label_probability, None if probabilities is None else tuple(probabilities))
