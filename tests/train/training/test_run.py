"""Whole runs from a dataset folder: what they return and write, going on after a stop, and folders that are refused."""

import json
import os
import signal

import pytest
import torch

import mmpo.train.training.run as run_module
from mmpo.pipeline.errors import UserError
from mmpo.train.model import load_pretrained
from mmpo.train.options import TrainOptions
from mmpo.train.training.progress import Progress
from mmpo.train.training.run import train_policy, train_reward

RUN = {"policy": train_policy, "reward": train_reward}


def options(kind, data, out, **changes):
    defaults = {"epochs": 2, "pairs_per_step": 10, "tiny_size": 16, "tiny_layers": 1, "tiny_vocab": 400, "save_steps": 4}
    return TrainOptions(kind, data=str(data), out=str(out), **{**defaults, **changes})


def weights(kind, folder):
    return load_pretrained(kind, str(folder))[0].state_dict()


@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_a_run_stopped_at_any_step_and_resumed_gives_the_very_same_model(kind, dataset, tmp_path, monkeypatch):
    whole = RUN[kind](options(kind, dataset, tmp_path / "whole"))

    class Crash(Progress):
        """Dies in the middle of step 7; the last checkpoint is that of step 4."""

        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 6:
                raise ConnectionError("the lights went out")

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "Progress", Crash)
        with pytest.raises(ConnectionError):
            RUN[kind](options(kind, dataset, tmp_path / "stopped"))
    assert (tmp_path / "stopped" / "checkpoint-4").is_dir()
    (tmp_path / "stopped" / "checkpoint-6").mkdir()  # a half-written one must not be trusted
    resumed = RUN[kind](options(kind, dataset, tmp_path / "stopped"))
    before, after = weights(kind, tmp_path / "whole"), weights(kind, tmp_path / "stopped")
    assert all(torch.equal(before[name], after[name]) for name in before)
    records = [json.loads((tmp_path / name / "mmpo.json").read_text()) for name in ("whole", "stopped")]
    assert records[0]["history"] == records[1]["history"]
    assert {**whole, "out": ""} == {**resumed, "out": ""}


@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_what_a_run_returns_and_writes(kind, dataset, tmp_path, capsys):
    result = RUN[kind](options(kind, dataset, tmp_path / "out", epochs=8, learning_rate=3e-3))
    assert set(result) == {"out", "steps", "train_loss", "gamma", "metrics"} | ({"displacement"} if kind == "policy" else set())
    assert result["metrics"]["accuracy"] > 0.75
    assert capsys.readouterr().out == ""  # standard output belongs to --json
    record = json.loads((tmp_path / "out" / "mmpo.json").read_text())
    assert record["finished"] is True
    assert record["gamma"] == result["gamma"] > 0
    assert record["options"]["loss"] == "mmpo"
    assert record["way"] == {
        "layout": "packed",
        "attention": "segments",
        "head": "linear" if kind == "policy" else "whole",
        "reason": "",
    }
    assert record["counts"]["pairs_in"] == record["counts"]["pairs"]
    assert len(record["history"]["steps"]) == len(record["history"]["loss"]) == result["steps"]
    assert record["history"]["loss"][-1] < record["history"]["loss"][0]
    assert record["evaluations"][-1]["step"] == result["steps"]
    again = RUN[kind](options(kind, dataset, tmp_path / "out", epochs=8, learning_rate=3e-3))
    assert again == result
    if kind == "policy":
        assert {"logps/chosen", "logps/rejected", "rewards/margins", "rewards/accuracy"} <= set(record["history"])


def test_ctrl_c_leaves_a_checkpoint_and_the_same_command_goes_on(dataset, tmp_path, monkeypatch):
    class Interrupt(Progress):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 2:
                os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "Progress", Interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_reward(options("reward", dataset, tmp_path / "out"))
    assert (tmp_path / "out" / "checkpoint-3" / "trainer_state.json").is_file()
    assert json.loads((tmp_path / "out" / "mmpo.json").read_text())["finished"] is False
    train_reward(options("reward", dataset, tmp_path / "out"))
    train_reward(options("reward", dataset, tmp_path / "whole"))
    before, after = weights("reward", tmp_path / "whole"), weights("reward", tmp_path / "out")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_folders_that_are_not_this_run_are_refused(dataset, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="something else"):
        train_reward(options("reward", dataset, tmp_path / "taken", resume=False))
    assert (tmp_path / "taken" / "thesis.tex").read_text() == "years of work"
    train_reward(options("reward", dataset, tmp_path / "out", max_steps=2))
    with pytest.raises(UserError, match=r"loss 'mmpo' -> 'dpo'"):
        train_reward(options("reward", dataset, tmp_path / "out", max_steps=2, loss="dpo"))
    (tmp_path / "out" / "notes.txt").write_text("mine")
    result = train_reward(options("reward", dataset, tmp_path / "out", max_steps=3, loss="dpo", resume=False))
    assert result["steps"] == 3
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": "/no/such/place"}, "no dataset at"),
        ({"model": "/no/such/model"}, "cannot load"),
        ({"loss": "cdpo", "loss_options": {"epsilon": 0.7}}, "epsilon"),
        ({"loss": "cdpo", "loss_options": {"epsilom": 0.1}}, "epsilon"),
        ({"loss": "rpo-sq", "gamma": float("inf")}, "finite gamma"),
        ({"max_prompt_length": 2}, "prompt_too_long"),
        ({"out": ""}, "output folder"),
    ],
)
def test_bad_input_leaves_nothing_behind(changes, said, dataset, tmp_path):
    values = {"data": str(dataset), "out": str(tmp_path / "out"), **changes}
    with pytest.raises(UserError, match=said):
        train_reward(options("reward", values.pop("data"), values.pop("out"), **values))
    assert not (tmp_path / "out").exists()


def test_a_dataset_without_that_split_says_what_it_has(pairs_of, folder_of, tmp_path):
    folder = folder_of(tmp_path / "data", validation=pairs_of(3, [3]))
    with pytest.raises(UserError, match="it has: validation"):
        train_reward(options("reward", folder, tmp_path / "out"))


def test_ties_train_soft_targets_and_are_left_out_of_hard_ones(pairs_of, folder_of, tmp_path):
    table = pairs_of(6, [7])  # grades repeat after five completions: two ties a prompt
    folder = folder_of(tmp_path / "data", train=table)
    counts = {}
    for name, changes in (("soft", {}), ("hard", {"loss": "dpo"}), ("dropped", {"ties": "drop"})):
        train_reward(options("reward", folder, tmp_path / name, max_steps=1, **changes))
        counts[name] = json.loads((tmp_path / name / "mmpo.json").read_text())["counts"]
    assert counts["soft"] == {"pairs_in": 126, "pairs": 126, "prompts": 6}
    assert counts["hard"] == counts["dropped"] == {"pairs_in": 126, "dropped_ties": 12, "pairs": 114, "prompts": 6}


VARIANTS = [
    {"loss": "ipo"},
    {"target": "noise-aware"},
    {"weight": "prompt", "loss": "mmpo=1,sft=0.1", "source_weights": {"source-0": 2.0}},
    {"bf16": True},
    {"gradient_checkpointing": True},
    {"gamma": float("inf")},
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_variants_run(changes, dataset, tmp_path):
    result = train_policy(options("policy", dataset, tmp_path / "out", max_steps=3, **changes))
    assert result["steps"] == 3


def test_reference_values_are_computed_once_and_found_again(dataset, unfinished, tmp_path, monkeypatch):
    train_policy(options("policy", dataset, tmp_path / "out", max_steps=2))
    monkeypatch.setattr("mmpo.train.inference.reference.completion_logprobs", lambda model, prompts, **_: [1 / 0 for _ in prompts])
    unfinished(tmp_path / "out")
    assert train_policy(options("policy", dataset, tmp_path / "out", max_steps=2))["steps"] == 2
