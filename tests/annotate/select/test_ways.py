"""The ways to choose pairs: right values by hand, and what must hold of each whatever the data."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpo.annotate.select import (
    SELECTIONS,
    CompletionTexts,
    GradedPairs,
    KnownMargin,
    Pool,
    RecordItem,
    expected_information,
    fit_head,
    in_order,
)
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.margins import sigmoid

Values = dict[str, list[float]]


def said(better: str, margin: float = 1.0, se: float | None = None, minority: float = 0.0, raters: int = 1) -> KnownMargin:
    return KnownMargin(better, margin, se, minority, raters, "ai")


def asked(prompt: str, *ids: str, **known: KnownMargin) -> RecordItem:
    """An item of a prompt; known: what is known of its only pair."""
    margins = {frozenset(ids): one for one in known.values()}
    return RecordItem(prompt, [{"role": "user", "content": prompt}], ids, ids, (None,) * len(ids), "s", margins)


def pool_of(items: list[RecordItem], values: Values | None = None, graded: GradedPairs | None = None, **more: Any) -> Pool:
    """values: the features of each completion."""

    def featurize(name: str, texts: CompletionTexts) -> np.ndarray:
        return np.array([(values or {})[one] for one in texts.ids])

    whole: dict[str, dict[str, None]] = {}
    for item in items:
        whole.setdefault(item.prompt_id, {}).update(dict.fromkeys(item.ids))
    context = [asked(prompt, *ids) for prompt, ids in whole.items()]
    for said_by in (graded.people, graded.others) if graded else ():
        context += [asked(prompt, *sorted(pair)) for prompt, pair in said_by]
    return Pool(items, context, graded or GradedPairs({}, {}, {}), featurize=featurize, **more)


def firsts(pool: Pool, name: str, *args: Any) -> list[tuple[str, ...]]:
    return [one.item.ids for one in in_order(pool, name, *args)]


def test_selections_by_what_is_known() -> None:
    """Each by margin, standard error, share of raters against it, and raters."""
    known = {"sure": (3.0, 0.1, 0.0, 3), "unsure": (-2.0, 1.5, 0.2, 5), "close": (0.25, 0.3, 0.5, 2), "nobody": None}
    items = [asked(text, "a", text, **({"known": said("a", *one)} if one else {})) for text, one in known.items()]

    def order(way: str) -> list[str]:
        return [one.item.prompt_id for one in in_order(pool_of(items), way)]

    assert order("uncertain") == ["unsure", "close", "sure", "nobody"]
    assert order("small-margin") == order("disagreement") == ["close", "unsure", "sure", "nobody"]
    assert sorted(order("random")) == ["close", "nobody", "sure", "unsure"]
    for way in ("uncertain", "small-margin", "disagreement"):
        with pytest.raises(UserError, match=f"--select {way} needs.*or use --select random"):
            in_order(pool_of(items[3:]), way, option="--select")
    chosen = in_order(pool_of(items), "small-margin", 4)
    assert [(one.reason, one.score) for one in chosen] == [*(("small-margin", -x) for x in (0.25, 2.0, 3.0)), ("drawn", None)]
    assert chosen[1].parts == {"margin": -2.0, "margin_se": 1.5, "raters": 5.0} and chosen[3].parts == {}


def test_a_random_choice_is_stable_when_data_is_added() -> None:
    items = [asked(str(i), f"{i}a", f"{i}b") for i in range(60)]
    before = firsts(pool_of(items[:40], seed=1), "random", 10)
    after = [ids for ids in firsts(pool_of(items, seed=1), "random") if int(ids[0][:-1]) < 40]
    assert after[:10] == before
    assert firsts(pool_of(items, seed=2), "random", 10) != firsts(pool_of(items, seed=1), "random", 10)


def test_of_one_prompt_no_more_than_asked_for() -> None:
    items = [asked(f"p{i % 3}", f"{i}a", f"{i}b", known=said(f"{i}a", float(i))) for i in range(9)]
    chosen = [one.item.prompt_id for one in in_order(pool_of(items), "small-margin", 9, 2)]
    assert chosen == ["p0", "p1", "p2"] * 2
    assert [ids[0] for ids in firsts(pool_of(items), "small-margin", 4, 1)] == ["0a", "1a", "2a"]


def graders(*margins: dict[str, float]) -> GradedPairs:
    """Margins of graders toward the completion a of each prompt."""
    by = {
        f"g{i}": {
            (prompt, frozenset((f"{prompt}a", f"{prompt}b"))): said(f"{prompt}{'a' if value >= 0 else 'b'}", abs(value))
            for prompt, value in one.items()
        }
        for i, one in enumerate(margins)
    }
    return GradedPairs({}, {}, by)


PAIRS = [asked(prompt, f"{prompt}a", f"{prompt}b") for prompt in "xyz"]


def test_graders_disagree_by_hand() -> None:
    """g0 gives 3 and 1 (root mean square √5), g1 gives 1 and −1 (1): of x the margins 3/√5 and 1, of y 1/√5 and −1; z has one grader."""
    chosen = in_order(pool_of(PAIRS, graded=graders({"x": 3, "y": 1}, {"x": 1, "y": -1})), "model-disagreement")
    assert [one.item.prompt_id for one in chosen] == ["y", "x", "z"]
    y, x = chosen[:2]
    assert y.score == pytest.approx((1 / np.sqrt(5) + 1) ** 2 / 2) and x.score == pytest.approx((3 / np.sqrt(5) - 1) ** 2 / 2)
    assert (y.parts["vote_entropy"], x.parts["vote_entropy"]) == (pytest.approx(1), pytest.approx(0, abs=1e-9))
    assert y.parts["mean_margin"] == pytest.approx((1 / np.sqrt(5) - 1) / 2) and chosen[2].reason == "drawn"


@given(st.dictionaries(st.sampled_from("xyz"), st.floats(-5, 5).filter(lambda x: abs(x) > 1e-3), min_size=1), st.floats(0.01, 100))
def test_graders_that_differ_by_a_scale_do_not_disagree(margins: dict[str, float], scale: float) -> None:
    chosen = in_order(pool_of(PAIRS, graded=graders(margins, {key: scale * x for key, x in margins.items()})), "model-disagreement")
    assert [one.score for one in chosen if one.score is not None] == pytest.approx([0.0] * len(margins), abs=1e-12)


@pytest.mark.parametrize(
    ("said_by", "why"),
    [((), "there is none"), (({"x": 1.0},), "the only one is g0"), (({"x": 1.0}, {"x": 0.0}), "all margins of g1 are ties")],
)
def test_it_takes_two_graders(said_by: tuple[dict[str, float], ...], why: str) -> None:
    with pytest.raises(UserError, match=why):
        in_order(pool_of(PAIRS, graded=graders(*said_by)), "model-disagreement")


@pytest.mark.parametrize(("logit", "variance"), [(0, 0.5), (1, 1), (-1, 1), (2, 4), (0, 36), (4, 0.3), (6, 9)])
def test_expected_information_is_that_of_the_integral(logit: float, variance: float) -> None:
    """I(vote; z) = H(E σ(z)) − E H(σ(z)), by ten thousand steps."""
    nodes = np.linspace(-9, 9, 10_001)
    weights = np.exp(-(nodes**2) / 2)
    p, weights = sigmoid(logit + np.sqrt(variance) * nodes), weights / weights.sum()

    def entropy(p: Any) -> Any:
        p = np.clip(p, 1e-300, 1 - 1e-16)
        return -(p * np.log2(p) + (1 - p) * np.log2(1 - p))

    exact = entropy(weights @ p) - weights @ entropy(p)
    assert float(expected_information(np.array(logit), np.array(variance))) == pytest.approx(exact, abs=2e-3)
    assert expected_information(np.array(logit), np.array(0.0)) == pytest.approx(0, abs=1e-9)


def test_the_head_is_the_penalised_maximum_and_its_laplace_covariance() -> None:
    """One feature, all pairs x = 1 and preferred: the root of n(1 − σ(w)) = w·decay, covariance 1/(n·σ(1 − σ) + decay)."""
    head = fit_head(np.ones((4, 1)), np.ones(4), usual=1.0, spreads=(1.0,))
    assert 4 * (1 - sigmoid(head.mean[0])) == pytest.approx(head.mean[0], abs=1e-3)
    chance = sigmoid(head.mean[0])
    assert head.covariance[0, 0] == pytest.approx(1 / (4 * chance * (1 - chance) + 1), abs=1e-3)
    nothing = fit_head(np.zeros((0, 2)), np.zeros(0), usual=4.0, starts=[np.array([1.0, 2.0]), np.zeros(2)])
    assert nothing.mean.tolist() == [1.0, 2.0] and np.allclose(nothing.covariance, np.eye(2) / 4)


@given(st.integers(0, 1000))
@settings(max_examples=20)
def test_swapping_all_pairs_changes_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, p = rng.normal(size=(30, 3)), rng.random(30)
    one, other = fit_head(x, p, 3.0), fit_head(-x, 1 - p, 3.0)
    assert np.allclose(one.mean, other.mean, atol=1e-6) and np.allclose(one.covariance, other.covariance, atol=1e-6)


def test_the_evidence_finds_how_wide_logits_are() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 8))
    for spread in (0.25, 4.0):
        w = rng.normal(size=8) * spread / np.sqrt(8)
        found = fit_head(x, (rng.random(2000) < sigmoid(x @ w)).astype(float), 8.0)
        assert found.spread in ((0.25, 0.5) if spread < 1 else (2.0, 4.0))
        assert np.corrcoef(found.mean, w)[0, 1] > 0.9


def spread_out(seed: int, pairs: int, width: int) -> tuple[list[RecordItem], Values]:
    rng = np.random.default_rng(seed)
    items = [asked(f"p{i}", f"{i}a", f"{i}b") for i in range(pairs)]
    return items, {one: rng.normal(size=width).tolist() for item in items for one in item.ids}


def test_information_from_nothing_is_the_greedy_d_optimal_design() -> None:
    """Each pair is the one that makes the determinant of decay·I + Σ xxᵀ/4 largest, as recomputed from nothing each time; of 24 the two
    that differ most are left for last."""
    items, values = spread_out(3, 24, 4)
    pool = pool_of(items, values)
    x, usual = pool.differences, (pool.differences**2).sum(axis=1).mean()
    near = np.argsort((x**2).sum(axis=1))[:22].tolist()
    picked: list[int] = []
    for _ in range(8):
        curvature = usual * np.eye(4) + x[picked].T @ x[picked] / 4
        gains = {i: np.linalg.det(curvature + np.outer(x[i], x[i]) / 4) for i in near if i not in picked}
        picked.append(max(gains, key=gains.__getitem__))
    assert firsts(pool, "information", 8) == [items[i].ids for i in picked]


def test_prediction_takes_the_pair_after_which_the_mean_variance_is_least() -> None:
    """From nothing the mean over pairs of xᵀΣx/4, Σ recomputed for every candidate; the score is what it falls by, as a share."""
    items, values = spread_out(4, 9, 3)
    pool = pool_of(items, values)
    x, usual = pool.differences, (pool.differences**2).sum(axis=1).mean()

    def mean_variance(rows: list[int]) -> float:
        return float(np.trace(x @ np.linalg.inv(usual * np.eye(3) + x[rows].T @ x[rows] / 4) @ x.T))

    chosen = in_order(pool, "prediction", 4)
    picked: list[int] = []
    for one in chosen:
        left = {i: mean_variance([*picked, i]) for i in range(9) if i not in picked}
        best = min(left, key=left.__getitem__)
        assert one.item is items[best]
        assert one.score == pytest.approx((mean_variance(picked) - left[best]) / mean_variance([]))
        picked.append(best)


def test_what_is_furthest_out_is_left_for_last() -> None:
    """Of 21 pairs a tenth; the one with features a hundred times as large tells most, and comes among them."""
    items, values = spread_out(9, 21, 3)
    values["7a"] = [100.0, 0.0, 0.0]
    for way in ("information", "prediction"):
        chosen = in_order(pool_of(items, values), way)
        assert [one.reason for one in chosen] == [way] * 19 + ["drawn"] * 2
        assert items[7].ids in [one.item.ids for one in chosen[19:]]


def test_a_batch_does_not_ask_the_same_thing_twice() -> None:
    """Three prompts with the same two replies, and one with a smaller difference of another kind, which comes second."""
    values: Values = {f"{i}{side}": [float(side == "a"), 0.0] for i in range(3) for side in "ab"}
    values |= {"3a": [0.0, 0.98], "3b": [0.0, 0.0]}
    items = [asked(f"p{i}", f"{i}a", f"{i}b") for i in range(4)]
    chosen = in_order(pool_of(items, values), "information")
    assert chosen[1].item.prompt_id == "p3"
    of_the_same = [one.score or 0.0 for one in chosen if one.item.prompt_id != "p3"]
    assert of_the_same[0] > of_the_same[1] > of_the_same[2] > 0


def test_what_was_graded_tells_less_a_second_time() -> None:
    items, values = spread_out(5, 12, 3)
    fresh = {one.item.ids: one.score or 0.0 for one in in_order(pool_of(items, values), "information")}
    first = items[0]
    key = (first.prompt_id, frozenset(first.ids))
    tie = {key: said(first.ids[0], 0.0, minority=0.5)}  # a tie leaves the mean where it was, so that only the variance shrinks
    then = in_order(pool_of(items, values, GradedPairs(tie, {}, {})), "information")
    assert {one.item.ids: one.score or 0.0 for one in then}[first.ids] < fresh[first.ids]


def test_others_grades_move_the_mean_and_leave_the_error() -> None:
    """A judge says a of the x pairs; people nothing: the head leans as the judge does and is as unsure as before."""
    items, values = spread_out(7, 20, 2)
    judged = {
        (item.prompt_id, frozenset(item.ids)): said(item.ids[int(values[item.ids[0]][0] < values[item.ids[1]][0])])
        for item in items
    }
    nothing, judge, people = (
        pool_of(items, values, one).head for one in (None, GradedPairs({}, judged, {}), GradedPairs(judged, {}, {}))
    )
    assert not nothing.mean.any() and judge.mean[0] > 0 and np.allclose(judge.covariance, nothing.covariance)
    assert people.mean[0] > 0 and np.trace(people.covariance) < 0.9 * people.spread**2 * np.trace(nothing.covariance)
    assert people.pairs == 20 and judge.pairs == 0


def test_whom_people_contradict_is_not_followed() -> None:
    """A judge prefers what has more of the first feature, people less: after 5 of their grades the head still leans as the judge does,
    after 60 as people do, just as one that never heard of the judge."""
    items, values = spread_out(8, 80, 2)
    rng = np.random.default_rng(8)
    more = {(item.prompt_id, frozenset(item.ids)): item.ids[int(values[item.ids[0]][0] < values[item.ids[1]][0])] for item in items}
    less = {key: next(iter(key[1] - {one})) if rng.random() < 0.9 else one for key, one in more.items()}
    judge = {key: said(one) for key, one in more.items()}
    five, sixty = ({key: said(less[key]) for key in list(less)[:count]} for count in (5, 60))
    heads = [pool_of(items, values, GradedPairs(people, others, {})).head for people in (five, sixty) for others in (judge, {})]
    assert heads[0].mean[0] > heads[1].mean[0] and heads[2].mean[0] < 0
    assert np.allclose(heads[2].mean, heads[3].mean, atol=1e-3)


def test_gap_bounds_by_hand() -> None:
    """One feature, nothing graded: weights N(0, 1/usual), rewards 0. Of a prompt with 0 and 2 both deviate by 1, of one with 0 and 4 by 2:
    usual = (4 + 16)/2, bounds (1 + 1)/√10 and (2 + 2)/√10."""
    items = [asked("p", "pa", "pb"), asked("q", "qa", "qb")]
    chosen = in_order(pool_of(items, {"pa": [0.0], "pb": [2.0], "qa": [4.0], "qb": [0.0]}), "gap")
    assert [(one.item.prompt_id, one.score) for one in chosen] == [
        ("q", pytest.approx(4 / 10**0.5)),
        ("p", pytest.approx(2 / 10**0.5)),
    ]
    assert chosen[0].parts == {"gap": 0.0, "bounds": pytest.approx(4 / 10**0.5)}


def test_the_gap_is_the_widest_of_all_bounds() -> None:
    """As written in the paper: max over both orders of (r_i + s_i) − (r_j − s_j), by loops over completions."""
    items, values = spread_out(11, 15, 3)
    graded = {(item.prompt_id, frozenset(item.ids)): said(item.ids[0]) for item in items[:5]}
    pool = pool_of(items, values, GradedPairs(graded, {}, {}))
    head = pool.head
    for one in in_order(pool, "gap"):
        a, b = (np.array(values[i]) for i in one.item.ids)
        bounds = [(d @ head.mean, np.sqrt(d @ head.covariance @ d)) for d in (a - (a + b) / 2, b - (a + b) / 2)]
        (r, s), (q, t) = bounds
        assert one.score == pytest.approx(max(r + s - (q - t), q + t - (r - s)))


@pytest.mark.parametrize("way", sorted(SELECTIONS))
def test_neither_the_order_of_items_nor_of_replies_matters(way: str) -> None:
    items, values = spread_out(13, 30, 3)
    margins = [said(item.ids[i % 2], 1 + i % 7, 0.1 * (i % 5), 0.1 * (i % 4), 3) for i, item in enumerate(items)]
    items = [asked(item.prompt_id, *item.ids, known=one) for item, one in zip(items, margins, strict=True)]
    by = {(item.prompt_id, frozenset(item.ids)): one for item, one in zip(items, margins, strict=True)}
    other = {key: said(one.better, 8 - one.margin) for key, one in by.items()}
    graded = GradedPairs({}, by, {"one": by, "other": other})
    turned = [asked(item.prompt_id, *item.ids[::-1], known=next(iter(item.margins.values()))) for item in items[::-1]]
    one, two = ([set(ids) for ids in firsts(pool_of(given, values, graded), way)] for given in (items, turned))
    assert one == two and len(one) == 30


def test_all_replies_of_a_prompt_are_one_item() -> None:
    """For questions about all replies at once the most urgent of their pairs speaks for them; a prompt of one reply comes last."""
    values = {one: [float(i), 0.0] for i, one in enumerate("abcdef")}
    items = [asked("p", "a"), asked("q", "b", "c", "d"), asked("r", "e", "f")]
    chosen = in_order(pool_of(items, values), "information")
    assert [one.item.prompt_id for one in chosen] == ["q", "r", "p"] and chosen[2].reason == "drawn"


def test_features_that_tell_nothing_apart_are_refused() -> None:
    items, values = spread_out(1, 5, 2)
    with pytest.raises(UserError, match="no feature varies"):
        in_order(pool_of(items, {one: [1.0, 2.0] for one in values}), "gap")
    with pytest.raises(UserError, match=r"featurize=mmpo\.train\.completion_features"):
        in_order(Pool(items, items, GradedPairs({}, {}, {})), "information")
