"""What the tests of judging and generating share: a server with a folder of candidates or prompts, and looking at what came out."""

import contextlib
import sqlite3
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from command import mmpo
from folders import Row, feedback_folder, made_up_prompts, write_rows

from mmpo.annotate import GenerateOptions, generate
from mmpo.annotate.judge import JudgeOptions, judge
from mmpo.pipeline import load_feedback


def candidates(folder: Path, prompts: int = 6, completions: int = 3, *, start: int = 0) -> Path:
    """A FEEDBACK folder of made-up candidates without grades."""
    return feedback_folder(folder, made_up_prompts(start + prompts, completions)[start:])


class Judging:
    """A server and a folder: FOLDER/in, of rows of the format jsonl or of so many made-up prompts, is judged into FOLDER/out or others.

    options: BuildOptions' for the candidates.
    """

    def __init__(self, server: Any, folder: Path, rows: Iterable[Row] | int = 6, completions: int = 3, **options: Any) -> None:
        rows = made_up_prompts(rows, completions) if isinstance(rows, int) else rows
        self.server, self.folder, self.feedback = server, folder, feedback_folder(folder / "in", rows, **options)

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def judge(self, out: str = "out", judges: Any = (), *, feedback: Path | None = None, **options: Any) -> dict[str, Any]:
        """Run the judge in this process; the summary."""
        if not judges:
            options.setdefault("model", "judge-a")
        settings = JudgeOptions(base_url=self.server.base_url, **options)
        return judge(feedback or self.feedback, self.folder / out, options=settings, judges=judges)

    def words(self, *more: object) -> list[object]:
        """The same as a command."""
        return ["judge", self.feedback, "--model", "judge-a", "--base-url", self.server.base_url, "--out", self.out, *more]

    def mmpo(self, *more: object, **options: Any) -> "subprocess.CompletedProcess[str]":
        """Run that command to its end."""
        return mmpo(*self.words(*more), **options)

    def comparisons(self, out: str = "out") -> list[dict[str, Any]]:
        return comparisons(self.folder / out)

    def ratings(self, out: str = "out") -> list[dict[str, Any]]:
        return ratings(self.folder / out)

    @property
    def journal(self) -> Path:
        """Of what was judged into FOLDER/out."""
        return self.folder / "out.judge.sqlite"

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """The rows of a query to this journal."""
        with contextlib.closing(sqlite3.connect(self.journal, isolation_level=None)) as opened:
            return opened.execute(query).fetchall()

    def written(self) -> str:
        """All that stands in files of the folder."""
        return "".join(path.read_bytes().decode("latin-1") for path in self.folder.rglob("*") if path.is_file())

    def count(self, name: str) -> Any:
        """One of the server's counts: `answered` are good answers, probes included."""
        return self.server.counts()[name]

    def came(self, requests: int) -> Callable[[], bool]:
        """For `command.stopped`: whether so many requests have come."""
        return lambda: self.count("requests") >= requests


class Generating:
    """A server and prompts: FOLDER/prompts.jsonl, of rows or of so many made-up prompts, gets candidates in FOLDER/out or others."""

    def __init__(self, server: Any, folder: Path, rows: Iterable[Row] | int = 4) -> None:
        rows = [{"prompt": f"Question {i}?"} for i in range(rows)] if isinstance(rows, int) else rows
        self.server, self.folder, self.prompts = server, folder, write_rows(folder / "prompts.jsonl", rows)

    def generate(
        self, out: str = "out", models: Any = ("writer",), *, prompts: Path | None = None, **options: Any
    ) -> dict[str, Any]:
        """Write candidates in this process; the summary."""
        settings = GenerateOptions(base_url=self.server.base_url, **options)
        return generate(prompts or self.prompts, self.folder / out, options=settings, models=models)

    def words(self, *more: object) -> list[object]:
        """The same as a command."""
        words = ["generate", self.prompts, "--model", "writer", "--base-url", self.server.base_url, "--out", self.folder / "out"]
        return [*words, *more]

    def rows(self, out: str = "out") -> list[dict[str, Any]]:
        """Of FEEDBACK."""
        return load_feedback(self.folder / out).to_pylist()

    def texts(self, out: str = "out") -> list[tuple[str, str | None, str]]:
        """Every completion: the prompt's last words, its model, its text."""
        return [(row["prompt"][-1]["content"], one["model"], one["text"]) for row in self.rows(out) for one in row["completions"]]

    def bodies(self) -> list[dict[str, Any]]:
        """Of the requests that came, without probes."""
        return [one["body"] for one in self.server.log() if one["body"]["messages"][-1]["content"] != "Say hello."]

    def came(self, requests: int) -> Callable[[], bool]:
        """For `command.stopped`: whether so many requests have come."""
        return lambda: self.server.counts()["requests"] >= requests


def comparisons(folder: Path) -> list[dict[str, Any]]:
    """Every comparison, with its prompt_id, the last words of its prompt, and the ids and texts of its completions."""
    found = []
    for row in load_feedback(folder).to_pylist():
        prompt = {"prompt_id": row["prompt_id"], "prompt": row["prompt"][-1]["content"]}
        for one in row["comparisons"]:
            first, second = row["completions"][one["first"]], row["completions"][one["second"]]
            texts = {"first_text": first["text"], "second_text": second["text"]}
            found.append({**one, **prompt, "first_id": first["id"], "second_id": second["id"], **texts})
    return found


def ratings(folder: Path) -> list[dict[str, Any]]:
    """Every rating, with its prompt_id and its completion's text."""
    return [
        {**one, "prompt_id": row["prompt_id"], "text": row["completions"][one["completion"]]["text"]}
        for row in load_feedback(folder).to_pylist()
        for one in row["ratings"]
    ]
