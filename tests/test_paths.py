"""How many files and classes of ours a row passes: docs/architecture.md quotes these figures."""

from pathlib import Path

import pytest
from row_path import row_path, ultrafeedback_row

from mmpo.pipeline import BuildOptions, build
from mmpo.train import TrainOptions, train_reward

BASE = Path(__file__).resolve().parent / "golden" / "v1" / "base"


def test_a_line_of_ratings_becomes_a_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = iter(range(3))

    def work(rows: int) -> None:
        folder = tmp_path / str(next(runs))
        folder.mkdir()
        (folder / "rows.jsonl").write_text("".join(map(ultrafeedback_row, range(1, rows + 1))), encoding="utf-8")
        build(folder / "rows.jsonl", folder / "pairs", options=BuildOptions(format="ultrafeedback", split=(1, 0, 0)))
        options = {"max_steps": 1, "eval_split": None, "learning_rate": 1e-3}
        train_reward(TrainOptions(kind="reward", data=str(folder / "pairs"), model=str(BASE), out=str(folder / "model"), **options))

    found = row_path(work)
    with capsys.disabled():
        print("\nrow:", {name: len(value) for name, value in found.items()})
    assert len(found["files"]) <= 67, found["files"]  # one says whether a cell holds JSON as text
    assert len(found["classes"]) <= 24, found["classes"]
