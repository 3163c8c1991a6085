"""The first hour of who has no grades, by docs/tutorials/judge.md: answers in a file, an endpoint that plays the judge, pairs."""

from pathlib import Path

import pytest
from openai_server import serving
from tutorials import walk

JUDGE = {"scale": 0.8, "bias": 0.2, "noise": 0.4, "tau": 0.6}


@pytest.mark.slow
def test_an_endpoint_grades_what_nobody_graded(root: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(root / "data")
    with serving({"models": {"gpt-4o-mini": JUDGE}}, grades=root / "data" / "arena_grades.jsonl.gz") as server:
        done = walk("tutorials/judge.md", tmp_path, environment={"OPENAI_BASE_URL": server.base_url})
        asked = server.counts()
    goal = [number for number, command in enumerate(done.commands, 1) if command.startswith("mmpo build")][-1]
    assert goal <= 6
    assert not done.refusals
    assert asked["answered_again"] == 0
    assert (tmp_path / "pairs" / "manifest.json").is_file()
