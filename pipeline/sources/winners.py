"""What words for the better one of two replies are worth, as people and tools write them: `model_a`, `left is slightly better`, `tie`."""

import re
from collections.abc import Collection, Iterable

_REPLY = "(?:(?:model|response|answer|reply|output|completion|assistant|system)_)?"
_SIDES = {1.0: f"{_REPLY}(?:a|1|left|first)|>", -1.0: f"{_REPLY}(?:b|2|right|second)|<"}
_TIE = "tie|tied|draw|equal|same|both|neither|none|tie_bothbad|both_bad|both_good|about_the_same|no_preference|c|0|="
_SAID = re.compile("prefer(?:red|s)?|(?:is|was)|better|best|wins?|won|the|one|i", re.ASCII)
"""Words around a side that say no more than it."""
_STRENGTHS = {
    1: "slightly|marginally|somewhat|a_bit|a_little|negligibly|weakly",
    3: "much|far|significantly|clearly|strongly|definitely|a_lot",
}
"""How much better, in words; without any of them it is 2."""
_TURNED = {"a": "b", "1": "2", "left": "right", "first": "second", ">": "<"}
_TURNED |= {other: one for one, other in _TURNED.items()}


def plain(name: str) -> str:
    """In small letters, with _ between words.

    >>> plain("A is Better!")
    'a_is_better'
    """
    return re.sub(r"[^\w<>=]+", "_", name.casefold()).strip("_")


def worths(words: Iterable[str]) -> dict[str, float]:
    """Word → what it is worth as a gap, above 0 where the first reply is the better one: 1, or 1, 2 and 3 by how much better the words say.
    What names no side, or no tie, is left out.

    >>> worths(["A", "b-is-better", "b-is-slightly-better", "Tie", "unclear"])
    {'A': 2.0, 'b-is-better': -2.0, 'b-is-slightly-better': -1.0, 'Tie': 0.0}
    """
    found = {word: said for word in words if (said := _said(word)) is not None}
    steps = sorted({strength for side, strength in found.values() if side})
    return {word: side * (steps.index(strength) + 1) if side else 0.0 for word, (side, strength) in found.items()}


def _said(word: str) -> tuple[float, int] | None:
    """The side that a word names (0: a tie), and how strongly."""
    text, strength = plain(word), 2
    if re.fullmatch(_TIE, text):
        return 0.0, 0
    for step, adverbs in _STRENGTHS.items():
        shorter = re.sub(rf"(?:^|(?<=_))(?:{adverbs})(?:_|$)", "", text)
        text, strength = shorter, step if shorter != text else strength
    kept = "_".join(part for part in text.split("_") if not _SAID.fullmatch(part))
    return next(((side, strength) for side, pattern in _SIDES.items() if re.fullmatch(pattern, kept)), None)


def speaks_of_a_side(word: str) -> bool:
    """Whether a text that is worth nothing known says something of which reply is better all the same."""
    return any(re.fullmatch("better|worse|wins?|won|prefer.*|left|right|first|second", part) for part in plain(word).split("_"))


def others(found: dict[str, float]) -> dict[str, float]:
    """The words that belong to those of `worths`, and that later rows may hold: the other side's, and a tie.

    >>> others({"model_a": 1.0})
    {'model_b': -1.0, 'tie': 0.0}
    """
    known = {word.strip().casefold() for word in found}
    names = "|".join(map(re.escape, _TURNED))
    turned = {re.sub(rf"(?<![^\W_])(?:{names})(?![^\W_])", lambda one: _TURNED[one[0]], word.casefold()): -worth
              for word, worth in found.items() if worth}  # fmt: skip
    turned = {word: worth for word, worth in turned.items() if (said := _said(word)) and said[0] * worth > 0}
    return {word: worth for word, worth in {**turned, "tie": 0.0}.items() if word not in known}


def names_sides(texts: Collection[str]) -> bool:
    """Whether texts are all of winners, and one at least of a side."""
    found = worths(texts)
    return len(found) == len(texts) and any(found.values())
