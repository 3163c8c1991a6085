"""Linear heads: their optimum, what their slopes are, and that swapping a pair changes nothing."""

import numpy as np
import pytest
from planted import planted_evidence
from scipy.optimize import minimize

from mmpo.pipeline.margins import sigmoid, softplus
from mmpo.train.advise import Head, Setting, fit_heads
from mmpo.train.advise.controls import _by_name, heads_of


def problem(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((300, 6)) * np.array([1, 1, 2, 0.5, 1, 3])
    return x, sigmoid(x @ rng.standard_normal(6))


@pytest.mark.parametrize("decay", [1e-3, 0.1, 3.0])
def test_a_head_is_where_scipy_finds_the_least_penalised_cross_entropy(decay: float) -> None:
    x, p = problem()
    found = fit_heads(x, [Head(p)], (decay,))[:, 0, 0]

    def loss(w: np.ndarray) -> float:
        z = x @ w
        return float((softplus(z) - p * z).mean() + decay / 2 * w @ w)

    least = minimize(loss, np.zeros(6), method="BFGS")
    assert loss(found) <= least.fun + 1e-5
    assert found == pytest.approx(least.x, rel=1e-2)


@pytest.mark.parametrize("objective", [Setting("mmpo", 0.75), Setting("dpo"), Setting("cdpo", options={"epsilon": 0.2})])
def test_soft_heads_have_the_optimum_of_the_loss_of_the_table(objective: Setting) -> None:
    found, features = planted_evidence(0.5, 0, prompts=40)
    x = features[found.chosen] - features[found.rejected]
    own = heads_of(objective, found, np.random.default_rng(0))["own"]
    named = _by_name(objective, own.p, found.margin, gamma=1.0)
    both = fit_heads(x, [own, named], (0.01, 0.3))
    assert both[:, 0] == pytest.approx(both[:, 1], abs=2e-3)


def test_swapping_a_pair_changes_nothing() -> None:
    x, p = problem()
    turn = np.random.default_rng(1).random(len(x)) < 0.5
    swapped = fit_heads(np.where(turn[:, None], -x, x), [Head(np.where(turn, 1 - p, p))])
    assert swapped == pytest.approx(fit_heads(x, [Head(p)]), abs=1e-3)


def test_weights_count_like_copies() -> None:
    x, p = problem()
    count = np.random.default_rng(2).integers(1, 4, len(x))
    weighted = fit_heads(x, [Head(p, weight=count.astype(float))], (0.1,))
    assert weighted == pytest.approx(fit_heads(np.repeat(x, count, axis=0), [Head(np.repeat(p, count))], (0.1,)), abs=2e-3)
