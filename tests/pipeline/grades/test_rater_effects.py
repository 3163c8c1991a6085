"""Raters' biases, scales and noises: recovered where known, shrunk where not, never exploding; and what builds make of them."""

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from folders import write_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from panels import PANELS, Grade, covered, errors, feedback, panel, rms

from mmpo.pipeline import BuildOptions, UserError, build, build_pairs
from mmpo.pipeline.grades import (
    Grades,
    RaterEffect,
    RaterSample,
    fit_rater_effects,
    in_sample,
    merge_raters,
    remove_effects,
    shrunk,
    without_signal,
)
from mmpo.pipeline.tables import metadata


def simulated(
    scale: list[float], noise: list[float], bias: list[float], n: int, seed: int, *, mean=0.0, one_order=False, share=1.0
) -> tuple[np.ndarray, RaterSample]:
    """Items (standard normal about the mean) and grades of them by raters of known scale, noise and bias, some left out."""
    rng = np.random.default_rng(seed)
    raters, items = len(scale), rng.normal(0, 1, n)
    item, rater = np.repeat(np.arange(n), raters), np.tile(np.arange(raters), n)
    coefficient = rng.choice([-1.0, 1.0], n * raters) if one_order else np.ones(n * raters)
    value = mean + coefficient * np.array(bias)[rater] + np.array(scale)[rater] * items[item]
    value += np.array(noise)[rater] * rng.normal(size=n * raters)
    kept = rng.random(n * raters) < share
    return items + mean, RaterSample(item[kept], rater[kept], value[kept], coefficient[kept], [f"r{i}" for i in range(raters)])


def fitted(sample: RaterSample, centered: bool = True, **options: bool) -> list[RaterEffect]:
    return list(fit_rater_effects(sample, centered=centered, **options).values())


def merged(sample: RaterSample, effects: list[RaterEffect]) -> np.ndarray:
    """Each item's value with the effects taken out."""
    zeros = np.zeros(len(sample.item), dtype=np.int64)
    grades = Grades(zeros, sample.item, sample.rater, zeros, zeros, sample.value, zeros * np.nan, sample.coefficient)
    left, _ = remove_effects(grades, sample.raters, dict(zip(sample.raters, effects, strict=True)))
    return merge_raters(left, "rater-effects")[1]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["ratings", "gaps asked once", "gaps in both orders"])
def test_known_scales_and_biases_come_back(seed: int, kind: str) -> None:
    """Scales ½, 1, 2 with noise half of each."""
    _, sample = simulated(
        [0.5, 1, 2], [0.25, 0.5, 1], [-1, 0, 1], 3000, seed, mean=5 * (kind == "ratings"), one_order=kind != "ratings"
    )
    if kind == "gaps in both orders":
        shift = np.array([-1, 0, 1])[sample.rater] * sample.coefficient
        sample = RaterSample(sample.item, sample.rater, sample.value - shift, sample.coefficient * 0, sample.raters)
    effects = fitted(sample, centered=kind == "ratings")
    assert [e.scale for e in effects] == pytest.approx([0.5, 1, 2], rel=0.05)
    assert math.prod(e.scale for e in effects) == pytest.approx(1, abs=1e-9)
    assert [e.bias for e in effects] == pytest.approx([0, 0, 0] if "both" in kind else [-1, 0, 1], abs=0.06)
    assert [e.noise for e in effects] == pytest.approx([0.5] * 3, rel=0.1)
    if kind == "ratings":
        assert sum(e.bias for e in effects) == pytest.approx(0, abs=1e-9)
        assert merged(sample, effects).mean() == pytest.approx(sample.value.mean(), abs=0.03)


@pytest.mark.parametrize("raters", [2, 3])
def test_raters_who_agree_but_for_a_constant(raters: int) -> None:
    """No noise at all: the constants are the biases, and nothing divides by the missing noise."""
    bias = np.arange(raters) - (raters - 1) / 2
    for times in (0.0, 1.0):
        effects = fitted(simulated([1] * raters, [0] * raters, (times * bias).tolist(), 40, 0, mean=3)[1])
        assert [e.bias for e in effects] == pytest.approx(times * bias, abs=1e-9)
        assert [e.scale for e in effects] == pytest.approx([1] * raters, abs=1e-9)


def test_scales_are_those_within_prompts_whatever_raters_say_of_the_prompts() -> None:
    """Four answers a prompt. On how hard prompts are, all agree at scale 3; on answers their scales are ½, 1, 2. A fourth only tells
    prompts apart: within a prompt, where margins are, it gives no signal."""
    rng = np.random.default_rng(0)
    n, scale = 3000, np.array([0.5, 1, 2, 0])
    hard, items = np.repeat(rng.normal(0, 1, n // 4), 4), rng.normal(0, 1, n)
    value = 3 * hard[:, None] + scale * items[:, None] + np.array([0.25, 0.5, 1, 0.5]) * rng.normal(size=(n, 4))
    item, rater = np.repeat(np.arange(n), 4), np.tile(np.arange(4), n)
    effects = fitted(RaterSample(item, rater, value.ravel(), np.ones(4 * n), ["a", "b", "c", "d"], item // 4))
    assert [e.scale for e in effects[:3]] == pytest.approx([0.5, 1, 2], rel=0.05)
    assert [e.noise for e in effects[:3]] == pytest.approx([0.5] * 3, rel=0.1)
    assert [e.signal for e in effects] == [True, True, True, False]


@pytest.mark.parametrize("chain", [False, True])
def test_whose_noises_cannot_be_told_apart_count_the_same(chain: bool) -> None:
    """Two raters; or a chain: r0 shares items with r1, r1 others with r2. Scales are as standard deviations, 1 : 2 : 4."""
    _, sample = simulated([0.5, 1, 2], [0.25, 0.5, 1], [0, 0, 0], 4000, 0)
    effects = fitted(sample.take(sample.rater != (np.where(sample.item < 2000, 2, 0) if chain else 2)))[: 3 if chain else 2]
    expected = np.array([0.5, 1, 2]) if chain else np.array([0.5, 1]) / math.sqrt(0.5)
    assert [e.scale for e in effects] == pytest.approx(expected, rel=0.05)
    assert [e.weight for e in effects] == pytest.approx([1] * len(effects), rel=0.1)


def test_a_sparse_panel_of_thirty_is_recovered() -> None:
    """Each item is graded by about three of thirty raters, so that no two share many."""
    rng = np.random.default_rng(1)
    scale = np.exp(rng.normal(0, 0.4, 30))
    scale /= np.exp(np.log(scale).mean())
    bias = rng.normal(0, 1, 30)
    items, sample = simulated(scale.tolist(), (0.5 * scale).tolist(), (bias - bias.mean()).tolist(), 6000, 2, mean=5, share=0.1)
    effects = fitted(sample)
    assert rms(np.log([e.scale for e in effects]) - np.log(scale)) < 0.07
    assert rms(np.array([e.bias for e in effects]) - (bias - bias.mean())) < 0.12
    known, plain = np.unique(sample.item), [RaterEffect()] * 30
    assert rms(merged(sample, effects) - items[known]) < 0.5 * rms(merged(sample, plain) - items[known])


def test_weights_pay() -> None:
    """Noise ½, 1, 2. At its best factor, which γ is, the plain mean misses the items by √(.583/1.583) = .607, the mean by the true
    weights by √(.190/1.190) = .400; scales alone bring .51, and weights on them .42 from 3,000 items and .43 from 300."""
    for n, most in ((3000, 0.43), (300, 0.44)):
        found = []
        for seed in range(6):
            items, sample = simulated([1, 1, 1], [0.5, 1, 2], [0, 0, 0], n, seed)
            weighted, equal = (fitted(sample, centered=False, weighted=w) for w in (True, False))
            assert [e.weight for e in equal] == [1, 1, 1]
            values = [merged(sample, effects) for effects in (weighted, equal, [RaterEffect()] * 3)]
            found.append([rms(items - value * (value @ items) / (value @ value)) for value in values])
        weighted, equal, plain = np.mean(found, axis=0)
        assert plain == pytest.approx(0.607, rel=0.02)
        assert equal < 0.53
        assert weighted < most


@pytest.mark.parametrize("seed", range(3))
def test_an_unreliable_rater_alone_on_many_items_does_little_harm(seed: int) -> None:
    """Slope .3 and noise 1: divided by .3 such a grade has noise 3.3. With two of five raters an item that would be most of what merged
    grades vary by."""
    slope = [1, 1, 1, 0.3, 0.3]
    items, sample = simulated(slope, [0.5, 0.5, 0.5, 1, 1], [0] * 5, 3000, seed, share=0.4)
    known = items[np.unique(sample.item)]
    ours, divided, plain = (
        np.corrcoef(merged(sample, effects), known)[0, 1]
        for effects in (fitted(sample), [RaterEffect(scale=s) for s in slope], [RaterEffect()] * 5)
    )
    assert ours > divided + 0.1
    assert ours > plain


@pytest.mark.parametrize("heavy", [False, True], ids=["normal", "heavy tails"])
def test_raters_who_do_not_differ_are_shrunk_to_none(heavy: bool) -> None:
    """Ten equal raters of noise 1 on 60 items each. By chance their means differ by .13 and their standard deviations by 1/√120 = .09, of
    exponentials of half the grades by .25 at least; ours by less than a third, and by less than half, of that."""
    effects = []
    for seed in range(10):
        _, sample = simulated([1] * 10, [1] * 10, [0] * 10, 60, seed)
        effects += fitted(replace(sample, value=np.exp(sample.value / 2)) if heavy else sample)
    assert rms(np.array([e.bias for e in effects])) < 0.13 / 3
    assert rms(np.log([e.scale for e in effects])) < (0.25 if heavy else 0.09) / 2


def test_shrinkage_takes_away_what_sampling_adds() -> None:
    """Two estimates 2 apart have variance 2. If sampling makes 1 of it, 1 is real: half of each deviation stays. None is left of variance
    2, all of variance 0; and a rater about whom nothing is known gets the mean of the others and does not move it."""
    assert shrunk(np.array([1.0, 3.0]), np.array([1.0, 1.0])) == pytest.approx([1.5, 2.5])
    assert shrunk(np.array([1.0, 3.0]), np.array([2.0, 2.0])) == pytest.approx([2, 2])
    assert shrunk(np.array([1.0, 3.0]), np.zeros(2)) == pytest.approx([1, 3])
    assert shrunk(np.array([1.0, 3.0, 99.0]), np.array([1e-3, 1e-3, 1e6])) == pytest.approx([1, 3, 2], abs=0.02)


def test_chance_alone_silences_few_raters() -> None:
    """Four raters of noise 1.6 on 25 items correlate .4 with the mean of the others. By chance 2% of them have a correlation below 0,
    which is no proof that they see nothing."""
    silent = sum(int(without_signal(simulated([1] * 4, [1.6] * 4, [0] * 4, 25, seed)[1]).sum()) for seed in range(300))
    assert silent / 1200 < 0.008


def test_under_twenty_shared_items_a_rater_keeps_scale_one() -> None:
    _, sample = simulated([0.5, 1, 2], [0.1] * 3, [0, 1, -1], 400, 0)
    few = (sample.rater < 2) | (sample.item < 19)
    effects = fitted(sample.take(few))
    assert (effects[2].scale, effects[2].items, effects[2].weight) == (1, 19, 1) and math.isnan(effects[2].noise)
    assert effects[0].scale == pytest.approx(effects[1].scale / 2, rel=0.1)


def test_a_rater_who_shares_with_small_ones_only_keeps_scale_one_and_costs_the_others_nothing() -> None:
    """r3 shares 40 items, eight with each of r4 to r8, who have no scale; r4 also graded an item of r0's, so all are linked."""
    _, sample = simulated([0.5, 1, 2, 1, 1, 1, 1, 1, 1], [0.2] * 9, [0] * 9, 440, 0)
    small = (sample.item >= 400) & ((sample.rater == 3) | (sample.rater == 4 + (sample.item - 400) // 8))
    effects = fitted(sample.take(((sample.item < 400) & (sample.rater < 3)) | small | ((sample.item == 0) & (sample.rater == 4))))
    assert [e.scale for e in effects[:3]] == pytest.approx([0.5, 1, 2], rel=0.1)
    assert [e.scale for e in effects[3:]] == [1] * 6
    assert effects[3].items == 40


def test_who_shares_nothing_is_named_and_groups_have_a_centre_each() -> None:
    """r0 and r1 share items, r2 and r3 share others, r4 shares none: biases sum to 0 in each group, nothing is said across."""
    _, sample = simulated([1] * 5, [0.3] * 5, [1, -1, 5, 3, 9], 900, 0)
    effects = fitted(sample.take(sample.item // 300 == sample.rater // 2))
    assert [e.bias for e in effects] == pytest.approx([1, -1, 1, -1, 0], abs=0.1)
    assert [e.connected for e in effects] == [True] * 4 + [False]
    assert effects[4] == pytest.approx(RaterEffect(), nan_ok=True)
    assert effects[0].center == pytest.approx(0, abs=0.2)
    assert effects[2].center == pytest.approx(4, abs=0.2)


@pytest.mark.parametrize(
    ("scale", "noise"), [([1, 1, 0], [0.5, 0.5, 1]), ([1, 1, -1], [0.5] * 3), ([1, 1, 1, 0.05], [0.5, 0.5, 0.5, 0.01])],
    ids=["noise only", "turned round", "flat"],
)  # fmt: skip
def test_a_rater_without_signal_is_found_and_has_no_part(scale: list[float], noise: list[float]) -> None:
    items, sample = simulated(scale, noise, [0] * len(scale), 2000, 3)
    *good, bad = fitted(sample)
    assert not bad.signal
    assert (bad.weight, bad.scale) == (0, 1)
    assert all(e.signal and e.scale == pytest.approx(1, rel=0.06) for e in good)
    assert rms(merged(sample, [*good, bad]) - items) == pytest.approx(0.5 / math.sqrt(len(good)), rel=0.08)


def test_raters_who_all_disagree_are_refused_and_few_grades_are_no_verdict() -> None:
    for scale, n in (([1, -1], 300), ([0, 0], 5000), ([0, 0, 0], 5000)):
        with pytest.raises(UserError, match="no rater's grades agree"):
            fitted(simulated(scale, [0.5] * 3, [0] * 3, n, 0)[1])
    assert all(e.signal and e.scale == 1 for e in fitted(simulated([1, -1], [0.5, 0.5], [0, 0], 19, 0)[1]))


@settings(max_examples=80, deadline=None)
@given(
    st.integers(2, 6), st.integers(1, 60), st.integers(0, 10**6), st.booleans(), st.sampled_from([0.0, 1.0, 1e6]), st.integers(0, 1)
)
def test_effects_are_finite_whatever_comes_in(raters: int, n: int, seed: int, centered: bool, size: float, shared: int) -> None:
    """Constant grades, equal ones, few items, unrelated raters, gaps of one order: scales stay positive and everything is a number."""
    rng = np.random.default_rng(seed)
    _, sample = simulated([0] * raters, [size] * raters, [0] * raters, n, seed, share=float(rng.random()), one_order=not centered)
    value = np.round(sample.value) + shared * sample.item
    sample = RaterSample(sample.item, sample.rater, value, sample.coefficient, sample.raters)
    try:
        effects = fitted(sample, centered=centered)
    except UserError:
        return
    assert all(0 < e.scale < 100 and math.isfinite(e.bias) and 0 <= e.weight <= 100 for e in effects)


def test_the_sample_is_a_share_by_the_prompts_own_digest() -> None:
    ids = pa.array([f"{i:024x}{hash_:08x}" for i, hash_ in enumerate(np.random.default_rng(0).integers(0, 2**32, 20_000))])
    mask = in_sample(ids, 0.25)
    assert sum(mask.to_pylist()) / 20_000 == pytest.approx(0.25, abs=0.01)
    assert in_sample(ids.slice(777), 0.25).equals(mask.slice(777))
    assert all(in_sample(ids, 1.0).to_pylist())


def test_ratings_of_different_raters_become_comparable() -> None:
    """A harsh rater (-2) grades half of the answers, a mild one (+2) the other half, both share a few: the plain margins mix them up."""
    rng = np.random.default_rng(0)
    quality = rng.normal(5, 1, (300, 2))

    def graded(p: int) -> Iterable[Grade]:
        for c, q in zip("ab", quality[p].tolist()):
            for rater, bias in (("harsh", -2), ("mild", 2)):
                if p < 60 or ("ab".index(c) == p % 2) == (rater == "harsh"):
                    yield rater, c, q + bias + float(rng.normal(0, 0.3))

    table = feedback(map(graded, range(300)), kind="human")
    plain, aware = (errors(table, quality[:, 0] - quality[:, 1], merge_raters=how)[0] for how in ("mean", "rater-effects"))
    assert rms(plain) > 3
    assert rms(aware) < 0.5
    effects = metadata(build_pairs(table, merge_raters="rater-effects").schema)["rater_effects"]
    assert effects["mild"]["bias"] - effects["harsh"]["bias"] == pytest.approx(4, abs=0.15)
    # who grades the same prompts' other answers only: a pair of one harsh and one mild grade has no rater who graded both
    assert {r["raters"] for r in build_pairs(table, merge_raters="rater-effects").to_pylist()} == {0, 2}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["mean", "rater-effects"])
@pytest.mark.parametrize("name", PANELS)
def test_intervals_cover(name: str, how: str) -> None:
    """margin ± 1.96 margin_se holds the true margin in .93 to .97 of the pairs, on seven grades; .943, .938 and .936 for two, three and
    five raters of equal normal noise, since P(|z| ≤ 1.96·√V) with V = (4 + χ²(n - 1))/(n + 3) is. And its size is that of the error."""
    noise = PANELS[name]
    share, se, error = covered(*panel(noise, len(noise)), how)
    assert 0.93 <= share <= 0.97
    assert se == pytest.approx(error, rel=0.05)


def test_a_bias_is_taken_away_once() -> None:
    """Judges of known position bias answer most pairs in both orders. What `keep` took from the other answers may not count again."""
    rng = np.random.default_rng(0)

    def answers(p: int) -> Iterable[Grade]:
        m = float(rng.normal())
        for rater, bias in (("j", 1.0), ("k", -1.0), ("l", 0.5)):
            for first, second, sign in (("a", "b", 1), ("b", "a", -1))[: 1 if p < 60 else 2]:
                yield rater, first, second, sign * m + bias + 0.1 * float(rng.normal())

    found = build_pairs(feedback(map(answers, range(400)), kind="ai"), merge_raters="rater-effects", one_order="keep")
    assert found.num_rows == 400
    assert [e["bias"] for e in metadata(found.schema)["rater_effects"].values()] == [0, 0, 0]
    assert metadata(found.schema)["position_bias"]["j/overall"]["bias"] == pytest.approx(1, abs=0.02)


def written(path: Path, answers: Iterable[tuple[int, str, str, str, float]], kind: str) -> Path:
    """JSON lines of (question, rater, shown first, shown second, gap)."""
    rows = [
        {"prompt": f"q{p}", "first": first, "second": second, "gap": float(gap), "rater": rater, "kind": kind}
        for p, rater, first, second, gap in answers
    ]
    return write_rows(path, rows)


def test_a_pair_that_two_reasons_leave_bare_is_lost_once(tmp_path: Path) -> None:
    """j answered q0 and q1 in one order only, the silent judge answered q0 as well: two pairs lost, one reason each."""
    rng = np.random.default_rng(0)
    answers = []
    for p in range(200):
        m = rng.normal()
        for rater in ("j",) if p == 1 else ("j", "random") if p == 0 else ("j", "k", "random"):
            known = 0 if rater == "random" else 1
            for first, second, sign in (("a", "b", 1), ("b", "a", -1))[: 1 if p < 2 and rater == "j" else 2]:
                answers.append((p, rater, first, second, known * sign * m + (0.3 if known else 1) * rng.normal()))
    options = BuildOptions(format="jsonl", merge_raters="rater-effects")
    summary = build(written(tmp_path / "c.jsonl", answers, "ai"), tmp_path / "out", options=options)
    assert summary["rejected"] == {"no_signal": 199, "no_pair": 2, "one_order": 2, "one_order_pair": 2}


@pytest.fixture(scope="module")
def jury(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three people of noise .3, .3 and 1 grade 300 pairs, a fourth answers at random and ten pairs more."""
    rng = np.random.default_rng(0)
    answers = []
    for p in range(310):
        m = rng.normal()
        gaps = {"a": m + 0.3 * rng.normal(), "b": m + 0.3 * rng.normal(), "c": m + rng.normal(), "d": rng.normal()}
        answers += [(p, rater, "x", "y", gap) for rater, gap in gaps.items() if p < 300 or rater == "d"]
    return written(tmp_path_factory.mktemp("jury") / "c.jsonl", answers, "human")


def test_weights_are_optional_and_a_silent_rater_is_counted_and_shown(jury: Path, tmp_path: Path) -> None:
    found = {}
    for weights in ("fitted", "equal"):
        options = BuildOptions(format="jsonl", merge_raters="rater-effects", rater_weights=weights)
        summary = build(jury, tmp_path / weights, options=options)
        assert summary["rejected"] == {"no_signal": 310, "no_pair": 10, "no_signal_pair": 10}
        found[weights] = summary["rater_effects"]
    assert found["fitted"]["c"]["weight"] < 0.7 < 1 < found["fitted"]["a"]["weight"]
    assert {name: (e["signal"], e["weight"]) for name, e in found["equal"].items()} == {
        "a": (True, 1), "b": (True, 1), "c": (True, 1), "d": (False, 0),
    }  # fmt: skip
    for name in "abcd":  # nothing else differs
        assert {**found["equal"][name], "weight": 0} == {**found["fitted"][name], "weight": 0}


def test_real_severities_come_back_from_a_fifth_of_the_shared_grades(real_data: Path) -> None:
    """MQM grades of translations, three of eight raters each, whose means lie between -2.4 and -11.1. From a fifth of the segments with all
    three, and one rater drawn for each other translation (where plain margins compare a mild rater's grade with a severe one's), the
    biases are those of the whole."""
    frame = pd.read_parquet(real_data / "wmt_mqm_human.parquet")
    segment = ["prompt_id", "response"]
    frame = frame.loc[(frame.test_set == "generalMT2023_sxs") & (frame.lp == "zh-en"), :].drop_duplicates([*segment, "rater"])
    frame = frame.sort_values([*segment, "rater"]).reset_index(drop=True)
    rng = np.random.default_rng(0)
    shared = frame.prompt_id.map(dict(zip(frame.prompt_id.unique(), rng.random(frame.prompt_id.nunique()) < 0.2, strict=True)))
    drawn = frame.assign(draw=rng.random(len(frame))).groupby(segment).draw.transform("idxmin") == frame.index

    def effects(rows: pd.DataFrame) -> pd.DataFrame:
        grades = (zip(of.rater.astype(str), of.response, of.mqm_score) for _, of in rows.groupby("prompt_id"))
        found = metadata(build_pairs(feedback(grades, kind="human"), merge_raters="rater-effects").schema)["rater_effects"]
        return pd.DataFrame(found).T.astype({"bias": float, "scale": float})

    whole, few = effects(frame), effects(frame[shared | drawn])
    assert whole.bias.idxmin() == few.bias.idxmin() == "rater6"
    assert np.corrcoef(whole.bias, few.bias)[0, 1] > 0.9
    assert all(found.signal.all() and found.scale.between(0.3, 3).all() for found in (whole, few))
