"""The stages one by one on tables small enough to work out by hand."""

import math
from typing import Any

import pyarrow as pa
import pytest
from panels import Grade, feedback

from mmpo.pipeline import UserError, build_pairs, write_dataset
from mmpo.pipeline.arrow import narrow
from mmpo.pipeline.pairs import split_position
from mmpo.pipeline.sources import FeedbackBuilder
from mmpo.pipeline.storage import RowAccounting


def scored(**scores: float | tuple[float, ...]) -> pa.Table:
    """FEEDBACK of one prompt: scores of each completion by rater r0, or by raters r0, r1, ..., from 0 to 10."""
    several = {text: score if isinstance(score, tuple) else (score,) for text, score in scores.items()}
    return rated(*((f"r{i}", text, score) for text, values in several.items() for i, score in enumerate(values)))


def rated(*grades: Grade, **more: Any) -> pa.Table:
    return feedback([grades], **{"low": 0, "high": 10} | more)


def compared(*gaps: Grade) -> pa.Table:
    return feedback([gaps], limit=3)


def margins(table, **options):
    rows = build_pairs(table, **options).to_pylist()
    return {(row["chosen"][0]["content"], row["rejected"][0]["content"]): row["quality_margin"] for row in rows}


ASPECTS = rated(("r/x", "a", 8), ("r/y", "a", 2), ("r/x", "b", 4), ("r/y", "b", 4), ("r", "a", 9))
SEVERAL = scored(a=(1, 9, 8), b=(0, 0, 6))


@pytest.mark.parametrize(
    ("table", "options", "expected"),
    [
        (ASPECTS, {"score": "x"}, {"ab": 4}),
        (ASPECTS, {"score": "x=0.5,y=-1"}, {"ab": 0.5 * 4 + 2}),
        (ASPECTS, {"score": "mean"}, {"ab": 1}),
        # b lacks y, so y may not lift a: x alone gives 4, with y it would be (8 + 10)/2 - 4 = 5
        (rated(("r/x", "a", 8), ("r/y", "a", 10), ("r/x", "b", 4)), {"score": "mean"}, {"ab": 4}),
        # r says 1 three times and s says 9 once: the mean over raters is 5, not 3
        (rated(*[("r", "a", 1.0)] * 3, ("s", "a", 9), ("r", "b", 0), ("s", "b", 0)), {}, {"ab": 5}),
        (SEVERAL, {"merge_raters": "median"}, {"ab": 8}),
        (SEVERAL, {}, {"ab": 4}),
        (scored(a=10, b=5), {"normalise": "minmax"}, {"ab": 0.5}),
        (scored(a=10, b=5), {"normalise": "log"}, {"ab": math.log(2)}),
        # mean 7.5, standard deviation 2.5: z-scores 1 and -1
        (scored(a=10, b=5), {"normalise": "zscore"}, {"ab": 2}),
        # ranks from below: b and c share 1.5 -> .25, a has 3 -> 1
        (scored(a=9, b=5, c=5), {"normalise": "rank", "ties": "drop"}, {"ab": 0.75, "ac": 0.75}),
        # position bias +1: shown first a gets 2 + 1, shown second (as b first) -2 + 1; the order asked twice does not tilt it
        (compared(("j", "a", "b", 3), ("j", "a", "b", 3), ("j", "b", "a", -1)), {}, {"ab": 2}),
        (compared(("j", "a", "b", -2)), {}, {"ba": 2}),
    ],
)
def test_margins_by_hand(table: pa.Table, options: dict[str, Any], expected: dict[str, float]) -> None:
    assert margins(table, **options) == {tuple(pair): pytest.approx(margin) for pair, margin in expected.items()}


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (ASPECTS, {"score": "z"}, "no grade has the aspect 'z'"),
        (rated(("r", "a", 1), ("r", "b", 2), low=None, high=None), {"normalise": "minmax"}, "needs a declared scale"),
        (scored(a=0, b=2), {"normalise": "log"}, "needs scores > 0"),
        (compared(("j", "a", "b", 2)), {"normalise": "rank"}, "rank is for scores"),
        (compared(("j", "a", "b", 2)), {"strategy": "best-worst"}, "needs a score for each completion"),
    ],
)
def test_what_grades_do_not_allow(table: pa.Table, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_pairs(table, **options)


def test_a_single_judges_spread_follows_the_delta_method() -> None:
    table = rated(("r", "a", 8), ("r", "b", 4), spread=0.6)
    assert build_pairs(table)["margin_se"].to_pylist() == [pytest.approx(math.sqrt(2) * 0.6)]
    assert build_pairs(table, normalise="minmax")["margin_se"].to_pylist() == [pytest.approx(math.sqrt(2) * 0.06)]
    assert build_pairs(table, normalise="log")["margin_se"].to_pylist() == [pytest.approx(math.hypot(0.6 / 8, 0.6 / 4))]


def test_votes_count_ties_half_rounded_down_and_make_no_scores() -> None:
    row = build_pairs(compared(*((rater, "a", "b", gap) for rater, gap in zip("rstuv", (2, 0, -1, 0, 0))))).to_pylist()[0]
    assert (row["preferring"], row["raters"], row["chosen"][0]["content"], row["score_chosen"]) == (2, 5, "a", None)


def test_of_a_tie_the_smaller_id_is_chosen_and_filters_apply() -> None:
    table = rated(("r", "a", 5), ("r", "b", 5), ("r", "c" * 50, 7))
    rows = build_pairs(table).to_pylist()
    tie = next(row for row in rows if row["quality_margin"] == 0)
    assert tie["chosen_id"] < tie["rejected_id"]
    assert set(margins(table, ties="drop").values()) == {2}
    assert set(margins(table, max_chars=20)) == {(tie["chosen"][0]["content"], tie["rejected"][0]["content"])}
    assert len(margins(table, min_margin=1)) == 2
    assert len(margins(table, max_per_prompt=1)) == 1


def test_stratified_spreads_over_margins() -> None:
    """Thirty completions with scores 0..29 have 29 pairs of margin 1 and one of 29: five pairs fall into five different fifths."""
    table = rated(*(("r", f"answer {i}", float(i)) for i in range(30)), high=30)
    found = sorted(margins(table, strategy="stratified", max_per_prompt=5).values())
    assert [int(5 * (margin - 1) / 28) if margin < 29 else 4 for margin in found] == [0, 1, 2, 3, 4]


def test_the_split_follows_the_first_user_message_alone(tmp_path) -> None:
    out = FeedbackBuilder("made")
    for system in ("be brief", "be kind", "be bold"):
        out.prompt([{"role": "system", "content": system}, {"role": "user", "content": "the same question"}])
        for text, score in (("a", 1), ("b", 2)):
            out.rating(out.completion(text), score, rater="r")
    summary = write_dataset(build_pairs(narrow(out.finish())), tmp_path / "out")
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
