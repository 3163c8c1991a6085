"""Replies that are written side by side are those that each would be by itself, and are drawn from the model's own distribution."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from mmpo.pipeline.errors import UserError
from mmpo.train.inference.slots import Draft, Slots, drawn_tokens
from mmpo.train.model import tiny_model


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    """In float64, where the order of sums changes no token."""
    return tiny_model("policy", tokenizer).eval().double()


def drafts(temperature: float, **more: Any) -> list[Draft]:
    """Of prompts of 1 to 30 tokens, some of them twice, and replies of 1 to 40."""
    drawn = random.Random(0)
    prompts = [tuple(drawn.randrange(5, 200) for _ in range(drawn.randrange(1, 31))) for _ in range(9)]
    made = [(prompt, drawn.randrange(1, 41)) for prompt in [*prompts, *prompts[:4]]]
    return [Draft(prompt, most, temperature, seed=seed, about=seed, **more) for seed, (prompt, most) in enumerate(made)]


def written(slots: Slots, todo: list[Draft]) -> dict[Any, Draft]:
    """All drafts once they have ended, by what they are about."""

    def ended() -> Iterator[Draft]:
        left = list(todo)
        while left or slots.drafts:
            if left and slots.free:
                now, left[:] = left[: slots.free], left[slots.free :]
                yield from slots.add(now)
            if slots.drafts:
                yield from slots.step()

    return {draft.about: draft for draft in ended()}


@pytest.mark.parametrize("slots", [1, 4, 16])
def test_the_likeliest_replies_are_those_of_generate(slots: int, model: Any, tokenizer: Any) -> None:
    found = written(Slots(model, tokenizer, slots), drafts(0.0))
    assert len(found) == 13
    for draft in found.values():
        settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": draft.most}
        whole = model.generate(torch.tensor([draft.prompt]), **settings)[0]
        assert draft.token_ids == whole[len(draft.prompt) :].tolist() and draft.finish == "length"


def test_a_drawn_reply_does_not_depend_on_those_beside_it(model: Any, tokenizer: Any) -> None:
    alone, beside = (written(Slots(model, tokenizer, slots), drafts(1.0, top_p=0.95)) for slots in (1, 5))
    assert {about: draft.token_ids for about, draft in alone.items()} == {about: draft.token_ids for about, draft in beside.items()}
    assert len({tuple(draft.token_ids) for draft in alone.values()}) == 13


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.8), (1.5, 0.5)])
def test_tokens_are_drawn_from_the_tempered_nucleus(temperature: float, top_p: float) -> None:
    """The shares of 4,000 draws lie within four standard errors of probabilities that are worked out token by token."""
    logits, count = torch.tensor([1.0, 0.2, -3.0, 2.0, 1.9, -0.5]), 4_000
    weights = (logits / temperature).exp()
    order = sorted(range(6), key=lambda token: -weights[token])
    nucleus, mass = [], 0.0
    for token in order:  # the likeliest tokens, until they have top_p together
        if mass < top_p * weights.sum() - 1e-6:
            nucleus.append(token)
            mass += float(weights[token])
    drawn = drawn_tokens(logits.expand(count, 6), [Draft((1,), 1, temperature, top_p, seed) for seed in range(count)])
    for token in range(6):
        expected = float(weights[token]) / mass if token in nucleus else 0.0
        error = (expected * (1 - expected) / count) ** 0.5
        assert abs(drawn.count(token) / count - expected) <= 4 * error


def test_a_reply_ends_at_its_token_or_text(model: Any, tokenizer: Any) -> None:
    [whole] = written(Slots(model, tokenizer, 2), [Draft((7, 8, 9), 30, 0.0)]).values()
    [ended] = written(Slots(model, tokenizer, 2), [Draft((7, 8, 9), 30, 0.0, ends=frozenset(whole.token_ids[4:5]))]).values()
    assert ended.finish == "stop" and ended.token_ids == whole.token_ids[: whole.token_ids.index(whole.token_ids[4]) + 1]
    text = tokenizer.decode(whole.token_ids)
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    [stopped] = written(Slots(model, tokenizer, 2), [Draft((7, 8, 9), 30, 0.0, stops=(stop,))]).values()
    said = tokenizer.decode(stopped.token_ids)
    assert stopped.finish == "stop" and stop in said and stop not in tokenizer.decode(stopped.token_ids[:-1])


def test_a_model_that_looks_at_the_last_tokens_only_is_refused(tokenizer: Any) -> None:
    """Rows of different lengths lie beside one another, so that a window counted from the longest would hide a short row's own tokens."""
    config = MistralConfig(vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                           num_key_value_heads=1, sliding_window=2)  # fmt: skip
    with pytest.raises(UserError, match=r"side by side.*--model"):
        Slots(MistralForCausalLM(config).eval(), tokenizer, 4)
