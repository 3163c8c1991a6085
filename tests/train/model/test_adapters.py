"""Adapters: which modules get one and how strongly it counts, what is refused, and that weights of few bits are refused without a GPU."""

import json

import pytest
import torch
from training_cases import prompts_of, save_model, small_model, user_error, with_random_adapter

from mmpo.train import TrainOptions
from mmpo.train.model import add_lora, disable_dropout, tiny_model
from mmpo.train.model.adapters import check_targets


def adapted(model) -> set[str]:
    return {
        name.rpartition(".lora_A")[0].removeprefix("base_model.model.") for name, _ in model.named_modules() if ".lora_A." in name
    }


def test_the_named_modules_get_an_adapter_and_no_others():
    model = add_lora(small_model("Llama"), 2, "policy", targets="q_proj, layers.1.mlp.up_proj")
    assert adapted(model) == {"model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.up_proj"}
    everywhere = adapted(add_lora(small_model("Llama"), 2, "policy"))
    assert len(everywhere) == 2 * 7 and "lm_head" not in everywhere


@pytest.mark.parametrize(("alpha", "counts"), [(None, 2.0), (4, 1.0), (1, 0.25)])
def test_an_adapters_change_counts_alpha_over_rank(alpha, counts):
    """By hand: W·x + alpha/rank · B·A·x."""
    model = with_random_adapter(add_lora(small_model("Llama"), 4, "policy", alpha=alpha, targets="q_proj"))
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    change = x @ layer.lora_A.default.weight.T @ layer.lora_B.default.weight.T
    assert torch.allclose(layer(x), layer.base_layer(x) + counts * change, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "targets", "said"),
    [
        (
            "Llama",
            "qproj",
            "has no linear module called 'qproj'; did you mean 'q_proj'? It has: q_proj, k_proj, v_proj, o_proj, gate_proj",
        ),
        ("Llama", "q_proj,c_attn", "no linear module called 'c_attn'"),
        ("Llama", "self_atn.v_proj", "did you mean 'self_attn.v_proj'?"),
        ("Llama", "self_attn", "what is called so is LlamaAttention"),
        ("Llama", "lm_head", "what is called so is the output layer"),
        ("GPT2", "q_proj", "It has: c_attn, c_proj, c_fc"),
        ("Llama", " , ", "names no module"),
    ],
)
def test_targets_that_a_model_has_not_are_refused_with_near_names(family, targets, said):
    assert said in user_error("lora_targets", check_targets, small_model(family), targets, "it")


def test_targets_may_be_a_list_in_python_and_of_any_kind_of_linear_module():
    assert TrainOptions("policy", lora=2, lora_targets=["c_attn", "c_fc"]).lora_targets == "c_attn,c_fc"
    check_targets(small_model("GPT2"), "c_attn,c_fc", "gpt2")
    assert len(adapted(add_lora(small_model("GPT2"), 2, "policy", targets="c_attn"))) == 2


def test_an_adapters_dropout_stays_and_the_models_own_goes():
    model = add_lora(small_model("GPT2", resid_pdrop=0.3), 4, "policy", dropout=0.5)
    assert disable_dropout(with_random_adapter(model))
    rates = {name.rpartition(".")[2] == "default" or ".lora_dropout." in name: module.p
             for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)}  # fmt: skip
    assert rates == {True: 0.5, False: 0.0}
    assert not disable_dropout(add_lora(small_model("GPT2"), 4, "policy"))


def test_a_prompt_in_parts_is_looked_at_twice_through_the_same_masks(trainer_of, tokenizer, pairs, monkeypatch):
    """The random numbers that an adapter leaves inputs out by come once more for the gradients of a part."""
    model = with_random_adapter(add_lora(tiny_model("policy", tokenizer, size=32, layers=1), 4, "policy", dropout=0.5))
    trainer = trainer_of(model=model, data=prompts_of(pairs, tokenizer), tokens_per_batch=60)
    seen, values = [], trainer.values
    monkeypatch.setattr(trainer, "values", lambda *given: seen.append((given[1], values(*given))) or seen[-1][1])
    step = trainer.make_step(trainer.prompts[:2])
    [parts] = [batch.parts for batch in step.batches if len(batch.parts) > 1]
    trainer.training_step(trainer.model, step)
    for part in parts:
        first, again = (value.detach() for at, value in seen if at is part or torch.equal(at.input_ids, part.input_ids))
        assert torch.equal(first, again)
    trainer.model.eval()
    assert not torch.equal(first, values(trainer.model, part).detach()[: len(first)])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lora_alpha": 8}, "lora_alpha is of an adapter, and none is trained: give its rank as well (--lora 16)"),
        ({"lora_targets": "q_proj"}, "lora_targets is of an adapter"),
        ({"lora_dropout": 0.1}, "lora_dropout is of an adapter"),
        ({"lora": 4, "lora_dropout": 1}, "lora_dropout: 1 is not below 1"),
        ({"lora": 4, "lora_alpha": 0}, "lora_alpha: 0 is not above 0"),
        ({"load_in": "4bit"}, "weights of so few bits can't be trained, an adapter above them can: give --lora 16"),
        ({"load_in": "3bit", "lora": 4}, "'3bit' is not '4bit' or '8bit'"),
        ({"load_in": "4bit", "lora": 4, "model": "tiny"}, "a tiny model is built, not loaded"),
        ({"optimizer": "adam8bit"}, "did you mean 'adamw-8bit'?"),
    ],
)
def test_options_of_adapters_that_cannot_work_are_refused(given, said):
    assert said in user_error("", TrainOptions, **{"kind": "policy", "model": "some/model", **given})


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
@pytest.mark.parametrize(
    "given", [{"load_in": "4bit", "lora": 4}, {"load_in": "8bit", "lora": 4}, {"optimizer": "paged-adamw-8bit"}]
)
def test_few_bits_are_refused_without_a_gpu_before_anything_is_loaded(given, train_tiny, tmp_path):
    out = tmp_path / "out"
    said = user_error("torch finds none here", train_tiny, "policy", tmp_path / "no data", out, **{"model": "no/model", **given})
    assert next(iter(given.values())) in said and not out.exists()


def test_the_options_reach_the_adapter_that_is_saved(train_tiny, dataset, tokenizer, tmp_path, fresh_cache):
    base = save_model(tmp_path / "base", tiny_model("policy", tokenizer, size=32, layers=1), tokenizer)
    how = {"lora_alpha": 6, "lora_targets": "q_proj,v_proj", "lora_dropout": 0.25, "max_steps": 2}
    train_tiny("policy", dataset, tmp_path / "out", model=str(base), lora=3, **how)
    saved = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (saved["r"], saved["lora_alpha"], saved["lora_dropout"]) == (3, 6, 0.25)
    assert set(saved["target_modules"]) == {"q_proj", "v_proj"}
    said = user_error("", train_tiny, "policy", dataset, tmp_path / "two", model=str(base), lora=3, lora_targets="qproj")
    assert "did you mean 'q_proj'?" in said and not (tmp_path / "two").exists()
