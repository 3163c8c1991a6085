"""Training the uppermost layers alone: what is frozen, and hidden states below them that are computed once and change nothing."""

import numpy as np
import pytest
import torch
from training_cases import small_model, user_error

from mmpo.train.batches import make_step
from mmpo.train.model import (
    StateFile,
    choose_plan,
    completion_values,
    freeze_below,
    kept_states,
    layers_of,
)

FAMILIES = ["Llama", "GPT2", "Gemma3Text", "Mistral", "Qwen3", "Bert"]


@pytest.fixture(
    params=[(family, kind) for family in FAMILIES for kind in ("policy", "reward") if (family, kind) != ("Bert", "policy")]
)
def case(request, tokenizer):
    family, kind = request.param
    more = {
        "Gemma3Text": {"layer_types": ["sliding_attention"] * 3 + ["full_attention"], "sliding_window": 8},
        "Mistral": {"sliding_window": 9},
    }
    options = {"vocab_size": len(tokenizer), "num_hidden_layers": 4, "max_position_embeddings": 256, **more.get(family, {})}
    return kind, small_model(family, kind, **options).eval()


def gradients(model, kind, batch, plan):
    model.zero_grad()
    values = torch.cat([completion_values(model, kind, part, plan) for part in batch.parts])
    (values * torch.linspace(-1, 1, len(values))).sum().backward()
    return values.detach(), {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def close(found, expected):
    size = max(float(expected.abs().max()), 1e-2)
    torch.testing.assert_close(found, expected, atol=2e-5 * size, rtol=1e-4)


def test_values_and_gradients_are_those_of_the_frozen_model_without_kept_states(case, prompts):
    kind, model = case
    plan = choose_plan(model, kind, max(prompt.length for prompt in prompts))
    cut = freeze_below(model, 2)
    assert cut == 2
    small, large = (make_step(prompts[:6], tokens, 0, plan.batches) for tokens in (200, 4000))
    expected = [gradients(model, kind, batch, plan) for batch in large.batches]
    with StateFile() as file, kept_states(model, cut, file) as states:
        for step in (small, large, large):  # filled by small passes, then read by others
            filled = len(states)
            found = [gradients(model, kind, batch, plan) for batch in step.batches]
        assert filled == len(states) > 0
        for (values, slopes), (known, wanted) in zip(found, expected, strict=True):
            close(values, known)
            assert slopes.keys() == wanted.keys() and slopes
            for name in wanted:
                close(slopes[name], wanted[name])
        with torch.no_grad():  # layers that train are not kept
            for value in layers_of(model)[-1].parameters():
                value.add_(0.1 * torch.randn_like(value))
        changed, _ = gradients(model, kind, large.batches[0], plan)
        assert not torch.allclose(changed, expected[0][0], atol=1e-3)


def test_the_frozen_layers_run_once_for_every_token(prompts, tokenizer):
    model = small_model("Llama", "policy", vocab_size=len(tokenizer), num_hidden_layers=4).eval()
    plan = choose_plan(model, "policy", max(prompt.length for prompt in prompts))
    cut = freeze_below(model, 1)
    tokens = []
    layers_of(model)[0].self_attn.register_forward_hook(lambda _, given, out: tokens.append(out[0].shape[1]))
    with StateFile() as file, kept_states(model, cut, file) as states:
        for size in (4000, 300, 150):
            for batch in make_step(prompts, size, 0, plan.batches).batches:
                gradients(model, "policy", batch, plan)
        first = sum(batch.computed_tokens for batch in make_step(prompts, 4000, 0, plan.batches).batches)
        assert sum(tokens) == first >= len(states)
    assert all("forward" not in vars(layer) for layer in layers_of(model))


def test_of_completions_under_a_score_layer_alone_only_the_last_tokens_are_kept(prompts, tokenizer):
    model = small_model("Llama", "reward", vocab_size=len(tokenizer), num_hidden_layers=2).eval()
    tree = choose_plan(model, "reward", max(prompt.length for prompt in prompts))
    cut = freeze_below(model, 0)
    assert cut == 2 and {name for name, value in model.named_parameters() if value.requires_grad} == {"score.weight"}
    steps = [make_step(prompts, tokens, 0, plan.batches) for plan in (tree,) for tokens in (4000, 200)]
    expected = [gradients(model, "reward", batch, tree) for step in steps for batch in step.batches]
    with StateFile() as file, kept_states(model, cut, file) as states:
        for values, (known, slopes) in (
            (gradients(model, "reward", b, tree), e)
            for b, e in zip([batch for step in steps for batch in step.batches], expected, strict=True)
        ):
            close(values[0], known)
            close(values[1]["score.weight"], slopes["score.weight"])
        assert len(states) == len({tuple(item.ids.tolist()) for prompt in prompts for item in prompt.completions})
        with torch.no_grad():
            layers_of(model)[0].mlp.down_proj.weight.zero_()  # nobody looks
        close(gradients(model, "reward", steps[0].batches[0], tree)[0], expected[0][0])
    assert not torch.allclose(gradients(model, "reward", steps[0].batches[0], tree)[0], expected[0][0], atol=1e-3)
    encoder = small_model("Bert", "reward", vocab_size=len(tokenizer), num_hidden_layers=2)
    user_error(
        "--trainable head: BertForSequenceClassification has no score layer upon its last token's state", freeze_below, encoder, 0
    )


def test_what_trains_is_above_the_cut_and_tied_embeddings_do_not(tokenizer):
    size = {"vocab_size": len(tokenizer), "num_hidden_layers": 3}
    free, tied = (small_model("Llama", "policy", tie_word_embeddings=tie, **size) for tie in (False, True))
    for model, head in ((free, {"lm_head"}), (tied, set())):
        freeze_below(model, 1)
        trains = {name for name, value in model.named_parameters() if value.requires_grad}
        assert {name.split(".")[0] for name in trains} - {"model"} == head
        assert {name.split(".")[2] for name in trains if ".layers." in name} == {"2"}
        assert "model.norm.weight" in trains and "model.embed_tokens.weight" not in trains
    reward = small_model("GPT2", "reward", **size)
    freeze_below(reward, 3)  # all layers: the embeddings alone are frozen
    frozen = {name for name, value in reward.named_parameters() if not value.requires_grad}
    assert frozen == {"transformer.wte.weight", "transformer.wpe.weight"}
    user_error(r"top:4: the model has 3 layers; give top:1 to top:3, or all", freeze_below, reward, 4)


def test_a_state_belongs_to_its_tokens_in_their_places():
    from mmpo.train.model.kept_states import _keys

    ids = torch.tensor([[7, 8, 1, 2, 4, 3, 7, 8, 3]])
    positions = torch.tensor([[0, 1, 2, 3, 3, 2, 0, 1, 2]])  # 7 8 (1 (2 | 4) | 3), and 7 8 3 as a tree of its own
    tree = _keys(ids, positions, None)
    assert len(set(tree.tolist())) == 6  # what stands in both trees has the same keys
    assert np.array_equal(tree[[0, 1, 5]], tree[6:])
    rows = _keys(
        torch.tensor([[7, 8, 3, 0], [7, 8, 3, 5], [7, 8, 3, 0]]), None, torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 0]])
    )
    rows = rows.reshape(3, 4)
    assert np.array_equal(rows[0], rows[2]) and not set(rows[0]) & set(rows[1])  # an encoder looks ahead
    longer = _keys(torch.tensor([[7, 8, 3, 0, 0]]), None, torch.tensor([[1, 1, 1, 0, 0]]))
    assert np.array_equal(longer[:3], rows[0, :3])  # padding is nobody's
    random = np.random.default_rng(0).integers(0, 50000, (400, 500))
    random[:, 0] = np.arange(400)  # else two may begin alike
    keys = _keys(torch.from_numpy(random), torch.arange(500)[None], None)
    assert len(np.unique(keys)) == random.size
    assert len(np.unique(_keys(torch.tensor([[1, 2], [2, 1]]), torch.arange(2)[None], None))) == 4


def test_states_that_are_new_are_added_and_known_ones_stay():
    random = np.random.default_rng(0)
    keys, states = random.integers(0, 2**60, 50).astype(np.uint64), random.normal(size=(50, 3)).astype(np.float32)
    with StateFile() as file:
        assert file.read(keys) is None
        file.add(keys[:30], states[:30])
        file.add(keys[20:], np.concatenate([states[20:30] + 9, states[30:]]))
        assert len(file) == 50
        order = random.permutation(50)
        assert np.array_equal(file.read(keys[order]), states[order])
        assert file.read(np.append(keys, np.uint64(1))) is None
