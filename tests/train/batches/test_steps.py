"""Steps and micro-batches: whole prompts, at least so many pairs, every prompt once an epoch, and an exact weighted mean."""

import copy
import math

import datasets
import numpy as np
import pytest
from training_cases import prompts_of
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from mmpo.pipeline.errors import UserError
from mmpo.train.batches import group_prompts, plan_steps
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


WEIGHTS = [{}, {"weight": "prompt"}, {"weight": "prompt", "source_weights": {"source-0": 3.0}}]


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
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


@pytest.mark.parametrize("weight", ["pair", "prompt"])
def test_the_step_loss_is_the_weighted_mean_over_its_pairs(weight, step_trainer):
    """Reference defect 1: a reward loss that broadcasts (B, 1) against (B,) trains every pair on the batch's mean target."""
    trainer = step_trainer("reward", 1500, weight=weight)
    loss, _ = gradients(trainer, trainer.prompts)
    values, weights = [], []
    for prompt in trainer.prompts:
        for place in range(len(prompt.rows)):
            single = copy.copy(prompt)
            for name in ("chosen", "rejected", "p", "margin", "weight", "rows"):
                object.__setattr__(single, name, getattr(prompt, name)[place : place + 1])
            values.append(gradients(trainer, [single])[0])
            weights.append(1.0 if weight == "pair" else 1 / len(prompt.rows))
    assert loss == pytest.approx(np.average(values, weights=weights), abs=1e-6)


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


@pytest.mark.parametrize("loss", ["mmpo", "dpo", "cdpo"])
def test_a_policy_equal_to_its_reference_starts_at_ln_2(loss, step_trainer):
    trainer = step_trainer(loss=loss)
    value, _ = gradients(trainer, trainer.prompts)  # the first-step check runs as well
    assert value == pytest.approx(math.log(2), abs=1e-6)
    assert np.abs(trainer.predict_pairs(trainer.prompts)["z"]).max() < 1e-5


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
