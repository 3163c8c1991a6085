"""The objective as it is written: a name, `mmpo`, or weighted terms, `mmpo=1,sft=0.1`, and their options. Imports no torch."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from mmpo.pipeline.errors import UserError, unknown_name
from mmpo.train.objective.losses import TERMS


def parse_terms(given: str | Mapping[str, Any]) -> dict[str, float]:
    """Weights by term, in the order of TERMS, from `mmpo`, `mmpo=1,sft=0.1` or {"mmpo": 1, "sft": 0.1}.

    A name without a weight has weight 1. Raises UserError for an unknown name, one given twice, or a weight that is
    no finite number above 0.

    >>> parse_terms("sft=0.1, mmpo")
    {'mmpo': 1.0, 'sft': 0.1}
    """
    if isinstance(given, str):
        split = [part.partition("=") for part in given.split(",")] if given.strip() else []
        parts = [(name.strip(), text.strip() if equals else 1.0) for name, equals, text in split]
    elif isinstance(given, Mapping):
        parts = list(given.items())
    else:
        raise UserError(f"loss must be a name or weighted terms such as mmpo=1,sft=0.1, not {given!r}")
    if not parts:
        raise UserError("loss names no objective: give one name, or weighted terms such as mmpo=1,sft=0.1")
    terms: dict[str, float] = {}
    for name, value in parts:
        if name not in TERMS:
            raise unknown_name("loss", name, TERMS)
        if name in terms:
            raise UserError(f"loss names {name} twice: give each term one weight")
        terms[name] = _weight(name, value)
    if set(terms) == {"centering"}:
        raise UserError(
            "centering says nothing of which completion is better: give it beside a loss, such as mmpo=1,centering=0.01"
        )
    return {name: terms[name] for name in TERMS if name in terms}


def check_reward_terms(terms: Iterable[str]) -> None:
    """Raises UserError for a term made of log-probabilities per token, which a reward model has none of."""
    for name in terms:
        if name == "sft" or TERMS[name].average_logprobs:
            raise policies_only(name)


def check_policy_terms(terms: Iterable[str]) -> None:
    """Raises UserError for centering, which is about rewards: a policy's log-ratios have their zero, the reference."""
    if "centering" in terms:
        raise UserError(
            "centering is a term on rewards: it works for reward models only, and a policy's log-ratios are centered by its reference"
        )


def reads_targets(terms: Iterable[str]) -> bool:
    """Whether any of the terms looks at the targets or at gamma·margin."""
    return any(TERMS[name].reads_target for name in terms)


def reads_gamma(loss: str | Mapping[str, Any], target: str) -> bool:
    """Whether γ plays any part in training: mmpo's targets of votes are not made with it."""
    terms = parse_terms(loss)
    return reads_targets(terms) and not (target in ("measured", "levels") and set(terms) == {"mmpo"})


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


def options_by_term(terms: Mapping[str, float], given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The options by the term that they belong to; numbers written as text, as a command line gives them, are read.

    given: {"cdpo": {"epsilon": 0.1}}, {"cdpo.epsilon": 0.1} or, where one term alone takes it, {"epsilon": 0.1}. Raises
    UserError for an unknown term or option, and for one given twice.
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in terms}
    for key, value in given.items():
        term, dot, option = key.partition(".")
        if isinstance(value, Mapping) or dot:
            if term not in terms:
                raise unknown_name("term in loss_options", term, terms)
            parts = value if isinstance(value, Mapping) and not dot else {option: value}
        else:
            term, parts = _owner(key, terms), {key: value}
        for name, one in parts.items():
            if name in found[term]:
                raise UserError(f"loss_options gives {name} of {term} twice")
            found[term][name] = _read_number(one)
    return found


def write_options(terms: Mapping[str, float], given: Mapping[str, Any]) -> dict[str, Any]:
    """The same options in one way, wherever they came from: "epsilon" of a single term, "cdpo.epsilon" where there are several.

    >>> write_options({"mmpo": 1.0, "cdpo": 0.5}, {"epsilon": "0.2"}), write_options({"cdpo": 1.0}, {"cdpo": {"epsilon": 0.2}})
    ({'cdpo.epsilon': 0.2}, {'epsilon': 0.2})
    """
    owned = options_by_term(terms, given).items()
    return {name if len(terms) == 1 else f"{term}.{name}": value for term, own in owned for name, value in own.items()}


def _owner(option: str, terms: Mapping[str, float]) -> str:
    """The one term that takes the option."""
    if len(terms) == 1:
        return next(iter(terms))
    owners = [name for name in terms if option in TERMS[name].options]
    if len(owners) == 1:
        return owners[0]
    if owners:
        raise UserError(f"several terms take the option {option}: write {' or '.join(f'{name}.{option}' for name in owners)}")
    known = [f"{name}.{key}" for name in terms for key in TERMS[name].options]
    raise unknown_name(f"option of the losses {', '.join(terms)}", option, known)


def _read_number(value: Any) -> Any:
    """A number written as text, as a command line gives it, becomes one; anything else stays."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _weight(name: str, given: Any) -> float:
    weight = _read_number(given)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise UserError(f"loss: the weight of {name} must be a finite number above 0, not {given!r}; leave out a term of no weight")
    return float(weight)
