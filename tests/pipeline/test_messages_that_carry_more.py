"""Messages with thinking, tool calls and what tools answered: kept from a source to FEEDBACK, PAIRS and out again, under their own ids."""

import json
import shutil
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folders import pairs_folder, write_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from source_cases import add

from mmpo.annotate.exports import export
from mmpo.pipeline import (
    BuildOptions,
    build,
    build_pairs,
    completion_id,
    load_feedback,
    load_pairs,
    prompt_id,
    read_feedback,
    validate,
)
from mmpo.pipeline.errors import BadRow, UserError
from mmpo.pipeline.report import write_report
from mmpo.pipeline.sources.messages import read_calls, read_tools
from mmpo.pipeline.storage.files import file_digest
from mmpo.pipeline.tables import OPTIONAL_KEYS, PAIRS, keys_of, without_nulls

CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Paris", "n": None}}}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
    }
]
ASKED = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Rain?"},
    {"role": "assistant", "content": "", "reasoning_content": "ask", "tool_calls": [CALL]},
    {"role": "tool", "content": "sunny", "tool_call_id": "c1"},
]
ROW = {
    "prompt": ASKED,
    "tools": TOOLS,
    "chosen": [{"role": "assistant", "content": "No.", "reasoning_content": "sunny is dry"}],
    "rejected": [{"role": "assistant", "content": "", "tool_calls": [CALL]}],
    "margin": 2.0,
}


def digest(raw: bytes) -> str:
    return blake2b(raw, digest_size=16).hexdigest()


def said(pairs: pa.Table) -> list[dict[str, Any]]:
    """Prompt, tools and both replies of each pair, as a source has them."""
    return [
        {name: without_nulls(row[name]) for name in ("prompt", "chosen", "rejected")}
        | {"tools": json.loads(row["tools"]) if row.get("tools") else None}
        for row in pairs.to_pylist()
    ]


def test_ids_are_digests_of_every_key_that_is_set() -> None:
    plain = [{"role": "user", "content": "Hi"}]
    nulls = [{**plain[0], "reasoning_content": None, "tool_calls": None, "tool_call_id": None}]
    assert prompt_id(plain) == prompt_id(nulls) == digest(b'[{"role":"user","content":"Hi"}]')
    full = {"tool_call_id": "c", "tool_calls": "[]", "content": "", "reasoning_content": "hm", "role": "assistant"}
    raw = b'[{"role":"assistant","content":"","reasoning_content":"hm","tool_calls":"[]","tool_call_id":"c"}]'
    assert prompt_id([full]) == digest(raw)
    assert prompt_id(plain, '[{"a":1}]') == digest(b'[{"role":"user","content":"Hi"}]\0[{"a":1}]')
    assert completion_id("p", "é") == completion_id("p", "é", None, None) == digest("p\0é".encode())
    assert completion_id("p", "a", "b") == digest(b'p\1[{"role":"assistant","content":"a","reasoning_content":"b"}]')


def test_what_a_source_says_is_stored_and_nothing_else() -> None:
    row = add("trl", {**ROW, "prompt": [{**one, "name": None} for one in ASKED]}).row
    calls = '[{"id":"c1","type":"function","function":{"name":"weather","arguments":{"city":"Paris","n":null}}}]'
    assert [one["tool_calls"] for one in row["prompt"]] == [None, None, calls, None]
    assert [one["tool_call_id"] for one in row["prompt"]] == [None, None, None, "c1"]
    assert [one["reasoning_content"] for one in row["prompt"]] == [None, None, "ask", None]
    assert [(one["text"], one["reasoning_content"], one["tool_calls"]) for one in row["completions"]] == [
        ("No.", "sunny is dry", None),
        ("", None, calls),
    ]
    assert json.loads(row["tools"]) == TOOLS
    assert row["prompt_id"] == prompt_id(row["prompt"], row["tools"])


@pytest.mark.parametrize(
    "given_as",
    [
        [CALL],
        json.dumps([CALL]),
        [{**CALL, "function": {**CALL["function"], "arguments": json.dumps(CALL["function"]["arguments"])}}],
        [{**CALL, "index": None}],
    ],
)
def test_calls_are_stored_in_one_form(given_as: Any) -> None:
    assert json.loads(read_calls(given_as) or "") == [CALL]


def test_calls_in_other_layouts_and_arguments_that_are_no_object() -> None:
    one = {"type": "function", "function": {"name": "f", "arguments": "not JSON"}}
    assert json.loads(read_calls({"name": "f", "arguments": "not JSON"}) or "") == [one]
    assert json.loads(read_calls([{"name": "f"}]) or "") == [{"type": "function", "function": {"name": "f"}}]
    large = {"name": "f", "arguments": '{"n": 123456789012345678901234567890}'}
    assert "123456789012345678901234567890}" in (read_calls(large) or "")
    assert '"{\\"n\\": NaN}"' in (read_calls({"name": "f", "arguments": '{"n": NaN}'}) or "")
    assert read_calls([]) is read_calls(None) is read_tools([]) is read_tools(" ") is None
    assert read_tools([json.dumps({"a": {"b": None, "c": [1]}})]) == '[{"a":{"c":[1]}}]'


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"rejected": [{"role": "assistant", "content": "", "tool_calls": ["f"]}]}, "malformed_tool_calls"),
        (
            {"rejected": [{"role": "assistant", "content": "", "tool_calls": [{"function": {"arguments": {}}}]}]},
            "malformed_tool_calls",
        ),
        ({"rejected": [{"role": "assistant", "content": ""}]}, "empty_completion"),
        ({"tools": "weather"}, "malformed_tools"),
        ({"tools": [{"n": float("nan")}]}, "malformed_tools"),
        ({"prompt": [{"role": "user", "content": "Q"}, {"role": "tool", "content": {"a": 1}}]}, "not_text"),
        ({"tools": [{"a": "\ud800"}]}, "lone_surrogate"),
        ({"rejected": [{"role": "assistant", "content": "x", "reasoning_content": "\ud800"}]}, "lone_surrogate"),
    ],
)
def test_what_can_not_be_kept_is_refused_by_name(changed: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow) as caught:
        add("trl", ROW | changed)
    assert caught.value.reason == reason


def test_candidates_that_are_objects_keep_their_thinking() -> None:
    candidates = [{"text": "a", "reasoning": "hm", "score": 1}, {"text": "a", "score": 2}, {"text": "b", "score": 3}]
    columns = {"completions": "completions[].text", "scores": "completions[].score"}
    found = add("jsonl", {"prompt": "Q", "completions": candidates}, columns=columns).row["completions"]
    assert [(one["text"], one["reasoning_content"]) for one in found] == [("a", "hm"), ("a", None), ("b", None)]


# --- all the way round ------------------------------------------------------------------------------------------------------

text = st.text(st.characters(codec="utf-8"), max_size=8)
word = text.filter(lambda one: bool(one.strip()))
arguments = st.dictionaries(
    text, st.none() | st.booleans() | st.integers(-(2**63), 2**63) | text | st.lists(text, max_size=2), max_size=2
)
calls = st.lists(
    st.builds(lambda i, f, a: {"id": i, "type": "function", "function": {"name": f, "arguments": a}}, text, text, arguments),
    min_size=1,
    max_size=2,
)


@st.composite
def message(draw: st.DrawFn, role: str) -> dict[str, Any]:
    one: dict[str, Any] = {"role": role, "content": draw(word)}
    if role == "assistant":
        one |= {"reasoning_content": draw(word)} if draw(st.booleans()) else {}
        if draw(st.booleans()):
            one |= {"content": draw(st.just("") | word), "tool_calls": draw(calls)}
    return one | ({"tool_call_id": draw(word)} if role == "tool" and draw(st.booleans()) else {})


@st.composite
def row(draw: st.DrawFn) -> dict[str, Any]:
    roles = ["user", *draw(st.lists(st.sampled_from(["assistant", "tool", "user"]), max_size=3))]
    replies = draw(st.lists(message("assistant"), min_size=2, max_size=2, unique_by=lambda one: json.dumps(one, sort_keys=True)))
    tools = draw(st.lists(st.dictionaries(word, st.integers(0, 9), min_size=1, max_size=2), max_size=1))
    return {
        "prompt": [draw(message(role)) for role in roles],
        "chosen": [replies[0]],
        "rejected": [replies[1]],
        "margin": draw(st.integers(1, 5)),
    } | ({"tools": tools} if tools else {})


@pytest.mark.slow
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(row(), min_size=1, max_size=6, unique_by=lambda one: json.dumps([one["prompt"], one.get("tools")])))
def test_every_key_comes_round_and_files_may_be_cut(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> None:
    """source → FEEDBACK → PAIRS → export → source, and one file or one for each row."""
    path = tmp_path_factory.mktemp("round")
    options = BuildOptions("trl", split=(1, 0, 0))
    build(write_rows(path / "rows.jsonl", rows), path / "pairs", options=options)
    pairs = load_pairs(path / "pairs")
    key = lambda one: json.dumps(one, sort_keys=True)  # noqa: E731
    wanted = [{"tools": None, **{name: value for name, value in one.items() if name != "margin"}} for one in rows]
    assert sorted(map(key, said(pairs))) == sorted(map(key, wanted))
    assert [check["name"] for check in validate(path / "pairs")["checks"] if check["status"] == "fail"] == []
    files = [write_rows(path / f"{number}.jsonl", [one]) for number, one in enumerate(rows)]
    build(files, path / "cut", options=options)
    assert load_pairs(path / "cut").replace_schema_metadata(None).equals(pairs.replace_schema_metadata(None))
    build(files[::-1], path / "feedback", options=BuildOptions("trl", feedback_only=True))
    assert [check["name"] for check in validate(path / "feedback")["checks"] if check["status"] == "fail"] == []
    feedback = load_feedback(path / "feedback")
    assert build_pairs(feedback).sort_by("chosen_id").equals(pairs.sort_by("chosen_id").select(pairs.column_names))
    assert keys_of(pairs.schema) == keys_of(feedback.schema)
    export(path / "pairs", "jsonl", path / "out.jsonl")
    lines = [json.loads(line) for line in (path / "out.jsonl").read_bytes().split(b"\n")[:-1]]
    columns = {"margin": "quality_margin"}
    build(path / "out.jsonl", path / "again", options=BuildOptions("trl", columns=columns, split=(1, 0, 0)))
    again = load_pairs(path / "again")
    assert again.select(["prompt_id", "chosen_id", "rejected_id"]).equals(pairs.select(["prompt_id", "chosen_id", "rejected_id"]))
    assert not any(None in one.values() for line in lines for name in ("prompt", "chosen", "rejected") for one in line[name])


def test_a_dataset_has_fields_for_what_it_holds_and_no_others(tmp_path: Path) -> None:
    plain = [{"prompt": f"Q{i}", "chosen": "a", "rejected": "b", "margin": 1} for i in range(20)]
    build(write_rows(tmp_path / "plain.jsonl", plain), tmp_path / "plain", options=BuildOptions("trl"))
    build(write_rows(tmp_path / "more.jsonl", [*plain, ROW]), tmp_path / "more", options=BuildOptions("trl"))
    assert load_pairs(tmp_path / "plain").schema.equals(PAIRS, check_metadata=False)
    more = load_pairs(tmp_path / "more")
    assert keys_of(more.schema) == OPTIONAL_KEYS
    ids = set(load_pairs(tmp_path / "plain")["chosen_id"].to_pylist())
    assert set(more["chosen_id"].to_pylist()) > ids
    feedback = read_feedback([tmp_path / "plain.jsonl", tmp_path / "more.jsonl"], "trl")
    assert keys_of(feedback.schema) == OPTIONAL_KEYS and feedback.num_rows == 21


# --- what the grades are of -------------------------------------------------------------------------------------------------


def reply(text: str, **more: str) -> dict[str, str]:
    return {"role": "assistant", "content": text, **more}


THINKS = [
    {"prompt": "Q1", "chosen": "<think>x</think>a", "rejected": "<think>y</think>a", "margin": 1},
    {"prompt": "Q2", "chosen": "a", "rejected": " a\n", "margin": 1},
    {"prompt": "Q3", "chosen": [reply("a", reasoning="x")], "rejected": [reply("a")], "margin": 1},
    {"prompt": "Q4", "chosen": "<think>x</think>a", "rejected": "◁think▷x◁/think▷b", "margin": 1},
    {"prompt": "Q5", "chosen": "<think>x</think>", "rejected": "b", "margin": 1},
    {"prompt": "Q6", "chosen": "a < b", "rejected": "a > b", "margin": 1},
]  # fmt: skip


def test_replies_of_one_answer_are_said_and_left_out_where_answers_were_graded(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", THINKS)
    summary = build(path, tmp_path / "all", options=BuildOptions("trl"))
    lines = [line for line in summary["warnings"] if "differ in nothing but" in line]
    assert [line.split(":")[0] for line in lines] == [
        "2 of 6 pairs differ in nothing but thinking",
        "1 of 6 pairs differ in nothing but white space",
    ]
    summary = build(path, tmp_path / "answer", options=BuildOptions("trl", graded_part="answer"))
    assert {name: n for name, n in summary["rejected"].items() if name != "no_pair"} == {"identical_answers": 3, "thinking_only": 1}
    manifest = json.loads((tmp_path / "answer" / "manifest.json").read_text())
    assert (manifest["recipe"]["graded_part"], manifest["recipe"]["thinking"]) == ("answer", "keep")
    assert validate(tmp_path / "answer")["ok"]


def test_dropped_thinking_leaves_answers_with_all_their_grades(tmp_path: Path) -> None:
    """Two raters of one answer with two thoughts: one completion, one score."""
    rows = [
        {"prompt": "Q", "completion": "<think>x</think>a", "score": 4, "rater": "ann"},
        {"prompt": "Q", "completion": "<think>y</think> a", "score": 2, "rater": "ben"},
        {"prompt": "Q", "completion": "b", "score": 1, "rater": "ann"},
        {"prompt": "Q", "completion": "<think>only", "score": 1, "rater": "ann"},
    ]
    pairs_folder(tmp_path / "pairs", rows, thinking="drop", kind="human")
    [pair] = load_pairs(tmp_path / "pairs").to_pylist()
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"], pair["score_chosen"]) == ("a", "b", 3)
    assert pair["chosen_id"] == completion_id(pair["prompt_id"], "a")
    feedback = read_feedback(tmp_path / "pairs.jsonl", "jsonl")
    assert build_pairs(feedback, thinking="drop")["chosen_id"].to_pylist() == [pair["chosen_id"]]
    compared = write_rows(tmp_path / "rows.jsonl", THINKS)
    summary = build(compared, tmp_path / "compared", options=BuildOptions("trl", thinking="drop"))
    assert summary["rejected"]["identical_answers"] == 2 and validate(tmp_path / "compared")["ok"]
    kept = [one["chosen"][0]["content"] for one in load_pairs(tmp_path / "compared").to_pylist()]
    assert sorted(kept) == ["a", "a", "a < b"]


# --- checks -----------------------------------------------------------------------------------------------------------------

MUTANTS: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "other calls in the prompt": (
        "prompt ids",
        lambda row: row["prompt"][2].update(tool_calls=json.dumps([{"function": {"name": "f"}}])),
    ),
    "other thinking in the prompt": ("prompt ids", lambda row: row["prompt"][2].update(reasoning_content="no")),
    "another call's id": ("prompt ids", lambda row: row["prompt"][3].update(tool_call_id="c2")),
    "other tools": ("prompt ids", lambda row: row.update(tools='[{"a":1}]')),
    "no tools": ("prompt ids", lambda row: row.update(tools=None)),
    "other thinking": ("completion ids", lambda row: row["chosen"][0].update(reasoning_content="no")),
    "no thinking": ("completion ids", lambda row: row["chosen"][0].update(reasoning_content=None)),
    "other calls": ("completion ids", lambda row: row["rejected"][0].update(tool_calls='[{"function":{"name":"f"}}]')),
    "calls that are none": ("messages", lambda row: _with_calls(row, "[1]")),
    "calls that are no JSON": ("messages", lambda row: _with_calls(row, "f()")),
    "no text and no calls": ("empty texts", lambda row: _with_calls(row, None)),
}


def _with_calls(row: dict[str, Any], given_as: str | None) -> None:
    """Calls of the reply, its id made to fit."""
    row["rejected"][0]["tool_calls"] = given_as
    row["rejected_id"] = completion_id(row["prompt_id"], "", None, given_as)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{**ROW, "prompt": [*ASKED[:1], {"role": "user", "content": f"Rain {i}?"}, *ASKED[2:]]} for i in range(6)]
    path = tmp_path_factory.mktemp("good")
    build(write_rows(path / "rows.jsonl", rows), path / "pairs", options=BuildOptions("trl", split=(1, 0, 0)))
    return path / "pairs"


@pytest.mark.parametrize("name", MUTANTS)
def test_a_changed_message_fails_its_check_and_no_other(name: str, good: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(good, tmp_path / "data"))
    part = folder / "train" / "part-00000.parquet"
    table = pq.ParquetFile(part).read()
    rows, (check, change) = table.to_pylist(), MUTANTS[name]
    change(rows[2])
    pq.write_table(pa.Table.from_pylist(rows, table.schema), part)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["train/part-00000.parquet"] = file_digest(part)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert [one["name"] for one in validate(folder)["checks"] if one["status"] == "fail"] == [check]


# --- out again --------------------------------------------------------------------------------------------------------------


def test_exports_hold_what_is_set_and_no_null(good: Path, tmp_path: Path) -> None:
    export(good, "trl-dpo", tmp_path / "trl")
    lines = [orjson.loads(line) for line in (tmp_path / "trl/train/part-00000.jsonl").read_bytes().splitlines()]
    assert len(lines) == 6
    assert all(line["prompt"][2:] == ASKED[2:] and line["chosen"] == ROW["chosen"] for line in lines)
    assert json.loads(lines[0]["tools"]) == TOOLS


def test_a_report_shows_calls_and_thinking_as_text(tmp_path: Path) -> None:
    thought = {"role": "assistant", "content": "No.", "reasoning_content": "<script>alert(1)</script>"}
    build(write_rows(tmp_path / "rows.jsonl", [ROW | {"chosen": [thought]}]), tmp_path / "pairs", options=BuildOptions("trl"))
    write_report(tmp_path / "pairs", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "calls weather(" in page and "thinks: &lt;script&gt;" in page and "<script>alert(1)" not in page


def _call(city: str, id: str = "c1") -> list[dict[str, Any]]:
    return [{**CALL, "id": id, "function": {"name": "weather", "arguments": {"city": city}}}]


def _reply(score: int, prompt: Any = "Rain?", **message: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": {"role": "assistant", "content": "Let me look.", **message}, "score": score}


def test_replies_that_differ_in_calls_or_thinking_alone_are_no_duplicates(tmp_path: Path) -> None:
    """Their texts are the same. Of replies whose answers were graded, thinking does not count."""
    rows = [_reply(5, tool_calls=_call("Paris")), _reply(1, tool_calls=_call("Rome", "c2"))]
    thinking = [_reply(5, "Why?", reasoning_content="a b c"), _reply(1, "Why?", reasoning_content="x y z")]
    for what in ("replies", "pairs"):
        folder = pairs_folder(tmp_path / what, rows + thinking, duplicates=what)
        assert load_pairs(folder).num_rows == 2 and pq.read_table(folder / "rejects.parquet").num_rows == 0
    answers = pairs_folder(tmp_path / "answers", [*rows, *thinking, _reply(3, "Why?", content="Let me look!")],
    duplicates="replies", graded_part="answer")  # fmt: skip
    reasons = pq.read_table(answers / "rejects.parquet")["reason"].to_pylist()
    assert load_pairs(answers).num_rows == 1
    assert sorted(reasons) == ["identical_answers", "near_duplicate_replies", "near_duplicate_replies", "no_pair"]


def test_prompts_that_differ_in_calls_alone_are_no_duplicates(tmp_path: Path) -> None:
    def turns(city: str) -> list[dict[str, Any]]:
        called = {"role": "assistant", "content": "", "tool_calls": _call(city)}
        return [{"role": "user", "content": "Rain?"}, called, {"role": "tool", "content": "sunny", "tool_call_id": "c1"}]

    rows = [_reply(score, turns(city), content=text) for city in ("Paris", "Rome") for text, score in (("No.", 5), ("Yes.", 1))]
    folder = pairs_folder(tmp_path / "pairs", rows, duplicates="prompts")
    assert load_pairs(folder).num_rows == 2 and pq.read_table(folder / "rejects.parquet").num_rows == 0


def test_lengths_count_calls_thinking_and_tools(tmp_path: Path) -> None:
    """A reply of ten characters and its thinking, 30 and a new line; a call alone, `calls weather({"city": "Oslo"})`; tools of a prompt."""
    rows = [_reply(5, content="ten chars.", reasoning_content="x" * 30), _reply(1, content="", tool_calls=_call("Oslo"))]
    assert load_pairs(pairs_folder(tmp_path / "fits", rows, max_chars=41, min_chars=31)).num_rows == 1
    for name, limit, told in (
        ("long", {"max_chars": 40}, {"longest": "chosen", "characters": 41, "limit": 40}),
        ("short", {"min_chars": 32}, {"shortest": "rejected", "characters": 31, "limit": 32}),
    ):
        fine = [_reply(5, "fine", content="y" * 35), _reply(1, "fine", content="z" * 35)]
        folder = pairs_folder(tmp_path / name, rows + fine, **limit)
        assert told.items() <= json.loads(pq.read_table(folder / "rejects.parquet")["evidence"].to_pylist()[-1]).items()
        assert load_pairs(folder).num_rows == 1
    offered = [{**row, "tools": TOOLS} for row in rows]
    size = len(load_pairs(pairs_folder(tmp_path / "tools", offered))["tools"][0].as_py()) + len("Rain?")
    assert load_pairs(pairs_folder(tmp_path / "enough", offered, max_chars=size)).num_rows == 1
    with pytest.raises(UserError, match="over_long 1"):
        pairs_folder(tmp_path / "over", offered, max_chars=size - 1)
