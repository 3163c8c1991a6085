"""A run of MT-bench: what is asked, what the judge sees, what is written, what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from bench_cases import WITH_REFERENCE, answer_row, bench_questions, means
from command import refused
from folders import contents, write_rows
from own_judges import bodies, chat, refusal

from mmpo.annotate import MtBenchOptions, mt_bench_judgments
from mmpo.annotate.mt_bench import estimate, prepared
from mmpo.annotate.mt_bench.files import BenchQuestion
from mmpo.annotate.mt_bench.prompts import load_prompts
from mmpo.annotate.rows import Feedback
from mmpo.cli.main import run
from mmpo.pipeline.errors import PartialResult, UserError
from mmpo.pipeline.metrics import SUITES

TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
RATED = "It is sound.\nGrade: [[7]]"


def is_judge(body: dict[str, Any]) -> bool:
    return body["model"] == "judge"


def test_the_second_turn_sees_the_first_reply_at_the_temperature_of_its_category(bench: Any) -> None:
    job = bench()
    summary = job.run()
    sent, kinds = job.bodies(), {row["turns"][0]: row["category"] for row in bench_questions()}
    assert len(sent) == 16 and summary["finished"]
    first = {body["messages"][0]["content"]: body for body in sent if len(body["messages"]) == 1}
    second = {body["messages"][0]["content"]: body for body in sent if len(body["messages"]) == 3}
    assert first.keys() == second.keys() == kinds.keys()
    told = {row["question_id"]: row["choices"][0]["turns"] for row in job.lines("model_answer/writer.jsonl")}
    for place, question in enumerate(kinds):
        assert [one["content"] for one in second[question]["messages"]] == [
            question,
            told[81 + place][0],
            f"Second question {place}?",
        ]
        assert first[question]["temperature"] == second[question]["temperature"] == TEMPERATURES.get(kinds[question], 0.0)
        assert first[question]["max_tokens"] == 1024 and first[question]["seed"] != second[question]["seed"]
    job.run("hot", temperature=0.3)
    assert {body["temperature"] for body in job.bodies()[16:]} == {0.3}


def test_the_judge_sees_references_where_there_are_some_and_both_turns_of_a_second_one(bench: Any) -> None:
    job = bench()
    job.run()
    rows = job.lines("model_judgment/judge_single.jsonl")
    assert len(rows) == len(job.bodies("judge")) == 16
    answers = {row["question_id"]: row["choices"][0]["turns"] for row in job.lines("model_answer/writer.jsonl")}
    kinds = {row["question_id"]: row["category"] for row in bench_questions()}
    assert {body["messages"][-1]["content"] for body in job.bodies("judge")} == {row["user_prompt"] for row in rows}
    assert {(body["temperature"], body["max_tokens"], len(body["messages"])) for body in job.bodies("judge")} == {(0, 2048, 2)}
    for row in rows:
        one, turn, shown = row["question_id"], row["turn"], row["user_prompt"]
        against = kinds[one] in WITH_REFERENCE
        assert (f"Known 1 of {one}." in shown, f"Known {turn} of {one}." in shown) == (against, against)
        assert answers[one][turn - 1] in shown and (answers[one][1] in shown) == (turn == 2) and answers[one][0] in shown
        assert row["judge"] == ["judge", f"mmpo-{'two-turns' if turn == 2 else 'single'}{'-reference' if against else ''}-v1"]
        assert row["score"] == int(row["judgment"].partition("[[")[2].partition("]]")[0]) and row["tstamp"] > 1e9
    assert len(rows[0]) == 8 and list(rows[0])[:3] == ["question_id", "model", "judge"]


def test_what_was_written_has_the_means_that_were_said(bench: Any) -> None:
    job = bench()
    summary = job.run(models=["writer", {"model": "other", "called": "org/other"}], judges=["judge", "judge-b"])
    files = [job.folder / "out" / "model_judgment" / f"{name}_single.jsonl" for name in ("judge", "judge-b")]
    again = mt_bench_judgments(files, MtBenchOptions(questions=job.questions))
    assert means(again["models"]) == means(summary["models"]) and len(again["models"]) == 4
    assert json.loads((job.folder / "out" / "evaluation.json").read_bytes())["models"] == summary["models"]
    assert (job.folder / "out" / "model_answer" / "org_other.jsonl").is_file()
    assert len(job.bodies("writer")) == len(job.bodies("other")) == 16 and len(job.bodies("judge")) == 32
    with pytest.raises(UserError, match="holds mt-bench, neither pairs nor FEEDBACK"):
        Feedback.open(job.folder / "out")
    page = (job.folder / "out" / "page.html").read_text(encoding="utf-8")
    assert (
        "mmpo&#39;s own" in page
        and "mmpo-two-turns-reference-v1" in page
        and "org/other" in page
        and "0.7: writing, roleplay" in page
    )


def test_a_second_run_asks_nothing_and_one_with_another_judge_asks_that_judge_alone(bench: Any) -> None:
    job = bench()
    first = job.run()
    before, asked = contents(job.folder / "out"), job.server.counts()["requests"]
    again = job.run()
    assert job.server.counts()["requests"] == asked
    assert {**again, "seconds": 0} == {**first, "seconds": 0} and contents(job.folder / "out") == before
    job.run(judges=["judge", "judge-b"])
    assert len(job.bodies("writer")) == 16 and len(job.bodies("judge")) == 16 and len(job.bodies("judge-b")) == 16
    for given, words in (
        ({}, "results of the judge judge-b"),
        ({"models": ["other"], "judges": ["judge", "judge-b"]}, "model writer"),
    ):
        with pytest.raises(UserError, match=words):
            job.run(**given)
    assert len(job.bodies("other")) == 0


def test_prompts_of_a_file_are_filled_in_as_fastchat_does(real_data: Path) -> None:
    file = real_data / "raw/fastchat/llm_judge/data/judge_prompts.jsonl"
    stored = {row["name"]: row for row in map(json.loads, file.read_text(encoding="utf-8").splitlines())}
    loaded, turns = load_prompts(str(file)), ("Is {answer} a field? <|im_end|>", "{question_2}?")
    said, known = ("Yes: {ref_answer_1}", "[[10]] {}"), ("R1", "R2 {answer}")
    values = {"question": turns[0], "answer": said[0], **{f"question_{i}": text for i, text in enumerate(turns, 1)}}
    values |= {f"answer_{i}": text for i, text in enumerate(said, 1)} | {f"ref_answer_{i}": text for i, text in enumerate(known, 1)}
    for references, suffix in (((), "single-v1"), (known, "single-math-v1")):
        for turn, more in ((1, ""), (2, "-multi-turn")):
            prompt, messages = loaded.of(BenchQuestion(1, "x", turns, references), said, turn)
            expected = stored[suffix + more]
            assert prompt.name == expected["name"]
            assert [one["content"] for one in messages] == [expected["system_prompt"], expected["prompt_template"].format(**values)]
    own = load_prompts(None).of(BenchQuestion(1, "x", turns, known), said, 2)[1][1]["content"]
    assert all(text in own for text in (turns[1], *said, *known)) and "<|im_end|>" not in own and "Is {answer} a field?" in own


def test_a_prompt_file_brings_its_own_names(bench: Any) -> None:
    def prompt(name: str, template: str) -> dict[str, str]:
        return {"name": name, "system_prompt": "Rate it.", "prompt_template": template}

    first, second = (
        "Q {question} A {answer} from 1 to 10",
        "Q {question_2} after {question_1} {answer_1} A {answer_2}",
    )
    rows = [prompt("single-v1", first), prompt("single-math-v1", first + " {ref_answer_1}")]
    rows += [prompt("single-v1-multi-turn", second), prompt("single-math-v1-multi-turn", second + " {ref_answer_1} {ref_answer_2}")]
    job = bench()
    job.server.plan({"models": {"writer": {"writes": True}, "judge": {"writes": True}}})
    file = write_rows(job.folder / "prompts.jsonl", rows)
    with pytest.raises(
        UserError, match=r"no score can be read in any judgment: no_verdict 16; a score is read where .*Nothing was written"
    ):
        job.run(judge_prompts=file)
    assert not (job.folder / "out").exists()
    assert {body["messages"][0]["content"] for body in job.bodies("judge")} == {"Rate it."}
    assert any(body["messages"][1]["content"].endswith("Known 1 of 83. Known 2 of 83.") for body in job.bodies("judge"))
    wrong = {
        "lacks single-math-v1-multi-turn": rows[:3],
        "does not show {answer}": [*rows[1:], prompt("single-v1", "{question}")],
        "asks for mood": [*rows[1:], prompt("single-v1", "{answer} {mood}")],
        "missing here: system_prompt": [{"name": "x"}],
    }
    for words, own in wrong.items():
        with pytest.raises(UserError, match=words):
            job.run(judge_prompts=write_rows(job.folder / "wrong.jsonl", own))


def test_answers_that_say_nothing_and_judgments_without_a_score_are_counted_and_final(bench_by: Any) -> None:
    """Question 0 is refused, 1 empty, 2 cut; the judge gives 3 no score in its first turn. What is said is graded, as published."""

    def answer(body: dict[str, Any]) -> Any:
        asked = body["messages"][-1]["content"]
        if is_judge(body):
            return chat(body, "Hard to say." if "First question 3" in asked and "Second" not in asked else RATED)
        match asked:
            case "First question 0?":
                return chat(body, None, refusal="I can't help.")
            case "First question 1?":
                return chat(body, "  ")
            case "First question 2?":
                return chat(body, "So far", finish="length")
        return chat(body, f"On {asked}")

    job = bench_by(answer)
    summary = job.run()
    [row] = summary["models"]
    assert summary["finished"] and (row["mean"], row["scores"], row["turn1"], row["turn2"]) == (7, 15, 7, 7)
    assert summary["counts"] == {"answers": {"refused": 1, "empty": 1, "cut": 1}, "judgments": {"no_verdict": 1}, "failed": {}}
    lines = {(one["question_id"], one["turn"]): one for one in job.lines("model_judgment/judge_single.jsonl")}
    assert lines[84, 1]["score"] == -1 and lines[84, 1]["judgment"] == "Hard to say." and len(lines) == 16
    assert "I can't help." in lines[81, 1]["user_prompt"] and "So far" in lines[83, 1]["user_prompt"]
    asked = len(bodies(job.server))
    assert job.run()["models"] == summary["models"] and len(bodies(job.server)) == asked


def test_requests_that_fail_are_told_and_asked_again_by_the_next_run(bench_by: Any) -> None:
    well = False

    def answer(body: dict[str, Any]) -> Any:
        asked = body["messages"][-1]["content"]
        if not well and (asked == "First question 1?" or (is_judge(body) and "First question 2?" in asked and "Second" in asked)):
            return refusal(400, "too long for the context length")
        return chat(body, RATED if is_judge(body) else "Yes.")

    job = bench_by(answer)
    summary = job.run()
    [row] = summary["models"]
    # 81 has no answers, so that two turns are lacking, one of which was never asked; one judgment failed.
    assert not summary["finished"] and row["scores"] == 13 and row["left"] == 1 and row["failed"] == {"status_400": 2}
    assert any("lack 3 of 16 grades" in line for line in summary["warnings"])
    assert len(job.lines("model_answer/writer.jsonl")) == 7
    well, asked = True, len(bodies(job.server))
    assert job.run()["finished"] and len(bodies(job.server)) - asked == 2 + 2 + 1


@pytest.mark.parametrize(("who", "words"), [("writer", "no answer of writer says anything"), ("judge", "no score can be read")])
def test_a_model_or_judge_that_says_nothing_ends_the_run_before_anything_is_written(who: str, words: str, bench_by: Any) -> None:
    job = bench_by(lambda body: chat(body, "" if body["model"] == who else RATED if is_judge(body) else "Yes."))
    with pytest.raises(UserError, match=f"{words}.*empty 16.*Nothing was written"):
        job.run()
    assert not (job.folder / "out").exists()
    graded = [body for body in bodies(job.server) if is_judge(body)]
    assert bool(graded) == (who == "judge")  # nobody is paid for grading nothing


def test_a_model_may_grade_itself_and_an_answer_file_is_graded_beside(bench: Any) -> None:
    job = bench()
    job.server.plan({"models": {"judge": {}}})
    stored = write_rows(job.folder / "old.jsonl", [answer_row(81 + i, [f"Old {i}.", ""], "old") for i in range(8)])
    summary = job.run(models=["judge"], answers=[stored])
    assert {(row["judge"], row["model"]) for row in summary["models"]} == {("judge", "judge"), ("judge", "old")}
    assert [row["answers"] for row in summary["models"] if row["model"] == "old"] == [{"empty": 8}]
    assert [row["choices"][0]["turns"] for row in job.lines("model_answer/old.jsonl")][3] == ["Old 3.", ""]
    part = write_rows(job.folder / "part.jsonl", [answer_row(i, ["Part.", "More."], "part") for i in (81, 82, 7)])
    some = job.run("some", models=(), answers=[part])
    assert some["finished"] and some["counts"]["answers"] == {"not_in_file": 12} and some["models"][0]["scores"] == 4
    assert any("lack 12 of 16 grades" in line for line in some["warnings"]) and any(
        "1 answers of its file" in line for line in some["warnings"]
    )
    options = MtBenchOptions(questions=job.questions, base_url=job.server.base_url)
    told = estimate(prepared(job.folder / "some", options, judges=["judge"], answers=[part]))
    assert (told["requests"], told["left"]) == (4, 0)  # what the file lacks never comes
    grades = [one for one in job.server.log() if "Grade: [[" in str(one["body"]["messages"]) and "2 + 2" not in str(one["body"])]
    assert len(grades) == 32 + 4


def test_thinking_is_no_part_of_an_answer_nor_of_a_judgment(bench_by: Any) -> None:
    def answer(body: dict[str, Any]) -> Any:
        return chat(body, "<think>A [[1]]?</think>Grade: [[8]]" if is_judge(body) else "<think>Hm.</think>Yes.")

    job = bench_by(answer)
    summary = job.run()
    assert summary["models"][0]["mean"] == 8
    assert not any("Hm." in str(body["messages"]) for body in bodies(job.server))
    assert {turn for row in job.lines("model_answer/writer.jsonl") for turn in row["choices"][0]["turns"]} == {"Yes."}


def test_a_dry_run_says_what_will_be_asked_and_asks_nothing(bench: Any, prices: str) -> None:
    job = bench()
    table = write_rows(job.folder / "x.json", []).with_name("prices.yaml")
    table.write_text("models:\n  writer: [1, 1]\n  judge: [1, 1]\n")
    options = MtBenchOptions(questions=job.questions, base_url=job.server.base_url, prices=table)
    told = estimate(prepared(job.folder / "out", options, ["writer"], judges=["judge"]))
    assert job.server.counts()["requests"] == 0 and not (job.folder / "out.mt-bench.sqlite").exists()
    assert [(row["name"], row["requests"], row["left"]) for row in told["models"]] == [("writer", 16, 16), ("judge", 16, 16)]
    summary = job.run(prices=table)
    assert 0 < summary["cost"] < told["cost_at_most"]
    after = estimate(prepared(job.folder / "out", options, ["writer", "other"], judges=["judge"]))
    assert [(row["name"], row["left"]) for row in after["models"]] == [("writer", 0), ("other", 16), ("judge", 16)]
    with pytest.raises(PartialResult, match=r"before anything was graded: the budget has no room.*same command again"):
        job.run("poor", prices=table, max_cost=2.5e-3)


def test_batches_bring_the_same_answers_and_grades(bench: Any) -> None:
    job = bench()
    alone, batched = job.run(), job.run("batched", batch=True, batch_poll=0.05)
    assert means(batched["models"]) == means(alone["models"])
    assert job.server.counts()["batches"] == 3  # of first answers, of second ones, of judgments
    assert job.lines("model_answer/writer.jsonl", "batched")[0]["choices"] == job.lines("model_answer/writer.jsonl")[0]["choices"]


def test_an_endpoint_with_one_temperature_is_told_how_to_be_asked(bench: Any) -> None:
    job = bench({"capabilities": {"temperature": "400"}})
    with pytest.raises(UserError, match=r"refuses temperature=0.7.*--temperature 1 samples all"):
        job.run()
    summary = job.run(temperature=1)
    assert summary["finished"]
    assert any("takes no temperature" in line for line in summary["warnings"])


def test_an_endpoint_that_takes_no_limit_of_a_reply_is_told(bench_by: Any) -> None:
    def answer(body: dict[str, Any]) -> Any:
        named = next((name for name in ("max_tokens", "max_completion_tokens") if name in body), None)
        return refusal(400, f"{named}: not here") if named else chat(body, RATED if is_judge(body) else "Yes.")

    assert any("takes no limit of 2,048 tokens" in line for line in bench_by(answer).run()["warnings"])


def test_a_limit_that_is_too_large_for_a_judge_is_refused_as_for_a_model(bench: Any) -> None:
    with pytest.raises(UserError, match="--judge-max-tokens 2000000 is more than its endpoint gives"):
        bench().run(judge_max_tokens=2_000_000)
    with pytest.raises(UserError, match="--max-tokens 2000000 is more than its endpoint gives"):
        bench().run(max_tokens=2_000_000)


QUESTION = bench_questions(1)[0]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"id": 1, "prompt": "?"}], ["missing here: question_id, category, turns", "'prompt'"]),
        ([QUESTION, {**QUESTION, "category": "math"}], ["row 2", "question_id 81 stands in an earlier row"]),
        ([{**QUESTION, "turns": ["One?"]}], ["row 1", "question 81 has 1 turns; MT-bench asks two"]),
        ([{**QUESTION, "turns": ["One?", " "]}], ["row 1", "a list of two texts, none empty"]),
        ([{**QUESTION, "category": None}], ["category None is no text"]),
        ([{**QUESTION, "required_temperature": 3}], ["required_temperature 3 is no number from 0 to 2"]),
        ([{**QUESTION, "category": "coding"}], ["against references", "(81)", "--references none"]),
        ([], ["holds no rows"]),
    ],
)  # fmt: skip
def test_questions_that_are_none_are_refused(
    rows: list[dict[str, Any]], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_rows(tmp_path / "q.jsonl", rows)
    message = refused(command(file, tmp_path), tmp_path, capsys)
    assert all(word in message for word in words), message


def command(questions: Path, folder: Path, *more: str) -> list[str]:
    words = ["evaluate", "mt-bench", "--model", "m", "--judge", "j", "--questions", str(questions), "--out", str(folder / "out")]
    return [*words, "--base-url", "http://127.0.0.1:9/v1", *more]


def test_references_must_be_whole_and_of_one_model(tmp_path: Path) -> None:
    questions = write_rows(tmp_path / "question.jsonl", bench_questions(4))
    whole = [answer_row(83, ["a", "b"]), answer_row(84, ["c", "d"])]
    for rows, words in (
        (whole[:1], r"has none for 1 of them \(84\)"),
        ([*whole, answer_row(83, ["x", "y"])], "row 3: gpt-4 answers question 83 in an earlier row"),
        ([*whole, answer_row(82, ["x", "y"], "other")], "answers of 2 models"),
        ([whole[0], answer_row(84, ["c", ""])], "reference of question 84 is empty"),
        ([answer_row(83, ["a"])], "no list of two texts"),
        ([{"question_id": 83, "reference": ["a"]}], "missing here: model_id, choices"),
    ):
        options = MtBenchOptions(questions=questions, references=write_rows(tmp_path / "r.jsonl", rows))
        with pytest.raises(UserError, match=words):
            prepared(tmp_path / "out", options, ["m"], judges=["j"])
    plan = prepared(tmp_path / "out", MtBenchOptions(questions=questions, references="none"), ["m"], judges=["j"])
    assert not any(one.references for one in plan.questions)
    write_rows(tmp_path / "reference_answer" / "gpt-4.jsonl", whole)
    plan = prepared(tmp_path / "out", MtBenchOptions(questions=questions), ["m"], judges=["j"])
    assert [one.references for one in plan.questions] == [(), (), ("a", "b"), ("c", "d")]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--judge", "j"], "two judges are called 'j'"),
        (["--model", "m"], "two models are called 'm'"),
        (["--model", "a/m", "--model", "a_m"], "two models would be written to a_m.jsonl"),
        (["--model", "./none"], "--model ./none: there is no such folder"),
        (["--answers", "none.jsonl"], "there is no file none.jsonl"),
        (["--judge-prompts", "none.jsonl"], "there is no such file"),
    ],
)
def test_names_that_clash_or_are_not_there(more: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_rows(tmp_path / "q.jsonl", bench_questions(2))
    assert words in refused(command(file, tmp_path, *more), tmp_path, capsys)


def test_nobody_to_grade_or_to_be_graded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_rows(tmp_path / "q.jsonl", bench_questions(2))
    words = ["evaluate", "mt-bench", "--questions", str(file), "--out", str(tmp_path / "out")]
    assert "name what is graded" in refused([*words, "--judge", "j"], tmp_path, capsys)
    assert "name a judge" in refused([*words, "--model", "m"], tmp_path, capsys)
    assert "--questions" in refused(
        ["evaluate", "mt-bench", "--model", "m", "--judge", "j", "--out", str(tmp_path / "out")], tmp_path, capsys
    )
    assert "--out is missing" in refused(words[:4], tmp_path, capsys)
    assert "mt-bench" not in SUITES  # which reward models are measured by


def test_the_command_says_means_counts_cost_and_time(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    job = bench()
    assert run([*map(str, job.words("--json"))]) == 0
    said = capsys.readouterr()
    summary = json.loads(said.out)
    assert {"out", "counts", "cost", "seconds", "journal", "models", "page"} <= summary.keys()
    assert {"mean", "turn1", "turn2", "categories", "interval"} <= summary["models"][0].keys()
    assert "by category" in said.err and "compare only with the same ones" in said.err
    job.server.plan({"models": {"judge": {}}})
    assert run([*map(str, job.words("--dry-run"))]) == 0 and "0 left to ask" in capsys.readouterr().err
