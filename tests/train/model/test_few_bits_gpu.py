"""4 and 8 bits on a GPU, by bitsandbytes: a run trains, its policy begins as its own reference, and what is saved has all its bits."""

import pytest
import torch
from training_cases import save_model, small_model
from transformers import AutoModelForSequenceClassification

from mmpo.train import evaluate, merge

pytest.importorskip("bitsandbytes")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.usefixtures("fresh_cache"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
@pytest.mark.parametrize("optimizer", ["adamw", "adamw-8bit", "paged-adamw-8bit"])
def test_a_policy_trains_above_few_bits(bits, optimizer, train_tiny, dataset, tokenizer, tmp_path):
    """Its first step checks that it equals its reference."""
    base = save_model(tmp_path / "base", small_model("Llama", vocab_size=len(tokenizer), hidden_size=64), tokenizer)
    how = {"lora": 4, "load_in": bits, "optimizer": optimizer, "max_steps": 4, "learning_rate": 1e-2}
    done = train_tiny("policy", dataset, tmp_path / "out", model=str(base), **how)
    assert done["steps"] == 4 and 0 < done["train_loss"] < 2
    merge(tmp_path / "out", tmp_path / "whole")
    assert evaluate("policy", str(tmp_path / "whole"), str(dataset))["pairs"]


def test_a_reward_model_is_saved_in_full(train_tiny, dataset, tokenizer, tmp_path):
    base = save_model(tmp_path / "base", small_model("Llama", "reward", vocab_size=len(tokenizer), hidden_size=64), tokenizer)
    train_tiny("reward", dataset, tmp_path / "out", model=str(base), lora=4, load_in="4bit", max_steps=3, learning_rate=1e-2)
    whole = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert getattr(whole.config, "quantization_config", None) is None
    assert {value.dtype for value in whole.parameters()} == {torch.float32}
