"""Attention by segments against softmax written out in float64, with its gradients; and what it refuses."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from training_cases import prefixes
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from mmpo.train.batches import BATCHES
from mmpo.train.data import Rendered
from mmpo.train.model.attention import attention_types, segment_attention, tree_masks

HEADS, GROUPS, SIZE, VALUE_SIZE = 4, 2, 8, 6
# Two tries: branches of branches, a text that is another's beginning, twins, and a single one longer than the window.
TEXTS = [
    [(1, 2, 3, 4, 5, 6), (1, 2, 3, 4, 7, 8, 9, 1), (1, 2, 3, 4, 7, 8, 2), (1, 2, 3), (1, 9, 9, 9), (1, 9, 9, 9)],
    [tuple(range(1, 12))],
]


@pytest.fixture(scope="module")
def batch():
    return BATCHES["packed"].build([[Rendered(text, 1) for text in group] for group in TEXTS], 0)


def drawn(batch):
    generator = torch.Generator().manual_seed(0)
    shapes = [(HEADS, SIZE), (HEADS // GROUPS, SIZE), (HEADS // GROUPS, VALUE_SIZE)]
    length = batch.input_ids.shape[1]
    return [torch.randn(1, heads, length, size, generator=generator).requires_grad_() for heads, size in shapes]


def seen_by_definition(window):
    """Of every column of the packed row, the columns that lie on its path, by spelling all prefixes in depth-first order."""
    columns = [(number, prefix) for number, group in enumerate(TEXTS) for prefix in sorted(prefixes(group))]
    sees = torch.zeros(len(columns), len(columns), dtype=torch.bool)
    for i, (mine, text) in enumerate(columns):
        for j, (theirs, start) in enumerate(columns):
            ancestor = mine == theirs and text[: len(start)] == start
            sees[i, j] = ancestor and (window is None or len(text) - len(start) < window)
    return sees


def exact(query, key, value, sees, scaling):
    key, value = (item.repeat_interleave(GROUPS, dim=1) for item in (key, value))
    scores = (query @ key.transpose(2, 3) * scaling).masked_fill(~sees, -math.inf)
    return (scores.softmax(dim=-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("window", [None, 1, 2, 3, 5, 40])
@pytest.mark.parametrize("scaling", [None, 0.7])
def test_each_token_attends_to_its_own_path(window, scaling, batch):
    query, key, value = drawn(batch)
    found, _ = segment_attention(
        nn.Module(), query, key, value, None, scaling=scaling, segments=batch.segments, sliding_window=window
    )
    doubles = [item.detach().double().requires_grad_() for item in (query, key, value)]
    expected = exact(*doubles, seen_by_definition(window), scaling or SIZE**-0.5)
    assert found.shape == (1, batch.input_ids.shape[1], HEADS, VALUE_SIZE)
    assert (found.double() - expected).abs().max() <= 1e-5
    pull = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    (found * pull).sum().backward()
    (expected * pull).sum().backward()
    for mine, theirs in zip((query, key, value), doubles, strict=True):
        assert (mine.grad.double() - theirs.grad).abs().max() <= 1e-5


@pytest.mark.parametrize("window", [None, 1, 3, 5])
def test_masks_say_the_same(window, batch):
    config = SimpleNamespace(sliding_window=window)
    config.get_text_config = lambda: config
    assert attention_types(config) == (("full_attention",) if window is None else ("sliding_attention",))
    assert torch.equal(tree_masks(batch, config)[0, 0], seen_by_definition(window))


def test_layers_of_several_types_get_a_mask_each(batch):
    config = SimpleNamespace(layer_types=["sliding_attention", "full_attention", "sliding_attention"], sliding_window=3)
    config.get_text_config = lambda: config
    masks = tree_masks(batch, config)
    assert list(masks) == ["sliding_attention", "full_attention"]
    assert torch.equal(masks["full_attention"][0, 0], seen_by_definition(None))
    assert torch.equal(masks["sliding_attention"][0, 0], seen_by_definition(3))
    config.layer_types, config.attention_chunk_size = ["chunked_attention"], 4
    positions = batch.positions[0]
    chunk = positions[:, None] // 4 == positions // 4
    assert torch.equal(tree_masks(batch, config)[0, 0], seen_by_definition(None) & chunk)


@pytest.mark.parametrize("option", ["softcap", "position_bias", "s_aux"])
def test_what_it_does_not_know_it_refuses(option, batch):
    with pytest.raises(ValueError, match=option):
        segment_attention(nn.Module(), *drawn(batch), None, segments=batch.segments, **{option: 1.0})


def test_without_segments_it_is_the_usual_attention(batch):
    module = nn.Module()
    module.num_key_value_groups = GROUPS
    query, key, value = drawn(batch)
    for options in ({}, {"is_causal": False}, {"sliding_window": 3}):
        found, _ = segment_attention(module, query, key, value, None, **options)
        assert torch.equal(found, sdpa_attention_forward(module, query, key, value, None, **options)[0])
