"""FlexAttention on a GPU: its gradients, when it is taken and when masks are, and that it is compiled a few times only."""

import pytest
import torch
from torch._dynamo.utils import counters
from training_cases import branching_groups
from transformers import AutoModelForCausalLM, Gemma2Config

from mmpo.train.batches import BATCHES
from mmpo.train.model import ExecutionPlan, choose_plan, completion_values, tiny_model
from mmpo.train.model.attention import ATTENTIONS, FLEX

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]


@pytest.fixture
def model(tokenizer):
    made = tiny_model("policy", tokenizer, size=128)
    for value in made.parameters():
        value.data *= 5  # a token that is seen by mistake then shows in the first digits
    return made.cuda()


def values_and_gradient(model, plan, groups, lower=None):
    model.set_attn_implementation((ATTENTIONS[plan.attention].implementation if plan.attention else "") or "sdpa")
    model.zero_grad()
    batch = plan.batches.build(groups, 0).to("cuda")
    with torch.autocast("cuda", lower, enabled=lower is not None):
        values = completion_values(model, "policy", batch, plan)
    (values * torch.linspace(-1, 1, len(values), device="cuda")).sum().backward()
    return values.detach(), torch.cat([value.grad.flatten() for value in model.parameters()])


@pytest.mark.parametrize("attention", ["flex", "mask"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_values_and_gradients_are_those_of_rows(model, attention, checkpointing):
    groups = branching_groups(300, [200, 60, 7])
    expected, known = values_and_gradient(model, ExecutionPlan(), groups)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    plan = ExecutionPlan(ATTENTIONS[attention].layout, "linear", attention=attention)
    found, gradient = values_and_gradient(model, plan, groups)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (gradient - known).norm() / known.norm() <= 1e-4


def test_in_bfloat16_flex_is_as_near_as_masks(model):
    groups = branching_groups(300, [200, 60, 7])
    _, exact = values_and_gradient(model, ExecutionPlan(), groups)
    off = {}
    for name in ("flex", "mask"):
        plan = ExecutionPlan(ATTENTIONS[name].layout, "linear", attention=name)
        _, gradient = values_and_gradient(model, plan, groups, torch.bfloat16)
        off[name] = float((gradient - exact).norm() / exact.norm())
    assert off["flex"] <= 2 * off["mask"] + 1e-3


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_takes_it_and_leaves_no_trace(model, bf16, checkpointing):
    state = torch.random.get_rng_state(), torch.cuda.get_rng_state()
    plan = choose_plan(model, "policy", 400, training=True, bf16=bf16, checkpointing=checkpointing)
    assert (plan.attention, plan.reason, model.config._attn_implementation) == ("flex", "", FLEX)
    assert model.training and all(value.grad is None for value in model.parameters())
    assert all(map(torch.equal, state, (torch.random.get_rng_state(), torch.cuda.get_rng_state())))


def test_training_takes_masks_where_it_has_no_backward_pass(model):
    model.model.layers[0].register_full_backward_hook(lambda *_: 1 / 0)
    plan = choose_plan(model, "policy", 100, training=True)
    assert (plan.layout, plan.attention) == ("tree", "mask")
    assert plan.reason.startswith("attention by flex does not work: ZeroDivisionError")


def test_without_training_masks_come_first(model):
    plan = choose_plan(model, "policy", 100)
    assert (plan.layout, plan.attention, plan.reason) == ("tree", "mask", "")
    model.set_attn_implementation(FLEX)  # a model that runs it keeps it
    assert choose_plan(model, "policy", 100).attention == "flex"
    assert choose_plan(model, "policy", 100, "rows").layout == "rows"
    assert model.config._attn_implementation == "sdpa"


def test_a_model_with_soft_caps_runs_over_trees():
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    config = Gemma2Config(vocab_size=300, num_hidden_layers=2, sliding_window=50, attn_logit_softcapping=2.0, **sizes)
    plan = choose_plan(AutoModelForCausalLM.from_config(config).cuda(), "policy", 200)
    assert plan.attention == "flex"  # eager attention adds a mask instead of applying it


def test_new_lengths_compile_nothing_new(model):
    torch.compiler.reset()
    counters.clear()
    model.set_attn_implementation(FLEX)
    plan = ExecutionPlan("packed", "linear", attention="flex")
    graphs = []
    for prompts in (3, 7, 15, 25, 40, 9):
        batch = BATCHES["packed"].build(branching_groups(300, range(20, 20 + prompts)), 0).to("cuda")
        completion_values(model, "policy", batch, plan).sum().backward()
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] >= 1
    assert len(set(graphs[1:])) == 1
    assert graphs[-1] <= 4
