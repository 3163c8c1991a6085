"""The first hour of who uses TRL, by docs/tutorials/trl.md: scores to margins, a LoRA policy on them, and the dataset in TRL's hands."""

from pathlib import Path

import pytest
from tutorials import walk

PAGE = "tutorials/trl.md"
MODEL = "models/smollm2"


@pytest.mark.slow
def test_scores_become_margins_and_a_policy(root: Path, tmp_path: Path) -> None:
    """With the real model where it is; it is not measured then, which takes minutes."""
    (tmp_path / "data").symlink_to(root / "data")
    (tmp_path / "models").mkdir()
    real = (root / MODEL / "config.json").is_file()
    if real:
        (tmp_path / MODEL).symlink_to(root / MODEL)
    instead = {} if real else {f"--model {MODEL}": "--model tiny"}
    done = walk(PAGE, tmp_path, skipped=("mmpo evaluate",) if real else (), instead=instead, timeout=600)
    goal = next(number for number, command in enumerate(done.commands, 1) if command.startswith("mmpo train"))
    assert goal <= 2
    assert not done.refusals
    assert (tmp_path / "models" / "policy" / "adapter_config.json").is_file()
