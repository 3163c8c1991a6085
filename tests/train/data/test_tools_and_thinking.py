"""Tool calls, tools and thinking apart: written by templates that know them, left out by name by those that don't."""

import copy
import json

import numpy as np
import pyarrow as pa
import pytest

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.tables import OPTIONAL_KEYS, PAIRS, with_keys
from mmpo.train.data import Renderer, check_rows, prepare, with_graded_part
from mmpo.train.messages import rendering_warnings
from mmpo.train.options import TrainOptions

CALL = {"id": "c1", "type": "function", "function": {"name": "rain", "arguments": {"day": "today", "n": 2}}}
TOOLS = [{"type": "function", "function": {"name": "rain", "parameters": {"type": "object"}}}]
KNOWS = (
    "{% if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{% if m.reasoning_content is defined and loop.last %}<think>{{ m.reasoning_content }}</think>"
    "{% endif %}{{ m.content }}{% if m.tool_calls %}{% for c in m.tool_calls %}[{{ c.function.name }}"
    "{% for key, value in c.function.arguments.items() %} {{ key }}={{ value }}{% endfor %}]{% endfor %}{% endif %}"
    "{% if 'tool_call_id' in m %} for {{ m.tool_call_id }}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PLAIN = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
REFUSES = "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}{% endfor %}" + PLAIN
PROMPT = [
    {"role": "user", "content": "Will it rain?"},
    {"role": "assistant", "content": "", "tool_calls": json.dumps([CALL]), "reasoning_content": "ask the tool"},
    {"role": "tool", "content": "no", "tool_call_id": "c1"},
]
THOUGHT = {"role": "assistant", "content": "It will not.", "reasoning_content": "the tool says no"}
NO = {"role": "assistant", "content": "No."}
CALLS = {"role": "assistant", "content": "", "tool_calls": json.dumps([CALL])}


def with_template(tokenizer, template):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    return tokenizer


def table(prompt=PROMPT, chosen=THOUGHT, rejected=CALLS, tools=TOOLS):
    row = {"prompt_id": "p", "chosen_id": "a", "rejected_id": "b", "prompt": prompt, "chosen": [chosen], "rejected": [rejected]}
    row |= {"quality_margin": 1.0, "source": "s", "tools": None if tools is None else json.dumps(tools)}
    return pa.Table.from_pylist([row], schema=with_keys(PAIRS, OPTIONAL_KEYS))


def rendered(tokenizer, template, pairs, **options):
    renderer = Renderer(with_template(tokenizer, template), 400, 300, **options)
    return renderer, prepare(pairs, np.full(1, 0.7), renderer)


def texts(renderer, prepared):
    """The prompt and both completions as text."""
    (prompt,) = prepared.prompts
    decode = renderer.tokenizer.decode
    return [
        decode(prompt.completions[0].ids[: prompt.completions[0].start]),
        *(decode(one.ids[one.start :]) for one in prompt.completions),
    ]


def test_a_template_that_knows_them_writes_all(tokenizer):
    renderer, prepared = rendered(tokenizer, KNOWS, table())
    prompt, thought, calls = texts(renderer, prepared)
    tools = "<tools>" + json.dumps(TOOLS[0]) + "</tools>"
    assert (
        prompt
        == f"{tools}<|user|>Will it rain?<|end|><|assistant|>[rain day=today n=2]<|end|><|tool|>no for c1<|end|><|assistant|>"
    )
    assert thought == "<think>the tool says no</think>It will not.<|end|>"
    assert calls == "[rain day=today n=2]<|end|>"
    assert prepared.counts["earlier_thinking_left_out"] == 1


@pytest.mark.parametrize(
    ("template", "given", "count"),
    [
        (PLAIN, table(), "tools_vanished"),
        (PLAIN, table(tools=None), "tool_calls_vanished"),
        (REFUSES, table(), "template_refused"),
        (PLAIN, table(prompt=PROMPT[:1], tools=None, chosen=NO, rejected={**CALLS, "content": "Yes."}), "reply_calls_vanished"),
        (PLAIN, table(prompt=PROMPT[:1], tools=None, rejected=NO), "thinking_vanished"),
    ],
)  # fmt: skip
def test_a_template_that_does_not_know_them_leaves_them_out_by_name(template, given, count, tokenizer):
    renderer, prepared = rendered(tokenizer, template, given)
    assert prepared.prompts == [] and prepared.counts[count] == 1
    assert any("template" in line for line in rendering_warnings(renderer, prepared.counts))


def test_thinking_apart_is_dropped_or_read_without_counting(tokenizer):
    pairs = table(prompt=PROMPT[:1], tools=None, rejected={"role": "assistant", "content": "It will."})
    renderer, prepared = rendered(tokenizer, PLAIN, pairs, thinking="drop")
    assert texts(renderer, prepared)[1:] == ["It will not.<|end|>", "It will.<|end|>"]
    renderer, prepared = rendered(tokenizer, KNOWS, pairs, graded_part="answer")
    assert texts(renderer, prepared)[1:] == ["It will not.<|end|>", "It will.<|end|>"]
    first = prepared.prompts[0].completions[0]
    assert renderer.tokenizer.decode(first.ids[: first.start]).endswith("<think>the tool says no</think>")


def test_other_tools_under_one_id_and_calls_that_are_none_are_refused(tokenizer):
    other = table(tools=[{"type": "function"}]).to_pylist() + table().to_pylist()
    other[1]["chosen_id"] = "c"
    pairs = pa.Table.from_pylist(other, schema=table().schema)
    with pytest.raises(UserError, match="offers other tools"):
        prepare(pairs, np.full(2, 0.7), Renderer(with_template(tokenizer, KNOWS), 400, 300))
    with pytest.raises(UserError, match="tool_calls are no JSON text of a list of calls"):
        check_rows(table(rejected={**CALLS, "tool_calls": "[1]"}), "here")


@pytest.mark.parametrize(
    ("manifest", "given", "trained", "part", "thinking", "said"),
    [
        (None, None, None, "all", "keep", ""),
        ("answer", None, None, "answer", "keep", ""),
        ("answer", "all", None, "all", "keep", "says that its grades are of: answer"),
        ("all", None, "answer", "all", "keep", "was trained by grades of: answer"),
        (None, None, "answer", "answer", "keep", ""),
    ],
)
def test_what_grades_are_of_comes_from_the_dataset(manifest, given, trained, part, thinking, said, tmp_path, capsys):
    if manifest:
        (tmp_path / "manifest.json").write_text(json.dumps({"schema_version": 2, "recipe": {"graded_part": manifest}}))
    options = with_graded_part(TrainOptions("policy", data=str(tmp_path), graded_part=given), trained=trained)
    assert (options.graded_part, options.thinking) == (part, thinking)
    told = capsys.readouterr().err
    assert said in told if said else told == ""
    assert with_graded_part(TrainOptions("reward", data=str(tmp_path), graded_part="answer")).thinking == "drop"
