"""The objective as it is written: a name, `mmpo`, or weighted terms, `mmpo=1,sft=0.1`. Imports no torch."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from mmpo.pipeline.errors import UserError, unknown_name
from mmpo.train.objective.losses import LOSSES

__all__ = [
    "SFT_SUMMARY",
    "TERM_NAMES",
    "check_reward_terms",
    "parse_terms",
    "policies_only",
    "reads_targets",
    "write_terms",
]

TERM_NAMES = (*LOSSES, "sft")
"""What an objective is made of: the losses of pairs, and `sft`, which sees the chosen completion only."""
SFT_SUMMARY = "mean negative log-probability per token of the chosen completion; policies only (plain fine-tuning)"


def parse_terms(given: str | Mapping[str, Any]) -> dict[str, float]:
    """Weights by term, in the order of TERM_NAMES, from `mmpo`, `mmpo=1,sft=0.1` or {"mmpo": 1, "sft": 0.1}.

    A name without a weight has weight 1. Raises UserError for an unknown name, one given twice, or a weight that is
    no finite number above 0.

    >>> parse_terms("sft=0.1, mmpo")
    {'mmpo': 1.0, 'sft': 0.1}
    """
    if isinstance(given, str):
        parts = [(name.strip(), text.strip() if equals else 1.0) for name, equals, text in _split(given)]
    elif isinstance(given, Mapping):
        parts = list(given.items())
    else:
        raise UserError(f"loss must be a name or weighted terms such as mmpo=1,sft=0.1, not {given!r}")
    if not parts:
        raise UserError("loss names no objective: give one name, or weighted terms such as mmpo=1,sft=0.1")
    terms: dict[str, float] = {}
    for name, value in parts:
        if name not in TERM_NAMES:
            raise unknown_name("loss", name, TERM_NAMES)
        if name in terms:
            raise UserError(f"loss names {name} twice: give each term one weight")
        terms[name] = _weight(name, value)
    return {name: terms[name] for name in TERM_NAMES if name in terms}


def check_reward_terms(terms: Iterable[str]) -> None:
    """Raises UserError for a term made of log-probabilities per token, which a reward model has none of."""
    for name in terms:
        if name == "sft" or LOSSES[name].average_logprobs:
            raise policies_only(name)


def reads_targets(terms: Iterable[str]) -> bool:
    """Whether any of the terms looks at the targets or at gamma·margin."""
    return any(name in LOSSES and LOSSES[name].reads_target for name in terms)


def policies_only(name: str) -> UserError:
    """The error of a term that lacks what it is made of."""
    return UserError(f"{name} is a term on log-probabilities per token: it works for policies only")


def write_terms(terms: Mapping[str, float]) -> str:
    """The text that `parse_terms` reads to the same terms, bit for bit.

    >>> write_terms({"mmpo": 1.0}), write_terms({"mmpo": 1.0, "sft": 0.1})
    ('mmpo', 'mmpo=1,sft=0.1')
    """
    if len(terms) == 1 and all(weight == 1 for weight in terms.values()):
        return next(iter(terms))
    return ",".join(f"{name}={repr(weight).removesuffix('.0')}" for name, weight in terms.items())


def _split(text: str) -> list[tuple[str, str, str]]:
    return [part.partition("=") for part in text.split(",")] if text.strip() else []


def _weight(name: str, given: Any) -> float:
    try:
        weight = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError):
        weight = math.nan
    if not (weight > 0 and math.isfinite(weight)):
        raise UserError(f"loss: the weight of {name} must be a finite number above 0, not {given!r}; leave out a term of no weight")
    return weight
