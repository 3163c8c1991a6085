"""Callbacks of one's own: what they are told, and that an exception in one ends the run in order, with a checkpoint to go on from."""

import re
from pathlib import Path

import pytest

from mmpo.train import RunCallback

pytestmark = pytest.mark.usefixtures("fresh_cache")
SHORT = {"max_steps": 6, "learning_rate": 1e-2, "eval_steps": 3, "logging_steps": 2, "save_steps": 100}


class Noting(RunCallback):
    """Keeps all that it is told."""

    def __init__(self):
        self.steps, self.evaluations, self.summaries = [], [], []

    def on_step(self, step, figures):
        self.steps.append((step, figures))

    def on_evaluate(self, step, metrics):
        self.evaluations.append((step, metrics))

    def on_end(self, summary):
        self.summaries.append(summary)


@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_a_callback_is_told_of_every_step_evaluation_and_the_end(kind, train_tiny, record_of, dataset, tmp_path):
    noting = Noting()
    summary = train_tiny(kind, dataset, tmp_path / "out", callbacks=[noting], **SHORT)
    assert [step for step, _ in noting.steps] == [1, 2, 3, 4, 5, 6]
    history = record_of(tmp_path / "out")["history"]
    logged = [(step, figures["loss"]) for step, figures in noting.steps if figures]
    assert logged == list(zip(history["steps"], history["loss"], strict=True)) and 2 in history["steps"]
    assert [step for step, _ in noting.evaluations] == [3, 6]
    assert noting.evaluations[-1][1]["accuracy"] == summary["metrics"]["accuracy"] and noting.summaries == [summary]


class Partly:
    """Any object with some of the methods is one."""

    def on_evaluate(self, step, metrics):
        self.last = step


def test_some_of_the_methods_are_enough(train_tiny, dataset, tmp_path):
    partly = Partly()
    train_tiny("reward", dataset, tmp_path / "out", callbacks=[partly], **SHORT)
    assert partly.last == 6


class Failing(RunCallback):
    """Raises in one of its methods at one step."""

    def __init__(self, where, at):
        self.where, self.at = where, at

    def _fail(self, where, step):
        if (where, step) == (self.where, self.at):
            raise LookupError(f"the tracker is gone at {step}")

    def on_step(self, step, figures):
        self._fail("step", step)

    def on_evaluate(self, step, metrics):
        self._fail("evaluate", step)

    def on_end(self, summary):
        self._fail("end", summary["steps"])


@pytest.mark.parametrize(("where", "at"), [("step", 1), ("step", 4), ("evaluate", 6)])
def test_an_exception_ends_the_run_with_a_checkpoint_and_the_same_call_goes_on(
    where, at, train_tiny, same_weights, record_of, dataset, tmp_path
):
    out = tmp_path / "out"
    noting = Noting()
    with pytest.raises(LookupError, match=f"the tracker is gone at {at}"):
        train_tiny("reward", dataset, out, callbacks=[Failing(where, at), noting], **SHORT)
    assert [path.name for path in out.glob("checkpoint-*")] == [f"checkpoint-{at}"] and not record_of(out)["finished"]
    assert all(step <= at for step, _ in noting.steps) and not noting.summaries
    train_tiny("reward", dataset, out, **SHORT)
    train_tiny("reward", dataset, tmp_path / "whole", **SHORT)
    assert same_weights("reward", out, tmp_path / "whole")
    mine, theirs = record_of(out), record_of(tmp_path / "whole")
    assert mine["history"]["loss"][-1] == theirs["history"]["loss"][-1] and mine["evaluations"] == theirs["evaluations"]


def test_an_exception_at_the_end_leaves_the_finished_model(train_tiny, record_of, dataset, tmp_path):
    with pytest.raises(LookupError, match="gone at 6"):
        train_tiny("reward", dataset, tmp_path / "out", callbacks=[Failing("end", 6)], **SHORT)
    assert record_of(tmp_path / "out")["finished"] and train_tiny("reward", dataset, tmp_path / "out", **SHORT)["steps"] == 6


def test_the_example_of_the_documents_runs(dataset, tmp_path, monkeypatch, capsys):
    text = (Path(__file__).parents[3] / "docs" / "training.md").read_text(encoding="utf-8")
    [block] = [code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "RunCallback" in code]
    (tmp_path / "pairs").symlink_to(dataset)
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == ["1", "1", "2", "2", "3", "3", "4", "4", "models/reward"]
