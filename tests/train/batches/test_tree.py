"""Each completion once gives what padded pairs give: log-probabilities, scores, losses and gradients, for many models.

The other side is written here and shares nothing with ours but the formula: chosen and rejected of every pair as padded
rows with a mask, through the model's own forward pass, in one batch.
"""

import numpy as np
import pytest
import torch
from torch.nn.functional import softplus
from training_cases import small_model, with_random_adapter

from mmpo.train.data import PromptPairs, Rendered
from mmpo.train.model import ExecutionPlan, add_lora, choose_plan

BETA, WINDOW = 0.1, 8
GEMMA = {"query_pre_attn_scalar": 8, "sliding_window": WINDOW, "num_hidden_layers": 3}
GEMMA |= {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}

MODELS = {
    "Llama": {"tie_word_embeddings": True},
    "Qwen3": {},
    "Gemma3Text": GEMMA,
    "GPT2": {},
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Mistral": {"sliding_window": WINDOW},
    "Granite": {"logits_scaling": 3.0, "residual_multiplier": 0.7, "embedding_multiplier": 2.0},
    "Cohere": {"logit_scale": 0.3},
    "Gemma2": {**GEMMA, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0},
    "Bert": {},
}
SCALED = ("Granite", "Cohere", "Gemma2")
ROWS_ONLY, NO_SUCH_MODEL = ("Bert", "Gemma2"), {("Bert", "policy"), ("Cohere", "reward"), ("Granite", "reward")}
CASES = [
    (name, kind, layout)
    for name in MODELS
    for kind in ("policy", "reward")
    for layout in (["rows"] if name in ROWS_ONLY else ["packed", "tree", "rows"])
    if (name, kind) not in NO_SUCH_MODEL
]


def made_prompts(vocabulary, seed=0):
    """4 prompts, 2 to 6 completions, all pairs, ties among them; texts as the trie likes and dislikes them."""
    random = np.random.default_rng(seed)

    def draw(count):
        return tuple(int(token) for token in random.integers(2, vocabulary, count))

    sure, long = draw(3), draw(2 * WINDOW)
    groups = {
        "shared beginning": (draw(11), [(*sure, *draw(5)), (*sure, *draw(9)), (*sure[:2], *draw(2)), draw(7)]),
        "prefix and twins": (draw(23), [long, long[:9], long[:9], draw(4), (*long[:9], *draw(3)), draw(12)]),
        "two": (draw(3), [draw(14), draw(1)]),
        "merged": (draw(17), [draw(6), draw(8), draw(5)]),
    }
    found = []
    for number, (name, (prompt, replies)) in enumerate(groups.items()):
        items = [Rendered((*prompt, *reply), len(prompt)) for reply in replies]
        if name == "merged":  # across the prompt's end: its last token is another one here
            items[0] = Rendered((*prompt[:-1], *draw(5)), len(prompt) - 1)
        first, second = np.triu_indices(len(items), 1)
        margin = random.integers(0, 4, len(first)).astype(float)
        assert (margin == 0).any() or len(margin) < 3
        found.append(
            PromptPairs(
                prompt_id=f"{number} {name}",
                completions=items,
                chosen=first,
                rejected=second,
                p=1 / (1 + np.exp(-0.8 * margin)),
                margin=margin,
                weight=random.uniform(0.2, 1, len(first)),
                rows=100 * number + np.arange(len(first)),
                reference=random.normal(-40, 9, len(items)),
            )
        )
    return found


def plain_values(model, kind, items):
    """One padded row a completion, with a mask, through the model's forward pass."""
    length = max(len(item.ids) for item in items)
    ids = torch.tensor([[*item.ids, *[0] * (length - len(item.ids))] for item in items])
    mask = torch.tensor([[1] * len(item.ids) + [0] * (length - len(item.ids)) for item in items])
    logits = model(input_ids=ids, attention_mask=mask).logits
    if kind == "reward":
        return logits[:, 0]
    tokens = logits[:, :-1].float().log_softmax(dim=-1).gather(2, ids[:, 1:, None])[:, :, 0]
    place = torch.arange(1, length)
    own = torch.stack([(place >= item.start) & (place < len(item.ids)) for item in items])
    return (tokens * own).sum(dim=1)


def plain_loss(model, kind, prompts):
    """mmpo over all pairs, each pair with two rows of its own; p·log σ(z) + (1 − p)·log σ(−z), negative, weighted."""
    items, reference, p, weight = [], [], [], []
    for prompt in prompts:
        for pair in range(len(prompt.rows)):
            for side in (prompt.chosen[pair], prompt.rejected[pair]):
                items.append(prompt.completions[side])
                reference.append(prompt.reference[side])
        p.extend(prompt.p)
        weight.extend(prompt.weight)
    values = plain_values(model, kind, items)
    rewards = BETA * (values - torch.tensor(reference).float()) if kind == "policy" else values
    z, p, weight = rewards[0::2] - rewards[1::2], torch.tensor(p).float(), torch.tensor(weight).float()
    return (weight * (softplus(z) - p * z)).sum() / weight.sum()


def gradient_of(model):
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def distance(found, expected):
    """‖Δg‖ / ‖g‖ over all parameters."""
    assert found.keys() == expected.keys()
    norm = torch.stack([value.double().norm() for value in expected.values()]).norm()
    assert norm > 1e-3
    return float(torch.stack([(found[name] - expected[name]).double().norm() for name in expected]).norm() / norm)


BUDGETS = {
    "packed": {10**6: "one", 130: "several", 45: "split"},
    "tree": {10**6: "one", 130: "several", 45: "split"},
    "rows": {10**6: "one", 250: "several", 90: "split"},
}


@pytest.fixture
def compare(trainer_of, tokenizer):
    """Checks the real trainer, on the way that it chose itself ("tree": what it would choose on a GPU), against a plain model: values,
    loss and gradients of whole steps in one pass, several micro-batches, and prompts too large for one pass.
    """

    def equal(kind, layout, model, plain, head, prepare=lambda trainer: None):
        prompts = made_prompts(len(tokenizer))
        options = {"layout": "rows" if layout == "rows" else "auto", "gamma": 0.8, **({"beta": BETA} if kind == "policy" else {})}
        trainer = trainer_of(kind, model, data=prompts, **options)
        if layout == "tree":
            assert trainer.execution_plan.layout == "packed"
            trainer.execution_plan = choose_plan(model, kind, trainer.prompts[1].length, device="cuda")
        assert (trainer.execution_plan.layout, trainer.execution_plan.head) == (layout, head)
        prepare(trainer)
        plain.zero_grad()
        expected = plain_loss(plain, kind, prompts)
        expected.backward()
        by_id = {prompt.prompt_id: prompt for prompt in prompts}
        for tokens, shape in BUDGETS[layout].items():
            trainer.tokens_per_batch = tokens
            step = trainer.make_step(prompts)
            parts = [len(batch.parts) for batch in step.batches]
            assert shape == ("split" if max(parts) > 1 else "one" if len(parts) == 1 else "several")
            trainer.model.zero_grad()
            loss = trainer.training_step(trainer.model, step)
            with torch.no_grad():
                items = [item for batch in step.batches for name in batch.ids for item in by_id[name].completions]
                found = [trainer.values(trainer.model, part) for batch in step.batches for part in batch.parts]
                assert (torch.cat(found) - plain_values(plain, kind, items)).abs().max() <= 1e-4
            assert abs(loss.item() - expected.item()) <= 1e-5
            assert distance(gradient_of(trainer.model), gradient_of(plain)) <= 1e-5
        return trainer

    return equal


@pytest.mark.parametrize(("name", "kind", "layout"), CASES)
def test_values_and_gradients_are_those_of_padded_pairs(name, kind, layout, compare, tokenizer):
    model, plain = (small_model(name, kind, vocab_size=len(tokenizer), **MODELS[name]) for _ in range(2))
    trainer = compare(kind, layout, model, plain, "whole" if kind == "reward" else "model" if name in SCALED else "linear")
    if name in ("Gemma3Text", "Mistral"):
        long = [prompt for prompt in trainer.prompts if prompt.prompt_id != "2 two"]
        assert all(item.start > WINDOW for prompt in long for item in prompt.completions)


@pytest.mark.parametrize("layout", BUDGETS)
@pytest.mark.parametrize("head", ["linear", "model", "whole"])
def test_every_head_in_every_layout(head, layout, compare, tokenizer):
    """With tied weights and five tokens a chunk."""

    def choose(trainer):
        trainer.execution_plan = ExecutionPlan(layout, head, logit_bytes=5 * 4 * len(tokenizer))

    model, plain = (small_model("Llama", vocab_size=len(tokenizer), tie_word_embeddings=True) for _ in range(2))
    assert compare("policy", layout, model, plain, "linear", choose).execution_plan.head == head


@pytest.mark.parametrize("layout", BUDGETS)
@pytest.mark.parametrize("name", ["Llama", "Gemma3Text"])
def test_with_activations_computed_again(name, layout, compare, tokenizer):
    def recompute(trainer):
        (getattr(trainer.model, "activation_checkpointing_enable", None) or trainer.model.gradient_checkpointing_enable)()
        assert any(getattr(module, "gradient_checkpointing", False) for module in trainer.model.modules())

    model, plain = (small_model(name, vocab_size=len(tokenizer), **MODELS[name]) for _ in range(2))
    compare("policy", layout, model, plain, "linear", recompute)


@pytest.mark.parametrize("layout", BUDGETS)
@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_with_an_adapter(kind, layout, compare, tokenizer):
    """Only the adapter (and the score layer) has gradients, and they are the same."""
    models = [add_lora(small_model("Qwen3", kind, vocab_size=len(tokenizer)), 4, kind) for _ in range(2)]
    models = [with_random_adapter(model, std=0.1) for model in models]
    trainer = compare(kind, layout, *models, "whole" if kind == "reward" else "linear")
    assert all("lora_" in name or "score" in name for name in gradient_of(trainer.model))
