"""The formats with fixed columns, on rows written by hand after their data cards and on real rows."""

import json
import os
from math import log
from typing import Any

import pytest
from source_cases import DATA, add, collected, dropped, reasons, ultrafeedback
from source_cases import ratings as grades

from mmpo.pipeline.sources import FeedbackBuilder, SourceOptions, get_source, log_odds
from mmpo.pipeline.tables import prompt_id

REAL = os.environ.get("MMPO_REAL_DATA")
needs_real_data = pytest.mark.skipif(not REAL, reason="MMPO_REAL_DATA names no folder with the larger real files")


# UltraFeedback


def test_ultrafeedback_grades_overall_and_aspects_on_their_scales() -> None:
    row, rejects = add("ultrafeedback", ultrafeedback())
    assert row["prompt_id"] == prompt_id([{"role": "user", "content": "Ask"}])
    assert grades(row) == [
        (0, "gpt-4", "ai", "helpfulness", 2.0, 1.0, 5.0),
        (0, "gpt-4", "ai", "truthfulness", 4.0, 1.0, 5.0),
        (0, "gpt-4", "ai", "truthfulness", 3.5, 1.0, 5.0),
        (0, "gpt-4", "ai", "instruction_following", 5.0, 1.0, 5.0),
        (0, "gpt-4", "ai", "overall", 7.5, 1.0, 10.0),
    ]
    assert [rating["note"] for rating in row["ratings"]] == ["why 2", None, None, None, "fine"]
    assert rejects == ["not_applicable"]


def test_ultrafeedback_ten_for_one_is_dropped_or_repaired_and_never_limited() -> None:
    # The aspects 2, 4, 3.5 and 5 average 3.625 <= 4; moved from 1-5 to 1-10 that is 1 + 2.625 * 9 / 4 = 6.90625.
    broken = ultrafeedback(overall_score=10)
    row, rejects = add("ultrafeedback", broken)
    assert rejects == ["not_applicable", "ten_for_one"]
    assert {rating["aspect"] for rating in row["ratings"]} == {"helpfulness", "truthfulness", "instruction_following"}
    row, rejects = add("ultrafeedback", broken, fix_known_defects=True)
    assert rejects == ["not_applicable", "ten_for_one_repaired"]
    assert grades(row)[-1] == (0, "gpt-4", "ai", "overall", 6.90625, 1.0, 10.0)
    out = FeedbackBuilder("x")
    out.at("f", 1)
    get_source("ultrafeedback").parser(broken, SourceOptions(), "f")(broken, out)
    assert not out.limited_rows


def test_ultrafeedback_a_ten_with_good_aspects_or_none_stays() -> None:
    good = {"honesty": {"Rating": "5"}, "helpfulness": {"Rating": "4"}}
    assert grades(add("ultrafeedback", ultrafeedback(overall_score=10, annotations=good))[0])[-1][4] == 10
    assert grades(add("ultrafeedback", ultrafeedback(overall_score="10", annotations=None))[0])[-1][4] == 10
    exactly = {"honesty": {"Rating": "4"}}
    assert add("ultrafeedback", ultrafeedback(overall_score=10, annotations=exactly))[1] == ["ten_for_one"]


@pytest.mark.parametrize(
    ("score", "reason"),
    [
        (True, "score_not_a_number"),
        ("good", "score_not_a_number"),
        (11, "score_out_of_scale"),
        (float("nan"), "score_not_a_number"),
    ],
)
def test_ultrafeedback_a_bad_grade_costs_one_grade(score: Any, reason: str) -> None:
    row, rejects = add("ultrafeedback", ultrafeedback(overall_score=score, annotations={"honesty": {"Rating": "5"}}))
    assert len(row["ratings"]) == 1 and rejects == [reason]


def test_ultrafeedback_flags_truthful_qa_and_takes_what_is_missing() -> None:
    row, rejects = add(
        "ultrafeedback",
        {
            "source": "truthful_qa",
            "instruction": "Ask",
            "completions": [
                {"model": "a", "response": "one", "overall_score": None},
                {"model": "b", "response": "", "overall_score": 3},
                {"model": "c", "response": "two", "overall_score": "3", "annotations": {"honesty": None}},
            ],
        },
    )
    assert json.loads(row["extra"]) == {"source": "truthful_qa", "contaminates": "truthful_qa"}
    assert grades(row) == [(1, "gpt-4", "ai", "overall", 3.0, 1.0, 10.0)]
    assert rejects == ["empty_completion"]


# Binarised UltraFeedback


def conversation(prompt: str, reply: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]


def binarized(**changed: Any) -> dict[str, Any]:
    row = {"prompt": "Ask", "chosen": conversation("Ask", "good"), "rejected": conversation("Ask", "bad")}
    return {**row, "score_chosen": 8.0, "score_rejected": 6.5, **changed}


def test_binarized_pairs_are_two_ratings() -> None:
    row, rejects = add("ultrafeedback-binarized", binarized())
    assert row["prompt"] == [{"role": "user", "content": "Ask"}]
    assert [completion["text"] for completion in row["completions"]] == ["good", "bad"]
    assert grades(row) == [(0, "gpt-4", "ai", "overall", 8.0, 1.0, 10.0), (1, "gpt-4", "ai", "overall", 6.5, 1.0, 10.0)]
    assert rejects == []


@pytest.mark.parametrize("columns", [("chosen-rating", "rejected-rating"), ("chosen_avg_rating", "rejected_avg_rating")])
def test_binarized_argilla_has_means_from_1_to_5(columns: tuple[str, str]) -> None:
    row = {"prompt": "Ask", "chosen": "good", "rejected": "bad", "chosen-model": "m", columns[0]: 4.75, columns[1]: 3}
    feedback, _ = add("ultrafeedback-binarized", row)
    assert [grade[4:] for grade in grades(feedback)] == [(4.75, 1.0, 5.0), (3.0, 1.0, 5.0)]
    assert [completion["model"] for completion in feedback["completions"]] == ["m", None]


def test_binarized_swapped_scores_are_repaired_where_asked_for() -> None:
    row, rejects = add("ultrafeedback-binarized", binarized(score_chosen=3.0), fix_known_defects=True)
    assert [grade[4] for grade in grades(row)] == [3.0, 6.5] and rejects == ["chosen_scored_lower_repaired"]


def test_binarized_sample() -> None:
    # Of the 240 pairs two have the same text on both sides; every other one gives two completions and two grades.
    result = collected(DATA / "ultrafeedback_pairs.jsonl", "ultrafeedback-binarized")
    assert (result.lines, result.dropped, result.limited) == (240, 2, 0)
    assert result.counts == {"prompt": 238, "completion": 476, "grade": 476, "merged": 0}
    assert reasons(result) == {"identical_texts": 2}
    first = json.loads((DATA / "ultrafeedback_pairs.jsonl").read_text().split("\n")[0])
    row = result.feedback.slice(0, 1).to_pylist()[0]
    assert row["prompt"][0]["content"] == first["prompt"]
    assert [rating["score"] for rating in row["ratings"]] == [first["score_chosen"], first["score_rejected"]]


# SHP


def shp(**changed: Any) -> dict[str, Any]:
    row = {"post_id": "p", "domain": "askacademia_train", "history": "Ask", "human_ref_A": "a", "human_ref_B": "b"}
    return {**row, "score_A": 52, "score_B": 54, "labels": 0, **changed}


def test_shp_votes_are_human_ratings_without_bounds() -> None:
    row, rejects = add("shp", shp())
    rater = ("votes", "human", "overall")
    assert grades(row) == [(0, *rater, 52.0, None, None), (1, *rater, 54.0, None, None)]
    assert json.loads(row["extra"]) == {"domain": "askacademia_train", "post_id": "p"} and rejects == []
    assert add("shp", shp(score_A=-3, score_B=-3))[1] == []


def test_shp_defects() -> None:
    row, rejects = add("shp", shp(labels=1), fix_known_defects=True)
    assert len(row["ratings"]) == 2 and rejects == ["label_disagrees_repaired"]
    row, rejects = add("shp", shp(human_ref_A="[deleted]"))
    assert [completion["text"] for completion in row["completions"]] == ["b"] and rejects == ["deleted_text"]


# AlpacaEval


def alpaca(preference: Any, **changed: Any) -> dict[str, Any]:
    row = {"instruction": "Ask", "output_1": "reference", "output_2": "ours", "generator_1": "gpt4", "generator_2": "m"}
    return {**row, "annotator": "judge", "preference": preference, **changed}


def test_alpaca_eval_is_a_star_of_ratings_around_the_reference() -> None:
    # P = .8: log(.8 / .2) = log 4
    row, rejects = add("alpaca-eval", alpaca(1.8))
    (reference, output) = grades(row)
    assert reference == (0, "judge", "ai", "overall", 0.0, -6.0, 6.0)
    assert output[:4] == (1, "judge", "ai", "overall") and output[4] == pytest.approx(log(4), abs=1e-12)
    assert [completion["model"] for completion in row["completions"]] == ["gpt4", "m"] and rejects == []
    assert [log_odds(value) for value in (1, 1.0001, 1.5, 1.9999, 2)] == [-6, -6, 0, 6, 6]


# Rows that are dropped whole: a known defect of the data counts against no limit

BAD: dict[str, list[tuple[dict[str, Any], str, bool]]] = {
    "ultrafeedback": [
        ({"instruction": "Ask", "completions": None}, "malformed_row", True),
        ({"instruction": None, "completions": []}, "not_text", True),
    ],
    "ultrafeedback-binarized": [
        (binarized(score_chosen=3.0), "chosen_scored_lower", False),
        (binarized(rejected=conversation("Ask", "good")), "identical_texts", False),
        (binarized(rejected=conversation("Something else", "bad")), "different_prompts", False),
        (binarized(score_chosen="8"), "score_not_a_number", True),
        (binarized(score_rejected=float("nan")), "score_not_a_number", True),
        (binarized(score_chosen=11), "score_out_of_scale", True),
        (binarized(chosen=conversation("Ask", " ")), "empty_completion", True),
        (binarized(chosen=[{"role": "user", "content": "Ask"}]), "last_message_not_assistant", True),
        (binarized(chosen=3), "not_text", True),
    ],
    "shp": [
        (shp(labels=1), "label_disagrees", False),
        (shp(history="[removed]"), "deleted_text", False),
        (shp(score_A="52"), "score_not_a_number", True),
    ],
    "alpaca-eval": [
        (alpaca(None), "not_annotated", False),
        (alpaca(0), "not_annotated", False),
        (alpaca(1.5, output_2="reference"), "identical_texts", False),
        (alpaca(2.5), "score_out_of_scale", True),
        (alpaca("1.5"), "score_not_a_number", True),
        (alpaca(float("nan")), "score_not_a_number", True),
        (alpaca(True), "score_not_a_number", True),
    ],
}


@pytest.mark.parametrize(("format", "row", "reason", "limited"), [(name, *bad) for name, rows in BAD.items() for bad in rows])
def test_rows_that_can_not_be_used(format: str, row: dict[str, Any], reason: str, limited: bool) -> None:
    assert dropped(format, row) == (reason, limited)
