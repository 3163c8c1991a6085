"""Passes in bfloat16 on a CPU: attention, linear layers and log-probabilities against float32, casts, and what a run saves."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from mmpo.train.batches import BATCHES
from mmpo.train.model import add_lora, bfloat16_on_cpu, choose_plan, completion_values, probe_group
from mmpo.train.model.attention import tree_masks
from mmpo.train.model.bfloat16 import _CASTS, QUERIES, Casts, stretch_attention
from mmpo.train.model.logprobs import linear_logprobs

SIZES = {"vocab_size": 101, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4}
KINDS = {"policy": LlamaForCausalLM, "reward": LlamaForSequenceClassification}
ROUNDING = 2**-8
"""Half of the last of bfloat16's 8 bits, twice."""


def model_of(kind, **other):
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, num_key_value_heads=2, max_position_embeddings=1024, pad_token_id=0, **other)
    config.num_labels = 1
    model = KINDS[kind](config)
    for value in model.parameters():
        if value.dim() == 2:
            torch.nn.init.normal_(value, std=0.15)
    return model


def run(model, kind, layout, bf16, optimised=True):
    """Values and the gradient, flat."""
    plan = choose_plan(model, kind, 300, layout)
    batch = plan.batches.build([probe_group(101, 300), probe_group(101, 40, 1)], 0)
    model.zero_grad()
    with bfloat16_on_cpu(model, bf16 and optimised):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            values = completion_values(model, kind, batch, plan)
        (values * torch.linspace(-1, 1, len(values))).sum().backward()
    gradients = [value.grad for value in model.parameters() if value.grad is not None]
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    return values.detach(), torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.parametrize("layout", ["tree", "rows"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_values_and_gradients_are_as_near_to_float32_as_under_autocast_alone(kind, layout):
    model = model_of(kind)
    exact, exact_gradient = run(model, kind, layout, bf16=False)
    off = {}
    for optimised in (False, True):
        values, gradient = run(model, kind, layout, bf16=True, optimised=optimised)
        off[optimised] = ((values - exact).norm() / exact.norm(), (gradient - exact_gradient).norm() / exact_gradient.norm())
    assert off[True][0] < max(1.5 * off[False][0], ROUNDING)
    assert 0 < off[True][1] < 1.5 * off[False][1] < 0.1
    after, after_gradient = run(model, kind, layout, bf16=False)
    assert torch.equal(after, exact)
    assert torch.equal(after_gradient, exact_gradient)


@pytest.mark.parametrize("window", [None, 1, 30, QUERIES + 7])
@pytest.mark.parametrize("groups", [1, 2])
def test_attention_of_stretches_is_that_of_the_masks(window, groups):
    """Stretches longer than a block, shorter ones, and of one token."""
    rows = [*probe_group(50, 3 * QUERIES), *probe_group(50, 12, 1)]
    batch = BATCHES["packed"].build([rows[:3], rows[3:]], 0)
    config = LlamaConfig(**SIZES)
    if window is not None:
        config.layer_types, config.sliding_window = ["sliding_attention"], window
    tokens = batch.ends.shape[1]
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(1, heads, tokens, 8, generator=generator, requires_grad=True) for heads in (2 * groups, 2, 2)]
    found = stretch_attention(*drawn, batch.segments, 0.4, window)
    query, key, value = drawn
    mask = tree_masks(batch, config)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=0.4, enable_gqa=True).transpose(1, 2)
    pull = torch.randn(expected.shape, generator=generator)
    assert found.dtype == torch.bfloat16
    assert (found - expected).norm() < 2 * ROUNDING * expected.norm()
    wanted = torch.autograd.grad(expected, drawn, pull)
    for got, want in zip(torch.autograd.grad(found, drawn, pull.bfloat16()), wanted, strict=True):
        assert (got - want).norm() < 3 * ROUNDING * want.norm() + 1e-4  # a key alone has no gradient


def test_values_do_not_depend_on_what_else_a_batch_holds():
    """Nor may a policy's differ from its reference's, which lie in other batches: to the bit."""
    model = model_of("policy")
    plan = choose_plan(model, "policy", 300, "tree")
    groups = [probe_group(101, 300), probe_group(101, 40, 1)]

    def values(*some):
        with torch.no_grad(), bfloat16_on_cpu(model), torch.autocast("cpu", torch.bfloat16):
            return completion_values(model, "policy", plan.batches.build([groups[one] for one in some], 0), plan)

    together = values(0, 1)
    assert torch.equal(values(1, 0), together[[3, 4, 5, 0, 1, 2]])
    assert torch.equal(values(0), together[:3])
    assert torch.equal(values(1), together[3:])


@pytest.mark.parametrize("chunk_rows", [1, 7, 1000])
@pytest.mark.parametrize("bias", [False, True])
def test_log_probabilities_have_the_gradients_of_float32_on_rounded_numbers(chunk_rows, bias):
    """Hidden states and weights that bfloat16 holds exactly: what is left is the rounding of logits and of probabilities."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(16, 61, bias=bias)
    with torch.no_grad():
        for value in layer.parameters():
            value.copy_(value.bfloat16())
    hidden = torch.randn(20, 16).bfloat16().float().requires_grad_()
    tokens, pull = torch.randint(0, 61, (20,)), torch.randn(20)

    class Bare(torch.nn.Module):
        head = layer

        def get_output_embeddings(self):
            return self.head

    wanted = layer(hidden).log_softmax(dim=1).gather(1, tokens[:, None])[:, 0]
    inputs = [hidden, *layer.parameters()]
    expected = torch.autograd.grad(wanted, inputs, pull)
    token = _CASTS.set(Casts())
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_logprobs(Bare(), hidden, tokens, chunk_rows * 4 * 61)
    _CASTS.reset(token)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=0, atol=2 * ROUNDING * 3)
    for got, want in zip(torch.autograd.grad(found, inputs, pull), expected, strict=True):
        assert got.dtype == torch.float32
        assert (got - want).norm() < 4 * ROUNDING * want.norm()


def test_weights_are_cast_once_and_anew_after_a_step(monkeypatch):
    model = model_of("reward")
    plan = choose_plan(model, "reward", 40, "tree")
    batch = plan.batches.build([probe_group(101, 40)], 0)
    cast = []
    original = Casts.weight

    def counted(self, weight):
        cast.append(id(weight) not in self._weights)
        return original(self, weight)

    monkeypatch.setattr(Casts, "weight", counted)

    def value():
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            return completion_values(model, "reward", batch, plan)

    linear = 2 * 7  # of each layer: query, key, value, output, and the MLP's three
    with bfloat16_on_cpu(model):
        first = value()
        assert torch.equal(first, value())
    assert (sum(cast), len(cast)) == (linear, 2 * linear)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.data.mul_(2)  # which leaves no trace in a tensor's version
    with bfloat16_on_cpu(model):
        assert not torch.equal(first, value())
    assert not any("forward" in vars(module) for module in model.modules())


def test_outside_of_autocast_nothing_changes():
    model = model_of("policy")
    plan = choose_plan(model, "policy", 40, "tree")
    batch = plan.batches.build([probe_group(101, 40)], 0)
    expected = completion_values(model, "policy", batch, plan)
    with bfloat16_on_cpu(model):
        assert torch.equal(completion_values(model, "policy", batch, plan), expected)


def test_an_activation_that_changed_in_place_is_cast_anew():
    casts, states = Casts(), torch.ones(1, 2, 3)
    first = casts.activation(states)
    assert casts.activation(states) is first
    states.add_(1)
    assert torch.equal(casts.activation(states), torch.full((2, 3), 2.0, dtype=torch.bfloat16))


@pytest.mark.parametrize("lora", [None, 4])
@pytest.mark.parametrize("kind", list(KINDS))
def test_recomputed_activations_give_the_same_gradients(kind, lora):
    """Gradient checkpointing calls layers again in the backward pass."""
    found = []
    for recomputed in (False, True):
        model = model_of(kind) if lora is None else add_lora(model_of(kind), lora, kind)
        plan = choose_plan(model, kind, 60, "tree")
        batch = plan.batches.build([probe_group(101, 60)], 0)
        if recomputed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            if lora is not None:
                model.enable_input_require_grads()
        model.train()
        with bfloat16_on_cpu(model):
            with torch.autocast("cpu", torch.bfloat16):
                values = completion_values(model, kind, batch, plan)
            (values * torch.linspace(-1, 1, len(values))).sum().backward()
        found.append([value.grad for value in model.parameters() if value.grad is not None])
    assert found[0]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_run_keeps_float32_and_goes_on_to_the_same_bits(
    kind, dataset, train_tiny, unfinished, same_weights, tmp_path, capsys, monkeypatch
):
    """Weights and optimizer state; losses as in float32, to 1e-2; said where the CPU has no instructions for it."""
    monkeypatch.setattr("mmpo.train.training.run.multiplies_bfloat16", lambda: False)
    how = {"max_steps": 8, "save_steps": 4, "logging_steps": 1, "learning_rate": 1e-3}
    train_tiny(kind, dataset, tmp_path / "exact", **how)
    capsys.readouterr()
    train_tiny(kind, dataset, tmp_path / "whole", bf16=True, **how)
    assert "no instructions for bfloat16" in capsys.readouterr().err
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoint-8")
    unfinished(tmp_path / "again")
    train_tiny(kind, dataset, tmp_path / "again", bf16=True, **how)
    assert same_weights(kind, tmp_path / "whole", tmp_path / "again")
    last = tmp_path / "whole" / "checkpoint-8"
    state = torch.load(last / "optimizer.pt", weights_only=True)["state"]
    kept = [value for entry in state.values() for value in entry.values()]
    assert {value.dtype for value in [*kept, *load_file(last / "model.safetensors").values()]} == {torch.float32}
    states = [json.loads((tmp_path / name / "checkpoint-8" / "trainer_state.json").read_text()) for name in ("exact", "whole")]
    losses = [[entry["loss"] for entry in state["log_history"] if "loss" in entry] for state in states]
    assert len(losses[0]) == 8
    assert losses[1] == pytest.approx(losses[0], abs=1e-2)
