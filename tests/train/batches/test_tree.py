"""Each completion once gives what padded pairs give: log-probabilities, scores, losses and gradients, for many models.

The other side is written here and shares nothing with ours but the formula: chosen and rejected of every pair as padded
rows with a mask, through the model's own forward pass, in one batch.
"""

import numpy as np
import pytest
import torch
import transformers
from torch.nn.functional import softplus
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, TrainingArguments

from mmpo.train.data import PromptPairs, Rendered
from mmpo.train.model import ExecutionPlan, add_lora, choose_plan
from mmpo.train.training import PolicyTrainer, RewardTrainer

TRAINERS = {"policy": PolicyTrainer, "reward": RewardTrainer}
BETA, WINDOW = 0.1, 8
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
# Weights this large make a token that is seen by mistake show in the first digits, not in the last.
COMMON = {"initializer_range": 0.15, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": WINDOW, "num_hidden_layers": 3}
GEMMA |= {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
BERT = {"max_position_embeddings": 64, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

MODELS = {
    "Llama": {**SIZES, "tie_word_embeddings": True},
    "Qwen3": {**SIZES, "head_dim": 8},
    "Gemma3Text": {**SIZES, **GEMMA},
    "GPT2": GPT2,
    "Mixtral": {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2},
    "Mistral": {**SIZES, "sliding_window": WINDOW},
    "Granite": {**SIZES, "logits_scaling": 3.0, "residual_multiplier": 0.7, "embedding_multiplier": 2.0},
    "Cohere": {**SIZES, "logit_scale": 0.3},
    "Gemma2": {**SIZES, **GEMMA, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0},
    "Bert": {**SIZES, **BERT},
}
SCALED, MASKED_BY_TYPE = ("Granite", "Cohere", "Gemma2"), ("Gemma3Text", "Gemma2")
ROWS_ONLY, NO_SUCH_MODEL = ("Bert", "Gemma2"), {("Bert", "policy"), ("Cohere", "reward"), ("Granite", "reward")}
CASES = [
    (name, kind, layout)
    for name in MODELS
    for kind in TRAINERS
    for layout in (["rows"] if name in ROWS_ONLY else ["packed", "tree", "rows"])
    if (name, kind) not in NO_SUCH_MODEL
]


def model_of(name, kind, vocabulary, **options):
    config = getattr(transformers, f"{name}Config")(vocab_size=vocabulary, num_labels=1, **{**MODELS[name], **COMMON, **options})
    torch.manual_seed(1)
    return {"policy": AutoModelForCausalLM, "reward": AutoModelForSequenceClassification}[kind].from_config(config)


def prompts_of(vocabulary, seed=0):
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


def trainer_of(model, kind, prompts, tokenizer, path, layout):
    """The real trainer, on the way that it chose itself; "tree" is what it would choose on a GPU."""
    arguments = TrainingArguments(str(path), report_to=[], disable_tqdm=True, use_cpu=True)
    options = {"layout": "rows" if layout == "rows" else "auto", "gamma": 0.8, **({"beta": BETA} if kind == "policy" else {})}
    trainer = TRAINERS[kind](model, arguments, prompts, processing_class=tokenizer, **options)
    if layout == "tree":
        assert trainer.execution_plan.layout == "packed"
        trainer.execution_plan = choose_plan(model, kind, trainer.prompts[1].length, device="cuda")
    assert trainer.execution_plan.layout == layout
    return trainer


def values_of(trainer, step):
    with torch.no_grad():
        parts = [part for batch in step.batches for part in batch.parts]
        return torch.cat([trainer.values(trainer.model, part) for part in parts])


def check_equal(trainer, kind, prompts, plain, budgets):
    """Values, loss and gradients of whole steps against `plain`, for each token budget."""
    plain.zero_grad()
    expected = plain_loss(plain, kind, prompts)
    expected.backward()
    largest = [0.0, 0.0, 0.0]
    for tokens, shape in budgets.items():
        trainer.tokens_per_batch = tokens
        step = trainer.make_step(prompts)
        parts = [len(batch.parts) for batch in step.batches]
        assert shape == ("split" if max(parts) > 1 else "one" if len(parts) == 1 else "several")
        order = {prompt.prompt_id: prompt for prompt in prompts}
        items = [item for batch in step.batches for name in batch.ids for item in order[name].completions]
        with torch.no_grad():
            known = plain_values(plain, kind, items)
        trainer.model.zero_grad()
        loss = trainer.training_step(trainer.model, step)
        off = (
            float((values_of(trainer, step) - known).abs().max()),
            abs(loss.item() - expected.item()),
            distance(gradient_of(trainer.model), gradient_of(plain)),
        )
        assert off[0] <= 1e-4
        assert off[1] <= 1e-5
        assert off[2] <= 1e-5
        largest = [max(pair) for pair in zip(largest, off)]
    print("largest differences: values {:.1e}, loss {:.1e}, gradient {:.1e}".format(*largest))


BUDGETS = {
    "packed": {10**6: "one", 130: "several", 45: "split"},
    "tree": {10**6: "one", 130: "several", 45: "split"},
    "rows": {10**6: "one", 250: "several", 90: "split"},
}


@pytest.mark.parametrize(("name", "kind", "layout"), CASES)
def test_values_and_gradients_are_those_of_padded_pairs(name, kind, layout, tokenizer, tmp_path):
    """One pass, several micro-batches, and prompts that are too large for one pass."""
    prompts, vocabulary = prompts_of(len(tokenizer)), len(tokenizer)
    trainer = trainer_of(model_of(name, kind, vocabulary), kind, prompts, tokenizer, tmp_path, layout)
    assert trainer.execution_plan.head == ("whole" if kind == "reward" else "model" if name in SCALED else "linear")
    if name in ("Gemma3Text", "Mistral"):
        assert all(item.start > WINDOW for prompt in prompts if prompt.prompt_id != "2 two" for item in prompt.completions)
    check_equal(trainer, kind, prompts, model_of(name, kind, vocabulary), BUDGETS[layout])


@pytest.mark.parametrize("layout", BUDGETS)
@pytest.mark.parametrize("head", ["linear", "model", "whole"])
def test_every_head_in_every_layout(head, layout, tokenizer, tmp_path):
    """With tied weights and five tokens a chunk."""
    vocabulary = len(tokenizer)
    prompts = prompts_of(vocabulary)
    trainer = trainer_of(model_of("Llama", "policy", vocabulary), "policy", prompts, tokenizer, tmp_path, layout)
    trainer.execution_plan = ExecutionPlan(layout, head, logit_bytes=5 * 4 * vocabulary)
    check_equal(trainer, "policy", prompts, model_of("Llama", "policy", vocabulary), BUDGETS[layout])


@pytest.mark.parametrize("layout", BUDGETS)
@pytest.mark.parametrize("name", ["Llama", "Gemma3Text"])
def test_with_activations_computed_again(name, layout, tokenizer, tmp_path):
    prompts, vocabulary = prompts_of(len(tokenizer)), len(tokenizer)
    trainer = trainer_of(model_of(name, "policy", vocabulary), "policy", prompts, tokenizer, tmp_path, layout)
    trainer.model.activation_checkpointing_enable()
    assert any(getattr(module, "gradient_checkpointing", False) for module in trainer.model.modules())
    check_equal(trainer, "policy", prompts, model_of(name, "policy", vocabulary), BUDGETS[layout])


@pytest.mark.parametrize("layout", BUDGETS)
@pytest.mark.parametrize("kind", TRAINERS)
def test_with_an_adapter(kind, layout, tokenizer, tmp_path):
    """Only the adapter (and the score layer) has gradients, and they are the same."""
    prompts, models = prompts_of(len(tokenizer)), []
    for _ in range(2):
        models.append(add_lora(model_of("Qwen3", kind, len(tokenizer)), 4, kind))
        torch.manual_seed(3)
        for name, value in models[-1].named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(value, std=0.1)
    trainer = trainer_of(models[0], kind, prompts, tokenizer, tmp_path, layout)
    assert trainer.execution_plan.head == ("whole" if kind == "reward" else "linear")
    check_equal(trainer, kind, prompts, models[1], BUDGETS[layout])
    assert all("lora_" in name or "score" in name for name in gradient_of(trainer.model))
