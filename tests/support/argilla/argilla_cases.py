"""What the tests of push and pull share: folders to push, answers by users over HTTP, and looking at what came of them."""

import json
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
from argilla_fixture import Argilla
from folders import Row, feedback_folder, made_up_prompts, pairs_folder

from mmpo.annotate.argilla import PullOptions, PushOptions, pull, push
from mmpo.pipeline import load_feedback

__all__ = ["Asked", "answer", "comparisons", "feedback", "name", "pairs", "pulled", "pushed", "ratings", "rejected"]


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


def pushed(argilla: Argilla, data: Path, dataset: str, **options: Any) -> dict[str, Any]:
    """Push to the server of the run."""
    return push(data, dataset, argilla.workspace, options=PushOptions(api_url=argilla.api_url, **options))


def pulled(argilla: Argilla, dataset: str, out: Path, **options: Any) -> dict[str, Any]:
    """Pull from the server of the run."""
    return pull(dataset, out, argilla.workspace, options=PullOptions(api_url=argilla.api_url, **options))


class Asked:
    """A dataset as its records stand in Argilla, read and changed as the owner."""

    def __init__(self, argilla: Argilla, dataset: str) -> None:
        self.argilla = argilla
        with argilla.as_user("owner") as owner:
            found = owner.get("/api/v1/me/datasets").raise_for_status().json()["items"]
        self.dataset = next(one for one in found if one["name"] == dataset)
        self.path = f"/api/v1/datasets/{self.dataset['id']}"

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

    def change(self, method: str, path: str, **body: Any) -> Any:
        """Change something as the owner does on Argilla's page."""
        with self.argilla.as_user("owner") as owner:
            return owner.request(method, path, **({"json": body} if body else {})).raise_for_status()

    def edit(self, record: Mapping[str, Any], **texts: str) -> dict[str, Any]:
        """Change texts of a record, as a script of somebody else may; the fields as they are then."""
        fields = {**record["fields"], **texts}
        self.change("PUT", f"{self.path}/records/bulk", items=[{"external_id": record["external_id"], "fields": fields}])
        return fields

    def delete(self) -> None:
        """Delete the dataset."""
        self.change("DELETE", self.path)


def answer(argilla: Argilla, user: str, record: Mapping[str, Any], status: str = "submitted", **values: Any) -> httpx.Response:
    """Answer a record as a user: values by question. An answer that is there already is replaced, as on the page."""
    body = {"status": status, "values": {question: {"value": value} for question, value in values.items()}}
    with argilla.as_user(user) as client:
        items = [{**body, "record_id": record["id"]}]
        found = client.post("/api/v1/me/responses/bulk", json={"items": items}).raise_for_status()
        assert found.json()["items"][0]["error"] is None, found.text
        return found


def comparisons(folder: Path) -> list[dict[str, Any]]:
    """Every comparison, with its prompt's text and the texts of its completions."""
    found = []
    for row in load_feedback(folder).to_pylist():
        texts = [one["text"] for one in row["completions"]]
        for one in row["comparisons"]:
            shown = {"prompt": row["prompt"][-1]["content"], "first_text": texts[one["first"]], "second_text": texts[one["second"]]}
            found.append({**one, **shown})
    return found


def ratings(folder: Path) -> list[dict[str, Any]]:
    """Every rating, with the text of its completion."""
    rows = load_feedback(folder).to_pylist()
    return [{**one, "text": row["completions"][one["completion"]]["text"]} for row in rows for one in row["ratings"]]


def rejected(folder: Path) -> dict[str, int]:
    """Rows of rejects.parquet by reason."""
    counts: dict[str, int] = {}
    for reason in pq.read_table(folder / "rejects.parquet")["reason"].to_pylist():
        counts[reason] = counts.get(reason, 0) + 1
    return counts
