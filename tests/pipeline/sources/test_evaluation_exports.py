"""What evaluations and judges leave: real files of each tool, and what became of every grade in them; broken logs."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from export_cases import EXPORTS, ratings, refusal
from folders import write_rows
from source_cases import collected, reasons

from mmpo.cli.main import run
from mmpo.pipeline import load_pairs
from mmpo.pipeline.sources import SOURCES

# inspect_ai: two samples in three epochs, one without a verdict


@pytest.mark.parametrize("file", ["g.eval", "g.json.gz"])
def test_inspect(file: str) -> None:
    result = collected(EXPORTS / "inspect" / file, "inspect")
    verdicts = [("answer 0", 1.0), ("answer 1", 0.5), ("answer 2", 0.0), ("answer 4", 0.0), ("answer 5", 1.0)]
    assert ratings(result) == [(text, "mockllm/model", score) for text, score in verdicts]
    assert (result.lines, result.dropped, result.limited, reasons(result)) == (6, 0, 0, {"no_verdict": 1})
    one = result.feedback.to_pylist()[0]
    assert one["prompt"] == [
        {"role": "user", "content": "What is two plus two?", **dict.fromkeys(("reasoning_content", "tool_calls", "tool_call_id"))}
    ]
    assert (one["completions"][0]["model"], one["ratings"][0]["note"]) == ("mockllm/model", "Reasons. GRADE: C")


def sample(reply: str, epoch: int, value: Any, **changed: Any) -> dict[str, Any]:
    scores = {"model_graded_qa": {"value": value, "explanation": "..."}}
    asked, said = (
        {"id": "u", "role": "user", "content": "q"},
        {"id": "a", "role": "assistant", "content": reply, "source": "generate"},
    )
    output = {"choices": [{"message": said}]}
    return {"id": 1, "epoch": epoch, "input": "q", "messages": [asked, said], "output": output, "scores": scores, **changed}


def log(*samples: Any, **changed: Any) -> dict[str, Any]:
    return {"status": "success", "eval": {"task": "t", "model": "m", "scorers": []}, "samples": list(samples), **changed}


def test_epochs_with_one_text_repeat_its_grade(tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "log.jsonl", [log(sample("a", 1, "C"), sample("b", 1, "I"), sample("a", 2, "P"), sample("b", 2, "I"))]
    )
    assert run(["build", str(path), "--format", "inspect", "--out", str(tmp_path / "out")]) == 0
    [pair] = load_pairs(tmp_path / "out").to_pylist()
    assert (pair["chosen"][0]["content"], pair["score_chosen"], pair["score_rejected"]) == ("a", 0.75, 0.0)


def test_what_inspect_leaves_out_is_counted(tmp_path: Path) -> None:
    corrected = {"s": {"value": 3.5, "history": [{"value": 3}]}, "t": {"value": {"x": True, "y": float("nan")}}}
    rows = log(
        sample("a", 1, "C", error={"message": "boom"}),
        sample("a", 1, "C", invalidation={"author": "x"}),
        sample("a", 1, "C", output={"choices": []}),
        sample("a", 1, "C", scores=None),
        sample("a", 1, "C", scores=corrected),
        status="cancelled",
    )
    result = collected(write_rows(tmp_path / "log.jsonl", [rows]), "inspect")
    assert reasons(result) == {"sample_error": 1, "invalidated": 1, "no_output": 1, "not_scored": 1, "no_verdict": 1}
    [row] = result.feedback.to_pylist()
    assert [(one["rater"], one["aspect"], one["kind"], one["score"]) for one in row["ratings"]] == [
        ("s", "s", "reward_model", 3.5), ("t", "x", "reward_model", 1.0),
    ]  # fmt: skip
    assert dict(result.noted) == {"corrected_scores": 1, "evaluation_not_completed": 5}


def test_what_solvers_sent_is_the_prompt_and_texts_kept_apart_are_put_back(tmp_path: Path) -> None:
    system, asked = {"role": "system", "content": "attachment://1"}, {"role": "user", "content": "q, please"}
    call = {"id": "c", "function": "add", "arguments": {"a": 1}, "type": "function"}
    steps = [{"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "1", "tool_call_id": "c"}]
    said = {"role": "assistant", "content": [{"type": "text", "text": "a"}]}
    one = sample(
        "a", 1, "C", messages=[system, asked, *steps, said], attachments={"1": "Be kind."}, output={"choices": [{"message": said}]}
    )
    result = collected(write_rows(tmp_path / "log.jsonl", [log(one)]), "inspect")
    [row] = result.feedback.to_pylist()
    assert [(message["role"], message["content"]) for message in row["prompt"]] == [("system", "Be kind."), ("user", "q, please")]
    assert row["completions"][0]["text"] == "a" and dict(result.noted) == {"steps_left_out": 1}


def written_log(path: Path, **members: Any) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in members.items():
            archive.writestr(f"{name}.json", json.dumps(value))
    return path


def test_a_header_without_scorers_has_those_of_all_samples(tmp_path: Path) -> None:
    """In an .eval file, which is read a sample at a time, as in JSON."""
    both = {"a": {"value": "C"}, "b": {"value": "I"}}
    one, two = sample("x", 1, "C", scores={"a": {"value": "P"}}), sample("y", 2, "C", scores=both)
    packed = written_log(tmp_path / "log.eval", header=log(), **{"samples/1": one, "samples/2": two})
    for path in (packed, write_rows(tmp_path / "log.jsonl", [log(one, two)])):
        rows = collected(path, "inspect").feedback.to_pylist()
        assert [(one["aspect"], one["score"]) for row in rows for one in row["ratings"]] == [("a", 0.5), ("a", 1.0), ("b", 0.0)]


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ({"_journal/start": {}, "samples/1": sample("a", 1, "C")}, "the evaluation has not ended"),
        ({"x": {}}, "is a ZIP archive, but no log of inspect_ai"),
        ({"header": log(status="started"), "samples/1": sample("a", 1, "C")}, "the evaluation has not ended"),
        ({"header": {}, "samples/1": {}}, "row 1: is no log of inspect_ai"),
        ({"header": log(), "samples/1": {"id": 1}}, "needs the columns 'input', 'output'"),
    ],
)
def test_broken_eval_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str], members: Any, told: str) -> None:
    assert told in refusal(written_log(tmp_path / "log.eval", **members), "inspect", "", capsys)


def test_a_log_cut_short_or_given_to_another_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = EXPORTS / "inspect" / "g.eval"
    part = tmp_path / "part.eval"
    part.write_bytes(whole.read_bytes()[:-100])
    assert "is no readable log of inspect_ai" in refusal(part, "inspect", "", capsys)
    damaged = bytearray(whole.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    part.write_bytes(damaged)
    assert "part.eval" in refusal(part, "inspect", "", capsys)
    assert "try --format inspect" in refusal(whole, "jsonl", "", capsys, tmp_path / "out")
    alone = write_rows(tmp_path / "header.jsonl", [{"eval": {}, "status": "success"}])
    assert "inspect log dump LOG" in refusal(alone, "inspect", "", capsys)


# promptfoo: two prompts × two providers × two tests, the first test with one assertion, the second with two


@pytest.mark.parametrize("file", ["out.json", "out.jsonl", "out.csv"])
def test_promptfoo(file: str) -> None:
    result = collected(EXPORTS / "promptfoo" / file, "promptfoo")
    rows = result.feedback.to_pylist()
    sheet = file == "out.csv"
    assert (result.lines, result.dropped, reasons(result), result.counts["grade"]) == (8, 0, {}, 8 if sheet else 20)
    found = {(row["prompt"][0]["content"], row["completions"][0]["model"]): row for row in rows}
    assert set(found) == {
        (f"Answer {how}: Name a {what}.", who)
        for how in ("briefly", "at length")
        for what in ("colour", "fruit")
        for who in ("red", "blue")
    }
    graded = [
        (one["aspect"], one["score"], one["rater"], one["note"]) for one in found["Answer briefly: Name a fruit.", "red"]["ratings"]
    ]
    judge = "openai:chat:rubric"
    whole = [("overall", 0.625, judge, "because"), ("llm-rubric", 0.25, judge, "because"), ("contains", 1.0, "promptfoo", None)]
    assert graded == ([("overall", 0.63, "promptfoo", None)] if sheet else whole)
    assert dict(result.noted) == ({"rounded_scores": 8} if sheet else {})


def output(**changed: Any) -> dict[str, Any]:
    return {"prompt": {"raw": "q"}, "response": {"output": "a"}, "gradingResult": {"score": 0.5}, **changed}


def test_what_promptfoo_leaves_out_is_counted(tmp_path: Path) -> None:
    def parts(*told: Any) -> dict[str, Any]:
        components = [{"assertion": {"type": kind}, "score": score, "reason": reason} for kind, score, reason in told]
        return output(gradingResult={"score": 0.5, "componentResults": components})

    unread = "Could not extract JSON from llm-rubric response"
    rows = [
        output(response={}, error="503", failureReason=2),
        output(response={"output": None}),
        output(gradingResult=None),
        output(response={"output": {"a": 1}}),
        parts(("llm-rubric", 0, unread), ("contains", 1, "Assertion passed")),
        parts(("llm-rubric", 0, "bad"), ("llm-rubric", 1, "good")),
    ]
    result = collected(write_rows(tmp_path / "out.jsonl", rows), "promptfoo")
    assert reasons(result) == {"provider_error": 1, "no_output": 1, "not_graded": 1, "judge_failed": 1}
    graded = [[(one["aspect"], one["score"]) for one in row["ratings"]] for row in result.feedback.to_pylist()]
    assert graded == [[("overall", 0.5)], [("contains", 1.0)], [("overall", 0.5), ("llm-rubric", 0.0), ("llm-rubric 2", 1.0)]]
    assert dict(result.noted) == {"output_as_json": 1} and result.limited == 0


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"evalId": "e", "results": {"table": {}}}, "export the evaluation anew"),
        ({"prompt": {"raw": "q"}, "response": {"output": "a"}}, "needs the column 'gradingResult'"),
        (output(gradingResult={"score": "high"}), "score_not_a_number"),
    ],
)
def test_broken_promptfoo(tmp_path: Path, capsys: pytest.CaptureFixture[str], row: Any, told: str) -> None:
    assert told in refusal(write_rows(tmp_path / "out.jsonl", [row]), "promptfoo", "", capsys)


def test_a_sheet_of_promptfoo_whose_template_does_more_than_name_variables(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("q,[m] Say {{ q | upper }},Status,Score,Named Scores,Grader Reason,Comment\nx,a,PASS,1.00,,,\n")
    result = collected(path, "promptfoo")
    assert reasons(result) == {"template": 1} and "export as JSON" in result.rejects["evidence"].to_pylist()[0]


# distilabel: eight replies of a judge, and pairs that were made of three


@pytest.mark.parametrize("file", ["ultrafeedback.jsonl", "ultrafeedback.parquet"])
def test_distilabel_reads_what_the_judge_wrote_under_each_number(file: str) -> None:
    result = collected(EXPORTS / "distilabel" / file, "distilabel")
    wanted = [
        ("blue 0", 2.0),
        ("blue 3", 2.0),
        ("blue 4", 2.0),
        *((f"red {n}", 4.5 if n == 2 else 4.0) for n in (0, 1, 2, 3, 4, 7)),
    ]
    assert ratings(result) == [(text, "dummy", score) for text, score in wanted]
    # cut off, no idea (two replies), no reply (two), an opening sentence before a reply cut off; N/A; a third of two
    assert reasons(result) == {"no_grade": 6, "not_applicable": 1, "rating_of_no_reply": 1}
    assert (result.lines, result.dropped, result.limited, dict(result.noted)) == (8, 0, 0, {"ratings_reread": 5})
    notes = [one["note"] for one in result.feedback.to_pylist()[3]["ratings"]]
    assert notes == ["fine.\n\nMore of it.", "short."]


def test_distilabel_pairs_have_all_replies() -> None:
    result = collected(EXPORTS / "distilabel" / "format_dpo.jsonl", "distilabel")
    scores = [[one["score"] for one in row["ratings"]] for row in result.feedback.to_pylist()]
    assert scores == [[4.0, 2.0], [3.0, 3.0], [1.0, 5.0]]  # of the tie the step itself made chosen = rejected
    assert not reasons(result)


TWO = {"instruction": "q", "generations": ["a", "b"]}


@pytest.mark.parametrize(
    ("row", "scores", "left_out"),
    [
        ({**TWO, "ratings": [4, 2]}, [4.0, 2.0], {}),
        ({**TWO, "ratings": [4, None]}, [4.0], {"no_grade": 1}),
        ({**TWO, "ratings": [None, None]}, [], {"no_grade": 2}),
        ({**TWO, "ratings": [None]}, [], {"no_grade": 2}),
        ({**TWO, "ratings": [None, 4]}, [], {"place_unknown": 1}),
        ({**TWO, "ratings": [4]}, [], {"lengths_differ": 1}),
        ({**TWO, "ratings": [4, 9]}, [4.0], {"score_out_of_scale": 1}),
        ({**TWO, "generations": ["a", None], "ratings": [4, 2]}, [4.0], {"not_text": 1}),
        ({"instruction": "q", "responses": ["a", "b"], "scores": [1, 5]}, [1.0, 5.0], {}),
    ],
)
def test_distilabel_without_raw_outputs(tmp_path: Path, row: Any, scores: list[float], left_out: dict[str, int]) -> None:
    result = collected(write_rows(tmp_path / "rows.jsonl", [row]), "distilabel")
    assert [score for _, _, score in ratings(result)] == scores and reasons(result) == left_out


@pytest.mark.parametrize(
    ("raw", "scores", "left_out"),
    [
        ("#### Output for Text 2\nRating: 2\n\n#### Output for Text 1\nRating: 5", [5.0, 2.0], {}),
        (
            "#### Output for Text 1\nType: 1\nRationale: Rated so\nRating: 4/5\nRationale: why\n#### Output for Text 2\n**Rating**: **3**",
            [4.0, 3.0],
            {},
        ),
        ("#### Output for Text 1\nRating: 4\n#### Output for Text 1\nRating: 2", [4.0], {"rating_of_no_reply": 1, "no_grade": 1}),
        ("#### Output for Text 1\nRating: 4-5\n#### Output for Text 2\nRating: 1", [1.0], {"not_applicable": 1}),
    ],
)
def test_distilabel_raw_outputs(tmp_path: Path, raw: str, scores: list[float], left_out: dict[str, int]) -> None:
    row = {
        **TWO,
        "ratings": [1, 1],
        "distilabel_metadata": {"raw_output_text_generation_0": "a", "raw_output_ultra_feedback_0": raw},
    }
    result = collected(write_rows(tmp_path / "rows.jsonl", [row]), "distilabel")
    assert [score for _, _, score in ratings(result)] == scores and reasons(result) == left_out
    assert dict(result.noted) == {"ratings_reread": 1}


# FastChat: laid out after judge_prompts.jsonl of its repository

GAMES: Any = SOURCES["fastchat"].samples[0].content[0]


@pytest.mark.parametrize(
    ("winners", "wanted", "left_out"),
    [
        (("model_1", "model_1"), [("small", "large", 1.0), ("large", "small", -1.0)], {}),
        (("model_2", "tie"), [("small", "large", -1.0), ("large", "small", 0.0)], {}),
        (("error", "model_2"), [("large", "small", 1.0)], {"unread_judgment": 1}),
    ],
)
def test_fastchat_games_stand_in_the_order_in_which_they_were_shown(
    tmp_path: Path, winners: Any, wanted: Any, left_out: Any
) -> None:
    row = {**GAMES, **dict(zip(("g1_winner", "g2_winner"), winners))}
    result = collected(write_rows(tmp_path / "pair.jsonl", [row]), "fastchat")
    [found] = result.feedback.to_pylist()
    models = [one["model"] for one in found["completions"]]
    assert [(models[one["first"]], models[one["second"]], one["gap"]) for one in found["comparisons"]] == wanted
    assert reasons(result) == left_out and {one["rater"] for one in found["comparisons"]} == {"gpt-4"}


def single(asked: str, **changed: Any) -> dict[str, Any]:
    return {
        "model": "m",
        "judge": ["gpt-4", "single-v1"],
        "user_prompt": asked,
        "score": 7,
        "turn": 1,
        "judgment": "[[7]]",
        **changed,
    }


SAID = "[The Start of Assistant's Answer]\n{}\n[The End of Assistant's Answer]"
CHAT = "### User:\nq1\n\n### {}:\na1\n\n### User:\nq2\n\n### {}:\na2\n\n"
REFERENCE = f"<|The Start of Reference Answer|>\n\n{CHAT.format(*['Reference answer'] * 2)}<|The End of Reference Answer|>\n\n\n"
CHATTED = "<|The {} of Assistant A's Conversation with User|>"
TURNS = f"{CHATTED.format('Start')}\n\n{CHAT.format(*['Assistant A'] * 2)}{CHATTED.format('End')}"


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        (single(f"[Instruction]\nGrade.\n\n[Question]\nq\n\n{SAID.format('a')}"), (["q"], "a")),
        (
            single(f"[Question]\nq\n\n[The Start of Reference Answer]\nr\n[The End of Reference Answer]\n\n{SAID.format('a')}"),
            (["q"], "a"),
        ),
        (single(TURNS, turn=2), (["q1", "a1", "q2"], "a2")),
        (single(REFERENCE + TURNS, turn=2), (["q1", "a1", "q2"], "a2")),
    ],
)
def test_fastchat_texts_are_found_in_the_judges_prompt(tmp_path: Path, row: Any, wanted: Any) -> None:
    [found] = collected(write_rows(tmp_path / "single.jsonl", [row]), "fastchat").feedback.to_pylist()
    assert ([one["content"] for one in found["prompt"]], found["completions"][0]["text"]) == wanted
    assert [(one["score"], one["low"], one["high"]) for one in found["ratings"]] == [(7.0, 1.0, 10.0)]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (single("q", score=-1), "unread_judgment"),
        (single("something else"), "texts_not_found"),
        (single(f"[Question]\nq\n\n{SAID.format(SAID.format('x'))}"), "marks_in_texts"),
        ({**GAMES, "turn": 2}, "second_turn"),
        ({"question_id": 1, "answer1_id": "x", "answer2_id": "y", "score": [8, 9]}, "no_texts"),
    ],
)
def test_what_can_not_be_read_of_fastchat(tmp_path: Path, row: Any, reason: str) -> None:
    assert reasons(collected(write_rows(tmp_path / "rows.jsonl", [row]), "fastchat")) == {reason: 1}


def test_real_fastchat(real_data: Path) -> None:
    result = collected(real_data / "raw/fastchat_pr/zh_gpt-4_single.jsonl", "fastchat")
    assert (result.lines, result.counts["grade"], reasons(result)) == (109, 56, {"unread_judgment": 53})


# AlpacaEval's raw replies


def verdict(preference: float, **changed: Any) -> dict[str, Any]:
    chances = [{"token": "m", "logprob": -20.5}, {"token": "M", "logprob": -0.5}]
    raw = {"logprobs": {"content": [{"top_logprobs": chances}]}, "text": "M"}
    row = {"instruction": "q", "output_1": "a", "output_2": "b", "annotator": "j", "preference": preference, "raw_completion": raw}
    return {**row, **changed}


RANKED = {"concise_explanation": "why", "ordered_models": [{"model": "M", "rank": 1}, {"model": "m", "rank": 2}]}


@pytest.mark.parametrize(
    ("row", "odds", "note", "left_out"),
    [
        (verdict(2), 20.0, None, {}),  # a preference rounded to its end
        (verdict(1), -20.0, None, {}),
        (verdict(1.75), 1.0986123, None, {}),
        (verdict(2, raw_completion=RANKED, referenced_models={"M": "output_2", "m": "output_1"}), 30.0, "why", {}),
        (verdict(1, raw_completion=json.dumps(RANKED), referenced_models='{"M": "output_1", "m": "output_2"}'), -30.0, "why", {}),
        (verdict(2, raw_completion=RANKED, referenced_models={"M": "output_1", "m": "output_2"}), None, None, {"raw_disagrees": 1}),
        (
            verdict(
                2,
                raw_completion={"ordered_models": [{"model": "M", "rank": 1}, {"model": "m", "rank": 1}]},
                referenced_models={"M": "output_1", "m": "output_2"},
            ),
            30.0,
            None,
            {},
        ),
        (verdict(2, raw_completion="M"), 30.0, None, {}),
        (verdict(0), None, None, {"not_annotated": 1}),
    ],
)
def test_alpaca_eval_with_raw_completions(tmp_path: Path, row: Any, odds: Any, note: Any, left_out: Any) -> None:
    result = collected(write_rows(tmp_path / "annotations.jsonl", [row]), "alpaca-eval", clip=30.0)
    found = [one for row in result.feedback.to_pylist() for one in row["ratings"][1:]]
    assert [(pytest.approx(one["score"]), one["note"]) for one in found] == ([] if odds is None else [(odds, note)])
    assert reasons(result) == left_out
