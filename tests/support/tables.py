"""Tables of grades as people have them, and the recipes that `mmpo init` writes for them."""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from mmpo.cli.main import run
from mmpo.pipeline import load_pairs

QUESTIONS = [f"What is question {n} about, and why?" for n in range(24)]
TWO = [{"prompt": q, "response_1": f"One {q}", "response_2": f"Two {q}"} for q in QUESTIONS]


def sheet(rows: list[dict[str, Any]], separator: str = ",") -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=separator)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def replies(make: Callable[[str, int], dict[str, Any]], each: int = 3) -> list[dict[str, Any]]:
    return [make(question, n) for question in QUESTIONS for n in range(each)]


def initialised(*words: object, folder: Path) -> dict[str, Any]:
    """The recipe that `mmpo init` writes in the folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(["init", *map(str, words), "--out", str(folder / "recipe.yaml")]) == 0
    return yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))


def built(folder: Path) -> pa.Table:
    """The pairs that running the recipe, but for its training, makes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(["run", "recipe.yaml", "--set", "runs={}", "--set", "evaluate={}", "--set", "out=out"]) == 0
    return load_pairs(folder / "out" / "pairs")
