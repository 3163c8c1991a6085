"""A run that has ended goes on to more steps as one that was asked for all of them from the start, but for what it says."""

import json
import shutil

import pytest
from training_cases import user_error
from transformers import TrainerState

from mmpo.train.training import train_reward

pytestmark = pytest.mark.usefixtures("fresh_cache")
SHORT = {"max_steps": 4, "learning_rate": 1e-2, "eval_split": None, "logging_steps": 1}


def rates(out, step: int) -> dict[int, float]:
    """The learning rate of every step, from a checkpoint's log."""
    log = TrainerState.load_from_json(str(out / f"checkpoint-{step}" / "trainer_state.json")).log_history
    return {entry["step"]: entry["learning_rate"] for entry in log if "learning_rate" in entry}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("reward", {}),
        ("policy", {}),
        ("reward", {"loss": "ordinal"}),
        ("reward", {"max_steps": None, "epochs": 0.5}),
        ("policy", {"dropout": True}),
    ],
    ids=str,
)
def test_with_a_constant_rate_the_bits_are_those_of_the_longer_run(
    kind, changes, train_tiny, same_weights, record_of, dataset, tmp_path, capsys
):
    how = {**SHORT, "schedule": "constant", "pairs_per_step": 4, **changes}
    done = train_tiny(kind, dataset, tmp_path / "short", **how)["steps"]
    going_on = train_tiny(kind, dataset, tmp_path / "short", more_steps=12, **how)
    said = capsys.readouterr().err
    assert (
        f"goes on behind step {done}, to {done + 12}" in said
        and "and so is the learning rate" in said
        and "which the result shows" not in said
    )
    at_once = train_tiny(kind, dataset, tmp_path / "long", more_steps=12, **how)
    assert going_on["steps"] == at_once["steps"] == done + 12
    assert same_weights(kind, tmp_path / "short", tmp_path / "long")
    assert record_of(tmp_path / "short")["history"] == record_of(tmp_path / "long")["history"]


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_from_where_it_goes_on_the_rate_is_that_of_the_longer_run(schedule, train_tiny, dataset, tmp_path, capsys):
    how = {**SHORT, "schedule": schedule, "warmup_ratio": 0.25}
    train_tiny("reward", dataset, tmp_path / "short", **how)
    short = rates(tmp_path / "short", 4)
    train_tiny("reward", dataset, tmp_path / "short", more_steps=4, **how)
    assert "the first 4 steps had that of the shorter run" in capsys.readouterr().err
    train_tiny("reward", dataset, tmp_path / "long", **how | {"max_steps": 8})
    both, long = rates(tmp_path / "short", 8), rates(tmp_path / "long", 8)
    assert {step: both[step] for step in range(1, 5)} == short != {step: long[step] for step in range(1, 5)}
    assert {step: both[step] for step in range(5, 9)} == {step: long[step] for step in range(5, 9)}


def test_a_stop_on_the_way_goes_on_and_the_same_command_again_does_nothing(
    train_tiny, tiny_options, same_weights, record_of, dataset, tmp_path, capsys
):
    from training_cases import AtStep

    how = {**SHORT, "schedule": "constant"}
    train_tiny("reward", dataset, tmp_path / "out", **how)
    shutil.copytree(tmp_path / "out", tmp_path / "other")

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_reward(tiny_options("reward", dataset, tmp_path / "out", more_steps=6, save_steps=2, **how), [AtStep(7, interrupt)])
    assert record_of(tmp_path / "out")["finished"]  # killed in the middle: the folder holds what it held, and checkpoints beyond it
    assert train_tiny("reward", dataset, tmp_path / "out", more_steps=6, save_steps=2, **how)["steps"] == 10
    train_tiny("reward", dataset, tmp_path / "other", more_steps=6, **how)
    assert same_weights("reward", tmp_path / "out", tmp_path / "other")
    capsys.readouterr()
    for more in (6, 2, None):
        assert train_tiny("reward", dataset, tmp_path / "out", more_steps=more, **how)["steps"] == 10
        assert "already holds this run (with 6 more steps), finished; nothing to do" in capsys.readouterr().err
    assert train_tiny("reward", dataset, tmp_path / "out", more_steps=8, **how)["steps"] == 12


def test_what_cannot_go_on_is_refused_before_anything_is_loaded(train_tiny, record_of, dataset, tmp_path):
    out = tmp_path / "out"
    train_tiny("reward", dataset, out, **SHORT)
    before = (out / "mmpo.json").read_bytes()
    assert "learning_rate 0.01 -> 0.02" in user_error(
        "", train_tiny, "reward", dataset, out, more_steps=2, **SHORT | {"learning_rate": 0.02}
    )
    steps = record_of(out)["summary"]["steps"]
    user_error("--more-steps 3; or another", train_tiny, "reward", dataset, out, **SHORT | {"max_steps": steps + 3})
    assert "--more-steps" not in user_error("other options", train_tiny, "reward", dataset, out, **SHORT | {"max_steps": 1})
    shutil.rmtree(out / "checkpoint-4")
    said = user_error("no checkpoint to go on from", train_tiny, "reward", dataset, out, more_steps=2, **SHORT)
    assert f"--model {out}" in said and (out / "mmpo.json").read_bytes() == before
    record = json.loads(before)
    record["options"]["more_steps"], record["finished"] = 5, False
    (out / "checkpoint-6").mkdir()
    (out / "checkpoint-6" / "trainer_state.json").write_text('{"global_step": 6}')
    (out / "mmpo.json").write_text(json.dumps(record))
    user_error("on its way to 5 more steps: give --more-steps 5, or more", train_tiny, "reward", dataset, out, **SHORT)


def test_a_run_that_ended_early_has_no_more_steps(train_tiny, dataset, tmp_path):
    how = {"max_steps": 60, "learning_rate": 0.3, "eval_steps": 2, "early_stopping": 1}
    done = train_tiny("reward", dataset, tmp_path / "out", **how)
    assert done["steps"] < 60
    user_error(
        "ended early: its held-out loss had not fallen for 1 evaluations",
        train_tiny,
        "reward",
        dataset,
        tmp_path / "out",
        more_steps=5,
        **how,
    )
