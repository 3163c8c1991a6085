"""How certain scales are, when the model of raters gives way to their standard deviations, and the weights that a build gives them."""

from pathlib import Path

import numpy as np
import pytest

from mmpo.pipeline import BuildOptions, UserError, build
from mmpo.pipeline.grades import (
    Grades,
    RaterEffect,
    RaterSample,
    deviations_foretell_better,
    fit_rater_effects,
    merge_raters,
    remove_effects,
    sampling_variances,
    shrunk,
    without_signal,
)


def panel(scale: list[float], noise: list[float], n: int, seed: int, share: float = 1.0) -> tuple[np.ndarray, RaterSample]:
    """Standard normal items, and gaps by raters of known scale and noise, each given with probability `share`."""
    rng = np.random.default_rng(seed)
    items, raters = rng.normal(size=n), len(scale)
    value = items[:, None] * scale + rng.normal(size=(n, raters)) * noise
    item, rater = np.nonzero(rng.random((n, raters)) < share)
    sample = RaterSample(item, rater, value[item, rater], np.zeros(len(item)), [f"r{i}" for i in range(raters)])
    return items, sample


def test_shrinkage_takes_away_what_sampling_adds() -> None:
    """Two estimates 2 apart have variance 2. If sampling makes 1 of it, 1 is real: half of each deviation stays. None is left of variance
    2, all of variance 0; and a rater about whom nothing is known gets the mean of the others and does not move it."""
    assert shrunk(np.array([1.0, 3.0]), np.array([1.0, 1.0])) == pytest.approx([1.5, 2.5])
    assert shrunk(np.array([1.0, 3.0]), np.array([2.0, 2.0])) == pytest.approx([2, 2])
    assert shrunk(np.array([1.0, 3.0]), np.zeros(2)) == pytest.approx([1, 3])
    assert shrunk(np.array([1.0, 3.0, 99.0]), np.array([1e-3, 1e-3, 1e6])) == pytest.approx([1, 3, 2], abs=0.02)


def least_squares(correlation: np.ndarray) -> np.ndarray:
    """The reliabilities whose products come nearest to correlations (diagonal 0): each is a regression on the others."""
    reliability = np.full(len(correlation), 0.7)
    for _ in range(500):
        best = correlation @ reliability / ((reliability**2).sum() - reliability**2)
        reliability = (reliability + best) / 2
    return reliability


@pytest.mark.parametrize("heavy", [False, True], ids=["normal", "heavy tails"])
def test_variances_are_those_of_repeated_samples(heavy: bool) -> None:
    """Five raters on 200 items. The normal formula 1/(2n) for log standard deviations, .0025, is a third of the truth at most where grades
    are products of exponentials of half size; ours follows both, within a third in standard errors."""
    found = []
    for seed in range(80):
        rng = np.random.default_rng(seed)
        y = rng.normal(size=(200, 1)) + rng.normal(size=(200, 5))
        y = np.exp(0.5 * y) if heavy else y
        deviation, correlation = y.std(axis=0, ddof=1), np.corrcoef(y.T)
        reliability = least_squares(correlation - np.eye(5))
        z = ((y - y.mean(axis=0)) / deviation).ravel()
        item, rater = np.repeat(np.arange(200), 5), np.tile(np.arange(5), 200)
        ours = sampling_variances(item, rater, z, item, reliability, 200.0 * (1 - np.eye(5)))
        found.append((np.log(deviation), reliability, *ours))
    logs, reliabilities, of_logs, of_reliabilities = (np.array(column) for column in zip(*found))
    assert np.sqrt(of_logs.mean()) == pytest.approx(logs.std(axis=0).mean(), rel=1 / 3)
    assert np.sqrt(of_reliabilities.mean()) == pytest.approx(reliabilities.std(axis=0).mean(), rel=1 / 3)
    assert (logs.var(axis=0).mean() > 3 / 400) == heavy


def correlation(items: np.ndarray, sample: RaterSample, effects: list[RaterEffect]) -> float:
    """Of the merged values with the items."""
    zeros = np.zeros(len(sample.item), dtype=np.int64)
    grades = Grades(zeros, sample.item, sample.rater, zeros, zeros, sample.value, zeros * np.nan, sample.coefficient)
    left, _ = remove_effects(grades, sample.raters, dict(zip(sample.raters, effects, strict=True)))
    where, value = merge_raters(left, "rater-effects")
    return float(np.corrcoef(value, items[where])[0, 1])


@pytest.mark.parametrize("seed", range(3))
def test_true_scales_lose_where_an_unreliable_rater_is_alone_on_many_items(seed: int) -> None:
    """Scale .3 and noise 1: divided by .3 such a grade has noise 3.3. With two of five raters an item that is most of what the item's mean
    varies by, whatever the model says; the fit sees it, gives nobody a scale far from 1, and comes out ahead."""
    scale, noise = [1, 1, 1, 0.3, 0.3], [0.5, 0.5, 0.5, 1, 1]
    items, sample = panel(scale, noise, 3000, seed, share=0.4)
    effects = list(fit_rater_effects(sample, centered=False).values())
    assert all(0.9 < e.scale < 1.1 and e.weight == 1 and np.isnan(e.noise) for e in effects)
    assert correlation(items, sample, effects) > correlation(items, sample, [RaterEffect(scale=s) for s in scale]) + 0.1


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_the_model_stays_where_it_foretells_as_well(share: float) -> None:
    """Reliabilities .89, .71 and .55, standard deviations 1 : 2.5 : 6.5: the scales are still ½, 1 and 2."""
    for seed in range(4):
        _, sample = panel([0.5, 1, 2], [0.25, 1, 3], 2000, seed, share)
        effects = list(fit_rater_effects(sample, centered=False).values())
        assert [e.scale for e in effects] == pytest.approx([0.5, 1, 2], rel=0.2)
        assert not any(np.isnan(e.noise) for e in effects)


def test_units_and_grades_of_0_decide_nothing() -> None:
    _, sample = panel([1, 1, 0.3], [0.5, 0.5, 1], 2000, 0, share=0.4)
    sample = sample.take(np.arange(len(sample.item)))
    scale, weight, deviation = np.array([1, 1, 0.3]), np.ones(3), np.array([1.1, 1.1, 1.0])
    for factor in (1.0, 1e-6, 1e6):
        for value, expected in ((sample.value, True), (0 * sample.value, False), (sample.value * (sample.rater == 0), False)):
            arguments = sample.item, sample.rater, value * factor
            assert deviations_foretell_better(*arguments, scale, weight, deviation) is expected
            assert deviations_foretell_better(*arguments, scale * factor, weight / factor, deviation * 7) is expected
            assert not deviations_foretell_better(*arguments, scale, weight, scale)


def test_chance_alone_silences_few_raters() -> None:
    """Four raters of noise 1.6 on 25 items correlate .4 with the mean of the others. By chance 2% of them have a correlation below 0,
    which is no proof that they see nothing."""
    silent = sum(int(without_signal(panel([1] * 4, [1.6] * 4, 25, seed)[1]).sum()) for seed in range(300))
    assert silent / 1200 < 0.008


def jury(path: Path) -> Path:
    """Three people of noise .3, .3 and 1 grade 300 pairs, a fourth answers at random."""
    rng = np.random.default_rng(0)
    lines = []
    for p in range(300):
        m = rng.normal()
        for rater, gap in (
            ("a", m + 0.3 * rng.normal()),
            ("b", m + 0.3 * rng.normal()),
            ("c", m + rng.normal()),
            ("d", rng.normal()),
        ):
            lines.append(f'{{"prompt":"q{p}","first":"x","second":"y","gap":{float(gap)},"rater":"{rater}","kind":"human"}}\n')
    path.write_text("".join(lines))
    return path


def test_weights_are_optional(tmp_path: Path) -> None:
    source, found = jury(tmp_path / "c.jsonl"), {}
    for weights in ("fitted", "equal"):
        options = BuildOptions(format="jsonl", merge_raters="rater-effects", rater_weights=weights)
        found[weights] = build(source, tmp_path / weights, options=options)["rater_effects"]
    assert found["fitted"]["c"]["weight"] < 0.5 < 1 < found["fitted"]["a"]["weight"]
    assert {name: e["weight"] for name, e in found["equal"].items()} == {"a": 1, "b": 1, "c": 1, "d": 0}
    for name in "abcd":  # nothing else differs
        assert {**found["equal"][name], "weight": 0} == {**found["fitted"][name], "weight": 0}


def test_weights_without_a_use_for_them_are_refused(tmp_path: Path) -> None:
    source = jury(tmp_path / "c.jsonl")
    with pytest.raises(UserError, match="only --raters rater-effects weighs raters"):
        build(source, tmp_path / "out", options=BuildOptions(format="jsonl", rater_weights="equal"))
    with pytest.raises(UserError, match="fitted, equal"):
        build(source, tmp_path / "out", options=BuildOptions(format="jsonl", merge_raters="rater-effects", rater_weights="none"))
