"""How a grade is written: its label or its number, and what that is worth on the scale offered."""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

from mmpo.annotate.replies.text import Span
from mmpo.annotate.scales import Scale

__all__ = ["NUMBER", "Label", "ends_here", "label_of", "labels_pattern", "number_of"]

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


@dataclass(frozen=True)
class Label:
    """A grade as it was written. value: None where the scale does not offer it; span: of the label itself, without "/5"."""

    value: float | None
    span: Span


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


def ends_here(text: str, at: int) -> bool:
    """Whether a grade that stops at this place is followed by punctuation or the end of its line, not by more of a sentence."""
    return _END.match(text, at) is not None


def number_of(text: str, of: str | None, scale: Scale) -> float | None:
    """What a number is worth: its label's value; itself between the ends of a scale with decimals; None where it isn't offered, or
    is said to be out of another maximum than the scale's ("8/10" on 1 to 5)."""
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
        return Label(scale.labels[written], match.span("label"))
    if number := _FIGURES.match(written):
        return Label(number_of(number[0], match["of"] or match["out"], scale), (start, start + number.end()))
    return Label(_cased(written, scale.labels) if any_case else None, match.span("label"))


def _cased(written: str, labels: Mapping[str, float]) -> float | None:
    return next((value for label, value in labels.items() if label.lower() == written.lower()), None)
