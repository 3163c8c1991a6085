"""Running: checkpointing, LoRA, early stopping, trackers, progress, displacement, and what launchers may ask for."""

import json

import numpy as np
import pytest
import torch
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from mmpo.pipeline.errors import UserError
from mmpo.train.launch import check_launch, check_splittable
from mmpo.train.model import add_lora, load_pretrained, tiny_model
from mmpo.train.options import TrainOptions
from mmpo.train.training.arguments import training_arguments
from mmpo.train.training.displacement import Displacement, displacement_of, fallen
from mmpo.train.training.policy import PolicyTrainer
from mmpo.train.training.progress import Pace, Progress
from mmpo.train.training.reward import RewardTrainer
from mmpo.train.training.run import train_policy, train_reward

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
    monkeypatch.setattr("mmpo.train.training.measuring._CHUNK", 1)
    monkeypatch.setattr(trainer, "make_step", lambda prompts: laid_out.append(len(prompts)) or make(prompts))
    again = trainer.predict_pairs(trainer.prompts)
    assert sum(laid_out) == len(trainer.prompts)
    assert max(laid_out) < len(trainer.prompts) / 2
    assert (again["rows"] == np.arange(pairs.num_rows)).all()
    assert all(again[name] == pytest.approx(whole[name], abs=1e-6) for name in whole)


def test_early_stopping_keeps_the_best_model(dataset, tmp_path):
    """A learning rate that overshoots: the eval loss falls, then grows."""
    wild = {"learning_rate": 0.02, "epochs": 40, "eval_steps": 2, "save_steps": 3, "early_stopping": 3, "schedule": "constant"}
    result = train_reward(options("reward", dataset, tmp_path / "out", **wild))
    record = json.loads((tmp_path / "out" / "mmpo.json").read_text())
    losses = {one["step"]: one["loss"] for one in record["evaluations"]}
    best = min(losses, key=lambda step: losses[step])
    assert result["best_step"] == best < result["steps"] == best + 6  # three evaluations later
    assert result["metrics"]["loss"] == losses[best]
    assert (tmp_path / "out" / f"checkpoint-{best}").is_dir()
    kept, saved = (
        load_pretrained("reward", str(p))[0].state_dict() for p in (tmp_path / "out", tmp_path / "out" / f"checkpoint-{best}")
    )
    assert all(torch.equal(kept[name], saved[name]) for name in kept)
    from mmpo.train.evaluation.evaluate import evaluate

    measured = evaluate("reward", tmp_path / "out", dataset, split="validation")
    assert measured["cross_entropy"] == pytest.approx(losses[best], abs=1e-5)


def test_a_run_that_was_killed_after_it_had_stopped_early_ends_there(dataset, unfinished, tmp_path):
    wild = {"learning_rate": 0.02, "epochs": 40, "eval_steps": 2, "early_stopping": 2, "schedule": "constant"}
    result = train_reward(options("reward", dataset, tmp_path / "out", **wild))
    first = load_pretrained("reward", str(tmp_path / "out"))[0].state_dict()
    unfinished(tmp_path / "out")
    (tmp_path / "out" / "model.safetensors").unlink()
    assert train_reward(options("reward", dataset, tmp_path / "out", **wild)) == result
    again = load_pretrained("reward", str(tmp_path / "out"))[0].state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_early_stopping_needs_something_to_measure(pairs_of, folder_of, tmp_path):
    folder = folder_of(tmp_path / "data", train=pairs_of(3, [3]))
    with pytest.raises(UserError, match="has no split 'validation'"):
        train_reward(options("reward", folder, tmp_path / "out", early_stopping=2))
    with pytest.raises(UserError, match="give eval_split"):
        options("reward", folder, tmp_path / "out", early_stopping=2, eval_split=None)


def test_trackers_that_are_unknown_or_not_installed_are_refused_before_any_work(dataset, tmp_path):
    for name, said in (("tensorbord", "did you mean 'tensorboard'"), ("dvclive", "dvclive is not installed (pip install dvclive)")):
        with pytest.raises(UserError) as refusal:
            train_reward(options("reward", dataset, tmp_path / "out", report_to=name))
        assert said in str(refusal.value)
        assert "installed here: " in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_trackers_get_the_figures_and_the_speed(dataset, tmp_path, monkeypatch):
    seen = []

    class Notebook(Kept):
        def __init__(self):
            super().__init__()
            seen.append(self)

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "notebook", Notebook)  # as transformers lets trackers be added
    train_policy(options("policy", dataset, tmp_path / "out", report_to="notebook", logging_steps=4, max_steps=8))
    training = [entry for entry in seen[0].logs if "loss" in entry]
    assert len(training) > 1
    wanted = {
        "logps/chosen",
        "logps/rejected",
        "rewards/accuracy",
        "rewards/margins",
        "grad_norm",
        "tokens_per_second",
        "pairs_per_second",
    }
    assert all(wanted <= entry.keys() for entry in training)
    assert any({"eval_logps/chosen", "eval_logps/rejected", "eval_loss"} <= entry.keys() for entry in seen[0].logs)
    history = json.loads((tmp_path / "out" / "mmpo.json").read_text())["history"]
    assert {4, 8} <= set(history["steps"]) < set(range(1, 9))
    assert "tokens_per_second" not in history  # another one in every run


def test_logging_is_free_to_change_on_resumption(dataset, unfinished, tmp_path):
    stopped = options("reward", dataset, tmp_path / "out", max_steps=4, logging_steps=1, save_steps=2)
    train_reward(stopped)
    unfinished(tmp_path / "out")
    changes = {"logging_steps": 2, "save_steps": 3, "report_to": "none", "reference_cache": str(tmp_path)}
    assert train_reward(options("reward", dataset, tmp_path / "out", max_steps=4, **changes))["steps"] == 4


def test_progress_says_how_fast_and_how_long_on_standard_error(dataset, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mmpo.train.training.run.Progress", lambda title: Progress(title, seconds=0.0))
    train_policy(options("policy", dataset, tmp_path / "out", max_steps=6))
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("policy mmpo  step ")]
    assert [line.split()[3] for line in lines if "  loss " in line] == [f"{step}/6" for step in range(1, 7)]
    for part in ("tokens/s", "pairs/s", " left", "logps/chosen", "logps/rejected", "rewards/accuracy"):
        assert all(part in line for line in lines if "  loss " in line), part
    assert any("eval_logps/chosen" in line for line in lines)
    assert err.splitlines()[-1].startswith("trained 6 steps, ")


def test_the_pace_counts_steps_and_not_what_lies_between():
    pace = Pace()
    pace.start()
    pace.add(tokens=1000, pairs=10)
    pace.add(tokens=500, pairs=5)
    pace.seconds = 3.0
    assert pace.rates() == {"tokens_per_second": 500.0, "pairs_per_second": 5.0}
    assert pace.rates() == {}  # nothing since


def means(chosen, rejected, beta=0.1, before=(-100.0, -100.0)):
    """The logged figures after falls of so many nats."""
    falls = {"chosen": (before[0], chosen), "rejected": (before[1], rejected)}
    logps = {f"logps/{side}": start - fall for side, (start, fall) in falls.items()}
    return logps | {f"rewards/{side}": -beta * fall for side, (_, fall) in falls.items()}


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [(6, 20, True), (4, 20, False), (6, 4, False), (-3, 20, False), (0, 0, False)],  # 5% of 100 nats
)
def test_both_must_fall_by_a_clear_margin(chosen, rejected, expected):
    assert fallen(means(chosen, rejected), beta=0.1) is expected


def test_a_nat_is_the_least_that_counts():
    short = (-8.0, -8.0)
    assert not fallen(means(0.9, 5.0, before=short), beta=0.1)
    assert fallen(means(1.1, 5.0, before=short), beta=0.1)


def test_displacement_is_said_once_and_kept_with_its_trend(dataset, tmp_path, capsys):
    """gamma infinite and a large step: DPO drives both down."""
    pushed = {"gamma": float("inf"), "learning_rate": 0.05, "epochs": 6, "schedule": "constant", "max_grad_norm": 0.0}
    result = train_policy(options("policy", dataset, tmp_path / "out", **pushed))
    found = result["displacement"]
    assert set(found) == {"training", "held_out"}
    assert found["training"]["fallen"] is found["held_out"]["fallen"] is True
    last, first = found["held_out"]["last"], found["held_out"]["first"]
    assert last["logratio_chosen"] < -1
    assert last["logratio_rejected"] < first["logratio_rejected"]
    evaluation = result["metrics"]
    assert last["logps_chosen"] == evaluation["logps/chosen"]
    assert last["logratio_rejected"] == pytest.approx(evaluation["rewards/rejected"] / 0.1)
    err = capsys.readouterr().err
    assert err.count("likelihood displacement") == 1
    assert "--loss mmpo=1,sft=0.1" in err
    calm = train_policy(options("policy", dataset, tmp_path / "calm", learning_rate=1e-6))
    assert not any(part["fallen"] for part in calm["displacement"].values())
    assert "likelihood displacement" not in capsys.readouterr().err


def test_without_measurements_there_is_no_trend():
    assert displacement_of([{"step": 1, "loss": 0.7}], beta=0.1) == {}
    assert Displacement(0.1).warned is False


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
