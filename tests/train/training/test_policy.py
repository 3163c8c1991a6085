"""Policies: the first-step check, dropout, LoRA, a reference of one's own, and the terms added to the objective."""

import copy

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from mmpo.pipeline.errors import MmpoError, UserError
from mmpo.train.model import add_lora, tiny_model
from mmpo.train.options import TrainOptions
from mmpo.train.training import PolicyTrainer, train_policy, training_arguments


def trainer_of(pairs, tokenizer, path, model=None, **options):
    model = model or tiny_model("policy", tokenizer, size=32, layers=1)
    arguments = training_arguments(TrainOptions("policy", out=str(path), max_steps=2, learning_rate=1e-2))
    return PolicyTrainer(model, arguments, pairs, processing_class=tokenizer, **{"gamma": 1.0, **options})


def with_dropout(tokenizer):
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 512}
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=1, **sizes))


def test_the_first_step_check_fails_loudly_on_reference_values_of_other_weights(pairs, tokenizer, tmp_path):
    trainer = trainer_of(pairs, tokenizer, tmp_path)
    with torch.no_grad():
        trainer.model.lm_head.weight[5] += 0.5
    with pytest.raises(MmpoError, match="first-step check failed"):
        trainer.train()


def test_pairs_that_come_too_late_for_reference_values_are_refused_with_the_reason(pairs, pairs_of, tokenizer, tmp_path):
    trainer = trainer_of(pairs, tokenizer, tmp_path, eval_dataset=pairs_of(4, [3], seed=5))
    assert trainer.evaluate()["eval_cross_entropy"] > 0
    with pytest.raises(
        UserError, match=r"no reference log-probabilities, which are computed when the trainer is made: .*eval_dataset"
    ):
        trainer.evaluate(pairs_of(4, [3], seed=6))


def test_dropout_is_off_unless_asked_for(pairs, tokenizer, tmp_path):
    trainer = trainer_of(pairs, tokenizer, tmp_path, with_dropout(tokenizer))
    trainer.train()  # with dropout on, the first-step check would fail
    assert trainer.model.config.attn_pdrop == 0.1  # the saved configuration is the model's own
    trainer = trainer_of(pairs, tokenizer, tmp_path, with_dropout(tokenizer), dropout=True)
    with pytest.raises(MmpoError, match="first-step check failed"):
        trainer.check_first_step(trainer.make_step(trainer.prompts))
    assert trainer.train().global_step == 2


def test_z_is_beta_times_the_difference_of_log_ratios(pairs, tokenizer, tmp_path):
    other = tiny_model("policy", tokenizer, size=32, layers=1, seed=7)
    trainer = trainer_of(pairs, tokenizer, tmp_path, beta=0.3, ref_model=other)
    mine, theirs = trainer.predict_pairs(trainer.prompts), {}
    for name, model in (("policy", trainer.model), ("reference", other)):
        theirs[name] = trainer_of(pairs, tokenizer, tmp_path, copy.deepcopy(model)).predict_pairs(trainer.prompts)
    gap = {n: v["logps/chosen"] - v["logps/rejected"] for n, v in theirs.items()}
    assert mine["z"] == pytest.approx(0.3 * (gap["policy"] - gap["reference"]), abs=1e-4)
    assert np.abs(mine["z"]).max() > 0.01


def test_lora_trains_the_adapter_only_and_is_read_back(dataset, pairs, tokenizer, tmp_path):
    base = tiny_model("policy", tokenizer, size=32, layers=1)
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    options = {"data": str(dataset), "model": str(tmp_path / "base"), "learning_rate": 1e-2, "max_steps": 4, "lora": 4}
    result = train_policy(TrainOptions("policy", out=str(tmp_path / "out"), pairs_per_step=10, **options))
    assert result["steps"] == 4
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "out" / "model.safetensors").exists()
    from mmpo.train.evaluation import evaluate

    measured = evaluate("policy", tmp_path / "out", dataset, split="validation")
    assert measured["cross_entropy"] == pytest.approx(result["metrics"]["cross_entropy"], abs=1e-5)


def test_a_lora_policy_starts_equal_to_its_reference(pairs, tokenizer, tmp_path):
    model = add_lora(tiny_model("policy", tokenizer, size=32, layers=1), 4, "policy")
    trainer = trainer_of(pairs, tokenizer, tmp_path, model)
    trainer.check_first_step(trainer.make_step(trainer.prompts))
    trainable = [name for name, value in model.named_parameters() if value.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)


def test_sft_adds_the_chosen_completions_mean_negative_log_probability(pairs, tokenizer, tmp_path):
    plain, added, alone = (trainer_of(pairs, tokenizer, tmp_path, loss=loss) for loss in ("mmpo", "mmpo=1,sft=0.5", "sft"))
    values = plain.predict_pairs(plain.prompts)
    batch = added.make_step(added.prompts).batches[0]
    losses = [t.compute_loss(t.model, batch).item() for t in (plain, added)]
    decided = values["margin"] > 0
    assert 0 < decided.sum() < len(decided)
    expected = values["nll/chosen"][decided].mean()
    assert losses[1] - losses[0] == pytest.approx(0.5 * expected, abs=1e-5)
    assert alone.evaluate(alone.prompts)["eval_loss"] == pytest.approx(expected, abs=1e-5)
    assert sum(len(prompt.rows) for prompt in alone.prompts) == decided.sum()
    found = added.evaluate(added.prompts)
    assert found["eval_loss/sft"] == pytest.approx(expected, abs=1e-5)
    assert found["eval_loss"] == pytest.approx(found["eval_loss/mmpo"] + 0.5 * found["eval_loss/sft"])


def test_each_term_has_the_z_of_its_own(pairs, tokenizer, tmp_path):
    """ipo's from log-ratios averaged per token, mmpo's from their sums, in the same run."""
    other = tiny_model("policy", tokenizer, size=32, layers=1, seed=7)
    both, mmpo, ipo = (
        trainer_of(pairs, tokenizer, tmp_path, loss=loss, beta=0.3, ref_model=other) for loss in ("mmpo=1,ipo=0.01", "mmpo", "ipo")
    )
    batch = both.make_step(both.prompts).batches[0]
    losses = [t.compute_loss(t.model, batch).item() for t in (both, mmpo, ipo)]
    assert losses[0] == pytest.approx(losses[1] + 0.01 * losses[2], rel=1e-5)
    logits, _ = both.pair_logits(both.values(both.model, batch.parts[0]), batch)
    tokens = batch.counts
    with torch.no_grad():
        mean = 0.3 * (both.values(both.model, batch.parts[0]) - batch.reference) / tokens
    assert torch.allclose(logits.z_mean, mean[batch.chosen] - mean[batch.rejected], atol=1e-6)
    assert not torch.allclose(logits.z_mean, logits.z, atol=1e-2)


def test_ipo_takes_the_policys_beta(pairs, tokenizer, tmp_path):
    trainer = trainer_of(pairs, tokenizer, tmp_path, loss="ipo", beta=0.25)
    assert trainer.objective.terms[0].options == {"beta": 0.25}
    with pytest.raises(UserError, match="set beta"):
        trainer_of(pairs, tokenizer, tmp_path, loss="ipo", beta=0.25, loss_options={"beta": 0.1})
