"""Every format: rows by hand after data cards and what they become, rows that are dropped, published files, refusals."""

import json
from math import inf, log
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folders import write_rows
from source_cases import DATA, add, collected, reasons, ultrafeedback

from mmpo.cli.main import run
from mmpo.pipeline.arrow import large, narrow, with_texts
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.grades import merge_prompts
from mmpo.pipeline.sources import (
    SOURCES,
    BadRow,
    FeedbackBuilder,
    SourceOptions,
    collect,
    collect_parts,
    get_source,
    log_odds,
    split_pair,
)
from mmpo.pipeline.storage import plan, resolve_inputs
from mmpo.pipeline.tables import prompt_id


def by(rater: str, kind: str, low: float | None = None, high: float | None = None) -> Any:
    """Ratings (completion, score, aspect) of a rater."""
    return lambda completion, score, aspect="overall": (completion, rater, kind, aspect, score, low, high)


GPT5, GPT10 = by("gpt-4", "ai", 1.0, 5.0), by("gpt-4", "ai", 1.0, 10.0)
JUDGE = by("judge", "ai", -16.0, 16.0)
PEOPLE, PEOPLE5, VOTES, AI5 = (
    by("people", "human"),
    by("people", "human", 1.0, 5.0),
    by("votes", "human"),
    by("people", "ai", 1.0, 5.0),
)
ASPECTS = [
    GPT5(0, 2.0, "helpfulness"),
    *(GPT5(0, score, "truthfulness") for score in (4.0, 3.5)),
    GPT5(0, 5.0, "instruction_following"),
]
ASKED = [{"role": "user", "content": "Ask"}]
CREATIVE, EMPTY = ("grade", "not_applicable"), ("completion", "empty_completion")
FIX, FIVE = {"fix_known_defects": True}, {"scale": (1.0, 5.0)}


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 9, texts)]


def binarized(**changed: Any) -> dict[str, Any]:
    row = {"prompt": "Ask", "chosen": talk("Ask", "good"), "rejected": talk("Ask", "bad")}
    return {**row, "score_chosen": 8.0, "score_rejected": 6.5, **changed}


def argilla(chosen: str, rejected: str) -> dict[str, Any]:
    return {"prompt": "Ask", "chosen": "good", "rejected": "bad", "chosen-model": "m", chosen: 4.75, rejected: 3}


def shp(**changed: Any) -> dict[str, Any]:
    row = {"post_id": "p", "domain": "askacademia_train", "history": "Ask", "human_ref_A": "a", "human_ref_B": "b"}
    return {**row, "score_A": 52, "score_B": 54, "labels": 0, **changed}


def alpaca(preference: Any, **changed: Any) -> dict[str, Any]:
    row = {"instruction": "Ask", "output_1": "reference", "output_2": "ours", "generator_1": "gpt4", "generator_2": "m"}
    return {**row, "annotator": "judge", "preference": preference, **changed}


def trl(chosen: Any, rejected: Any, **prompt: Any) -> dict[str, Any]:
    return {**prompt, "chosen": chosen, "rejected": rejected, "s1": 5, "s2": 2.5}


RATING = {"prompt": "Ask", "completion": "reply", "score": 4}
PROMPT = {"prompt": "Ask", "completions": ["a", "b", "a", ""], "scores": [1, None, 3, 2], "models": [*"mnop"]}
PAIR = {"prompt": "Ask", "chosen": "good", "rejected": "bad"}
COMPARISON = {"prompt": "Ask", "first": "a", "second": "b", "gap": -2}
TRUTHFUL = [
    {"model": "a", "response": "one", "overall_score": None},
    {"model": "b", "response": "", "overall_score": 3},
    {"model": "c", "response": "two", "overall_score": "3", "annotations": {"honesty": None}},
]
SYSTEM = [{"role": "system", "content": "Be kind"}, *ASKED]
TRL = {"columns": {"score_chosen": "s1", "score_rejected": "s2"}, "kind": "ai", **FIVE}

Case = tuple[str, dict[str, Any], dict[str, Any], list[Any], list[Any], dict[str, Any]]
# Name → format, row, options, ratings, what is dropped of the row, and what else holds; scores and gaps with their scales.
CASES: dict[str, Case] = {
    "ultrafeedback": ("ultrafeedback", ultrafeedback(), {}, [*ASPECTS, GPT10(0, 7.5)], [CREATIVE],
                      {"notes": ["why 2", None, None, None, "fine"], "prompt": ASKED}),
    # Where the aspects' mean is at most 4, a 10 is a 1 written wrongly.
    "ten for one": ("ultrafeedback", ultrafeedback(overall_score=10), {}, ASPECTS, [CREATIVE, ("grade", "ten_for_one")],
                    {"limited": False}),
    # The aspects 2, 4, 3.5 and 5 average 3.625; moved from 1-5 to 1-10 that is 1 + 2.625 * 9 / 4 = 6.90625.
    "ten for one repaired": ("ultrafeedback", ultrafeedback(overall_score=10), FIX, [*ASPECTS, GPT10(0, 6.90625)],
                             [CREATIVE, ("grade", "ten_for_one_repaired")], {}),
    "ten at four": ("ultrafeedback", ultrafeedback(overall_score=10, annotations={"honesty": {"Rating": "4"}}), {},
                    [GPT5(0, 4.0, "honesty")], [("grade", "ten_for_one")], {}),
    "a ten with good aspects": (
        "ultrafeedback",
        ultrafeedback(overall_score=10, annotations={"honesty": {"Rating": "5"}, "helpfulness": {"Rating": "4"}}), {},
        [GPT5(0, 5.0, "honesty"), GPT5(0, 4.0, "helpfulness"), GPT10(0, 10.0)], [], {}),
    "a ten alone": ("ultrafeedback", ultrafeedback(overall_score="10", annotations=None), {}, [GPT10(0, 10.0)], [], {}),
    **{f"bad grade {score}": (
        "ultrafeedback", ultrafeedback(overall_score=score, annotations={"honesty": {"Rating": "5"}}), {},
        [GPT5(0, 5.0, "honesty")], [("grade", "score_out_of_scale" if score == 11 else "score_not_a_number")], {})
       for score in (True, "good", 11, float("nan"))},
    "truthful_qa": ("ultrafeedback", {"source": "truthful_qa", "instruction": "Ask", "completions": TRUTHFUL}, {}, [GPT10(1, 3.0)],
                    [EMPTY], {"extra": {"source": "truthful_qa", "contaminates": "truthful_qa"}}),
    "binarized": ("ultrafeedback-binarized", binarized(), {}, [GPT10(0, 8.0), GPT10(1, 6.5)], [],
                  {"prompt": ASKED, "texts": ["good", "bad"]}),
    **{f"binarized {name}": ("ultrafeedback-binarized", argilla(*name), {}, [GPT5(0, 4.75), GPT5(1, 3.0)], [],
                             {"models": ["m", None]})
       for name in (("chosen-rating", "rejected-rating"), ("chosen_avg_rating", "rejected_avg_rating"))},
    "binarized repaired": ("ultrafeedback-binarized", binarized(score_chosen=3.0), FIX, [GPT10(0, 3.0), GPT10(1, 6.5)],
                           [("line", "chosen_scored_lower_repaired")], {}),
    "shp": ("shp", shp(), {}, [VOTES(0, 52.0), VOTES(1, 54.0)], [], {"extra": {"domain": "askacademia_train", "post_id": "p"}}),
    "shp below zero": ("shp", shp(score_A=-3, score_B=-3), {}, [VOTES(0, -3.0), VOTES(1, -3.0)], [], {}),
    "shp repaired": ("shp", shp(labels=1), FIX, [VOTES(0, 52.0), VOTES(1, 54.0)], [("line", "label_disagrees_repaired")], {}),
    "shp deleted": ("shp", shp(human_ref_A="[deleted]"), {}, [VOTES(0, 54.0)], [("completion", "deleted_text")], {"texts": ["b"]}),
    # P = .8: log(.8 / .2) = log 4, around the reference
    "alpaca-eval": ("alpaca-eval", alpaca(1.8), {}, [JUDGE(0, 0.0), JUDGE(1, pytest.approx(log(4), abs=1e-12))], [],
                    {"models": ["gpt4", "m"]}),
    "rating": ("jsonl", RATING, FIVE, [PEOPLE5(0, 4.0)], [], {}),
    "rating by": ("jsonl", RATING | {"model": "m", "rater": 7, "aspect": "style", "kind": "ai"}, {},
                  [by("7", "ai")(0, 4.0, "style")], [], {"models": ["m"]}),
    "rating of defaults": ("jsonl", RATING | {"rater": None, "aspect": None, "kind": None},
                           {"rater": "someone", "kind": "reward_model"}, [by("someone", "reward_model")(0, 4.0)], [], {}),
    "columns of other names, a prompt of messages": (
        "jsonl", {"q": SYSTEM, "a": "reply", "grade": 2.5, "score": "not this one"},
        {"columns": {"prompt": "q", "completion": "a", "score": "grade"}}, [PEOPLE(0, 2.5)], [], {"prompt": SYSTEM}),
    "no grade is no number": ("jsonl", RATING | {"score": None}, {}, [], [("grade", "no_grade")], {"texts": ["reply"]}),
    "prompt": ("jsonl", PROMPT, {}, [PEOPLE(0, 1.0), PEOPLE(0, 3.0)], [EMPTY, ("grade", "no_grade")],
               {"texts": ["a", "b"], "models": ["m", "n"]}),
    "prompt with bad grades": ("jsonl", PROMPT | {"scores": [1, "2", 9, 2]}, FIVE, [PEOPLE5(0, 1.0)],
                               [("grade", "score_not_a_number"), ("grade", "score_out_of_scale"), EMPTY], {}),
    "pair by scores": ("jsonl", PAIR | {"score_chosen": 2, "score_rejected": 3, "chosen_model": "m", "margin": 9}, {},
                       [PEOPLE(0, 2.0), PEOPLE(1, 3.0)], [], {"gaps": [], "models": ["m", None]}),
    "pair by its margin": ("jsonl", PAIR | {"margin": 1.5}, {"kind": "ai", **FIVE}, [], [],
                           {"gaps": [(0, 1, 1.5, 4.0, "people", "ai")]}),
    "pair by its margin when asked": (
        "jsonl", PAIR | {"score_chosen": 2, "score_rejected": 3, "margin": 9}, {"columns": {"margin": "margin"}}, [], [],
        {"gaps": [(0, 1, 9.0, None, "people", "human")]}),
    "comparison": ("jsonl", COMPARISON | {"rater": "r", "first_model": "m"}, {"scale": (-3.0, 3.0)}, [], [],
                   {"gaps": [(0, 1, -2.0, 3.0, "r", "human")]}),
    "trl by its margin": ("trl", PAIR | {"quality": 3}, {"columns": {"margin": "quality"}}, [], [],
                          {"gaps": [(0, 1, 3.0, None, "people", "human")]}),
    **{f"trl {number}": ("trl", row, TRL, [AI5(0, 5.0), AI5(1, 2.5)], [], {"prompt": ASKED, "texts": ["good", "bad"]})
       for number, row in enumerate([
           trl(talk("", "good")[1:], talk("", "bad")[1:], prompt=ASKED),
           trl(talk("Ask", "good"), talk("Ask", "bad"), prompt=ASKED),
           trl(talk("Ask", "good"), talk("Ask", "bad"), prompt="Ask"),
           trl(talk("Ask", "good"), talk("Ask", "bad")),
       ])},
    **{f"candidates {number}": (format, row, {"need_scores": False}, [], [], {"gaps": [], "texts": texts})
       for number, (format, row, texts) in enumerate([
           ("jsonl", {"prompt": "Ask", "completion": "a"}, ["a"]),
           ("jsonl", {"prompt": "Ask", "completions": ["a", "b"]}, ["a", "b"]),
           ("jsonl", {"prompt": "Ask", "first": "a", "second": "b"}, ["a", "b"]),
           ("jsonl", PAIR, ["good", "bad"]),
           ("trl", PAIR, ["good", "bad"]),
       ])},
    "candidates that have scores": ("jsonl", RATING, {"need_scores": False}, [PEOPLE(0, 4.0)], [], {}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_rows_become(case: str) -> None:
    format, row, options, ratings, rejects, more = CASES[case]
    added = add(format, row, **options)
    assert (added.ratings, added.rejects) == (ratings, rejects)
    told = {**added.told(), "gaps": added.gaps}
    assert {name: told[name] for name in more} == more
    assert added.row["prompt_id"] == prompt_id(added.row["prompt"])
    assert all(comparison["aspect"] == "overall" for comparison in added.row["comparisons"])


# Rows that are dropped whole: a known defect of the data counts against no limit (the last word)
LIMITED, KNOWN = True, False
BAD: dict[tuple[str, str], list[tuple[dict[str, Any], str, bool]]] = {
    ("ultrafeedback", ""): [
        ({"instruction": "Ask", "completions": None}, "malformed_row", LIMITED),
        ({"instruction": None, "completions": []}, "not_text", LIMITED),
    ],
    ("ultrafeedback-binarized", ""): [
        (binarized(score_chosen=3.0), "chosen_scored_lower", KNOWN),
        (binarized(rejected=talk("Ask", "good")), "identical_texts", KNOWN),
        (binarized(rejected=talk("Something else", "bad")), "different_prompts", KNOWN),
        (binarized(score_chosen="8"), "score_not_a_number", LIMITED),
        (binarized(score_rejected=float("nan")), "score_not_a_number", LIMITED),
        (binarized(score_chosen=11), "score_out_of_scale", LIMITED),
        (binarized(chosen=talk("Ask", " ")), "empty_completion", LIMITED),
        (binarized(chosen=ASKED), "last_message_not_assistant", LIMITED),
        (binarized(chosen=3), "not_text", LIMITED),
    ],
    ("shp", ""): [
        (shp(labels=1), "label_disagrees", KNOWN),
        (shp(history="[removed]"), "deleted_text", KNOWN),
        (shp(score_A="52"), "score_not_a_number", LIMITED),
    ],
    ("alpaca-eval", ""): [
        (alpaca(None), "not_annotated", KNOWN),
        (alpaca(0), "not_annotated", KNOWN),
        (alpaca(1.5, output_2="reference"), "identical_texts", KNOWN),
        (alpaca(2.5), "score_out_of_scale", LIMITED),
        *((alpaca(preference), "score_not_a_number", LIMITED) for preference in ("1.5", float("nan"), True)),
    ],
    ("trl", ""): [
        ({"chosen": "good", "rejected": "bad", "margin": 1}, "no_prompt", LIMITED),
        ({"chosen": talk("", "good")[1:], "rejected": talk("", "bad")[1:], "margin": 1}, "no_prompt", LIMITED),
        ({"chosen": talk("A", "good"), "rejected": talk("B", "bad"), "margin": 1}, "different_prompts", KNOWN),
        ({"chosen": talk("A", "good"), "rejected": talk("A", "good"), "margin": 1}, "identical_texts", KNOWN),
        ({"chosen": talk("A", "good"), "rejected": talk("A"), "margin": 1}, "last_message_not_assistant", LIMITED),
        ({"chosen": [], "rejected": talk("A", "b"), "margin": 1}, "empty_completion", LIMITED),
        ({"chosen": talk("A", "good"), "rejected": "bad", "margin": 1}, "not_text", LIMITED),
    ],
    ("jsonl", ""): [
        (PROMPT | {"scores": [1]}, "lengths_differ", LIMITED),
        (PROMPT | {"completions": "abcd"}, "not_a_list", LIMITED),
        (PAIR | {"rejected": "good", "score_chosen": 2, "score_rejected": 3}, "identical_texts", KNOWN),
        (COMPARISON | {"second": "a"}, "identical_texts", KNOWN),
    ],
    ("jsonl", "1:5"): [
        *((RATING | {"score": score}, "score_not_a_number", LIMITED)
          for score in ("4", True, float("nan"), float("-inf"), 10**400, [4])),
        *((RATING | {"score": score}, "score_out_of_scale", LIMITED) for score in (0, 6)),
        (RATING | {"completion": " \n"}, "empty_completion", LIMITED),
        (RATING | {"completion": None}, "not_text", LIMITED),
        (RATING | {"completion": "\ud800"}, "lone_surrogate", LIMITED),
        (RATING | {"prompt": ""}, "empty_prompt", LIMITED),
        (RATING | {"prompt": 5}, "not_text", LIMITED),
        (RATING | {"prompt": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, "malformed_tool_calls", LIMITED),
        (RATING | {"kind": "robot"}, "unknown_kind", LIMITED),
        (PAIR | {"margin": 4.5}, "score_out_of_scale", LIMITED),
    ],
    ("jsonl", "-3:3"): [(COMPARISON | {"gap": -4}, "score_out_of_scale", LIMITED)],
}  # fmt: skip


@pytest.mark.parametrize(
    ("format", "scale", "row", "reason", "limited"), [(*how, *bad) for how, rows in BAD.items() for bad in rows], ids=str
)
def test_rows_that_can_not_be_used(format: str, scale: str, row: dict[str, Any], reason: str, limited: bool) -> None:
    with pytest.raises(BadRow) as caught:
        add(format, row, scale=tuple(map(float, scale.split(":"))) if scale else None)
    assert (caught.value.reason, caught.value.limited) == (reason, limited)


@pytest.mark.parametrize(
    ("format", "row", "options", "told"),
    [
        ("jsonl", COMPARISON, FIVE, ["symmetric"]),
        *(("jsonl", CASES[f"candidates {number}"][1], {}, ["--feedback-only"]) for number in range(4)),
        ("jsonl", {"question": "Ask", "completion": "b", "score": 1}, {},
         ["people.jsonl", "one row per rating (prompt, completion, score) needs the column 'prompt'", "'question'", "--columns"]),
        ("jsonl", RATING, {"columns": {"score": "grade"}},
         ["'grade' (for score)", "Columns present: 'completion', 'prompt', 'score'"]),
        ("trl", PAIR | {"quality": 3}, {},
         ["Columns present: 'chosen', 'prompt', 'quality', 'rejected'", "--columns score_chosen=", "margin=COLUMN"]),
        ("trl", {"chosen": "a"}, {}, ["'rejected'"]),
    ],
)  # fmt: skip
def test_what_is_refused_names_columns(format: str, row: dict[str, Any], options: dict[str, Any], told: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        add(format, row, **options)
    assert not [words for words in told if words not in str(caught.value)]


def test_log_odds_have_no_end() -> None:
    assert [log_odds(value) for value in (1, 1.5, 2)] == [-inf, 0, inf]


def test_pairs_of_texts_and_of_messages() -> None:
    assert split_pair("Ask", "good", "bad") == ("Ask", "good", "bad")
    turns = talk("one", "two", "three")
    assert split_pair(None, [*turns, *talk("", "x")[1:]], [*turns, *talk("", "y")[1:]]) == (turns, "x", "y")


# Files


def test_a_column_missing_in_one_row_costs_that_row(tmp_path: Path) -> None:
    rows = [RATING, {"prompt": "Ask", "score": 1}, {"prompt": "A", "completion": "b"}]
    result = collected(write_rows(tmp_path / "rows.jsonl", rows), "jsonl")
    assert result.rejects.select(["reason", "row", "evidence"]).to_pylist() == [
        {"reason": "missing_column", "row": 2, "evidence": '{"missing":"completion"}'},
        {"reason": "missing_column", "row": 3, "evidence": '{"missing":"score"}'},
    ]
    assert (result.lines, result.dropped, result.limited, result.feedback.num_rows) == (3, 2, 2, 1)


def test_csv_cells_are_text_and_scores_still_numbers(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('prompt,completion,score\nAsk,"a, b",4.5\nAsk,b,\nAsk,c,good\nAsk,d,1_0\nAsk,e,nan\nAsk,f, 3 \n')
    result = collected(path, "csv", scale=(1.0, 5.0))
    rows = result.feedback.to_pylist()
    assert [(row["completions"][0]["text"], [r["score"] for r in row["ratings"]]) for row in rows] == [
        ("a, b", [4.5]),
        ("b", []),
        ("f", [3.0]),
    ]
    assert [(r["reason"], r["row"]) for r in result.rejects.to_pylist()] == [
        ("no_grade", 3),
        ("score_not_a_number", 4),
        ("score_not_a_number", 5),
        ("score_not_a_number", 6),
    ]
    (tmp_path / "wide.csv").write_text('prompt,completions,scores\nAsk,"[""a"", ""b""]","[1, 2]"\n')
    (row,) = collected(tmp_path / "wide.csv", "csv").feedback.to_pylist()
    assert [rating["score"] for rating in row["ratings"]] == [1.0, 2.0]


def test_a_chunk_in_parts_is_the_chunk(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    lines = [f"Ask {i},reply {i},{'bad' if i % 7 == 3 else i}" for i in range(200)]
    path.write_text("\n".join(["prompt,completion,score", *lines, "too,many,cells,here"]))
    (chunk,) = plan(resolve_inputs([path], "csv"))
    source = get_source("csv")
    whole = collect(chunk, source, SourceOptions())
    parts = list(collect_parts(chunk, source, SourceOptions(), part_chars=1000))
    assert len(parts) > 3 and (whole.lines, whole.dropped, whole.limited) == (201, 30, 30)
    assert pa.concat_tables([with_texts(part.feedback) for part in parts]).equals(with_texts(whole.feedback))
    assert pa.concat_tables([part.rejects for part in parts]).equals(whole.rejects)
    assert sum(part.lines for part in parts) == 201 and sum(part.limited for part in parts) == 30


@pytest.mark.parametrize(
    ("name", "format", "options", "lines", "prompts", "grades", "same_texts"),
    [
        ("arena_grades.jsonl.gz", "jsonl", {"scale": (1.0, 10.0), "kind": "ai"}, 2236, 120, 2236, 0),
        ("judge_samples.jsonl.gz", "jsonl", {"scale": (1.0, 5.0)}, 528, 45, 528, 0),
        ("human_graded_pairs.jsonl", "jsonl", {"scale": (-2.0, 2.0)}, 370, 183, 366, 4),
        # of the 240 pairs two have the same text on both sides; every other one gives two grades
        ("ultrafeedback_pairs.jsonl", "ultrafeedback-binarized", {}, 240, 238, 476, 2),
    ],
)
def test_samples(name: str, format: str, options: dict[str, Any], lines: int, prompts: int, grades: int, same_texts: int) -> None:
    result = collected(DATA / name, format, **options)
    assert (result.lines, result.dropped, result.limited) == (lines, same_texts, 0)
    assert (len(set(result.feedback["prompt_id"].to_pylist())), result.counts["grade"]) == (prompts, grades)
    assert reasons(result) == ({"identical_texts": same_texts} if same_texts else {})
    row = result.feedback.slice(0, 1).to_pylist()[0]
    if format != "jsonl":
        first = json.loads((DATA / name).read_text().split("\n")[0])
        assert row["prompt"][0]["content"] == first["prompt"]
        assert [rating["score"] for rating in row["ratings"]] == [first["score_chosen"], first["score_rejected"]]
    gaps = {comparison["gap"] for row in result.feedback.to_pylist() for comparison in row["comparisons"]}
    assert gaps == ({-2.0, -1.0, 0.0, 1.0, 2.0} if "pairs" in name and format == "jsonl" else set())
    assert sum(file.stat().st_size for file in DATA.iterdir()) < 3 << 20


# The family


@pytest.mark.parametrize(
    ("path", "lines", "found"),
    [
        ("claude-2/weighted_alpaca_eval_gpt4_turbo", 643, {"identical_texts": 1}),
        ("LMCocktail-10.7B-v1/alpaca_eval_gpt4", 83, {"not_annotated": 3}),
        ("Mistral-7B-Instruct-v0.2/alpaca_eval_cot_gpt4_turbo_fn", 80, {}),
    ],
)
def test_real_alpaca_eval(real_data: Path, path: str, lines: int, found: dict[str, int]) -> None:
    file = real_data / "raw/alpaca_eval/results" / path / "annotations.json"
    result = collected(file, "alpaca-eval")
    assert (result.lines, reasons(result), result.limited) == (lines, found, 0)
    kept = [row for row in json.loads(file.read_text()) if row["preference"] and row["output_1"] != row["output_2"]]
    scores = [row["ratings"][1]["score"] for row in result.feedback.to_pylist()]
    clipped = {1: -16.0, 2: 16.0}
    expected = [clipped[p] if p in clipped else max(-16, min(16, log((p - 1) / (2 - p)))) for p in (r["preference"] for r in kept)]
    assert scores == pytest.approx(expected, abs=1e-12)


def test_real_layouts(real_data: Path) -> None:
    layouts = real_data / "raw/layouts"
    assert collected(layouts / "shp_train.jsonl", "shp").counts["grade"] == 2
    # Four aspects; the row of the Hub also has an overall score.
    assert collected(layouts / "ultrafeedback_row_1completion.json", "ultrafeedback").counts["grade"] == 4
    row = collected(layouts / "ultrafeedback_row_HF_fields_truncated.json", "ultrafeedback").feedback.to_pylist()[0]
    assert json.loads(row["extra"])["contaminates"] == "truthful_qa"
    assert {rating["aspect"]: rating["score"] for rating in row["ratings"]} == (
        {"helpfulness": 4, "honesty": 5, "instruction_following": 4, "truthfulness": 5, "overall": 7.5}
    )


def test_a_wrong_format_names_columns_and_what_would_fit(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [ultrafeedback()])
    with pytest.raises(UserError) as caught:
        collected(path, "shp")
    for told in ("rows.jsonl", "'history'", "Columns present: 'completions', 'instruction'", "--format ultrafeedback"):
        assert told in str(caught.value)
    with pytest.raises(UserError, match="They fit --format jsonl"):
        collected(DATA / "human_graded_pairs.jsonl", "shp")


def test_columns_are_judged_on_the_first_rows_of_a_file_together(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"instruction": "no completions here"}, ultrafeedback()])
    result = collected(path, "ultrafeedback")
    assert (result.lines, result.dropped, result.limited, reasons(result)["malformed_row"]) == (2, 1, 1, 1)


@pytest.mark.parametrize(
    ("format", "options", "told"),
    [
        ("shp", {"columns": {"prompt": "history"}}, "fixed columns"),
        ("shp", {"scale": (1, 10)}, "scale of its own"),
        ("jsonl", {"columns": {"promt": "x"}}, "did you mean 'prompt'"),
        ("jsonl", {"scale": (10, 1)}, "must be the smaller"),
        ("jsonl", {"scale": (1, float("inf"))}, "both finite"),
        ("jsonl", {"kind": "robot"}, "human, ai, reward_model"),
        ("ultrafeedback", {"rater": "me"}, "takes no rater"),
        ("ultrafeedback-binarized", {"kind": "ai"}, "takes no kind"),
    ],
)
def test_options_that_mean_nothing_are_refused(tmp_path: Path, format: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        collected(write_rows(tmp_path / "rows.jsonl", [{}]), format, **options)


def test_names_of_formats(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["formats"]) == 0
    listed = capsys.readouterr().out
    assert [name for name in SOURCES if f"\n{name} " not in f"\n{listed}"] == []
    assert [name for name, source in SOURCES.items() if name != source.name or "\n" in source.summary] == []
    with pytest.raises(UserError, match="did you mean 'ultrafeedback'"):
        get_source("ultrafedback")
    assert get_source("mmpo.pipeline.sources.published.shp:parse_shp").parse is SOURCES["shp"].parse
    for name, told in (("no_such_module:f", "can't be imported"), ("json:f", "has no 'f'"), ("json:__name__", "no function")):
        with pytest.raises(UserError, match=told):
            get_source(name)


def test_feedback_is_read_as_it_is_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "part-00000.parquet"
    made = collected(DATA / "judge_samples.jsonl.gz", "jsonl", scale=(1.0, 5.0), kind="ai").feedback
    pq.write_table(narrow(made), path)
    result = collected(tmp_path, "feedback")
    assert result.feedback.equals(made) and result.counts["grade"] == made.num_rows
    row = made.slice(0, 1).to_pylist()[0]
    for change, told in (
        ({"score": 9.0}, "outside low..high"),
        ({"score": float("nan")}, "no finite number"),
        ({"completion": 1}, "none of the row's completions"),
        ({"kind": "robot"}, "kind"),
        ({"rater": None}, "no ratings.rater"),
    ):
        bad = {**row, "ratings": [{**row["ratings"][0], **change}]}
        pq.write_table(pa.Table.from_pylist([row, bad], made.schema), path)
        with pytest.raises(UserError, match=f"row 2:? .*{told}"):
            collected(tmp_path, "feedback")
    pq.write_table(made.drop_columns(["extra"]), path)
    with pytest.raises(UserError, match="'extra'"):
        collected(tmp_path, "feedback")


def test_a_text_that_rows_of_a_prompt_share_is_held_once_and_survives_rows_that_are_taken_back() -> None:
    out = FeedbackBuilder("made")
    long = "the reference reply " * 50
    for row, (others, bad) in enumerate([(["spoilt"], True), (["first"], False), (["second"], False), ([long + "."], False)], 1):
        out.at("rows.jsonl", row)
        out.prompt("Ask")
        for text in (long, *others):
            out.rating(out.completion(text), 1.0, rater="judge")
        if bad:
            out.drop(BadRow("spoilt"))
    held, whole = (narrow(out.finish(repeated=repeated)) for repeated in (False, True))
    texts = [[[one["text"] for one in row["completions"]] for row in table.to_pylist()] for table in (held, whole)]
    assert texts[0] == [[long, "first"], [None, "second"], [None, long + "."]]
    assert texts[1] == [[long, "first"], [long, "second"], [long, long + "."]]
    merged = {name: merge_prompts(large(table).combine_chunks())[0] for name, table in (("held", held), ("whole", whole))}
    assert merged["held"].equals(merged["whole"]) and merged["held"].num_rows == 1
    assert sorted(one["text"] for one in merged["held"]["completions"][0].as_py()) == sorted({long, "first", "second", long + "."})


def test_grades_alike_but_for_their_notes_have_one_order_too() -> None:
    """In FEEDBACK that is merged, whose files depend on that order."""
    grades = [(0, "b", None), (0, "a", 0.1), (0, None, 0.2), (1, "q", 1.0), (1, "q", 0.5), (0, "a", 0.05)]

    def row(some: list[tuple[int, str | None, float | None]]) -> pa.Table:
        out = FeedbackBuilder("test")
        out.prompt("Q")
        replies = [out.completion("one"), out.completion("two")]
        for at, note, spread in some:
            out.rating(replies[at], 3, rater="r", note=note, spread=spread)
            out.comparison(*replies, 1, rater="r", note=note, spread=spread)
        return out.finish()

    cuts = [(grades[:cut], grades[cut:]) for cut in range(7)]
    found = [merge_prompts(pa.concat_tables([row(a), row(b)]).combine_chunks())[0] for one in cuts for a, b in (one, one[::-1])]
    assert all(table.equals(found[0]) for table in found[1:])
    assert len(found[0]["ratings"][0]) == 6
