"""Candidates from endpoints: what is asked, what becomes of the replies, what a second run adds, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from command import refused
from folders import contents, feedback_folder, write_rows
from own_judges import chat, refusal

from mmpo.annotate import JudgeOptions, generate, judge
from mmpo.annotate.generate.requests import seed_of
from mmpo.cli.main import run
from mmpo.pipeline import BuildOptions, build, load_feedback, validate
from mmpo.pipeline.errors import PartialResult, UserError
from mmpo.pipeline.sources import SOURCES


def test_candidates_go_straight_into_a_judge_and_into_pairs(generating: Any, tmp_path: Path) -> None:
    job = generating({}, 4)
    summary = job.generate(models=["writer", {"model": "other", "called": "second"}], n=3)
    assert summary["finished"] and (summary["prompts"], summary["candidates"], summary["counts"]) == (4, 24, {})
    assert [(row["name"], row["model"], row["candidates"]) for row in summary["models"]] == [
        ("writer", "writer", 12),
        ("second", "other", 12),
    ]
    for row in job.rows():
        assert [one["model"] for one in row["completions"]] == ["writer"] * 3 + ["second"] * 3
        assert len({one["text"] for one in row["completions"]}) == 6 and not row["ratings"] and not row["comparisons"]
    assert {"pass"} <= {check["status"] for check in validate(job.folder / "out")["checks"]} <= {"pass", "unknown"}
    job.server.plan({"defaults": {"writes": False}})
    judge(job.folder / "out", tmp_path / "judged", options=JudgeOptions(model="judge-a", base_url=job.server.base_url))
    made = build(tmp_path / "judged", tmp_path / "pairs", options=BuildOptions(format="feedback", split=(1, 0, 0)))
    assert made["pairs"]["train"] > 30


def test_what_is_sent_is_what_was_asked_for(generating: Any) -> None:
    talk = [
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "And you?"},
    ]
    own = [{"role": "system", "content": "Own."}, {"role": "user", "content": "Who?"}]
    job = generating({}, [{"prompt": talk}, {"prompt": own}])
    models = ["writer", "cold,temperature=0,max_tokens=7"]
    job.generate(
        models=models, n=2, system="Be brief.", temperature=0.7, top_p=0.9, max_tokens=50, stop='["\\n\\n", "END"]', seed=5
    )
    sent = job.bodies()
    assert len(sent) == 8
    for body in sent:
        cold = body["model"] == "cold"
        assert (body["temperature"], body["max_tokens"], body["top_p"]) == ((0, 7, 0.9) if cold else (0.7, 50, 0.9))
        assert body["stop"] == ["\n\n", "END"]
        asked = talk if body["messages"][-1]["content"] == "And you?" else own
        assert body["messages"] == ([{"role": "system", "content": "Be brief."}, *talk] if asked is talk else own)
    assert {row["prompt"][0]["content"] for row in job.rows()} == {"Hi.", "Own."}  # FEEDBACK keeps the prompts as they were
    ids = [row["prompt_id"] for row in job.rows()]
    assert {body["seed"] for body in sent} == {seed_of(5, one, number) for one in ids for number in (0, 1)}


def test_what_is_there_stays_and_counts(generating: Any, tmp_path: Path) -> None:
    """Completions of people and of the model itself, their grades, and the source."""
    rows = [
        {
            "prompt": "A?",
            "completions": ["old", "own"],
            "models": [None, "writer"],
            "scores": [2, 5],
            "rater": "ann",
            "kind": "human",
        }
    ]
    job = generating()
    old = feedback_folder(tmp_path / "old", rows, scale=(1, 5))
    summary = job.generate(prompts=old, n=3)
    [before], [row] = load_feedback(old).to_pylist(), job.rows()
    assert summary["models"][0]["requests"] == summary["candidates"] == 2
    assert row["completions"][:2] == before["completions"] and len(row["completions"]) == 4
    assert [row[name] for name in ("ratings", "source", "prompt_id")] == [
        before[name] for name in ("ratings", "source", "prompt_id")
    ]
    with pytest.raises(UserError, match="every prompt has 1 candidates"):
        job.generate("none", prompts=old, n=1)


def test_a_second_run_adds_what_is_missing(generating: Any) -> None:
    job = generating({}, 5)
    job.generate(n=2)
    first, asked = job.texts(), len(job.bodies())
    assert asked == 10
    job.generate(n=3)
    assert len(job.bodies()) - asked == 5 and set(first) < set(job.texts())
    more = job.generate(models=["writer", "other"], n=3)
    assert len(job.bodies()) - asked == 20 and more["candidates"] == 30
    job.generate("elsewhere", models=["writer", "other"], n=3, journal=more["journal"])
    assert len(job.bodies()) - asked == 20 and job.texts("elsewhere") == job.texts()
    before = contents(job.folder / "out")
    for models, words in ((["other"], "candidates of writer"), (["writer", "other"], "prompts that are not in the input")):
        with pytest.raises(UserError, match=words):
            job.generate(models=models, prompts=write_rows(job.folder / "others.jsonl", [{"prompt": "Else?"}]))
    assert contents(job.folder / "out") == before


@pytest.mark.parametrize(
    ("fault", "reason", "kept"),
    [
        ("refusal", "refused", True),
        ("content_filter", "content_filter", False),
        ("content_policy", "content_filter", False),
    ],
)
def test_replies_that_are_no_candidates_are_named_and_not_asked_again(fault: str, reason: str, kept: bool, generating: Any) -> None:
    job = generating({"faults": [{"kind": fault, "contains": "Question 1?"}]}, 3)
    summary = job.generate(n=2)
    assert summary["finished"] and summary["counts"] == {reason: 2} and summary["candidates"] == 4
    assert not [text for prompt, _, text in job.texts() if prompt == "Question 1?"]
    assert {"pass"} <= {check["status"] for check in validate(job.folder / "out")["checks"]} <= {"pass", "unknown"}
    asked = len(job.bodies())
    again = job.generate(n=2, keep=(reason,))
    assert len(job.bodies()) == asked
    assert again["candidates"] == (5 if kept else 4)  # the words of a refusal, which are the same twice; the others say nothing
    assert again["models"][0]["kept"] == ({reason: 1} if kept else {})


def test_a_cut_reply_is_kept_where_it_is_asked_for(generating: Any) -> None:
    job = generating({}, 6)
    summary = job.generate(n=4, max_tokens=12)
    cut = summary["counts"]["cut"]
    assert 0 < cut < 24 and summary["candidates"] == 24 - cut
    assert all(len(text.split()) < 12 + 2 for *_, text in job.texts())
    again = job.generate(n=4, max_tokens=12, keep="cut")
    assert again["candidates"] == 24 and again["models"][0]["kept"] == {"cut": cut}


@pytest.mark.parametrize("way", ["apart", "tags"])
def test_thinking_stands_apart(way: str, generating_by: Any) -> None:
    def answer(body: dict[str, Any]) -> Any:
        said = f"It is {body.get('seed')}."
        return chat(body, said, reasoning_content="Hm.") if way == "apart" else chat(body, f"<think>Hm.</think>\n\n{said}")

    job = generating_by(answer, 2)
    assert job.generate(n=2)["candidates"] == 4
    found = [one for row in job.rows() for one in row["completions"]]
    assert {one["reasoning_content"] for one in found} == {"Hm."} and all(one["text"].startswith("It is ") for one in found)
    assert {"pass"} <= {check["status"] for check in validate(job.folder / "out")["checks"]} <= {"pass", "unknown"}


def test_thinking_that_never_ends_is_cut(generating_by: Any) -> None:
    job = generating_by(lambda body: chat(body, "<think>Hm, and", finish="length") if body["seed"] % 2 else chat(body, "Yes."), 8)
    summary = job.generate(n=2)
    assert summary["counts"]["cut"] + summary["candidates"] + summary["models"][0]["repeated"] == 16
    assert {text for *_, text in job.texts()} == {"Yes."}


def test_replies_that_say_the_same_are_one_candidate(generating_by: Any) -> None:
    summary = generating_by(lambda body: chat(body, "Yes."), 3).generate(n=4)
    assert (summary["candidates"], summary["models"][0]["repeated"]) == (3, 9)


def test_calls_of_tools_are_candidates(generating_by: Any) -> None:
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    sent: list[Any] = []

    def answer(body: dict[str, Any]) -> Any:
        sent.append(body.get("tools"))
        return chat(body, None, finish="tool_calls", tool_calls=[call])

    job = generating_by(answer, [{"prompt": "1 + 1?", "tools": tools}])
    assert job.generate(n=1)["candidates"] == 1 and sent[-1] == tools
    [row] = job.rows()
    assert json.loads(row["completions"][0]["tool_calls"])[0]["function"] == {"name": "add", "arguments": {"a": 1}}


def test_an_endpoint_without_seeds_is_asked_without_them(generating_by: Any) -> None:
    def answer(body: dict[str, Any]) -> Any:
        for name in ("seed", "max_tokens", "temperature"):
            if name in body:
                return refusal(400, f"Unsupported parameter: {name}")
        return chat(body, "Yes.")

    job = generating_by(answer, 2)
    summary = job.generate(n=2)
    assert summary["candidates"] == 2 and summary["models"][0]["seeds"] is False
    with pytest.raises(UserError, match=r"refuses temperature=0.5.*Leave --temperature out"):
        job.generate("chosen", n=2, temperature=0.5)


def test_a_system_prompt_goes_into_the_first_turn_where_none_is_taken(generating_by: Any) -> None:
    def answer(body: dict[str, Any]) -> Any:
        first = body["messages"][0]
        return refusal(400, "System role not supported") if first["role"] == "system" else chat(body, first["content"])

    job = generating_by(answer, 1)
    job.generate(n=1, system="Be brief.")
    assert [text for *_, text in job.texts()] == ["Be brief.\n\nQuestion 0?"]


@pytest.mark.parametrize("file", ["prompts.csv", "prompts.parquet", "prompts.tsv"])
def test_a_column_of_texts_is_prompts(file: str, generating: Any, tmp_path: Path) -> None:
    job = generating()
    texts = write_rows(tmp_path / file, [{"question": f"{i}?", "topic": "x"} for i in range(3)])
    summary = job.generate(prompts=texts, columns={"prompt": "question"}, n=1)
    assert sorted(prompt for prompt, *_ in job.texts()) == ["0?", "1?", "2?"] and summary["prompts"] == 3


@pytest.mark.parametrize("format", ["ultrafeedback", "trl", "shp", "helpsteer3", "alpaca-eval"])
def test_every_format_of_build_gives_prompts(format: str, generating: Any, tmp_path: Path) -> None:
    """Its completions and grades stay: FEEDBACK is what build makes of it, and a candidate more a prompt."""
    job = generating()
    source = tmp_path / "graded.jsonl"
    source.write_text(SOURCES[format].samples[0].text)
    build(source, tmp_path / "built", options=BuildOptions(format=format, feedback_only=True))
    summary = job.generate(prompts=source, format=format, n=1)
    before, after = load_feedback(tmp_path / "built").to_pylist(), job.rows()
    assert summary["candidates"] == len(before) > 0
    for old, new in zip(before, after, strict=True):
        assert new["completions"][:-1] == old["completions"] and new["completions"][-1]["model"] == "writer"
        assert {name: value for name, value in new.items() if name != "completions"} == {
            name: value for name, value in old.items() if name != "completions"
        }


def test_prompts_that_cannot_be_answered_are_counted(generating: Any) -> None:
    said = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    rows = [{"prompt": "Q?"}, {"prompt": said}, {"prompt": [{"role": "system", "content": "Be."}]}]
    job = generating({}, rows)
    summary = job.generate(n=1)
    assert summary["unanswerable"] == {"no_user_turn": 1, "ends_with_assistant": 1} and summary["prompts"] == 3
    pilot = job.generate("pilot", n=1, limit=2, seed=3)
    assert pilot["unanswerable"]["not_drawn"] == 1 and sum(pilot["unanswerable"].values()) == 2
    only = write_rows(job.folder / "only.jsonl", rows[1:])
    with pytest.raises(UserError, match="no prompt can be answered: no_user_turn 1"):
        job.generate("none", prompts=only)
    assert len(job.server.log()) == 4  # two probes, and one prompt twice


def test_a_model_that_answers_nothing(generating_by: Any) -> None:
    job = generating_by(lambda body: chat(body, "" if body["model"] == "dumb" else f"Yes {body['seed']}."), 2)
    with pytest.raises(UserError, match="no reply became a candidate: empty 4"):
        job.generate(models=["dumb"], n=2)
    assert not (job.folder / "out").exists()
    summary = job.generate(models=["dumb", "writer"], n=2)
    assert summary["candidates"] == 4 and summary["models"][0]["reasons"] == {"empty": 4}


def test_a_dry_run_asks_nothing(generating: Any, prices: str, capsys: pytest.CaptureFixture[str]) -> None:
    job = generating({}, 4)
    words = [*map(str, job.words("--n", 2, "--max-tokens", 100, "--prices", prices, "--json"))]
    words[words.index("writer")] = "judge-a"
    assert run([*words, "--dry-run"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["requests"], told["left"], told["prompts"], told["seconds"]) == (8, 8, 4, None) and not job.server.log()
    tokens = told["models"][0]["prompt_tokens"]
    assert told["cost_at_most"] == pytest.approx((tokens * 1000 + 8 * 100 * 2000) / 1e6)
    assert run(words) == 0
    done = json.loads(capsys.readouterr().out)
    assert run([*words, "--dry-run"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["answered"], told["left"], told["cost_at_most"], told["seconds"]) == (8, 0, 0, 0)
    assert done["cost"] == pytest.approx(told["models"][0]["spent_cost"]) and done["cost"] > 0


def test_a_budget_is_kept_to(generating: Any, prices: str) -> None:
    job = generating({}, 10)
    options: dict[str, Any] = {"n": 4, "max_tokens": 60, "prices": prices, "models": ["judge-a"]}
    part = job.generate(max_cost=1, **options)
    assert part["stopped"] == "budget" and part["cost"] <= 1 and 0 < part["candidates"] < 40 and part["models"][0]["left"] > 0
    assert job.generate(**options)["candidates"] == 40
    with pytest.raises(UserError, match="needs the price of 'writer'"):
        job.generate("priceless", max_cost=1)


def test_batches_write_the_same(generating: Any) -> None:
    job = generating({"batch_seconds": 0.2}, 4)
    single = job.generate(n=2)
    batched = job.generate("batched", n=2, batch=True, batch_poll=0.05)
    assert batched["candidates"] == single["candidates"] == 8 and job.texts("batched") == job.texts()
    assert job.server.counts()["batches"] == 1


BAD: list[tuple[list[str], list[str]]] = [
    (["--model", "m,temprature=1"], ["unknown key of a model 'temprature'", "temperature"]),
    (["--model", "m", "--model", "m"], ["two models are called 'm'"]),
    ([], ["name a model"]),
    (["--model", "m", "--keep", "bad"], ["'bad' is not"]),
    (["--model", "m", "--stop", "[1]"], ["stop"]),
    (["--model", "m", "--n", "0"], ["--n: "]),
    (["--model", "m", "--columns", "prompt=text"], ["text", "Columns present: 'prompt'"]),
    (["--model", "m", "--format", "csvv"], ["csvv"]),
]


@pytest.mark.parametrize(("words", "told"), BAD)
def test_bad_options_are_refused(words: list[str], told: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "Q?"}])
    message = refused(["generate", str(prompts), "--out", str(tmp_path / "out"), *words], tmp_path, capsys, *told)
    assert message.startswith("error: ")


def test_bad_inputs_are_refused(generating: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = generating({}, 2)
    words = ["generate", "--model", "m", "--base-url", job.server.base_url]
    pairs, candidates = tmp_path / "pairs", feedback_folder(tmp_path / "candidates", 2)
    write_rows(tmp_path / "other" / "notes.jsonl", [{"a": 1}])
    (tmp_path / "prompts.txt").write_text("Q?\n")
    for given, out, told in (
        (tmp_path / "none.jsonl", "out", "none.jsonl"),
        (candidates, "candidates", "is the input itself"),
        (job.prompts, "candidates", "holds what another command wrote"),
        (job.prompts, "other", "holds something else"),
        (tmp_path / "prompts.txt", "out", "prompts.txt"),
        (tmp_path / "other" / "notes.jsonl", "out", "Columns present: 'a'"),
    ):
        message = refused([*words, str(given), "--out", str(tmp_path / out)], tmp_path, capsys)
        assert told in message, message
    assert not pairs.exists() and not job.server.log()


def test_a_wrong_key_and_an_endpoint_that_is_away(generating: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    job = generating({"api_keys": ["right"]}, 2)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError, match="writer: the environment variable OPENAI_API_KEY is not set"):
        generate(job.prompts, job.folder / "out", models=["writer"])
    with pytest.raises(UserError, match="API key is not accepted"):
        job.generate()
    with pytest.raises(PartialResult, match="does not answer"):
        job.generate(models=["m,base_url=http://127.0.0.1:1/v1"], patience=0.1, retries=0)
    assert not (job.folder / "out").exists()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda body: chat(body, "", finish="length"), "empty"),
        (lambda body: chat(body, " \n", finish="length"), "empty"),
        (lambda body: chat(body, "So", finish="length"), "cut"),
        (lambda body: chat(body, "", finish="length", reasoning_content="Hm"), "cut"),
        (lambda body: chat(body, "<think>Hm", finish="length"), "cut"),
        (lambda body: chat(body, "", reasoning_content="Hm"), "empty"),
    ],
)
def test_a_reply_is_cut_only_where_something_was_written(answer: Any, reason: str, generating_by: Any) -> None:
    job = generating_by(lambda body: chat(body, "Yes.") if body["messages"][-1]["content"] == "Question 0?" else answer(body), 3)
    assert job.generate(n=1)["counts"] == {reason: 2}


def test_where_nothing_comes_of_a_run_what_was_not_asked_is_told_too(generating_by: Any) -> None:
    rows = [{"prompt": "One?"}, {"prompt": [{"role": "user", "content": "Two?"}, {"role": "assistant", "content": "Two."}]}]
    job = generating_by(lambda body: chat(body, ""), rows)
    with pytest.raises(
        UserError, match=r"no reply became a candidate: empty 2; 1 prompts were not asked \(ends_with_assistant 1\)"
    ):
        job.generate(n=2)


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("max_tokens is too large: 99. This model supports at most 50 completion tokens", 1),
        ("'max_tokens' or 'max_completion_tokens' is too large: 99. This model's maximum context length is 64 tokens", 1),
        ("Invalid 'max_tokens': 99. Expected a number from 1 to 50.", 1),
        ("maximum context length is 64 tokens, you requested 7 in the messages, 99 in the completion", 0),
    ],
)
def test_a_reply_that_may_be_longer_than_the_model_writes_ends_the_run_by_name(words: str, asked: int, generating_by: Any) -> None:
    """Where the probe shows it, after one request; where only longer prompts do, once nothing has been answered."""
    job = generating_by(lambda body: chat(body, "Hi.") if "hello" in str(body) and not asked else refusal(400, words), 60)
    with pytest.raises(UserError, match="--max-tokens 99 is more than its endpoint gives" if asked else "a smaller --max-tokens"):
        job.generate(n=1, max_tokens=99, concurrency=1)
    assert len(job.server.came) == (asked or 51)
