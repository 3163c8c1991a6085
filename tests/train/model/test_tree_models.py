"""A trained model is still a transformers model: copied, saved and asked to generate, as if nothing had been done to it."""

import copy
import inspect
import json

import pytest
import torch
from training_cases import small_model
from transformers import AutoModelForCausalLM

from mmpo.train.model import ExecutionPlan, attach, completion_values, probe_group
from mmpo.train.model.attention import SEGMENTS

MODELS = {
    "Llama": {},
    "Gemma3Text": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "GPT2": {},
}


def model_of(name, tokenizer):
    return small_model(
        name, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, **MODELS[name]
    )


@pytest.fixture(params=MODELS)
def trained(request, trainer_of, tokenizer):
    """After two steps, by the CPU's own plan."""
    trainer = trainer_of(model=model_of(request.param, tokenizer))
    trainer.train()
    assert trainer.execution_plan == ExecutionPlan("packed", "linear")
    assert trainer.model.config._attn_implementation == SEGMENTS
    return trainer


@pytest.fixture
def clean(trained, tokenizer):
    """The same weights in a model that nothing was done to."""
    name = next(name for name in MODELS if type(trained.model).__name__.startswith(name.removesuffix("Text")))
    model = model_of(name, tokenizer)
    model.load_state_dict(trained.model.state_dict())
    return model.eval()


def test_what_is_saved_is_clean_and_loads_as_ever(trained, clean, tmp_path):
    trained.save_model(str(tmp_path / "trained"))
    clean.save_pretrained(tmp_path / "clean")
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("trained", "clean")]
    assert {**configs[0], "use_cache": None} == {**configs[1], "use_cache": None}
    assert SEGMENTS not in (tmp_path / "trained" / "config.json").read_text()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "trained").eval()
    assert model.config._attn_implementation == "sdpa"
    ids = torch.randint(5, 100, (2, 20))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, clean(ids).logits)


def test_its_plain_forward_pass_is_unchanged(trained, clean):
    """With and without padding, by position and by name."""
    ids, mask = torch.randint(5, 100, (3, 20)), torch.ones(3, 20, dtype=torch.long)
    mask[0, 11:] = mask[1, 3:] = 0
    model = trained.model.eval()
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, clean(ids).logits, atol=1e-5)
        found, expected = (each(input_ids=ids, attention_mask=mask, labels=ids) for each in (model, clean))
    assert torch.allclose(found.logits[mask > 0], expected.logits[mask > 0], atol=1e-5)
    assert found.loss.item() == pytest.approx(expected.loss.item(), abs=1e-5)
    assert inspect.signature(model.forward) == inspect.signature(clean.forward)


@pytest.mark.parametrize("given", ["mask", "no mask"])
def test_it_generates_what_it_did(given, trained, clean, tokenizer):
    """Prompts padded on the left: the positions, which GPT-2 learns, begin behind the padding.

    `generate` makes mask and positions only where the signature of `forward` names them.
    """
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad, pad, pad, 20, 21, 22], [30, 31, 32, 33, 34, 35]])
    options = {"max_new_tokens": 12, "do_sample": False, **({"attention_mask": (ids != pad).long()} if given == "mask" else {})}
    expected = clean.generate(ids, **options)
    assert torch.equal(trained.model.eval().generate(ids, **options), expected)
    alone = clean.generate(ids[:1, 3:], max_new_tokens=12, do_sample=False)
    assert torch.equal(expected[0, 3 : 3 + alone.shape[1]], alone[0])


def test_a_copy_runs_its_own_weights(trained, tokenizer):
    model, batch = trained.model.eval(), ExecutionPlan("packed").batches.build([probe_group(len(tokenizer), 30)], 0)
    twin = copy.deepcopy(model)
    assert twin.config._attn_implementation == SEGMENTS
    with torch.no_grad():
        before = completion_values(model, "policy", batch, trained.execution_plan)
        assert torch.equal(completion_values(twin, "policy", batch, trained.execution_plan), before)
        plain = twin(batch.input_ids).logits
        for value in model.parameters():
            value.zero_()
        assert torch.equal(completion_values(twin, "policy", batch, trained.execution_plan), before)
        assert torch.equal(twin(batch.input_ids).logits, plain)
        assert not torch.allclose(completion_values(model, "policy", batch, trained.execution_plan), before, atol=0.1)


def test_attaching_twice_changes_nothing(tokenizer):
    model = model_of("Llama", tokenizer)
    attach(model)
    forward = model.forward
    attach(model)
    assert model.forward == forward
