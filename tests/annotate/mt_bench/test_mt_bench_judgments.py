"""Judgments that are there: the published arithmetic by hand and on real files, and files of another layout."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from bench_cases import answer_row, bench_questions, judgment
from command import refused
from folders import write_rows

from mmpo.annotate import MtBenchOptions, mt_bench_judgments
from mmpo.annotate.client import Answer, Choice
from mmpo.annotate.mt_bench.figures import figures
from mmpo.annotate.mt_bench.files import Scored
from mmpo.annotate.mt_bench.requests import score_of
from mmpo.cli.main import run
from mmpo.pipeline.errors import UserError


def test_the_mean_is_over_all_scores_of_both_turns_and_leaves_unreadable_ones_out(tmp_path: Path) -> None:
    """m: 8, 6, 10 in turn 1 and 4 in turn 2, where one is -1: mean 28/4 = 7, turn 1 24/3 = 8, turn 2 4."""
    rows = [judgment(81, 8), judgment(84, 6), judgment(88, 10), judgment(81, 4, 2), judgment(84, -1, 2), judgment(88, None, 2)]
    rows += [judgment(81, 9.5, model="n"), judgment(84, 5, model="n"), judgment(81, 9, model="n", judge="other")]
    questions = write_rows(tmp_path / "question.jsonl", bench_questions())
    found = mt_bench_judgments([write_rows(tmp_path / "j.jsonl", rows)], MtBenchOptions(questions=questions))
    n, m, other = found["models"]
    assert [(row["judge"], row["model"]) for row in (n, m, other)] == [("gpt-4", "n"), ("gpt-4", "m"), ("other", "n")]
    assert (m["mean"], m["turn1"], m["turn2"], m["scores"], m["questions"]) == (7, 8, 4, 4, 3)
    assert m["unreadable"] == {"unreadable": 1, "no_score": 1}
    assert {kind: one["mean"] for kind, one in m["categories"].items()} == {"writing": 6, "math": 6, "humanities": 10}
    assert m["interval"] is None  # of three questions nothing can be said
    assert (n["mean"], n["turn2"], other["mean"]) == (7.25, None, 9)
    # Both answered 81 and 84 in turn 1: 8 - 9.5 and 6 - 5.
    assert m["behind"] == {"model": "n", "difference": -0.25, "difference_95": None, "shared": 2}
    assert n["behind"] is None and other["behind"] is None


def test_intervals_are_over_questions_with_all_that_is_said_of_them(tmp_path: Path) -> None:
    """Of questions that are all alike the interval has no width, however different the turns are; with more spread it is wider."""
    alike = [judgment(i, 9 if turn == 1 else 3, turn, "alike") for i in range(20) for turn in (1, 2)]
    apart = [judgment(i, 9 if i % 2 else 3, turn, "apart") for i in range(20) for turn in (1, 2)]
    found = {row["model"]: row for row in mt_bench_judgments([write_rows(tmp_path / "j.jsonl", alike + apart)])["models"]}
    assert found["alike"]["mean"] == found["apart"]["mean"] == 6
    assert found["alike"]["interval"] == [6, 6]
    low, high = found["apart"]["interval"]
    # 20 independent questions of standard deviation 3: 6 ± t(19)·3/√19, which is 1.44.
    assert low == pytest.approx(6 - 1.44, abs=0.25) and high == pytest.approx(6 + 1.44, abs=0.25)
    assert mt_bench_judgments([tmp_path / "j.jsonl"], MtBenchOptions(bootstrap=0))["models"][0]["interval"] is None


def test_an_interval_is_students_of_the_questions_own_means() -> None:
    """Both turns share their question's level: mean ± t(79)·s/√80 of eighty means, not of 160 scores, which would be too narrow."""
    rng = np.random.default_rng(0)
    for seed in range(5):
        scores = rng.normal(5.5, 1.2, (80, 1)) + rng.normal(0, 0.5, (80, 2))
        rows = [Scored("j", "m", str(i), turn + 1, scores[i, turn]) for i in range(80) for turn in (0, 1)]
        found = figures(rows, {}, draws=4000, seed=seed)[0]
        half = 1.9905 * scores.mean(axis=1).std(ddof=1) / 80**0.5
        assert found["mean"] == pytest.approx(scores.mean())
        assert found["interval"] == pytest.approx([scores.mean() - half, scores.mean() + half], abs=0.05 * half)


@pytest.mark.parametrize(
    "name", ["arena_bench_v1/model_judgment/claude-1.jsonl", "arena_bench_v1/model_judgment/gpt-3.5-turbo-1106.jsonl",
             "arena_bench_v1/model_judgment/vicuna-33b-v1.3.jsonl", "fastchat_pr/zh_gpt-4_single.jsonl"],
)  # fmt: skip
def test_real_judgments_have_the_means_of_a_few_independent_lines(name: str, real_data: Path) -> None:
    file = real_data / "raw" / name
    frame = pd.DataFrame([json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()])
    frame = frame[frame["score"] != -1]
    found = {row["model"]: row for row in mt_bench_judgments([file])["models"]}
    expected = frame.groupby("model")["score"].mean().to_dict()
    assert {model: row["mean"] for model, row in found.items() if row["mean"] is not None} == pytest.approx(expected)
    assert {model: row["scores"] for model, row in found.items() if row["scores"]} == frame.groupby("model").size().to_dict()
    for row in frame.itertuples():  # GPT-4's words are read as was recorded, but for an index of a program, [8]
        read = score_of(Answer((Choice(str(row.judgment)),), 1, 1, 1.0))
        assert read == ((row.score, "") if "[[" in str(row.judgment) else (None, "no_verdict"))


def test_scores_that_a_file_has_lost_are_told(real_data: Path) -> None:
    found = mt_bench_judgments([real_data / "raw/fastchat_pr/zh_gpt-4_single.jsonl"])
    assert found["counts"]["judgments"] == {"unreadable": 53} and found["counts"]["readable"] == 50
    assert any("[[rating: 2]]" in line for line in found["warnings"])


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"question_id": 1, "model_1": "a", "model_2": "b", "g1_winner": "tie"}], ["missing here: model, score", "pairwise judgments"]),
        ([{"review_id": 1, "text": "8"}], ["missing here: question_id, model, score", "'review_id'"]),
        ([judgment(1, 8), {"question_id": 1, "score": 3}], ["row 2", "missing here: model"]),
        ([judgment(1, "eight")], ["row 1", "score 'eight' is no number"]),
        ([judgment(1, 8, 3)], ["row 1", "turn 3 is neither 1 nor 2"]),
        ([judgment(1, 8, model="")], ["row 1", "model '' is no text"]),
        ([judgment(None, 8)], ["row 1", "question_id None"]),
        ([], ["holds no rows"]),
    ],
)  # fmt: skip
def test_judgments_of_another_layout_are_refused(
    rows: list[dict[str, Any]], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_rows(tmp_path / "j.jsonl", rows)
    message = refused(["evaluate", "mt-bench", "--judgments", str(file)], tmp_path, capsys)
    assert all(word in message for word in [str(file), *words]), message


def test_the_command_prints_every_model_and_writes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [judgment(81 + i, 1 + i % 10, turn, model) for i in range(8) for turn in (1, 2) for model in ("<b>bold</b>", "m")]
    file, questions = (
        write_rows(tmp_path / "x.jsonl", [*rows, judgment(7, 11)]),
        write_rows(tmp_path / "q.jsonl", bench_questions()),
    )
    words = ["evaluate", "mt-bench", "--judgments", str(file), "--questions", str(questions), "--out", str(tmp_path / "page.html")]
    assert run([*words, "--json"]) == 0
    said = capsys.readouterr()
    summary, page = json.loads(said.out), (tmp_path / "page.html").read_text(encoding="utf-8")
    assert [row["model"] for row in summary["models"]] == ["m", "<b>bold</b>"] and summary["judgments"] == 33
    assert summary["counts"]["outside"] == 1 and summary["counts"]["other_questions"] == 1
    assert "<b>bold" not in page and "&lt;b&gt;bold" in page and "humanities" in page and "data:image/png" in page
    assert "https://" not in page and "4.50 [" in page and "4.50 [" in said.err and "warning: 1 scores lie outside" in said.err
    assert "asks nobody" in refused([*words, "--judge", "x"], tmp_path, capsys)


def test_a_model_answer_file_is_no_file_of_judgments(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing here: model, score"):
        mt_bench_judgments([write_rows(tmp_path / "a.jsonl", [answer_row(81, ["a", "b"])])])
