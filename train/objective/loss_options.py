"""The options of losses: which there are, and what each may be."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from mmpo.pipeline.errors import unknown_name
from mmpo.pipeline.margins import InvalidValue


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "epsilon": (lambda v: _number(v) and 0 <= v < 0.5, "a number in [0, 0.5)"),
    "beta": (lambda v: _number(v) and v > 0, "a number above 0"),
    "eta": (lambda v: v is None or (_number(v) and v >= 0), "a number of at least 0, or None for gamma"),
    "alpha": (lambda v: _number(v) and v >= 0, "a number of at least 0"),
    "transform": (lambda v: v in ("log", "identity"), "'log' or 'identity'"),
}
"""What each option may be: a check and the words for it."""


def checked_options(loss: str, defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a loss with defaults filled in. Raises UserError for an unknown one, ValueError out of range."""
    for name in given:
        if name not in defaults:
            raise unknown_name(f"option of loss {loss} (it takes: {', '.join(defaults) or 'none'})", name, defaults)
    values = {**defaults, **given}
    for name, value in values.items():
        allowed, text = RANGES[name]
        if not allowed(value):
            raise InvalidValue(f"loss {loss}: {name} must be {text}, not {value!r}")
    return values
