"""HTTP/1.1 for the test server, over asyncio's protocols: keep-alive, pipelining, and replies that break on purpose."""

import asyncio
import re
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qsl, urlsplit

import orjson

__all__ = ["Answer", "ApiError", "Connection", "Request", "error_answer", "json_answer", "multipart"]

REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed"} | {
    411: "Length Required", 429: "Too Many Requests", 500: "Internal Server Error", 502: "Bad Gateway", 503: "Service Unavailable"
}  # fmt: skip
HALF_SENT = 0.02
"""Seconds between half a reply and the reset: a reset discards what the other side has not read yet."""


class Request(NamedTuple):
    """A whole request; header names are in lower case."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


@dataclass
class Answer:
    """What is sent back. cut: "" sends it whole; "reset", "close" and "hang" are the faults of those names."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    cut: str = ""

    def encode(self) -> tuple[bytes, bytes]:
        """Head and body."""
        extra = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        return (
            f"HTTP/1.1 {self.status} {REASONS.get(self.status, 'Planned')}\r\ncontent-type: {self.content_type}\r\n"
            f"content-length: {len(self.body)}\r\n{extra}\r\n"
        ).encode("latin-1"), self.body


def json_answer(value: Any, status: int = 200) -> Answer:
    """An answer that carries JSON."""
    return Answer(status, orjson.dumps(value))


class ApiError(Exception):
    """A request that the API refuses, in the words of its error body."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None, type: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.body = {"message": message, "type": type or "invalid_request_error", "param": param, "code": code}

    def answer(self) -> Answer:
        """The answer that says so."""
        return json_answer({"error": self.body}, self.status)


def error_answer(
    status: int, message: str, type: str, param: str | None, code: str | None, headers: Mapping[str, str] | None = None
) -> Answer:
    """{"error": {"message", "type", "param", "code"}} under a status."""
    answer = ApiError(status, message, code=code, param=param, type=type).answer()
    answer.headers.update(headers or {})
    return answer


class App(Protocol):
    """Whoever answers; it calls `connection.reply` now or later, once a request."""

    connections: "set[Connection]"

    def serve(self, request: Request, connection: "Connection") -> None:
        """Takes a request."""
        ...


class Connection(asyncio.Protocol):
    """One connection: requests are read ahead, answered one after another.

    on_lost is called when the other side goes away while a request waits for its reply.
    """

    def __init__(self, app: App) -> None:
        self.app = app
        self.buffer = bytearray()
        self.needed = 0
        self.head: tuple[str, str, dict[str, str], int] | None = None
        self.busy = self.pumping = self.lost = self.hung = False
        self.on_lost: Callable[[], None] | None = None
        self.on_sent: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.transport.set_write_buffer_limits(high=0)  # resume_writing then means: all of it is with the kernel
        self.app.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self.app.connections.discard(self)
        call, self.on_lost, self.on_sent = self.on_lost, None, None
        if call is not None:
            call()

    def resume_writing(self) -> None:
        self._sent()

    def _sent(self) -> None:
        call, self.on_sent, self.on_lost = self.on_sent, None, None
        if call is not None:
            call()
        self.busy = False
        self._pump()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self._pump()

    def _pump(self) -> None:
        """Takes whole requests out of the buffer while the one before is answered."""
        if self.pumping:
            return
        self.pumping = True
        while not self.busy and not self.lost and len(self.buffer) >= self.needed:
            request = self._take()
            if request is None:
                break
            self.busy = True
            self.app.serve(request, self)
        self.pumping = False

    def _take(self) -> Request | None:
        if self.head is None:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return None
            self.head = self._read_head(bytes(self.buffer[:end]).decode("latin-1"), end + 4)
            if self.head is None:
                return None
        method, target, headers, start = self.head
        if len(self.buffer) < self.needed:
            return None
        body = bytes(self.buffer[start : self.needed])
        del self.buffer[: self.needed]
        self.head, self.needed = None, 0
        if "?" not in target:
            return Request(method, target, {}, headers, body)
        parts = urlsplit(target)
        return Request(method, parts.path, dict(parse_qsl(parts.query)), headers, body)

    def _read_head(self, text: str, start: int) -> tuple[str, str, dict[str, str], int] | None:
        first, *lines = text.split("\r\n")
        try:
            method, target, _ = first.split(" ")
            headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
            length = int(headers.get("content-length", "0"))
        except ValueError:
            return self._refuse(400, "This is no HTTP/1.1 request.")
        if length < 0:
            return self._refuse(400, "A content-length is 0 or more.")
        if "transfer-encoding" in headers:
            return self._refuse(411, "Send a content-length; chunked bodies are not read here.")
        self.needed = start + length
        if headers.get("expect", "").lower() == "100-continue" and len(self.buffer) < self.needed:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return method, target, headers, start

    def _refuse(self, status: int, message: str) -> None:
        self.lost = True
        self.transport.write(b"".join(error_answer(status, message, "invalid_request_error", None, None).encode()))
        self.transport.close()

    def reply(self, answer: Answer, on_sent: Callable[[], None] | None = None) -> None:
        """Sends an answer, or breaks the connection in the way that it says. on_sent: when the kernel has all of it."""
        if self.lost or self.transport.is_closing() or answer.cut == "hang":  # closing: writing would do nothing, and not say so
            return
        head, body = answer.encode()
        if answer.cut == "close":
            self.transport.abort()
        elif answer.cut == "reset":
            self.transport.write(head + body[: len(body) // 2])
            asyncio.get_running_loop().call_later(HALF_SENT, self.reset)
        else:
            self._send(head + body if len(body) < 65536 else head, body if len(body) >= 65536 else b"", on_sent)

    def _send(self, first: bytes, second: bytes, on_sent: Callable[[], None] | None) -> None:
        self.on_sent = on_sent
        self.transport.write(first)
        if second:
            self.transport.write(second)
        if not self.transport.get_write_buffer_size() and not self.lost:
            self._sent()

    def reset(self) -> None:
        """Ends the connection with RST instead of FIN."""
        if self.lost:
            return
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


def multipart(request: Request) -> dict[str, tuple[str, bytes]]:
    """The parts of a multipart/form-data body: name → (file name or "", content). ApiError 400 where it is none."""
    found = re.search(r'multipart/form-data;.*boundary="?([^";]+)"?', request.headers.get("content-type", ""))
    if found is None:
        raise ApiError(400, "Send multipart/form-data with the parts purpose and file.")
    parts = {}
    for piece in request.body.split(b"--" + found[1].encode("latin-1"))[1:-1]:
        head, _, content = piece.partition(b"\r\n\r\n")
        text = head.decode("utf-8", "replace")
        name = re.search(r'\bname="([^"]*)"', text)
        filename = re.search(r'\bfilename="([^"]*)"', text)
        if name is not None:
            parts[name[1]] = (filename[1] if filename else "", content.removesuffix(b"\r\n"))
    return parts
