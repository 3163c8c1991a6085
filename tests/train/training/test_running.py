"""Running: checkpointing, LoRA, early stopping, trackers, progress, displacement, and what launchers may ask for."""

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from mmpo.pipeline.errors import UserError
from mmpo.train.distributed import check_launch, check_splittable
from mmpo.train.model import add_lora, tiny_model
from mmpo.train.options import TrainOptions
from mmpo.train.training import PolicyTrainer, RewardTrainer, train_reward, training_arguments

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}
TRAINERS = {"policy": PolicyTrainer, "reward": RewardTrainer}


def options(kind, data, out, **changes):
    defaults = {"epochs": 2, "pairs_per_step": 10, "tiny_size": 16, "tiny_layers": 1, "tiny_vocab": 400}
    return TrainOptions(kind, data=str(data), out=str(out), **{**defaults, **changes})


def trainer_of(kind, pairs, tokenizer, path, *, lora=None, callbacks=None, loss="mmpo", model=None, **changes):
    model = model or tiny_model(kind, tokenizer, size=32, layers=2)
    model = add_lora(model, lora, kind) if lora else model
    args = training_arguments(TrainOptions(kind, out=str(path), **{"max_steps": 2, "learning_rate": 1e-2, **changes}))
    tokens = {"gamma": 1.0, "tokens_per_batch": 200, "callbacks": callbacks or [], "loss": loss}
    return TRAINERS[kind](model, args, pairs, processing_class=tokenizer, **tokens)


class Kept(TrainerCallback):
    """Keeps the gradients of the first step and everything that is logged."""

    def __init__(self):
        self.gradients, self.logs = {}, []

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        found = {name: None if v.grad is None else v.grad.clone() for name, v in model.named_parameters() if v.requires_grad}
        self.gradients = self.gradients or found

    def on_log(self, args, state, control, logs=None, **_):
        self.logs.append(dict(logs))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("lora", [None, 4])
@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_checkpointing_changes_no_gradient(kind, lora, pairs, tokenizer, tmp_path):
    """`segments` of packed batches go through the recomputed layers as a keyword; of a frozen embedding something must
    still ask for gradients, or an adapter below would get none.
    """
    kept, runs = (Kept(), Kept()), []
    for checkpointing, keeper in zip((False, True), kept, strict=True):
        trainer = trainer_of(kind, pairs, tokenizer, tmp_path, lora=lora, callbacks=[keeper], gradient_checkpointing=checkpointing)
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


def test_the_base_is_the_reference_of_an_adapter_that_is_not_zero(pairs, tokenizer, tmp_path):
    model = add_lora(tiny_model("policy", tokenizer, size=32, layers=1), 4, "policy")
    trainer = trainer_of("policy", pairs, tokenizer, tmp_path, model=model)
    assert np.abs(trainer.predict_pairs(trainer.prompts)["z"]).max() < 1e-4  # a new adapter changes nothing
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(generator=torch.Generator().manual_seed(0))
    trainer = trainer_of("policy", pairs, tokenizer, tmp_path, model=model)
    with model.disable_adapter():
        assert np.abs(trainer.predict_pairs(trainer.prompts)["z"]).max() < 1e-4
    before = trainer.predict_pairs(trainer.prompts)["z"]
    assert np.abs(before).max() > 0.01
    assert trainer.train().global_step == 2  # and the first step's check takes the base, not the adapter
    assert all(value.requires_grad for name, value in model.named_parameters() if "lora_" in name)


def test_measuring_lays_out_some_prompts_at_a_time(pairs, tokenizer, tmp_path, monkeypatch):
    trainer = trainer_of("reward", pairs, tokenizer, tmp_path)
    whole, make, laid_out = trainer.predict_pairs(trainer.prompts), trainer.make_step, []
    monkeypatch.setattr(trainer, "make_step", lambda prompts: laid_out.append(len(prompts)) or make(prompts))
    again = trainer.predict_pairs(trainer.prompts, batches_at_once=1)
    assert sum(laid_out) == len(trainer.prompts)
    assert max(laid_out) < len(trainer.prompts) / 2
    assert (again["rows"] == np.arange(pairs.num_rows)).all()
    assert all(again[name] == pytest.approx(whole[name], abs=1e-6) for name in whole)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed is not supported"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "data parallelism or FSDP"),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, "mixed_precision fp16"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "give --bf16 too"),
        ({"ACCELERATE_USE_FSDP": "true"}, "fsdp_version is 1; training needs 2"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "needs full_state_dict"),
        ({**FSDP, "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, "fsdp_cpu_ram_efficient_loading is true; training needs false"),
    ],
)
def test_launchers_that_ask_for_what_is_not_exact_are_refused(environment, said, monkeypatch, dataset, tmp_path):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as refusal:
        train_reward(options("reward", dataset, tmp_path / "out"))
    assert said in str(refusal.value)
    if "bf16" in said:
        check_launch(bf16=True)


def test_what_fsdp_can_not_split_is_refused(tokenizer, monkeypatch, dataset, tmp_path):
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    check_splittable(tiny_model("reward", tokenizer, size=16, layers=1))
    with pytest.raises(UserError, match=r"embeddings lie in the block bert\.embeddings"):
        check_splittable(BertForSequenceClassification(BertConfig(vocab_size=99, **sizes)))
    for name, value in FSDP.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="LoRA adapter is merged"):
        train_reward(options("reward", dataset, tmp_path / "out", lora=2))
