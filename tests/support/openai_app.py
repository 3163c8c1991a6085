"""The test server itself: routes, faults and latencies applied to what they answer, and what came.

A process of its own, started by openai_server.py. Beside the API it answers GET /control/log and /control/counts (what came) and
POST /control/plan (replaces top-level keys of the plan).
"""

import asyncio
import json
import os
import signal
import socket
import struct
import sys
import time
import traceback
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import orjson
from openai_batches import Batches
from openai_plan import ROUTES, STATUS, Fault, Plan, updated
from simulated_judge import JudgeModel, Qualities, Refusal, complete, prompt_of
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

__all__ = ["App", "Record"]

LOOPBACK = "127.0.0.1"
HALF_SENT = 0.02
"""Seconds between half a reply and the reset: a reset discards what the other side has not read yet."""


@dataclass(slots=True)
class Record:
    """One request that came, by HTTP or as a line of a batch.

    seq: counts from 1 on its route, in order of arrival. digest: blake2b-128 of the body. attempt: how often this body has
    come, from 1. arrived, finished: seconds since the epoch. latency: seconds by which the answer was held back. status: null where
    none was sent. sent: the kernel took the whole reply (the other side may still have died before it read it).
    """

    seq: int
    route: str
    digest: str
    attempt: int
    key: str
    arrived: float
    body: Any = None
    custom_id: str | None = None
    latency: float = 0.0
    fault: str | None = None
    status: int | None = None
    sent: bool = False
    finished: float | None = None


class App:
    """Answers requests by the plan and remembers them. qualities: of the simulated judge."""

    def __init__(self, plan: Plan, qualities: Qualities) -> None:
        self.plan, self.qualities = plan, qualities
        self.batches = desk = Batches(lambda: self.plan, self.line)
        self.records: dict[str, list[Record]] = {"chat": [], "batch_line": []}
        self.sequence: Counter[str] = Counter()
        self.attempts: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self.in_flight = self.most_in_flight = self.bugs = 0
        self.serve = {
            "chat": lambda request, raw, record, fault: self.chat(orjson.loads(raw), record, fault),
            "files.create": lambda request, raw, *_: desk.upload(**_parts(request, raw)),
            "files.list": lambda *_: {"object": "list", "data": [*reversed(desk.files.values())], "has_more": False},
            "files.content": lambda request, *_: desk.content(request.path_params["id"]),
            "batches.create": lambda request, raw, *_: desk.create(orjson.loads(raw)),
            "batches.list": lambda request, *_: desk.page(request.query_params),
            "batches.get": lambda request, *_: desk.get(request.path_params["id"]),
            "batches.cancel": lambda request, *_: desk.cancel(request.path_params["id"]),
        }
        routes = [Route(path, partial(self.answer, name), methods=[method]) for name, (method, path) in ROUTES.items()]
        # Idle connections stay open: a client that comes back to one that was just closed would meet a fault that nobody planned.
        self.config = Config(
            Starlette(routes=[*routes, Route("/control/{name}", self.control, methods=["GET", "POST"])]),
            ws="none", lifespan="off", proxy_headers=False, access_log=False, log_config=None, log_level="critical",
            timeout_keep_alive=3600,
        )  # fmt: skip
        self.state = ServerState()

    async def answer(self, route: str, request: Request) -> Any:
        """Serves one request of the API."""
        raw = await request.body()
        record = self._arrival(route, raw, request.headers.get("authorization", "").removeprefix("Bearer "))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        fault = None
        try:
            if self.plan.api_keys is not None and record.key not in self.plan.api_keys:
                raise Refusal(401, "Incorrect API key provided.", "invalid_api_key")
            if route == "chat" and self.plan.rate_limit is not None:
                self.plan.rate_limit.admit()
            fault = self._fault(record, raw)
            value = self.serve[route](request, raw, record, fault) if record.fault != "down" else None
            reply = Response(value) if isinstance(value, bytes) else JSONResponse(value)
            record.latency = self.plan.drawn_latency(record.seq) if route == "chat" else 0.0
        except Refusal as refused:
            reply = JSONResponse(refused.body, refused.status, refused.headers)
        except Exception:
            self.bugs += 1
            traceback.print_exc()
            reply = JSONResponse({"error": {"message": "A bug in the test server; see its standard error."}}, 500)
        return partial(self._send, reply, record, fault)

    async def _send(self, reply: Response, record: Record, fault: Fault | None, scope: Any, receive: Any, send: Any) -> None:
        """Sends a reply: late, in part or not at all where a fault says so."""
        transport: asyncio.Transport = scope["state"]["connection"].transport
        if record.fault in ("bad_json", "bad_gateway"):  # a proxy's page, no API's JSON
            reply = Response(b"<html><body>upstream connect error</body></html>", reply.status_code, media_type="application/json")
        elif record.fault == "cut_json":
            reply = Response(reply.body[: len(reply.body) // 2], media_type="application/json")
        elif record.fault == "slow":
            record.latency = fault.seconds
        if record.fault == "down":
            self.go_down(fault.seconds)
        elif record.fault == "close":
            transport.abort()
        elif record.fault == "hang" or record.latency:
            with suppress(TimeoutError):
                async with asyncio.timeout(None if record.fault == "hang" else record.latency):
                    while (await receive())["type"] != "http.disconnect":
                        pass
        if not transport.is_closing():  # closing: writing would do nothing, and not say so
            record.status = reply.status_code
            if record.fault == "reset":
                await send({"type": "http.response.start", "status": reply.status_code, "headers": reply.raw_headers})
                await send({"type": "http.response.body", "body": reply.body[: len(reply.body) // 2], "more_body": True})
                await asyncio.sleep(HALF_SENT)
                _reset(transport)
            else:
                await reply(scope, receive, send)
                record.sent = not transport.is_closing()
        self.in_flight -= 1
        record.finished = time.time()

    def _arrival(self, route: str, raw: bytes, key: str) -> Record:
        """The record of a request that has come; chat requests and lines are kept, others only counted."""
        self.sequence[route] += 1
        digest = blake2b(raw, digest_size=16).hexdigest()
        self.attempts[route + digest] += 1
        record = Record(self.sequence[route], route, digest, self.attempts[route + digest], key, time.time())
        if route in self.records:
            self.records[route].append(record)
            record.body = orjson.loads(raw) if self.plan.keep_bodies else None
        return record

    def _fault(self, record: Record, raw: bytes) -> Fault | None:
        """The fault that strikes a request, if any; one of STATUS is raised as its Refusal."""
        text = prompt_of(orjson.loads(raw)) if self.plan.faults and record.route in self.records else raw.decode("utf-8", "replace")
        for number, fault in enumerate(self.plan.faults):
            if fault.strikes(record, text, self.plan.seed, number):
                record.fault = fault.kind
                if fault.kind in STATUS:
                    raise fault.refusal()
                return fault
        return None

    def chat(self, body: dict[str, Any], record: Record, fault: Fault | None) -> dict[str, Any]:
        """The reply to a chat request."""
        plan, name = self.plan, body["model"]
        if name not in plan.models and not plan.any_model:
            raise Refusal(404, f"The model '{name}' does not exist or you do not have access to it.", "model_not_found")
        model = updated(plan.defaults, plan.models.get(name, JudgeModel()))
        if fault is not None and fault.kind == "low_mass":
            model = model.model_copy(update={"mass": fault.mass})
        reply = complete(body, model, plan.capabilities, self.qualities, record.digest)
        if fault is not None:
            fault.spoil(reply)
        self.tokens.update(reply["usage"])
        return reply

    def line(self, body: dict[str, Any], custom_id: str) -> tuple[int, dict[str, Any]]:
        """Status and body of the answer to one line of a batch."""
        raw = orjson.dumps(body)
        record = self._arrival("batch_line", raw, "")
        record.custom_id, record.finished = custom_id, time.time()
        try:
            record.status, reply = 200, self.chat(body, record, self._fault(record, raw))
        except Refusal as refused:
            record.status, reply = refused.status, refused.body
        return record.status, reply

    async def control(self, request: Request) -> Response:
        """What came, and changes of the plan."""
        if request.path_params["name"] == "log":
            return Response(orjson.dumps(self.records))
        if request.path_params["name"] == "plan":
            try:
                self.plan = updated(self.plan, Plan.model_validate_json(await request.body()))
            except ValueError as wrong:
                return Response(str(wrong), 400)
        chat, lines = self.records.values()
        good = Counter(one.digest for one in chat if one.sent and one.status == 200 and one.fault in (None, "slow"))
        counts = {
            "requests": len(chat),
            "answered": sum(good.values()),
            "answered_again": sum(good.values()) - len(good),
            "by_status": Counter(str(one.status) for one in chat if one.finished is not None),
            "by_fault": Counter(one.fault for one in [*chat, *lines] if one.fault is not None),
            "by_route": self.sequence,
            "in_flight": self.in_flight,
            "most_in_flight": self.most_in_flight,
            "connections": len(self.state.connections),
            "batches": len(self.batches.batches),
        }
        return JSONResponse({**counts, **self.tokens})

    async def listen(self) -> int:
        """Binds any free port and listens; returns the port."""
        # Bound but not listening, it keeps the port ours while the listening socket is closed.
        self.reservation = _bound(0)
        self.port = int(self.reservation.getsockname()[1])
        await self._open()
        return self.port

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        self.listener: asyncio.Server | None = await loop.create_server(self._connection, sock=_bound(self.port), backlog=4096)

    def _connection(self) -> H11Protocol:
        state: dict[str, Any] = {}  # the "state" in the scope of each of its requests
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
            loop.call_later(seconds, lambda: loop.create_task(self._open()))
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


def _bound(port: int) -> socket.socket:
    # asyncio turns Nagle's algorithm off only where the protocol is named; left on, it costs 40 ms a reply.
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((LOOPBACK, port))
    return sock


def _parts(request: Request, raw: bytes) -> dict[str, Any]:
    """Purpose and content of an upload as multipart/form-data."""
    found = {}
    for piece in raw.split(b"--" + request.headers["content-type"].partition("boundary=")[2].encode())[1:-1]:
        head, _, content = piece.partition(b"\r\n\r\n")
        found[head.split(b'name="')[1].split(b'"')[0]] = content.removesuffix(b"\r\n")
    return {"purpose": found[b"purpose"].decode(), "content": found[b"file"]}


async def _run(plan: dict[str, Any], grades: str | None, parent: int) -> int:
    """Serves until it is told to stop or `parent` is no longer the parent; 1 after a bug of its own."""
    app = App(Plan(**plan), Qualities(Path(grades) if grades else None))
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    print(f"http://{LOOPBACK}:{await app.listen()}/v1", flush=True)
    while not stopping.is_set() and parent == os.getppid():
        with suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), 1.0)
    return 1 if app.bugs else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(_run(**json.loads(sys.argv[1]))))
