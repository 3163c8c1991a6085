"""FlexAttention on a GPU: its gradients, how a run chooses between it and masks, and that it is compiled a few times only."""

import math

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM, Gemma2Config

from mmpo.train.batches.layouts import BATCHES
from mmpo.train.data.render import Rendered
from mmpo.train.model.flex import FLEX
from mmpo.train.model.forward import ATTENTIONS, Way, completion_values
from mmpo.train.model.probe import choose_way
from mmpo.train.model.timing import typical_groups
from mmpo.train.model.tiny import tiny_model

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]


@pytest.fixture
def model(tokenizer):
    made = tiny_model("policy", tokenizer, size=128)
    for value in made.parameters():
        value.data *= 5  # a token that is seen by mistake then shows in the first digits
    return made.cuda()


def groups_of(*lengths):
    groups = []
    for number, length in enumerate(lengths):
        generator = torch.Generator().manual_seed(number)
        prompt = tuple(torch.randint(0, 300, (length,), generator=generator).tolist())
        start = tuple(torch.randint(0, 300, (length // 2,), generator=generator).tolist())
        replies = [(number, *start), (*start, 1, 2), (*start, 3), (5, 6)]
        groups.append([Rendered((*prompt, *reply), length) for reply in replies])
    return groups


def values_and_gradient(model, way, groups, lower=None):
    model.set_attn_implementation((ATTENTIONS[way.attention].implementation if way.attention else "") or "sdpa")
    model.zero_grad()
    batch = way.batches.build(groups, 0).to("cuda")
    with torch.autocast("cuda", lower, enabled=lower is not None):
        values = completion_values(model, "policy", batch, way)
    (values * torch.linspace(-1, 1, len(values), device="cuda")).sum().backward()
    return values.detach(), torch.cat([value.grad.flatten() for value in model.parameters()])


@pytest.mark.parametrize("attention", ["flex", "mask"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_values_and_gradients_are_those_of_rows(model, attention, checkpointing):
    groups = groups_of(200, 60, 7)
    expected, known = values_and_gradient(model, Way(), groups)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    way = Way(ATTENTIONS[attention].layout, "linear", attention=attention)
    found, gradient = values_and_gradient(model, way, groups)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (gradient - known).norm() / known.norm() <= 1e-4


def test_in_bfloat16_flex_is_as_near_as_masks(model):
    groups = groups_of(200, 60, 7)
    _, exact = values_and_gradient(model, Way(), groups)
    off = {}
    for name in ("flex", "mask"):
        way = Way(ATTENTIONS[name].layout, "linear", attention=name)
        _, gradient = values_and_gradient(model, way, groups, torch.bfloat16)
        off[name] = float((gradient - exact).norm() / exact.norm())
    assert off["flex"] <= 2 * off["mask"] + 1e-3


@pytest.mark.parametrize("bf16", [False, True])
def test_a_run_takes_the_faster_one_and_says_how_fast_both_were(model, bf16):
    for _ in range(2):
        way = choose_way(model, "policy", 400, tokens=4096, bf16=bf16)
        assert way.attention in ("flex", "mask")
        if not way.reason:  # the second time, where the first took flex
            assert way.attention == "flex"
            continue
        took = dict(part.split(" ", 1) for part in way.reason.split(": ")[1].split(", "))
        seconds = {name: float(time.removesuffix(" ms")) if "fails" not in time else math.inf for name, time in took.items()}
        assert seconds.keys() == {"flex", "mask"}
        assert way.attention == min(seconds, key=lambda name: seconds[name])
        assert model.config._attn_implementation == (FLEX if way.attention == "flex" else "sdpa")


def test_nothing_is_timed_unless_asked_for(model):
    way = choose_way(model, "policy", 100)
    assert (way.layout, way.attention, way.reason) == ("tree", "mask", "")
    model.set_attn_implementation(FLEX)  # a model that runs it keeps it
    assert choose_way(model, "policy", 100).attention == "flex"
    assert choose_way(model, "policy", 100, "rows").layout == "rows"
    assert model.config._attn_implementation == "sdpa"


def test_a_model_with_soft_caps_runs_over_trees():
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    config = Gemma2Config(vocab_size=300, num_hidden_layers=2, sliding_window=50, attn_logit_softcapping=2.0, **sizes)
    way = choose_way(AutoModelForCausalLM.from_config(config).cuda(), "policy", 200)
    assert way.attention == "flex"  # eager attention adds a mask instead of applying it


def test_new_lengths_compile_nothing_new(model):
    torch.compiler.reset()
    counters.clear()
    model.set_attn_implementation(FLEX)
    way = Way("packed", "linear", attention="flex")
    graphs = []
    for tokens in (300, 700, 1500, 2500, 4000, 900):
        batch = BATCHES["packed"].build(typical_groups(300, 120, tokens), 0).to("cuda")
        completion_values(model, "policy", batch, way).sum().backward()
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] >= 1
    assert len(set(graphs[1:])) == 1
    assert graphs[-1] <= 4
