"""A default learning rate that trains adapters, and what is said where a model learns nothing."""

import numpy as np
import pytest
from training_cases import save_model
from transformers import TrainerState

from mmpo.pipeline.metrics import pair_measures
from mmpo.train import TrainOptions
from mmpo.train.model import tiny_model
from mmpo.train.training.callbacks import TrainingProgress

pytestmark = pytest.mark.usefixtures("fresh_cache")


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory):
    """Folders of models of this kind, whose defaults are those of any model but `tiny`."""
    folder = tmp_path_factory.mktemp("models")
    return lambda kind: str(save_model(folder / kind, tiny_model(kind, tokenizer, size=64, layers=2), tokenizer))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "loss", "falls"), [("policy", "mmpo=1,sft=0.1", 0.01), ("policy", "mmpo", 0.002), ("reward", "mmpo", 0.005)]
)
def test_an_adapter_learns_at_the_default_rate(kind, loss, falls, model, train_tiny, record_of, dataset, tmp_path, capsys):
    out = tmp_path / "out"
    how = {"loss": loss, "lora": 16, "max_steps": 30, "pairs_per_step": 1000, "eval_split": None}
    train_tiny(kind, dataset, out, model=model(kind), **how)
    history = record_of(out)["history"]
    assert history["loss"][-1] < history["loss"][0] - falls
    assert "still near 0" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_a_model_that_learns_nothing_is_said_to_and_has_no_accuracy(kind, model, train_tiny, record_of, dataset, tmp_path, capsys):
    """A reward model whose new layer is drawn at random tells completions apart without having learnt to; a policy does not."""
    out = tmp_path / "out"
    train_tiny(kind, dataset, out, model=model(kind), lora=4, learning_rate=1e-12, max_steps=25, eval_split=None)
    said = capsys.readouterr().err
    if kind == "policy":
        assert said.count("after 20 of 25 steps z is still near 0, as before training (mean |z| ") == 1
        assert record_of(out)["history"].get("rewards/accuracy", [None])[0] is None
    else:
        assert "still near 0" not in said


@pytest.mark.parametrize(("rate", "advice"), [(1e-12, "now 1e-12; the usual one is 5e-07"), (5e-7, "now 5e-07; 5e-06, say")])
def test_a_short_run_of_all_weights_that_learns_nothing_is_said_to(rate, advice, model, train_tiny, dataset, tmp_path, capsys):
    """At its end, with what to do; of a run of a step or two nothing is said."""
    train_tiny("policy", dataset, tmp_path / "one", model=model("policy"), learning_rate=rate, max_steps=8, eval_split=None)
    said = capsys.readouterr().err
    assert said.count("after 8 of 8 steps z is still near 0") == 1 and advice in said and "--more-steps" in said
    train_tiny("policy", dataset, tmp_path / "two", model=model("policy"), learning_rate=rate, max_steps=3, eval_split=None)
    assert "still near 0" not in capsys.readouterr().err


def test_progress_shows_that_there_is_no_accuracy():
    progress = TrainingProgress("policy")
    progress.on_log(None, TrainerState(), None, {"loss": 0.6931})
    assert progress.shown == {"loss": "0.6931", "rewards/accuracy": "–"}


def test_a_model_that_tells_nothing_apart_has_no_accuracy():
    values = {"margin": np.array([1.0, 2.0]), "p": np.array([0.7, 0.8]), "z": np.array([0.0, 2e-6])}
    assert pair_measures(values)["accuracy"] is None
    assert pair_measures({**values, "z": np.array([0.0, 0.1])})["accuracy"] == 0.5


def test_defaults_of_the_learning_rate():
    rates = {(model, kind, lora): TrainOptions(kind, model=model, lora=lora).resolved_learning_rate
             for model in ("tiny", "x") for kind in ("policy", "reward") for lora in (None, 8)}  # fmt: skip
    assert rates[("x", "policy", None)] == 5e-7
    assert rates[("x", "policy", 8)] == rates[("x", "reward", 8)] == 2e-4
    assert TrainOptions("policy", model="x", trainable="top:2").resolved_learning_rate == 5e-5
    assert rates[("tiny", "reward", 8)] == 1e-2
    assert TrainOptions("policy", lora=8, learning_rate=1e-6).resolved_learning_rate == 1e-6
