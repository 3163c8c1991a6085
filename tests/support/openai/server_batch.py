"""Files and batches of the test server: an emulator of ours after OpenAI's published API reference of the Batch API.

A batch's state is worked out from the clock whenever it is looked at, so a server that was stopped and started with the same
state file goes on where the batch would be by then. Error codes of failed validations are ours where the reference gives none.
"""

import base64
import math
import time
from collections.abc import Callable
from pathlib import Path
from secrets import token_hex
from typing import Any

import orjson
from server_chat import estimated_tokens
from server_faults import chance
from server_http import Answer, ApiError, Request, json_answer, multipart
from server_plan import Plan

__all__ = ["Batches"]

ENDPOINT = "/v1/chat/completions"
VALIDATED, WORKED = 0.1, 0.9
"""Shares of batch_seconds at which a batch goes in progress and starts finalizing."""

TERMINAL = ("completed", "failed", "expired", "cancelled")
UNDONE = {
    "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
    "cancelled": ("batch_cancelled", "This request was not executed: the batch was cancelled."),
}
STAMPS = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")

Json = dict[str, Any]


class Batches:
    """Files and batches, newest last.

    plan: gives the plan of the moment. respond: a chat request's body and raw line → status and body of the answer. state:
    where to keep everything, None for memory only.
    """

    def __init__(self, plan: Callable[[], Plan], respond: Callable[[Json, str, str], tuple[int, Json]], state: Path | None) -> None:
        self.plan, self.respond, self.state = plan, respond, state
        self.files: dict[str, Json] = {}
        self.contents: dict[str, bytes] = {}
        self.batches: dict[str, Json] = {}
        self.work: dict[str, Json] = {}
        self.used = {"expire": 0, "fail": 0}
        if state is not None and state.exists():
            kept = orjson.loads(state.read_bytes())
            self.files, self.batches, self.work = kept["files"], kept["batches"], kept["work"]
            self.contents = {name: base64.b64decode(text) for name, text in kept["contents"].items()}

    def _save(self) -> None:
        if self.state is None:
            return
        contents = {name: base64.b64encode(content).decode() for name, content in self.contents.items()}
        value = {"files": self.files, "batches": self.batches, "work": self.work, "contents": contents}
        beside = self.state.with_name(self.state.name + ".part")
        beside.write_bytes(orjson.dumps(value))
        beside.replace(self.state)

    # --- files --------------------------------------------------------------------------------------------------------

    def upload(self, request: Request) -> Answer:
        """POST /v1/files."""
        parts = multipart(request)
        if "file" not in parts or "purpose" not in parts:
            raise ApiError(400, "The parts 'file' and 'purpose' are required.", param="file")
        purpose = parts["purpose"][1].decode("utf-8", "replace")
        if purpose != "batch":
            raise ApiError(400, f"'{purpose}' is not a purpose that is offered here; allowed: batch.", param="purpose")
        answer = json_answer(self._keep(parts["file"][0] or "upload.jsonl", purpose, parts["file"][1]))
        self._save()
        return answer

    def _keep(self, name: str, purpose: str, content: bytes) -> Json:
        identity = f"file-{token_hex(12)}"
        entry = {"id": identity, "object": "file", "bytes": len(content), "created_at": int(time.time()), "filename": name}
        self.files[identity] = {**entry, "purpose": purpose, "status": "processed"}
        self.contents[identity] = content
        return self.files[identity]

    def file(self, identity: str) -> Json:
        """The file object of that id; ApiError 404."""
        if identity not in self.files:
            raise ApiError(404, f"No such File object: {identity}", param="id")
        return self.files[identity]

    def content(self, identity: str) -> Answer:
        """GET /v1/files/{id}/content."""
        self.file(identity)
        return Answer(200, self.contents[identity], content_type="application/octet-stream")

    def delete(self, identity: str) -> Answer:
        """DELETE /v1/files/{id}."""
        self.file(identity)
        if any(batch["input_file_id"] == identity and batch["status"] not in TERMINAL for batch in self._all()):
            raise ApiError(400, f"The file {identity} is read by a batch that has not ended.", param="id")
        del self.files[identity], self.contents[identity]
        self._save()
        return json_answer({"id": identity, "object": "file", "deleted": True})

    def list_files(self) -> Answer:
        """GET /v1/files, all on one page."""
        data = list(reversed(self.files.values()))
        return json_answer({"object": "list", "data": data, "has_more": False})

    # --- batches ------------------------------------------------------------------------------------------------------

    def create(self, body: Json) -> Answer:
        """POST /v1/batches: validated at once, told at the first look."""
        if body.get("completion_window") != "24h":
            raise ApiError(400, "Invalid value for 'completion_window'. Supported: '24h'.", param="completion_window")
        if body.get("endpoint") != ENDPOINT:
            raise ApiError(400, f"Invalid value for 'endpoint'. Supported here: '{ENDPOINT}'.", param="endpoint")
        metadata = body.get("metadata")
        if not _tidy(metadata):
            raise ApiError(400, "'metadata' holds up to 16 pairs, keys of 64 and values of 512 characters.", param="metadata")
        source = str(body.get("input_file_id"))
        self.file(source)
        now, plan = time.time(), self.plan()
        identity = f"batch_{token_hex(12)}"
        batch: Json = {"id": identity, "object": "batch", "endpoint": ENDPOINT, "errors": None, "input_file_id": source}
        batch |= {"completion_window": "24h", "status": "validating", "output_file_id": None, "error_file_id": None}
        batch |= {"created_at": int(now), "expires_at": int(now) + 86400, **{f"{name}_at": None for name in STAMPS}}
        batch |= {"request_counts": {"total": 0, "completed": 0, "failed": 0}, "metadata": metadata}
        requests, errors = self._validate(self.contents[source], plan)
        tokens = sum(request["tokens"] for request in requests)
        waiting = sum(self.work[one["id"]]["tokens"] for one in self._all() if one["status"] not in TERMINAL)
        if not errors and plan.batch_enqueued_tokens is not None and waiting + tokens > plan.batch_enqueued_tokens:
            message = f"Enqueued token limit reached. Limit: {plan.batch_enqueued_tokens:,} enqueued tokens."
            errors = [
                _error("token_limit_exceeded", f"{message} Please try again once some in_progress batches have been completed.")
            ]
        share = None
        if not errors and plan.batch_expire and self.used["expire"] < plan.batch_expire.times:
            self.used["expire"] += 1
            share = plan.batch_expire.share
        self.batches[identity] = batch
        work = {"started": now, "seconds": plan.batch_seconds, "share": share, "errors": errors, "tokens": 0 if errors else tokens}
        self.work[identity] = {**work, "total": len(requests)}
        self._save()
        return json_answer(batch)

    def _validate(self, content: bytes, plan: Plan) -> tuple[list[Json], list[Json]]:
        """The requests of an input file, and what is wrong with it."""
        if plan.batch_fail and self.used["fail"] < plan.batch_fail.times:
            self.used["fail"] += 1
            return [], [_error(plan.batch_fail.code, plan.batch_fail.message, plan.batch_fail.line)]
        if len(content) > plan.batch_max_bytes:
            return [], [_error("file_size_limit_exceeded", f"{len(content)} bytes; the limit is {plan.batch_max_bytes}.")]
        requests, errors = [], []
        seen: set[str] = set()
        for number, line in enumerate(content.splitlines(), 1):
            problem = _problem(line, seen, requests)
            if problem is not None:
                errors.append(_error(*problem, line=number))
        if len(requests) > plan.batch_max_requests:
            return [], [_error("request_limit_exceeded", f"{len(requests)} requests; the limit is {plan.batch_max_requests}.")]
        if not requests and not errors:
            errors = [_error("empty_file", "The input file holds no request.")]
        return requests, errors

    def get(self, identity: str) -> Json:
        """The batch of that id as it is now; ApiError 404."""
        if identity not in self.batches:
            raise ApiError(404, f"No batch found with id '{identity}'.", param="id")
        self._advance(identity)
        return self.batches[identity]

    def _all(self) -> list[Json]:
        return [self.get(identity) for identity in list(self.batches)]

    def page(self, query: dict[str, str]) -> Answer:
        """GET /v1/batches: the newest first, `limit` a page (20), after the id `after`."""
        data = self._all()[::-1]
        if "after" in query:
            places = [place for place, batch in enumerate(data) if batch["id"] == query["after"]]
            if not places:
                raise ApiError(404, f"No batch found with id '{query['after']}'.", param="after")
            data = data[places[0] + 1 :]
        given = query.get("limit", "20")
        limit = int(given) if given.isdecimal() else 0
        if not 1 <= limit <= 100:
            raise ApiError(400, f"Invalid 'limit': {given}. Expected a number from 1 to 100.", param="limit")
        shown = data[:limit]
        ends = {"first_id": shown[0]["id"] if shown else None, "last_id": shown[-1]["id"] if shown else None}
        return json_answer({"object": "list", "data": shown, **ends, "has_more": len(data) > limit})

    def cancel(self, identity: str) -> Answer:
        """POST /v1/batches/{id}/cancel: cancelling now, cancelled at the next look."""
        batch = self.get(identity)
        if batch["status"] in TERMINAL:
            raise ApiError(400, f"Cannot cancel a batch with status '{batch['status']}'.", code="invalid_batch_status")
        batch["status"], batch["cancelling_at"] = "cancelling", int(time.time())
        self._save()
        return json_answer(batch)

    def _advance(self, identity: str) -> None:
        batch, work = self.batches[identity], self.work[identity]
        if batch["status"] in TERMINAL:
            return
        now = time.time()
        part = (now - work["started"]) / work["seconds"] if work["seconds"] else math.inf
        if work["errors"]:
            if part >= VALIDATED:
                batch |= {"status": "failed", "failed_at": int(now), "errors": {"object": "list", "data": work["errors"]}}
        elif batch["status"] == "cancelling":
            part = (batch["cancelling_at"] - work["started"]) / work["seconds"] if work["seconds"] else 0.0
            self._finish(batch, "cancelled", _done_by(part, work["total"]))
        elif part >= VALIDATED:
            batch["in_progress_at"] = batch["in_progress_at"] or int(work["started"] + VALIDATED * work["seconds"])
            done = _done_by(part, work["total"])
            batch["request_counts"] = {"total": work["total"], "completed": done, "failed": 0}
            batch["status"] = "in_progress" if part < WORKED else "finalizing"
            if part >= WORKED:
                batch["finalizing_at"] = batch["finalizing_at"] or int(work["started"] + WORKED * work["seconds"])
            if part >= 1:
                share = work["share"]
                self._finish(
                    batch, "completed" if share is None else "expired", int((1 if share is None else share) * work["total"])
                )
        if batch["status"] in TERMINAL:
            self._save()

    def _finish(self, batch: Json, status: str, done: int) -> None:
        """Answers the first `done` requests in an order of our own, and writes both files."""
        lines = [orjson.loads(line) for line in self.contents[batch["input_file_id"]].splitlines()]
        lines.sort(key=lambda line: chance("order", line["custom_id"]))
        good, bad = [], []
        for line in lines[:done]:
            code, body = self.respond(line["body"], line["custom_id"], batch["id"])
            response = {"status_code": code, "request_id": f"req_{token_hex(8)}", "body": body}
            (good if code == 200 else bad).append(_result(line, response, None))
        failed = len(bad)
        if status in UNDONE:
            code, message = UNDONE[status]
            bad += [_result(line, None, {"code": code, "message": message}) for line in lines[done:]]
        for key, results in (("output_file_id", good), ("error_file_id", bad)):
            if results:
                text = b"".join(orjson.dumps(result) + b"\n" for result in results)
                batch[key] = self._keep(f"{batch['id']}_{key.split('_')[0]}.jsonl", "batch_output", text)["id"]
        batch |= {"status": status, f"{status}_at": int(time.time())}
        batch["request_counts"] = {"total": len(lines), "completed": len(good), "failed": failed}


def _tidy(metadata: Any) -> bool:
    """Metadata is null or a small object of texts."""
    if metadata is None:
        return True
    if not isinstance(metadata, dict) or len(metadata) > 16:
        return False
    return all(isinstance(value, str) and len(key) <= 64 and len(value) <= 512 for key, value in metadata.items())


def _done_by(part: float, total: int) -> int:
    """How many requests are done at that share of the time."""
    return int(total * min(1.0, max(0.0, (part - VALIDATED) / (WORKED - VALIDATED))))


def _result(line: Json, response: Json | None, error: Json | None) -> Json:
    return {"id": f"batch_req_{token_hex(8)}", "custom_id": line["custom_id"], "response": response, "error": error}


def _error(code: str, message: str, line: int | None = None, param: str | None = None) -> Json:
    return {"code": code, "message": message, "line": line, "param": param}


def _problem(line: bytes, seen: set[str], requests: list[Json]) -> tuple[str, str] | None:
    """What is wrong with a line, None if nothing is; the request goes into `requests`, its id into `seen`."""
    try:
        request = orjson.loads(line)
        custom_id, method, url, body = (request[key] for key in ("custom_id", "method", "url", "body"))
    except orjson.JSONDecodeError:
        return "invalid_json_line", "This line is not parseable as valid JSON."
    except (KeyError, TypeError):
        return "missing_required_parameter", "A line needs custom_id, method, url and body."
    if not isinstance(custom_id, str) or not isinstance(body, dict):
        return "invalid_request", "custom_id must be a text and body an object."
    if custom_id in seen:
        return "duplicate_custom_id", f"The custom_id '{custom_id}' stands in an earlier line too."
    if method != "POST" or url != ENDPOINT:
        return "invalid_url", f"Every line must be a POST to the batch's endpoint, {ENDPOINT}."
    if requests and requests[0]["model"] != body.get("model"):
        return "mismatched_model", "All lines of a file must name the same model."
    seen.add(custom_id)
    requests.append({"model": body.get("model"), "tokens": estimated_tokens(line.decode("utf-8", "replace"))})
    return None
