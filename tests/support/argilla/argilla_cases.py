"""What the tests of push and pull share: folders to push, answers by users over HTTP, and looking at what came of them."""

import json
import subprocess
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from argilla_fixture import Argilla
from command import environment, mmpo
from folders import Row, feedback_folder, made_up_prompts, pairs_folder

from mmpo.annotate.argilla import PullOptions, PushOptions, pull, push
from mmpo.pipeline import load_feedback
from mmpo.train import completion_features


def name(start: str = "data") -> str:
    """A dataset's name of its own: all tests share one server."""
    return f"{start}-{uuid.uuid4().hex[:10]}"


def feedback(folder: Path, rows: Iterable[Row] | int = 6, **options: Any) -> Path:
    """A FEEDBACK folder of rows of the format jsonl, or of so many made-up prompts with a reply of a small and one of a large model."""
    rows = made_up_prompts(rows, models=["small", "large"]) if isinstance(rows, int) else rows
    return feedback_folder(folder, rows, **options)


def pairs(folder: Path, rows: int = 6) -> Path:
    """A PAIRS folder of made-up pairs whose margins an AI gave on 1 to 10: pair i has i % 9 + 1."""
    made = [
        {"prompt": f"Question {i}?", "completion": f"Answer {j} to question {i}.", "score": 1 + (i % 9 + 1) * j, "model": f"m{j}"}
        for i in range(rows)
        for j in range(2)
    ]
    return pairs_folder(folder, made, scale=(1, 10), kind="ai", rater="judge-a")


class Asked:
    """A dataset of a test's own: pushed, answered by users, read and changed as the owner does, and pulled into FOLDER/out."""

    def __init__(self, argilla: Argilla, folder: Path) -> None:
        self.argilla, self.folder, self.name, self.out = argilla, folder, name(), folder / "out"
        self.data: Path | None = None

    def push(self, data: Path | Iterable[Row] | int | None = None, **options: Any) -> dict[str, Any]:
        """Push a folder, or feedback of such rows; None: what was pushed before, at first six made-up prompts. The summary."""
        if data is not None or self.data is None:
            self.data = data if isinstance(data, Path) else feedback(self.folder / "f", 6 if data is None else data)
        return push(
            self.data,
            self.name,
            self.argilla.workspace,
            options=PushOptions(**{"api_url": self.argilla.api_url} | options),
            featurize=completion_features,
        )

    def pull(self, out: str = "out", **options: Any) -> dict[str, Any]:
        """Pull into a folder; the summary."""
        settings = PullOptions(**{"api_url": self.argilla.api_url} | options)
        return pull(self.name, self.folder / out, self.argilla.workspace, options=settings)

    def mmpo(self, what: str, *more: object) -> "subprocess.CompletedProcess[str]":
        """Run `mmpo argilla push` or `pull` as a command of its own."""
        return self.run(*self.words(what, *more))

    def run(self, *words: object) -> "subprocess.CompletedProcess[str]":
        """Run a command that asks this server as its owner."""
        return mmpo(*words, env=self.environment)

    def words(self, what: str, *more: object) -> list[object]:
        """That command."""
        return ["argilla", what, *more, "--dataset", self.name, "--workspace", self.argilla.workspace]

    @property
    def environment(self) -> dict[str, str]:
        """Of commands that ask this server as its owner."""
        return environment(ARGILLA_API_KEY=self.argilla.owner_key, ARGILLA_API_URL=self.argilla.api_url)

    @cached_property
    def dataset(self) -> dict[str, Any]:
        """It, as Argilla has it. StopIteration where there is none of this name."""
        return next(one for one in self.get("/api/v1/me/datasets")["items"] if one["name"] == self.name)

    @property
    def path(self) -> str:
        return f"/api/v1/datasets/{self.dataset['id']}"

    def get(self, path: str, **params: Any) -> Any:
        """What the owner reads."""
        with self.argilla.as_user("owner") as owner:
            return owner.get(path, params=params).raise_for_status().json()

    def records(self) -> list[dict[str, Any]]:
        """All records, in Argilla's order, with responses and suggestions."""
        found: list[dict[str, Any]] = []
        while True:
            params = {"offset": len(found), "limit": 1000, "include": ["responses", "suggestions"]}
            page = self.get(f"{self.path}/records", **params)["items"]
            found += page
            if not page:
                return found

    def record(self, text: str) -> dict[str, Any]:
        """The record whose conversation is about a text."""
        return next(one for one in self.records() if text in json.dumps(one["fields"]["prompt"]))

    def answer(self, user: str, record: Mapping[str, Any], status: str = "submitted", **values: Any) -> None:
        """Answer a record as a user: values by question. An answer that is there already is replaced, as on the page."""
        body = {"status": status, "values": {question: {"value": value} for question, value in values.items()}}
        with self.argilla.as_user(user) as client:
            items = [{**body, "record_id": record["id"]}]
            found = client.post("/api/v1/me/responses/bulk", json={"items": items}).raise_for_status()
            assert found.json()["items"][0]["error"] is None, found.text

    def answer_all(self, user: str, **values: Any) -> list[dict[str, Any]]:
        """Answer every record alike; the records."""
        records = self.records()
        for record in records:
            self.answer(user, record, **values)
        return records

    def change(self, method: str, path: str, **body: Any) -> Any:
        """Change something as the owner does on Argilla's page."""
        with self.argilla.as_user("owner") as owner:
            return owner.request(method, path, **({"json": body} if body else {})).raise_for_status()

    def edit(self, record: Mapping[str, Any], **texts: str) -> dict[str, Any]:
        """Change texts of a record, as a script of somebody else may; the fields as they are then."""
        fields = {**record["fields"], **texts}
        self.change("PUT", f"{self.path}/records/bulk", items=[{"external_id": record["external_id"], "fields": fields}])
        return fields


def texts_of(folder: Path) -> dict[str, Any]:
    """The prompt and the completions of every row, by its id."""
    return {row["prompt_id"]: (row["prompt"], row["completions"]) for row in load_feedback(folder).to_pylist()}


def rejected(folder: Path) -> dict[str, int]:
    """Rows of rejects.parquet by reason."""
    return Counter(pq.read_table(folder / "rejects.parquet")["reason"].to_pylist())
