"""Rendering: one BOS, the boundary by tokens, templates that refuse, the end of a reply, and limits that are counted."""

import copy
from datetime import timedelta
from types import SimpleNamespace

import pytest
from tokenizers.processors import TemplateProcessing
from training_cases import user_error
from transformers.utils import chat_template_utils

from mmpo.train.data import PLAIN_TEMPLATE, Renderer, ask_behind, choose_template, or_reason
from mmpo.train.data.chat_template import PINNED_DATE
from mmpo.train.messages import nothing_left, rendering_warnings

USER = [{"role": "user", "content": "Where is the cat?"}]
REPLY = [{"role": "assistant", "content": "on a mat"}]
SYSTEM = [{"role": "system", "content": "Be brief."}]

LLAMA_LIKE = (
    "{{ '<|bos|>' }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] | trim }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
GEMMA_LIKE = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + LLAMA_LIKE
OPEN_ENDED = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
DATED = "{% if strftime_now is defined %}Today is {{ strftime_now('%A, %d %b %Y, %Y-%m-%d %H:%M') }}.{% endif %}\n" + LLAMA_LIKE
LAST_ONLY = (  # a system message inside the user's turn where that is the last one, as Mistral's templates write it
    "{% for m in messages if m['role'] != 'system' %}{% if m['role'] == 'user' %}[INST]"
    "{% if loop.last and messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\n\n' }}{% endif %}{{ m['content'] }}[/INST]"
    "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)
FORGETFUL = (  # of all replies but the last one only what follows the thoughts is kept, and they are stripped at the end
    "{% for m in messages %}<|{{ m['role'] }}|>{% if m['role'] == 'assistant' and not loop.last %}"
    "{{ m['content'].split('</think>')[-1] }}{% else %}{{ m['content'] }}{% endif %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
STRIPPING = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'].split('</think>')[-1] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
DELAYED = FORGETFUL.replace("not loop.last", "loop.revindex > 2")  # what a later turn does to a reply shows once that is there
KNOWS_TWO = (  # others vanish, as Qwen's do
    "{% for m in messages %}{% if m['role'] in ['user', 'assistant'] %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
THOUGHTFUL = [{"role": "assistant", "content": "<think>the cat</think>on a mat"}]


def with_template(tokenizer, template):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_special_tokens({"bos_token": "<|bos|>"})
    tokenizer.chat_template = template
    return tokenizer


def adds_tokens_itself(tokenizer):
    """A tokenizer that puts BOS before and EOS behind every text, as some do."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    special = [("<|bos|>", bos), ("<|end|>", eos)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<|bos|> $A <|end|>", special_tokens=special)
    assert tokenizer("a")["input_ids"][0] == bos
    assert tokenizer("a")["input_ids"][-1] == eos
    return tokenizer


def render(tokenizer, prompt=USER, reply=REPLY, length=200, prompt_length=100, **how):
    renderer = Renderer(tokenizer, length, prompt_length, **how)
    ids = renderer.prompt_ids(prompt)
    return renderer, ids, None if ids is None else renderer.completion(reply)


def test_a_prompt_is_left_out_for_what_leaves_it_out_and_not_for_what_was_changed(tokenizer):
    renderer = Renderer(with_template(tokenizer, GEMMA_LIKE), 64, 4)
    assert or_reason(renderer, lambda: renderer.prompt_ids([*SYSTEM, *USER])) == (None, "prompt_too_long")
    assert renderer.counts["system_merged"] == 1
    assert or_reason(renderer, lambda: "ids") == ("ids", "")


def completion(tokenizer, row):
    return tokenizer.decode(row.ids[row.start :])


ASKED = "<|bos|><|user|>Where is the cat?<|assistant|>"


@pytest.mark.parametrize(
    ("template", "prompt", "text", "reply", "counts", "said"),
    [
        # a refused system message joins the first user turn
        (GEMMA_LIKE, [*SYSTEM, *USER], ASKED.replace("Where", "Be brief.\n\nWhere"), "on a mat<|end|>", {"system_merged": 1},
         "refuses system messages: in 1 of 1 prompts"),
        # one that would vanish before a reply is put into the user's turn
        (LAST_ONLY, [*SYSTEM, *USER], "[INST]Be brief.\n\nWhere is the cat?[/INST]", "on a mat<|end|>", {"system_moved": 1},
         "only where the user speaks last: in 1 of 1 prompts"),
        (LAST_ONLY, USER, "[INST]Where is the cat?[/INST]", "on a mat<|end|>", {}, ""),
        # a prompt that is another before a reply is left out; where thoughts are dropped in both it is the same, and changed
        (DELAYED, [*USER, *THOUGHTFUL, *USER], None, None, {"prompt_changed": 1},
         "1 of 1 prompts were left out with all their pairs: the chat template writes them otherwise"),
        (FORGETFUL, [*USER, *THOUGHTFUL, *USER],
         "<|user|>Where is the cat?<|end|>\n<|assistant|>on a mat<|end|>\n<|user|>Where is the cat?<|end|>\n<|assistant|>",
         "on a mat<|end|>\n", {"message_changed": 1}, "in 1 of 1 prompts the chat template writes a message otherwise"),
        # messages of roles that it does not know; a system message finds its place
        (KNOWS_TWO, [{"role": "developer", "content": "e"}, *USER], None, None, {"message_vanished": 1}, "whose role is developer;"),
        (KNOWS_TWO, [*USER, *REPLY, {"role": "tool", "content": "mat"}], None, None, {"message_vanished": 1}, "whose role is tool;"),
        (KNOWS_TWO, [{"role": "human", "content": "Hi"}], None, None, {"message_vanished": 1}, "whose role is human;"),
        (KNOWS_TWO, [*SYSTEM, *USER], "<|user|>Be brief.\n\nWhere is the cat?<|end|><|assistant|>", "on a mat<|end|>",
         {"system_moved": 1}, "a system message nowhere"),
        # an assistant's turn at the end goes on, whatever the template does to white space and thoughts
        (LLAMA_LIKE, [*USER, {"role": "assistant", "content": "It is "}], ASKED + "It is", " on a mat<|end|>", {"turn_continued": 1},
         "1 of 1 prompts end with an assistant's turn: their replies continue that turn"),
        (FORGETFUL, [*USER, *THOUGHTFUL], "<|user|>Where is the cat?<|end|>\n<|assistant|><think>the cat</think>on a mat",
         "on a mat<|end|>\n", {"turn_continued": 1}, ""),
        (GEMMA_LIKE, [*SYSTEM, *USER, {"role": "assistant", "content": "It is"}],
         ASKED.replace("Where", "Be brief.\n\nWhere") + "It is", "on a mat<|end|>", {"turn_continued": 1, "system_merged": 1}, ""),
        # what a template writes behind the last turn is no change of the prompt
        (LLAMA_LIKE + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}", USER, ASKED, "on a mat<|end|><|end|>", {}, ""),
        (LLAMA_LIKE + "<|end|>", USER, ASKED, "on a mat<|end|><|end|>", {}, ""),
        ("{{ messages | tojson }}", USER, '[{"role": "user", "content": "Where is the cat?"}',
         ', {"role": "assistant", "content": "on a mat"}]', {}, ""),
        ("{% for m in messages %}{{ m['content'] }}{% if not loop.last %}<|end|>{% else %} (last){% endif %}{% endfor %}", USER,
         "Where is the cat?", "<|end|>on a mat (last)", {}, ""),
    ],
)  # fmt: skip
def test_what_becomes_of_a_prompt(template, prompt, text, reply, counts, said, tokenizer):
    tokenizer = with_template(tokenizer, template)
    renderer, ids, row = render(tokenizer, prompt)
    if text is None:
        assert ids is None
    else:
        assert (tokenizer.decode(row.ids[: row.start]), completion(tokenizer, row)) == (text, reply)
    assert renderer.counts == counts
    assert said in "".join(rendering_warnings(renderer))


THOUGHT = "<think>a mat, a hat</think>\n\n"


@pytest.mark.parametrize(
    ("template", "how", "reply", "completion_text", "counts", "said"),
    [
        (KNOWS_TWO, {}, "on a mat \n", "on a mat \n<|end|>", {}, ""),
        (LLAMA_LIKE, {}, "on a mat\n", "on a mat<|end|>", {"completion_changed": 1}, "1 of 1 completions otherwise than they stand in the "
         "data, 1 of them only in the white space"),
        (STRIPPING, {}, THOUGHT + "on a mat", "\n\non a mat<|end|>\n", {"completion_changed": 1, "thinking_kept": 1},
         "data, 0 of them only"),
        (STRIPPING, {}, THOUGHT[:-2], None, {"completion_changed": 1, "completion_vanished": 1, "thinking_kept": 1},
         "writes nothing of them"),
        (KNOWS_TWO, {}, THOUGHT + "on a mat", THOUGHT + "on a mat<|end|>", {"thinking_kept": 1}, "completions hold thinking"),
        # the thinking left out, however it is marked; without an answer nothing is left
        (KNOWS_TWO, {"thinking": "drop"}, THOUGHT + "on a mat", "on a mat<|end|>", {"thinking_dropped": 1}, "(--thinking drop)"),
        (STRIPPING, {"thinking": "drop"}, "a mat</THINK> on a mat", "on a mat<|end|>\n", {"thinking_dropped": 1}, ""),
        (KNOWS_TWO, {"thinking": "drop"}, THOUGHT, None, {"thinking_only": 1}, "thinking without an answer"),
        (KNOWS_TWO, {"thinking": "drop"}, "<think>a mat, a h", None, {"thinking_only": 1}, ""),
        # the thinking read, the answer graded
        (KNOWS_TWO, {"graded_part": "answer"}, THOUGHT + "on a mat", "on a mat<|end|>", {"thinking_kept": 1},
         "read, while the answer alone"),
        (KNOWS_TWO, {"graded_part": "answer"}, "on a mat", "on a mat<|end|>", {}, ""),
        (KNOWS_TWO, {"graded_part": "answer"}, "<think>a mat, a h", None, {"thinking_only": 1}, ""),
    ],
)  # fmt: skip
def test_what_becomes_of_a_reply(template, how, reply, completion_text, counts, said, tokenizer):
    tokenizer = with_template(tokenizer, template)
    renderer, ids, row = render(tokenizer, reply=[{"role": "assistant", "content": reply}], **how)
    assert (row and completion(tokenizer, row)) == completion_text
    assert renderer.counts == counts
    assert said in "".join(rendering_warnings(renderer))
    if row:
        assert row.ids[: len(ids)].tolist() == ids.tolist()


@pytest.mark.parametrize("alone", [True, False])
def test_a_template_that_writes_bos_gives_exactly_one(alone, tokenizer):
    """Reference defect 4: separate renderings doubled the BOS and put one before the reply. So does a tokenizer's own BOS."""
    tokenizer = with_template(tokenizer, LLAMA_LIKE)
    if not alone:
        tokenizer = adds_tokens_itself(tokenizer)
    _, prompt, row = render(tokenizer)
    assert prompt is not None
    assert row.ids.tolist().count(tokenizer.bos_token_id) == 1
    assert row.ids[0] == tokenizer.bos_token_id
    assert row.ids.tolist().count(tokenizer.eos_token_id) == 1
    assert prompt[-1] == tokenizer.convert_tokens_to_ids("<|assistant|>")  # the generation prompt is there
    assert tokenizer.decode(row.ids[row.start :]) == "on a mat<|end|>"


def test_a_prompt_that_the_template_refuses_is_counted_with_its_reason(tokenizer):
    tokenizer = with_template(tokenizer, GEMMA_LIKE)
    renderer, prompt, _ = render(tokenizer, [*SYSTEM, *REPLY])
    assert prompt is None
    assert renderer.counts == {"template_refused": 1}
    assert "System role not supported" in renderer.first_refusal
    assert "System role not supported" in str(nothing_left(renderer, "data", {}))


def test_without_a_template_there_is_a_choice_to_make(tokenizer):
    bare = with_template(tokenizer, None)
    for refused in (lambda: Renderer(bare, 200, 100), lambda: choose_template(bare)):
        user_error(r"no chat template.*--chat-template plain .*--chat-template FILE .*instruction-tuned", refused)
    assert bare.chat_template is None


def of_an_encoder(encoder):
    """[CLS], which encoders pool at, and [SEP] for the end-of-text token that they lack."""
    encoder.add_special_tokens({"cls_token": "[CLS]", "sep_token": "[SEP]"})
    encoder.eos_token = encoder.bos_token = None
    special = [(name, encoder.convert_tokens_to_ids(name)) for name in ("[CLS]", "[SEP]")]
    encoder.backend_tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    return encoder


@pytest.mark.parametrize(
    ("change", "before", "after"),
    [
        (lambda tokenizer: tokenizer, "", "<|end|>"),
        (adds_tokens_itself, "<|bos|>", "<|end|>"),  # a model that never saw a text without BOS would see all of them so
        (of_an_encoder, "[CLS]", "[SEP]"),
    ],
)
def test_the_plain_template_is_used_where_asked_for_with_the_tokenizers_own_marks_and_saved(
    change, before, after, tokenizer, tmp_path
):
    bare = change(with_template(tokenizer, None))
    choose_template(bare, "plain")
    renderer, _, row = render(bare)
    assert bare.decode(row.ids) == f"{before}User: Where is the cat?\nAssistant: on a mat{after}\n"
    assert renderer.counts == {}
    bare.save_pretrained(tmp_path)
    assert (type(bare).from_pretrained(tmp_path).chat_template == PLAIN_TEMPLATE) == (not before)


def test_a_template_from_a_file_replaces_the_own_one(tokenizer, tmp_path):
    tokenizer = with_template(tokenizer, LLAMA_LIKE)
    (tmp_path / "mine.jinja").write_text("{% for m in messages %}[{{ m['content'] }}]{% endfor %}", encoding="utf-8")
    choose_template(tokenizer, str(tmp_path / "mine.jinja"))
    _, _, row = render(tokenizer)
    assert tokenizer.decode(row.ids) == "[Where is the cat?][on a mat]"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "No such file.*Allowed are tokenizer .*, plain, or a file"),
        (" \n", "the file is empty"),
        ("one\n{% for m in messages %}", "no valid Jinja, line 2"),
    ],
)
def test_template_files_that_cannot_be_used(text, said, tokenizer, tmp_path):
    if text is not None:
        (tmp_path / "a.jinja").write_text(text)
    assert "a.jinja" in user_error(said, choose_template, copy.deepcopy(tokenizer), str(tmp_path / "a.jinja"))


def test_several_templates_without_a_default_are_named(tokenizer):
    several = with_template(tokenizer, {"rag": LLAMA_LIKE, "tools": LLAMA_LIKE})
    told = user_error("", choose_template, several)
    assert told.index("rag") < told.index("tools") < told.index("--chat-template FILE")


@pytest.mark.parametrize(
    ("template", "reply", "end"),
    [
        (None, "on a mat", "on a mat<|end|>"),
        (None, "", "<|end|>"),
        (None, " \n", " \n<|end|>"),
        (OPEN_ENDED, "on a mat", "on a mat\n<|end|>"),  # appended only where the template leaves the turn open
        # whatever the template makes of the reply, and where the reply ends as the closing does
        (STRIPPING, "<think>the cat</think>on a mat", "on a mat<|end|>\n"),
        (STRIPPING, "on a mat>", "on a mat><|end|>\n"),
        (STRIPPING, "", "<|end|>\n"),
    ],
)
def test_a_completion_is_the_reply_and_its_one_end(template, reply, end, tokenizer):
    tokenizer = with_template(tokenizer, template) if template else tokenizer
    _, prompt, row = render(tokenizer, reply=[{"role": "assistant", "content": reply}])
    assert row.ids[: row.start].tolist() == prompt.tolist()
    assert completion(tokenizer, row) == end


def test_where_there_is_no_end_of_text_token_the_open_ends_are_counted(tokenizer):
    endless = with_template(tokenizer, OPEN_ENDED)
    endless.eos_token = None
    renderer, _, row = render(endless)
    assert endless.decode(row.ids) == "Where is the cat?\non a mat\n"
    assert renderer.counts == {"end_of_text_missing": 1}
    assert "no end-of-text token: 1 of 1 completions" in rendering_warnings(renderer)[0]
    endless.chat_template = tokenizer.chat_template  # this one closes turns itself
    assert render(endless)[0].counts == {}


def test_the_boundary_is_the_first_token_that_differs(tokenizer):
    """Without special tokens around it, the reply's first letters merge with the prompt's last: the shared prefix is shorter."""
    glued = with_template(tokenizer, "{% for m in messages %}{{ m['content'] }}{% endfor %}")
    prompt, reply = [{"role": "user", "content": "the ca"}], [{"role": "assistant", "content": "t sat"}]
    _, ids, row = render(glued, prompt, reply)
    assert row.start == next(place for place, pair in enumerate(zip(ids, row.ids, strict=False)) if len(set(pair)) == 2) < len(ids)
    assert glued.decode(row.ids) == "the cat sat<|end|>"


def test_limits_drop_prompts_and_cut_completions_counted(tokenizer):
    renderer, prompt, _ = render(tokenizer, prompt_length=3)
    assert prompt is None
    assert renderer.counts == {"prompt_too_long": 1}
    length = len(render(tokenizer)[1])
    assert renderer.too_long == [length]
    assert f"1 of 1 prompts were left out with all their pairs: they have {length} to {length}" in rendering_warnings(renderer)[0]
    _, _, whole = render(tokenizer)
    renderer, prompt, row = render(tokenizer, length=len(whole.ids) - 2)
    assert row.ids.tolist() == whole.ids[:-2].tolist()
    assert renderer.counts == {"completion_truncated": 1}
    assert f"1 of 1 completions lost their end: with their prompt they are longer than --max-length {len(whole.ids) - 2}" in str(
        rendering_warnings(renderer)
    )
    renderer, _, row = render(tokenizer, length=whole.start)
    assert row is None
    assert renderer.counts["completion_empty"] == 1


@pytest.mark.parametrize("text", ["", "naïve 🙂 \u2028 \x00", "日本語"])
def test_tiny_encodes_any_text(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("start", ["  ", "\n", " {{- '' }}"])
def test_a_template_that_writes_today_always_writes_the_same_day(start, tokenizer, monkeypatch):
    dated = with_template(tokenizer, start + DATED)
    _, prompt, row = render(dated)
    assert "Today is Friday, 26 Jul 2024, 2024-07-26 00:00." in dated.decode(prompt)
    assert dated.decode(row.ids) == dated.decode(prompt) + "on a mat<|end|>"
    day = PINNED_DATE
    monkeypatch.setattr(chat_template_utils, "datetime", SimpleNamespace(now=lambda: day))
    assert dated.decode(prompt) == dated.apply_chat_template(USER, tokenize=False, add_generation_prompt=True)  # each space
    day += timedelta(days=1)
    assert "Saturday, 27" in dated.apply_chat_template(USER, tokenize=False)
    assert render(dated)[2].ids.tolist() == row.ids.tolist()
    assert dated.chat_template == start + DATED  # what is saved with the model asks the clock


# --- a question behind every reply -------------------------------------------------------------------------------------------

ASKED = "Is this a good answer?"
BEHIND = f"<|user|>{ASKED}<|assistant|>"


def asking(tokenizer, template=LLAMA_LIKE, question=ASKED):
    tokenizer = with_template(tokenizer, template)
    ask_behind(tokenizer, question)
    return tokenizer


@pytest.mark.parametrize("template", [LLAMA_LIKE, GEMMA_LIKE, FORGETFUL])
def test_it_stands_behind_replies_as_a_turn_of_its_own_and_nowhere_else(template, tokenizer):
    plain, asks = with_template(tokenizer, template), asking(tokenizer, template)
    write = [lambda *messages, one=one, **how: one.apply_chat_template([*messages], tokenize=False, **how) for one in (plain, asks)]
    assert write[0](*USER) == write[1](*USER)
    prompted = [one(*USER, add_generation_prompt=True) for one in write]
    assert prompted[0] == prompted[1]
    replied = write[1](*USER, *REPLY)
    assert replied == write[0](*USER, *REPLY, {"role": "user", "content": ASKED}, add_generation_prompt=True)
    assert replied.count(ASKED) == 1 and replied.startswith(write[0](*USER, *REPLY))
    assert write[0](*USER, *REPLY, *USER) == write[1](*USER, *REPLY, *USER)  # a prompt of several turns
    before = asks.chat_template
    ask_behind(asks, ASKED)  # a model that was trained so, trained once more
    assert asks.chat_template == before


def test_a_reply_that_is_too_long_is_cut_before_the_question(tokenizer):
    asks, long = asking(tokenizer), [{"role": "assistant", "content": "on a mat " * 4}]
    _, _, item = render(asks, reply=long)
    tail = asks(asks.eos_token + BEHIND, add_special_tokens=False)["input_ids"]
    assert not item.truncated and item.ids[-len(tail) :].tolist() == tail
    least = item.start + len(tail) + 1  # one token of the reply
    for length in (least, least + 1, len(item.ids) - 1):
        renderer, _, cut = render(asks, reply=long, length=length)
        assert cut.truncated and renderer.counts["completion_truncated"] == 1
        assert cut.ids.tolist() == [*item.ids[: length - len(tail)].tolist(), *tail]
    for length in (item.start + 1, least - 1):
        renderer, _, cut = render(asks, reply=long, length=length)
        assert cut is None and renderer.counts["completion_empty"] == 1
    _, _, plain = render(with_template(tokenizer, LLAMA_LIKE), reply=long, length=item.start + 3)
    assert plain.ids.tolist() == item.ids[: item.start + 3].tolist()  # where nothing is asked: the first tokens


def test_a_template_that_would_change_the_reply_is_refused(tokenizer):
    marks_the_last = "{% for m in messages %}{{ m['content'] }}{% if loop.last %}!{% endif %}{% endfor %}"
    refuses = "{% if messages | length > 2 %}{{ raise_exception('too many turns') }}{% endif %}" + LLAMA_LIKE
    cases = ((marks_the_last, ASKED, "writes a reply otherwise once a question follows"), (refuses, ASKED, "too many turns"))
    for template, question, said in (*cases, (LLAMA_LIKE, " \n", "the question is empty")):
        tokenizer = with_template(tokenizer, template)
        assert said in user_error("", ask_behind, tokenizer, question)
        assert tokenizer.chat_template == template


@pytest.mark.parametrize(
    "question",
    [
        "a",
        "A stand-in prompt.",
        "  Is it good?\n",
        'Is "this" {{ good }}, or {% bad %}? \\n',
        "Ist das gut, ganz ehrlich — ja? é 🙂",
    ],
)
def test_any_question_is_written_to_the_letter_and_once(question, tokenizer):
    plain, asks = with_template(tokenizer, LLAMA_LIKE), asking(tokenizer, question=question)
    whole = plain.apply_chat_template(
        [*USER, *REPLY, {"role": "user", "content": question.strip()}], tokenize=False, add_generation_prompt=True
    )
    ask_behind(asks, question)
    assert asks.apply_chat_template([*USER, *REPLY], tokenize=False) == whole


def test_a_policy_is_asked_nothing(tiny_options):
    assert "a policy scores none: leave out `ask`" in user_error("", tiny_options, "policy", ask=ASKED)
