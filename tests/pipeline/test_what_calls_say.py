"""Tool calls that say the same are the same, whatever their random ids and the order of their keys; what is stored stays as written."""

import json
from pathlib import Path
from typing import Any

import pytest
from folders import write_rows
from source_cases import add

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
from mmpo.pipeline.errors import BadRow
from mmpo.pipeline.tables import as_said, said_calls, user_prompt_id


def call(identity: str | None, **arguments: Any) -> dict[str, Any]:
    """A call of add with its arguments in the order given."""
    return ({} if identity is None else {"id": identity}) | {
        "type": "function",
        "function": {"name": "add", "arguments": arguments},
    }


def calling(*calls: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": "", "tool_calls": list(calls)}


SAME = [
    calling(call("x1", a=1, b={"c": 2, "d": 3}), call("x2", a=4)),
    calling(call("y9", b={"d": 3, "c": 2}, a=1), call("y8", a=4)),
    calling(call(None, a=1, b={"c": 2, "d": 3}), call(None, a=4)),
]
OTHER = [
    calling(call("x2", a=4), call("x1", a=1, b={"c": 2, "d": 3})),
    calling(call("x1", a=2, b={"c": 2, "d": 3}), call("x2", a=4)),
    calling(call("x1", a=1, b={"c": 2, "d": 3})),
]


def stored(message: dict[str, Any]) -> str:
    return json.dumps(message["tool_calls"])


def test_completions_are_the_same_by_names_and_arguments_in_their_order() -> None:
    same = {completion_id("p", "", None, stored(message)) for message in SAME}
    other = {completion_id("p", "", None, stored(message)) for message in OTHER}
    assert len(same) == 1 and len(other) == 3 and not same & other
    assert said_calls('[{"function":{"name":"f","arguments":""}}]') == said_calls(
        '[{"id":"1","function":{"name":"f","arguments":{}}}]'
    )
    assert said_calls('[{"function":{"name":"f","arguments":"not JSON"}}]') == '[{"arguments":"not JSON","name":"f"}]'


@pytest.mark.parametrize("second", SAME[1:])
def test_a_pair_of_calls_that_say_the_same_is_no_pair(second: dict[str, Any]) -> None:
    for row in ({"margin": 1.0}, {"score_chosen": 5, "score_rejected": 2}):
        with pytest.raises(BadRow) as caught:
            add("trl", {"prompt": "Q", "chosen": [SAME[0]], "rejected": [second], **row})
        assert caught.value.reason == "identical_texts"
    with pytest.raises(BadRow) as caught:
        add("jsonl", {"prompt": "Q", "first": SAME[0], "second": second, "gap": 1})
    assert caught.value.reason == "identical_texts"


def answered(identity: str, answers_to: str, **arguments: Any) -> list[dict[str, Any]]:
    """A prompt in which two calls are made and one is answered."""
    asked, tool = {"role": "user", "content": "Sum?"}, {"role": "tool", "content": "3", "tool_call_id": answers_to}
    return [asked, calling(call(identity, **arguments), call(f"{identity}-2")), tool]


def test_what_a_tool_answered_goes_to_the_same_call() -> None:
    texts = [
        [{**message, **({"tool_calls": stored(message)} if "tool_calls" in message else {})} for message in prompt]
        for prompt in (
            answered("x", "x", a=1, b=2),
            answered("y", "y", b=2, a=1),
            answered("x", "x-2", a=1, b=2),
            answered("x", "z", a=1, b=2),
            answered("x", "0", a=1, b=2),
        )
    ]
    ids = [prompt_id(prompt) for prompt in texts]
    assert ids[0] == ids[1] and len(set(ids)) == 4
    assert [prompt[2]["tool_call_id"] for prompt in map(as_said, texts)] == [0, 0, 1, "z", "0"]
    twice = [*texts[0], *texts[0][1:]]  # ids that begin anew in every turn
    assert [message.get("tool_call_id") for message in as_said(twice)] == [None, None, 0, None, 2]
    assert (
        prompt_id(texts[0], '[{"a":1,"b":2}]') == prompt_id(texts[0], '[{"b":2,"a":1}]') != prompt_id(texts[0], '[{"a":2,"b":1}]')
    )


def test_grades_of_the_same_calls_meet_and_the_stored_writing_follows_no_order(tmp_path: Path) -> None:
    """Two raters who got the same prompt and reply under other ids: one pair of (4 + 2)/2 against 1, in whatever order the files come."""
    x, y = answered("x", "x", a=1, b=2), answered("y", "y", b=2, a=1)
    files = [
        write_rows(tmp_path / "1.jsonl", [{"prompt": x, "completion": [SAME[0]], "score": 4, "rater": "ann"}]),
        write_rows(tmp_path / "2.jsonl", [{"prompt": y, "completion": [SAME[1]], "score": 2, "rater": "ben"}]),
        write_rows(tmp_path / "3.jsonl", [{"prompt": y, "completion": "three", "score": 1, "rater": "ann"}]),
    ]
    for name, given in (("one", files), ("other", files[::-1])):
        build(given, tmp_path / name, options=BuildOptions("jsonl", split=(1, 0, 0)))
    [pair] = load_pairs(tmp_path / "one").to_pylist()
    assert (pair["score_chosen"], pair["score_rejected"], pair["raters"]) == (3.0, 1.0, 1)
    assert load_pairs(tmp_path / "other").to_pylist() == [pair]
    assert json.loads(pair["chosen"][0]["tool_calls"]) in [one["tool_calls"] for one in SAME[:2]]
    assert [message.get("tool_call_id") for message in pair["prompt"]] in ([None, None, "x"], [None, None, "y"])
    assert validate(tmp_path / "one")["ok"]
    feedback = read_feedback(files, "jsonl")
    assert build_pairs(feedback).select(["chosen_id", "quality_margin"]).to_pylist() == [
        {"chosen_id": pair["chosen_id"], "quality_margin": 2.0}
    ]


def test_candidates_that_say_the_same_are_one_completion_with_two_grades(tmp_path: Path) -> None:
    row = {"prompt": "Q", "completions": [SAME[0], SAME[1], "three"], "scores": [4, 2, 1]}
    build(write_rows(tmp_path / "rows.jsonl", [row]), tmp_path / "out", options=BuildOptions("jsonl", feedback_only=True))
    [found] = load_feedback(tmp_path / "out").to_pylist()
    assert [one["tool_calls"] for one in found["completions"]].count(None) == 1 and len(found["completions"]) == 2
    calls = next(place for place, one in enumerate(found["completions"]) if one["tool_calls"])
    assert sorted(one["score"] for one in found["ratings"] if one["completion"] == calls) == [2, 4]
    assert validate(tmp_path / "out")["ok"]


def test_conversations_that_differ_in_ids_alone_share_their_prompt() -> None:
    chosen, rejected = ([*answered(name, name, a=1), {"role": "assistant", "content": name}] for name in "xy")
    row = add("trl", {"chosen": chosen, "rejected": rejected, "margin": 1}).row
    assert [one["text"] for one in row["completions"]] == ["x", "y"]
    assert row["prompt"][2]["tool_call_id"] == "x"


@pytest.mark.parametrize("text", ["Hi", "", 'a "quoted" \\ line\n\t\x00\x7f', "é日本🎈\u2028"])
def test_the_id_of_a_plain_prompt_is_the_same_by_the_short_way(text: str) -> None:
    assert user_prompt_id(text) == prompt_id([{"role": "user", "content": text}])
