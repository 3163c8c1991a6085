"""Recomputed activations and bfloat16: what is exact stays exact, what several processes can't all run is left out."""

import pytest
import torch
from transformers.models.llama import modeling_llama

from mmpo.train.batches import BATCHES
from mmpo.train.model import (
    ExecutionPlan,
    body_of,
    choose_plan,
    completion_values,
    inputs_of,
    probe_group,
    recomputing_exactly,
    tiny_model,
)


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
