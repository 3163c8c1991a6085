"""What the tests of push and pull share: folders to push, answers by users over HTTP, and looking at what came of them."""

import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
from argilla_fixture import Argilla

from mmpo.annotate.argilla import PullOptions, PushOptions, pull, push
from mmpo.pipeline import BuildOptions, build, load_feedback

__all__ = ["Asked", "answer", "comparisons", "feedback", "name", "pairs", "pulled", "pushed", "ratings", "rejected", "unlocked"]


def name(start: str = "data") -> str:
    """A dataset's name of its own: all tests share one server."""
    return f"{start}-{uuid.uuid4().hex[:10]}"


def lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A JSON lines file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def feedback(folder: Path, rows: Sequence[Mapping[str, Any]] | int = 6, **options: Any) -> Path:
    """A FEEDBACK folder of rows in the format jsonl, or of so many made-up prompts with two replies each."""
    if isinstance(rows, int):
        rows = [
            {
                "prompt": f"Question {i}?",
                "completions": [f"Answer {j} to question {i}." for j in range(2)],
                "models": ["small", "large"],
            }
            for i in range(rows)
        ]
    source = lines(folder.with_suffix(".jsonl"), rows)
    build(source, folder, options=BuildOptions(format="jsonl", feedback_only=True, **options))
    return folder


def pairs(folder: Path, rows: int = 6, **options: Any) -> Path:
    """A PAIRS folder of made-up pairs whose margins an AI gave on 1 to 10: pair i has i % 9 + 1."""
    made = [
        {"prompt": f"Question {i}?", "completion": f"Answer {j} to question {i}.", "score": 1 + (i % 9 + 1) * j, "model": f"m{j}"}
        for i in range(rows)
        for j in range(2)
    ]
    source = lines(folder.with_suffix(".jsonl"), made)
    build(source, folder, options=BuildOptions(format="jsonl", scale=(1, 10), kind="ai", rater="judge-a", **options))
    return folder


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


def unlocked(argilla: Argilla, patch: Any) -> None:
    """Put the owner's key into the environment, as a user does."""
    patch.setenv("ARGILLA_API_KEY", argilla.owner_key)
