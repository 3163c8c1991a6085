"""Log-probabilities from hidden states: exact against float64, in chunks, and never with the logits of a whole batch."""

import pytest
import torch
from torch import nn
from training_cases import Operations, small_model

from mmpo.train.batches import BATCHES
from mmpo.train.model import ExecutionPlan, completion_values, probe_group
from mmpo.train.model.logprobs import HEADS, linear_logprobs, model_logprobs

VOCABULARY, SIZE, COUNT = 61, 16, 23
SIZES = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 16, "hidden_size": SIZE}
SIZES |= {"vocab_size": VOCABULARY, "initializer_range": 0.5}


class Bare(nn.Module):
    """A model as far as the linear head looks at it."""

    def __init__(self, bias=True, dtype=torch.float32):
        super().__init__()
        self.lm_head = nn.Linear(SIZE, VOCABULARY, bias=bias, dtype=dtype)

    def get_output_embeddings(self):
        return self.lm_head


def drawn(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden = (2 * torch.randn(COUNT, SIZE, generator=generator)).to(dtype).requires_grad_()
    tokens = torch.randint(0, VOCABULARY, (COUNT,), generator=generator)
    return hidden, tokens, torch.randn(COUNT, generator=generator)


def exact(hidden, weight, bias, tokens, pull, logits=lambda x: x):
    """Values in float64, and gradients of Σ pull · value, by name."""
    parts = {"hidden": hidden, "weight": weight, "bias": bias}
    parts = {name: value.detach().double().requires_grad_() for name, value in parts.items() if value is not None}
    scores = logits(nn.functional.linear(parts["hidden"], parts["weight"], parts.get("bias")))
    values = scores.log_softmax(dim=1).gather(1, tokens[:, None])[:, 0]
    (values * pull).sum().backward()
    return values.detach(), {name: value.grad for name, value in parts.items()}


def close(found, expected, tolerance):
    return float((found.double() - expected).norm() / expected.norm()) <= tolerance


@pytest.fixture(params=[1, 5, COUNT - 1, COUNT, 10 * COUNT], ids=lambda count: f"chunks of {count}")
def chunk(request):
    """Bytes of logits for so many tokens in a chunk: one, a part left over, a single one left over, exactly all, more than all."""
    return request.param * 4 * VOCABULARY


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [(), ("hidden",), ("weight",), ("bias",), ("weight", "bias")], ids=str)
def test_the_linear_head_is_exact_with_all_gradients_that_are_asked_for(frozen, bias, chunk):
    model, (hidden, tokens, pull) = Bare(bias), drawn()
    layer = model.lm_head
    values, gradients = exact(hidden, layer.weight, layer.bias, tokens, pull)
    parts = {"hidden": hidden, "weight": layer.weight, "bias": layer.bias}
    parts = {name: part.requires_grad_(name not in frozen) for name, part in parts.items() if part is not None}
    found = linear_logprobs(model, hidden, tokens, chunk)
    (found * pull).sum().backward()
    assert found.dtype == torch.float32
    assert close(found.detach(), values, 1e-6)
    for name, value in parts.items():
        assert value.grad is None if name in frozen else close(value.grad, gradients[name], 1e-6), name


CAPPED = {
    "Llama": ({"tie_word_embeddings": True}, lambda x: x),
    "Cohere": ({"logit_scale": 0.25}, lambda x: 0.25 * x),
    "Gemma2": ({"final_logit_softcapping": 3.0}, lambda x: 3 * (x / 3).tanh()),
}


@pytest.mark.parametrize("name", CAPPED)
def test_the_models_own_head_is_exact_with_all_gradients_and_what_it_does_to_logits(name, chunk):
    options, logits = CAPPED[name]
    model = small_model(name, **SIZES, **options)
    hidden, tokens, pull = drawn()
    weight = model.get_output_embeddings().weight
    values, gradients = exact(hidden, weight, None, tokens, pull, logits)
    body = model.model
    found = model_logprobs(model, hidden, tokens, chunk)
    (found * pull).sum().backward()
    assert model.model is body  # also after the backward pass, which computes each chunk again
    assert close(found.detach(), values, 1e-6)
    assert close(hidden.grad, gradients["hidden"], 1e-6)
    assert close(weight.grad, gradients["weight"], 1e-6)
    if name != "Llama":  # a plain linear layer would be wrong, visibly
        assert not close(linear_logprobs(model, hidden, tokens, chunk).detach(), values, 0.05)


@pytest.mark.parametrize("name", HEADS)
def test_in_bfloat16_only_the_logits_are_rounded(name, chunk):
    """Softmax and sums are float32: 1 in 256 of a logit of about 10, not of a log-probability in bfloat16 throughout."""
    model, (hidden, tokens, pull) = small_model("Llama", **SIZES), drawn()
    weight = model.lm_head.weight
    rounded = hidden.detach().bfloat16(), weight.detach().bfloat16()
    logits = nn.functional.linear(*rounded).double()
    values = logits.log_softmax(dim=1).gather(1, tokens[:, None])[:, 0]
    _, gradients = exact(hidden, weight, None, tokens, pull)
    with torch.autocast("cpu", torch.bfloat16):
        found = HEADS[name](model, hidden, tokens, chunk)
    assert found.dtype == torch.float32
    assert (found.double() - values).abs().max() <= 1e-4
    (found * pull).sum().backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.float32
    assert close(hidden.grad, gradients["hidden"], 0.02)
    assert close(weight.grad, gradients["weight"], 0.02)


def test_weights_in_bfloat16_get_gradients_in_bfloat16():
    model, (hidden, tokens, pull) = Bare(dtype=torch.bfloat16), drawn(torch.bfloat16)
    values, gradients = exact(hidden, model.lm_head.weight, model.lm_head.bias, tokens, pull)
    found = linear_logprobs(model, hidden, tokens)
    (found * pull).sum().backward()
    assert (found.dtype, model.lm_head.weight.grad.dtype) == (torch.float32, torch.bfloat16)
    assert close(found.detach(), values, 0.02)
    assert close(model.lm_head.weight.grad, gradients["weight"], 0.02)
    assert close(model.lm_head.bias.grad, gradients["bias"], 0.02)


@pytest.mark.parametrize("layout", ["rows", "tree"])
@pytest.mark.parametrize("name", [*HEADS, "whole"])
def test_logits_of_a_whole_batch_never_exist(name, layout):
    """Neither forward nor backward; only the head "whole" makes them, so that the measurement is known to see them."""
    vocabulary, length = 4001, 96
    model = small_model("Llama", **{**SIZES, "vocab_size": vocabulary})
    batch = BATCHES[layout].build([probe_group(vocabulary, length)], 0)
    assert len(batch.tokens) >= 90
    with Operations() as run:
        completion_values(model, "policy", batch, ExecutionPlan(layout, name, logit_bytes=10 * 4 * vocabulary)).sum().backward()
    if name == "whole":
        assert run.largest >= batch.input_ids.numel() * vocabulary
    else:  # the weights and their gradients, or a chunk
        assert run.largest <= max(vocabulary * SIZE, 10 * vocabulary, batch.input_ids.shape[1] ** 2 * 2)
