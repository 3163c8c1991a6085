"""Rendering: one BOS, the boundary by tokens, templates that refuse, the end of a reply, and limits that are counted."""

import copy

import pytest

from mmpo.train.render import PLAIN_TEMPLATE, Renderer, common_prefix

USER = [{"role": "user", "content": "Where is the cat?"}]
REPLY = [{"role": "assistant", "content": "on a mat"}]
SYSTEM = [{"role": "system", "content": "Be brief."}]

LLAMA_LIKE = (
    "{{ '<|bos|>' }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] | trim }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
GEMMA_LIKE = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + LLAMA_LIKE


def with_template(tokenizer, template):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_special_tokens({"bos_token": "<|bos|>"})
    tokenizer.chat_template = template
    return tokenizer


def render(tokenizer, prompt=USER, reply=REPLY, length=200, prompt_length=100):
    renderer = Renderer(tokenizer, length, prompt_length)
    ids = renderer.prompt_ids(prompt)
    return renderer, ids, None if ids is None else renderer.completion(prompt, ids, reply)


def test_the_completion_is_the_reply_and_its_end_and_nothing_else(tokenizer):
    _, prompt, row = render(tokenizer)
    assert row.ids[: row.start] == prompt
    assert tokenizer.decode(row.ids[row.start :]) == "on a mat<|end|>"


def test_a_template_that_writes_bos_gives_exactly_one(tokenizer):
    """Reference defect 4: separate renderings doubled the BOS and put one before the reply."""
    tokenizer = with_template(tokenizer, LLAMA_LIKE)
    _, prompt, row = render(tokenizer)
    assert row.ids.count(tokenizer.bos_token_id) == 1
    assert row.ids[0] == tokenizer.bos_token_id
    assert prompt[-1] == tokenizer.convert_tokens_to_ids("<|assistant|>")  # the generation prompt is there
    assert tokenizer.decode(row.ids[row.start :]) == "on a mat<|end|>"


def test_a_refused_system_message_joins_the_first_user_turn(tokenizer):
    tokenizer = with_template(tokenizer, GEMMA_LIKE)
    renderer, _, row = render(tokenizer, [*SYSTEM, *USER])
    assert "Be brief.\n\nWhere is the cat?" in tokenizer.decode(row.ids)
    assert renderer.counts["system_merged"] == 1
    assert tokenizer.decode(row.ids[row.start :]) == "on a mat<|end|>"


def test_a_prompt_that_the_template_refuses_is_counted_with_its_reason(tokenizer):
    tokenizer = with_template(tokenizer, GEMMA_LIKE)
    renderer, prompt, _ = render(tokenizer, [*SYSTEM, *REPLY])
    assert prompt is None
    assert renderer.counts == {"template_refused": 1}
    assert "System role not supported" in renderer.first_refusal


def test_without_a_template_the_plain_one_is_used_and_saved(tokenizer, tmp_path):
    bare = with_template(tokenizer, None)
    _, _, row = render(bare)
    assert bare.decode(row.ids) == "User: Where is the cat?\nAssistant: on a mat<|end|>\n"
    bare.save_pretrained(tmp_path)
    assert type(bare).from_pretrained(tmp_path).chat_template == PLAIN_TEMPLATE


def test_eos_is_appended_only_where_the_template_leaves_the_turn_open(tokenizer):
    open_ended = with_template(tokenizer, "{% for m in messages %}{{ m['content'] }}\n{% endfor %}")
    _, _, row = render(open_ended)
    assert row.ids[-1] == open_ended.eos_token_id
    _, _, closed = render(tokenizer)
    assert closed.ids.count(tokenizer.eos_token_id) == 2  # the user's turn and the reply's, none added


def test_the_boundary_is_the_first_token_that_differs(tokenizer):
    """Without special tokens around it, the reply's first letters merge with the prompt's last: the shared prefix is shorter."""
    glued = with_template(tokenizer, "{% for m in messages %}{{ m['content'] }}{% endfor %}")
    prompt, reply = [{"role": "user", "content": "the ca"}], [{"role": "assistant", "content": "t sat"}]
    _, ids, row = render(glued, prompt, reply)
    assert row.start == common_prefix(ids, row.ids) < len(ids)
    assert glued.decode(row.ids) == "the cat sat<|end|>"


def test_limits_drop_prompts_and_cut_completions_counted(tokenizer):
    renderer, prompt, _ = render(tokenizer, prompt_length=3)
    assert prompt is None
    assert renderer.counts == {"prompt_too_long": 1}
    _, _, whole = render(tokenizer)
    renderer, prompt, row = render(tokenizer, length=len(whole.ids) - 2)
    assert row.ids == whole.ids[:-2]
    assert renderer.counts == {"completion_truncated": 1}
    renderer, _, row = render(tokenizer, length=whole.start)
    assert row is None
    assert renderer.counts["completion_empty"] == 1


@pytest.mark.parametrize("text", ["", "naïve 🙂 \u2028 \x00", "日本語"])
def test_tiny_encodes_any_text(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
