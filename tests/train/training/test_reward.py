"""Reward models: pooled at the last token by the mask, and a saved folder that others read to the same scores."""

import copy

import pytest
import torch
from training_cases import prompts_of, save_model, small_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from mmpo.train.batches import BATCHES
from mmpo.train.evaluation import evaluate
from mmpo.train.model import ExecutionPlan, completion_values, tiny_model
from mmpo.train.training import own_pad_token


def pad_is_eos(tokenizer):
    """A tokenizer as many models have it: eos ends every turn and is the pad token as well."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def test_scores_are_pooled_at_the_last_token_whatever_the_padding(pairs, tokenizer):
    """Reference defect 2 and transformers 35352: with pad = eos, pooling by token id ends before the reply."""
    tokenizer = pad_is_eos(tokenizer)
    model = tiny_model("reward", tokenizer, size=32, layers=1).eval()
    prompts = prompts_of(pairs, tokenizer)[:4]
    rows = [item for prompt in prompts for item in prompt.completions]
    batch = BATCHES["rows"].build([prompt.completions for prompt in prompts], tokenizer.pad_token_id)
    with torch.no_grad():
        found = completion_values(model, "reward", batch, ExecutionPlan())
        plain = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, 0]
        expected = [model.score(model.model(torch.tensor(row.ids)[None]).last_hidden_state[0, -1]) for row in rows]
    assert torch.allclose(found, torch.cat(expected), atol=1e-5)
    assert not torch.allclose(plain, found, atol=1e-5)  # the defect is real in what we build on


def test_a_saved_model_of_pad_eos_gives_our_scores_to_plain_transformers(trainer_of, pairs, tokenizer, tmp_path):
    tokenizer = pad_is_eos(tokenizer)
    model = tiny_model("reward", tokenizer, size=32, layers=1)
    trainer = trainer_of("reward", model, processing_class=tokenizer)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))

    ours = trainer.predict_pairs(trainer.prompts)["rewards/chosen"]
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    reader = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert reader.pad_token_id == saved.config.pad_token_id != reader.eos_token_id
    texts = [
        reader.apply_chat_template([*prompt, *reply], tokenize=False)
        for prompt, reply in zip(pairs["prompt"].to_pylist(), pairs["chosen"].to_pylist(), strict=True)
    ]
    with torch.no_grad():
        theirs = saved(**reader(texts, padding=True, add_special_tokens=False, return_tensors="pt")).logits[:, 0]
    assert theirs.numpy() == pytest.approx(ours, abs=1e-5)


@pytest.mark.parametrize("room", [0, 8])
def test_embeddings_grow_only_if_the_pad_token_needs_it(room, tokenizer):
    tokenizer = pad_is_eos(tokenizer)
    tokenizer.chat_template = None
    model = tiny_model("reward", tokenizer, size=32, layers=1)
    model.resize_token_embeddings(len(tokenizer) + room)
    own_pad_token(model, tokenizer)
    assert model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model.get_input_embeddings().num_embeddings == len(tokenizer) + room  # <|pad|> was in the vocabulary already


def test_encoders_pool_their_own_way(prompts, tokenizer):
    model = small_model("Bert", "reward", vocab_size=len(tokenizer)).eval()
    batch = BATCHES["rows"].build([prompt.completions for prompt in prompts[:2]], tokenizer.pad_token_id)
    with torch.no_grad():
        found = completion_values(model, "reward", batch, ExecutionPlan())
        expected = [model(torch.tensor(row.ids)[None]).logits[0] for prompt in prompts[:2] for row in prompt.completions]
    assert torch.allclose(found, torch.cat(expected), atol=1e-5)


def test_a_lora_reward_model_is_saved_whole(train_tiny, dataset, tokenizer, tmp_path):
    base = save_model(tmp_path / "base", tiny_model("reward", tokenizer, size=32, layers=1), pad_is_eos(tokenizer))
    options = {"model": str(base), "lora": 4, "max_steps": 3, "learning_rate": 1e-2}
    result = train_tiny("reward", dataset, tmp_path / "out", **options)
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert saved.config.pad_token_id == AutoTokenizer.from_pretrained(tmp_path / "out").pad_token_id
    measured = evaluate("reward", tmp_path / "out", dataset, split="validation")
    assert measured["cross_entropy"] == pytest.approx(result["metrics"]["cross_entropy"], abs=1e-5)


def test_the_pad_token_is_set_in_the_text_configuration_too(tokenizer):
    tokenizer, model = copy.deepcopy(tokenizer), tiny_model("reward", tokenizer, size=16, layers=1)
    inner = copy.deepcopy(model.config)
    inner.pad_token_id = None
    tokenizer.pad_token = tokenizer.eos_token
    model.config.get_text_config = lambda *_, **__: inner
    own_pad_token(model, tokenizer)
    assert inner.pad_token_id == model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
