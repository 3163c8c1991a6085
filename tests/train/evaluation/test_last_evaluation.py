"""Every run ends with an evaluation of its last step, in the log that its last checkpoint carries."""

import json

import pytest

from mmpo.train.options import TrainOptions
from mmpo.train.training.run import train_reward


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"max_steps": 5, "eval_steps": 2}, [2, 4, 5]),
        ({"max_steps": 4, "eval_steps": 2}, [2, 4]),
        ({"max_steps": 3, "eval_steps": 100, "save_steps": 100}, [3]),
        ({"max_steps": 40, "eval_steps": 1, "early_stopping": 2, "learning_rate": 0.3, "schedule": "constant"}, None),
    ],
)
def test_the_last_step_is_measured(changes, steps, dataset, unfinished, tmp_path):
    """Also where a run was killed behind its last checkpoint and does nothing but write its model when it goes on."""
    own = {"pairs_per_step": 10, "tiny_size": 16, "tiny_layers": 1, "tiny_vocab": 400, **changes}
    options = TrainOptions("reward", data=str(dataset), out=str(tmp_path / "out"), **own)
    summary = train_reward(options)
    record = json.loads((tmp_path / "out" / "mmpo.json").read_text())
    measured = [one["step"] for one in record["evaluations"]]
    assert measured[-1] == summary["steps"]
    if steps is None:
        assert summary["steps"] < 40  # it ended early
    else:
        assert measured == steps
    unfinished(tmp_path / "out")
    again = train_reward(options)
    assert again["metrics"] == summary["metrics"]
    assert json.loads((tmp_path / "out" / "mmpo.json").read_text())["evaluations"] == record["evaluations"]
