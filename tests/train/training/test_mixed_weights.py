"""The weights that a build of several sources was given are those of training, unless others are given."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import graded
from folders import write_rows
from safetensors.torch import load_file

from mmpo.pipeline import BuildOptions, build


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A dataset of two sources, of which the second one's pairs weigh 5 and prefer what the first one's do not."""
    rows = graded(30)
    turned = [{**row, "prompt": f"And {row['prompt']}", "score": 10 - row["score"]} for row in rows]
    sources = [
        {"name": name, "inputs": str(write_rows(tmp_path / f"{name}.jsonl", found)), "format": "jsonl", **more}
        for name, found, more in (("plain", rows, {}), ("heavy", turned, {"weight": 5}))
    ]
    build((), tmp_path / "data", options=BuildOptions(sources=tuple(sources), split=(1, 0, 0)))
    return tmp_path / "data"


def test_training_takes_them_from_the_dataset_and_says_so(
    mixed: Path, tmp_path: Path, train_tiny: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """The same weights, given, make the same model to the last digit, and others another one."""
    options = {"max_steps": 3, "eval_split": None, "learning_rate": 1e-2}
    train_tiny("reward", mixed, tmp_path / "by itself", **options)
    assert "was mixed with weights, which are used: --source-weights heavy=5" in capsys.readouterr().err
    train_tiny("reward", mixed, tmp_path / "given", source_weights={"heavy": 5.0, "plain": 1.0}, **options)
    train_tiny("reward", mixed, tmp_path / "others", source_weights={"heavy": 1.0}, **options)
    assert "was mixed with weights" not in capsys.readouterr().err
    own, given, others = (load_file(tmp_path / name / "model.safetensors") for name in ("by itself", "given", "others"))
    assert all(own[name].equal(given[name]) for name in own)
    assert not all(own[name].equal(others[name]) for name in own)
