"""A small MT-bench of made-up questions: the files in FastChat's layout, a server that answers and judges, and what came of it."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from folders import Row, write_rows

from mmpo.annotate import MtBenchOptions, mt_bench

CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
WITH_REFERENCE = ("reasoning", "math", "coding")
PLAYERS = {"models": {"writer": {"writes": True}, "other": {"writes": True}, "judge": {}, "judge-b": {}}, "keep_bodies": True}
"""Of the test server: two models that answer and two judges."""


def bench_questions(count: int = 8) -> list[dict[str, Any]]:
    """Questions of two turns, the categories in turn."""
    return [
        {"question_id": 81 + i, "category": CATEGORIES[i % 8], "turns": [f"First question {i}?", f"Second question {i}?"]}
        for i in range(count)
    ]


def answer_row(question: int | str, turns: list[str], model: str = "gpt-4") -> dict[str, Any]:
    """A row of FastChat's model_answer and reference_answer."""
    return {"question_id": question, "answer_id": "a", "model_id": model, "choices": [{"index": 0, "turns": turns}], "tstamp": 1.0}


def judgment(
    question: int | str, score: Any, turn: int | None = 1, model: str = "m", judge: str = "gpt-4", **more: Any
) -> dict[str, Any]:
    """A row of FastChat's model_judgment."""
    row = {
        "question_id": question,
        "model": model,
        "judge": [judge, "single-v1"],
        "user_prompt": "",
        "judgment": "",
        "score": score,
    }
    return {**row, **({"turn": turn} if turn else {}), "tstamp": 1.0, **more}


class Bench:
    """A server and a folder: FOLDER/question.jsonl with FOLDER/reference_answer/gpt-4.jsonl is asked into FOLDER/out or others."""

    def __init__(self, server: Any, folder: Path, questions: Iterable[Row] | int = 8) -> None:
        rows = bench_questions(questions) if isinstance(questions, int) else list(questions)
        self.server, self.folder, self.questions = server, folder, write_rows(folder / "question.jsonl", rows)
        needed = [row for row in rows if row["category"] in WITH_REFERENCE]
        references = [
            answer_row(row["question_id"], [f"Known {turn} of {row['question_id']}." for turn in (1, 2)]) for row in needed
        ]
        if references:
            write_rows(folder / "reference_answer" / "gpt-4.jsonl", references)

    def run(self, out: str = "out", models: Any = ("writer",), judges: Any = ("judge",), **options: Any) -> dict[str, Any]:
        """Answer and grade in this process; the summary."""
        more = {name: options.pop(name) for name in ("local", "answers") if name in options}
        settings = MtBenchOptions(**{"questions": self.questions, "base_url": self.server.base_url, **options})
        return mt_bench(self.folder / out, options=settings, models=models, judges=judges, **more)

    def words(self, *more: object) -> list[object]:
        """The same as a command."""
        words = ["evaluate", "mt-bench", "--model", "writer", "--judge", "judge", "--questions", self.questions]
        return [*words, "--base-url", self.server.base_url, "--out", self.folder / "out", *more]

    def bodies(self, model: str = "writer") -> list[dict[str, Any]]:
        """Of the requests to a model or judge that came, without probes."""
        found = [one["body"] for one in self.server.log() if one["body"]["model"] == model]
        return [body for body in found if "Say hello." not in str(body["messages"]) and "2 + 2" not in str(body["messages"])]

    def came(self, requests: int) -> Any:
        """For `command.stopped`: whether so many requests have come."""
        return lambda: self.server.counts()["requests"] >= requests

    def lines(self, name: str, out: str = "out") -> list[dict[str, Any]]:
        """The rows of a file of the folder that was written."""
        return [json.loads(line) for line in (self.folder / out / name).read_text(encoding="utf-8").splitlines()]


def means(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What rows of means say, without what only a run knows."""
    kept = (
        "judge",
        "model",
        "mean",
        "interval",
        "turn1",
        "turn1_95",
        "turn2",
        "turn2_95",
        "categories",
        "questions",
        "scores",
        "behind",
    )
    return [{name: row[name] for name in kept} for row in rows]
