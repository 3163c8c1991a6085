"""What the tests of other tools' exports share: the real files, what was read of them, and what a refused build says."""

from pathlib import Path

import pytest

from mmpo.cli.main import run
from mmpo.pipeline.sources import Collected

EXPORTS = Path(__file__).parents[1] / "data" / "exports"


def gaps(result: Collected) -> list[tuple[str, str, float]]:
    """The better known prompt, the rater and the gap of each comparison, sorted."""
    rows = result.feedback.to_pylist()
    return sorted((row["prompt"][0]["content"], one["rater"], one["gap"]) for row in rows for one in row["comparisons"])


def ratings(result: Collected) -> list[tuple[str, str, float]]:
    """Text, rater and score of each rating, sorted."""
    rows = result.feedback.to_pylist()
    return sorted(
        (row["completions"][one["completion"]]["text"], one["rater"], one["score"]) for row in rows for one in row["ratings"]
    )


def refusal(path: Path, format: str, columns: str, capsys: pytest.CaptureFixture[str], out: Path | None = None) -> str:
    """What a build says that is refused: one message with the file's name, exit status 2."""
    given = ["--columns", columns] if columns else []
    assert run(["build", str(path), "--format", format, *given, "--out", str(out or path.parent / "out")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert path.name in said and "Traceback" not in said
    return said
