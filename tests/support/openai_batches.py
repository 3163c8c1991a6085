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

ENDPOINT = "/v1/chat/completions"
TERMINAL = ("completed", "failed", "expired", "cancelled")
UNDONE = {
    "expired": {"code": "batch_expired", "message": "This request could not be executed before the completion window expired."},
    "cancelled": {"code": "batch_cancelled", "message": "This request was not executed: the batch was cancelled."},
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
        """By batch, what the API does not tell: started, seconds, share (where it expires), errors, tokens and the requests' lines."""

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
        lines, tokens = [orjson.loads(line) for line in content.splitlines()], estimated_tokens(content)
        failing, share = _next(plan.batch_fail), None
        errors = [{"line": 1, **failing}] if failing else self._errors(content, lines, tokens, plan)
        if not errors and (expiring := _next(plan.batch_expire)):
            share = expiring["share"]
        self.work[name] = {"started": now, "seconds": plan.batch_seconds, "share": share, "errors": errors,
                           "tokens": 0 if errors else tokens, "lines": lines}  # fmt: skip
        batch = {"id": name, "object": "batch", "status": "validating", "created_at": int(now), "errors": None, **body}
        self.batches[name] = {**batch, "output_file_id": None, "error_file_id": None, "request_counts": _counts(0, 0, 0)}
        return self.batches[name]

    def _errors(self, content: bytes, lines: list[Json], tokens: int, plan: Any) -> list[Json]:
        """What is wrong with a file of requests."""
        tokens += sum(self.work[name]["tokens"] for name in self.batches if self.get(name)["status"] not in TERMINAL)
        problems = {
            "file_size_limit_exceeded": len(content) > plan.batch_max_bytes,
            "request_limit_exceeded": len(lines) > plan.batch_max_requests,
            "empty_file": not lines,
            "duplicate_custom_id": len({line["custom_id"] for line in lines}) < len(lines),
            "invalid_url": {(line["method"], line["url"]) for line in lines} != {("POST", ENDPOINT)},
            "mismatched_model": len({line["body"]["model"] for line in lines}) > 1,
            "token_limit_exceeded": plan.batch_enqueued_tokens is not None and tokens > plan.batch_enqueued_tokens,
        }
        message = f"{len(content)} bytes, {len(lines)} requests, {tokens} tokens with those in progress."
        return [{"code": code, "message": message, "line": None} for code, holds in problems.items() if holds]

    def get(self, name: str) -> Json:
        """GET /v1/batches/{id}: the batch as it is now."""
        if name not in self.batches:
            raise Refusal(404, f"No batch found with id '{name}'.", param="id")
        batch, work = self.batches[name], self.work[name]
        total, share = len(work["lines"]), work["share"]
        part = min(1.0, (time.time() - work["started"]) / work["seconds"]) if work["seconds"] else 1.0
        if batch["status"] in TERMINAL:
            pass
        elif work["errors"]:
            batch |= {"status": "failed", "errors": {"object": "list", "data": work["errors"]}}
        elif batch["status"] == "cancelling":
            self._finish(batch, "cancelled", int(total * part))
        elif part < 1:
            batch |= {"status": "in_progress", "request_counts": _counts(total, int(total * part), 0)}
        else:
            self._finish(batch, "completed" if share is None else "expired", int(total * (1.0 if share is None else share)))
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
        good, bad = [], []
        lines = sorted(self.work[batch["id"]]["lines"], key=lambda line: chance("order", line["custom_id"]))
        for number, line in enumerate(lines):
            row = {"id": f"batch_req_{token_hex(8)}", "custom_id": line["custom_id"], "response": None, "error": None}
            if number >= done:
                bad.append({**row, "error": UNDONE[status]})
                continue
            code, body = self.respond(line["body"], line["custom_id"])
            row["response"] = {"status_code": code, "request_id": f"req_{token_hex(8)}", "body": body}
            (good if code == 200 else bad).append(row)
        batch |= {"status": status, "request_counts": _counts(len(lines), len(good), done - len(good))}
        for key, rows in (("output_file_id", good), ("error_file_id", bad)):
            if rows:
                batch[key] = self.upload("batch_output", b"".join(orjson.dumps(row) + b"\n" for row in rows))["id"]


def _next(planned: Json | None) -> Json | None:
    """What is planned for the next batches, if it is for this one; one time less is left."""
    if not planned or not planned["times"]:
        return None
    planned["times"] -= 1
    return planned


def _counts(total: int, completed: int, failed: int) -> Json:
    return {"total": total, "completed": completed, "failed": failed}
