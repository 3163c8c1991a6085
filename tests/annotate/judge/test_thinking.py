"""Models that think before they answer: the grade is read where the tokens spell the visible reply, never in a thought."""

import json
from collections.abc import Callable
from typing import Any

import pyarrow.parquet as pq
import pytest
from command import mmpo
from own_judges import GRADE, GRADE_TOKEN, bodies, chat, token

from mmpo.pipeline.errors import UserError

THOUGHT = [token("Okay", Okay=0.9, A=0.06, G=0.03), token(" B"), token("</think>"), token("\n\n")]
CHANNEL = [
    token(text) for text in ("<|channel|>", "analysis", "<|message|>", "A", "<|end|>", "<|channel|>", "final", "<|message|>")
]
ENOUGH = 200
"""Tokens that these models need for a thought."""


def thinks(tokens: Any, cut: str | None, whole: Any, **apart: Any) -> Callable[[dict[str, Any]], Any]:
    """A model that needs room to think. cut: what it says where that runs out."""

    def answer(body: dict[str, Any]) -> Any:
        room = body.get("max_tokens") or body.get("max_completion_tokens") or 0
        return chat(body, whole, tokens, **apart) if room >= ENOUGH else chat(body, cut, tokens[:2], "length", **apart)

    return answer


PART = {"type": "thinking", "thinking": [{"type": "text", "text": "A, or B?"}]}
TAGGED = [token("<think>"), *THOUGHT, GRADE_TOKEN]
MODELS = {
    "reasoning_content": thinks([*THOUGHT, GRADE_TOKEN], None, "C", reasoning_content="Okay B"),
    "reasoning": thinks([*THOUGHT, GRADE_TOKEN], None, "C", reasoning="Okay B"),
    "channels": thinks([*CHANNEL, GRADE_TOKEN, token("<|return|>")], None, "C"),
    "typed parts": thinks([*THOUGHT, GRADE_TOKEN], "", [PART, {"type": "text", "text": "C"}]),
    "between tags": thinks(TAGGED, "<think>Okay", "<think>Okay B</think>\n\nC"),
    "a tag that the template opened": thinks([*THOUGHT, GRADE_TOKEN], "Okay B", "Okay B</think>\n\nC"),
    "white space stripped": thinks(
        [*THOUGHT[:-1], token("\n\nC", **{"\n\nC": 0.5, "B": 0.4, " E": 0.08})], "", "C", reasoning="Okay B"
    ),
}


@pytest.mark.parametrize("logprobs", ["auto", "need"])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_the_grade_is_that_of_the_visible_replys_token(model: Any, logprobs: str, judging_by: Any) -> None:
    job = judging_by(model)
    [told] = job.judge(logprobs=logprobs)["judges"]
    assert told["thinks"] and told["answered"] == told["requests"] == 2 and told["mean_mass"] == pytest.approx(0.98)
    for one in job.comparisons():
        assert (one["gap"], one["spread"]) == pytest.approx(GRADE[:2])
        assert one["probabilities"] == pytest.approx(GRADE[2])
        assert one["note"] is None, "a thought is no rationale"


def cut_off(first: str) -> Callable[[dict[str, Any]], Any]:
    """A model whose thinking never ends; its first thought is spelled like a grade."""
    tokens = [token(first, **{first: 0.9, "Okay": 0.05}), token(" user")]
    return lambda body: chat(body, None, tokens, "length", reasoning_content=first + " user")


@pytest.mark.parametrize(("first", "options"), [("A", {}), ("1", {"mode": "pointwise"}), ("A", {"logprobs": "need"})])
def test_a_thought_without_an_end_is_a_failure_and_no_grade(first: str, options: dict[str, Any], judging_by: Any) -> None:
    job = judging_by(cut_off(first), 2)
    with pytest.raises(UserError, match=r"cut_off \d+ \(.*--max-tokens"):
        job.judge(**options)
    assert not job.out.exists() and job.rows("SELECT count(*) FROM answers") == [(0,)]


def test_where_others_are_read_the_thought_is_the_evidence(judging_by: Any) -> None:
    endless = cut_off("A")
    job = judging_by(
        lambda body: endless(body) if "Question 1?" in body["messages"][-1]["content"] else chat(body, "C", [GRADE_TOKEN]), 3, 2
    )
    [told] = job.judge()["judges"]
    assert told["failed"] == {"cut_off": 2} and told["grades"] == 4
    rejected = pq.read_table(job.out / "rejects.parquet").to_pylist()
    assert [(one["reason"], json.loads(one["evidence"])["thinking"]) for one in rejected] == [("cut_off", "A user")] * 2


@pytest.mark.parametrize(
    ("content", "finish", "reason"),
    [(None, "stop", "empty"), ("", "length", "cut_off"), ("<think>A", "stop", "unclosed_thinking"), ("A or", "length", "cut_off")],
)
def test_nothing_is_read_from_a_text_that_is_empty_or_cut(content: Any, finish: str, reason: str, judging_by: Any) -> None:
    likely = [token("A", A=0.9, B=0.1), token(" or")]

    def answer(body: dict[str, Any]) -> Any:
        asked = body["messages"][-1]["content"]
        return chat(body, content, likely, finish) if "Question 1?" in asked else chat(body, "C", [GRADE_TOKEN])

    job = judging_by(answer, 3, 2)
    [told] = job.judge()["judges"]
    assert told["failed"] == {reason: 2} and told["grades"] == 4


def test_tokens_of_a_thought_alone_are_no_log_probabilities(judging_by: Any) -> None:
    job = judging_by(lambda body: chat(body, "C", THOUGHT[:2], reasoning="Okay B"), 2, 2)
    job.judge()
    assert {one["gap"] for one in job.comparisons()} == {1.0} and bodies(job.server)[-1]["n"] == 5
    with pytest.raises(UserError, match="no log-probabilities that can be used"):
        job.judge("need", logprobs="need")


def test_replies_drawn_from_a_model_that_thinks_spread_as_its_thoughts_do(judging_by: Any) -> None:
    likely = {"A": token("A", A=0.5, B=0.5), "C": token("C", C=1.0)}
    drawn = iter("AC" * 1000)

    def answer(body: dict[str, Any]) -> Any:
        if (body.get("max_tokens") or 0) < ENOUGH:
            return chat(body, None, THOUGHT[:2], "length", reasoning="Okay")
        status, reply = chat(body, "", [])
        for choice in reply["choices"]:
            letter = next(drawn)
            choice |= {"message": {"content": letter, "reasoning": letter}, "logprobs": {"content": [*THOUGHT, likely[letter]]}}
        return status, reply

    job = judging_by(answer, 3, 2)
    [told] = job.judge(samples=4)["judges"]
    assert told["samples"] == 4 and told["samples_differ"] is True and bodies(job.server)[-1]["temperature"] == 1.0
    # Half of the thoughts end at 2.5 ± .5, half at 1: mean 1.75, between them 4·.75²/3, within them ½·.25.
    for one in job.comparisons():
        assert one["gap"] == pytest.approx(1.75) and one["spread"] == pytest.approx((4 * 0.75**2 / 3 + 0.125) ** 0.5)
        assert one["probabilities"] == pytest.approx([0.25, 0.25, 0.5, 0, 0, 0, 0])
    assert told["requests"] == 6, "one request with n replies a question"


def test_thinking_is_kept_beside_the_reply(judging_by: Any) -> None:
    job = judging_by(MODELS["reasoning_content"])
    job.judge()
    kept = [json.loads(reply) for (reply,) in job.rows("SELECT reply FROM answers")]
    assert all(choices[0][0] == "C" and choices[0][3] == "Okay B" for choices in kept)
    assert all(len(choices[0][2]) == 1 for choices in kept), "the tokens of the thought are not"


def test_an_estimate_holds_what_a_judge_thinks_as_it_was_billed(judging_by: Any) -> None:
    """Ten prompts of two replies, each asked in both orders: three of them are judged, and their replies cost 700 tokens each."""
    reply = thinks([*THOUGHT, GRADE_TOKEN], None, "C", reasoning_content="Okay B")

    def billed(body: dict[str, Any]) -> Any:
        status, answer = reply(body)
        return status, {**answer, "usage": {"prompt_tokens": 50, "completion_tokens": 700, "total_tokens": 750}}

    job = judging_by(billed, 10, 2)
    job.judge(limit=3)
    told = json.loads(job.mmpo("--dry-run", "--json").stdout)
    [row] = told["judges"]
    assert (row["left"], row["thinks"], row["reply_tokens_measured"]) == (14, True, True)
    assert row["reply_tokens"] == told["reply_tokens"] == 14 * 700


def test_several_judges_have_a_row_for_all(judging: Any, prices: str) -> None:
    job = judging({}, 4)
    judges = ("--judge", "judge-a", "--judge", "judge-b", "--prices", prices)
    words = [word for word in job.words() if word not in ("--model", "judge-a")]
    done = mmpo(*words, *judges, "--dry-run", "--json")
    told = json.loads(done.stdout)
    assert told["reply_tokens"] == sum(row["reply_tokens"] for row in told["judges"])
    [line] = [line for line in done.stderr.splitlines() if line.startswith("all 2")]
    assert f" {told['requests']} " in line
    ran = mmpo(*words, *judges)
    [line] = [line for line in ran.stderr.splitlines() if line.startswith("all 2")]
    assert f" {told['requests']} " in line
