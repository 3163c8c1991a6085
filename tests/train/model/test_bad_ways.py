"""Models that can't be run in the best way, or not by several processes: said aloud, or refused before any step."""

import pytest
import torch
from training_cases import small_model
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from mmpo.pipeline.errors import UserError
from mmpo.train.model import ExecutionPlan, check_plan, choose_plan, idle_parameters, tiny_model
from mmpo.train.options import TrainOptions


def test_a_causal_model_that_gets_rows_by_itself_is_said(tokenizer, capsys):
    model = tiny_model("policy", tokenizer, size=16, layers=1)
    model.set_attn_implementation("eager")
    plan = choose_plan(model, "policy", 30)
    assert plan.layout == "rows"
    check_plan(plan, model, TrainOptions("policy"))
    assert "warning: tree batches are not exact for this model (on rows of 30 tokens a hidden state" in capsys.readouterr().err
    check_plan(plan, model, TrainOptions("policy", layout="rows"))
    encoder = small_model("Bert", "reward")
    check_plan(choose_plan(encoder, "reward", 30), encoder, TrainOptions("reward"))
    assert capsys.readouterr().err == ""


def test_fsdp_is_refused_where_logits_come_from_the_models_own_pass_only(tokenizer, monkeypatch):
    model = tiny_model("policy", tokenizer, size=16, layers=1)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    check_plan(ExecutionPlan("tree", "linear"), model, TrainOptions("policy"))
    with pytest.raises(UserError, match="FSDP is not supported for LlamaForCausalLM"):
        check_plan(ExecutionPlan("rows", "whole"), model, TrainOptions("policy", layout="rows"))


def test_parameters_that_texts_do_not_pass_are_found(tokenizer):
    """A model of text and images computes nothing with its image parts here; text models have no such parts."""
    assert idle_parameters(tiny_model("policy", tokenizer, size=16, layers=1)) == []
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    text = {**sizes, **ids, "vocab_size": 99, "num_key_value_heads": 1, "head_dim": 16}
    config = Gemma3Config(text_config=text, vision_config={**sizes, "image_size": 14, "patch_size": 14}, mm_tokens_per_image=1)
    model = Gemma3ForConditionalGeneration(config)
    out = model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits
    out.sum().backward()
    without = {name for name, value in model.named_parameters() if value.grad is None}
    assert without
    assert set(idle_parameters(model)) == without
    model.requires_grad_(False)
    assert idle_parameters(model) == []
