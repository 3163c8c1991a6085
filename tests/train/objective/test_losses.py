"""Every objective against numbers derived by hand, its gradient from the literature, identities between them; and the targets."""

import math
import subprocess
import sys
from itertools import product

import numpy as np
import pyarrow as pa
import pytest
import torch
from panels import graded_pairs
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus
from training_cases import user_error

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.margins import target_probability
from mmpo.train.objective import LOSSES, fit_target, targets

torch.set_num_threads(1)
LN2 = math.log(2)
Z, M = (torch.tensor(column, dtype=torch.float64) for column in zip(*product((-3.0, -0.4, 0.0, 1.7, 6.0), (0.5, 1.0, 4.0))))
GAMMA = 0.7
P = torch.sigmoid(GAMMA * M)


def loss(name: str, z: Tensor = Z, p: Tensor = P, m: Tensor = M, **options: object) -> Tensor:
    return LOSSES[name].per_pair(z, p, m, **{"gamma": GAMMA, **options})


def one(name: str, z: float, p: float, m: float, **options: object) -> float:
    tensors = (torch.tensor([value], dtype=torch.float64) for value in (z, p, m))
    return float(LOSSES[name].per_pair(*tensors, **options))


def test_numbers_derived_by_hand() -> None:
    """At z = log 3 the model says σ(z) = 3/4: −log σ(z) = log 4/3 and −log σ(−z) = log 4; at m = log 3, γ = 1 so does the target.

    odpo with f = log at m = 3 subtracts log 3 from z: softplus(0) = log 2; without offset it takes a tie.
    """
    z, right, wrong = math.log(3), math.log(4 / 3), math.log(4)
    expected = {
        "mmpo": 0.6 * right + 0.4 * wrong,
        "dpo": right,
        "cdpo": 0.9 * right + 0.1 * wrong,
        "robust": (0.9 * right - 0.1 * wrong) / 0.8,
        "ipo": (z / 0.1 - 5) ** 2,
        "rpo-bwd": 0.6 * math.log(0.6 / 0.75) + 0.4 * math.log(0.4 / 0.25),
        "rpo-fwd": 0.0,
        "rpo-sq": 0.0,
        "margin": LN2,
        "scaled-bt": z * right,
        "gdpo": math.log1p(3**-0.2),
        "ordinal": right,  # a single level of margin 1
        "listwise": 0.75 * right + 0.25 * wrong,  # its target is σ(γm), whatever p is
        "davidson": -math.log(math.sqrt(3) / (math.sqrt(3) + math.sqrt(1 / 3) + 2)),
    }
    for name, value in expected.items():
        assert one(name, z, 0.6, z) == pytest.approx(value, abs=1e-12), name
    assert one("odpo", z, 0.6, 3.0) == pytest.approx(LN2)
    assert one("odpo", 1.0, 0.5, 0.0, alpha=0) == pytest.approx(math.log1p(math.exp(-1)))
    assert one("rpo-fwd", 0.0, 0.6, z) == pytest.approx(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    assert one("rpo-sq", 0.0, 0.6, 2.0, eta=3.0, gamma=9.0) == pytest.approx(36.0)


SIGMA = torch.sigmoid(Z)
GRADIENTS = {
    "mmpo": SIGMA - P,
    "dpo": SIGMA - 1,
    "cdpo": SIGMA - 0.9,
    "robust": SIGMA - (1 + 0.1 / 0.8),
    "ipo": 2 * (Z / 0.1 - 5) / 0.1,
    "rpo-bwd": SIGMA - P,
    "rpo-fwd": SIGMA * (1 - SIGMA) * (Z - GAMMA * M),
    "rpo-sq": 2 * (Z - GAMMA * M),
    "odpo": -torch.sigmoid(-(Z - M.log())),
    "margin": -torch.sigmoid(-(Z - M)),
    "scaled-bt": -M * torch.sigmoid(-Z),
    "gdpo": -(2 * P - 1) * torch.sigmoid(-(2 * P - 1) * Z),
    "ordinal": SIGMA - (M.clamp(max=1) + 1) / 2,  # below the level shared with the one below 0
    "listwise": SIGMA - P,
    "davidson": torch.tanh(Z / 4) / 2 - 0.5,  # of log(e^(z/2) + 2 + e^(−z/2)), less z/2
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_the_published_one(name: str) -> None:
    z = Z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(name, z).sum(), z)
    torch.testing.assert_close(gradient, GRADIENTS[name], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradient_are_finite_at_huge_logits(name: str, dtype: torch.dtype) -> None:
    z = torch.tensor([-1e4, 1e4, -1e4, 1e4], dtype=dtype, requires_grad=True)
    margin = torch.tensor([1.0, 1.0, 9.0, 9.0], dtype=dtype)
    for p in (torch.ones_like(margin), torch.full_like(margin, 0.5), torch.sigmoid(margin)):
        values = LOSSES[name].per_pair(z, p, margin, gamma=1.0)
        (gradient,) = torch.autograd.grad(values.sum(), z)
        assert values.shape == (4,) and values.dtype == dtype
        assert torch.isfinite(values).all() and torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", LOSSES)
def test_shapes_that_would_broadcast_are_refused(name: str) -> None:
    for z, p, m in ((Z[:, None], P, M), (Z, P[:, None], M), (Z, P, M[:1]), (Z[0], P[0], M[0]), (Z[:, None],) * 3):
        with pytest.raises(ValueError, match=r"\(pairs,\)"):
            LOSSES[name].per_pair(z, p, m)


CERTAIN, HALF = (torch.from_numpy(target_probability(M.numpy(), gamma)) for gamma in (math.inf, 0.0))
IDENTITIES = {
    "mmpo is binary cross entropy": (loss("mmpo"), binary_cross_entropy_with_logits(Z, P, reduction="none")),
    "mmpo written out": (loss("mmpo"), softplus(Z) - P * Z),
    "mmpo is rpo-bwd plus entropy": (loss("mmpo"), loss("rpo-bwd") - P * P.log() - (1 - P) * (1 - P).log()),
    "mmpo at gamma infinite on untied pairs is dpo": (loss("mmpo", p=CERTAIN, gamma=math.inf), loss("dpo", gamma=math.inf)),
    "rpo-bwd there": (loss("rpo-bwd", p=CERTAIN, gamma=math.inf), loss("dpo")),
    "mmpo at gamma 0 is p = ½": (loss("mmpo", p=HALF, gamma=0.0), (softplus(Z) + softplus(-Z)) / 2),
    "mmpo at p = 1 − ε is cdpo": (loss("mmpo", p=torch.full_like(Z, 0.8)), loss("cdpo", epsilon=0.2)),
    "cdpo and robust at ε = 0": (loss("cdpo", epsilon=0.0), loss("robust", epsilon=0)),
    "odpo with identity is margin": (loss("odpo", transform="identity"), loss("margin")),
    "odpo without offset is dpo": (loss("odpo", alpha=0), loss("dpo")),
    "odpo at log 1": (loss("odpo", m=torch.ones_like(M)), loss("dpo")),
    "gdpo at p = 1 is dpo": (loss("gdpo", p=torch.ones_like(P)), loss("dpo")),
    "gdpo at p = ½ says nothing": (loss("gdpo", p=torch.full_like(P, 0.5)), torch.full_like(P, LN2)),
    "listwise on pairs is mmpo": (loss("listwise"), loss("mmpo")),
    "listwise at gamma infinite": (loss("listwise", gamma=math.inf), loss("dpo")),
    "listwise of ties at gamma infinite": (loss("listwise", m=0 * M, gamma=math.inf), loss("mmpo", p=HALF)),
    # whether the target is p, or as in the last two gamma times the margin
    **{
        f"{n} with the pair swapped": (loss(n, -Z, 1 - P, -M), loss(n))
        for n in ("mmpo", "rpo-bwd", "gdpo", "rpo-fwd", "rpo-sq", "listwise")
    },
}


@pytest.mark.parametrize("which", IDENTITIES)
def test_identities(which: str) -> None:
    torch.testing.assert_close(*IDENTITIES[which])


def test_which_need_a_winner_and_which_average() -> None:
    assert {n for n, e in LOSSES.items() if e.needs_winner} == {"dpo", "cdpo", "robust", "ipo", "odpo", "margin"}
    assert {n for n, e in LOSSES.items() if e.average_logprobs} == {"ipo"}


@pytest.mark.parametrize("name", LOSSES)
def test_which_look_at_the_target(name: str) -> None:
    """Everywhere else the margin itself may matter, but neither p nor gamma."""
    assert LOSSES[name].reads_target != torch.equal(loss(name), loss(name, p=torch.sigmoid(2 * GAMMA * M), gamma=2 * GAMMA))


def listwise(z: Tensor, score: Tensor, prompt: Tensor, gamma: float) -> Tensor:
    return LOSSES["listwise"].per_prompt(z, score, prompt, gamma=gamma)


def test_listwise_by_hand() -> None:
    """Three completions with e^z = 1, 2, 5 and e^(γ·score) = 1, 1, 2: −¼·log 1/8 − ¼·log 2/8 − ½·log 5/8. Beside them a prompt of two with
    e^z = 3, 1 and scores that are equal: ½·log 4/3 + ½·log 4. The gradient is softmax(z) − softmax(γ·score). A constant changes nothing.
    """
    z = torch.tensor([1.0, 3.0, 2.0, 5.0, 1.0], dtype=torch.float64).log().requires_grad_()
    score = torch.tensor([1.0, 7.0, 1.0, 1.0 + 2 * math.log(2), 7.0], dtype=torch.float64)
    prompt = torch.tensor([0, 1, 0, 0, 1])
    found = listwise(z, score, prompt, 0.5)
    expected = [0.25 * math.log(8) + 0.25 * math.log(4) + 0.5 * math.log(8 / 5), 0.5 * math.log(4 / 3) + 0.5 * math.log(4)]
    assert found.tolist() == pytest.approx(expected)
    (gradient,) = torch.autograd.grad(found.sum(), z)
    assert gradient.tolist() == pytest.approx([1 / 8 - 1 / 4, 3 / 4 - 1 / 2, 2 / 8 - 1 / 4, 5 / 8 - 1 / 2, 1 / 4 - 1 / 2])
    torch.testing.assert_close(listwise(z + prompt, score - 3 * prompt, prompt, 0.5), found)
    order = torch.tensor([4, 2, 0, 3, 1])
    torch.testing.assert_close(listwise(z[order], score[order], prompt[order], 0.5), found)


@pytest.mark.parametrize("gamma", [0.0, GAMMA, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_listwise_of_two_completions_is_mmpo(gamma: float, dtype: torch.dtype) -> None:
    """Values and gradients, whatever level both scores and both z have; a prompt of one completion has nothing to say."""
    margin = torch.cat([M, torch.zeros(3).double()]).to(dtype)
    z = torch.cat([Z, torch.tensor([-1.0, 0.0, 2.0]).double()]).to(dtype)
    p = torch.from_numpy(target_probability(margin.double().numpy(), gamma)).to(dtype)
    level = torch.arange(len(z), dtype=dtype)
    both, scores = (
        torch.stack([z + level, level], dim=1).reshape(-1).requires_grad_(),
        torch.stack([margin + 2, 0 * margin + 2], dim=1),
    )
    found = listwise(both, scores.reshape(-1), torch.arange(len(z)).repeat_interleave(2), gamma)
    one = z.clone().requires_grad_()
    expected = LOSSES["mmpo"].per_pair(one, p, margin, gamma=gamma)
    exact = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(found, expected, **exact)
    (slopes,), (slope,) = torch.autograd.grad(found.sum(), both), torch.autograd.grad(expected.sum(), one)
    torch.testing.assert_close(slopes.reshape(-1, 2), torch.stack([slope, -slope], dim=1), **exact)
    assert listwise(z[:1], margin[:1], torch.zeros(1, dtype=torch.long), gamma).tolist() == [0.0]


def test_listwise_is_finite_at_huge_logits_and_starts_at_log_k() -> None:
    z = torch.tensor([-1e4, 1e4, 0.0, 9e4], requires_grad=True)
    values = listwise(z, torch.tensor([1.0, -1e5, 3.0, 0.0]), torch.tensor([0, 0, 1, 1]), 1.0)
    (gradient,) = torch.autograd.grad(values.sum(), z)
    assert torch.isfinite(values).all() and torch.isfinite(gradient).all()
    for k in (2, 3, 7):
        assert listwise(torch.zeros(k), torch.arange(1.0 * k), torch.zeros(k, dtype=torch.long), 0.7).item() == pytest.approx(
            math.log(k)
        )
    user_error(r"must all have the shape \(completions,\)", listwise, Z, Z[:, None], torch.zeros(15), 1.0)
    user_error("mmpo is one of pairs", LOSSES["mmpo"].per_prompt, Z, Z, torch.zeros(15, dtype=torch.long))


def test_ipo_reads_beta_back_out_of_z() -> None:
    """z = β·h̄, so that h̄ = 1/(2β), that is z = ½, is the minimum whatever β is."""
    for beta in (0.01, 0.1, 2.0):
        assert one("ipo", 0.5, 1.0, 1.0, beta=beta) == pytest.approx(0.0, abs=1e-12)
        assert one("ipo", 0.0, 1.0, 1.0, beta=beta) == pytest.approx(1 / (2 * beta) ** 2)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("cdpo", {"epsilon": 0.5}, r"epsilon must be a number in \[0, 0.5\), not 0.5"),
        ("robust", {"epsilon": -0.1}, "epsilon"),
        ("robust", {"epsilon": math.nan}, "epsilon"),
        ("ipo", {"beta": 0.0}, "beta must be a number above 0"),
        ("odpo", {"transform": "sqrt"}, "'log' or 'identity'"),
        ("odpo", {"alpha": "1"}, "alpha"),
        ("rpo-sq", {"eta": -1.0}, "eta"),
        ("mmpo", {"gamma": -1.0}, "gamma must be a number of at least 0"),
        ("mmpo", {"gamma": math.nan}, "gamma"),
        ("rpo-sq", {"gamma": math.inf}, "finite gamma"),
    ],
)
def test_options_out_of_range_are_refused(name: str, options: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        loss(name, **options)
    assert isinstance(caught.value, UserError)


def test_names_and_summaries_need_no_torch() -> None:
    code = (
        "import sys; from mmpo.train.objective import LOSSES, TARGETS, TERMS; assert 'torch' not in sys.modules; "
        "print(all(name == entry.name and entry.summary and entry.source for name, entry in LOSSES.items()), len(TERMS))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["True", str(len(LOSSES) + 2)], done.stderr


TABLE = pa.table(
    {
        "quality_margin": [0.0, 1.0, 2.0, 3.0],
        "margin_se": [1.0, None, 3.0, 0.0],
        "preferring": pa.array([1, 2, 3, 0], pa.int32()),
        "raters": pa.array([3, 2, 3, 0], pa.int32()),
    }
)


def test_targets_of_margins_of_their_noise_and_of_votes_alone() -> None:
    p, counts = targets("plain", TABLE, 1.0)
    assert p.dtype == np.float64 and counts == {}
    np.testing.assert_allclose(p, 1 / (1 + np.exp(-np.arange(4.0))))
    p, counts = targets("noise-aware", TABLE, 1.0)
    assert counts == {"margin_se_filled": 1}  # by the median
    np.testing.assert_array_equal(p, target_probability([0, 1, 2, 3], 1.0, [1, 1, 3, 0]))
    p, counts = targets("measured", TABLE, np.inf)
    np.testing.assert_allclose(p, [1.5 / 4, 2.5 / 3, 3.5 / 4, 0.5])
    assert counts == {"pairs_without_raters": 1}


@pytest.mark.parametrize("raters", [2, 3, 5, 15])
@pytest.mark.parametrize("spread", [0.5, 1.5, 3.0])
def test_levels_say_what_one_more_rater_would(spread: float, raters: int) -> None:
    """The raters' own votes say far more, because they made the margin: by .33 at two raters who know little."""
    columns, true = graded_pairs(spread, raters)
    table = pa.table(columns)
    p, counts = targets("levels", table, math.nan)
    margin = columns["quality_margin"]
    level, size = np.unique(np.round(margin[margin > 0], 9), return_inverse=True)[1], np.bincount
    own = columns["preferring"] / columns["raters"]
    off = {
        name: np.sqrt(np.mean(((size(level, (value - true)[margin > 0]) / size(level))[level]) ** 2))
        for name, value in (("levels", p), ("votes", own))
    }
    assert counts == {} and off["levels"] < 0.035
    assert raters == 15 or off["levels"] < 0.75 * off["votes"]
    order = np.argsort(margin, kind="stable")
    assert (np.diff(p[order]) >= -1e-12).all() and (p[margin == 0] == 0.5).all() and (p >= 0.5).all() and (p <= 1).all()


def test_levels_are_learned_on_training_pairs_and_used_on_others() -> None:
    columns, _ = graded_pairs(1.5, 3, pairs=500)
    target = fit_target("levels", pa.table(columns))
    others = pa.table({"quality_margin": [0.0, 99.0, 0.5], "raters": [0, 1, 2]})
    p, counts = targets(target, others, 1.0)
    assert counts == {"pairs_without_two_raters": 2} and p[0] == 0.5 < p[2] < p[1] == target.p[-1]
    assert fit_target("plain", others) == "plain"


def test_levels_of_raters_who_always_agree_are_nearly_certain() -> None:
    margin = np.repeat([1.0, 2.0, 0.0], 10)
    columns = {
        "quality_margin": margin,
        "margin_se": 0 * margin,
        "preferring": np.where(margin > 0, 3, 1),
        "raters": 0 * margin + 3,
    }
    p, _ = targets("levels", pa.table(columns), 1.0)
    assert (p[:20] > 0.999).all() and (p[:20] < 1).all() and (p[20:] == 0.5).all()
    ties = pa.table({name: values[20:] for name, values in columns.items()})
    user_error("the margins are no larger than their standard errors", targets, "levels", ties, 1.0)


def test_levels_are_refused_where_votes_say_nothing() -> None:
    columns, _ = graded_pairs(0.0, 2)
    user_error("no larger than their standard errors", targets, "levels", pa.table(columns), 1.0)
    single = pa.table({**columns, "raters": np.ones(5000), "preferring": np.ones(5000)})
    assert "`mmpo judge`" in user_error("none of the 5000 pairs has them", targets, "levels", single, 1.0)
    user_error("needs the column 'preferring'", targets, "levels", pa.table({"quality_margin": [1.0], "margin_se": [1.0]}), 1.0)


def test_errors_name_what_there_is() -> None:
    user_error("did you mean 'epsilon'", loss, "cdpo", epsilo=0.1)
    user_error("it takes: none", loss, "mmpo", epsilon=0.1)
    user_error("no pair has a known margin_se", targets, "noise-aware", TABLE.slice(1, 1), 1.0)
    user_error("did you mean 'plain'", targets, "plane", TABLE, 1.0)
    with pytest.raises(UserError, match="needs the column 'margin_se'; there are: quality_margin"):
        targets("noise-aware", TABLE.select(["quality_margin"]), 1.0)
    with pytest.raises(ValueError, match="gamma"):
        targets("plain", TABLE, -1.0)
