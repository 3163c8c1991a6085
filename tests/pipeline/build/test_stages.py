"""The stages one by one on tables small enough to work out by hand."""

import math

import pyarrow as pa
import pytest

from mmpo.pipeline import UserError, build_pairs, write_dataset
from mmpo.pipeline.arrow import narrow
from mmpo.pipeline.pairs import split_position
from mmpo.pipeline.sources import FeedbackBuilder
from mmpo.pipeline.storage import RowAccounting
from mmpo.pipeline.tables import FEEDBACK

Grade = tuple[str, str, str, float]


def feedback(*grades: Grade, low: float | None = 0, high: float | None = 10, spread: float | None = None) -> pa.Table:
    """FEEDBACK of one prompt from (completion, rater, aspect, score)."""
    out = FeedbackBuilder("made")
    out.prompt("question")
    for text, rater, aspect, score in grades:
        out.rating(out.completion(text), score, rater=rater, aspect=aspect, low=low, high=high, spread=spread)
    return narrow(out.finish(), FEEDBACK)


def scored(**scores: float | tuple[float, ...]) -> pa.Table:
    """FEEDBACK of one prompt: overall scores of each completion by rater r, or by raters r0, r1, ..."""
    several = {text: score if isinstance(score, tuple) else (score,) for text, score in scores.items()}
    return feedback(*((text, f"r{i}", "overall", score) for text, values in several.items() for i, score in enumerate(values)))


def compared(*gaps: tuple[str, str, float, str]) -> pa.Table:
    """FEEDBACK of one prompt from (shown first, shown second, gap, rater)."""
    out = FeedbackBuilder("made")
    out.prompt("question")
    for first, second, gap, rater in gaps:
        out.comparison(out.completion(first), out.completion(second), gap, rater=rater, limit=3)
    return narrow(out.finish(), FEEDBACK)


def margins(table, **options):
    rows = build_pairs(table, **options).to_pylist()
    return {(row["chosen"][0]["content"], row["rejected"][0]["content"]): row["quality_margin"] for row in rows}


def test_aspects_merge_by_weights_and_by_mean() -> None:
    table = feedback(("a", "r", "x", 8), ("a", "r", "y", 2), ("b", "r", "x", 4), ("b", "r", "y", 4), ("a", "r", "overall", 9))
    assert margins(table, score="x") == {("a", "b"): 4}
    assert margins(table, score="x=0.5,y=-1") == {("a", "b"): pytest.approx(0.5 * 4 + 2)}
    assert margins(table, score="mean") == {("a", "b"): pytest.approx(1)}
    with pytest.raises(UserError, match="no grade has the aspect 'z'"):
        build_pairs(table, score="z")


def test_the_mean_uses_only_aspects_that_every_kept_completion_has() -> None:
    """b lacks y, so y may not lift a: x alone gives 4, with y it would be (8 + 10)/2 - 4 = 5."""
    assert margins(feedback(("a", "r", "x", 8), ("a", "r", "y", 10), ("b", "r", "x", 4)), score="mean") == {("a", "b"): 4}


def test_repeats_average_before_raters_do() -> None:
    """r says 1 three times and s says 9 once: the mean over raters is 5, not 3."""
    table = feedback(
        *[("a", "r", "overall", 1.0)] * 3, ("a", "s", "overall", 9), ("b", "r", "overall", 0), ("b", "s", "overall", 0)
    )
    assert margins(table) == {("a", "b"): 5}


def test_median_over_raters() -> None:
    table = scored(a=(1, 9, 8), b=(0, 0, 6))
    assert margins(table, merge_raters="median") == {("a", "b"): 8}
    assert margins(table) == {("a", "b"): pytest.approx(4)}


@pytest.mark.parametrize(
    ("normalise", "expected"),
    [("minmax", 0.5), ("log", math.log(2)), ("zscore", 2)],  # mean 7.5, standard deviation 2.5: z-scores 1 and -1
)
def test_normalisations_by_hand(normalise: str, expected: float) -> None:
    assert margins(scored(a=10, b=5), normalise=normalise) == {("a", "b"): pytest.approx(expected)}


def test_ranks_by_hand_and_normalisations_that_grades_do_not_allow() -> None:
    # ranks from below: b and c share 1.5 -> .25, a has 3 -> 1
    assert sorted(margins(scored(a=9, b=5, c=5), normalise="rank").values()) == [0, 0.75, 0.75]
    with pytest.raises(UserError, match="needs a declared scale"):
        build_pairs(feedback(("a", "r", "overall", 1), ("b", "r", "overall", 2), low=None, high=None), normalise="minmax")
    with pytest.raises(UserError, match="needs scores > 0"):
        build_pairs(scored(a=0, b=2), normalise="log")


def test_a_single_judges_spread_follows_the_delta_method() -> None:
    table = feedback(("a", "r", "overall", 8), ("b", "r", "overall", 4), spread=0.6)
    assert build_pairs(table)["margin_se"].to_pylist() == [pytest.approx(math.sqrt(2) * 0.6)]
    assert build_pairs(table, normalise="minmax")["margin_se"].to_pylist() == [pytest.approx(math.sqrt(2) * 0.06)]
    assert build_pairs(table, normalise="log")["margin_se"].to_pylist() == [pytest.approx(math.hypot(0.6 / 8, 0.6 / 4))]


def test_two_orders_of_a_comparison_average_to_the_debiased_gap() -> None:
    """Position bias +1: shown first a gets 2 + 1, shown second (as b first) -2 + 1. The order asked twice does not tilt it."""
    assert margins(compared(("a", "b", 3, "j"), ("a", "b", 3, "j"), ("b", "a", -1, "j"))) == {("a", "b"): 2}
    assert margins(compared(("a", "b", -2, "j"))) == {("b", "a"): 2}
    assert build_pairs(compared(("a", "b", 2, "j")))["score_chosen"].to_pylist() == [None]
    with pytest.raises(UserError, match="needs a score for each completion"):
        build_pairs(compared(("a", "b", 2, "j")), strategy="best-worst")


def test_votes_count_ties_half_rounded_down() -> None:
    table = compared(("a", "b", 2, "r"), ("a", "b", 0, "s"), ("a", "b", -1, "t"), ("a", "b", 0, "u"), ("a", "b", 0, "v"))
    row = build_pairs(table).to_pylist()[0]
    assert (row["preferring"], row["raters"], row["chosen"][0]["content"]) == (2, 5, "a")


def test_of_a_tie_the_smaller_id_is_chosen_and_filters_apply() -> None:
    table = feedback(("a", "r", "overall", 5), ("b", "r", "overall", 5), ("c" * 50, "r", "overall", 7))
    rows = build_pairs(table).to_pylist()
    tie = next(row for row in rows if row["quality_margin"] == 0)
    assert tie["chosen_id"] < tie["rejected_id"]
    assert set(margins(table, ties="drop").values()) == {2}
    assert set(margins(table, max_chars=20)) == {(tie["chosen"][0]["content"], tie["rejected"][0]["content"])}
    assert len(margins(table, min_margin=1)) == 2
    assert len(margins(table, max_per_prompt=1)) == 1


def test_stratified_spreads_over_margins() -> None:
    """Thirty completions with scores 0..29 have 29 pairs of margin 1 and one of 29: five pairs fall into five different fifths."""
    table = feedback(*((f"answer {i}", "r", "overall", float(i)) for i in range(30)), high=30)
    found = sorted(margins(table, strategy="stratified", max_per_prompt=5).values())
    assert [int(5 * (margin - 1) / 28) if margin < 29 else 4 for margin in found] == [0, 1, 2, 3, 4]


def test_the_split_follows_the_first_user_message_alone(tmp_path) -> None:
    out = FeedbackBuilder("made")
    for system in ("be brief", "be kind", "be bold"):
        out.prompt([{"role": "system", "content": system}, {"role": "user", "content": "the same question"}])
        for text, score in (("a", 1), ("b", 2)):
            out.rating(out.completion(text), score, rater="r")
    summary = write_dataset(build_pairs(narrow(out.finish(), FEEDBACK)), tmp_path / "out")
    side = split_position("the same question")
    expected = "train" if side < 0.9 else "validation" if side < 0.95 else "test"
    assert summary["pairs"] == {name: 3 * (name == expected) for name in ("train", "validation", "test")}


def test_an_imbalance_stops_the_build() -> None:
    accounting = RowAccounting()
    accounting.count("source", "line", into=3, out=2, dropped={"malformed_json": 1})
    accounting.check()
    accounting.count("source", "line", into=1)
    with pytest.raises(RuntimeError, match="do not balance"):
        accounting.check()
