"""What the tests of judges' replies share: scales, and a parse that also checks its spans."""

import pytest

from mmpo.annotate.replies import Unparsable, parse_reply, plain
from mmpo.annotate.scales import PREFERENCE, Scale, numbers

FIVE, TEN, HALVES = numbers(1, 5), numbers(1, 10), numbers(1, 10, decimals=True)
SIGNED = numbers(-3, 3)
A_OR_B = Scale({"a": 1.0, "b": 0.0})
SETTINGS: dict[str, tuple[Scale, tuple[str, ...]]] = {
    "grade": (PREFERENCE, ("grade",)),
    "double-bracket": (TEN, ("grade",)),
    "output-choice": (A_OR_B, ("grade",)),
    "two-scores": (HALVES, ("first", "second")),
    "aspects-json": (FIVE, ("clarity", "depth")),
    "ranking": (FIVE, ("m", "M")),
    "labelled": (FIVE, ("A", "B", "C")),
}


def answer(reply: str, format: str, scale: Scale, names: tuple[str, ...]) -> dict[str, float] | str:
    """The values, or the reason why there are none; every span must hold what the value came from."""
    try:
        found = parse_reply(reply, format, scale, names)
    except Unparsable as error:
        return error.reason
    assert found.spans.keys() == found.values.keys() <= set(names)
    for name, (start, end) in found.spans.items():
        written = plain(reply[start:end])
        assert written == written.strip() and written, written
        label = next((label for label in scale.labels if label.lower() == written.lower()), None)
        assert format == "ranking" or found.values[name] == (scale.labels[label] if label else pytest.approx(float(written)))
    return found.values


def graded(reply: str, scale: Scale = PREFERENCE, format: str = "grade") -> float | str:
    result = answer(reply, format, scale, ("grade",))
    return result if isinstance(result, str) else result["grade"]
