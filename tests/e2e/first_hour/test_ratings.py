"""The data engineer's first hour, by docs/tutorials/ratings.md: a spreadsheet as Excel saves it to pairs, their page, a word on margins."""

from pathlib import Path

import pytest
from tutorials import walk

PAGE = "tutorials/ratings.md"
ADVICE = "mmpo advise"


@pytest.fixture
def folder(root: Path, tmp_path: Path) -> Path:
    """A reader's folder: the repository's data, and nothing else."""
    (tmp_path / "data").symlink_to(root / "data")
    return tmp_path


def test_a_spreadsheet_becomes_pairs_and_a_page(folder: Path) -> None:
    done = walk(PAGE, folder, skipped=(ADVICE,))
    goal = next(number for number, command in enumerate(done.commands, 1) if command.startswith("mmpo report"))
    assert goal <= 4
    assert len(done.refusals) <= 1
    assert "<html" in (folder / "pairs.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_whole_page_does_what_it_says(folder: Path) -> None:
    assert any(command.startswith(ADVICE) for command in walk(PAGE, folder).commands)
