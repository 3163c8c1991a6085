"""Raters at a glance: the statistics of `agree` beside the mean of the others, aspects beside one another, who said what; and very
many raters."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from grade_cases import feedback, rated, said, table_of

from mmpo.annotate.agreement import agree, overview_or_reason, rater_overview
from mmpo.pipeline.tables import completion_id, user_prompt_id


def panel(raters: int, prompts: int = 40, bad: int = 0) -> pa.Table:
    """Raters of three replies to each prompt who see the same quality with noise; the last `bad` ones see its opposite."""
    draw = np.random.default_rng(3)
    quality = draw.normal(0, 1, (prompts, 3))
    rows = []
    for prompt in range(prompts):
        grades = []
        for rater in range(raters):
            sign = -1 if rater >= raters - bad else 1
            grades += [
                {
                    "completion": reply,
                    "score": float(np.round(sign * quality[prompt, reply] + draw.normal(0, 0.5), 1)),
                    "rater": f"r{rater}",
                    "kind": "human",
                }
                for reply in range(3)
            ]
        rows.append((f"q{prompt}", [f"a{prompt}", f"b{prompt}", f"c{prompt}"], grades))
    return table_of(rows)


def test_two_raters_are_what_agree_says_of_them() -> None:
    table = panel(2)
    overview, found = rater_overview(table), agree(table, bootstrap=0)
    [row] = found["pairs"]
    for one in overview.raters:
        assert (one["agrees"], one["spearman"], one["decided"]) == (row["accuracy"], row["spearman"], row["decided"])
        assert one["agrees_95"][0] < one["agrees"] < one["agrees_95"][1]
        assert (one["grades"], one["share"], one["pairs"]) == (120, 0.5, 120)
    severity = {row["name"]: row["severity"] for row in found["severity"]}
    assert {one["name"]: one["severity"] for one in overview.raters} == severity
    assert overview.raters[0]["severity"] == pytest.approx(-overview.raters[1]["severity"])
    assert overview.overall is not None and overview.overall["alpha_interval"] == found["overall"]["all"]["alpha_interval"]


def test_a_rater_whose_scale_is_upside_down_stands_out() -> None:
    rows = {row["name"]: row for row in rater_overview(panel(5, bad=1)).raters}
    assert rows["r4"]["agrees_95"][1] < 0.3 and all(rows[f"r{i}"]["agrees_95"][0] > 0.7 for i in range(4))


def test_of_very_many_raters_the_busiest_and_the_worst_are_named() -> None:
    table = panel(400, prompts=12, bad=3)
    overview = rater_overview(table)
    names = [row["name"] for row in overview.raters]
    assert overview.counted == 400 and len(names) == 40
    assert {"r397", "r398", "r399"} <= set(names[30:])
    assert sum(row["share"] for row in overview.raters) == pytest.approx(0.1) and overview.busiest == pytest.approx(0.025)


def test_aspects_by_hand() -> None:
    """Of three pairs that one rater judges by two aspects two are decided both ways: once alike, once opposite. Another rater's words about
    the other aspect are set beside nothing."""
    texts = [said("gpt", 0, 1, 2, aspect="use"), said("gpt", 0, 1, 1, aspect="truth")]
    opposite = [said("gpt", 0, 1, 2, aspect="use"), said("gpt", 0, 1, -1, aspect="truth")]
    tie = [said("gpt", 0, 1, 0, aspect="use"), said("gpt", 0, 1, 1, aspect="truth"), said("ann", 0, 1, -3, aspect="use")]
    [row] = rater_overview(feedback(texts, opposite, tie)).aspects
    assert (row["first"], row["second"], row["pairs"], row["decided"], row["contradict"]) == ("truth", "use", 3, 2, 0.5)


def test_position_and_repeats_come_along() -> None:
    """Both orders: gaps of 2 toward the first shown and of −1 in the other order: a lean of (2 + −1)/2 toward it, a verdict that
    turns none."""
    rows = [
        [said("gpt", 0, 1, 2), said("gpt", 1, 0, -1), rated("ann", 0, 1), rated("ann", 0, 1), rated("ann", 1, 3)] for _ in range(6)
    ]
    found = {row["name"]: row for row in rater_overview(feedback(*rows)).raters}
    assert found["gpt"]["first"] == pytest.approx(0.5) and found["gpt"]["flips"] == 0
    assert (found["ann"]["same"], found["ann"]["again"], found["ann"]["first"]) == (1.0, 6, None)


def leaning(gaps: Sequence[float]) -> dict[str, Any]:
    """The row of a rater that leans so far toward the first shown of each prompt's pair, seen in both orders."""
    [row] = rater_overview(feedback(*([said("gpt", 0, 1, gap), said("gpt", 1, 0, gap)] for gap in gaps))).raters
    return row


def test_a_mean_of_few_or_of_equal_ones_has_no_interval() -> None:
    """Leans of 0, 1, 2, 0, 2: mean 1, s = 1, so ± t(4)/√5 = 2.776/2.236 = 1.2416."""
    assert leaning([0, 1, 2, 0, 2])["first_95"] == pytest.approx([-0.2416, 2.2416], abs=0.005)
    few, equal = leaning([-1, -1]), leaning([0.1] * 30)
    assert (few["first"], few["first_95"], equal["first_95"]) == (-1, None, None) and equal["first"] == pytest.approx(0.1)


def test_severity_s_interval_by_hand() -> None:
    """ann gives 1 less than bob to all of three replies of two prompts: six items, all alike. With one gap of 4: mean 1.5, s² = 1.5, so
    ± t(5)·√(1.5/6) = 2.571/2."""

    def severity(last: int) -> Any:
        grades = [[rated(who, place, 5 - (who == "ann")) for who in ("ann", "bob") for place in range(3)] for _ in range(2)]
        grades[1][2] = rated("ann", 2, last)
        return {row["name"]: row for row in rater_overview(feedback(*grades, texts="ABC")).raters}["ann"]

    assert (severity(4)["severity"], severity(4)["severity_95"]) == (1, None)
    assert severity(1)["severity_95"] == pytest.approx([1.5 - 2.571 / 2, 1.5 + 2.571 / 2], abs=0.005)


def test_who_said_what_of_a_pair() -> None:
    table = feedback([said("gpt", 0, 1, 2), rated("ann", 0, 1), rated("ann", 1, 4)])
    prompt = table["prompt"][0].as_py()[0]["content"]
    one, other = (completion_id(user_prompt_id(prompt), text) for text in "AB")
    overview = rater_overview(table)
    [there, back, nowhere] = overview.of_pairs([(one, other), (other, one), (one, "0" * 32)])
    assert {(row["rater"], row["margin"]) for row in there} == {("gpt", 2.0), ("ann", -3.0)}
    assert {(row["rater"], row["margin"]) for row in back} == {("gpt", -2.0), ("ann", 3.0)} and nowhere == []


def test_of_many_raters_every_verdict_is_there() -> None:
    table = feedback([said(f"r{i:02}", 0, 1, 1 if i else -1) for i in range(32)])
    one, other = (completion_id(user_prompt_id(table["prompt"][0].as_py()[0]["content"]), text) for text in "AB")
    [rows] = rater_overview(table).of_pairs([(one, other)])
    assert [(row["rater"], row["margin"]) for row in rows] == [(f"r{i:02}", 1.0 if i else -1.0) for i in range(32)]


def test_a_lone_rater_and_none() -> None:
    overview = rater_overview(feedback([rated("gpt", 0, 1), rated("gpt", 1, 2)]))
    [row] = overview.raters
    assert (row["agrees"], row["severity"], row["same"], overview.overall, overview.aspects) == (None, None, None, None, [])
    found, why = overview_or_reason(feedback([]))
    assert found is None and "grade" in why
