"""Maps from graders' margins to people's: right values by hand, odd, never falling, their errors, and estimates from few people."""

import numpy as np
import pytest
from calibration_cases import LIMIT, world

from mmpo.annotate.calibrate import prediction_powered_mean
from mmpo.annotate.calibrate.crossfit import Labelled, MapSetting, above_zero, errors_of, folds_of, held_out
from mmpo.annotate.calibrate.maps import MAPS, HumanAnswers
from mmpo.annotate.calibrate.overlap import _levels


def answers_of(grades: np.ndarray) -> HumanAnswers:
    """Of people's grades, shape (pairs, people)."""
    values, step = _levels(grades.ravel())
    levels = np.zeros((len(grades), len(values)))
    np.add.at(levels, (np.repeat(np.arange(len(grades)), grades.shape[1]), step), 1)
    votes = ((grades > 0) + 0.5 * (grades == 0)).sum(axis=1)
    return HumanAnswers(votes, np.full(len(grades), float(grades.shape[1])), grades.mean(axis=1), levels, values)


@pytest.mark.parametrize("method", MAPS)
def test_every_map_is_odd_and_never_falls(method: str) -> None:
    made = world(1)
    lengths = np.random.default_rng(0).normal(size=len(made.margin))
    found = MAPS[method](np.stack([made.margin, lengths], axis=1), 1, answers_of(made.answers), np.ones(len(made.margin)))
    grid = np.linspace(-9, 9, 401)
    for value, middle in ((found.expected(grid), 0.0), (found.chance(grid), 0.5)):
        assert np.abs(value + value[::-1] - 2 * middle).max() < 1e-12
        assert (np.diff(value) >= -1e-12).all() and value[-1] > value[0]
    assert found.weights[0] > 0


@pytest.mark.parametrize("method", MAPS)
def test_a_grader_of_two_grades_gets_peoples_share_and_mean(method: str) -> None:
    """Where the grader says 1, three of four people grade 1 and one −1: P = .75, E = .5, whatever the form of the map."""
    found = MAPS[method](np.ones((2000, 1)), 1, answers_of(np.tile([[1.0, 1.0, 1.0, -1.0]], (2000, 1))), np.ones(2000))
    index = found.index(np.array([[1.0]]))
    assert found.chance(index)[0] == pytest.approx(0.75, abs=1e-3)
    assert found.expected(index)[0] == pytest.approx(0.5, abs=2e-3)


def test_the_isotonic_map_pools_what_would_fall_and_draws_lines_between_the_centers() -> None:
    """Shares .6, .9, .7 at 1, 2, 3: the last two pool to .8 at 2.5; at 2 the line from (1, .6) gives .6 + .2/1.5."""
    answers = HumanAnswers(
        np.array([60.0, 90, 70]), np.full(3, 100.0), np.array([0.2, 0.8, 0.4]), np.zeros((3, 3)), np.array([-1.0, 0, 1])
    )
    found = MAPS["isotonic"](np.array([[1.0], [2.0], [3.0]]), 1, answers, np.ones(3))
    chance = found.chance(found.index(np.array([[1.0], [2.0], [2.5], [9.0], [-2.5]])))
    assert chance == pytest.approx([0.6, 0.6 + 0.2 / 1.5, 0.8, 0.8, 0.2])
    assert found.expected(found.index(np.array([[2.5]])))[0] == pytest.approx(0.6)


def test_ordinal_thresholds_are_found_again() -> None:
    """People's grades drawn from σ(τ − 1.5·margin) with τ = ±.4, ±1.6: the weight and the expected margin come back."""
    random = np.random.default_rng(3)
    margin = random.normal(0, 1, 20_000)
    latent = 1.5 * margin + random.logistic(size=len(margin))
    grades = np.digitize(latent, [-1.6, -0.4, 0.4, 1.6]) - 2.0
    found = MAPS["ordinal-logit"](margin[:, None], 1, answers_of(grades[:, None]), np.ones(len(margin)))
    assert found.weights[0] == pytest.approx(1.5, abs=0.05)
    below = 1 / (1 + np.exp(-(np.array([-1.6, -0.4, 0.4, 1.6]) - 1.5)))
    assert found.expected(found.index(np.array([[1.0]])))[0] == pytest.approx(2 - below.sum(), abs=0.03)


def test_of_many_sizes_of_margins_neighbours_go_together() -> None:
    values, step = _levels(np.array([-30.0, -7, -1, 0, 1, 2, 3, 4, 5, 6]))
    assert values.tolist() == [-18.5, -5.5, -4, -2.5, -1, 0, 1, 2.5, 4, 5.5, 18.5]
    assert step.tolist() == [0, 0, 4, 5, 6, 7, 7, 8, 9, 9]


def labelled(seed: int, prompts: int = 60) -> tuple[Labelled, np.ndarray, np.ndarray, float]:
    """Two people on the first prompts of a world; features and expected margins of all of it; a person's variance."""
    made = world(seed)
    known = made.prompt < prompts
    fold = folds_of([str(i) for i in range(prompts)], 10, seed)
    features = np.stack([made.margin, np.zeros(len(made.margin))], axis=1)
    prompt = made.prompt[known]
    sample = Labelled(features[known], 1, answers_of(made.answers[known]), prompt, fold[prompt], float(LIMIT))
    return sample, features, made.expected, float(made.answers[known].var(axis=1, ddof=1).mean())


@pytest.mark.slow
def test_intervals_of_calibrated_margins_hold_what_people_would_say() -> None:
    shares = []
    for seed in range(900, 925):
        sample, features, expected, noise = labelled(seed)
        setting, known = MapSetting("ordinal-logit", False), np.arange(len(features)) < len(sample.fold)
        errors = errors_of(sample, held_out(sample, setting), noise, len(sample.fold), features, known, 30, seed)
        found = sample.fit(setting, np.ones(len(sample.fold)))
        off = found.expected(found.index(features[:, :1])) - expected
        shares.append(np.mean(np.abs(off) <= 1.96 * errors.spread))
    assert 0.92 <= np.mean(shares) <= 0.98


def test_without_second_opinions_the_error_is_a_bound() -> None:
    sample, features, _, noise = labelled(900)
    known = np.arange(len(features)) < len(sample.fold)
    held = held_out(sample, MapSetting("scale", False))
    with_noise = errors_of(sample, held, float("nan"), 0, features, known, 20, 0)
    without = errors_of(sample, held, noise, len(sample.fold), features, known, 20, 0)
    assert with_noise.bound and not without.bound
    assert with_noise.beyond - without.beyond == pytest.approx(noise / 2, rel=0.05)


def test_what_is_left_of_a_variance_is_never_nothing() -> None:
    assert above_zero(-1.0, 1.0) == pytest.approx(0.5251, abs=1e-3)  # mean of a normal at −1, cut off below 0
    assert above_zero(-1.0, 0.0) == 0.0


def test_prediction_powered_means_cover_and_are_shorter() -> None:
    held, alone, widths = 0, 0, []
    for seed in range(400):
        random = np.random.default_rng(seed)
        prompt = np.repeat(np.arange(200), 2)
        truth = random.normal(0.3, 1, 200)[prompt] + random.normal(0, 1, 400)
        predicted = 0.7 * truth + random.normal(0, 0.5, 400)
        asked = np.isin(prompt, random.permutation(200)[:30])
        found = prediction_powered_mean(np.where(asked, truth, np.nan), predicted, prompt)
        assert found.interval is not None and found.people_only_interval is not None
        held += found.interval[0] <= 0.3 <= found.interval[1]
        alone += found.people_only_interval[0] <= 0.3 <= found.people_only_interval[1]
        widths.append(np.subtract(*found.interval) / np.subtract(*found.people_only_interval))
    assert 0.925 <= held / 400 <= 0.975 and alone / 400 >= 0.925
    assert np.mean(widths) < 0.75


def test_a_prediction_that_tells_nothing_gets_no_weight() -> None:
    random = np.random.default_rng(0)
    truth = np.where(np.arange(400) < 100, random.normal(size=400), np.nan)
    found = prediction_powered_mean(truth, np.zeros(400), np.arange(400))
    assert found.weight == 0 and found.value == pytest.approx(np.nanmean(truth)) and found.human_pairs == 100
