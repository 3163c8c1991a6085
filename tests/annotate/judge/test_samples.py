"""Replies drawn instead of log-probabilities: whether the endpoint draws at all is told over the whole run; else the spread is null."""

import json
from itertools import count
from typing import Any

import pytest
from command import mmpo
from own_judges import chat


def greedy(body: dict[str, Any]) -> Any:
    """Always the same reply, at any temperature, one at a time: transformers serve unless its model's own settings sample."""
    return chat({**body, "n": 1}, "C")


@pytest.mark.parametrize(("prompts", "told", "words"), [(10, False, "does not sample"), (9, None, "too few to tell")])
def test_replies_that_never_differ_have_no_spread(prompts: int, told: bool | None, words: str, judging_by: Any) -> None:
    job = judging_by(greedy, prompts, 2)
    done = mmpo(*job.words("--json"))
    assert done.returncode == 0, done.stderr
    [row] = json.loads(done.stdout)["judges"]
    assert row["samples_differ"] is told and row["sampled_alike"] == 2 * prompts and words in done.stderr and "null" in done.stderr
    assert json.loads((job.out / "manifest.json").read_text())["judges"][0]["samples_differ"] is told
    found = job.comparisons()
    assert {(one["gap"], one["spread"], one["probabilities"]) for one in found} == {(1.0, None, None)}


def test_one_question_with_two_replies_shows_that_all_are_drawn(judging_by: Any) -> None:
    def answer(body: dict[str, Any]) -> Any:
        drawn = "Question 7?" in body["messages"][-1]["content"]
        return chat({**body, "n": 1}, "AB"[body.get("seed", 0) % 2]) if drawn else greedy(body)

    job = judging_by(answer, 12, 2)
    [row] = job.judge(samples=4)["judges"]
    assert row["samples_differ"] is True
    spreads = {one["prompt"]: (one["spread"], one["probabilities"]) for one in job.comparisons()}
    assert spreads.pop("Question 7?") == (pytest.approx(1 / 3**0.5), pytest.approx([0.5, 0.5, 0, 0, 0, 0, 0]))
    assert {(spread, tuple(p)) for spread, p in spreads.values()} == {(0.0, (0, 0, 1, 0, 0, 0, 0))}, "sure, and known to be"


def test_thoughts_that_differ_show_it_as_well(judging_by: Any) -> None:
    turn = count()
    job = judging_by(lambda body: chat({**body, "n": 1}, "C", reasoning=f"thought {next(turn)}"), 3, 2)
    [row] = job.judge()["judges"]
    assert row["samples_differ"] is True and {one["spread"] for one in job.comparisons()} == {0.0}


def test_a_distribution_needs_no_second_reply(judging: Any) -> None:
    [row] = judging({}, 2, 2).judge(samples=7)["judges"]
    assert (row["samples"], row["samples_differ"], row["requests"]) == (1, None, 4)
