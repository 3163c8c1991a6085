"""Whole runs from a dataset folder: what they return and write, how they may end early, what is shown, what is refused."""

import os
import signal

import pytest
from folders import split_folder
from training_cases import AtStep, make_pairs, user_error
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from mmpo.train.evaluation import evaluate
from mmpo.train.training import Displacement, Throughput, TrainingProgress, displacement_of, fallen

OVERSHOOTING = {"learning_rate": 0.02, "epochs": 40, "eval_steps": 2, "schedule": "constant"}
"""The eval loss falls, then grows."""


@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_a_run_stopped_at_any_step_and_resumed_gives_the_very_same_model(
    kind, train_tiny, record_of, same_weights, dataset, tmp_path
):
    """It dies in the middle of step 7; the last checkpoint is that of step 4."""
    usual = {"epochs": 2, "save_steps": 4}
    whole = train_tiny(kind, dataset, tmp_path / "whole", **usual)
    with pytest.raises(ZeroDivisionError):
        train_tiny(kind, dataset, tmp_path / "stopped", [AtStep(6, lambda: 1 / 0)], **usual)
    assert (tmp_path / "stopped" / "checkpoint-4").is_dir()
    (tmp_path / "stopped" / "checkpoint-6").mkdir()  # a half-written one must not be trusted
    resumed = train_tiny(kind, dataset, tmp_path / "stopped", **usual)
    assert same_weights(kind, tmp_path / "whole", tmp_path / "stopped")
    assert record_of(tmp_path / "whole")["history"] == record_of(tmp_path / "stopped")["history"]
    assert {**whole, "out": ""} == {**resumed, "out": ""}


def test_ctrl_c_leaves_a_checkpoint_and_the_same_command_goes_on(train_tiny, record_of, same_weights, dataset, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train_tiny("reward", dataset, tmp_path / "out", [AtStep(2, lambda: os.kill(os.getpid(), signal.SIGINT))])
    assert (tmp_path / "out" / "checkpoint-3" / "trainer_state.json").is_file()
    assert record_of(tmp_path / "out")["finished"] is False
    for name in ("out", "whole"):
        train_tiny("reward", dataset, tmp_path / name)
    assert same_weights("reward", tmp_path / "whole", tmp_path / "out")


def test_a_signal_that_is_ignored_stays_so(train_tiny, dataset, tmp_path):
    """As Ctrl-C is in the background of a script."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        whole = train_tiny(
            "reward", dataset, tmp_path / "out", [AtStep(2, lambda: os.kill(os.getpid(), signal.SIGINT))], max_steps=4
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert whole["steps"] == 4


@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_what_a_run_returns_and_writes(kind, train_tiny, record_of, dataset, tmp_path, capsys):
    result = train_tiny(kind, dataset, tmp_path / "out", epochs=8, learning_rate=3e-3)
    assert set(result) == {"out", "steps", "train_loss", "gamma", "metrics", "metrics_95"} | (
        {"displacement"} if kind == "policy" else set()
    )
    assert result["metrics"]["accuracy"] > 0.75
    assert capsys.readouterr().out == ""  # standard output belongs to --json
    record = record_of(tmp_path / "out")
    assert record["finished"] is True
    assert record["gamma"] == result["gamma"] > 0
    assert record["options"]["loss"] == "mmpo"
    head = "linear" if kind == "policy" else "whole"
    assert record["way"] == {"layout": "packed", "attention": "segments", "head": head, "reason": ""}
    assert record["counts"]["pairs_in"] == record["counts"]["pairs"]
    history = record["history"]
    assert len(history["steps"]) == len(history["loss"]) == result["steps"]
    assert history["loss"][-1] < history["loss"][0]
    assert record["evaluations"][-1]["step"] == result["steps"]
    assert train_tiny(kind, dataset, tmp_path / "out", epochs=8, learning_rate=3e-3) == result
    if kind == "policy":
        assert {"logps/chosen", "logps/rejected", "rewards/margins", "rewards/accuracy"} <= set(history)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "/no/such/place"}, "no dataset at"),
        ({"model": "/no/such/model"}, "cannot load"),
        ({"loss": "cdpo", "loss_options": {"epsilon": 0.7}}, "epsilon"),
        ({"loss": "cdpo", "loss_options": {"epsilom": 0.1}}, "epsilon"),
        ({"loss": "rpo-sq", "gamma": float("inf")}, "finite gamma"),
        ({"max_prompt_length": 2}, "longer than --max-prompt-length 2: they have 13"),
        ({"out": ""}, "output folder"),
        ({"report_to": "tensorbord"}, "did you mean 'tensorboard'.*; installed here: "),
        ({"report_to": "dvclive"}, r"dvclive is not installed \(pip install dvclive\); installed here: "),
    ],
)
def test_bad_input_leaves_nothing_behind(changes, message, train_tiny, dataset, tmp_path):
    values = {"data": dataset, "out": tmp_path / "out", **changes}
    user_error(message, train_tiny, "reward", **values)
    assert not (tmp_path / "out").exists()


def test_splits_that_are_not_there(train_tiny, tiny_options, tmp_path):
    held_out, data = (split_folder(tmp_path / name, **{name: make_pairs(3, [3])}) for name in ("validation", "train"))
    assert "it has: validation" in user_error("", train_tiny, "reward", held_out, tmp_path / "out")
    assert "has no split 'validation'" in user_error("", train_tiny, "reward", data, tmp_path / "out", early_stopping=2)
    assert "give eval_split" in user_error("", tiny_options, "reward", early_stopping=2, eval_split=None)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("changes", [
    {"loss": "ipo", "target": "noise-aware", "bf16": True},
    {"weight": "prompt", "loss": "mmpo=1,sft=0.1", "source_weights": {"source-0": 2.0}, "gradient_checkpointing": True},
], ids=str)  # fmt: skip
def test_variants_run(changes, train_tiny, dataset, tmp_path):
    assert train_tiny("policy", dataset, tmp_path / "out", max_steps=3, **changes)["steps"] == 3


def test_early_stopping_keeps_the_best_model(train_tiny, record_of, same_weights, dataset, tmp_path):
    out = tmp_path / "out"
    result = train_tiny("reward", dataset, out, save_steps=3, early_stopping=3, **OVERSHOOTING)
    losses = {one["step"]: one["loss"] for one in record_of(out)["evaluations"]}
    best = min(losses, key=lambda step: losses[step])
    assert result["best_step"] == best < result["steps"] == best + 6  # three evaluations later
    assert result["metrics"]["loss"] == losses[best]
    assert same_weights("reward", out, out / f"checkpoint-{best}")
    assert evaluate("reward", out, dataset, split="validation")["cross_entropy"] == pytest.approx(losses[best], abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"max_steps": 5, "eval_steps": 2}, [2, 4, 5]),
        ({"max_steps": 4, "eval_steps": 2}, [2, 4]),
        ({"max_steps": 3, "eval_steps": 100, "save_steps": 100}, [3]),
        ({**OVERSHOOTING, "early_stopping": 2}, None),
    ],
)
def test_the_last_step_is_measured(changes, steps, train_tiny, record_of, dataset, unfinished, tmp_path):
    """Also where a run was killed behind its last checkpoint and does nothing but write its model when it goes on."""
    out = tmp_path / "out"
    summary, record = train_tiny("reward", dataset, out, **changes), record_of(out)
    measured = [one["step"] for one in record["evaluations"]]
    assert measured[-1] == summary["steps"]
    assert measured == steps if steps else summary["steps"] < 100  # it ended early
    unfinished(out)
    (out / "model.safetensors").rename(tmp_path / "model.safetensors")
    assert train_tiny("reward", dataset, out, **changes) == summary
    assert record_of(out)["evaluations"] == record["evaluations"]
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_trackers_get_the_metrics_and_the_speed(train_tiny, record_of, dataset, tmp_path, monkeypatch):
    logs = []

    class Notebook(TrainerCallback):
        def on_log(self, args, state, control, logs=logs, **named):
            seen.append(dict(logs))

    seen = []
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "notebook", Notebook)  # as transformers lets trackers be added
    train_tiny("policy", dataset, tmp_path / "out", report_to="notebook", logging_steps=4, max_steps=8)
    training = [entry for entry in seen if "loss" in entry]
    assert len(training) > 1
    assert "rewards/accuracy" not in training[0]  # of the first step, in which every z is 0
    assert "rewards/accuracy" in training[-1]
    wanted = {"logps/chosen", "logps/rejected", "rewards/margins", "grad_norm"}
    assert all(wanted | {"tokens_per_second", "pairs_per_second"} <= entry.keys() for entry in training)
    assert any({"eval_logps/chosen", "eval_logps/rejected", "eval_loss"} <= entry.keys() for entry in seen)
    history = record_of(tmp_path / "out")["history"]
    assert {4, 8} <= set(history["steps"]) < set(range(1, 9))
    assert "tokens_per_second" not in history  # another one in every run


def test_progress_shows_how_fast_and_how_long_on_standard_error(train_tiny, dataset, tmp_path, capsys):
    train_tiny("policy", dataset, tmp_path / "out", [TrainingProgress("every step", seconds=0.0)], max_steps=6)
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("every step: ") and ", loss " in line]
    assert all(any(f"{step} of 6 steps" in line for line in lines) for step in range(1, 7))
    for part in ("tokens/s", "pairs/s", "logps/chosen", "logps/rejected", "rewards/accuracy"):
        assert all(part in line for line in lines), part
    assert " left" in err
    assert any("eval_logps/chosen" in line for line in lines)
    assert err.splitlines()[-1].startswith("trained 6 steps, ")


def test_throughput_counts_steps_and_not_what_lies_between():
    throughput = Throughput()
    throughput.add(tokens=1000, pairs=10)
    throughput.add(tokens=500, pairs=5)
    throughput.seconds = 3.0
    assert throughput.rates() == {"tokens_per_second": 500.0, "pairs_per_second": 5.0}
    assert throughput.rates() == {}  # nothing since


def means(chosen, rejected, before=-100.0, prefix=""):
    """The logged metrics after falls of so many nats, at beta .1."""
    falls = {"chosen": chosen, "rejected": rejected}
    logps = {f"{prefix}logps/{side}": before - fall for side, fall in falls.items()}
    return logps | {f"{prefix}rewards/{side}": -0.1 * fall for side, fall in falls.items()}


@pytest.mark.parametrize(
    ("chosen", "rejected", "before", "expected"),
    [
        (6, 20, -100, True), (4, 20, -100, False), (6, 4, -100, False), (-3, 20, -100, False), (0, 0, -100, False),  # 5%
        (0.9, 5.0, -8, False), (1.1, 5.0, -8, True),  # and a nat at least
    ],
)  # fmt: skip
def test_both_must_fall_by_a_clear_margin(chosen, rejected, before, expected):
    assert fallen(means(chosen, rejected, before), beta=0.1) is expected


def test_displacement_is_reported_once_and_kept_with_its_trend(train_tiny, dataset, tmp_path, capsys):
    """gamma infinite and a large step: DPO drives both down."""
    pushed = {"gamma": float("inf"), "learning_rate": 0.05, "epochs": 6, "schedule": "constant", "max_grad_norm": 0.0}
    result = train_tiny("policy", dataset, tmp_path / "out", **pushed)
    found = result["displacement"]
    assert set(found) == {"training", "held_out"}
    assert found["training"]["fallen"] is found["held_out"]["fallen"] is True
    last, first = found["held_out"]["last"], found["held_out"]["first"]
    assert last["logratio_chosen"] < -1
    assert last["logratio_rejected"] < first["logratio_rejected"]
    assert last["logps_chosen"] == result["metrics"]["logps/chosen"]
    assert last["logratio_rejected"] == pytest.approx(result["metrics"]["rewards/rejected"] / 0.1)
    err = capsys.readouterr().err
    assert err.count("likelihood displacement") == 1
    assert "--loss mmpo=1,sft=0.1" in err
    calm = train_tiny("policy", dataset, tmp_path / "calm", epochs=2, learning_rate=1e-6)
    assert not any(part["fallen"] for part in calm["displacement"].values())
    assert "likelihood displacement" not in capsys.readouterr().err
    assert displacement_of([{"step": 1, "loss": 0.7}], beta=0.1) == {}  # nothing was measured


LOOKUPS = []


class Entry(dict):
    """A log entry that notes when something is looked up in it."""

    def __contains__(self, key):
        LOOKUPS.append(key)
        return super().__contains__(key)


def fall(nats, prefix=""):
    return Entry(means(nats, nats, prefix=prefix))


@pytest.mark.parametrize(
    ("entries", "reported"),
    [
        # ½, 1½, 2½, ...: the mean of five passes 5 nats where they are 3½ to 7½, at 5½; one before it is 4½
        ([fall(nats + 0.5) for nats in range(12)], [7]),
        ([one for nats in range(12) for one in (fall(nats + 0.5), Entry({"eval_runtime": 1.0}))], [14]),  # no such metrics
        ([fall(50)] * 4, []),  # too few
        ([fall(0), fall(3, "eval_"), fall(6, "eval_"), fall(7, "eval_")], [2]),  # of held-out pairs one is enough
        ([fall(0) for _ in range(400)], []),
    ],
)
def test_displacement_is_reported_as_soon_as_the_newest_entries_show_it(entries, reported, capsys):
    """And without reading the whole log at every entry."""
    from transformers import TrainerControl, TrainerState

    LOOKUPS.clear()
    state, callback, places = TrainerState(log_history=[]), Displacement(0.1), []
    for place, entry in enumerate(entries):
        state.log_history.append(entry)
        callback.on_log(None, state, TrainerControl())
        places += [place] * capsys.readouterr().err.count("likelihood displacement")
    assert places == reported
    assert len(LOOKUPS) <= len(entries) * (1 + 5 * 4)
