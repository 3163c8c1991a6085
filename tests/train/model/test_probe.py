"""The probe: plans that are wrong are found and another is taken, with the reason; what is left behind is clean."""

import copy

import pytest
import torch
from training_cases import make_pairs, small_model
from transformers import AttentionInterface, LlamaForCausalLM
from transformers.masking_utils import create_sliding_window_causal_mask
from transformers.models.llama import modeling_llama

from mmpo.pipeline.errors import UserError
from mmpo.train.model import ExecutionPlan, choose_plan, completion_values, probe_group
from mmpo.train.model import masks as attention
from mmpo.train.model.segments import SEGMENTS, segment_attention

VOCABULARY, WINDOW = 120, 16
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
GPU = "cuda"  # for this device masks are the first choice; the model stays where it is
PACKED, TREE = ExecutionPlan("packed", "linear"), ExecutionPlan("tree", "linear")


def model_of(name="Mistral", kind="policy", **options):
    return small_model(name, kind, **{**({"sliding_window": WINDOW} if name == "Mistral" else {}), **options})


@torch.no_grad()
def error_of(model, plan, length, kind="policy"):
    """Largest difference of a completion's value from that of a row of its own, in nats or points of the score."""
    model.eval()
    group = probe_group(VOCABULARY, length)
    plain = [model(torch.tensor(item.ids)[None]).logits for item in group]
    if kind == "policy":
        logs = [x[0].double().log_softmax(dim=-1) for x in plain]
        plain = [sum(x[i - 1, item.ids[i]] for i in range(item.start, len(item.ids))) for x, item in zip(logs, group)]
    expected = torch.stack([value.double().flatten()[0] for value in plain])
    return float((completion_values(model, kind, plan.batches.build([group], 0), plan) - expected).abs().max())


@pytest.fixture
def no_window(monkeypatch):
    """The mask of a sliding layer is what it is to a model that is given one plain causal mask: full."""
    monkeypatch.setitem(attention.ATTENTION_TYPES, "sliding_attention", attention.ATTENTION_TYPES["full_attention"])


@pytest.fixture
def deaf(monkeypatch):
    """Attention by segments in a model whose layers do not hand their window on."""
    monkeypatch.setitem(
        AttentionInterface._global_mapping, SEGMENTS, lambda *args, sliding_window=None, **rest: segment_attention(*args, **rest)
    )


def test_by_default_each_device_gets_its_fastest_exact_plan():
    model = model_of()
    assert choose_plan(model, "policy", 40) == PACKED
    assert model.config._attn_implementation == SEGMENTS
    assert error_of(model, PACKED, 40) <= 1e-4
    assert choose_plan(model, "policy", 40, device=GPU) == TREE
    assert model.config._attn_implementation == "sdpa"
    assert error_of(model, TREE, 40) <= 1e-4
    assert choose_plan(model, "policy", 40, layout="rows") == ExecutionPlan("rows", "linear", "asked for")


@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_a_window_shorter_than_the_rows_is_seen_in_rows_that_are_longer(kind, no_window):
    model, head = model_of(kind=kind), "linear" if kind == "policy" else "whole"
    for length in (WINDOW + 1, WINDOW + 2, 2 * WINDOW, 5 * WINDOW):
        plan = choose_plan(model, kind, length, device=GPU)
        assert plan.layout == "rows"
        assert f"on rows of {length} tokens a hidden state differs by" in plan.reason
        if kind == "reward" or length > WINDOW + 1:  # scores are read from a row's last token, predictions before it
            assert error_of(model, ExecutionPlan("tree", head), length, kind) > 1e-3
    assert error_of(model, ExecutionPlan("tree", head), 5 * WINDOW, kind) > 0.1
    # Shorter rows can't show it, and it does not matter there: hence the length of the longest row, and asking again.
    assert choose_plan(model, kind, WINDOW, device=GPU).layout == "tree"
    assert error_of(model, ExecutionPlan("tree", head), WINDOW, kind) <= 1e-4


def test_layers_that_do_not_hand_on_their_window_get_masks_then_rows(deaf, request):
    model = model_of()
    assert choose_plan(model, "policy", WINDOW) == PACKED
    assert choose_plan(model, "policy", 3 * WINDOW) == TREE
    assert model.config._attn_implementation == "sdpa"
    assert error_of(model, TREE, 3 * WINDOW) <= 1e-4
    model.set_attn_implementation(SEGMENTS)
    assert error_of(model, PACKED, 3 * WINDOW) > 0.1
    request.getfixturevalue("no_window")
    model.set_attn_implementation("sdpa")
    assert choose_plan(model, "policy", 3 * WINDOW).layout == "rows"


def test_a_window_that_the_config_does_not_name_is_found_out(monkeypatch):
    def windowed(config, **rest):
        config = copy.copy(config)
        config.sliding_window = WINDOW
        return create_sliding_window_causal_mask(config=config, **rest)

    model = model_of("Llama")
    assert choose_plan(model, "policy", 40).layout == "packed"
    model.set_attn_implementation("sdpa")
    monkeypatch.setattr(modeling_llama, "create_causal_mask", windowed)
    assert choose_plan(model, "policy", WINDOW).layout == "packed"
    for device in (None, GPU):
        plan = choose_plan(model, "policy", 40, device=device)
        assert (plan.layout, plan.head) == ("rows", "linear")
        assert "a hidden state differs by" in plan.reason
    assert error_of(model, plan, 40) <= 1e-4


def test_eager_attention_adds_a_boolean_mask_and_so_gets_rows():
    model = model_of("Llama", attn_implementation="eager")
    plan = choose_plan(model, "policy", 40)
    assert (plan.layout, model.config._attn_implementation) == ("rows", "eager")
    assert "its attention is eager" in plan.reason
    with pytest.raises(UserError, match=r"tree batches do not work .*attention is eager.*--layout rows or auto"):
        choose_plan(model, "policy", 40, layout="tree")
    assert error_of(model, plan, 40) <= 1e-4
    assert error_of(model, TREE, 40) > 0.1


HYBRID = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
OTHERS = {
    "Mamba": ({"state_size": 4}, "it has layers of the type linear_attention"),
    "Qwen3Next": (HYBRID, "layers of the type linear_attention"),
    "Rwkv": ({"attention_hidden_size": 32}, "a hidden state differs by"),
    "Bloom": ({}, "ValueError"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_layers_than_attention_to_a_mask_get_rows(name):
    """Recurrent ones that say so or not, and a position bias that is made of a mask of two dimensions."""
    options, reason = OTHERS[name]
    model = model_of(name, **options)
    plan = choose_plan(model, "policy", 40)
    assert plan.layout == "rows"
    assert reason in plan.reason
    assert error_of(model, plan, 40) <= 1e-4
    with pytest.raises(UserError, match="tree batches do not work"):
        choose_plan(model, "policy", 40, layout="tree")


def test_an_encoder_gets_rows_with_the_reason():
    model = model_of("Bert", "reward")
    plan = choose_plan(model, "reward", 40)
    assert (plan.layout, plan.head) == ("rows", "whole")
    assert "an encoder" in plan.reason


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_nothing_is_left_behind(mode, fails, monkeypatch):
    """Training mode, the attention function of plans that failed, random numbers, gradients."""

    def broken(*args, segments=None, **rest):
        if segments is not None:
            raise RuntimeError("no segments here")
        return segment_attention(*args, **rest)

    if fails:
        monkeypatch.setitem(AttentionInterface._global_mapping, SEGMENTS, broken)
        monkeypatch.setitem(attention.ATTENTION_TYPES, "full_attention", lambda query, key, config: key == query)
    model = model_of("Llama").train(mode)
    state = torch.random.get_rng_state()
    plan = choose_plan(model, "policy", 40)
    assert (plan.layout, model.config._attn_implementation) == (("rows", "sdpa") if fails else ("packed", SEGMENTS))
    assert all(module.training == mode for module in model.modules())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(value.grad is None for value in model.parameters())
    if fails:
        with pytest.raises(UserError):
            choose_plan(model, "policy", 40, layout="tree")
        assert (model.training, model.config._attn_implementation) == (mode, "sdpa")


@pytest.mark.parametrize(("always", "layout"), [(False, "packed"), (True, "rows")])
def test_a_difference_that_other_tokens_do_not_make_is_no_wrong_mask(always, layout):
    """A mixture of experts sends a token elsewhere for a rounding error now and then, not at the same place every time."""
    model = model_of("Llama")
    first = ExecutionPlan("packed").batches.build([probe_group(VOCABULARY, 40)], 0).input_ids

    def disturb(module, args, options, output):
        ids = options["input_ids"]
        if ids.shape == first.shape and (always or torch.equal(ids, first)):
            output.last_hidden_state[:, 30] *= 1.01
        return output

    model.model.register_forward_hook(disturb, with_kwargs=True)
    assert choose_plan(model, "policy", 40).layout == layout


def test_longer_prompts_are_probed_again(trainer_of, tokenizer, deaf):
    """What was exact for the training rows is not for longer ones that come to be measured."""

    def own(data, window, layout="auto"):
        return trainer_of(model=model_of(vocab_size=len(tokenizer), sliding_window=window), data=data, layout=layout)

    prompts = sorted(own(make_pairs(20, [2]), 500).prompts, key=lambda prompt: prompt.length)
    short, long, window = prompts[:4], prompts[-4:], prompts[3].length
    assert window + 1 < long[0].length
    trainer, rows = own(short, window), own(long, window, "rows")
    stale = trainer.make_step(short).batches[0].parts[0]
    assert (trainer.execution_plan, rows.execution_plan.layout) == (PACKED, "rows")
    found = trainer.predict_pairs(long)
    assert trainer.execution_plan == TREE
    assert found["logps/chosen"] == pytest.approx(rows.predict_pairs(long)["logps/chosen"], abs=1e-4)
    # What was laid out before: masks can take it, rows can't and say so.
    with torch.no_grad():
        known = rows.values(rows.model, rows.make_step(short).batches[0].parts[0])
        assert (trainer.values(trainer.model, stale) - known).abs().max() <= 1e-4
        with pytest.raises(ValueError, match="the execution plan has changed"):
            rows.values(rows.model, stale)


def test_without_a_plain_output_layer_the_models_own_is_used():
    """A soft cap that rounds large logits only, an adapter on the output layer, and logits that no head gives."""
    capped = model_of("Gemma2", final_logit_softcapping=30.0, attn_logit_softcapping=None)
    assert choose_plan(capped, "policy", 20).head == "model"
    plain = model_of("Llama")
    assert choose_plan(plain, "policy", 20).head == "linear"
    plain.lm_head = type("Adapted", (torch.nn.Linear,), {})(32, VOCABULARY, bias=False)
    assert choose_plan(plain, "policy", 20).head == "model"

    class Shifted(LlamaForCausalLM):
        def forward(self, input_ids, **options):
            output = super().forward(input_ids, **options)
            output.logits = output.logits + input_ids[:, :, None] / 7 * torch.arange(VOCABULARY)
            return output

    assert choose_plan(Shifted(plain.config), "policy", 20).head == "whole"
