"""FlexAttention over packed tries: which blocks it looks at, what it computes, and how often it is compiled.

A CPU has its compiled forward pass only. Gradients are proven there through torch's reference formula of the same
operator, and in test_flex_gpu.py through the kernel itself.
"""

import math
import shutil

import pytest
import torch
import transformers
from torch._dynamo.utils import counters
from torch.nn.attention import flex_attention
from torch.nn.attention.flex_attention import create_block_mask, create_mask
from training_cases import Operations, branching_groups, small_model

from mmpo.train.batches import BATCHES
from mmpo.train.model import ExecutionPlan, choose_plan, completion_values, inputs_of
from mmpo.train.model.attention import ATTENTION_TYPES, ATTENTIONS, BLOCK, FLEX, flex_inputs, tree_masks

WINDOW, VOCABULARY = 40, 90
LAYERS = {
    "Llama": {},
    "Gemma3Text": {
        "num_hidden_layers": 3, "query_pre_attn_scalar": 16, "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
}  # fmt: skip
FLEXED, LINEAR = (ExecutionPlan("packed", head, attention="flex") for head in ("whole", "linear"))


def model_of(name):
    return small_model(name, vocab_size=VOCABULARY, head_dim=16, **LAYERS[name])


def rows_of(groups):
    return BATCHES["rows"].build(groups, 0)


def packed(groups):
    return BATCHES["packed"].build(groups, 0)


def config_of(kind):
    size = {ATTENTION_TYPES[kind].size: WINDOW} if ATTENTION_TYPES[kind].size else {}
    name = "Llama4Text" if kind == "chunked_attention" else "Gemma3Text"
    return getattr(transformers, f"{name}Config")(num_hidden_layers=1, layer_types=[kind], **size)


def blocks_of(seen):
    """(blocks, blocks): how many of each block's pairs of tokens are seen, from a mask (length, length)."""
    blocks = len(seen) // BLOCK
    return seen.view(blocks, BLOCK, blocks, BLOCK).sum(dim=(1, 3))


def listed(number, indices):
    """The lists of blocks as a table (blocks, blocks) of booleans."""
    found = torch.zeros(indices.shape[-2:], dtype=torch.bool)
    for row in range(len(found)):
        found[row, indices[0, 0, row, : number[0, 0, row]].long()] = True
    return found


@pytest.mark.parametrize("kind", ATTENTION_TYPES)
@pytest.mark.parametrize("lengths", [[7], [300], [40, 90, 11, 200, 130], [3] * 60])
def test_blocks_hold_what_the_mask_shows_and_nothing_seen_is_left_out(kind, lengths):
    config = config_of(kind)
    batch = packed(branching_groups(VOCABULARY, lengths))
    length = batch.ends.shape[1]
    inputs = flex_inputs(config, batch)
    mask = inputs["attention_mask"]
    total = mask.shape[-1]
    assert total == max(2, math.ceil(length / BLOCK)) * BLOCK  # rows are padded, tokens keep their places
    assert inputs["input_ids"].shape == inputs["position_ids"].shape == (1, total)
    assert torch.equal(inputs["input_ids"][:, :length], batch.input_ids)
    assert torch.equal(inputs["position_ids"][:, :length], batch.positions)
    seen = create_mask(mask.mask_mod, 1, 1, total, total, device="cpu")[0, 0]
    assert torch.equal(seen[:length, :length], tree_masks(batch, config)[0, 0])
    assert torch.equal(seen[length:], torch.eye(total, dtype=torch.bool)[length:])  # padding sees itself alone

    counts = blocks_of(seen)
    full, partial = listed(mask.full_kv_num_blocks, mask.full_kv_indices), listed(mask.kv_num_blocks, mask.kv_indices)
    assert not (full & partial).any()
    assert (counts[full] == BLOCK * BLOCK).all()
    assert (counts[~full & ~partial] == 0).all()
    if kind == "full_attention":  # then the lists are torch's own, which come from the whole mask
        known = create_block_mask(mask.mask_mod, 1, 1, total, total, device="cpu")
        assert torch.equal(full, listed(known.full_kv_num_blocks, known.full_kv_indices))
        assert torch.equal(partial, listed(known.kv_num_blocks, known.kv_indices))
    # The lists for the backward pass are the same ones by columns.
    assert torch.equal(full.T, listed(mask.full_q_num_blocks, mask.full_q_indices))
    assert torch.equal(partial.T, listed(mask.q_num_blocks, mask.q_indices))


def test_a_window_leaves_blocks_out():
    batch = packed(branching_groups(VOCABULARY, [700]))
    whole, windowed = (flex_inputs(config_of(kind), batch)["attention_mask"] for kind in ("full_attention", "sliding_attention"))

    def looked_at(mask):
        return int(mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum())

    # 16 blocks. A window of 40 reaches into the block before, or from a branch's beginning back into the stem: with the
    # block itself that makes 2 to 4 for each; without a window it is 1 to 16.
    assert looked_at(windowed) <= 4 * 16
    assert looked_at(whole) > 6 * 16


def test_attentions_and_ways_fit_together():
    assert {attention.layout for attention in ATTENTIONS.values()} <= BATCHES.keys()
    assert [ExecutionPlan(layout).attention for layout in ("packed", "tree", "rows")] == ["segments", "mask", ""]
    groups = branching_groups(VOCABULARY, [4, 5])
    with pytest.raises(ValueError, match="attention by flex needs flex_attention, not sdpa"):
        inputs_of(model_of("Llama"), packed(groups), FLEXED)
    with pytest.raises(ValueError, match="one packed row, not 2 rows"):
        flex_inputs(config_of("full_attention"), BATCHES["tree"].build(groups, 0))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for a CPU with g++")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", LAYERS)
def test_the_compiled_forward_pass_is_exact_and_compiled_for_any_length_at_once(name):
    model = model_of(name).eval()
    torch.compiler.reset()
    counters.clear()
    graphs, errors = [], []
    for lengths in ([50], [60, 90], [130, 20, 70], [3], [200], [33] * 9):
        groups = branching_groups(VOCABULARY, lengths)
        with torch.no_grad():
            model.set_attn_implementation("sdpa")
            expected = completion_values(model, "policy", rows_of(groups), ExecutionPlan(head="linear"))
            model.set_attn_implementation(FLEX)
            model.train(len(lengths) == 3)  # transformers compiles anew for training: must cost nothing
            found = completion_values(model, "policy", packed(groups), LINEAR)
        errors.append(float((found - expected).abs().max()))
        graphs.append(counters["stats"]["unique_graphs"])
    assert max(errors) <= 1e-4
    types = 1 + (name == "Gemma3Text")
    assert graphs == [types] + [2 * types] * 5  # the first length as it is, the second for all others
    if name == "Gemma3Text":
        model.config.sliding_window = 10**6  # read by the mask alone
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            wrong = completion_values(model, "policy", packed(groups), LINEAR)
        assert (wrong - expected).abs().max() > 1e-2


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_through_the_operators_formula_are_those_of_rows(name, monkeypatch):
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)  # it refuses gradients on CPU, the formula has them
    groups = branching_groups(VOCABULARY, [50, 9])
    gradients = []
    for attention, batch, plan in (("sdpa", rows_of(groups), ExecutionPlan()), (FLEX, packed(groups), FLEXED)):
        model = model_of(name)
        model.set_attn_implementation(attention)
        with torch.compiler.set_stance("force_eager"):
            values = completion_values(model, "policy", batch, plan)
        (values * torch.linspace(-1, 1, len(values))).sum().backward()
        gradients.append(torch.cat([value.grad.flatten() for value in model.parameters()]))
    assert (gradients[1] - gradients[0]).norm() / gradients[0].norm() <= 1e-5


def test_a_pass_over_a_tree_never_waits_for_the_device():
    groups, model = branching_groups(VOCABULARY, [30, 9]), model_of("Gemma3Text")
    with Operations() as run:
        flex_inputs(model.config, packed(groups))
        values = completion_values(model, "policy", BATCHES["tree"].build(groups, 0), ExecutionPlan("tree", "linear"))
        values.sum().backward()
    assert "aten.segment_reduce.default" in run.names
    assert not {name for name in run.names if any(part in name for part in ("local_scalar", "nonzero", "masked_select", "unique"))}
    with Operations() as read:
        bool(values.detach().sum() > 0)
    assert any("local_scalar" in name for name in read.names)


def test_a_cpu_never_takes_it():
    model = model_of("Llama")
    for before in ("sdpa", FLEX):
        model.set_attn_implementation(before)
        plan = choose_plan(model, "policy", 60, "tree", training=True, bf16=True)
        assert (plan.layout, plan.attention, plan.reason) == ("packed", "segments", "")
