"""Losses with parameters of their own, ordinal and davidson: values and gradients by hand, identities, where they start, what they find."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import softplus
from training_cases import user_error

from mmpo.train.objective import LOSSES

ORDINAL, DAVIDSON = LOSSES["ordinal"], LOSSES["davidson"]
Z = torch.tensor([-3.0, -0.4, 0.0, 1.7, 6.0], dtype=torch.float64)


def ordinal(z, margin, levels, thresholds):
    gaps = np.log(np.diff(thresholds, prepend=0.0)).tolist()
    z, margin = torch.as_tensor(z, dtype=torch.float64), torch.as_tensor(margin, dtype=torch.float64)
    return ORDINAL.per_pair(z, torch.full_like(z, 0.5), margin, levels=levels, log_gaps=gaps)


def davidson(z, margin, nu):
    z, margin = (torch.as_tensor(value, dtype=torch.float64) for value in (z, margin))
    return DAVIDSON.per_pair(z, torch.full_like(z, 0.5), margin, log_nu=math.log(nu))


def test_ordinal_by_hand():
    """Levels 0, 1, 3 with thresholds log 2 and log 5 at z = 0: σ(log 2) = 2/3, σ(log 5) = 5/6, so that P(grade) of −2 … 2 is
    1/6, 1/6, 1/3, 1/6, 1/6. A margin of 2 lies halfway between 1 and 3, one of .5 between 0 and 1: a half of each.

    At z = log 2 the first threshold above is met: σ(0) = ½, the second is log 5/2: σ = 5/7; the one below, −log 2 − log 2: σ = 1/5.
    """
    scale = ((0.0, 1.0, 3.0), np.log([2.0, 5.0]))
    expected = [math.log(6), math.log(3), math.log(6), math.log(6), math.log(6), 0.5 * math.log(3) + 0.5 * math.log(6)]
    found = ordinal([0.0] * 6, [-3.0, 0.0, 1.0, 2.0, 9.0, 0.5], *scale)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    found = ordinal([math.log(2)] * 3, [0.0, 1.0, 3.0], *scale)
    expected = [-math.log(1 / 2 - 1 / 5), -math.log(5 / 7 - 1 / 2), -math.log(2 / 7)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    # without ties 0 is a threshold: P(grade 1) = σ(log 5) − ½ = 1/3, and 1/6 for the second; a tie is half of 1 and half of −1
    found = ordinal([0.0] * 3, [1.0, 3.0, 0.0], (1.0, 3.0), np.log([5.0]))
    torch.testing.assert_close(found, torch.tensor([math.log(3), math.log(6), math.log(3)], dtype=torch.float64))


def test_davidson_by_hand():
    """At z = log 4 win : tie : loss = 2 : 2ν : ½; with ν = ¾ they are 2, 3/2 and ½ of 4. At z = 0 a tie has ν/(1 + ν)."""
    found = davidson([math.log(4)] * 3, [1.0, 0.0, -1.0], 0.75)
    torch.testing.assert_close(found, torch.tensor([math.log(2), math.log(8 / 3), math.log(8)], dtype=torch.float64))
    assert float(davidson([0.0], [0.0], 3.0)) == pytest.approx(-math.log(3 / 4))


@pytest.mark.parametrize("margin", [0.0, 1.0, 2.5, 3.0, 7.0])
def test_gradients_are_the_differences_of_probabilities(margin):
    """Of −log(σ(u − z) − σ(l − z)): σ(z − u) − σ(l − z), for z between the two thresholds' slopes; and by the parameters numerically."""
    z = Z.clone().requires_grad_()
    values = ordinal(z, np.full(5, margin), (0.0, 1.0, 3.0), [0.5, 2.0])
    (gradient,) = torch.autograd.grad(values.sum(), z)
    ends = [-math.inf, -2.0, -0.5, 0.5, 2.0, math.inf]
    share = {0.0: {0: 1}, 1.0: {1: 1}, 2.5: {1: 0.25, 2: 0.75}, 3.0: {2: 1}, 7.0: {2: 1}}[margin]
    expected = sum(s * (torch.sigmoid(Z - ends[3 + grade]) - torch.sigmoid(ends[2 + grade] - Z)) for grade, s in share.items())
    torch.testing.assert_close(gradient, expected)
    given = torch.full_like(Z, margin)
    half = torch.full_like(Z, 0.5)
    gaps = torch.tensor([-0.7, 0.4], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda g: ORDINAL.per_pair(Z, half, given, levels=(0.0, 1.0, 3.0), log_gaps=g), gaps)
    log_nu = torch.tensor(-0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda nu: DAVIDSON.per_pair(Z, half, given, log_nu=nu), log_nu)


def dpo(z):
    return softplus(-z)


MARGIN = torch.tensor([0.3, 1.0, 2.0, 2.6, 5.0], dtype=torch.float64)
THETA, SCALE = 1.8, ((0.0, 1.0, 2.0), [0.4, 1.9])
IDENTITIES = {
    "one level, no ties: Bradley–Terry": (ordinal(Z, [2.0] * 5, (2.0,), []), dpo(Z)),
    "one level and ties: Rao–Kupper's wins": (
        ordinal(Z, [2.0] * 5, (0.0, 2.0), [math.log(THETA)]),
        -(Z.exp() / (Z.exp() + THETA)).log(),
    ),
    "one level and ties: Rao–Kupper's ties": (
        ordinal(Z, [0.0] * 5, (0.0, 2.0), [math.log(THETA)]),
        -((THETA**2 - 1) * Z.exp() / ((Z.exp() + THETA) * (1 + THETA * Z.exp()))).log(),
    ),
    "ordinal with the pair swapped": (ordinal(-Z, -MARGIN, *SCALE), ordinal(Z, MARGIN, *SCALE)),
    "davidson with the pair swapped": (davidson(-Z, -MARGIN, 0.7), davidson(Z, MARGIN, 0.7)),
    "davidson's ties are even": (davidson(-Z, [0.0] * 5, 0.7), davidson(Z, [0.0] * 5, 0.7)),
    "davidson as ν → 0 is Bradley–Terry": (davidson(Z, [2.0] * 5, 1e-12), dpo(Z)),
    "ordinal's probabilities add up": (
        torch.stack([(-ordinal(Z, [g] * 5, *SCALE)).exp() for g in (-2.0, -1.0, 0.0, 1.0, 2.0)]).sum(0),
        torch.ones(5, dtype=torch.float64),
    ),
    "davidson's too": (
        torch.stack([(-davidson(Z, [g] * 5, 0.7)).exp() for g in (-1.0, 0.0, 1.0)]).sum(0),
        torch.ones(5, dtype=torch.float64),
    ),
}


@pytest.mark.parametrize("which", IDENTITIES)
def test_identities(which):
    torch.testing.assert_close(*IDENTITIES[which])


def test_levels_are_distinct_margins_or_else_quantiles():
    def levels(margin):
        return ORDINAL.parameters(margin)["levels"]

    assert levels([0.1 + 0.2, 0.3, 0.6, 0.6]) == pytest.approx((0.3, 0.6))  # rounding makes no level
    assert levels([0.0, 2.0]) == (0.0, 2.0)
    margin = np.arange(1, 101.0)
    assert levels(margin) == pytest.approx((0.0, *np.quantile(margin, np.arange(0.05, 1, 0.1))))
    assert levels([*margin, *np.zeros(50)]) == levels(margin)  # ties are a level of their own
    user_error("at least one above 0", ORDINAL.parameters, [0.0, 0.0])
    user_error("3 levels need 2 log_gaps, not 1", ordinal, [0.0], [1.0], (0.0, 1.0, 2.0), [1.0])
    for wrong in ([0.0], [2.0, 1.0], [-1.0, 1.0], 3.0):
        user_error("levels must be ascending numbers", ORDINAL.parameters, [1.0], levels=wrong)
    user_error("log_nu must be a finite number", DAVIDSON.parameters, [1.0], log_nu=math.inf)


GRADES = {"ties": [0, 0, 0, 1, 1, 2, 2, 2, 5.0], "no ties": [1, 1, 2, 2, 2, 5.0], "between": np.linspace(0.05, 4, 40)}


@pytest.mark.parametrize("name", ["ordinal", "davidson"])
@pytest.mark.parametrize("which", GRADES)
def test_a_model_that_knows_nothing_can_do_no_better_by_other_parameters(name, which):
    """Where z = 0, the parameters start at their optimum: the gradient by them is 0, and ordinal's loss is the entropy of the levels."""
    margin = torch.tensor(GRADES[which], dtype=torch.float64)
    learned = LOSSES[name].parameters(margin)
    at = torch.zeros_like(margin)
    loss = LOSSES[name].per_pair(at, at + 0.5, margin, **learned).mean()
    (gradient,) = torch.autograd.grad(loss, next(v for v in learned.values() if isinstance(v, torch.Tensor)))
    half_a_pair = 0.5 / len(margin) if name == "davidson" else 1e-12
    assert float(gradient.abs().max()) <= half_a_pair
    if (name, which) == ("ordinal", "ties"):
        entropy = (
            -sum(n * math.log(n / (9 if level == 0 else 18)) for level, n in enumerate([3, 2, 3, 1])) / 9
        )  # ± share a level's pairs
        assert float(loss.detach()) == pytest.approx(entropy)


def test_what_is_given_is_kept_and_what_is_not_is_learned():
    learned = ORDINAL.parameters([1.0, 2.0, 4.0], levels=[0.0, 2.0, 4.0])
    assert learned["levels"] == [0.0, 2.0, 4.0] and learned["log_gaps"].requires_grad and learned["log_gaps"].is_leaf
    fixed = DAVIDSON.parameters([1.0, 0.0], log_nu=0.0)
    assert fixed == {"log_nu": 0.0} and DAVIDSON.learned(fixed) == {"nu": 1.0, "tie_probability": 0.5}
    assert LOSSES["mmpo"].parameters([1.0]) == {} and LOSSES["mmpo"].learned({}) == {}
    weighted = DAVIDSON.parameters([0.0, 1.0], [3.0, 1.0])
    assert DAVIDSON.learned(weighted)["nu"] == pytest.approx((3 + 1) / (1 + 1))  # half a mean weight each


def planted(seed=0, pairs=4000):
    random = np.random.default_rng(seed)
    x = random.normal(size=pairs)
    return torch.from_numpy(x), torch.from_numpy(random.logistic(size=pairs))


def fitted(name, x, margin, steps=60):
    """Slope of z on x and the loss's parameters, fitted in full batch, and what was learned. Pairs are ordered by grade."""
    sign = torch.where(margin < 0, -1.0, 1.0).double()
    slope = torch.zeros((), dtype=torch.float64, requires_grad=True)
    learned = LOSSES[name].parameters(margin.abs())
    optimizer = torch.optim.LBFGS(
        [slope, *(v for v in learned.values() if isinstance(v, torch.Tensor))], max_iter=steps, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = LOSSES[name].per_pair(slope * x * sign, torch.full_like(x, 0.5), margin.abs(), **learned).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return slope.item(), LOSSES[name].learned(learned)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_ordinal_finds_the_planted_thresholds_and_their_gamma(scale):
    """Grades 0, ±1, ±2 in units of `scale`, cut from 1.5·x + logistic noise at ±.8 and ±2.4: each step of the scale is 1.6 of z."""
    x, noise = planted()
    margin = torch.bucketize(1.5 * x + noise, torch.tensor([-2.4, -0.8, 0.8, 2.4]).double()).double() - 2
    slope, found = fitted("ordinal", x, scale * margin)
    assert slope == pytest.approx(1.5, abs=0.1)
    assert found["thresholds"] == pytest.approx([0.8, 2.4], abs=0.12) and found["levels"] == [0.0, scale, 2 * scale]
    assert found["gamma"] == pytest.approx(1.6 / scale, rel=0.06)


def test_davidson_finds_the_planted_tie_parameter():
    x, _ = planted(seed=3)
    weights = torch.stack([(0.75 * x).exp(), torch.full_like(x, 2 * 0.6), (-0.75 * x).exp()], dim=1)
    said = torch.multinomial(weights, 1, generator=torch.Generator().manual_seed(0)).squeeze(1)
    slope, found = fitted("davidson", x, 1.0 - said)
    assert slope == pytest.approx(1.5, abs=0.12) and found["nu"] == pytest.approx(0.6, abs=0.06)
