"""Trainers: z, scores and the terms of the objective, the first-step check, dropout, adapters, steps in parts, epochs, measuring."""

import copy

import numpy as np
import pytest
import torch
from training_cases import make_pairs, prompts_of, save_model, small_model, user_error, with_random_adapter
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

from mmpo.pipeline.errors import MmpoError
from mmpo.train.batches import BATCHES
from mmpo.train.evaluation import evaluate
from mmpo.train.inference import with_reference
from mmpo.train.model import ExecutionPlan, add_lora, completion_values, tiny_model
from mmpo.train.training import StepPasses, own_pad_token


@pytest.fixture
def other(tokenizer):
    return tiny_model("policy", tokenizer, size=32, layers=1, seed=7)


@pytest.fixture
def gpt2(tokenizer):
    """Makes a model with dropout."""
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.1)
    sizes = {"vocab_size": len(tokenizer), "num_hidden_layers": 1, "max_position_embeddings": 512}
    return lambda: small_model("GPT2", **sizes, **dropout)


def pad_is_eos(tokenizer):
    """A tokenizer as many models have it: eos ends every turn and is the pad token as well."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def test_z_is_beta_times_the_difference_of_log_ratios(trainer_of, other):
    trainer = trainer_of(beta=0.3, ref_model=other)
    mine, theirs = trainer.predict_pairs(trainer.prompts), {}
    for name, model in (("policy", trainer.model), ("reference", other)):
        theirs[name] = trainer_of(model=copy.deepcopy(model)).predict_pairs(trainer.prompts)
    gap = {n: v["logps/chosen"] - v["logps/rejected"] for n, v in theirs.items()}
    assert mine["z"] == pytest.approx(0.3 * (gap["policy"] - gap["reference"]), abs=1e-4)
    assert np.abs(mine["z"]).max() > 0.01


def test_sft_adds_the_chosen_completions_mean_negative_log_probability(trainer_of):
    plain, added, alone = (trainer_of(loss=loss) for loss in ("mmpo", "mmpo=1,sft=0.5", "sft"))
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


def test_each_term_has_the_z_of_its_own(trainer_of, other):
    """ipo's from log-ratios averaged per token, mmpo's from their sums, in the same run."""
    both, mmpo, ipo = (trainer_of(loss=loss, beta=0.3, ref_model=other) for loss in ("mmpo=1,ipo=0.01", "mmpo", "ipo"))
    batch = both.make_step(both.prompts).batches[0]
    losses = [t.compute_loss(t.model, batch).item() for t in (both, mmpo, ipo)]
    assert losses[0] == pytest.approx(losses[1] + 0.01 * losses[2], rel=1e-5)
    assert ipo.objective.terms[0].options == {"beta": 0.3}
    logits, _ = both.pair_logits(both.values(both.model, batch.parts[0]), batch)
    tokens = batch.counts
    with torch.no_grad():
        mean = 0.3 * (both.values(both.model, batch.parts[0]) - batch.reference) / tokens
    assert torch.allclose(logits.z_mean, mean[batch.chosen] - mean[batch.rejected], atol=1e-6)
    assert not torch.allclose(logits.z_mean, logits.z, atol=1e-2)


def test_scores_are_pooled_at_the_last_token_whatever_the_padding(pairs, tokenizer):
    """Reference defect 2 and transformers 35352: with pad = eos, pooling by token id ends before the reply."""
    tokenizer = pad_is_eos(tokenizer)
    model = tiny_model("reward", tokenizer, size=32, layers=1).eval()
    prompts = prompts_of(pairs, tokenizer)[:4]
    rows = [item for prompt in prompts for item in prompt.completions]
    batch = BATCHES["rows"].build([prompt.completions for prompt in prompts], tokenizer.pad_token_id)
    with torch.no_grad():
        found = completion_values(model, "reward", batch, ExecutionPlan())
        plain = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, 0]
        expected = [model.score(model.model(torch.tensor(row.ids)[None]).last_hidden_state[0, -1]) for row in rows]
    assert torch.allclose(found, torch.cat(expected), atol=1e-5)
    assert not torch.allclose(plain, found, atol=1e-5)  # the defect is real in what we build on


@pytest.mark.parametrize("room", [0, 8])
def test_the_pad_token_of_its_own_is_set_everywhere_and_embeddings_grow_only_if_it_needs_them(room, tokenizer):
    tokenizer = pad_is_eos(tokenizer)
    tokenizer.chat_template = None
    model = tiny_model("reward", tokenizer, size=32, layers=1)
    model.resize_token_embeddings(len(tokenizer) + room)
    text = copy.deepcopy(model.config)  # where a model has a configuration of its own for text
    text.pad_token_id = None
    model.config.get_text_config = lambda *_, **__: text
    own_pad_token(model, tokenizer)
    assert text.pad_token_id == model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model.get_input_embeddings().num_embeddings == len(tokenizer) + room  # <|pad|> was in the vocabulary already


def test_the_first_step_check_fails_loudly_on_reference_values_of_other_weights(trainer_of):
    trainer = trainer_of()
    with torch.no_grad():
        trainer.model.lm_head.weight[5] += 0.5
    with pytest.raises(MmpoError, match="first-step check failed"):
        trainer.train()


@pytest.mark.parametrize(("bf16", "allowed"), [(True, 0.08), (False, 0.0008)])
def test_the_first_step_may_be_off_by_the_rounding_of_each_token(bf16, allowed, trainer_of):
    """Whose sum grows with the root of their number, however likely the completion is."""
    trainer = trainer_of(run={"bf16": bf16})
    part = trainer.make_step(trainer.prompts).batches[0].parts[0]
    with torch.no_grad():
        trainer.model.lm_head.weight.mul_(0.0)  # every log-probability is the same
        own = trainer.values(trainer.model, part)
    trainer.prompts = with_reference(trainer.prompts, [np.zeros(len(prompt.completions)) for prompt in trainer.prompts])
    step = trainer.make_step(trainer.prompts)
    shift = part.counts**0.5
    step.batches[0].reference.copy_(own + allowed * shift)
    trainer.check_first_step(step)
    step.batches[0].reference.copy_(own + (5 * allowed + (0.05 if bf16 else 1e-5) * -own / shift) * shift)
    failure = user_error(r"first-step check failed.*delete that reference cache.*--dropout", trainer.check_first_step, step)
    assert ("without --bf16" in failure) == bf16


def test_dropout_is_off_unless_asked_for(trainer_of, gpt2):
    trainer = trainer_of(model=gpt2())
    trainer.train()  # with dropout on, the first-step check would fail
    assert trainer.model.config.attn_pdrop == 0.1  # the saved configuration is the model's own
    trainer = trainer_of(model=gpt2(), dropout=True)
    with pytest.raises(MmpoError, match="first-step check failed"):
        trainer.check_first_step(trainer.make_step(trainer.prompts))
    assert trainer.train().global_step == 2


def test_pairs_that_come_too_late_for_reference_values_are_refused_with_the_reason(trainer_of):
    trainer = trainer_of(eval_dataset=make_pairs(4, [3], seed=5))
    assert trainer.evaluate()["eval_cross_entropy"] > 0
    said = r"no reference log-probabilities, which are computed when the trainer is made: .*eval_dataset"
    user_error(said, trainer.evaluate, make_pairs(4, [3], seed=6))


def test_a_run_of_few_steps_computes_the_reference_of_its_own_prompts_only(trainer_of):
    held_out = make_pairs(3, [3], seed=5)
    few = trainer_of(run={"max_steps": 1}, pairs_per_step=10, eval_dataset=held_out)
    (step,) = few.plan()
    known = [place for place, prompt in enumerate(few.prompts) if prompt.reference is not None]
    assert known == sorted(step) and 0 < len(known) < len(few.prompts) / 2
    assert all(prompt.reference is not None for prompt in few.eval_prompts)
    every = trainer_of(run={"max_steps": 100}, pairs_per_step=10)
    assert all(prompt.reference is not None for prompt in every.prompts)
    for trainer in (few, every):
        trainer.args.max_steps = 1
        trainer.train()
    for mine, theirs in zip(few.model.parameters(), every.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=0)  # Adam's first step is of the rate's size, .01


@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_a_trained_adapter_is_read_back(kind, train_tiny, dataset, tokenizer, tmp_path):
    """Of a policy the adapter alone is saved, of a reward model the whole."""
    base = save_model(tmp_path / "base", tiny_model(kind, tokenizer, size=32, layers=1), pad_is_eos(tokenizer))
    out = tmp_path / "out"
    result = train_tiny(kind, dataset, out, model=str(base), learning_rate=1e-2, max_steps=4, lora=4)
    assert result["steps"] == 4
    assert (out / "adapter_model.safetensors").is_file() == (kind == "policy") != (out / "model.safetensors").exists()
    if kind == "reward":
        saved = AutoModelForSequenceClassification.from_pretrained(out)
        assert saved.config.pad_token_id == AutoTokenizer.from_pretrained(out).pad_token_id
    measured = evaluate(kind, out, dataset, split="validation")
    assert measured["cross_entropy"] == pytest.approx(result["metrics"]["cross_entropy"], abs=1e-5)


def test_the_base_is_the_reference_of_an_adapter_that_is_not_zero(trainer_of, tokenizer):
    model = add_lora(tiny_model("policy", tokenizer, size=32, layers=1), 4, "policy")
    trainable = [name for name, value in model.named_parameters() if value.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)
    trainer = trainer_of(model=model)
    trainer.check_first_step(trainer.make_step(trainer.prompts))
    assert np.abs(trainer.predict_pairs(trainer.prompts)["z"]).max() < 1e-4  # a new adapter changes nothing
    trainer = trainer_of(model=with_random_adapter(model))
    with model.disable_adapter():
        assert np.abs(trainer.predict_pairs(trainer.prompts)["z"]).max() < 1e-4
    assert np.abs(trainer.predict_pairs(trainer.prompts)["z"]).max() > 0.01
    assert trainer.train().global_step == 2  # and the first step's check takes the base, not the adapter
    assert all(value.requires_grad for name, value in model.named_parameters() if "lora_" in name)


class FirstGradients(TrainerCallback):
    """Keeps the gradients of the first step."""

    def __init__(self):
        self.gradients = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        found = {name: None if v.grad is None else v.grad.clone() for name, v in model.named_parameters() if v.requires_grad}
        self.gradients = self.gradients or found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("lora", [None, 4])
@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_recomputing_activations_changes_no_gradient(kind, lora, trainer_of, tokenizer):
    """`segments` of packed batches go through the recomputed layers as a keyword; of a frozen embedding something must
    still ask for gradients, or an adapter below would get none.
    """
    kept, runs = (FirstGradients(), FirstGradients()), []
    for recomputed, keeper in zip((False, True), kept, strict=True):
        model = tiny_model(kind, tokenizer, size=32, layers=2)
        model = add_lora(model, lora, kind) if lora else model
        run = {"gradient_checkpointing": recomputed}
        trainer = trainer_of(kind, model, run, tokens_per_batch=200, callbacks=[keeper])
        assert trainer.execution_plan.layout == "packed"
        calls = []
        layer = trainer.model.get_decoder().layers[0] if not lora else trainer.model.get_base_model().model.layers[0]
        layer.self_attn.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        trainer.train()
        runs.append(len(calls))
    assert runs[1] > 1.5 * runs[0]  # recomputed
    plain, recomputed = (keeper.gradients for keeper in kept)
    assert plain.keys() == recomputed.keys()
    assert plain
    assert not any(value is None for value in [*plain.values(), *recomputed.values()])
    difference = sum(float(((plain[name] - recomputed[name]) ** 2).sum()) for name in plain) ** 0.5
    assert difference <= 1e-6 * sum(float((value**2).sum()) for value in plain.values()) ** 0.5


def test_a_part_that_is_recomputed_has_the_dropout_of_its_first_forward_pass(trainer_of, gpt2, monkeypatch):
    trainer = trainer_of(model=gpt2(), run={"max_steps": 1}, dropout=True, tokens_per_batch=60)
    step = trainer.make_step(trainer.prompts)
    first, passes = {}, {}
    plain = StepPasses._values

    def values(self, part):
        found = plain(self, part)
        (passes if torch.is_grad_enabled() else first).setdefault(id(part), []).append(found.detach())
        return found

    monkeypatch.setattr(StepPasses, "_values", values)
    trainer.create_optimizer()
    trainer.training_step(trainer.model, step)
    parts = [part for batch in step.batches if len(batch.parts) > 1 for part in batch.parts]
    assert len(parts) > 2
    for part in parts:
        assert torch.equal(first[id(part)][0], passes[id(part)][0])
    with torch.no_grad():  # and not because there were no masks
        again = trainer.values(trainer.model, parts[0])
    assert (again - first[id(parts[0])][0]).abs().max() > 1e-3


def test_the_epoch_is_the_share_of_the_data_seen_whatever_the_number_of_steps(trainer_of):
    epochs = {}
    for most in (0, 3, 9):
        trainer = trainer_of(run={"max_steps": most} if most else {"max_steps": None, "epochs": 2}, pairs_per_step=30)
        trainer.train()
        epochs[most] = trainer.state.log_history[-1]["epoch"]
        shares = sum(len(step) for step in trainer.plan()) / len(trainer.prompts)
        assert abs(epochs[most] - shares) < 0.3
    assert epochs[0] == 2


def test_measuring_lays_out_some_prompts_at_a_time(trainer_of, pairs, monkeypatch):
    trainer = trainer_of("reward", tokens_per_batch=200)
    whole, make, laid_out = trainer.predict_pairs(trainer.prompts), trainer.make_step, []
    monkeypatch.setattr(trainer, "make_step", lambda prompts: laid_out.append(len(prompts)) or make(prompts))
    again = trainer.predict_pairs(trainer.prompts, batches_at_once=1)
    assert sum(laid_out) == len(trainer.prompts)
    assert max(laid_out) < len(trainer.prompts) / 2
    assert (again["rows"] == np.arange(pairs.num_rows)).all()
    assert all(again[name] == pytest.approx(whole[name], abs=1e-6) for name in whole)
