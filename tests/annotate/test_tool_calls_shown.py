"""Tool calls and what tools answered are shown to judges and to people as text, and come back from Argilla to the letter."""

import json
from typing import Any

import pytest

from mmpo.annotate.argilla import RecordItem
from mmpo.annotate.argilla.records import NotOurs, fields_of, metadata_of, order_of, read_record, record_id
from mmpo.annotate.judge.prompts import shown_of
from mmpo.annotate.rows import FeedbackRow
from mmpo.pipeline.tables import completion_id, prompt_id

CALLS = json.dumps([{"type": "function", "function": {"name": "rain", "arguments": {"day": "<now>"}}}])
PROMPT = [
    {"role": "user", "content": "Rain?"},
    {"role": "assistant", "content": "", "tool_calls": CALLS, "reasoning_content": "ask"},
    {"role": "tool", "content": "no", "tool_call_id": "c"},
]
TOOLS = '[{"name":"rain"}]'
IDENTITY = prompt_id(PROMPT, TOOLS)
TEXTS, CARRIED = ("No.", ""), ({"reasoning_content": "dry"}, {"tool_calls": CALLS})
IDS = tuple(completion_id(IDENTITY, text, **more) for text, more in zip(TEXTS, CARRIED, strict=True))


def test_a_judge_reads_calls_as_text_and_no_thinking() -> None:
    row = FeedbackRow(IDENTITY, PROMPT, IDS, TEXTS, (None, None), carried=CARRIED, tools=TOOLS)
    shown = shown_of(row, (0, 1))
    assert shown.conversation == (
        'Tools:\n[{"name":"rain"}]\n\nUser:\nRain?\n\nAssistant:\ncalls rain({"day": "<now>"})\n\nTool:\nno'
    )
    assert [one["text"] for one in shown.replies] == ["No.", 'calls rain({"day": "<now>"})']


@pytest.mark.parametrize("display", ["plain", "markdown"])
def test_a_record_comes_back_with_all_that_it_was_made_of(display: str) -> None:
    item = RecordItem(IDENTITY, PROMPT, IDS, TEXTS, ("m", None), "s", {}, CARRIED, TOOLS)
    order = order_of(item, "pairs", 0)
    record: dict[str, Any] = {
        "external_id": record_id("pairs", IDENTITY, IDS),
        "fields": fields_of(item, order, display),
        "metadata": metadata_of(item, order, display),
    }
    assert "calls rain(" in record["fields"]["prompt"][1]["content"] and "<now>" not in str(record["fields"])
    found = read_record(json.loads(json.dumps(record)))
    assert (found.prompt, found.tools, found.ids) == (PROMPT, TOOLS, order)
    assert dict(zip(found.ids, zip(found.texts, found.carried, strict=True), strict=True)) == dict(
        zip(IDS, zip(TEXTS, CARRIED, strict=True), strict=True)
    )
    for place in ("reply_a", "reply_b"):
        other = {**record, "fields": {**record["fields"], place: "other"}}
        with pytest.raises(NotOurs):
            read_record(other)
