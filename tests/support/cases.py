"""What the tests of judging share: a folder of candidates, and looking at what came out."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmpo.annotate.judge import JudgeOptions, judge
from mmpo.pipeline import BuildOptions, build, load_feedback

__all__ = ["asked", "candidates", "comparisons", "environment", "judged", "mmpo", "ratings"]


def candidates(folder: Path, prompts: int = 6, completions: int = 3, *, start: int = 0, **more: Any) -> Path:
    """A FEEDBACK folder of made-up candidates without grades."""
    lines = [
        {"prompt": f"Question {i}?", "completions": [f"Answer {j} to question {i}." for j in range(completions)], **more}
        for i in range(start, start + prompts)
    ]
    source = folder.with_suffix(".jsonl")
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    build(source, folder, options=BuildOptions(format="jsonl", feedback_only=True))
    return folder


def judged(feedback: Path, out: Path, server: Any, judges: Any = (), **options: Any) -> dict[str, Any]:
    """Run the judge against a server; the summary."""
    if not judges:
        options.setdefault("model", "judge-a")
    return judge(feedback, out, options=JudgeOptions(base_url=server.base_url, **options), judges=judges)


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


def environment(**more: str) -> dict[str, str]:
    """For a command as a process of its own."""
    return {**os.environ, "PYTHONUNBUFFERED": "1", "OPENAI_API_KEY": "sk-test-of-the-run", **more}


def mmpo(*arguments: str, env: Mapping[str, str] | None = None, timeout: float = 120) -> "subprocess.CompletedProcess[str]":
    """The command as a process of its own."""
    code = "from mmpo.cli.main import main; main()"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=env or environment(), check=False)
