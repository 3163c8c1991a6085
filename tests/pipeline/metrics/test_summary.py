"""Measures with intervals: by hand and against torchmetrics, scaled by other pairs' temperatures, beside length and a coin; two models."""

import numpy as np
import pytest

from mmpo.pipeline.margins import sigmoid, target_probability
from mmpo.pipeline.metrics import METRICS, against_other, evaluation_measures, pair_measures
from mmpo.pipeline.metrics.calibration import temperature_fit
from mmpo.pipeline.metrics.intervals import part_draws
from mmpo.pipeline.metrics.summary import CROSS_FITTED, NO_TEMPERATURE, codes_of, length_measures, measures_95, scaled
from mmpo.pipeline.report import temperature_words

GAMMA = 0.7


def pairs(seed=0, prompts=60, each=6, sharp=1.0, noise=1.0):
    """Values of a model that sees γ·margin times `sharp` and noise that a prompt's pairs share in part; some ties."""
    rng = np.random.default_rng(seed)
    margin = rng.integers(0, 6, prompts * each).astype(float)
    shared = np.repeat(rng.normal(0, noise, prompts), each)
    z = sharp * (GAMMA * margin + shared + rng.normal(0, noise, len(margin)))
    prompt = [f"p{i:03}" for i in np.repeat(np.arange(prompts), each)]
    return {"z": z, "margin": margin, "p": target_probability(margin, GAMMA)}, prompt


def evaluated(values, prompt, **more):
    lengths = np.full(len(prompt), 10.0), np.full(len(prompt), 9.0)
    return evaluation_measures(values, prompt, np.array(["a"] * len(prompt), dtype=object), lengths, **more)


def test_ece_and_brier_equal_torchmetrics():
    torch, torchmetrics = (pytest.importorskip(name) for name in ("torch", "torchmetrics"))
    values, _ = pairs()
    q = sigmoid(values["z"])[values["margin"] > 0]
    found = pair_measures(values)
    theirs = torchmetrics.classification.BinaryCalibrationError(n_bins=15, norm="l1")
    confidence, correct = torch.tensor(np.maximum(q, 1 - q)), torch.tensor((q > 0.5).astype(int))
    assert found["ece_label"] == pytest.approx(float(theirs(confidence, correct)), abs=1e-6)
    # Brier of the label "chosen", in torchmetrics the mean squared error of q to 1
    assert found["brier"] == pytest.approx(
        float(torchmetrics.functional.mean_squared_error(torch.tensor(q), torch.ones(len(q), dtype=torch.float64)))
    )
    assert found["nll"] == pytest.approx(
        float(torch.nn.functional.binary_cross_entropy(torch.tensor(q), torch.ones(len(q)).double()))
    )


def test_draws_are_what_measuring_resampled_prompts_gives():
    """One draw, done by hand: the pairs of each prompt as often as it was drawn."""
    values, prompt = pairs(prompts=12)
    clusters = codes_of(prompt)
    rng = np.random.default_rng(5)
    counts = np.bincount(rng.integers(0, 12, (1, 12))[0], minlength=12)
    index = np.repeat(np.arange(len(prompt)), counts[clusters])
    by_hand = pair_measures({name: value[index] for name, value in values.items()})
    known = {**values, "q": sigmoid(values["z"]), "decided": values["margin"] > 0}
    parts = {
        name: metric.parts(*(known[need] for need in metric.needs))
        for name, metric in METRICS.items()
        if set(metric.needs) <= set(known)
    }
    drawn = part_draws(parts, clusters, 1, 5)
    assert {name: value[0] for name, value in drawn.items()} == pytest.approx(by_hand)


@pytest.mark.parametrize(("runs", "least"), [(40, 35), pytest.param(400, 360, marks=pytest.mark.slow)])
def test_intervals_by_prompt_cover_where_pairs_depend_on_one_another(runs, least):
    """The accuracy and NLL of very many prompts lie in the 95% interval of 60, though a prompt's pairs share half of their noise."""
    many, prompt = pairs(99, prompts=20_000)
    truth = pair_measures(many)
    found = []
    for seed in range(runs):
        values, prompt = pairs(seed)
        found.append(measures_95(values, codes_of(prompt), draws=400))
    for name in ("accuracy", "nll", "cross_entropy", "soft_brier"):
        assert sum(one[f"{name}_95"][0] <= truth[name] <= one[f"{name}_95"][1] for one in found) >= least, name
    assert all(one["ece_label_95"][0] <= one["ece_label"] <= one["ece_label_95"][1] for one in found)


def test_one_prompt_has_no_interval():
    values, _ = pairs(prompts=1)
    found = evaluated(values, ["p"] * 6)
    assert found["accuracy_95"] is None and found["accuracy"] is not None
    assert found["temperature"] is None and found["temperature_from"] == "none: there is one prompt alone"
    assert found["scaled"]["nll"] == found["nll"]


@pytest.mark.parametrize(("prompts", "known"), [(2, False), (4, False), (5, True)])
def test_few_prompts_have_no_interval(prompts: int, known: bool):
    """Two that are alike would make one of no width. What has no say does not count: of ten prompts all but so many hold ties alone."""
    values, prompt = pairs(prompts=prompts)
    found = evaluated(values, prompt)
    assert {found[f"{name}_95"] is not None for name in METRICS if found[name] is not None} == {known}
    more, prompt = pairs(prompts=10)
    more["margin"] = np.where(codes_of(prompt) < prompts, more["margin"] + 1, 0.0)
    found = measures_95(more, codes_of(prompt))
    assert (found["accuracy_95"] is not None) == known and found["cross_entropy_95"] is not None


def test_a_temperature_is_never_fitted_to_the_pairs_that_it_scales():
    values, prompt = pairs(sharp=4.0)
    z, p, clusters = values["z"], values["p"], codes_of(prompt)
    at, temperature, how = scaled(z, p, clusters)
    even = clusters % 2 == 0
    of_odd, of_even = temperature_fit(z[~even], p[~even]), temperature_fit(z[even], p[even])
    assert how == CROSS_FITTED
    assert at[even] == pytest.approx(z[even] / of_odd) and at[~even] == pytest.approx(z[~even] / of_even)
    assert temperature == pytest.approx(np.sqrt(of_odd * of_even))
    other, _ = pairs(7, sharp=4.0)
    at, temperature, how = scaled(z, p, clusters, other)
    assert how == "validation" and temperature == pytest.approx(temperature_fit(other["z"], other["p"]))
    found = evaluated(values, prompt)
    assert found["scaled"]["cross_entropy"] < found["cross_entropy"] - 0.1
    assert found["scaled"]["accuracy"] == found["accuracy"]


def test_where_ties_alone_could_tell_a_temperature_there_is_none():
    """Of other pairs: it is cross-fitted; of half of the measured ones: there is none. A bound of one half is no mean of two estimates."""
    values, prompt = pairs(sharp=4.0)
    z, p, clusters = values["z"], values["p"], codes_of(prompt)
    ties = {"z": z, "p": np.full(len(z), 0.5)}
    assert scaled(z, p, clusters, ties)[1:] == scaled(z, p, clusters)[1:]
    assert scaled(z, np.where(clusters % 2, p, 0.5), clusters)[1:] == (None, NO_TEMPERATURE)
    assert scaled(z, np.where(clusters % 2, p, 1 - p), clusters)[1] == pytest.approx(1000)
    found = evaluated({**values, **ties, "margin": 0 * z}, prompt)
    assert (
        found["temperature"] is None and found["scaled"]["cross_entropy"] == found["cross_entropy"] and not temperature_words(found)
    )


def test_length_and_a_coin_stand_beside_the_model():
    """Two prompts, three untied pairs and a tie: the longer is better in one and a half (equal lengths count half)."""
    values = {"z": np.array([1.0, -1.0, 2.0, 0.5]), "margin": np.array([1.0, 2.0, 1.0, 0.0])}
    values["p"] = target_probability(values["margin"], 1.0)
    lengths = np.array([9.0, 2.0, 4.0, 7.0]), np.array([3.0, 5.0, 4.0, 1.0])
    found = evaluation_measures(values, ["a", "a", "b", "b"], np.array(["s", "s", "t", "t"], dtype=object), lengths)
    longest, coin = found["baselines"]
    assert longest["accuracy"] == found["length"]["longest_wins"] == pytest.approx(0.5)
    assert (coin["accuracy"], coin["ece_target"], coin["ece_label"], coin["brier"]) == (0.5, 0, 0, 0.25)
    assert coin["nll"] == coin["cross_entropy"] == pytest.approx(np.log(2))
    assert [row["longest_wins"] for row in found["by_source"]] == [0.5, 0.5]
    assert [row["longest_wins"] for row in found["by_margin"]] == [None, 0.75, 0.0]


def test_rank_correlation_with_length_is_scipys_over_both_orientations():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    z, difference = rng.normal(size=50).round(1), rng.normal(size=50).round(1)
    found = length_measures(z, np.ones(50), difference, np.arange(50))
    both = spearmanr(np.concatenate([z, -z]), np.concatenate([difference, -difference])).statistic
    assert found["spearman"] == pytest.approx(both)
    assert found["spearman_95"][0] < both < found["spearman_95"][1]
    assert length_measures(z, np.ones(50), np.zeros(50), np.arange(50))["spearman"] is None
    near = length_measures(z[:6], np.ones(6), z[:6] + 0.3 * difference[:6], np.arange(6))
    assert near["spearman"] < near["spearman_95"][1] == 1.0  # of few prompts the interval is widened, and no correlation is above 1


def test_a_model_against_itself_differs_by_nothing_and_against_a_worse_one_by_something():
    values, prompt = pairs(noise=0.5)
    worse = pairs(3, noise=3.0)[0]["z"]
    same = against_other(values, values["z"], prompt)
    assert {name: [row["difference"] for row in rows] for name, rows in same.items()} == {"raw": [0] * 7, "scaled": [0] * 7}
    assert all(row["difference_95"] == [0, 0] for row in same["raw"])
    rows = {row["measure"]: row for row in against_other(values, worse, prompt)["scaled"]}
    assert rows["accuracy"]["difference_95"][0] > 0 and rows["nll"]["difference_95"][1] < 0
    assert rows["accuracy"]["difference"] == pytest.approx(rows["accuracy"]["this"] - rows["accuracy"]["other"])


def test_paired_intervals_are_narrower_than_those_of_two_models_apart():
    """Two models that err alike: the noise that they share drops out of the difference."""
    values, prompt = pairs()
    other = values["z"] + np.random.default_rng(1).normal(0, 0.1, len(prompt))
    [row] = [row for row in against_other(values, other, prompt)["raw"] if row["measure"] == "nll"]
    alone = measures_95(values, codes_of(prompt))["nll_95"]
    assert row["difference_95"][1] - row["difference_95"][0] < 0.2 * (alone[1] - alone[0])


def test_reliability_adds_up_to_the_calibration_error():
    values, prompt = pairs()
    found = evaluated(values, prompt)
    rows = found["reliability"]["label"]["raw"]
    total = sum(row["weight"] for row in rows)
    assert total == int((values["margin"] > 0).sum())
    assert sum(row["weight"] * abs(row["mean_x"] - row["mean_y"]) for row in rows) / total == pytest.approx(found["ece_label"])


@pytest.mark.parametrize(
    ("z", "said"),
    [
        (lambda winner: 14.0 * winner, "times the raw one"),
        (lambda winner: -winner, "stands at its bound"),
        (lambda winner: winner * np.where(np.arange(winner.size) % 3, 1.0, -0.5), ""),
    ],
)
def test_a_temperature_that_looks_wrong_is_explained(z, said):
    """Where all is foretold with certainty, where the wrong one is, and where some are and some are not."""
    ones = np.ones(200)
    found = evaluated({"z": z(ones), "margin": ones, "p": ones}, [f"p{i}" for i in range(200)])
    told = temperature_words(found)
    assert said in told and bool(said) == bool(told)
