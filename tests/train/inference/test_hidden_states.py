"""Hidden states as features: the values of a plain pass of each text, whatever the layout; texts that are too long; what is kept."""

import numpy as np
import pytest
import torch
from training_cases import save_model, small_model, user_error
from transformers import AutoModel, AutoTokenizer

from mmpo.train.data import ask_behind
from mmpo.train.inference import hidden_states
from mmpo.train.model import tiny_model

PROMPTS = [[{"role": "user", "content": "the cat sat on a mat"}], [{"role": "user", "content": "rain fell over hills far away"}]]
TEXTS = ["some birds", "in trees while rain fell over hills far away from town", "a mat", "looked at some birds in trees"]
PROMPT_OF = [0, 1, 0, 0]


@pytest.fixture(scope="module", params=["causal", "encoder", "reward"])
def folder(request, tokenizer, tmp_path_factory):
    kind, size = request.param, len(tokenizer)
    models = {
        "causal": lambda: tiny_model("policy", tokenizer, size=32, layers=3),
        "reward": lambda: tiny_model("reward", tokenizer, size=32, layers=3),
        "encoder": lambda: small_model("Bert", "reward", vocab_size=size, num_hidden_layers=3, pad_token_id=0).bert,
    }
    return save_model(tmp_path_factory.mktemp(kind) / "model", models[kind](), tokenizer)


def by_hand(folder, ids, start):
    """One text's features from a pass of its own."""
    body = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        states = body(torch.tensor([ids]), output_hidden_states=True)
    middle, last = states.hidden_states[1][0], states.last_hidden_state[0]  # of three layers: what comes into layer 1
    return torch.cat([middle[-1], middle[start:].mean(0), last[-1], last[start:].mean(0)]).numpy()


def ids_of(tokenizer, prompt, text):
    whole = tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": text}], tokenize=True, return_dict=False)
    return whole, len(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=False))


def test_features_are_those_of_a_plain_pass(folder, tokenizer):
    found = hidden_states(PROMPTS, TEXTS, PROMPT_OF, str(folder), bf16=False, cache=False)
    assert found.dtype == np.float32 and found.shape == (4, 4 * 32)
    for row, text, number in zip(found, TEXTS, PROMPT_OF, strict=True):
        np.testing.assert_allclose(row, by_hand(folder, *ids_of(tokenizer, PROMPTS[number], text)), atol=2e-5)


def test_small_passes_and_another_order_change_nothing(folder):
    found = hidden_states(PROMPTS, TEXTS, PROMPT_OF, str(folder), bf16=False, cache=False)
    few = hidden_states(PROMPTS, TEXTS[::-1], PROMPT_OF[::-1], str(folder), bf16=False, cache=False, tokens=20)
    np.testing.assert_allclose(few[::-1], found, atol=2e-5)


def test_bfloat16_rounds_and_no_more(folder):
    whole, rounded = (hidden_states(PROMPTS, TEXTS, PROMPT_OF, str(folder), bf16=bf16, cache=False) for bf16 in (False, True))
    assert 0 < np.linalg.norm(rounded - whole) < 0.02 * np.linalg.norm(whole)


def test_long_texts_lose_the_middle_of_the_prompt_and_the_end_of_the_reply(folder, tokenizer, capsys):
    prompt, text = [{"role": "user", "content": "rain fell over hills far away " * 9}], TEXTS[1] * 5
    ids, start = ids_of(tokenizer, prompt, text)
    length = 40
    head = [*ids[:10], *ids[start - 10 : start]]
    found = hidden_states([prompt], [text], [0], str(folder), bf16=False, cache=False, max_length=length)
    np.testing.assert_allclose(found[0], by_hand(folder, [*head, *ids[start : start + 20]], 20), atol=2e-5)
    said = capsys.readouterr().err
    assert "1 of 1 prompts lost their middle (at 40 tokens)" in said and "1 of 1 completions lost their end" in said


def test_a_question_behind_replies_is_read_as_their_end_and_outlives_a_cut(tokenizer, tmp_path, capsys):
    folder = str(save_model(tmp_path / "model", tiny_model("policy", tokenizer, size=32, layers=3), tokenizer))
    asks = AutoTokenizer.from_pretrained(folder)
    ask_behind(asks, "a mat?")
    given = {"bf16": False, "cache": False, "ask": "a mat?"}
    found = hidden_states(PROMPTS, TEXTS, PROMPT_OF, folder, **given)
    for row, text, number in zip(found, TEXTS, PROMPT_OF, strict=True):
        np.testing.assert_allclose(row, by_hand(folder, *ids_of(asks, PROMPTS[number], text)), atol=2e-5)
    ids, start = ids_of(asks, PROMPTS[0], TEXTS[1])
    written = asks.decode(ids)
    behind = asks(written[written.rindex(TEXTS[1]) + len(TEXTS[1]) :], add_special_tokens=False)["input_ids"]
    assert ids[-len(behind) :] == behind and start <= (len(ids) - 2) // 2
    cut = hidden_states(PROMPTS[:1], TEXTS[1:2], [0], folder, max_length=len(ids) - 2, **given)
    np.testing.assert_allclose(cut[0], by_hand(folder, [*ids[: -len(behind) - 2], *behind], start), atol=2e-5)
    assert "1 of 1 completions lost their end" in capsys.readouterr().err


def test_what_is_kept_is_read_again_and_only_for_the_same_texts(folder, tmp_path, monkeypatch, capsys):
    given = {"bf16": False, "cache": tmp_path}
    first = hidden_states(PROMPTS, TEXTS, PROMPT_OF, str(folder), **given)
    (file,) = tmp_path.iterdir()
    np.save(file, first + 1)
    again = hidden_states(PROMPTS, TEXTS, PROMPT_OF, str(folder), **given)
    assert np.array_equal(again, first + 1) and f"4 completions are in {file}" in capsys.readouterr().err
    other = hidden_states(PROMPTS, TEXTS[:3], PROMPT_OF[:3], str(folder), **given)
    np.testing.assert_allclose(other, first[:3], atol=2e-5)
    file.write_bytes(file.read_bytes()[:200])  # what is not whole is no answer
    np.testing.assert_allclose(hidden_states(PROMPTS, TEXTS, PROMPT_OF, str(folder), **given), first, atol=2e-5)


def test_a_reply_that_the_template_refuses_has_no_features(tmp_path, tokenizer, folder, capsys):
    template = tmp_path / "template.jinja"
    refusing = (
        "{% if 'mat' in messages[-1]['content'] and messages[-1]['role'] == 'assistant' %}{{ raise_exception('no') }}{% endif %}"
    )
    template.write_text(refusing + tokenizer.chat_template)
    found = hidden_states(PROMPTS, TEXTS, PROMPT_OF, str(folder), bf16=False, cache=False, chat_template=str(template))
    assert np.isnan(found).all(axis=1).tolist() == [False, False, True, False]
    assert "1 of 4 completions can't be rendered" in capsys.readouterr().err


def test_models_without_such_states_are_refused_by_name(tmp_path, tokenizer):
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    save_model(tmp_path / "t5", T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), **sizes)), tokenizer)
    assert "t5) reads one text and writes another" in user_error("", hidden_states, PROMPTS, TEXTS, PROMPT_OF, str(tmp_path / "t5"))
    user_error("there is no such folder", hidden_states, PROMPTS, TEXTS, PROMPT_OF, str(tmp_path / "none"))
    (tmp_path / "notes").mkdir()
    user_error("it holds no config.json", hidden_states, PROMPTS, TEXTS, PROMPT_OF, str(tmp_path / "notes"))


def test_the_tokenizer_of_another_length_limit_does_not_matter(folder, tmp_path):
    """Files of sentence encoders carry a truncation at 128 tokens and padding to as many."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.enable_truncation(8)
    tokenizer.backend_tokenizer.enable_padding(length=8)
    other = save_model(tmp_path / "model", AutoModel.from_pretrained(folder), tokenizer)
    text = {path.name for path in other.iterdir()}
    assert "tokenizer.json" in text
    for name in ("config.json", "model.safetensors"):
        (other / name).write_bytes((folder / name).read_bytes())
    found, plain = (hidden_states(PROMPTS, TEXTS, PROMPT_OF, str(one), bf16=False, cache=False) for one in (other, folder))
    np.testing.assert_allclose(found, plain, atol=2e-5)
