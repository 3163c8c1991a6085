"""A team lead's first hour, by docs/tutorials/annotators.md: three annotators on the embedded Argilla, and their grades as pairs."""

from pathlib import Path

import pytest
from argilla_cases import Asked
from argilla_fixture import Argilla
from tutorials import walk

ANNOTATORS = ("anna", "ben", "cleo")


@pytest.mark.slow
def test_three_people_grade_and_pairs_come_of_it(argilla: Argilla, root: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(root / "data")
    asked = Asked(argilla, tmp_path)

    def people_grade() -> None:
        for number, record in enumerate(asked.records()):
            for place, name in enumerate(ANNOTATORS):
                asked.answer(name, record, grade=str((number + place // 2) % 7 - 3))

    done = walk(
        "tutorials/annotators.md",
        tmp_path,
        skipped=("mmpo argilla serve",),
        instead={"--dataset pilot": f"--dataset {asked.name} --workspace {argilla.workspace}"},
        meanwhile={"mmpo argilla pull": people_grade},
        environment={"ARGILLA_API_URL": argilla.api_url, "ARGILLA_API_KEY": argilla.owner_key},
    )
    assert len(done.commands) + 1 <= 6
    assert not done.refusals
    assert (tmp_path / "pairs" / "manifest.json").is_file()
