"""The test server itself: one application that plans faults, answers and remembers what came. Started and asked by openai_server.py."""

import asyncio
import re
import socket
import struct
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from hashlib import blake2b
from pathlib import Path
from secrets import token_hex
from typing import Any

import orjson
from openai_plan import STATUS, Fault, Plan
from simulated_judge import Qualities, Refusal, chance, complete, estimated_tokens, prompt_of
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

Json = dict[str, Any]
HALF_SENT = 0.02
"""Seconds between half a reply and the reset: a reset discards what the other side has not read yet."""
ENDPOINT = "/v1/chat/completions"
TERMINAL = ("completed", "failed", "expired", "cancelled")
UNDONE = {
    "expired": {"code": "batch_expired", "message": "This request could not be executed before the completion window expired."},
    "cancelled": {"code": "batch_cancelled", "message": "This request was not executed: the batch was cancelled."},
}


class App:
    """Answers requests by the plan and remembers them. qualities: of the simulated judge."""

    def __init__(self, plan: Plan, qualities: Qualities) -> None:
        self.plan, self.qualities = plan, qualities
        self.batches = desk = Batches(self)
        self.records: dict[str, list[Json]] = {"chat": [], "batch_line": []}
        self.sequence, self.attempts, self.tokens = Counter[str](), Counter[str](), Counter[str]()
        self.in_flight = self.most_in_flight = self.bugs = 0
        # By the names by which faults strike them; the route `batch_line` is a chat request inside a batch.
        api: dict[str, tuple[str, Callable[[Request, bytes], Any]]] = {
            "chat": ("POST chat/completions", lambda _, raw: orjson.loads(raw)),
            "files.create": ("POST files", lambda _, raw: desk.upload(*_parts(raw))),
            "files.content": ("GET files/{id}/content", lambda request, _: desk.content(request.path_params["id"])),
            "batches.create": ("POST batches", lambda _, raw: desk.create(orjson.loads(raw))),
            "batches.list": ("GET batches", lambda request, _: desk.page(request.query_params)),
            "batches.get": ("GET batches/{id}", lambda request, _: desk.get(request.path_params["id"])),
            "batches.cancel": ("POST batches/{id}/cancel", lambda request, _: desk.cancel(request.path_params["id"])),
        }
        calls = ((*where.split(), partial(self.answer, name, serve)) for name, (where, serve) in api.items())
        routes = [Route(f"/v1/{path}", serve, methods=[method]) for method, path, serve in calls]
        # Idle connections stay open: a client that comes back to one that was just closed would meet a fault that nobody planned.
        self.config = Config(Starlette(routes=routes), ws="none", lifespan="off", proxy_headers=False, access_log=False,
                             log_config=None, log_level="critical", timeout_keep_alive=3600)  # fmt: skip
        self.state = ServerState()

    def arrival(self, route: str, raw: bytes, key: str = "", **more: Any) -> Json:
        """The record of a request that has come; those of chat requests and of lines of batches are kept.

        seq: counts from 1 on its route, in order of arrival. digest: blake2b-128 of the body. attempt: how often this body has come,
        from 1. arrived, finished: seconds since the epoch. latency: seconds by which the answer was held back. status: null where none
        was sent. sent: the kernel took the whole reply (the other side may still have died before it read it).
        """
        digest = blake2b(raw, digest_size=16).hexdigest()
        self.sequence[route] += 1
        self.attempts[route + digest] += 1
        record = {
            "seq": self.sequence[route], "route": route, "digest": digest, "attempt": self.attempts[route + digest], "key": key,
            "arrived": time.time(), "finished": None, "latency": 0.0, "fault": None, "status": None, "sent": False, **more,
        }  # fmt: skip
        if route in self.records:
            self.records[route].append(record)
            record["body"] = orjson.loads(raw) if self.plan.keep_bodies else None
        return record

    async def answer(self, route: str, serve: Callable[[Request, bytes], Any], request: Request) -> Any:
        """Serves one request of the API."""
        raw = await request.body()
        record = self.arrival(route, raw, request.headers.get("authorization", "").removeprefix("Bearer "))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        fault = None
        try:
            if self.plan.api_keys is not None and record["key"] not in self.plan.api_keys:
                raise Refusal(401, "Incorrect API key provided.", "invalid_api_key")
            if route == "chat" and self.plan.rate_limit is not None:
                self.plan.rate_limit.admit()
            fault = self.fault(record, raw)
            value = serve(request, raw) if record["fault"] != "down" else None
            if route == "chat" and value:
                value, record["latency"] = self.chat(value, record, fault), self.plan.drawn_latency(record["seq"])
            reply = Response(value) if isinstance(value, bytes) else JSONResponse(value)
        except Refusal as refused:
            reply = JSONResponse(refused.body, refused.status, refused.headers)
        except Exception:
            self.bugs += 1
            traceback.print_exc()
            reply = JSONResponse({"error": {"message": "A bug in the test server; see its standard error."}}, 500)
        return partial(self.send, reply, record, fault)

    async def send(self, reply: Response, record: Json, fault: Fault | None, scope: Any, receive: Any, send: Any) -> None:
        """Sends a reply: late, in part or not at all where a fault says so."""
        kind, half = record["fault"], reply.body[: len(reply.body) // 2]
        transport: asyncio.Transport = scope["state"]["connection"].transport
        if kind in ("bad_json", "bad_gateway"):  # a proxy's page, no API's JSON
            reply = Response(b"<html><body>upstream connect error</body></html>", reply.status_code, media_type="application/json")
        elif kind == "cut_json":
            reply = Response(half, media_type="application/json")
        elif kind == "slow":
            record["latency"] = fault.seconds
        elif kind == "down":
            self.go_down(fault.seconds)
        elif kind == "close":
            transport.abort()
        if kind == "hang" or (record["latency"] and not transport.is_closing()):
            with suppress(TimeoutError):
                async with asyncio.timeout(None if kind == "hang" else record["latency"]):
                    while (await receive())["type"] != "http.disconnect":
                        pass
        if not transport.is_closing():  # closing: writing would do nothing, and not say so
            record["status"] = reply.status_code
            if kind == "reset":
                await send({"type": "http.response.start", "status": reply.status_code, "headers": reply.raw_headers})
                await send({"type": "http.response.body", "body": half, "more_body": True})
                await asyncio.sleep(HALF_SENT)
                _reset(transport)
            else:
                await reply(scope, receive, send)
                record["sent"] = not transport.is_closing()
        self.in_flight -= 1
        record["finished"] = time.time()

    def fault(self, record: Json, raw: bytes) -> Fault | None:
        """The fault that strikes a request, if any; one of STATUS is raised as its Refusal."""
        asks = self.plan.faults and record["route"] in self.records
        text = prompt_of(orjson.loads(raw)) if asks else raw.decode(errors="replace")
        for number, fault in enumerate(self.plan.faults):
            if fault.strikes(record, text, self.plan.seed, number):
                record["fault"] = fault.kind
                if fault.kind in STATUS:
                    raise fault.refusal()
                return fault
        return None

    def chat(self, body: Json, record: Json, fault: Fault | None) -> Json:
        """The reply to a chat request."""
        if self.plan.models and body["model"] not in self.plan.models:
            raise Refusal(404, f"The model '{body['model']}' does not exist or you do not have access to it.", "model_not_found")
        model = self.plan.models.get(body["model"], self.plan.defaults)
        if fault is not None and fault.kind == "low_mass":
            model = model.model_copy(update={"mass": fault.mass})
        reply = complete(body, model, self.plan.capabilities, self.qualities, record["digest"])
        if fault is not None:
            fault.spoil(reply)
        self.tokens.update(reply["usage"])
        return reply

    def line(self, body: Json, custom_id: str) -> tuple[int, Json]:
        """Status and body of the answer to one line of a batch."""
        record = self.arrival("batch_line", orjson.dumps(body), custom_id=custom_id)
        try:
            record["status"], reply = 200, self.chat(body, record, self.fault(record, orjson.dumps(body)))
        except Refusal as refused:
            record["status"], reply = refused.status, refused.body
        return record["status"], reply

    def told(self, name: str, change: Json | None) -> Any:
        """What came ("log", "counts"), after a change of the plan ("plan"); a text where that is wrong."""
        if name == "log":
            return self.records
        if name == "plan":
            try:
                changed = Plan(**change)
                self.plan = self.plan.model_copy(update={key: getattr(changed, key) for key in change})
            except ValueError as wrong:
                return str(wrong)
        chat, lines = self.records.values()
        good = Counter(one["digest"] for one in chat if one["sent"] and one["status"] == 200 and one["fault"] in (None, "slow"))
        return {
            "requests": len(chat),
            "answered": sum(good.values()),
            "answered_again": sum(good.values()) - len(good),
            "by_status": Counter(str(one["status"]) for one in chat if one["finished"] is not None),
            "by_fault": Counter(one["fault"] for one in [*chat, *lines] if one["fault"] is not None),
            "by_route": self.sequence,
            "in_flight": self.in_flight,
            "most_in_flight": self.most_in_flight,
            "connections": len(self.state.connections),
            "batches": len(self.batches.batches),
            "batches_by_status": Counter(batch["status"] for batch in self.batches.batches.values()),
            "files": [
                (file["bytes"], self.batches.contents[name].count(b"\n"))
                for name, file in self.batches.files.items()
                if file["purpose"] == "batch"
            ],
            **self.tokens,
        }

    async def run(self) -> int:
        """Serves, and says on standard output what a line on standard input asks for, until that ends; 1 after a bug of its own."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        # Bound but not listening, it keeps the port ours while the listening socket is closed.
        self.reservation = socket.socket()
        self.reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.reservation.bind(("127.0.0.1", 0))
        await self._listen()

        def asked() -> None:
            if line := sys.stdin.buffer.readline():
                print(orjson.dumps(self.told(*orjson.loads(line))).decode(), flush=True)
            else:
                ended.set()

        loop.add_reader(sys.stdin, asked)
        print(self.reservation.getsockname()[1], flush=True)
        await ended.wait()
        return 1 if self.bugs else 0

    async def _listen(self) -> None:
        address = self.reservation.getsockname()
        create = asyncio.get_running_loop().create_server
        self.listener: asyncio.Server | None = await create(self._connection, *address, reuse_port=True, backlog=4096)

    def _connection(self) -> H11Protocol:
        state: Json = {}  # the "state" in the scope of each of its requests
        state["connection"] = H11Protocol(self.config, self.state, state)
        return state["connection"]

    def go_down(self, seconds: float) -> None:
        """Refuses connections for so long, and ends those that are open.

        Those that wait for an answer are reset. One whose answer is with the kernel is closed in order: a reset would take the answer
        away from a client that has not read it yet, though the log says that it was sent.
        """
        if self.listener is not None:
            self.listener.close()
            self.listener, loop = None, asyncio.get_running_loop()
            loop.call_later(seconds, lambda: loop.create_task(self._listen()))
        for connection in list(self.state.connections):
            if connection.cycle is None or connection.cycle.response_complete:
                connection.transport.close()
            else:
                _reset(connection.transport)


def _reset(transport: asyncio.Transport) -> None:
    """Ends a connection with RST instead of FIN."""
    if not transport.is_closing():
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()


def _parts(raw: bytes) -> tuple[str, bytes]:
    """Purpose and content of an upload as multipart/form-data."""
    found = dict(re.findall(rb'name="(\w+)".*?\r\n\r\n(.*?)\r\n--', raw, re.DOTALL))
    return found[b"purpose"].decode(), found[b"file"]


class Batches:
    """Files and batches, newest last, after OpenAI's published API reference of the Batch API.

    A batch's state is worked out from the clock whenever it is looked at. Error codes of failed validations are ours where the
    reference gives none.
    """

    def __init__(self, app: App) -> None:
        self.app = app
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
        plan, now, name = self.app.plan, time.time(), f"batch_{token_hex(12)}"
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
            code, body = self.app.line(line["body"], line["custom_id"])
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


def main() -> None:
    """Serve until standard input ends. Of the command line: a plan as JSON, and a file of grades or nothing."""
    given, grades = sys.argv[1:]
    plan = Plan(**orjson.loads(given))
    sys.exit(asyncio.run(App(plan, Qualities(Path(grades) if grades else None, plan.worth)).run()))
