"""Agreement in signed margins against the package krippendorff, pandas, numbers by hand, a plain bootstrap; on people's real grades."""

from pathlib import Path

import krippendorff
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from human_cases import agreed, compared, table, tulu
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpo.annotate.agreement import OF_TWO, agree, agreement_of_all, agreement_of_two, patterns, rank_correlation, signed_ranks
from mmpo.pipeline import read_feedback

LEVELS = {"alpha_nominal": "nominal", "alpha_ordinal": "ordinal", "alpha_interval": "interval"}
grade = st.sampled_from([-3.0, -1.5, -1.0, 0.0, 0.0, 0.5, 1.0, 2.0])


def both(values: np.ndarray) -> np.ndarray:
    """Grades of shape (raters, units), every unit in both orientations."""
    return np.concatenate([values, -values], axis=1)


def theirs(values: np.ndarray, level: str) -> float | None:
    """The package's α; None where it has no answer because all values are the same."""
    data = np.sign(values) if level == "nominal" else values
    data = data[:, (~np.isnan(data)).sum(axis=0) > 1]
    if len(np.unique(data[~np.isnan(data)])) < 2:
        return None
    return float(krippendorff.alpha(reliability_data=data, level_of_measurement=level))


def flat(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit, value and prompt of grades of shape (raters, units), NaN left out; each unit is a prompt."""
    unit, rater = np.nonzero(~np.isnan(values.T))
    return unit, values[rater, unit], unit


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def two_raters(units: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = generator(seed)
    a = rng.integers(-3, 4, units).astype(float)
    return a, np.clip(a + rng.integers(-2, 3, units), -3, 3)


def test_alpha_by_hand() -> None:
    """Units (1, 1) and (1, −1). Interval: observed 2·2²/4 = 2, expected 4·Σv²/(2n − 1) = 16/7, α = 1 − 7/8. Nominal: observed 2/4; of the 8
    values of both orientations 4 are positive, expected 2·4·4/(8·7) = 4/7, α = 1/8. One size only, so that the order says the same.
    """
    found = agreement_of_two(np.array([1.0, 1.0]), np.array([1.0, -1.0]), np.array([0, 1]), 0, 0)
    assert [found[name] for name in LEVELS] == pytest.approx([0.125] * 3)
    assert found["accuracy"] == 0.5 and found["decided"] == 2 and found["spearman"] == 0
    assert found["alpha_interval_95"] is None


@given(st.integers(2, 4), st.integers(1, 12), st.data())
def test_alphas_are_the_package_s_on_both_orientations(raters: int, units: int, data: st.DataObject) -> None:
    cell = grade | st.just(float("nan")) | st.floats(-3, 3).map(lambda value: round(value, 3))
    values = np.array(data.draw(st.lists(st.lists(cell, min_size=units, max_size=units), min_size=raters, max_size=raters)))
    found = agreement_of_all(*flat(values), bootstrap=0, seed=0)
    assert found["units"] == ((~np.isnan(values)).sum(axis=0) > 1).sum()
    for name, level in LEVELS.items():
        expected = theirs(both(values), level) if found["units"] else None
        assert found[name] == (None if expected is None else pytest.approx(expected, abs=1e-12)), name


@given(st.lists(st.tuples(grade, grade), min_size=1, max_size=30))
def test_ranks_and_their_correlation_are_those_of_the_doubled_data(rows: list[tuple[float, float]]) -> None:
    a, b = np.array(rows).T
    doubled = pd.DataFrame({"a": np.concatenate([a, -a]), "b": np.concatenate([b, -b])}).rank()
    ranks = signed_ranks(a, np.ones((1, len(a))))[0]
    np.testing.assert_allclose(ranks, (doubled["a"] - doubled["a"].mean())[: len(a)], atol=1e-12)
    if (a == 0).all() or (b == 0).all():
        assert rank_correlation(a, b) is None
    else:
        assert rank_correlation(a, b) == pytest.approx(doubled.corr().loc["a", "b"], abs=1e-12)


@settings(deadline=None)
@given(st.lists(st.tuples(grade, grade, st.integers(0, 4), st.booleans()), min_size=1, max_size=25), st.integers(0, 99))
def test_neither_first_nor_second_nor_rows_matter(rows: list[tuple[float, float, int, bool]], seed: int) -> None:
    a, b, prompt, flip = (np.array(column) for column in zip(*rows))
    sign, order = np.where(flip, -1.0, 1.0), generator(seed).permutation(len(a))
    plain = agreement_of_two(a, b, prompt, 50, 7)
    for changed in ((a * sign, b * sign, prompt), (b, a, prompt), (a[order], b[order], prompt[order])):
        found = agreement_of_two(*changed, 50, 7)
        for name, value in plain.items():
            assert found[name] == (value if value is None else pytest.approx(value, abs=1e-9)), name


@pytest.mark.parametrize(("prompts", "known"), [(2, False), (4, False), (5, True)])
def test_few_prompts_have_no_interval(prompts: int, known: bool) -> None:
    a, b = two_raters(60)
    found = agreement_of_two(a, b, np.arange(60) % prompts, 200, 0)
    assert {found[f"{name}_95"] is not None for name in OF_TWO} == {known} and found["prompts"] == prompts


def test_scale_changes_neither_accuracy_nor_rank_correlation() -> None:
    a, b = two_raters(200)
    prompt = np.arange(200) // 2
    one, other = agreement_of_two(a, b, prompt, 100, 0), agreement_of_two(a, b * 7, prompt, 100, 0)
    for name in ("accuracy", "spearman", "alpha_nominal"):
        assert one[name] == other[name] and one[f"{name}_95"] == pytest.approx(other[f"{name}_95"])
    assert one["alpha_interval"] > other["alpha_interval"] + 0.2


def test_a_rater_agrees_with_itself_and_disagrees_with_its_opposite() -> None:
    a, _ = two_raters(50)
    same, opposite = (agreement_of_two(a, sign * a, np.arange(50), 20, 0) for sign in (1, -1))
    for name in OF_TWO:
        assert same[name] == 1 and (name == "accuracy" or same[f"{name}_95"] is None)  # draws that are all alike bound nothing
    decided = int((a != 0).sum())  # each a prompt of its own: all of n agree with a chance of 2.5% where .025^(1/n) of all do
    assert same["accuracy_95"] == pytest.approx([0.025 ** (1 / decided), 1.0]) and decided < 50
    assert opposite["accuracy_95"] == pytest.approx([0.0, 1 - 0.025 ** (1 / decided)])
    assert opposite["accuracy"] == 0 and opposite["spearman"] == -1 and opposite["alpha_interval"] < -0.9
    ties = agreement_of_two(np.zeros(5), np.zeros(5), np.arange(5), 20, 0)
    assert all(ties[name] is None and ties[f"{name}_95"] is None for name in OF_TWO)


def test_five_pairs_that_agree_are_no_proof() -> None:
    """Of five prompts: .025^(1/5) = .478; ten pairs of each say no more; with a tie on one prompt four are decided, which is too few."""
    a = np.array([1.0, 2.0, 3.0, -1.0, 2.0])
    found, tenfold = (
        agreement_of_two(a, a, np.arange(5), 300, 0),
        agreement_of_two(*[np.repeat(a, 10)] * 2, np.repeat(range(5), 10), 300, 0),
    )
    assert found["accuracy_95"] == tenfold["accuracy_95"] == pytest.approx([0.478, 1.0], abs=0.001)
    tied = agreement_of_two(a * (a < 3), a, np.arange(5), 300, 0)
    assert (tied["accuracy"], tied["decided"], tied["accuracy_95"]) == (1.0, 4, None)


@pytest.mark.parametrize("raters", [2, 3])
def test_weights_say_what_repeated_units_say(raters: int) -> None:
    """Every statistic of a draw is that of the units written out as often as their prompt was drawn."""
    values = np.clip(np.round(generator(4).normal(size=(raters, 30)) + generator(5).normal(size=30)), -2, 2)
    unit, value, _ = flat(values)
    found = patterns(unit, value, unit // 3)
    weights = np.concatenate(list(found.resampled(5, 11)))
    rng = np.random.default_rng(11)
    for weight in weights:
        drawn = rng.integers(0, 10, 10)
        written = np.concatenate([values[:, 3 * p : 3 * p + 3] for p in drawn], axis=1)
        again = patterns(*flat(written))
        for name in LEVELS:
            expected = OF_TWO[name](again, again.counts())[0]
            assert OF_TWO[name](found, weight[None])[0] == pytest.approx(expected, abs=1e-12)


def test_intervals_are_those_of_a_plain_bootstrap_over_prompts() -> None:
    a, b = two_raters(180, seed=3)
    prompt = np.arange(180) // 3
    found = agreement_of_two(a, b, prompt, 2000, 0)
    rng, plain = generator(9), []
    for _ in range(600):
        rows = np.concatenate([np.arange(3 * p, 3 * p + 3) for p in rng.integers(0, 60, 60)])
        plain.append(theirs(both(np.stack([a[rows], b[rows]])), "interval"))
    assert found["alpha_interval_95"] == pytest.approx(np.quantile(plain, [0.025, 0.975]), abs=0.015)
    assert found == agreement_of_two(a, b, prompt, 2000, 0) != agreement_of_two(a, b, prompt, 2000, 1)


def test_copies_of_a_prompt_s_units_make_no_interval_narrower() -> None:
    """Twenty copies of each unit say nothing new. As prompts of their own they'd shrink the interval by √20."""
    a, b = two_raters(60, seed=5)
    prompt = np.arange(60)
    once = agreement_of_two(a, b, prompt, 500, 0)
    copied = agreement_of_two(np.repeat(a, 20), np.repeat(b, 20), np.repeat(prompt, 20), 500, 0)
    naive = agreement_of_two(np.repeat(a, 20), np.repeat(b, 20), np.arange(1200), 500, 0)
    assert copied["spearman_95"] == pytest.approx(once["spearman_95"], abs=1e-9)
    assert np.diff(naive["spearman_95"])[0] < np.diff(copied["spearman_95"])[0] / 3


def test_patterns_hold_every_unit_once_and_drop_single_grades() -> None:
    unit, value = np.array([0, 0, 1, 2, 2, 3, 3, 3, 4, 4]), np.array([1.0, 2, 5, 1, 2, 1, 2, 2, 2, 1])
    found = patterns(unit, value, np.array([9, 9, 9, 4, 4, 9, 9, 9, 4, 4]))
    assert found.counts().sum() == 4 and found.prompts == 2
    assert sorted(zip(found.size.tolist(), found.counts()[0].tolist())) == [(2, 1), (2, 2), (3, 1)]


def test_large_chunks_and_small_ones_draw_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = two_raters(100)
    whole = agreement_of_two(a, b, np.arange(100), 200, 0)
    monkeypatch.setattr("mmpo.annotate.agreement.statistics.CHUNK_NUMBERS", 1000)
    assert agreement_of_two(a, b, np.arange(100), 200, 0) == whole


def test_the_usual_alpha_depends_on_which_answer_is_named_first(real_data: Path) -> None:
    """The same 434 grades: the package says .72 in the file's order and .38 with the better answer first; ours is .72 both times."""
    table = pq.read_table(real_data / "ragchecker_human_pairs.parquet").to_pandas()
    grades = table.pivot_table(index="instance_id", columns="annotation", values="overall").to_numpy().T
    chosen_first = grades * np.where(np.sign(grades.sum(axis=0)) < 0, -1, 1)
    naive = [theirs(values, "interval") for values in (grades, chosen_first)]
    ours = [agreement_of_two(*values, np.arange(values.shape[1]), 0, 0)["alpha_interval"] for values in (grades, chosen_first)]
    assert naive == pytest.approx([0.7165, 0.3829], abs=5e-5)
    assert ours == pytest.approx([0.7162, 0.7162], abs=5e-5)


def test_a_million_units_take_seconds() -> None:
    a, b = two_raters(1_000_000)
    found = agreement_of_two(a, b, np.arange(len(a)) // 4, 5, 0)
    assert found["units"] == 1_000_000 and found["prompts"] == 250_000
    assert found["alpha_interval_95"][0] < found["alpha_interval"] < found["alpha_interval_95"][1]


MEASURES = ("accuracy", "spearman", "alpha_nominal", "alpha_ordinal", "alpha_interval")


def by_the_package(frame: pd.DataFrame, first: str, second: str, gap: str, rater: str) -> tuple[int, float]:
    """Pairs that two raters or more graded, named in the order of their texts, and the package's α on both orientations."""
    told = (frame[first].str.strip() != "") & (frame[second].str.strip() != "") & (frame[first] != frame[second])
    frame = frame[told]
    swapped = frame[first] > frame[second]
    texts = {"a": frame[first].where(~swapped, frame[second]), "b": frame[second].where(~swapped, frame[first])}
    frame = frame.assign(**texts, signed=frame[gap].astype(float).where(~swapped, -frame[gap].astype(float)))
    values = frame.pivot_table(index=["prompt", "a", "b"], columns=rater, values="signed").to_numpy().T
    values = values[:, (~np.isnan(values)).sum(axis=0) > 1]
    return values.shape[1], float(krippendorff.alpha(reliability_data=np.concatenate([values, -values], axis=1)))


def test_the_shipped_sample(root: Path) -> None:
    """Two people on 183 pairs: they agree on 89% of those that neither calls a tie; the longer answer wins 65% to 68% of them."""
    summary = agree(read_feedback(root / "data" / "human_graded_pairs.jsonl", "jsonl", scale=(-2, 2), kind="human"))
    [pair] = summary["pairs"]
    assert pair["units"] == pair["prompts"] == 183 and pair["decided"] == 103
    assert [pair[name] for name in MEASURES] == pytest.approx([0.8932, 0.6692, 0.4656, 0.6650, 0.6687], abs=5e-5)
    assert all(pair[f"{name}_95"][0] < pair[name] < pair[f"{name}_95"][1] for name in MEASURES)
    assert [row["longest"] for row in summary["length"]] == pytest.approx([0.6505, 0.6796], abs=5e-5)


def test_ragchecker(real_data: Path, tmp_path: Path) -> None:
    """Its grades are positive where the second answer is better. Turning them, or naming the answers the other way round, is the same."""
    frame = table(real_data, "ragchecker_human_pairs")
    frame["turned"] = -frame["overall"]
    one = agreed(tmp_path / "one.jsonl", compared(frame, "response_1", "response_2", "turned", "annotation"), (-2, 2))
    other = agreed(tmp_path / "two.jsonl", compared(frame, "response_2", "response_1", "overall", "annotation"), (-2, 2))
    assert one["pairs"] == other["pairs"] and one["length"] == other["length"]
    assert one["position"][0]["toward_first"] == -other["position"][0]["toward_first"] != 0
    [pair] = one["pairs"]
    units, alpha = by_the_package(frame, "response_1", "response_2", "overall", "annotation")
    assert pair["units"] == units == 210 and pair["alpha_interval"] == pytest.approx(alpha)


def test_tulu_raters_saw_the_same_pair_in_either_order(real_data: Path, tmp_path: Path) -> None:
    """16 raters share 99 pairs; whoever takes the order shown for the pair's identity finds half of them."""
    summary = agreed(tmp_path / "t.jsonl", tulu(real_data), (-2, 2), bootstrap=200)
    everyone = summary["overall"]["all"]
    assert len(summary["raters"]) == everyone["raters"] == 16 and 0 < len(summary["pairs"]) < 120
    frame = table(real_data, "tulu_human_pairs")
    units, alpha = by_the_package(frame, "response_a", "response_b", "preference_margin", "annotator")
    assert everyone["units"] == units == 99 and everyone["alpha_interval"] == pytest.approx(alpha)
    low, high = everyone["alpha_interval_95"]
    assert low < everyone["alpha_interval"] < high and high - low > 0.15
    units, ties = zip(*((row["units"], row["ties"]) for row in summary["raters"]))
    assert 0.25 < np.average(ties, weights=units) < 0.4
