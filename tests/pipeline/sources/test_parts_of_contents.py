"""Contents in parts, as Anthropic's and other servers give them: thinking and calls are read, other parts refused under their types;
replies that are thinking alone, and thinking that is none."""

import json
from pathlib import Path
from typing import Any

import pytest
from folders import write_rows
from source_cases import add, collected

from mmpo.pipeline import BuildOptions, build, load_feedback, validate
from mmpo.pipeline.errors import BadRow

THOUGHT = {"type": "thinking", "thinking": "sunny is dry", "signature": "abc"}
USE = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Paris"}}
CALL = '[{"id":"t1","type":"function","function":{"name":"weather","arguments":{"city":"Paris"}}}]'
TEXT = {"type": "text", "text": "No."}


def read(reply: Any, **more: Any) -> tuple[str, str | None, str | None]:
    """Text, thinking and calls of a reply."""
    row = add("jsonl", {"prompt": "Rain?", "completion": reply, "score": 1, **more}).row
    [found] = row["completions"]
    return found["text"], found.get("reasoning_content"), found.get("tool_calls")


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        ([THOUGHT, TEXT], ("No.", "sunny is dry", None)),
        ([THOUGHT, USE], ("", "sunny is dry", CALL)),
        ([TEXT, USE], ("No.", None, CALL)),
        ([THOUGHT, TEXT, THOUGHT], ("No.", "sunny is dry\n\nsunny is dry", None)),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, TEXT], ("No.", "hm", None)),
        ([{"type": "reasoning", "text": "hm"}, {"type": "output_text", "text": "No."}], ("No.", "hm", None)),
        ([{"type": "thinking", "thinking": " \n"}, TEXT], ("No.", None, None)),
        ([THOUGHT], ("", "sunny is dry", None)),
    ],
)
def test_thinking_and_calls_among_parts_are_read(parts: list[Any], found: tuple[Any, ...]) -> None:
    assert read(parts) == read([{"role": "assistant", "content": parts}]) == found


def test_keys_and_parts_that_say_the_same_are_one(tmp_path: Path) -> None:
    message = {"role": "assistant", "content": [THOUGHT, USE], "reasoning_content": "sunny is dry", "tool_calls": json.loads(CALL)}
    assert read([message]) == ("", "sunny is dry", CALL)
    other = {**message, "reasoning_content": "else"}
    path = write_rows(tmp_path / "rows.jsonl", [{"prompt": "Rain?", "completion": [other], "score": 1}])
    assert collected(path, "jsonl").noted == {"thinking_left_out": 1, "thinking_apart": 1}
    with pytest.raises(BadRow) as caught:
        read([{**message, "content": [{**USE, "input": {}}]}])
    assert caught.value.reason == "malformed_tool_calls"


@pytest.mark.parametrize(
    ("role", "part", "reason"),
    [
        ("user", {"type": "tool_result", "tool_use_id": "t1", "content": "sunny"}, "tool_result_part"),
        ("user", {"type": "image", "source": {}}, "images"),
        ("user", {"type": "input_audio", "input_audio": {}}, "input_audio_part"),
        ("user", {"type": "document", "source": {}}, "document_part"),
        ("user", THOUGHT, "thinking_part"),
        ("user", USE, "tool_use_part"),
        ("system", THOUGHT, "thinking_part"),
        ("assistant", {"type": "redacted_thinking", "data": "x"}, "redacted_thinking_part"),
        ("assistant", {"type": "refusal", "refusal": "No."}, "refusal_part"),
        ("assistant", {"type": "hologram"}, "unknown_part"),
        ("assistant", {"type": "tool_use", "id": "t1", "input": {}}, "malformed_tool_calls"),
        ("assistant", {"type": "text", "text": None}, "not_text"),
    ],
)
def test_other_parts_are_refused_under_their_types(role: str, part: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow) as caught:
        add("jsonl", {"prompt": [{"role": role, "content": [part]}], "completion": "a", "score": 1})
    assert caught.value.reason == reason


@pytest.mark.parametrize("blank", [" ", "\n\t", ""])
def test_white_space_is_no_thinking(blank: str) -> None:
    assert read([{"role": "assistant", "content": "No.", "reasoning_content": blank}]) == ("No.", None, None)
    row = {"prompt": "Q", "completions": [{"text": "a", "reasoning": blank}, {"text": "a"}], "scores": [1, 2]}
    columns = {"completions": "completions[].text"}
    assert len(add("jsonl", row, columns=columns).row["completions"]) == 1
    with pytest.raises(BadRow) as caught:
        read([{"role": "assistant", "content": "", "reasoning_content": blank}])
    assert caught.value.reason == "empty_completion"
    prompt = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "a", "thinking": blank}]
    assert "reasoning_content" not in add("jsonl", {"prompt": prompt, "completion": "b", "score": 1}).row["prompt"][1]


@pytest.mark.parametrize("content", ["", None, "\n"])
def test_a_reply_that_is_all_thinking_stays(content: str | None, tmp_path: Path) -> None:
    thinking = [{"role": "assistant", "content": content, "reasoning_content": "hm"}]
    rows = [
        {"prompt": "Q", "chosen": "b", "rejected": thinking, "margin": 1},
        {"prompt": "R", "chosen": "a", "rejected": "b", "margin": 1},
    ]
    rows = [
        {
            **one,
            **{
                side: [{"role": "assistant", "content": one[side]}] for side in ("chosen", "rejected") if isinstance(one[side], str)
            },
        }
        for one in rows
    ]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    build(path, tmp_path / "feedback", options=BuildOptions("trl", feedback_only=True))
    texts = [
        (one["text"], one["reasoning_content"])
        for row in load_feedback(tmp_path / "feedback").to_pylist()
        for one in row["completions"]
    ]
    assert (content or "", "hm") in texts and len(texts) == 4
    assert validate(tmp_path / "feedback")["ok"]
    assert sum(build(path, tmp_path / "kept", options=BuildOptions("trl"))["pairs"].values()) == 2
    assert validate(tmp_path / "kept")["ok"]
    dropped = build(path, tmp_path / "dropped", options=BuildOptions("trl", thinking="drop"))
    assert (sum(dropped["pairs"].values()), dropped["rejected"]["thinking_only"]) == (1, 1)


SEVERAL = [
    {"role": "assistant", "content": "Let me see."},
    {"role": "user", "content": "Well?"},
    {"role": "assistant", "content": "No."},
]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q", "completion": SEVERAL, "score": 1},
        {"prompt": "Q", "first": SEVERAL, "second": "a", "gap": 1},
        {"prompt": "Q", "chosen": SEVERAL, "rejected": [SEVERAL[2]], "margin": 1},
        {"prompt": "Q", "chosen": SEVERAL, "rejected": [*SEVERAL[:2], {"role": "assistant", "content": "Yes."}], "margin": 1},
        {"chosen": [*SEVERAL[1:2], *SEVERAL], "rejected": [SEVERAL[1], SEVERAL[2]], "margin": 1},
    ],
)
def test_a_reply_of_several_messages_is_named(row: dict[str, Any]) -> None:
    with pytest.raises(BadRow) as caught:
        add("jsonl" if "score" in row or "gap" in row else "trl", row)
    assert caught.value.reason == "several_messages"


@pytest.mark.parametrize("times", [2, 3])
def test_what_was_written_as_json_more_than_once_is_read_as_once(times: int) -> None:
    def written(value: Any) -> str:
        for _ in range(times):
            value = json.dumps(value)
        return value

    chat = [{"role": "user", "content": 'Say "hi"'}]
    row = {"prompt": written(chat), "completions": written(["a", "b"]), "scores": written([2, 1])}
    assert add("jsonl", row).row == add("jsonl", {"prompt": chat, "completions": ["a", "b"], "scores": [2, 1]}).row
    for cut, reason in ((written(chat)[:-3], "malformed_messages"), (written([{**chat[0], "role": "robot"}]), "unknown_role")):
        with pytest.raises(BadRow) as refused:
            add("jsonl", {**row, "prompt": cut})
        assert refused.value.reason == reason


@pytest.mark.parametrize("names", [["help", "truth"], {"name": "ann"}, '["help"]', json.dumps('["help"]')])
@pytest.mark.parametrize("field", ["rater", "kind", "aspect", "model"])
def test_a_name_is_one_text(field: str, names: Any) -> None:
    with pytest.raises(BadRow) as refused:
        add("jsonl", {"prompt": "Rain?", "completion": "No.", "score": 1, field: names})
    assert refused.value.reason == "name_not_text"
    add("jsonl", {"prompt": "Rain?", "completion": "No.", "score": 1, "rater": "[ann]", "model": []})


def test_a_side_of_a_pair_is_a_reply_a_message_or_a_list_of_one() -> None:
    sides = {"chosen": {"role": "assistant", "content": "No."}, "rejected": {"from": "gpt", "value": "Yes."}}
    for given in (sides, {name: [one] for name, one in sides.items()}, {"chosen": "No.", "rejected": "Yes."}):
        assert add("trl", {"prompt": "Rain?", **given, "margin": 2}).row["completions"][0]["text"] == "No."


def test_true_and_false_are_told_to_be_written_as_numbers() -> None:
    with pytest.raises(BadRow) as refused:
        add("jsonl", {"prompt": "Rain?", "completion": "No.", "score": True})
    assert "write 1 and 0" in str(refused.value.evidence)
