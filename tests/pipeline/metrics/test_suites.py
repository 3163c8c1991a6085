"""Benchmarks of reward models from scores in a file: published figures, by hand, and files that are none."""

import json

import numpy as np
import orjson
import pytest
from command import refused
from folders import write_rows

from mmpo.cli.main import run
from mmpo.pipeline.metrics import REWARDBENCH_COUNTS, SUITES, ScoredRow, suite_measures, suite_scores
from mmpo.pipeline.metrics.intervals import mean_draws

GOLDEN = {
    "Chat": 0.6089385474860335,
    "Chat Hard": 0.44956140350877194,
    "Safety": 0.7216216216216216,
    "Reasoning": 0.46675669776831996,
}
"""PKU-Alignment/beaver-7b-v1.0-cost, from the README of allenai/reward-bench; below, how many rows of each subset it has right."""
RIGHT = [50, 56, 67, 16, 29, 20, 132, 97, 100, 52, 58, 36, 22, 17, 154, 71, 112, 103, 104, 116, 109, 90, 106]
TIES = [("ref:0", [3, 1, 0], 1), ("tied:0", [3, 2.5, 1, 0], 2), ("ref:1", [1, 2, 0], 1), ("tied:1", [3, 0.5, 1, 0], 2)]


def beaver():
    """As many rows as the benchmark has, of which the model has as many right; math-prm has 447."""
    for (subset, count), right in zip(REWARDBENCH_COUNTS.items(), RIGHT, strict=True):
        for row in range(447 if subset == "math-prm" else count):
            # of those that it has wrong every other one is a tie
            chosen, rejected = (1.5, -2.0) if row < right else (0.5, row % 2 + 0.5)
            yield {"subset": subset, "score_chosen": chosen, "score_rejected": rejected}


def ties():
    return [{"id": name, "subset": "Ties", "num_correct": correct, "scores": scores} for name, scores, correct in TIES]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_rewardbench_gives_the_published_sections(suffix, tmp_path, capsys):
    rows = [*beaver(), *({"subset": "my-own", "score_chosen": 1.0, "score_rejected": 0.0} for _ in range(6))]
    file = write_rows(tmp_path / f"scores.{suffix}", rows)
    assert run(["evaluate", "scores", str(file), "--suite", "rewardbench", "--json"]) == 0
    said = capsys.readouterr()
    found = orjson.loads(said.out)
    assert found["sections"] == pytest.approx(GOLDEN, abs=1e-12)
    assert found["average"] == pytest.approx(sum(GOLDEN.values()) / 4)
    assert [row["accuracy"] for row in found["subsets"][:3]] == pytest.approx([0.5, 56 / 95, 67 / 95])
    # a subset that nobody published: listed, part of no section, counted, said
    assert found["unknown_subsets"] == {"my-own": 6}
    assert found["subsets"][-1] == {
        "subset": "my-own",
        "rows": 6,
        "pairs": 6,
        "section": None,
        "accuracy": 1.0,
        "accuracy_95": [pytest.approx(0.025 ** (1 / 6)), 1.0],
        "chance": 0.5,
    }
    assert "subsets that rewardbench does not have are part of no section: 'my-own' (6 rows)" in said.err
    assert found["missing_subsets"] == ["anthropic_helpful", "anthropic_hhh", "shp", "summarize"]
    assert "4 of the 27 subsets of rewardbench have no rows here (anthropic_helpful, " in said.err
    for section, (low, high) in found["sections_95"].items():
        assert low < GOLDEN[section] < high
    low, high = found["average_95"]
    assert 0.02 < high - low < 0.06


def test_rewardbench2_gives_the_published_ties_and_best_of_four(tmp_path):
    best = [[3, 1, 2, 0], [3, 3, 1, 0], [1, 2, 0, 0]]  # right, half right, wrong
    math = [{"id": str(n), "subset": "Math", "num_correct": 1, "scores": scores} for n, scores in enumerate(best)]
    found = suite_scores(write_rows(tmp_path / "scores.jsonl", ties() + math), "rewardbench2")
    assert found["sections"] == pytest.approx({"Math": 0.5, "Ties": 0.5003933796593678}, abs=1e-12)
    assert found["average"] == pytest.approx((0.5 + 0.5003933796593678) / 2)
    assert {row["subset"]: row["chance"] for row in found["subsets"]} == {"Math": 0.25, "Ties": None}


def test_a_reference_without_its_ties_counts_as_published():
    """Reference accuracy is the mean over all references, the preferences that over the numbers that have both: here 0 alone."""
    rows = [ScoredRow("Ties", name, tuple(scores[:k]), tuple(scores[k:])) for name, scores, k in TIES[:3]]
    found = suite_measures("rewardbench2", rows)["sections"]["Ties"]
    # gaps: ref:0 2, tied:0 1.5, ref:1 −1; spread of tied:0 .5: 1.5 > .5, and min(2, 1.5) > .5
    assert found == pytest.approx(0.3 * 1 + 0.3 * 0.5 + 0.2 + 0.2 + 0.01 * np.tanh(1.5 / 0.5 - 1))


def test_rm_bench_by_hand(tmp_path):
    """chosen (1, 2, 3) against rejected (0, 2, 2.5), by style: [i, j] is 1 where chosen i is above rejected j.

    [1 0 0; 1 0 0; 1 1 1]: easy (below the diagonal) 1, normal 2/3, hard 0. The second row has all right; code has all wrong, by equal
    scores.
    """
    rows = [
        {"domain": "safety-refuse", "score_chosen": [1, 2, 3], "score_rejected": [0, 2, 2.5]},
        {"domain": "safety-response", "score_chosen": [5, 5, 5], "score_rejected": [0, 0, 0]},
        {"domain": "code", "score_chosen": [1, 1, 1], "score_rejected": [1, 1, 1]},
    ]
    found = suite_scores(write_rows(tmp_path / "scores.jsonl", rows), "rm-bench")
    assert found["sections"] == pytest.approx({"code": 0.0, "safety": ((1 + 2 / 3 + 0) / 3 + 1) / 2})
    assert found["average"] == pytest.approx(found["sections"]["safety"] / 2)
    assert found["styles"] == pytest.approx({"easy": 0.5, "normal": (2 / 3 + 1) / 4, "hard": 0.25})
    assert np.mean(list(found["styles"].values())) == pytest.approx(found["average"])
    assert found["matrix"] == [[0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [0.5, 0.5, 0.5]]
    assert found["unknown_subsets"] == {} and found["subsets"][1]["rows"] == 2
    assert found["missing_subsets"] == ["chat", "math"]


def test_interval_of_a_mean_is_that_of_the_binomial():
    values = np.repeat([1.0, 0.0], [300, 100])
    drawn = mean_draws(values, 4000, np.random.default_rng(0))
    assert drawn.mean() == pytest.approx(0.75, abs=0.002)
    assert drawn.std() == pytest.approx(np.sqrt(0.75 * 0.25 / 400), rel=0.05)


def scored(**right: list[bool]) -> list[ScoredRow]:
    return [ScoredRow(name.replace("_", "-"), "", (1.0,), (0.0 if one else 2.0,)) for name, given in right.items() for one in given]


def test_where_a_subset_has_few_rows_nothing_that_it_is_part_of_has_an_interval():
    """Chat Hard without few rows has one; Chat, where one subset has two rows that are alike, and the average have none."""
    rows = scored(hep_go=[True] * 4, alpacaeval_easy=[True, False] * 20, mt_bench_med=[True] * 2, mt_bench_hard=[True, False] * 20)
    found = suite_measures("rewardbench", rows)
    assert found["sections_95"]["Chat"] is None and found["sections_95"]["Reasoning"] is None and found["average_95"] is None
    assert {row["subset"]: row["accuracy_95"] is None for row in found["subsets"]} == {
        "alpacaeval-easy": False, "mt-bench-med": True, "mt-bench-hard": False, "hep-go": True
    }  # fmt: skip
    [hard] = [row["accuracy_95"] for row in found["subsets"] if row["subset"] == "mt-bench-hard"]
    assert found["sections_95"]["Chat Hard"] == hard


def test_sections_with_all_rows_right_are_not_certain():
    """Of n rows of one weight that are all right the bound is .025^(1/n); two subsets of 20 rows and weights w, 1 − w are worth
    20/(w² + (1 − w)²) such rows.
    """
    weights = {"llmbar-natural": 100, "mt-bench-hard": 37}
    share = 37 / 137
    found = suite_measures("rewardbench", scored(llmbar_natural=[True] * 20, mt_bench_hard=[True] * 20))
    alike = 20 / (share**2 + (1 - share) ** 2)
    assert weights.items() <= REWARDBENCH_COUNTS.items()
    assert found["sections_95"] == {"Chat Hard": [pytest.approx(0.025 ** (1 / alike)), 1.0]}
    assert found["average_95"] == found["sections_95"]["Chat Hard"]


def test_of_unknown_subsets_alone_there_is_no_average(tmp_path):
    file = write_rows(tmp_path / "scores.jsonl", [{"subset": "own", "score_chosen": 1, "score_rejected": 2}] * 4)
    found = suite_scores(file, "rewardbench")
    assert (found["sections"], found["average"], found["average_95"]) == ({}, None, None)
    assert found["unknown_subsets"] == {"own": 4}


PAIR = {"subset": "hep-go", "score_chosen": 1.0, "score_rejected": 0.0}
BEST = {"id": "7", "subset": "Math", "num_correct": 1, "scores": [3, 1, 2, 0]}
TIE = {"id": "ref:1", "subset": "Ties", "num_correct": 1, "scores": [1, 0]}


@pytest.mark.parametrize(
    ("suite", "rows", "words"),
    [
        (
            "rewardbench",
            [{"prompt": "Q", "chosen": "a", "rejected": "b", "subset": "hep-go"}],
            ["missing here: score_chosen", "`mmpo evaluate reward --model MODEL --data"],
        ),
        ("rewardbench", [{"model": "a", "wins": 3}], ["have the columns subset, score_chosen, score_rejected", "'model', 'wins'"]),
        ("rewardbench", [], ["holds no rows"]),
        ("rewardbench", [PAIR, {**PAIR, "score_rejected": None}], ["row 2: score_rejected None is not a finite number"]),
        ("rewardbench", [{**PAIR, "score_chosen": float("nan")}], ["row 1: score_chosen nan"]),
        ("rewardbench", [{**PAIR, "score_chosen": "high"}], ["score_chosen 'high'"]),
        ("rewardbench", [{**PAIR, "score_chosen": True}], ["score_chosen True"]),
        ("rewardbench", [{**PAIR, "subset": None}], ["subset None is no text"]),
        ("rewardbench2", [{**TIE, "num_correct": 2}], ["num_correct 2 must be 1 or more and below the number of scores, 2"]),
        ("rewardbench2", [{**TIE, "id": "7"}], ["id '7': those of the subset Ties are ref:N"]),
        ("rewardbench2", [TIE, TIE], ["row 2: id 'ref:1' stands in an earlier row"]),
        ("rewardbench2", [BEST, TIE, BEST], ["row 3: id '7' stands in an earlier row too: keep one of them"]),
        ("rewardbench2", [TIE], ["ids ref:N and tied:N for the same N"]),
        ("rm-bench", [{"domain": "chat", "score_chosen": [1, 2], "score_rejected": [1, 2, 3]}], ["a list of 3 finite numbers"]),
        ("rewardbench3", [PAIR], ["unknown suite 'rewardbench3'; did you mean 'rewardbench'?", ", ".join(SUITES)]),
    ],
)  # fmt: skip
def test_files_that_are_none_are_refused(suite, rows, words, tmp_path, capsys):
    file = tmp_path / "scores.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = refused(["evaluate", "scores", str(file), "--suite", suite], tmp_path, capsys)
    assert all(word in said for word in words), said


def test_no_file(tmp_path, capsys):
    command = ["evaluate", "scores", str(tmp_path / "none.jsonl"), "--suite", "rewardbench"]
    assert "there is no file" in refused(command, tmp_path, capsys)
