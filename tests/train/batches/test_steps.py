"""Steps and micro-batches: whole prompts, at least so many pairs, every prompt once an epoch, an exact weighted mean; and what
tree batches save, as counts: every distinct prefix of a prompt is computed once, whatever the number of pairs.
"""

import datasets
import numpy as np
import pytest
import torch
from torch import nn
from training_cases import prefixes, prompts_of
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from mmpo.pipeline.errors import UserError
from mmpo.train.batches import BATCHES, group_prompts, make_step, plan_steps
from mmpo.train.model import tiny_model
from mmpo.train.training import PolicyTrainer


@pytest.fixture
def step_trainer(trainer_of):
    """Makes a trainer whose step holds all prompts, in passes of so many tokens."""

    def make(kind="policy", tokens=10**6, **options):
        run = {"max_grad_norm": 0.0, "max_steps": 1, "schedule": "constant", "warmup_ratio": 0.0}
        trainer = trainer_of(kind, run=run, gamma=0.8, tokens_per_batch=tokens, pairs_per_step=10**6, **options)
        trainer.args.optim = OptimizerNames.SGD  # Adam would blow up what rounding does to tiny gradients
        return trainer

    return make


def gradients(trainer, prompts):
    trainer.model.zero_grad()
    loss = trainer.training_step(trainer.model, trainer.make_step(prompts))
    found = {name: value.grad.clone() for name, value in trainer.model.named_parameters() if value.grad is not None}
    trainer.model.zero_grad()
    return float(loss), found


@pytest.mark.parametrize("weights", [{}, {"weight": "prompt"}, {"weight": "prompt", "source_weights": {"source-0": 3.0}}], ids=str)
@pytest.mark.parametrize("loss", ["mmpo", "mmpo=1,sft=0.5", "mmpo=1,odpo=0.5,ipo=0.01", "reward"])
def test_four_micro_batches_give_the_gradients_of_one(loss, weights, step_trainer, tokenizer):
    """Prompts of 1 to 28 pairs, with and without ties, of unlike weights: each term divides by its own weight in the whole step.
    transformers' own scaling by the number of micro-batches was 62% off here.
    """
    kind, options = ("reward", {}) if loss == "reward" else ("policy", {"loss": loss})
    if "=" in loss:  # else the policy's own first weights
        options["ref_model"] = tiny_model("policy", tokenizer, size=32, layers=1, seed=7)
    trainer = step_trainer(kind, **options, **weights)
    counts = [len(prompt.rows) for prompt in trainer.prompts]
    assert (min(counts), max(counts)) == (1, 28)
    sums = {round(float(prompt.weight.sum()), 6) for prompt in trainer.prompts}
    assert sums == ({1.0, 3.0} if "source_weights" in weights else {1.0} if weights else {float(count) for count in counts})
    layout = trainer.execution_plan.batches
    quarter = next(t for t in range(200, 10000, 20) if len(list(group_prompts(trainer.prompts, t, layout))) == 4)
    found = []
    for tokens, batches in ((10**6, 1), (quarter, 4)):
        trainer.tokens_per_batch = tokens
        step = trainer.make_step(trainer.prompts)
        assert len(step.batches) == batches
        assert 0 < step.decided_weight < step.total_weight
        found.append(gradients(trainer, trainer.prompts))
    (one_loss, one), (four_loss, four) = found
    assert four_loss == pytest.approx(one_loss, abs=1e-6 if "=" not in loss else 2e-6)
    assert one.keys() == four.keys()
    for name, value in one.items():
        assert (value - four[name]).abs().max() <= 1e-6 * max(1.0, float(value.abs().max())), name


@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_four_micro_batches_give_the_update_of_one_through_the_trainer(kind, step_trainer, tokenizer):
    weights = []
    for tokens in (10**6, 1200):
        trainer = step_trainer(kind, tokens)
        trainer.train()
        weights.append(trainer.model.state_dict())
    before = tiny_model(kind, tokenizer, size=32, layers=1).state_dict()
    assert any((weights[0][name] - before[name]).abs().max() > 1e-5 for name in before)
    assert all((weights[0][name] - weights[1][name]).abs().max() <= 1e-6 for name in before)


def test_a_plan_visits_every_prompt_once_an_epoch_in_steps_large_enough():
    pairs = np.random.default_rng(0).integers(1, 29, 200)
    plan = plan_steps(pairs, 64, 3, seed=1)
    visits = np.bincount(np.concatenate(plan), minlength=200)
    assert (visits == 3).all()
    assert min(pairs[step].sum() for step in plan) >= 64
    assert np.mean([pairs[step].sum() for step in plan]) < 64 + 28
    again = plan_steps(pairs, 64, 3, seed=1)
    assert all((a == b).all() for a, b in zip(plan, again, strict=True))
    assert len(plan_steps(pairs, 64, 0.5, seed=1)) == round(len(plan_steps(pairs, 64, 1, seed=1)) / 2)
    assert len(plan_steps([1, 2], 64, 1, seed=0)) == 1  # fewer pairs than a step: one step of all


@pytest.mark.parametrize(
    ("changes", "said"), [({"gradient_accumulation_steps": 2}, "tokens_per_batch"), ({"save_strategy": "epoch"}, "epoch")]
)
def test_the_options_that_would_change_a_step_are_refused(changes, said, pairs, tokenizer, tmp_path):
    arguments = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, **changes)
    with pytest.raises(UserError, match=said):
        PolicyTrainer(tiny_model("policy", tokenizer, size=32, layers=1), arguments, pairs, processing_class=tokenizer, gamma=0.8)


def test_a_hugging_face_dataset_is_as_good_as_a_table(pairs, step_trainer):
    trainers = [
        step_trainer("reward", data=data)
        for data in (pairs, datasets.Dataset(pairs.replace_schema_metadata(None)), datasets.Dataset.from_list(pairs.to_pylist()))
    ]
    losses = [gradients(trainer, trainer.prompts)[0] for trainer in trainers]
    assert losses[0] == losses[1] == losses[2]


def test_the_order_of_the_rows_changes_nothing(pairs, prompts, tokenizer):
    shuffled = pairs.take(np.random.default_rng(3).permutation(len(pairs)))
    found = [prompts, prompts_of(shuffled, tokenizer)]
    assert [p.prompt_id for p in found[0]] == [p.prompt_id for p in found[1]]
    spelled = [[(item.ids.tolist(), item.start) for p in prompts for item in p.completions] for prompts in found]
    assert spelled[0] == spelled[1]
    margins = [{(p.prompt_id, a, b): m for p in f for a, b, m in zip(p.chosen, p.rejected, p.margin, strict=True)} for f in found]
    assert margins[0] == margins[1]


def test_a_packed_step_computes_each_distinct_prefix_once(prompts):
    step = make_step(prompts, 10**6, 0, BATCHES["packed"])
    distinct = [len(prefixes(tuple(item.ids) for item in prompt.completions)) for prompt in prompts]
    assert [BATCHES["packed"].size(prompt.completions)[1] for prompt in prompts] == distinct
    assert step.tokens == sum(distinct) == sum(batch.computed_tokens for batch in step.batches)
    assert step.pairs == sum(len(prompt.rows) for prompt in prompts)


def test_padded_pairs_would_compute_many_times_as_much(prompts):
    """All pairs of 8 completions behind one prompt: 56 rows, against one prompt and 8 completions, in two passes two prompts."""
    prompt = max(prompts, key=lambda prompt: len(prompt.completions))
    assert (len(prompt.completions), len(prompt.rows)) == (8, 28)
    lengths = np.array([len(item.ids) for item in prompt.completions])
    pairs = lengths[prompt.chosen].sum() + lengths[prompt.rejected].sum()
    own = sum(len(item.ids) - item.start for item in prompt.completions)
    packed, rows = (make_step([prompt], 10**6, 0, BATCHES[name]).tokens for name in ("packed", "rows"))
    assert packed <= prompt.completions[0].start + own
    assert rows == 8 * lengths.max()
    assert pairs / packed > 8
    (batch,) = make_step([prompt], packed - 1, 0, BATCHES["packed"]).batches
    assert len(batch.parts) == 2
    assert packed < batch.computed_tokens <= packed + prompt.completions[0].start + 8


@pytest.mark.parametrize("layout", BATCHES)
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


@pytest.mark.parametrize("layout", BATCHES)
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
