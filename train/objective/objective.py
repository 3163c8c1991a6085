"""What a run minimises: one loss or several, weighted, each with its own tie policy and its own normalisation.

    loss = Σ_t λ_t · (Σ w·ℓ_t over the pairs that t uses) / (Σ w over the pairs that t uses)

Both sums run over a whole step. A term that needs a winner uses the pairs of positive margin, any other term all pairs.

    >>> import torch
    >>> objective = Objective.parse("mmpo=1,sft=0.5", gamma=1.0, beta=0.1)
    >>> margin = torch.tensor([2.0, 0.0])  # the second pair is a tie: sft leaves it out
    >>> logits = Logits(z=torch.zeros(2), nll=torch.tensor([3.0, 9.0]))
    >>> terms = objective.per_pair(logits, torch.tensor([0.88, 0.5]), margin)
    >>> float(objective.total(terms, torch.ones(2), margin))  # log 2 + 0.5 · 3
    2.1931471824645996
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmpo.pipeline.errors import UserError
from mmpo.train.objective.lists import Lists
from mmpo.train.objective.losses import TERMS
from mmpo.train.objective.terms import (
    check_policy_terms,
    check_reward_terms,
    options_by_term,
    parse_terms,
    policies_only,
    write_terms,
)

Totals = tuple[float, float]
"""The weight of all pairs of a step, and of those with a winner (margin > 0)."""


@dataclass(frozen=True)
class Logits:
    """What a model says of every pair, each of shape (pairs,), differentiable.

    z: the pair's logit. A policy also gives z_mean, the same from log-ratios averaged per token, and nll, the chosen
    completion's mean negative log-probability per token, in nats, ≥ 0; a reward model `sum`, of both rewards. lists: the completions
    behind the pairs, for terms of whole prompts; without them every pair is a prompt of two.
    """

    z: Tensor
    z_mean: Tensor | None = None
    nll: Tensor | None = None
    sum: Tensor | None = None
    lists: Lists | None = None


@dataclass(frozen=True)
class Term:
    """One term: its weight λ, the loss's options with defaults filled in, and whether ties are left out of it."""

    name: str
    weight: float
    options: Mapping[str, Any]
    needs_winner: bool

    def per_pair(self, logits: Logits, p: Tensor, margin: Tensor, gamma: float) -> Tensor:
        """The term's value of every pair, shape (pairs,); exactly 0, with no gradient, where the term leaves a tie out."""
        if not self.needs_winner:
            return self._formula(logits, p, margin, gamma)
        # Before the formula and not behind it alone: no loss has to be finite at margin 0, where odpo takes log 0.
        decided = margin > 0
        values = self._formula(logits, p, torch.where(decided, margin, 1.0), gamma)
        return torch.where(decided, values, 0.0)

    def pair_weight(self, weight: Tensor, margin: Tensor) -> Tensor:
        """The pairs' weights in this term: 0 where it leaves a tie out."""
        return weight * (margin > 0) if self.needs_winner else weight

    def mean(self, values: Tensor, weight: Tensor, margin: Tensor, totals: Totals) -> Tensor:
        """These pairs' share of the term's weighted mean over a step of the given totals; 0 where no pair counts."""
        every, decided = totals
        whole = decided if self.needs_winner else every
        return (self.pair_weight(weight, margin) * values).sum() / (whole or 1.0)

    def _formula(self, logits: Logits, p: Tensor, margin: Tensor, gamma: float) -> Tensor:
        loss, lists = TERMS[self.name], logits.lists
        if (
            loss.listed is not None and lists is not None
        ):  # a prompt's loss stands for each of its pairs, so that it weighs what they do
            return loss.per_prompt(lists.z, lists.score, lists.prompt, gamma=gamma, **self.options)[lists.pair_prompt]
        own = {"sft": logits.nll, "centering": logits.sum}
        z = own.get(self.name, logits.z_mean if loss.average_logprobs else logits.z)
        if z is None:
            check_policy_terms([self.name])
            raise policies_only(self.name)
        return loss.per_pair(z, p, margin, gamma=gamma, **self.options)


@dataclass(frozen=True)
class Objective:
    """Weighted terms, in the order of TERMS, and the γ (1/margin-unit) that they share."""

    terms: tuple[Term, ...]
    gamma: float

    @classmethod
    def parse(
        cls,
        given: "str | Mapping[str, Any]",
        options: Mapping[str, Any] | None = None,
        gamma: float = 1.0,
        *,
        beta: float | None = None,
    ) -> "Objective":
        """The objective of `mmpo`, `mmpo=1,sft=0.1` or a mapping, tried on one pair so that it can't fail later.

        options: of the losses, {"cdpo": {"epsilon": 0.1}}, "cdpo.epsilon" or, where one term alone takes it, "epsilon".
        beta: the policy's; None for a reward model. Raises UserError for names, weights or options that are unknown
        or out of range, for terms that a reward model can't have, and for a γ that a loss can't work with.
        """
        weights = parse_terms(given)
        (check_reward_terms if beta is None else check_policy_terms)(weights)
        own = options_by_term(weights, options or {})
        terms = tuple(_term(name, weight, own[name], beta) for name, weight in weights.items())
        objective = cls(terms, gamma)
        zero, one = torch.zeros(1), torch.ones(1)
        objective.per_pair(Logits(zero, zero, zero, zero), one, one)
        return objective

    def fitted(self, margin: Any, weight: Any, device: torch.device | str = "cpu") -> "Objective":
        """The same with what its losses learn, started from the training pairs' margins and weights, each (pairs,)."""

        def start(term: Term) -> Term:
            found = TERMS[term.name].parameters(margin, weight, **term.options)
            moved = {
                k: v.detach().float().to(device).requires_grad_(v.requires_grad) for k, v in found.items() if isinstance(v, Tensor)
            }
            return replace(term, options={**term.options, **found, **moved})

        return replace(self, terms=tuple(start(term) if TERMS[term.name].starts else term for term in self.terms))

    @property
    def parameters(self) -> dict[str, Tensor]:
        """What the losses learn beside the model, by "term.option": leaves that require gradients, float32; {} before `fitted`."""
        values = {f"{term.name}.{name}": value for term in self.terms for name, value in term.options.items()}
        return {name: value for name, value in values.items() if isinstance(value, Tensor) and value.requires_grad}

    @property
    def learned(self) -> dict[str, dict[str, Any]]:
        """What each loss with parameters has learned, as JSON values, by term: see `Loss.learned`."""
        return {term.name: TERMS[term.name].learned(term.options) for term in self.terms if TERMS[term.name].state}

    @property
    def figures(self) -> dict[str, float]:
        """The numbers of `learned` that are one each, for curves: "ordinal/gamma", "davidson/nu"."""
        return {
            f"{term}/{name}": value
            for term, found in self.learned.items()
            for name, value in found.items()
            if isinstance(value, float)
        }

    @property
    def needs_winner(self) -> bool:
        """Whether ties are of no use to any term, so that they can be dropped before anything is computed."""
        return all(term.needs_winner for term in self.terms)

    def per_pair(self, logits: Logits, p: Tensor, margin: Tensor) -> dict[str, Tensor]:
        """Every term's value of every pair, by name, each (pairs,); 0 where a term leaves a tie out."""
        return {term.name: term.per_pair(logits, p, margin, self.gamma) for term in self.terms}

    def total(self, values: Mapping[str, Tensor], weight: Tensor, margin: Tensor, totals: Totals | None = None) -> Tensor:
        """The objective's share of these pairs, a scalar: the shares of a step's micro-batches add up to its loss.

        values: from `per_pair`. weight, margin: (pairs,), ≥ 0. totals: the whole step's (default: these pairs' own);
        a term without a single pair is 0.
        """
        totals = pair_totals(weight, margin) if totals is None else totals
        shares = [term.weight * term.mean(values[term.name], weight, margin, totals) for term in self.terms]
        return torch.stack(shares).sum()

    def means(self, values: Mapping[str, Any], weight: Any, margin: Any) -> dict[str, float]:
        """{"loss": the objective, "loss/<term>": each term's own mean if there are several} over given numpy arrays."""
        weight, margin = torch.as_tensor(weight), torch.as_tensor(margin)
        totals = pair_totals(weight, margin)
        own = {term.name: float(term.mean(torch.as_tensor(values[term.name]), weight, margin, totals)) for term in self.terms}
        found = {"loss": sum(term.weight * own[term.name] for term in self.terms)}
        return found | ({f"loss/{name}": value for name, value in own.items()} if len(own) > 1 else {})

    def __str__(self) -> str:
        return write_terms({term.name: term.weight for term in self.terms})


def pair_totals(weight: Tensor, margin: Tensor) -> Totals:
    """Σ w over all pairs and over those with a winner; weight, margin: (pairs,)."""
    return float(weight.sum()), float((weight * (margin > 0)).sum())


def _term(name: str, weight: float, options: Mapping[str, Any], beta: float | None) -> Term:
    loss = TERMS[name]
    if "beta" in loss.options and beta is not None:
        if options.get("beta", beta) != beta:
            raise UserError(f"{name} works with the policy's beta ({beta}): set beta, not loss_options.beta")
        options = {**options, "beta": beta}  # z carries this one
    resolved = loss.resolve(options)
    return Term(name, weight, dict(options) if loss.starts else resolved, loss.needs_winner)  # what is not given is learned
