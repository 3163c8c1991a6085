"""The test server itself: routes, and faults and latencies applied to what they answer."""

import asyncio
import re
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
from server_batch import Batches
from server_chat import complete, estimated_tokens
from server_faults import Fault, FaultBook, Seen
from server_gate import Gate
from server_http import Answer, ApiError, Connection, Request, error_answer, json_answer
from server_judge import Qualities, prompt_of
from server_limits import RateLimiter, draw_latency
from server_log import Ledger, Record
from server_plan import Plan

__all__ = ["App"]

ROUTES: list[tuple[str, re.Pattern[str], str]] = [
    ("POST", re.compile(r"/v1/chat/completions"), "chat"),
    ("GET", re.compile(r"/v1/models(?:/(.+))?"), "models"),
    ("POST", re.compile(r"/v1/files"), "files.create"),
    ("GET", re.compile(r"/v1/files"), "files.list"),
    ("GET", re.compile(r"/v1/files/([^/]+)"), "files.get"),
    ("GET", re.compile(r"/v1/files/([^/]+)/content"), "files.content"),
    ("DELETE", re.compile(r"/v1/files/([^/]+)"), "files.delete"),
    ("POST", re.compile(r"/v1/batches"), "batches.create"),
    ("GET", re.compile(r"/v1/batches"), "batches.list"),
    ("GET", re.compile(r"/v1/batches/([^/]+)"), "batches.get"),
    ("POST", re.compile(r"/v1/batches/([^/]+)/cancel"), "batches.cancel"),
]
"""Method, path, and the route's name; the names are those that faults may strike."""


class App:
    """Answers requests by the plan. qualities: of the simulated judge. state: file of the batches, or None."""

    def __init__(self, plan: dict[str, Any], qualities: Qualities, state: Path | None) -> None:
        self.qualities = qualities
        self.connections: set[Connection] = set()
        self.ledger = Ledger()
        self.batches = Batches(lambda: self.plan, self.batch_line, state)
        self.stopping = asyncio.Event()
        self.gate = Gate(lambda: Connection(self))
        self.faults = FaultBook((), 0)
        self.limiter = RateLimiter(None, time.monotonic)
        self.given: dict[str, Any] = {}
        self.update(plan)

    def update(self, change: dict[str, Any]) -> None:
        """Replaces the top-level keys given; faults and limits that are given start counting anew. PlanError if wrong."""
        given = {**self.given, **change}
        plan = Plan.read(given)
        given.pop("down", None)
        self.given, self.plan = given, plan
        if "faults" in change or "seed" in change:
            self.faults = FaultBook(plan.faults, plan.seed)
        if "rate_limit" in change:
            self.limiter = RateLimiter(plan.rate_limit, time.monotonic, self.limiter.violations)
        if plan.down:
            self.go_down(plan.down)

    def go_down(self, seconds: float) -> None:
        """Refuses connections for so long, and ends those that are open except the one that is being served right now.

        Those that wait for an answer are reset. One whose answer is with the kernel is closed in order: a reset would take the answer
        away from a client that has not read it yet, though the log says that it was sent.
        """
        self.gate.shut(seconds)
        for connection in list(self.connections):
            if connection.busy and not connection.pumping:
                connection.reset()
            elif not connection.pumping:
                connection.transport.close()

    # --- requests -----------------------------------------------------------------------------------------------------

    def serve(self, request: Request, connection: Connection) -> None:
        """Answers one request, now or when its latency is over."""
        if request.path.startswith("/control/"):
            answer = self._guarded(lambda: self._control(request))
            connection.reply(answer, self.stopping.set if request.path == "/control/shutdown" else None)
            if self.gate.server is None:  # this request shut the gate: nothing more comes over its connection
                connection.transport.close()
            return
        route, argument = _route(request)
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        body = _parsed(request.body) if route in ("chat", "batches.create") else None
        record = self.ledger.arrival(route, request.body, body, key, self.plan.keep_bodies)
        self.ledger.started()
        answer = self._guarded(lambda: self._answer(route, argument, request, body, record))
        answer.headers["x-request-id"] = f"req_{record.seq:08d}"
        connection.on_lost = lambda: self.ledger.ended(record, answer.status if answer.cut == "reset" else None, False)
        if record.latency > 0:
            asyncio.get_running_loop().call_later(record.latency, self._send, connection, answer, record)
        else:
            self._send(connection, answer, record)

    def _send(self, connection: Connection, answer: Answer, record: Record) -> None:
        connection.reply(answer, lambda: self.ledger.ended(record, answer.status, True))

    def _answer(self, route: str, argument: str, request: Request, body: Any, record: Record) -> Answer:
        """The answer to one request; record.latency becomes what it is to be held back."""
        plan = self.plan
        if plan.api_keys is not None and record.key not in plan.api_keys:
            raise ApiError(401, "Incorrect API key provided.", code="invalid_api_key")
        headers: dict[str, str] = {}
        if route == "chat":
            headers, refused = self.limiter.admit(_size(body))
            if refused is not None:
                return refused
        fault = self._fault(record, body, request.body)
        record.latency = fault.seconds if fault is not None else 0.0
        if fault is not None and fault.stage == "down":
            record.latency = 0.0
            self.go_down(fault.seconds)
            return Answer(503, b"", cut="close")
        if fault is not None and fault.stage == "status":
            return fault.error()
        if route == "chat":
            record.latency = record.latency or draw_latency(plan.latency, plan.seed, record.seq)
            answer = json_answer(self._chat(body, record.digest, fault))
            answer.headers.update(headers)
        else:
            answer = self._other(route, argument, request, body)
        if fault is not None:
            fault.spoil_answer(answer)
        return answer

    def _fault(self, record: Record, body: Any, raw: bytes) -> Fault | None:
        """The fault that strikes a request, if any."""
        if not self.faults.faults:
            return None
        chat = record.route in ("chat", "batch_line") and isinstance(body, dict)
        text = (lambda: prompt_of(body)) if chat else (lambda: raw.decode("utf-8", "replace"))
        fault = self.faults.find(Seen(record.route, record.seq, record.digest, record.attempt, record.model, text))
        record.fault = fault.kind if fault is not None else None
        return fault

    def _chat(self, body: Any, digest: str, fault: Fault | None) -> dict[str, Any]:
        if not isinstance(body, dict):
            raise ApiError(400, "We could not parse the JSON body of your request.")
        name = body.get("model")
        if not isinstance(name, str) or not name:
            raise ApiError(400, "you must provide a model parameter", param="model")
        model = self.plan.model(name)
        if model is None:
            raise ApiError(404, f"The model '{name}' does not exist or you do not have access to it.", code="model_not_found")
        mass = fault.mass if fault is not None and fault.kind == "low_mass" else None
        reply = complete(body, name, model, self.qualities, digest, int(time.time()), mass)
        if fault is not None and fault.stage == "reply":
            fault.spoil_reply(reply)
        self.ledger.spent(reply["usage"])
        return reply

    def batch_line(self, body: dict[str, Any], custom_id: str, batch: str) -> tuple[int, dict[str, Any]]:
        """Status and body of the answer to one line of a batch."""
        raw = orjson.dumps(body)
        record = self.ledger.arrival("batch_line", raw, body, "", self.plan.keep_bodies)
        record.custom_id, record.batch = custom_id, batch
        fault = self._fault(record, body, raw)
        try:
            if fault is not None and fault.stage == "status":
                answer = fault.error()
                record.status, reply = answer.status, orjson.loads(answer.body) if answer.content_type != "text/html" else {}
            else:
                record.status, reply = 200, self._chat(body, record.digest, fault)
        except ApiError as refused:
            record.status, reply = refused.status, {"error": refused.body}
        record.finished = time.time()
        return record.status, reply

    def _other(self, route: str, argument: str, request: Request, body: Any) -> Answer:
        desk = self.batches
        if route == "batches.create" and not isinstance(body, dict):
            raise ApiError(400, "We could not parse the JSON body of your request.")
        answers = {
            "models": lambda: self._models(argument),
            "files.create": lambda: desk.upload(request),
            "files.list": desk.list_files,
            "files.get": lambda: json_answer(desk.file(argument)),
            "files.content": lambda: desk.content(argument),
            "files.delete": lambda: desk.delete(argument),
            "batches.create": lambda: desk.create(body),
            "batches.list": lambda: desk.page(request.query),
            "batches.get": lambda: json_answer(desk.get(argument)),
            "batches.cancel": lambda: desk.cancel(argument),
        }
        if route not in answers:
            raise ApiError(404, f"Unknown request URL: {request.method} {request.path}.", code="unknown_url")
        return answers[route]()

    def _models(self, argument: str) -> Answer:
        names = list(self.plan.models) or ["judge"]
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "mmpo"} for name in names]
        if not argument:
            return json_answer({"object": "list", "data": data})
        for entry in data:
            if entry["id"] == argument:
                return json_answer(entry)
        raise ApiError(404, f"The model '{argument}' does not exist.", code="model_not_found", param="model")

    def _guarded(self, work: Callable[[], Answer]) -> Answer:
        """An answer in any case: what the API refuses, or a bug of ours, which is counted and told on standard error."""
        try:
            return work()
        except ApiError as refused:
            return refused.answer()
        except Exception:
            self.ledger.bugs += 1
            traceback.print_exc(file=sys.stderr)
            return error_answer(500, "A bug in the test server; see its standard error.", "server_bug", None, "server_bug")

    # --- control ------------------------------------------------------------------------------------------------------

    def _control(self, request: Request) -> Answer:
        if request.path == "/control/log":
            return json_answer({"requests": self.ledger.chat, "batch_requests": self.ledger.lines})
        if request.path == "/control/counts":
            more = {"rate_limit_violations": self.limiter.violations, "connections": len(self.connections)}
            return json_answer({**self.ledger.counts(), **more, "batches": len(self.batches.batches)})
        if request.path == "/control/plan":
            try:
                if request.method == "POST":
                    self.update(dict(orjson.loads(request.body)))
            except (ValueError, TypeError) as problem:  # PlanError and bad JSON are ValueErrors
                raise ApiError(400, str(problem), code="bad_plan") from None
            return json_answer(asdict(self.plan))
        if request.path == "/control/shutdown":
            return json_answer({"stopping": True})
        raise ApiError(404, "control offers log, counts, plan and shutdown", code="unknown_url")


def _route(request: Request) -> tuple[str, str]:
    if request.method == "POST" and request.path == "/v1/chat/completions":
        return "chat", ""
    for method, path, name in ROUTES:
        match = path.fullmatch(request.path) if method == request.method else None
        if match:
            return name, (match[1] or "") if match.groups() else ""
    return "unknown", ""


def _parsed(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None


def _size(body: Any) -> int:
    """Tokens that a request counts for: its prompt and its limit."""
    if not isinstance(body, dict):
        return 1
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    return estimated_tokens(prompt_of(body)) + (limit if isinstance(limit, int) else 0)
