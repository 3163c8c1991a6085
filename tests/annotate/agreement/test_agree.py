"""What `agree` says of FEEDBACK: margins, position, length, calibration, repeats by hand; order never matters."""

import random
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from grade_cases import Row, feedback, rated, said, table_of
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpo.annotate.agreement import agree, read_margins, votes
from mmpo.pipeline import UserError
from mmpo.pipeline.margins import sigmoid


def row_of(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    [row] = [row for row in rows if row["name"] == name]
    return row


def test_repeats_are_averaged_within_an_order_then_the_orders() -> None:
    """A before B: 2 and 0, so 1; B before A: −3, so 3 toward A: the margin is 2, where a plain mean would be 5/3. Toward the first: −1."""
    table = feedback([said("ann", 0, 1, 2), said("ann", 0, 1, 0), said("ann", 1, 0, -3)])
    margins = read_margins(table)
    assert np.abs(margins.raw).tolist() == [2.0] and np.abs(margins.scaled).tolist() == pytest.approx([2 / 3])
    [row] = agree(table)["position"]
    assert row["orders"] == "both" and row["toward_first"] == -1 and row["flips"] == 0 and row["se"] is None


def test_ratings_make_a_margin_of_every_pair_and_aspect() -> None:
    grades = [rated("gpt", place, score, aspect=aspect) for aspect in ("a", "b") for place, score in enumerate((1, 2, 5))]
    margins = read_margins(feedback([*grades, rated("gpt", 0, 3, aspect="a"), rated("old", 2, 5)], texts="ABC"))
    assert margins.chosen.scale == "range" and margins.chosen.aspects == ["a", "b", "overall"]
    assert sorted(np.abs(margins.raw[margins.of(0)])) == [0, 1, 3, 3, 3, 4]  # of a, whose first completion's mean is 2: 0, 3, 3
    assert sorted(np.abs(margins.scaled)) == [0, 0.25, 0.75, 0.75, 0.75, 1]


def test_equal_differences_are_equal_whatever_the_rounding() -> None:
    """0.3 − 0.2 and 0.2 − 0.1 differ in their last digit, and 0.1 + 0.2 is not 0.3."""
    grades = [rated("gpt", place, score, low=0.0, high=1.0) for place, score in enumerate((0.1, 0.2, 0.3))]
    margins = read_margins(feedback([*grades, rated("gpt", 2, 0.30000000000000004, low=0.0, high=1.0)], texts="ABC"))
    assert len(np.unique(np.abs(margins.scaled))) == 2


def test_an_unbounded_scale_is_measured_by_root_mean_square() -> None:
    table = feedback(*([said("ann", 0, 1, gap, limit=None)] for gap in (3, 4)))
    margins = read_margins(table)
    assert margins.chosen.scale == "rms"
    assert sorted(np.abs(margins.scaled)) == pytest.approx([3 / 12.5**0.5, 4 / 12.5**0.5])
    assert agree(table)["raters"][0]["mean_share"] is None


def test_a_rater_with_both_kinds_of_evidence_is_two_columns() -> None:
    grades = [rated("gpt", 0, 4), rated("gpt", 1, 2), said("gpt", 0, 1, 1, kind="ai"), said("gpt", 0, 1, -1, kind="human")]
    table = feedback(grades)
    names = ["gpt (human)", "gpt (ai, comparisons)", "gpt (ai, ratings)"]
    assert [row["name"] for row in agree(table)["raters"]] == names
    assert [row["name"] for row in agree(table, evidence="ratings")["raters"]] == ["gpt"]
    assert len(agree(table, evidence="comparisons", kinds=["ai"])["raters"]) == 1


def test_position_bias_by_hand() -> None:
    """Gaps toward the first shown, both ways round: (2, 0) flips to the first; (1, −1) doesn't flip; (−2, −1) flips to the second."""
    grades = [
        [said("gpt", 0, 1, one, kind="ai"), said("gpt", 1, 0, other, kind="ai"), said("ann", 0, 1, 1)]
        for one, other in [(2, 0), (1, -1), (-2, -1)]
    ]
    found = agree(feedback(*grades, [said("gpt", 0, 1, 3, kind="ai")]))["position"]
    gpt, ann = row_of(found, "gpt"), row_of(found, "ann")
    assert gpt["orders"] == "both" and gpt["units"] == 3
    assert [gpt[name] for name in ("flips", "to_first", "to_second")] == pytest.approx([2 / 3, 1 / 3, 1 / 3])
    leans = np.array([1, 0, -1.5])
    assert gpt["toward_first"] == pytest.approx(leans.mean()) and gpt["se"] == pytest.approx(leans.std(ddof=1) / 3**0.5)
    assert ann["orders"] == "one" and ann["toward_first"] == 1 and ann["se"] is None and ann["flips"] is None


def test_standard_error_counts_prompts_not_pairs() -> None:
    """Two prompts of three equal pairs each: the means are 2 and −1, so se = 1.5, as if each were one pair; s/√6 would say .67."""
    grades = [[said("ann", i, j, lean) for i, j in combinations(range(3), 2)] for lean in (2, -1)]
    [row] = agree(feedback(*grades, texts="ABC"))["position"]
    assert row["toward_first"] == 0.5 and row["se"] == pytest.approx(1.5)


def test_length_by_hand() -> None:
    """People: the longer is better three times of four. The judge follows them on all but the one where the shorter is better."""
    pairs = [(1, 1), (2, 3), (1, 2), (-1, 1), (0, -1)]
    grades = [[said("ann", 0, 1, people), said("gpt", 0, 1, judge, kind="ai")] for people, judge in pairs]
    table = pa.concat_tables([feedback(*grades, texts=("long answer", "short")), feedback(grades[0], texts=("12345", "abcde"))])
    row = row_of(agree(table)["length"], "gpt")
    assert row["units"] == 5 and row["longer"] == 0.8 and row["decided"] == 5
    assert row["accuracy"] == 0.8 and row["longest"] == pytest.approx(3.5 / 5)
    assert row["accuracy_longer"] == 1 and row["accuracy_shorter"] == 0


def test_severity_by_hand() -> None:
    scores = [("ann", 0, 1), ("ann", 0, 3), ("ann", 1, 2), ("ben", 0, 5), ("ben", 1, 3), ("cy", 0, 4), ("cy", 2, 5)]
    table = feedback([rated(name, place, score, kind="human") for name, place, score in scores], texts="ABC")
    severity = agree(table, bootstrap=0)["severity"]
    ann, ben, cy = (row_of(severity, name) for name in ("ann", "ben", "cy"))
    # ann: (1 + 3)/2 = 2 beside ben's 5 and cy's 4: 2.5 lower; 2 beside ben's 3: 1 lower.
    assert (ann["items"], ann["mean"], ann["shared"], ann["severity"]) == (2, 2.0, 2, 1.75)
    assert ann["se"] == pytest.approx(0.75)
    # ben: 5 beside 2 and 4: 2 higher; 3 beside 2: 1 higher. cy's last answer is its own.
    assert (ben["severity"], cy["severity"], cy["shared"], cy["se"]) == (-1.5, -0.5, 1, None)


def test_severity_is_of_one_scale_only() -> None:
    """The same judgement in points of 0..4 and of 1..5 is a point apart and as severe; nobody shares ann's scale but dan."""
    scales = {"ann": (0.0, 4.0), "ben": (1.0, 5.0), "dan": (0.0, 4.0)}
    table = feedback(
        [
            rated(name, place, bounds[0] + score, kind="human", low=bounds[0], high=bounds[1])
            for name, bounds in scales.items()
            for place, score in ((0, 4), (1, 0 if name != "dan" else 1))
        ]
    )
    severity = agree(table, bootstrap=0)["severity"]
    ann, ben, dan = (row_of(severity, name) for name in ("ann", "ben", "dan"))
    assert (ben["severity"], ben["se"], ben["shared"], ben["scale"], ben["mean"]) == (None, None, 0, "1..5", 3.0)
    assert (ann["severity"], dan["severity"], ann["shared"], ann["scale"]) == (0.5, -0.5, 2, "0..4")


def test_ties_of_a_scale_far_from_0_are_ties() -> None:
    """In floats 1000000.9 less .8 is 1.2e-10 off a tenth, and .3 less .2 is not off as far; agree, as build, says the same of both."""
    grades = [("ann", 0, 0.9), ("ann", 1, 0.8), ("ann", 0, 0.2), ("ann", 1, 0.3), ("ben", 0, 0.7), ("ben", 1, 0.6)]
    table = feedback([rated(name, place, 1e6 + score, kind="human", low=1e6, high=1e6 + 1) for name, place, score in grades])
    summary = agree(table, bootstrap=0)
    assert row_of(summary["raters"], "ann")["ties"] == 1.0
    assert row_of(summary["raters"], "ben")["mean_margin"] == pytest.approx(0.1, abs=1e-15)
    assert row_of(summary["severity"], "ann")["mean"] == pytest.approx(1000000.55, abs=1e-9)


def test_repeats_by_hand() -> None:
    """1, 2, 4: differences 1, 3, 2, none equal; 3, 3: 0, equal. Each item counts once; the pair asked in two orders is no repeat."""
    grades = [rated("gpt", 0, score) for score in (4, 1, 2)] + [rated("gpt", 1, 3)] * 2
    [row] = agree(feedback([*grades, said("ann", 0, 1, 2), said("ann", 1, 0, 2)]))["consistency"]
    assert row == {"name": "gpt", "items": 2, "grades": 5, "mean_difference": 1.0, "equal": 0.5, "equal_95": None}


def jury(prompts: int = 400, gamma: float = 0.8, seed: int = 0) -> pa.Table:
    """A judge's margins, the votes of five people that σ(γm) makes of them, and a judge that is blind to them."""
    rng = np.random.default_rng(seed)
    grades = []
    for m in rng.integers(-3, 4, prompts).astype(float).tolist():
        people = np.where(rng.random(5) < sigmoid(gamma * m), 1, -1).tolist()
        judges = [said("gpt", 0, 1, m, kind="ai"), said("coin", 0, 1, rng.normal() % 1, kind="ai")]
        grades.append([*(said(f"person {k}", 0, 1, vote) for k, vote in enumerate(people)), *judges])
    return feedback(*grades)


def test_calibration_gives_back_the_gamma_of_the_votes() -> None:
    summary = agree(jury(), bootstrap=0)
    gpt, coin = row_of(summary["calibration"], "gpt"), row_of(summary["calibration"], "coin")
    assert gpt["gamma"] == pytest.approx(0.8, rel=0.1) and gpt["units"] == 400 and gpt["votes"] == 2000
    assert gpt["ece_vote"] < 0.03 and gpt["cross_entropy"] < gpt["coin"] - 0.1 and coin["cross_entropy"] > coin["coin"] - 0.01
    assert sum(row["units"] for row in gpt["bins"]) == 400 and gpt["bins"][0]["observed"] is None
    for row in gpt["bins"][1:]:
        assert row["predicted"] == pytest.approx(sigmoid(gpt["gamma"] * row["low"])) if row["low"] == row["high"] else True
        assert row["observed"] == pytest.approx(row["predicted"], abs=0.06)


def test_votes_count_ties_half_and_certain_judges_get_infinite_gamma() -> None:
    [row] = agree(feedback(*[[said("x", 0, 1, 1), said("y", 0, 1, 2), said("gpt", 0, 1, 1, kind="ai")]] * 3))["calibration"]
    assert row["gamma"] == float("inf") and row["ece_vote"] == 0 and row["cross_entropy"] == 0
    preferring, voters = votes(read_margins(feedback([said("x", 0, 1, 0), said("y", 0, 1, 1), said("z", 1, 0, 1)])))
    assert preferring.tolist() == [1.5] and voters.tolist() == [3]


def test_a_person_is_no_part_of_their_own_reference() -> None:
    """Two people who never agree: against a mean that held the judged one, they'd seem to agree half of the time."""
    against = agree(feedback(*[[said("x", 0, 1, 2), said("y", 0, 1, -1), said("gpt", 0, 1, 1, kind="ai")]] * 4))["against"]
    assert [row_of(against, name)["accuracy"] for name in ("x", "y", "gpt")] == [0, 0, 1]
    assert [row_of(against, name)["others"] for name in ("x", "y", "gpt")] == [1, 1, 2]


def test_a_named_reference_rater_is_read_though_the_filters_leave_it_out() -> None:
    table = jury(50)
    summary = agree(table, kinds=["ai"], against="human", bootstrap=0)
    assert [row["name"] for row in summary["raters"]] == ["coin", "gpt"] and len(summary["against"]) == 2
    assert row_of(summary["against"], "gpt")["accuracy"] == row_of(agree(table, bootstrap=0)["against"], "gpt")["accuracy"]
    assert agree(table, raters=["gpt"], against="person 1", bootstrap=0)["yardstick"] == "person 1"
    assert agree(table, kinds=["ai"], bootstrap=0)["yardstick"] is None


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(st.randoms(use_true_random=False))
def test_no_order_matters(order: random.Random) -> None:
    """Rows, rows cut in two, completions of a row, grades of a row: the summary is the same to the last digit."""
    rng = np.random.default_rng(3)
    rows: list[Row] = []
    for i in range(6):
        grades = [said(who, a, b, float(rng.integers(-3, 4)), kind) for who, kind in (("x", "human"), ("y", "human"), ("gpt", "ai"))
                  for a, b in ((0, 1), (1, 0), (2, 1))]  # fmt: skip
        grades += [rated("gpt", k, float(rng.integers(1, 6))) for k in range(3)]
        rows.append((f"p{i}", [f"A{i}", f"longer B{i}", f"C{i * 1000}"], grades))
    shuffled: list[Row] = []
    for prompt, texts, grades in rows:
        places = order.sample(range(3), 3)
        moved = [{k: places[v] if k in ("first", "second", "completion") else v for k, v in grade.items()} for grade in grades]
        order.shuffle(moved)
        cut = order.randrange(len(moved))
        texts = [texts[places.index(place)] for place in range(3)]
        shuffled += [(prompt, texts, moved[:cut]), (prompt, texts, moved[cut:])]
    order.shuffle(shuffled)
    assert agree(table_of(shuffled), bootstrap=30) == agree(table_of(rows), bootstrap=30)


TWO = feedback([said("ann", 0, 1, 1), said("bob", 1, 2, 1, aspect="style")], texts="ABC")
JUDGE = feedback([rated("gpt", 0, 4), rated("gpt", 1, 4)])
SCALES = feedback([rated("gpt", 0, 4), rated("gpt", 1, 4, low=1.0, high=10.0)])


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (TWO, {"raters": ["anna"]}, "unknown --rater 'anna'; did you mean 'ann'"),
        (TWO, {"against": "bobb"}, "unknown --against 'bobb'; did you mean 'bob'"),
        (TWO, {"kinds": ["ai"]}, "unknown --kind 'ai'"),
        (TWO, {"aspects": ["tone"]}, "unknown --aspect 'tone'"),
        (TWO, {"evidence": "votes"}, "unknown evidence"),
        (TWO, {"evidence": "ratings"}, "holds no ratings; it has comparisons: use --from comparisons"),
        (TWO, {"raters": ["ann"], "aspects": ["style"]}, "together"),
        (TWO, {"bootstrap": -1}, "--bootstrap -1"),
        (TWO, {}, r"no two raters graded the same pair .*ann \(1 pairs; aspects overall\); bob \(1 pairs; aspects style\)"),
        (SCALES, {}, r"of rater gpt, aspect overall, are on several scales: 1..10, 1..5"),
        (JUDGE, {"against": "human"}, r"no grade is by a person\. Raters: gpt"),
        (feedback([]), {}, "no grades, only candidates"),
        (TWO.drop_columns(["ratings"]), {}, "lacks ratings"),
    ],
)
def test_errors_say_what_is_there(table: pa.Table, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        agree(table, **options)
