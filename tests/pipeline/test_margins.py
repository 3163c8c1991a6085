"""The mathematics of margins against quadrature, hand-derived numbers, published results and other implementations."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmpo.pipeline import margins as mm
from mmpo.pipeline.errors import UserError

finite = st.floats(-1e300, 1e300, allow_nan=False)
positive = st.floats(1e-3, 1e3)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(finite, st.floats(0, 1e300))
def test_targets_are_probabilities_at_any_size(margin: float, gamma: float) -> None:
    """1/(1 + exp(−γm)) overflows near γm = −880; here nothing does (warnings are errors in this suite)."""
    p = mm.target_probability([margin, -margin], gamma)
    assert 0 <= p[0] <= 1 and p[0] + p[1] == pytest.approx(1, abs=1e-15)


def test_gamma_zero_and_infinity() -> None:
    margins = [0.0, 1e-300, 5.0, -2.0]
    assert mm.target_probability(margins, 0).tolist() == [0.5] * 4
    assert mm.target_probability(margins, math.inf).tolist() == [0.5, 1.0, 1.0, 0.0]
    assert mm.target_probability([0.0, 3.0], math.inf, [0.0, 0.0]).tolist() == [0.5, 1.0]
    assert mm.target_probability([0.0, 3.0], 0.0, [1.0, 1.0]).tolist() == [0.5, 0.5]


@pytest.mark.parametrize(("largest", "bound"), [(1.0, 0.005), (8.0, 0.017)])
def test_noise_aware_target_against_quadrature(largest: float, bound: float) -> None:
    """E σ(γM), M ~ N(m, se²), by the trapezoid rule on ±9 standard deviations; only γm and γ·se matter, so γ = 1."""
    nodes = np.linspace(-9, 9, 3601)
    weights = np.exp(-(nodes**2) / 2)
    weights /= weights.sum()
    worst = 0.0
    for se in np.linspace(0.05, largest, 24):
        m = np.linspace(0, 6 + 5 * se, 121)
        exact = mm.sigmoid(m[:, None] + se * nodes) @ weights
        worst = max(worst, float(np.abs(mm.target_probability(m, 1.0, np.full_like(m, se)) - exact).max()))
    assert bound / 4 < worst <= bound


@given(st.floats(0, 50), positive, st.floats(0, 100))
def test_noise_pulls_towards_one_half(margin: float, gamma: float, se: float) -> None:
    plain, aware = mm.target_probability([margin], gamma)[0], mm.target_probability([margin], gamma, [se])[0]
    assert 0.5 <= aware <= plain + 1e-12


def test_unknown_errors_take_the_median_of_the_known_ones() -> None:
    filled = mm.fill_standard_errors([1.0, math.nan, 3.0, 100.0, math.nan])
    assert filled.values.tolist() == [1.0, 3.0, 3.0, 100.0, 3.0] and filled.filled == 2
    given_null = mm.target_probability([2.0, 2.0], 1.0, np.array([1.0, None], dtype=object))
    assert given_null[0] == given_null[1]


def test_measured_probability_and_margin_standard_error_by_hand() -> None:
    """Three raters, s² = 2, s0² = 1: √((4·1 + 2·2)/6/3) = √(4/9). One rater: s0, else its own spread, else unknown."""
    np.testing.assert_allclose(mm.measured_probability([0, 3, 1], [0, 3, 2]), [0.5, 3.5 / 4, 0.5])
    se = mm.margin_standard_error([3, 1, 1, 1, 2], [2, 9, 0, 0, 0], [1, 4, np.nan, np.nan, 1], [9, 9, 0.3, np.nan, 9])
    np.testing.assert_allclose(se, [2 / 3, 2.0, 0.3, np.nan, math.sqrt(4 / 5 / 2)])


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=30), st.floats(0.51, 0.99), positive)
def test_gamma_for_mean_target_solves_its_equation_in_any_unit(values: list[float], mean: float, unit: float) -> None:
    gamma = mm.gamma_for_mean_target([*values, 0.0], mean)
    assert mm.target_probability(values, gamma).mean() == pytest.approx(mean, abs=1e-9)
    assert mm.gamma_for_mean_target(np.array(values) * unit, mean) * unit == pytest.approx(gamma, rel=1e-6)


@pytest.mark.parametrize("noisy", [False, True])
def test_votes_give_back_the_gamma_that_made_them(noisy: bool) -> None:
    rng = generator()
    m, raters = rng.uniform(0, 4, 20_000), rng.integers(1, 6, 20_000)
    se = rng.uniform(0, 2, m.size) if noisy else None
    votes = rng.binomial(raters, mm.target_probability(m, 0.8, se))
    assert mm.fit_gamma_to_votes(m, votes, raters, se) == pytest.approx(0.8, rel=0.03)
    ends = [mm.fit_gamma_to_votes(np.array([1.0, 2.0, 3.0]), [vote] * 3, [1, 1, 1]) for vote in (1, 0)]
    assert ends == [math.inf, 0.0]


@given(st.lists(st.tuples(st.floats(0.01, 0.99), st.floats(0, 1)), min_size=1, max_size=40))
def test_ece_target_does_not_depend_on_which_is_called_chosen(rows: list[tuple[float, float]]) -> None:
    q, p = np.array(rows).T
    assert 0 <= (mm.ece_target(q, p) or 0) <= 1
    q, p = np.append(q, 1 / 3), np.append(p, 0.0)  # the edge of a bin, in floating point on either side of it
    assert mm.ece_target(1 - q, 1 - p) == pytest.approx(mm.ece_target(q, p), abs=1e-12)


def test_ece_target_is_the_plain_binned_error_over_both_orientations() -> None:
    for asked, bins in ((15, 16), (16, 16), (10, 10)):  # ½ is an edge
        q, p = generator(6).random(400), generator(7).random(400)
        both_q, both_p = np.concatenate([q, 1 - q]), np.concatenate([p, 1 - p])
        which = np.floor(both_q * bins)
        each = [(which == i).mean() * abs((both_q - both_p)[which == i].mean()) for i in range(bins)]
        assert mm.ece_target(q, p, asked) == pytest.approx(sum(each), abs=1e-12)
    assert mm.ece_target([0.5], [0.9]) == 0
    for q in (0.501, 0.51, 0.532, 0.534, 0.55):  # a model that has hardly begun to tell is seen to say too little
        for found in (mm.ece_target(np.full(9, q), np.full(9, 0.9)), mm.ece_vote(np.full(9, q), [9] * 9, [10] * 9)):
            assert found == pytest.approx(0.9 - q)


def test_ece_label_agrees_with_torchmetrics() -> None:
    torch, theirs_by = pytest.importorskip("torch"), pytest.importorskip("torchmetrics.classification").BinaryCalibrationError
    for seed in range(5):
        q = mm.sigmoid(generator(seed).normal(0.5, 1.5, 3000))
        confidence, correct, decided = np.maximum(q, 1 - q), q > 0.5, generator(seed + 9).random(3000) > 0.3
        for found, of in ((mm.ece_label(q), slice(None)), (mm.ece_label(q, decided), decided)):
            theirs = theirs_by(n_bins=15, norm="l1")(torch.tensor(confidence[of]), torch.tensor(correct[of]).int())
            assert found == pytest.approx(float(theirs), abs=1e-6)


def test_ece_vote_counts_every_vote() -> None:
    """One bin holds q = .9: 3 of 4 votes agree; .9 to .75, in both orientations. A second pair without votes is nothing."""
    assert mm.ece_vote([0.9, 0.1], [3, 0], [4, 0]) == pytest.approx(0.15)
    assert mm.ece_vote([0.9, 0.9], [1, 3], [1, 3]) == pytest.approx(0.1)
    assert mm.ece_vote([0.9], [0], [0]) is None


def test_scores_by_hand() -> None:
    assert mm.accuracy([1.0, -1.0, 0.0, 9.0], [1.0, 1.0, 1.0, 0.0]) == pytest.approx(1 / 3)
    assert mm.brier([0.8, 0.1], [True, False]) == pytest.approx(0.04)
    assert mm.soft_brier([0.8, 0.5], [0.6, 0.5]) == pytest.approx(0.02)
    assert mm.cross_entropy([math.log(3)], [0.6]) == pytest.approx(0.6 * math.log(4 / 3) + 0.4 * math.log(4))
    assert mm.cross_entropy([1e5, -1e5], [1.0, 0.0]) == 0.0
    nothing = np.array([])
    assert mm.accuracy([1.0], [0.0]) is None and mm.brier([0.5], [False]) is None
    assert [f(nothing, nothing) for f in (mm.ece_target, mm.soft_brier, mm.cross_entropy, mm.temperature_fit)] == [None] * 4


def test_temperature_undoes_a_scaling_and_never_hurts() -> None:
    z = generator(2).normal(0, 2, 2000)
    assert mm.temperature_fit(3 * z, mm.sigmoid(z), doubt=0) == pytest.approx(3, rel=1e-6)
    assert mm.temperature_fit(3 * z, mm.sigmoid(z)) == pytest.approx(3, rel=1e-2)
    p = mm.sigmoid(z + generator(3).normal(0, 1, z.size))
    fitted = mm.temperature_fit(4 * z, p) or 0.0
    assert (mm.cross_entropy(4 * z / fitted, p) or 9) <= (mm.cross_entropy(4 * z, p) or 0)


def test_a_temperature_of_labels_that_are_all_foretold_is_finite() -> None:
    """Three labels of three count as four of five, so that σ(1/T) = .8; one that is not foretold then costs log 5."""
    fitted = mm.temperature_fit([1.0, 1.0, 1.0], [1.0, 1.0, 1.0]) or 0.0
    assert fitted == pytest.approx(1 / math.log(4))
    assert mm.cross_entropy([1 / fitted], [0.0]) == pytest.approx(math.log(5))


def test_a_temperature_that_no_pair_tells_is_none_and_of_tiny_logits_an_estimate() -> None:
    z = generator(2).normal(0, 2, 2000)
    assert mm.temperature_fit(z, np.full(2000, 0.5)) is None and mm.temperature_fit(0 * z, mm.sigmoid(z)) is None
    assert mm.temperature_fit([1.0, 0.0], [0.5, 1.0]) is None  # one is a tie, the other the same at any
    assert mm.temperature_fit(1e-6 * z, mm.sigmoid(z), doubt=0) == pytest.approx(1e-6, rel=1e-5)


def test_by_margin_holds_every_pair_once() -> None:
    m = generator(4).integers(0, 4, 500).astype(float)
    z = generator(5).normal(m)
    rows = mm.by_margin(z, m, mm.sigmoid(m))
    assert sum(row["pairs"] for row in rows) == 500
    assert rows[0]["low"] == rows[0]["high"] == 0 and rows[0]["accuracy"] is None
    assert all(row["high"] < after["low"] for row, after in pairwise(rows))
    assert sum(row["accuracy"] * row["pairs"] for row in rows[1:]) == pytest.approx((z[m > 0] > 0).sum())


BEAVER = """.5 .5894736842105263 .7052631578947368 .5714285714285714 .725 .5405405405405406 .2953020134228188 .97 1 .52
.43283582089552236 .391304347826087 .46808510638297873 .3695652173913043 1 .284 .8235294117647058 .6280487804878049
.6341463414634146 .7073170731707317 .6646341463414634 .5487804878048781 .6463414634146342"""


def test_rewardbench_gives_its_own_readme_example() -> None:
    """PKU-Alignment/beaver-7b-v1.0-cost, from the README of allenai/reward-bench."""
    accuracies = dict(zip(mm.REWARDBENCH_COUNTS, map(float, BEAVER.split()), strict=True))
    chat = {"Chat": 0.6089385474860335, "Chat Hard": 0.44956140350877194}
    expected = {**chat, "Safety": 0.7216216216216216, "Reasoning": 0.46675669776831996}
    assert mm.rewardbench_sections(accuracies) == pytest.approx(expected, abs=1e-14)


def test_rewardbench_rows_ties_are_wrong_and_absent_subsets_are_left_out() -> None:
    accuracies = mm.subset_accuracies([1, 1, 2], [1, 0, 0], ["hep-go", "hep-go", "math-prm"])
    assert accuracies == {"hep-go": 0.5, "math-prm": 1.0}
    assert mm.rewardbench_sections(accuracies) == {"Reasoning": pytest.approx((0.5 * 164 + 984) / 1148)}
    assert mm.rewardbench_sections({"shp": 0.5, "summarize": 0.7}) == {"Prior Sets": pytest.approx(0.6)}
    of_the_authors = {"Chat": 97.21, "Chat Hard": 63.38, "Safety": 76.35, "Reasoning": 72.84, "Prior Sets": 68.56}
    assert mm.rewardbench_average(of_the_authors) == pytest.approx(76.46, abs=0.005)


def test_rewardbench_2() -> None:
    assert [mm.rewardbench2_best_of(s) for s in ([3, 1, 2, 0], [3, 3, 1, 0], [1, 2, 0, 0])] == [1.0, 0.5, 0.0]
    scores = {"ref:0": [3, 1, 0], "tied:0": [3, 2.5, 1, 0], "ref:1": [1, 2, 0], "tied:1": [3, 0.5, 1, 0]}
    correct = {"ref:0": 1, "tied:0": 2, "ref:1": 1, "tied:1": 2}
    assert mm.rewardbench2_ties(scores, correct) == pytest.approx(0.5003933796593678, abs=1e-15)


@pytest.mark.parametrize(
    ("function", "given", "message"),
    [
        *(
            (mm.target_probability, ([1.0], gamma), "gamma must be a number of at least 0")
            for gamma in (-1.0, math.nan, "auto", None)
        ),
        (mm.target_probability, ([1.0], 1.0, [math.nan]), "no pair has a known margin_se"),
        (mm.fill_standard_errors, ([-1.0],), "0 or more"),
        (mm.measured_probability, ([2], [1]), "between 0 and raters"),
        (mm.margin_standard_error, ([0], [0], [0], [0]), "n must be 1 or more"),
        *((mm.gamma_for_mean_target, (margins, 0.75), "finite margins above 0|infinite") for margins in ([0.0], [], [math.inf])),
        *((mm.gamma_for_mean_target, ([1.0], mean), "must lie in") for mean in (0.5, 1.0)),
        (mm.fit_gamma_to_votes, ([1.0, 2.0], [0, 0], [0, 0]), "nothing to fit"),
        (mm.brier, ([1.5],), r"q must lie in \[0, 1\]"),
        (mm.rewardbench_sections, ({"alpacaeval": 1.0},), "unknown RewardBench subsets"),
    ],
)
def test_what_has_no_answer_is_refused(function: Any, given: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        function(*given)
    assert isinstance(caught.value, UserError) or function is not mm.target_probability


def test_a_perfect_model_of_real_margins_has_the_label_error_of_its_gamma(real_data: Path) -> None:
    """UltraFeedback's overall scores: label-ECE alone rewards overconfidence, so it never stands alone in a report."""
    table = pq.read_table(real_data / "ultrafeedback_binarized_1200.parquet", columns=["score_chosen", "score_rejected"])
    m = table["score_chosen"].to_numpy() - table["score_rejected"].to_numpy()
    found = [mm.ece_label(mm.target_probability(m, gamma), m > 0) for gamma in (0.3, 1.1, 2.2)]
    assert found == pytest.approx([0.355, 0.172, 0.084], abs=5e-4)
