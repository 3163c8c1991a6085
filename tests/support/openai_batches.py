"""Files and batches of the test server, after OpenAI's published API reference of the Batch API.

A batch's state is worked out from the clock whenever it is looked at. Error codes of failed validations are ours where the reference
gives none.
"""

import time
from collections.abc import Callable, Mapping
from secrets import token_hex
from typing import Any

import orjson
from simulated_judge import Refusal, chance, estimated_tokens

__all__ = ["Batches"]

ENDPOINT = "/v1/chat/completions"
TERMINAL = ("completed", "failed", "expired", "cancelled")
UNDONE = {
    "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
    "cancelled": ("batch_cancelled", "This request was not executed: the batch was cancelled."),
}

Json = dict[str, Any]


class Batches:
    """Files and batches, newest last.

    plan: gives the plan of the moment. respond: a line's body and its custom_id → status and body of the answer.
    """

    def __init__(self, plan: Callable[[], Any], respond: Callable[[Json, str], tuple[int, Json]]) -> None:
        self.plan, self.respond = plan, respond
        self.files: dict[str, Json] = {}
        self.contents: dict[str, bytes] = {}
        self.batches: dict[str, Json] = {}
        self.work: dict[str, Json] = {}
        """By batch, what the API does not tell: started, seconds, share (where it expires), errors, tokens and total requests."""

    def upload(self, purpose: str, content: bytes) -> Json:
        """POST /v1/files, and where results are kept."""
        name = f"file-{token_hex(12)}"
        self.files[name] = {"id": name, "object": "file", "bytes": len(content), "created_at": int(time.time()), "purpose": purpose}
        self.contents[name] = content
        return self.files[name]

    def content(self, name: str) -> bytes:
        """GET /v1/files/{id}/content."""
        if name not in self.contents:
            raise Refusal(404, f"No such File object: {name}", param="id")
        return self.contents[name]

    def create(self, body: Json) -> Json:
        """POST /v1/batches: validated at once, told at the first look."""
        if body["completion_window"] != "24h" or body["endpoint"] != ENDPOINT:
            raise Refusal(400, f"Supported: the completion_window '24h' and the endpoint '{ENDPOINT}'.")
        plan, now, name = self.plan(), time.time(), f"batch_{token_hex(12)}"
        content = self.content(body["input_file_id"])
        errors = self._errors(content, plan)
        share = None
        if not errors and plan.batch_expire and plan.batch_expire["times"]:
            plan.batch_expire["times"] -= 1
            share = plan.batch_expire["share"]
        total, tokens = len(content.splitlines()), 0 if errors else estimated_tokens(content)
        work = {"started": now, "seconds": plan.batch_seconds, "share": share, "errors": errors, "tokens": tokens, "total": total}
        batch = {"id": name, "object": "batch", "status": "validating", "created_at": int(now), "errors": None, **body}
        self.work[name] = work
        self.batches[name] = {**batch, "output_file_id": None, "error_file_id": None, "request_counts": _counts(0, 0, 0)}
        return self.batches[name]

    def _errors(self, content: bytes, plan: Any) -> list[Json]:
        """What is wrong with a file of requests."""
        if plan.batch_fail and plan.batch_fail["times"]:
            plan.batch_fail["times"] -= 1
            return [{"line": 1, **plan.batch_fail}]
        lines = [orjson.loads(line) for line in content.splitlines()]
        queued = sum(self.work[name]["tokens"] for name in self.batches if self.get(name)["status"] not in TERMINAL)
        queue, tokens = plan.batch_enqueued_tokens, queued + estimated_tokens(content)
        problems = {
            "file_size_limit_exceeded": len(content) > plan.batch_max_bytes,
            "request_limit_exceeded": len(lines) > plan.batch_max_requests,
            "empty_file": not lines,
            "duplicate_custom_id": len({line["custom_id"] for line in lines}) < len(lines),
            "invalid_url": {(line["method"], line["url"]) for line in lines} != {("POST", ENDPOINT)},
            "mismatched_model": len({line["body"]["model"] for line in lines}) > 1,
            "token_limit_exceeded": queue is not None and tokens > queue,
        }
        message = f"{len(content)} bytes, {len(lines)} requests, {tokens} tokens with those in progress."
        return [{"code": code, "message": message, "line": None} for code, holds in problems.items() if holds]

    def get(self, name: str) -> Json:
        """GET /v1/batches/{id}: the batch as it is now."""
        if name not in self.batches:
            raise Refusal(404, f"No batch found with id '{name}'.", param="id")
        batch, work = self.batches[name], self.work[name]
        part = min(1.0, (time.time() - work["started"]) / work["seconds"]) if work["seconds"] else 1.0
        done = int(work["total"] * part)
        if batch["status"] in TERMINAL:
            pass
        elif work["errors"]:
            batch |= {"status": "failed", "errors": {"object": "list", "data": work["errors"]}}
        elif batch["status"] == "cancelling":
            self._finish(batch, "cancelled", done)
        elif part < 1:
            batch |= {"status": "in_progress", "request_counts": _counts(work["total"], done, 0)}
        elif work["share"] is None:
            self._finish(batch, "completed", done)
        else:
            self._finish(batch, "expired", int(work["share"] * work["total"]))
        return batch

    def page(self, query: Mapping[str, str]) -> Json:
        """GET /v1/batches: the newest first, `limit` a page (20), after the id `after`."""
        data = [self.get(name) for name in reversed(self.batches)]
        start = [batch["id"] for batch in data].index(query["after"]) + 1 if "after" in query else 0
        end = start + int(query.get("limit", "20"))
        return {"object": "list", "data": data[start:end], "has_more": len(data) > end}

    def cancel(self, name: str) -> Json:
        """POST /v1/batches/{id}/cancel: cancelling now, cancelled at the next look."""
        batch = self.get(name)
        if batch["status"] in TERMINAL:
            raise Refusal(400, f"Cannot cancel a batch with status '{batch['status']}'.", "invalid_batch_status")
        batch["status"] = "cancelling"
        return batch

    def _finish(self, batch: Json, status: str, done: int) -> None:
        """Answers the first `done` requests in an order of our own, and writes both files."""
        lines = [orjson.loads(line) for line in self.contents[batch["input_file_id"]].splitlines()]
        lines.sort(key=lambda line: chance("order", line["custom_id"]))
        good, bad = [], []
        for line in lines[:done]:
            code, body = self.respond(line["body"], line["custom_id"])
            response = {"status_code": code, "request_id": f"req_{token_hex(8)}", "body": body}
            (good if code == 200 else bad).append({"custom_id": line["custom_id"], "response": response, "error": None})
        batch |= {"status": status, "request_counts": _counts(len(lines), len(good), len(bad))}
        for line in lines[done:]:
            error = dict(zip(("code", "message"), UNDONE[status]))
            bad.append({"custom_id": line["custom_id"], "response": None, "error": error})
        for key, rows in (("output_file_id", good), ("error_file_id", bad)):
            if rows:
                text = b"".join(orjson.dumps({"id": f"batch_req_{token_hex(8)}", **row}) + b"\n" for row in rows)
                batch[key] = self.upload("batch_output", text)["id"]


def _counts(total: int, completed: int, failed: int) -> Json:
    return {"total": total, "completed": completed, "failed": failed}
