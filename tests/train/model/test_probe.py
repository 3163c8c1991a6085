"""The probe: plans that are wrong, or wrong in one process, are found and another is taken, with the reason; what is left is clean."""

import copy

import pytest
import torch
from training_cases import make_pairs, small_model, user_error
from transformers import AttentionInterface, Gemma3Config, Gemma3ForConditionalGeneration, LlamaForCausalLM
from transformers.masking_utils import create_sliding_window_causal_mask
from transformers.models.llama import modeling_llama

from mmpo.pipeline.errors import UserError
from mmpo.train.batches import BATCHES
from mmpo.train.model import (
    ExecutionPlan,
    attention,
    body_of,
    check_plan,
    choose_plan,
    completion_values,
    idle_parameters,
    inputs_of,
    probe_group,
    recomputing_exactly,
    tiny_model,
)
from mmpo.train.model.attention import SEGMENTS, segment_attention
from mmpo.train.options import TrainOptions

VOCABULARY, WINDOW = 120, 16
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
    assert choose_plan(model, "policy", 40, layout="rows") == ExecutionPlan("rows", "linear", "asked for")
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
    "Bert": ({"kind": "reward"}, "an encoder"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_layers_than_attention_to_a_mask_get_rows(name):
    """Recurrent ones that say so or not, a position bias that is made of a mask of two dimensions, an encoder."""
    options, reason = OTHERS[name]
    model, kind = model_of(name, **options), options.get("kind", "policy")
    plan = choose_plan(model, kind, 40)
    assert (plan.layout, plan.head == "whole") == ("rows", kind == "reward")
    assert reason in plan.reason
    assert error_of(model, plan, 40, kind) <= 1e-4
    user_error("tree batches do not work", choose_plan, model, kind, 40, layout="tree")


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
        user_error("", choose_plan, model, "policy", 40, layout="tree")
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


def test_scores_under_autocast_are_not_rounded(tokenizer):
    model = tiny_model("reward", tokenizer, size=32, layers=1).eval()
    batch = BATCHES["rows"].build([probe_group(len(tokenizer), 40)], 0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = completion_values(model, "reward", batch, ExecutionPlan())
        body = body_of(model)
        states = body(**inputs_of(body, batch, ExecutionPlan())).last_hidden_state.flatten(0, 1)[batch.last]
    expected = states.double() @ model.score.weight.double().T
    assert (found - expected[:, 0]).abs().max() <= 1e-6
    assert not torch.equal(found, found.bfloat16().float())


class Forgetting(modeling_llama.LlamaDecoderLayer):
    """Hands nothing but the essentials on where activations are recomputed."""

    def forward(self, hidden_states, **options):
        if self.gradient_checkpointing and self.training:
            options.pop("segments", None)
        return super().forward(hidden_states, **options)


def test_a_model_that_recomputes_without_all_arguments_gets_masks(tokenizer, monkeypatch):
    monkeypatch.setattr(modeling_llama, "LlamaDecoderLayer", Forgetting)
    model = tiny_model("policy", tokenizer, size=32, layers=2).eval()
    assert choose_plan(model, "policy", 40).layout == "packed"
    model.set_attn_implementation("sdpa")
    plan = choose_plan(model, "policy", 40, checkpointing=True)
    assert (plan.layout, model.config._attn_implementation) == ("tree", "sdpa")
    monkeypatch.undo()
    assert choose_plan(tiny_model("policy", tokenizer, size=32), "policy", 40, checkpointing=True).layout == "packed"


def test_recomputing_exactly_leaves_no_trace(tokenizer):
    model = tiny_model("policy", tokenizer, size=32, layers=2).eval()
    before = [dict(vars(module)) for module in model.modules()]
    with recomputing_exactly(model):
        assert [layer.training for layer in model.model.layers] == [True, True]
        assert not model.model.layers[0].mlp.training
    assert [dict(vars(module)).keys() for module in model.modules()] == [names.keys() for names in before]
    assert not any(module.training for module in model.modules())


NARROW = """
import mmpo.train.model.probe as module
from mmpo.train.model import ExecutionPlan, tiny_model, tiny_tokenizer

module._candidates = lambda *_: [ExecutionPlan("tree", attention="mask"), ExecutionPlan("packed", attention="segments")]
difference = module._Probe._difference
def failing(self, plan, own):
    if rank and plan.attention == "mask":
        raise RuntimeError("not here")
    return difference(self, plan, own)
module._Probe._difference = failing
model = tiny_model("policy", tiny_tokenizer(["a cat"], 300), size=32)
print(module.choose_plan(model, "policy", 40, device="cuda", training=True).attention)
"""


@pytest.mark.slow
def test_processes_take_what_is_exact_in_all_of_them(processes):
    done = processes(NARROW, seconds=60)
    assert [one.stdout.split()[-1:] for one in done] == [["segments"]] * 2, done[1].stderr[-2000:]
