"""Splits, temperatures, sums by prompt and intervals."""

import numpy as np
import pytest
from planted import planted_evidence

from mmpo.pipeline.margins import sigmoid
from mmpo.pipeline.metrics import accuracy, ece_label, student, temperature_fit
from mmpo.train.advise import BRADLEY_TERRY, MATCHED, OWN, Fold, Measured, Setting, margin_sums, r2, run_split, splits
from mmpo.train.advise.intervals import measures_of
from mmpo.train.advise.measure import _sums, scale_of


def test_five_seeds_test_every_prompt_once_and_prompts_stay_on_one_side() -> None:
    found, _ = planted_evidence(0.5, 0, prompts=33)
    parts = list(splits(found, 5, seed=3, rotations=1))
    assert np.array_equal(sum(part.test.astype(int) for part in parts), np.ones(33))
    for part in parts:
        assert np.array_equal(part.train.astype(int) + part.validation + part.test, np.ones(33))
    again = list(splits(found, 7, seed=3, rotations=1))
    assert np.array_equal(again[4].train, parts[4].train)
    assert not np.array_equal(again[5].test, parts[0].test)


def test_validation_takes_turns_on_small_sets() -> None:
    found, _ = planted_evidence(0.5, 0, prompts=33)
    parts = list(splits(found, 5, seed=3))
    assert len(parts) == 20
    for number in range(5):
        mine = [part for part in parts if part.number == number]
        assert np.array_equal(sum(part.validation.astype(int) for part in mine), ~mine[0].test)


def test_temperature_is_that_of_the_metrics() -> None:
    z = np.random.default_rng(0).standard_normal((200, 3)) * 3 + 1
    assert 1 / scale_of(z) == pytest.approx([temperature_fit(column, np.ones(200)) for column in z.T], rel=1e-3)


def test_where_all_are_right_the_temperature_stays_finite() -> None:
    assert scale_of(np.ones((3, 1))) == pytest.approx([np.log(4)], rel=1e-4)
    assert scale_of(np.ones((3, 1)), np.full((3, 2), 2.0)) == pytest.approx([np.log(4)], rel=1e-4)


def test_of_votes_too_and_their_sums_are_those_of_single_labels() -> None:
    rng = np.random.default_rng(0)
    z, place = rng.standard_normal((200, 1)) * np.array([1.0, 3.0]), rng.integers(0, 17, 200)
    votes = np.stack([rng.binomial(3, sigmoid(z[:, 0])), np.full(200, 3)], axis=1).astype(float)
    share = votes[:, 0] / 3
    assert 1 / scale_of(z, votes) == pytest.approx([temperature_fit(column, share) for column in z.T], rel=1e-3)
    labels = np.stack([np.arange(3) < count for count in votes[:, 0]])
    copies = sum(_sums(np.where(one[:, None], z, -z), None, place, 17) for one in labels.T)
    assert _sums(z, None, place, 17, votes) == pytest.approx(copies, abs=1e-3)


def test_sums_by_group_are_the_measures() -> None:
    rng = np.random.default_rng(0)
    z = rng.standard_normal((300, 2)) + 0.5
    place = rng.integers(0, 17, 300)
    found = measures_of(_sums(z, None, place, 17).sum(axis=1), 300)
    for column in range(2):
        assert found[column, 0] == pytest.approx(accuracy(z[:, column]))
        assert found[column, 2] == pytest.approx(ece_label(sigmoid(z[:, column])), abs=1e-5)


def measured(share: float, seed: int, rows: list[Setting]) -> Measured:
    found, features = planted_evidence(share, seed, prompts=100, features=20)
    folds, keys = [], []
    for number, split in enumerate(splits(found, 5, 0, rotations=1)):
        keys, fold = run_split(found, features, rows, split, np.random.default_rng(number))
        folds.append(fold)
    return Measured(keys, folds, len(found.group))


def test_intervals_cover_the_mean_over_data_sets() -> None:
    """Of 24 data sets, at most 4 of 24 intervals may miss the mean over all: of 95% intervals, more would miss it in 1 of 400 runs."""
    row = Setting("mmpo", 0.75)
    found = [measured(0.6, seed, [BRADLEY_TERRY, row]).difference((row, OWN), (BRADLEY_TERRY, OWN)) for seed in range(24)]
    for name in ("accuracy", "nll"):
        values = np.array([one[name] for one in found])
        mean = values[:, 0].mean()
        assert ((values[:, 1] <= mean) & (mean <= values[:, 2])).sum() >= 20


@pytest.mark.parametrize("groups", [6, 12])
def test_an_interval_of_few_prompts_leaves_out_0_in_one_of_twenty_where_there_is_nothing(groups: int) -> None:
    """Two objectives whose losses on the pairs of a prompt differ by chance. With t alone it would be in .083 and .068."""
    rng, found, spread = np.random.default_rng(0), [], []
    two = [(BRADLEY_TERRY, OWN), (BRADLEY_TERRY, MATCHED)]
    for seed in range(1500):
        sums = rng.standard_normal((2, groups, 3))
        rest = (np.zeros((2, 1)), np.ones(1), np.ones(2), np.arange(0), np.zeros(0))
        fold = Fold(np.arange(groups), np.ones(groups), sums, sums, sums, *rest)
        _, low, high = Measured(two, [fold], groups, seed).difference(*two)["nll"]
        found.append(low > 0 or high < 0)
        gap = sums[0, :, 1] - sums[1, :, 1]
        spread.append((high - low) / 2 / (student(groups - 1) * gap.std(ddof=1) / np.sqrt(groups)))
    assert np.mean(spread) == pytest.approx(1, abs=0.02)
    assert np.mean(found) == pytest.approx(0.05, abs=0.015)


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_r2_is_the_planted_share(share: float) -> None:
    found, features = planted_evidence(share, 1, prompts=400, features=20)
    parts = list(splits(found, 5, 0))
    value, low, high = r2(margin_sums(found, [features] * len(parts), parts, 400))
    assert low < value < high
    assert value == pytest.approx(share, abs=0.05)


def test_margins_in_another_unit_are_explained_as_well() -> None:
    sums = np.random.default_rng(0).random((4, 57))
    assert r2(sums * 0.37, sums) == r2(sums * 1.7, sums) == [0, 0, 0]


def test_of_four_that_are_no_better_none_is_told_apart_in_nineteen_of_twenty() -> None:
    """Each alone would be in one of forty, so that one of them would be in ten of a hundred."""
    rng, found = np.random.default_rng(0), {1: 0, 4: 0}
    for _ in range(100):
        sums = rng.gamma(2, size=(2, 100))
        others = [np.stack([sums[0] + rng.standard_normal(100) / 2, sums[1]]) for _ in range(4)]
        for tried in found:
            found[tried] += any(r2(other, sums, tried=tried)[1] > 0 for other in others)
    assert found[4] <= 5 < found[1]
