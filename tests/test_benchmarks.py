"""Every benchmark can be started: what it imports is where it looks for it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
SCRIPTS = [path.name for path in sorted(BENCHMARKS.glob("*.py")) if "ArgumentParser(" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_benchmark_starts(script: str) -> None:
    command = [sys.executable, str(BENCHMARKS / script), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "--quick" in done.stdout


def test_the_page_of_the_claims_is_that_of_their_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from claims_page import write_page

    (tmp_path / "images").mkdir()
    docs = BENCHMARKS.parent / "docs"
    page = write_page(json.loads((docs / "claims.json").read_text(encoding="utf-8")), tmp_path)
    assert page.read_text(encoding="utf-8") == (docs / page.name).read_text(encoding="utf-8"), "python benchmarks/claims.py --page"


def test_what_the_claims_say_follows_from_their_intervals() -> None:
    from mmpo.train.advise import margins_add

    claims = json.loads((BENCHMARKS.parent / "docs/claims.json").read_text(encoding="utf-8"))
    assert claims["sets"]
    for name, summary in claims["sets"].items():
        assert summary["margins_add"] == margins_add(summary["effects"][-1]), name
