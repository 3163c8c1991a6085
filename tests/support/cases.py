"""What the tests of judging share: a folder of candidates, runs against a server, and looking at what came out."""

import contextlib
import json
import sqlite3
from pathlib import Path
from typing import Any

from command import environment, mmpo

from mmpo.annotate.judge import JudgeOptions, judge
from mmpo.pipeline import BuildOptions, build, load_feedback

__all__ = ["asked", "built", "candidates", "comparisons", "environment", "judged", "mmpo", "of", "ratings", "words"]


def candidates(folder: Path, prompts: int = 6, completions: int = 3, *, start: int = 0) -> Path:
    """A FEEDBACK folder of made-up candidates without grades."""
    return built(
        folder,
        [
            {"prompt": f"Question {i}?", "completions": [f"Answer {j} to question {i}." for j in range(completions)]}
            for i in range(start, start + prompts)
        ],
    )


def built(folder: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    """A FEEDBACK folder of these rows, which lie beside it as JSON lines."""
    source = folder.with_suffix(".jsonl")
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    build(source, folder, options=BuildOptions(format="jsonl", feedback_only=True, **options))
    return folder


def judged(feedback: Path, out: Path, server: Any, judges: Any = (), **options: Any) -> dict[str, Any]:
    """Run the judge against a server; the summary."""
    if not judges:
        options.setdefault("model", "judge-a")
    return judge(feedback, out, options=JudgeOptions(base_url=server.base_url, **options), judges=judges)


def words(feedback: Path, out: Path, server: Any, *more: object) -> list[object]:
    """The same as a command, for `command.mmpo` and `command.started`."""
    return ["judge", feedback, "--model", "judge-a", "--base-url", server.base_url, "--out", out, *more]


def comparisons(folder: Path) -> list[dict[str, Any]]:
    """Every comparison, with its prompt_id and the ids of its completions."""
    found = []
    for row in load_feedback(folder).to_pylist():
        ids = [completion["id"] for completion in row["completions"]]
        for one in row["comparisons"]:
            found.append({**one, "prompt_id": row["prompt_id"], "first_id": ids[one["first"]], "second_id": ids[one["second"]]})
    return found


def ratings(folder: Path) -> list[dict[str, Any]]:
    """Every rating, with its prompt_id and its completion's text."""
    return [
        {**one, "prompt_id": row["prompt_id"], "text": row["completions"][one["completion"]]["text"]}
        for row in load_feedback(folder).to_pylist()
        for one in row["ratings"]
    ]


def asked(server: Any) -> int:
    """Good answers that the server gave, probes included."""
    return int(server.counts()["answered"])


def of(journal: str | Path, query: str) -> list[tuple[Any, ...]]:
    """The rows of a query to a journal."""
    with contextlib.closing(sqlite3.connect(journal)) as opened:
        return opened.execute(query).fetchall()
