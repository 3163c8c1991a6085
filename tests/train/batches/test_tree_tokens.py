"""What tree batches save, as counts: every distinct prefix of a prompt is computed once, whatever the number of pairs."""

import numpy as np
import pytest
import torch
from torch import nn

from mmpo.train.batches import BATCHES, group_prompts, make_step
from mmpo.train.batches.layouts import trie_size

LAYOUTS = list(BATCHES)


def prefixes(prompt):
    return {tuple(item.ids[: length + 1]) for item in prompt.completions for length in range(len(item.ids))}


def test_a_packed_step_computes_each_distinct_prefix_once(prompts):
    step = make_step(prompts, 10**6, 0, BATCHES["packed"])
    distinct = [len(prefixes(prompt)) for prompt in prompts]
    assert [trie_size([item.ids for item in prompt.completions]) for prompt in prompts] == distinct
    assert step.tokens == sum(distinct) == sum(batch.computed_tokens for batch in step.batches)
    assert step.pairs == sum(len(prompt.rows) for prompt in prompts)


def test_padded_pairs_would_compute_many_times_as_much(prompts):
    """All pairs of 8 completions behind one prompt: 56 rows, against one prompt and 8 completions."""
    prompt = max(prompts, key=lambda prompt: len(prompt.completions))
    assert (len(prompt.completions), len(prompt.rows)) == (8, 28)
    lengths = np.array([len(item.ids) for item in prompt.completions])
    pairs = lengths[prompt.chosen].sum() + lengths[prompt.rejected].sum()
    own = sum(len(item.ids) - item.start for item in prompt.completions)
    packed, rows = (make_step([prompt], 10**6, 0, BATCHES[name]).tokens for name in ("packed", "rows"))
    assert packed <= prompt.completions[0].start + own
    assert rows == 8 * lengths.max()
    assert pairs / packed > 8


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tokens", [1, 30, 100, 200, 300, 1000, 3000, 10**6])
def test_every_completion_is_in_one_pass_and_passes_keep_to_the_limit(layout, tokens, prompts):
    step = make_step(prompts, tokens, 0, BATCHES[layout])
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    assert sorted(name for batch in step.batches for name in batch.ids) == sorted(by_id)
    for batch in step.batches:
        own = [item for name in batch.ids for item in by_id[name].completions]
        assert batch.counts.tolist() == [len(item.ids) - item.start for item in own]
        spelled = [token for part in batch.parts for token in part.tokens[part.spans].tolist()]
        assert spelled == [token for item in own for token in item.ids[item.start :]]
        for part in batch.parts:
            assert part.input_ids.numel() <= tokens or len(part.counts) == 1  # a single completion is never cut
        assert len(batch.parts) == 1 or len(batch.ids) == 1
    rows = sorted(row for batch in step.batches for row in batch.pairs.tolist())
    assert rows == sorted(row for prompt in prompts for row in prompt.rows)
    if tokens == 10**6:
        assert [len(batch.parts) for batch in step.batches] == [1]


def test_a_split_prompt_pays_its_prompt_once_a_pass(prompts):
    prompt = max(prompts, key=lambda prompt: len(prompt.completions))
    whole = make_step([prompt], 10**6, 0, BATCHES["packed"]).tokens
    (batch,) = make_step([prompt], whole - 1, 0, BATCHES["packed"]).batches
    assert len(batch.parts) == 2
    assert whole < batch.computed_tokens <= whole + prompt.completions[0].start + 8


@pytest.mark.parametrize("layout", LAYOUTS)
def test_longest_first_and_always_the_same_whatever_the_order_given(layout, prompts):
    def order(given):
        groups = group_prompts(given, 300, BATCHES[layout])
        return [[(prompt.prompt_id, len(part)) for one in passes for prompt, part in one] for passes in groups]

    expected = order(prompts)
    assert len(expected) > 2
    for seed in range(5):
        shuffled = [prompts[i] for i in np.random.default_rng(seed).permutation(len(prompts))]
        assert order(shuffled) == expected
    sizes = {prompt.prompt_id: BATCHES[layout].size(prompt.completions)[1] for prompt in prompts}
    visited = [sizes[name] for group in expected for name in dict.fromkeys(name for name, _ in group)]
    assert visited == sorted(visited, reverse=True)
    one, two = (make_step(given, 300, 0, BATCHES[layout]) for given in (prompts, prompts[::-1]))
    for a, b in zip(one.batches, two.batches, strict=True):
        assert all(torch.equal(x.input_ids, y.input_ids) for x, y in zip(a.parts, b.parts, strict=True))
        assert torch.equal(a.pairs, b.pairs)


@pytest.mark.parametrize("layout", ["packed", "rows"])
def test_the_model_sees_as_many_tokens_as_the_step_says(layout, trainer_of):
    """Counted at the embedding, which every token passes; a prompt in parts passes it twice, once without gradients."""
    seen = []
    trainer = trainer_of(layout="rows" if layout == "rows" else "auto")
    assert trainer.execution_plan.layout == layout
    trainer.own_reference = False  # the first step's check is a pass of its own
    embedding: nn.Module = trainer.model.get_input_embeddings()
    embedding.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].numel()))
    for tokens in (10**6, 600, 60):
        trainer.tokens_per_batch = tokens
        step = trainer.make_step(trainer.prompts)
        seen.clear()
        trainer.training_step(trainer.model, step)
        again = sum(batch.computed_tokens for batch in step.batches if len(batch.parts) > 1)
        assert sum(seen) == step.tokens + again
        assert (again > 0) == (tokens == 60)
        assert max(seen) <= max(tokens, max(prompt.length for prompt in trainer.prompts))
