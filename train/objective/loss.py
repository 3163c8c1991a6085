"""What an objective is: a formula by name, its options and the range of each, and what it learns beside the model. Imports no torch."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from operator import lt
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from mmpo.pipeline.errors import unknown_name
from mmpo.pipeline.margins import Floats, InvalidValue, as_floats, check_gamma

if TYPE_CHECKING:
    from torch import Tensor


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_number, value))


def _tensor(value: Any, dimensions: int) -> bool:
    return hasattr(value, "requires_grad") and value.ndim == dimensions


RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "epsilon": (lambda v: _number(v) and 0 <= v < 0.5, "a number in [0, 0.5)"),
    "beta": (lambda v: _number(v) and v > 0, "a number above 0"),
    "eta": (lambda v: v is None or (_number(v) and v >= 0), "a number of at least 0, or None for gamma"),
    "alpha": (lambda v: _number(v) and v >= 0, "a number of at least 0"),
    "transform": (lambda v: v in ("log", "identity"), "'log' or 'identity'"),
    "levels": (lambda v: _numbers(v) and v[-1] > 0 and v[0] >= 0 and all(map(lt, v, v[1:])), "ascending numbers of at least 0"),
    "log_gaps": (lambda v: _tensor(v, 1) or _numbers(v), "finite numbers, or a tensor of them"),
    "log_nu": (lambda v: _tensor(v, 0) or _number(v), "a finite number, or a tensor of one"),
}
"""What each option of a loss may be: a check and the words for it."""


@dataclass(frozen=True)
class Loss:
    """One objective. `needs_winner`: ties (margin 0) are noise to it and are left out. `reads_target`: its value depends on
    p or on γ·m. `average_logprobs`: the policy's log-probabilities are averaged per token before z is formed. `source`: where
    the formula is from (arXiv number or project). `starts`, `state`: of a loss with parameters, see `parameters` and `learned`.
    `listed`: of a loss of all completions of a prompt, see `per_prompt`; `per_pair` then takes every pair for a prompt of two."""

    name: str
    summary: str
    source: str
    formula: Callable[..., Tensor]
    needs_winner: bool = False
    reads_target: bool = False
    average_logprobs: bool = False
    starts: Callable[[Floats, Floats, Mapping[str, Any]], dict[str, Any]] | None = None
    state: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    listed: Callable[..., Tensor] | None = None

    @cached_property
    def options(self) -> dict[str, Any]:
        """The formula's own options and their defaults."""
        parameters = inspect.signature(self.formula).parameters.values()
        return {item.name: item.default for item in parameters if item.default is not item.empty}

    def per_pair(self, z: Tensor, p: Tensor, margin: Tensor, *, gamma: float = 1.0, **options: Any) -> Tensor:
        """The loss of every pair, shape (pairs,), never reduced; differentiable in z.

        z: logits, shape (pairs,), finite, up to ±1e4 and beyond. p: targets in [0, 1], shape (pairs,). margin: quality
        margins in score units, shape (pairs,), ≥ 0. gamma: in 1/margin-unit, ≥ 0 or inf. Raises ValueError (a
        UserError) where the shapes differ or are not (pairs,), or an option is unknown or out of range. Shapes must
        be *equal*: (B, 1) against (B,) would silently train every pair on all B targets.
        """
        if z.ndim != 1 or p.shape != z.shape or margin.shape != z.shape:
            shapes = f"z {tuple(z.shape)}, p {tuple(p.shape)}, margin {tuple(margin.shape)}"
            raise InvalidValue(f"z, p and margin must all have the shape (pairs,); got {shapes}")
        return self.formula(z, p, margin, gamma=check_gamma(gamma), **self.resolve(options))

    def per_prompt(self, z: Tensor, score: Tensor, prompt: Tensor, *, gamma: float = 1.0, **options: Any) -> Tensor:
        """The loss of every prompt, shape (prompts,), of a loss that looks at all completions of a prompt (listwise); differentiable in z.

        z: (completions,), β·log-ratio or reward; score: (completions,), finite, in score units; prompt: (completions,), int64, which prompt
        each is of, 0 … prompts − 1, in any order. gamma: in 1/score-unit, ≥ 0 or inf. InvalidValue where shapes differ, and for a loss of
        pairs.
        """
        if self.listed is None:
            raise InvalidValue(f"loss {self.name} is one of pairs: it has per_pair only")
        if z.ndim != 1 or score.shape != z.shape or prompt.shape != z.shape:
            shapes = f"z {tuple(z.shape)}, score {tuple(score.shape)}, prompt {tuple(prompt.shape)}"
            raise InvalidValue(f"z, score and prompt must all have the shape (completions,); got {shapes}")
        return self.listed(z, score, prompt, gamma=check_gamma(gamma), **self.resolve(options))

    def parameters(self, margin: ArrayLike, weight: ArrayLike | None = None, **options: Any) -> dict[str, Any]:
        """What this loss learns beside the model, as options for `per_pair`: where a training starts from; {} where there is nothing.

        margin, weight: of the training pairs, (pairs,), arrays or tensors; weight defaults to 1 each. options: what is given is kept, and
        not learned. Tensors among the values are float64 leaves that require gradients; the others are constants. ordinal: levels
        (a tuple) and log_gaps (levels − 1,); davidson: log_nu, a scalar. InvalidValue where the margins allow no start.

            learned = LOSSES["ordinal"].parameters(margin)
            optimizer = torch.optim.LBFGS([*model.parameters(), *(v for v in learned.values() if isinstance(v, torch.Tensor))])
            LOSSES["ordinal"].per_pair(z, p, margin, gamma=gamma, **learned)
        """
        given = self.resolve(options)
        if self.starts is None:
            return {}
        m = as_floats(margin, "margins")
        w = np.ones_like(m) if weight is None else as_floats(weight, "weights")
        found = self.starts(m, w, options) | {name: given[name] for name in options}
        for name, value in found.items():
            if name not in options and hasattr(value, "requires_grad_"):
                value.requires_grad_()
        return found

    def learned(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """What the options say that were learned (or given), as JSON values: ordinal's thresholds and γ, davidson's ν; else {}."""
        return {} if self.state is None else self.state({**self.options, **options})

    def resolve(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options with defaults filled in, each checked. Raises UserError for an unknown one, ValueError out of range."""
        for name in options:
            if name not in self.options:
                takes = ", ".join(self.options) or "none"
                raise unknown_name(f"option of loss {self.name} (it takes: {takes})", name, self.options)
        values = {**self.options, **options}
        for name, value in values.items():
            allowed, text = RANGES[name]
            if not allowed(value):
                raise InvalidValue(f"loss {self.name}: {name} must be {text}, not {value!r}")
        return values
