"""What policies gain on held-out prompts, from grades in any order; and the page of a loop."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="policies write on this machine")

from folders import feedback_folder
from loop_cases import RECIPE
from own_judges import answering
from raw_endpoint import raw_endpoint

from mmpo.annotate import GenerateOptions, generate
from mmpo.cli.recipe.model import load_recipe
from mmpo.cli.recipe.sampled import Replies, _beside, _gains, counted_replies, measured, values_of
from mmpo.pipeline import load_feedback
from mmpo.pipeline.metrics import mean_interval
from mmpo.pipeline.report import write_rounds


def compared(first: int, second: int, gap: float, aspect: str = "overall") -> dict[str, Any]:
    return {"rater": "judge", "aspect": aspect, "first": first, "second": second, "gap": gap}


def rated(completion: int, score: float) -> dict[str, Any]:
    return {"rater": "model", "aspect": "overall", "completion": completion, "score": score}


def test_gains_are_of_the_second_reply_over_the_first() -> None:
    """One: the judge likes what is shown first by 1 and the policy's reply by 2, so 1 the one way and 3 the other; the model 5 over 4. Two:
    the reply of the policy stands first in the row, and is worse by 1. Three: both wrote the same text."""
    ids = [{"id": "start"}, {"id": "policy"}]
    rows = [
        {
            "prompt_id": "1",
            "completions": ids,
            "comparisons": [compared(0, 1, -1.0), compared(1, 0, 3.0)],
            "ratings": [rated(0, 4), rated(1, 5)],
        },
        {"prompt_id": "2", "completions": ids[::-1], "comparisons": [compared(0, 1, -1.0)], "ratings": [rated(0, 1.5)]},
        {"prompt_id": "3", "completions": ids[:1], "comparisons": [], "ratings": [rated(0, 9)]},
    ]
    gains = _gains(rows, dict.fromkeys("123", "start"), {"1": "policy", "2": "policy", "3": "start"})
    assert gains == {"judge": [2.0, -1.0, 0.0], "model": [1.0, 0.0]}


def test_replies_are_those_of_their_model_alone(tmp_path: Path) -> None:
    start = [{"prompt": p, "completions": [f"old {p}", f"start {p}"], "models": ["somebody", "round-1"]} for p in "abc"]
    ours = [
        {"prompt": "a", "completions": ["new"], "models": ["round-2"]},
        {"prompt": "d", "completions": ["x"], "models": ["round-2"]},
    ]
    begun, written = (feedback_folder(tmp_path / name, rows) for name, rows in (("start", start), ("ours", ours)))
    summary = _beside(Replies(begun, "round-1"), Replies(written, "round-2"), tmp_path / "beside")
    assert (summary["prompts"], summary["left_out"], summary["pairs"]) == (1, 1, 1)
    [row] = load_feedback(tmp_path / "beside").to_pylist()
    assert [(one["model"], one["text"]) for one in row["completions"]] == [("round-1", "start a"), ("round-2", "new")]


def written(prompt: str, number: int) -> tuple[str, str]:
    """What the endpoint below writes, and how it ends: of d nothing that is kept, of the others one cut reply and two that are one."""
    return ("Half", "length") if prompt == "d" or number == 0 else (f"Of {prompt}", "stop")


def test_replies_that_are_left_out_are_counted_and_prompts_without_one_have_no_value(tmp_path: Path) -> None:
    """Of the prompts a, b and d the policy was asked for three replies each; the start has replies to a and b alone."""
    asked = Counter[str]()

    def answer(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        prompt = body["messages"][-1]["content"]
        text, finish = written(prompt, asked[prompt])
        asked[prompt] += 1
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
        return 200, {"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}

    prompts = feedback_folder(tmp_path / "prompts", [{"prompt": one} for one in "abd"], bare_prompts=True)
    begun = feedback_folder(tmp_path / "begun", [{"prompt": p, "completions": ["x"], "models": ["round-1"]} for p in "ac"])
    with raw_endpoint(answering(answer)) as endpoint:
        options = GenerateOptions(base_url=endpoint.base_url, n=3, concurrency=1)
        said = generate([prompts], tmp_path / "out", options=options, models=["m,called=round-2"])
    ours, few = Replies(tmp_path / "out", "round-2"), tmp_path / "few"
    assert counted_replies(ours, prompts, 3) == {
        "prompts": 3, "requests": 9, "kept": 2, "repeated": 2, "left_out": {"cut": 5}, "without_reply": 1,
    }  # fmt: skip
    [model] = said["models"]
    assert (model["requests"], model["candidates"], model["repeated"], model["reasons"]) == (9, 2, 2, {"cut": 5})
    assert counted_replies(ours, feedback_folder(few, [{"prompt": "d"}], bare_prompts=True), 3)["left_out"] == {"cut": 3}
    assert counted_replies(Replies(tmp_path / "out", "nobody"), prompts, 3)["requests"] == 0
    recipe = load_recipe(RECIPE, [f"out={tmp_path}", "evaluate.measure=demo_loop:truth"])
    found = measured(recipe, values_of(recipe, ours, prompts), values_of(recipe, Replies(begun, "round-1"), prompts))
    assert (found["measure_prompts"], found["measure_gain_prompts"]) == (2, 1)


def test_the_interval_of_a_mean_is_students() -> None:
    values = np.random.default_rng(0).normal(2.0, 3.0, 40)
    low, high = mean_interval(values.tolist(), draws=20_000) or [0.0, 0.0]
    reach = 2.0227 * values.std(ddof=1) / np.sqrt(40)  # the 97.5% quantile of Student's t with 39 degrees of freedom
    assert [low, high] == pytest.approx([values.mean() - reach, values.mean() + reach], rel=0.03)
    assert mean_interval([1.0, 2.0, 3.0, 4.0]) is None and mean_interval(values.tolist(), draws=0) is None


def test_the_page_of_a_loop_escapes_names_and_shows_what_is_unknown_as_a_dash(tmp_path: Path) -> None:
    gain = {"gain": 0.25, "gain_95": [0.125, 0.375], "prompts": 9}
    replies = {"prompts": 40, "requests": 160, "kept": 138, "repeated": 1, "left_out": {"empty": 1, "cut": 20}, "without_reply": 2}
    start: dict[str, Any] = {"run": "(start)", "round": 0, "gains": {}, "measure": 1.5, "measure_prompts": 38, "replies": replies}
    rows = [
        start,
        {"run": "<b>bold</b>", "round": 1, "gains": {"$judge$": gain}, "pairs": 12, "accuracy": 0.5, "requests": 8, "cost": None},
    ]
    page = write_rounds(rows, tmp_path / "rounds.html", "A <loop>").read_text(encoding="utf-8")
    assert "&lt;b&gt;bold" in page and "<b>bold" not in page and "A &lt;loop&gt;" in page
    assert "0.250 [0.125, 0.375] (9)" in page and "1.500 (38)" in page and "cut 20, empty 1" in page and "prompts without" in page
    assert "gain by $judge$" in page and "–" in page
    assert (tmp_path / "rounds.gains.png").is_file() and (tmp_path / "rounds.measure.png").exists()
