"""What is often read wrongly of tools' exports: every trap that a format declares; which reply is the better one in every layout."""

import json
from pathlib import Path
from typing import Any

import pytest
from folders import write_rows
from source_cases import collected, graded_texts, reasons

from mmpo.cli.main import run
from mmpo.pipeline import load_pairs
from mmpo.pipeline.sources import SOURCES

GOOD, BAD, ASKED = "Mars, the red one.", "The moon.", "Name a planet."


def written(folder: Path, content: Any) -> Path:
    """Rows as JSON lines, a text as CSV."""
    if isinstance(content, str):
        (folder / "export.csv").write_text(content)
        return folder / "export.csv"
    return write_rows(folder / "export.jsonl", content if isinstance(content, list) else [content])


def task(*results: tuple[str, str, Any], items: Any = None, **annotation: Any) -> dict[str, Any]:
    keys = {"pairwise": "selected"}
    told = [{"type": kind, "from_name": name, "value": {keys.get(kind, kind): value}} for kind, name, value in results]
    data = {"prompt": ASKED, "answer1": BAD, "answer2": GOOD, **({"items": items} if items else {})}
    return {"data": data, "annotations": [{"id": 1, "completed_by": 7, "result": told, **annotation}]}


ITEMS = [{"id": "a", "body": BAD}, {"id": "b", "body": GOOD}]
FLAT = {"prompt": ASKED, "answer1": BAD, "answer2": GOOD, "annotator": 7, "annotation_id": 1}


def frame(*, score: list[Any], users: Any, status: Any = None, name: str = "s") -> dict[str, Any]:
    beside = {} if status is None else {f"{name}.responses.status": status}
    return {"prompt": ASKED, "reply": BAD, "other": GOOD, f"{name}.responses": score, f"{name}.responses.users": users, **beside}


def record(*values: Any, status: str = "completed", **changed: Any) -> dict[str, Any]:
    answers = [{"value": value, "user_id": "u"} for value in values]
    return {"fields": {"prompt": ASKED, "reply": BAD, "other": GOOD}, "responses": {"s": answers}, "status": status, **changed}


def older(answers: list[tuple[str, int, str]]) -> dict[str, Any]:
    told = [{"user_id": user, "value": value, "status": status} for user, value, status in answers]
    return {
        "prompt": ASKED,
        "reply": BAD,
        "s": told,
        "s-suggestion": 5,
        "s-suggestion-metadata": {"agent": None},
        "external_id": None,
    }


def trace(*assessments: dict[str, Any], response: str = BAD) -> dict[str, Any]:
    source = {"source_id": "u", "source_type": "HUMAN"}
    told = [{"assessment_name": "s", "source": source, "valid": True, **one} for one in assessments]
    return {"state": "OK", "request": ASKED, "response": response, "assessments": told}


def feedback(value: Any, **changed: Any) -> dict[str, Any]:
    return {"feedback": {"value": value}, **changed}


def annotated(score: float | None, **changed: Any) -> dict[str, Any]:
    about = {"annotation_name": "quality", "annotator_kind": "HUMAN", "identifier": "anna", "result.score": score}
    return {**about, "attributes.input.value": ASKED, "attributes.output.value": BAD, **changed}


def sample(reply: str, value: Any, **changed: Any) -> dict[str, Any]:
    said = {"role": "assistant", "content": reply}
    return {
        "id": 1,
        "epoch": 1,
        "input": ASKED,
        "output": {"choices": [{"message": said}]},
        "scores": {"s": {"value": value}},
        **changed,
    }


def log(*samples: dict[str, Any]) -> dict[str, Any]:
    return {"status": "success", "eval": {"task": "t", "model": "m"}, "samples": list(samples)}


def output(text: str, score: float, *parts: tuple[str, Any, str], prompt: str = ASKED) -> dict[str, Any]:
    told = [{"assertion": {"type": kind}, "score": value, "reason": reason} for kind, value, reason in parts]
    graded = {"score": score, "reason": "All assertions passed", "componentResults": told}
    return {"prompt": {"raw": prompt}, "provider": {"id": "m"}, "response": {"output": text}, "gradingResult": graded}


SHEET = "q,[m] {{q}},Status,Score,Named Scores,Grader Reason,Comment,[n] {{q}},Status,Score,Named Scores,Grader Reason,Comment\n"
LISTED = {"instruction": ASKED, "generations": [BAD, GOOD], "model_name": "j"}


def judged(raw: str, ratings: list[Any]) -> dict[str, Any]:
    return {**LISTED, "ratings": ratings, "distilabel_metadata": {"raw_output_ultra_feedback_0": raw}}


GAMES: Any = SOURCES["fastchat"].samples[0].content[0]
PW, RANK, QUALITY = {"gap": "pw"}, {"scores": "rank", "completions": "items[].body"}, {"completion": "reply", "score": "s"}
BETTER = {"first": "reply", "second": "other", "gap": "s"}
Case = tuple[Any, dict[str, Any], list[tuple[Any, ...]], dict[str, int], dict[str, int]]
"""Content, --columns, what is read of it (see `graded_texts`), how much was left out for what reason, and what was noted."""
TRAPS: dict[tuple[str, str], Case] = {
    ("label-studio", "sides"): (
        task(("pairwise", "pw", "right"), ("rating", "stars", 4)), {"gap": "pw*stars"}, [(ASKED, BAD, GOOD, -4.0, "7", "overall")], {}, {}),
    ("label-studio", "skipped"): (
        [task(("pairwise", "pw", "left"), was_cancelled=True), {**task(("pairwise", "pw", "right")), "drafts": [{"id": 3}]}, task()], PW,
        [(ASKED, BAD, GOOD, -1.0, "7", "overall")], {"skipped": 1, "draft": 1, "empty_annotation": 1}, {}),
    ("label-studio", "bare words"): (
        [{**FLAT, "c": "4"}, {**FLAT, "c": {"choices": ["-2"]}}, {**FLAT, "c": [{"rating": 3}]}], {"gap": "c"},
        [(ASKED, BAD, GOOD, gap, "7", "overall") for gap in (4.0, -2.0, 3.0)], {}, {}),
    ("label-studio", "places"): (
        task(("ranker", "rank", {"rank": ["b", "a"]}), items=ITEMS), RANK,
        [(ASKED, BAD, 1.0, "7", "overall"), (ASKED, GOOD, 2.0, "7", "overall")], {}, {}),
    ("label-studio", "untouched ranking"): (
        task(("ranker", "rank", ["a", "b"]), items=ITEMS), RANK,
        [(ASKED, BAD, 2.0, "7", "overall"), (ASKED, GOOD, 1.0, "7", "overall")], {}, {"ranking_in_display_order": 1}),
    ("argilla-export", "drafts"): (
        [frame(score=[1, 2, 3], users=["a", "b", "c"], status=["draft", "discarded", "submitted"]), record(4, status="pending"), record(5)],
        QUALITY, [(ASKED, BAD, 3.0, "c", "overall"), (ASKED, BAD, 5.0, "u", "overall")],
        {"draft": 1, "discarded": 1, "status_unknown": 1}, {"argilla_status_unknown": 1}),
    ("argilla-export", "printed lists"): (
        "prompt,reply,s.responses,s.responses.users,s.responses.status\nq,a,[5 2],['u' \"v's\"],\"['submitted'\n 'submitted']\"\n",
        QUALITY, [("q", "a", 5.0, "u", "overall"), ("q", "a", 2.0, "v's", "overall")], {}, {}),
    ("argilla-export", "versions"): (
        [older([("u", 4, "submitted"), ("v", 1, "discarded"), ("w", 2, "draft")]), older([]),
         {**older([]), "s": {"user_id": ["u"], "value": [3], "status": ["submitted"]}}], QUALITY,
        [(ASKED, BAD, 4.0, "u", "overall"), (ASKED, BAD, 3.0, "u", "overall")], {"discarded": 1, "draft": 1, "not_annotated": 1},
        {"suggestions_left_out": 3}),
    ("argilla-export", "suggestions"): (
        [{**frame(score=[5], users=["u"], status=["submitted"]), "s.suggestion": 1}, record(4, suggestions={"s": {"value": 1}})], QUALITY,
        [(ASKED, BAD, 5.0, "u", "overall"), (ASKED, BAD, 4.0, "u", "overall")], {},
        {"suggestions_left_out": 2, "argilla_status_unknown": 1}),
    ("mlflow", "corrections"): (
        trace(feedback(1, valid=False), feedback(3, overrides="a-1")), {"score": "s"}, [(ASKED, BAD, 3.0, "u", "overall")],
        {"superseded": 1}, {}),
    ("mlflow", "expectations"): (
        trace({"expectation": {"value": 5}}, feedback(2)), {"score": "s"}, [(ASKED, BAD, 2.0, "u", "overall")], {"expectation": 1}, {}),
    ("mlflow", "failed judges"): (
        trace({"feedback": {"value": None, "error": {"error_code": "x"}}}, feedback(2)), {"score": "s"},
        [(ASKED, BAD, 2.0, "u", "overall")], {"judge_failed": 1}, {}),
    ("mlflow", "repeats"): (
        [trace(feedback(1), feedback(2)), trace(feedback([1, 2]))], {"score": "s"},
        [(ASKED, BAD, 1.0, "u", "overall"), (ASKED, BAD, 2.0, "u", "overall")], {"score_not_a_number": 1}, {}),
    ("phoenix", "requests"): (
        annotated(3, **{"attributes.input.value": json.dumps({"model": "m", "messages": [{"role": "user", "content": ASKED}]})}), {},
        [(ASKED, BAD, 3.0, "anna", "quality")], {}, {}),
    ("phoenix", "labels"): (
        [annotated(3), annotated(None, **{"result.label": "good"})], {}, [(ASKED, BAD, 3.0, "anna", "quality")], {"no_grade": 1}, {}),
    ("phoenix", "identifiers"): (
        [annotated(3, identifier=""), annotated(2, identifier="", annotator_kind="LLM"), annotated(1, identifier="", user_id="u1")], {},
        [(ASKED, BAD, 3.0, "human", "quality"), (ASKED, BAD, 2.0, "llm", "quality"), (ASKED, BAD, 1.0, "u1", "quality")], {}, {}),
    ("inspect", "no verdict"): (log(sample(BAD, float("nan"))), {}, [], {"no_verdict": 1}, {}),
    ("inspect", "epochs"): (
        log(sample(BAD, "I"), sample(GOOD, "P", epoch=2)), {},
        [(ASKED, BAD, 0.0, "s", "overall"), (ASKED, GOOD, 0.5, "s", "overall")], {}, {}),
    ("inspect", "errors"): (log(sample(BAD, "I", scores=None, error={"message": "x"})), {}, [], {"sample_error": 1}, {}),
    ("inspect", "prompts"): (
        log(sample(GOOD, "C", messages=[{"role": "user", "content": "Think. " + ASKED}, {"role": "assistant", "content": GOOD}])), {},
        [("Think. " + ASKED, GOOD, 1.0, "s", "overall")], {}, {}),
    ("promptfoo", "unread judges"): (
        output(BAD, 0.5, ("llm-rubric", 0, "Could not extract JSON from llm-rubric response"), ("contains", 1, "x")), {},
        [(ASKED, BAD, 1.0, "promptfoo", "contains")], {"judge_failed": 1}, {}),
    ("promptfoo", "fixed reasons"): (
        output(GOOD, 0.9, ("llm-rubric", 0.9, "names one")), {},
        [(ASKED, GOOD, 0.9, "promptfoo", "overall"), (ASKED, GOOD, 0.9, "promptfoo", "llm-rubric")], {}, {}),
    ("promptfoo", "rounded scores"): (
        SHEET + "x,a,PASS,0.63,,,,b,FAIL,0.13,,,\n", {},
        [("x", "a", 0.63, "promptfoo", "overall"), ("x", "b", 0.13, "promptfoo", "overall")], {}, {"rounded_scores": 2}),
    ("promptfoo", "several prompts"): (
        [output("a", 0.1, prompt="p1"), output("b", 0.2, prompt="p2")], {},
        [("p1", "a", 0.1, "promptfoo", "overall"), ("p2", "b", 0.2, "promptfoo", "overall")], {}, {}),
    ("distilabel", "shifted ratings"): (
        judged("Sure:\n\n#### Output for Text 1\nRating: 2\nRationale: a\n\nb\n\n#### Output for Text 2\nRating: 5", [None, 2, None]), {},
        [(ASKED, BAD, 2.0, "j", "overall"), (ASKED, GOOD, 5.0, "j", "overall")], {}, {"ratings_reread": 1}),
    ("distilabel", "swapped scores"): (
        {"instruction": ASKED, "responses": [BAD, GOOD], "scores": [5.0, 1.0], "model_name": "j",
         "distilabel_metadata": {"raw_output_quality_scorer_0": "[2] Score: 5\n[1] Score: 1"}}, {},
        [(ASKED, BAD, 1.0, "j", "overall"), (ASKED, GOOD, 5.0, "j", "overall")], {}, {"ratings_reread": 1}),
    ("distilabel", "cut decimals"): (
        judged("#### Output for Text 1\nRating: 4.5\n#### Output for Text 2\nRating: 5", [4, 5]), {},
        [(ASKED, BAD, 4.5, "j", "overall"), (ASKED, GOOD, 5.0, "j", "overall")], {}, {"ratings_reread": 1}),
    ("distilabel", "null before grades"): ({**LISTED, "ratings": [None, 4]}, {}, [], {"place_unknown": 1}, {}),
    ("distilabel", "tied pairs"): (
        [{**LISTED, "ratings": [3, 3], "chosen": BAD, "rejected": BAD},
         {"prompt": ASKED, "chosen": BAD, "rejected": BAD, "chosen_rating": 3, "rejected_rating": 3}], {},
        [(ASKED, BAD, 3.0, "j", "overall"), (ASKED, GOOD, 3.0, "j", "overall")], {"identical_texts": 1}, {}),
    ("fastchat", "second game"): (
        GAMES, {}, [(ASKED, BAD, GOOD, -1.0, "gpt-4", "overall"), (ASKED, GOOD, BAD, 1.0, "gpt-4", "overall")], {}, {}),
    ("fastchat", "minus one"): (
        {**SOURCES["fastchat"].samples[1].content[0], "score": -1}, {}, [], {"unread_judgment": 1}, {}),
    ("fastchat", "second turn"): ({**GAMES, "turn": 2}, {}, [], {"second_turn": 1}, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", TRAPS, ids=" ".join)
def test_traps(tmp_path: Path, case: tuple[str, str]) -> None:
    content, columns, expected, left_out, noted = TRAPS[case]
    result = collected(written(tmp_path, content), case[0], columns=columns)
    assert graded_texts(result) == expected
    assert (reasons(result), dict(result.noted)) == (left_out, noted)


def test_a_ranking_of_argilla_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, [record(["other", "reply"])])
    assert (
        run(["build", str(path), "--format", "argilla-export", "--columns", "first=reply,second=other,gap=s", "--out", "out"]) == 2
    )


def test_every_trap_of_a_tool_has_a_test() -> None:
    declared = {(name, trap) for name, source in SOURCES.items() if not source.licence for trap in source.traps}
    assert declared == {*TRAPS, ("argilla-export", "rankings")}


LS, LABELS = "label-studio", ["--gap-of", "first=1,second=-1"]
SIDE = 'prompt,answer1,answer2,annotator,annotation_id,pw,stars\n{},The moon.,"{}",7,1,"{}","{}"\n'
CSV = SIDE.format(ASKED, GOOD, '[{""selected"":""right""}]', '[{""rating"":4}]')
CHAT = "### User:\nHi\n\n### Assistant A:\nHello\n\n### User:\nName a planet.\n\n### Assistant A:\n{}\n\n"
TURNS = "<|The Start of Assistant A's Conversation with User|>\n\n{}<|The End of Assistant A's Conversation with User|>"
# Format, content and options of layouts beside the formats' samples; the moon is always shown first.
LAYOUTS: dict[str, tuple[str, Any, list[str]]] = {
    "a side": (LS, task(("pairwise", "pw", "right")), ["--columns", "gap=pw"]),
    "a side, JSON_MIN": (LS, {**FLAT, "pw": [{"selected": "right"}]}, ["--columns", "gap=pw"]),
    "a side, CSV": (LS, CSV, ["--columns", "gap=pw"]),
    "a side times stars, CSV": (LS, CSV, ["--columns", "gap=pw*stars", "--scale", "-5:5"]),
    "a side turned round": (LS, task(("pairwise", "pw", "left")), ["--columns", "gap=-pw"]),
    "a side by the user's words": (LS, {**FLAT, "pw": "second"}, ["--columns", "gap=pw", *LABELS]),
    "a number": (LS, task(("number", "n", -2)), ["--columns", "gap=n", "--scale", "-3:3"]),
    "a choice": (LS, task(("choices", "c", ["second"])), ["--columns", "gap=c", *LABELS]),
    "stars, JSON": (LS, task(("rating", "s1", 1), ("rating", "s2", 5)), ["--columns", "score_first=s1,score_second=s2"]),
    "ranked, JSON_MIN": (
        LS, {**FLAT, "items": ITEMS, "rank": [{"ranker": {"rank": ["b", "a"]}}]}, ["--columns", "completions=items[].body,scores=rank"]),
    "buckets": (
        LS, task(("ranker", "rank", {"good": ["b"], "bad": ["a"], "_": []}), items=ITEMS), ["--gap-of", "good=1,bad=0"]),
    "a label in a frame": (
        "argilla-export", frame(score=["second"], users=["u"], status=["submitted"]),
        ["--columns", "first=reply,second=other,gap=s", *LABELS]),
    "ratings in records": (
        "argilla-export", {**record(2), "responses": {"s": [{"value": 2, "user_id": "u"}], "t": [{"value": 5, "user_id": "u"}]}},
        ["--columns", "first=reply,second=other,score_first=s,score_second=t"]),
    "checks": ("mlflow", [trace(feedback(False)), trace(feedback(True), response=GOOD)], ["--columns", "score=s"]),
    "numbers": ("inspect", log(sample(BAD, 3), sample(GOOD, 7)), ["--scale", "1:10"]),
    "flattened messages": ("phoenix", [
        annotated(score, **{"attributes.llm.input_messages": [{"message.role": "user", "message.contents": [
            {"message_content.type": "text", "message_content.text": ASKED}]}],
            "attributes.llm.output_messages": [{"message.role": "assistant", "message.content": text}]})
        for text, score in ((BAD, 1), (GOOD, 2))], ["--score", "quality"]),
    "a call of a model": ("phoenix", [
        annotated(score, **{"attributes.output.value": json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})})
        for text, score in ((BAD, 1), (GOOD, 2))], ["--score", "quality"]),
    "values by name": ("inspect", log(sample(BAD, {"x": 0.1}), sample(GOOD, {"x": 0.9})), ["--score", "x"]),
    "a sheet": ("promptfoo", SHEET + f'{ASKED},{BAD},FAIL,0.10,,,,"{GOOD}",PASS,0.90,,,\n', []),
    "by a rubric": (
        "promptfoo", [output(BAD, 1, ("llm-rubric", 0.1, "x")), output(GOOD, 0, ("llm-rubric", 0.9, "y"))], ["--score", "llm-rubric"]),
    "responses and scores": ("distilabel", {"instruction": ASKED, "responses": [BAD, GOOD], "scores": [1, 2]}, []),
    "second turns": (
        "fastchat", [{"model": "m", "judge": "j", "user_prompt": TURNS.format(CHAT.format(text)), "score": score, "turn": 2}
                     for text, score in ((BAD, 2), (GOOD, 9))], []),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_better_reply_is_the_chosen_one(tmp_path: Path, layout: str) -> None:
    format, content, options = LAYOUTS[layout]
    command = ["build", str(written(tmp_path, content)), "--format", format, *options, "--out", str(tmp_path / "out")]
    assert run(command) == 0
    [pair] = load_pairs(tmp_path / "out").to_pylist()
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == (GOOD, BAD)


@pytest.mark.parametrize("format", [name for name, source in SOURCES.items() if source.direction and not source.licence])
def test_a_tools_format_says_what_it_is(format: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["formats", format, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    source = SOURCES[format]
    assert (told["range"], told["direction"], told["traps"]) == (source.range, source.direction, dict(source.traps))
    assert [sample["title"] for sample in told["samples"]] == [sample.title for sample in source.samples]


MIXED: dict[str, tuple[Any, dict[str, Any], int]] = {
    "label-studio": ([task(("pairwise", "pw", "right")), {**FLAT, "pw": [{"selected": "right"}]}], PW, 2),
    "argilla-export": ([frame(score=[5], users=["u"], status=["submitted"]), record(4)], QUALITY, 2),
    "promptfoo": ([{"results": {"results": [output(BAD, 0.1), output(GOOD, 0.9)]}}, output(GOOD, 0.8)], {}, 3),
    "inspect": ([log(sample(BAD, "I")), log(sample(GOOD, "C"), sample(GOOD, 0.5))], {}, 3),
    "distilabel": ([{**LISTED, "ratings": [1, 2]}, {"prompt": ASKED, "chosen": GOOD, "rejected": BAD, "chosen_rating": 3}], {}, 3),
}


@pytest.mark.parametrize("format", MIXED)
def test_layouts_of_several_versions_stand_in_one_file(tmp_path: Path, format: str) -> None:
    content, columns, grades = MIXED[format]
    result = collected(written(tmp_path, content), format, columns=columns)
    assert (result.counts["grade"], result.limited) == (grades, 0)


GRADED, GAME = (SOURCES["fastchat"].samples[1].content[0], GAMES)
V2 = frame(score=[5], users=["u"], status=["submitted"])
TABLES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "argilla-export": ([older([("u", 4, "submitted")]), {**V2, "s-suggestion": None}, {"prompt": ASKED, "reply": GOOD}], QUALITY),
    "fastchat": ([GRADED, GAME], {}),  # type: ignore[list-item]
}


@pytest.mark.parametrize("format", TABLES)
def test_versions_in_one_table_leave_each_other_s_columns_empty(tmp_path: Path, format: str) -> None:
    rows, columns = TABLES[format]
    names = dict.fromkeys(name for row in rows for name in row)
    alone = [grade for row in rows[:2] for grade in graded_texts(collected(written(tmp_path, row), format, columns=columns))]
    result = collected(written(tmp_path, [{name: row.get(name) for name in names} for row in rows]), format, columns=columns)
    assert graded_texts(result) == alone and alone


V1 = [{"user_id": "u", "value": 5, "status": "submitted"}, {"user_id": "v", "value": 2, "status": "submitted"}]
NOBODY = [{**one, "user_id": None} for one in V1]
CELL = 'prompt,reply,s,s-suggestion\n{},{},"{}",\n'
BOTH = [(ASKED, BAD, 5.0, "u", "overall"), (ASKED, BAD, 2.0, "v", "overall")]
UNKNOWN = [(ASKED, BAD, 5.0, "export", "overall"), (ASKED, BAD, 2.0, "export", "overall")]
STARS = {"completion": "answer1", "score": "stars"}
INT_ITEMS = [{"id": 1, "body": BAD}, {"id": 2, "body": GOOD}]
RANKED = [(ASKED, BAD, 1.0, "7", "overall"), (ASKED, GOOD, 2.0, "7", "overall")]
TWO = {"a": {"value": "C"}, "b": {"value": "I"}}
ONE_OF_TWO = log(sample(BAD, 0, scores=TWO), sample(GOOD, 0, epoch=2, scores={"a": {"value": "P"}}))
OF_TWO = [(ASKED, BAD, 1.0, "a", "a"), (ASKED, BAD, 0.0, "b", "b"), (ASKED, GOOD, 0.5, "a", "a")]
WORDS = [sample(f"r{place}", value) for place, value in enumerate(("yes", "False", "0", "0.25"))]
HEAD = "{},Status,Score,Named Scores,Grader Reason,Comment"
SAY = "q," + HEAD.format("[m] Say {{q}}") + "\n"
METRIC = HEAD.format("[m] {{q}}").replace("Grader", "Metric: n,Grader")
# What is easily read as something else, as TRAPS: format, content, columns, what is read, and what is left out.
MORE: dict[str, tuple[str, Any, dict[str, Any], list[tuple[Any, ...]], dict[str, int]]] = {
    "a tag answered twice": (LS, task(("rating", "stars", 2), ("rating", "stars", 5)), STARS, [], {"answered_twice": 1}),
    "several ticks": (LS, task(("choices", "c", ["x", "y"])), {"gap": "c"}, [], {"several_answers": 1}),
    "several ticks, JSON_MIN": (LS, {**FLAT, "c": {"choices": ["x", "y"]}}, {"gap": "c"}, [], {"several_answers": 1}),
    "an item ranked twice": (LS, task(("ranker", "rank", ["b", "b", "a"]), items=ITEMS), RANK, [], {"ranked_twice": 1}),
    "an item in two buckets": (LS, task(("ranker", "rank", {"x": ["b"], "y": ["b", "a"]}), items=ITEMS), RANK, [], {"ranked_twice": 1}),
    "items with numbers": (LS, task(("ranker", "rank", ["2", "1"]), items=INT_ITEMS), RANK, RANKED, {}),
    "people without ids": ("argilla-export", {"prompt": ASKED, "reply": BAD, "s": NOBODY, "s-suggestion": None}, QUALITY, UNKNOWN, {}),
    "people without ids, in a frame": (
        "argilla-export", frame(score=[5, 2], users=[None, None], status=["submitted"] * 2), QUALITY, UNKNOWN, {}),
    "objects as Python prints them": ("argilla-export", CELL.format(ASKED, BAD, V1), QUALITY, BOTH, {}),
    "objects as NumPy prints them": ("argilla-export", CELL.format(ASKED, BAD, str(V1).replace("}, {", "}\n {")), QUALITY, BOTH, {}),
    "checks in words": (
        "mlflow", [trace(feedback("yes")), trace(feedback("No"))], {"score": "s"},
        [(ASKED, BAD, 1.0, "u", "overall"), (ASKED, BAD, 0.0, "u", "overall")], {}),
    "an override": (
        "mlflow", trace(feedback(1, assessment_id="x", valid=None), feedback(3, overrides="x")), {"score": "s"},
        [(ASKED, BAD, 3.0, "u", "overall")], {"superseded": 1}),
    "an assessment named as a column": (
        "mlflow", trace(feedback("good", assessment_name="response"), feedback(3)), {"score": "s"},
        [(ASKED, BAD, 3.0, "u", "overall")], {"name_taken": 1}),
    "a scorer that is missing once": ("inspect", ONE_OF_TWO, {}, OF_TWO, {}),
    "one that the header names": (
        "inspect", {**ONE_OF_TWO, "eval": {"scorers": [{"name": "a"}, {"name": "b"}]}, "samples": ONE_OF_TWO["samples"][1:]}, {},
        OF_TWO[2:], {}),
    "values in words": (
        "inspect", log(*WORDS), {}, [(ASKED, f"r{at}", score, "s", "overall") for at, score in enumerate((1.0, 0.0, 0.0, 0.25))], {}),
    "an output of the same name": (
        "promptfoo", f"q,{METRIC},{METRIC},{METRIC}\nx,a,PASS,0.50,,0.9,,,b,PASS,0.25,,,,,c,FAIL,0.00,,,,\n", {},
        [("x", text, score, "promptfoo", "overall") for text, score in (("a", 0.5), ("b", 0.25), ("c", 0.0))], {}),
    "texts marked as no formulas": (
        "promptfoo", SAY + "'- x,'=1,PASS,0.50,,,\n'y',' z,PASS,0.25,,,\n", {},
        [("Say - x", "=1", 0.5, "promptfoo", "overall"), ("Say 'y'", "' z", 0.25, "promptfoo", "overall")], {}),
    "labels that are no templates": (
        "promptfoo", f"q,{HEAD.format('[m] short')},{HEAD.format('[m] a/b.txt: Say {{q}}')}\nx,a,PASS,0.50,,,,b,PASS,0.50,,,\n", {}, [],
        {"template": 2}),
    "labels of a comparison": (
        "promptfoo", SAY.replace("[m]", "[m] [eval-a]") + "x,a,PASS,0.50,,,\n", {}, [("Say x", "a", 0.5, "promptfoo", "overall")], {}),
    "an error as output": ("promptfoo", SAY + "x,timed out,ERROR,0.00,,,\n", {}, [], {"provider_error": 1}),
    "numbers as text": (
        "distilabel", {**LISTED, "ratings": ["2", "5"]}, {}, [(ASKED, BAD, 2.0, "j", "overall"), (ASKED, GOOD, 5.0, "j", "overall")], {}),
}  # fmt: skip


@pytest.mark.parametrize("case", MORE)
def test_what_is_easily_read_as_something_else(tmp_path: Path, case: str) -> None:
    format, content, columns, expected, left_out = MORE[case]
    result = collected(
        written(tmp_path, content), format, columns=columns, gap_of={"x": 1, "y": 0} if "buckets" in case or "ticks" in case else {}
    )
    assert graded_texts(result) == expected
    assert reasons(result) == left_out


def test_a_question_that_is_answered_seldom_is_found(tmp_path: Path) -> None:
    rows = [*[task(("choices", "other", ["x"]))] * 30, task(("pairwise", "pw", "right"))]
    result = collected(written(tmp_path, rows), "label-studio", columns=PW)
    assert (result.counts["grade"], reasons(result)) == (1, {"no_grade": 30})


@pytest.mark.parametrize(
    ("format", "content", "row", "reason"),
    [
        ("distilabel", [{**LISTED, "ratings": [1, 2]}, {**LISTED, "generations": "x"}], 2, "not_a_list"),
        ("fastchat", [GAMES, {**GAMES, "g1_user_prompt": None}], 2, "texts_not_found"),
        ("inspect", [log(sample(GOOD, "C"), sample(BAD, "Z"))], 2, "score_not_a_number"),
        ("promptfoo", [output(GOOD, 0.9), output(GOOD, "good")], 2, "score_not_a_number"),  # type: ignore[arg-type]
    ],
)
def test_a_bad_row_is_named_with_file_and_row(tmp_path: Path, format: str, content: Any, row: int, reason: str) -> None:
    result = collected(written(tmp_path, content), format)
    told = [(one["file"], one["row"], one["reason"]) for one in result.rejects.to_pylist()]
    assert told == [(str(tmp_path / "export.jsonl"), row, reason)] and result.limited == 1
