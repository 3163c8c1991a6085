"""How many files and classes of ours a judge's request and a person's answer pass: docs/architecture.md quotes these figures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from argilla_cases import Asked
from argilla_fixture import Argilla
from folders import feedback_folder
from row_path import row_path

from mmpo.annotate import JudgeOptions, judge
from mmpo.pipeline import BuildOptions, build, load_pairs


def test_a_judges_request_becomes_a_margin_se(
    openai_server: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server, runs = openai_server(), iter(range(3))

    def work(rows: int) -> None:
        folder = tmp_path / str(next(runs))
        feedback_folder(folder / "in", rows)
        judge(folder / "in", folder / "judged", options=JudgeOptions(base_url=server.base_url, model="judge-a"))
        build(folder / "judged", folder / "pairs", options=BuildOptions(format="feedback", split=(1, 0, 0)))
        assert load_pairs(folder / "pairs", "train").num_rows == rows

    found = row_path(work)
    with capsys.disabled():
        print("\nrequest:", {kind: len(value) for kind, value in found.items()})
    assert len(found["files"]) <= 67, found["files"]
    assert len(found["classes"]) <= 35, found["classes"]


@pytest.mark.slow
def test_a_persons_answer_becomes_feedback(argilla: Argilla, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    datasets = {}
    for rows in (1, 2):
        (folder := tmp_path / str(rows)).mkdir()
        datasets[rows] = Asked(argilla, folder)
        datasets[rows].push(2)
        for record in datasets[rows].records()[:rows]:
            datasets[rows].answer("anna", record, grade="1")
    runs = iter(range(3))
    found = row_path(lambda rows: datasets[rows].pull(f"out-{next(runs)}"))
    with capsys.disabled():
        print("\nanswer:", {kind: len(value) for kind, value in found.items()})
    assert len(found["files"]) <= 17, found["files"]
    assert len(found["classes"]) <= 8, found["classes"]
