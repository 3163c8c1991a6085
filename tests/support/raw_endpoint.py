"""An endpoint on 127.0.0.1 whose replies a test writes byte by byte: for shapes, paces and headers that no well-made server gives."""

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["CHAT", "Came", "RawEndpoint", "chat", "raw_endpoint"]

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Which is better?"}], "max_tokens": 8, "logprobs": True, "user": "u"}
"""The body of a request."""


@dataclass(frozen=True)
class Came:
    """A request that came."""

    path: str
    headers: Mapping[str, str]
    body: Any


@dataclass
class RawEndpoint:
    """base_url: for a client; came: the requests so far."""

    base_url: str = ""
    came: list[Came] = field(default_factory=list)


Answering = Callable[[Came], tuple[int, Mapping[str, str], bytes | Iterable[bytes]]]
"""From a request to status, headers and body; a body in parts is sent part by part and ends with the connection."""


def chat(content: Any = "C", *, usage: Any = None, **choice: Any) -> dict[str, Any]:
    """A chat completion with one choice. content: of its message, or the whole message where it is a mapping with a role."""
    message = content if isinstance(content, dict) and "role" in content else {"role": "assistant", "content": content}
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop", **choice}], "usage": usage}


@contextmanager
def raw_endpoint(answering: Answering | bytes | dict[str, Any]) -> Iterator[RawEndpoint]:
    """Serves while the block runs. answering: a function, or the body of every reply under status 200."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            one = Came(self.path, {name.lower(): value for name, value in self.headers.items()}, json.loads(raw) if raw else None)
            endpoint.came.append(one)
            status, headers, body = (200, {}, answering) if not callable(answering) else answering(one)
            body = json.dumps(body).encode() if isinstance(body, dict) else body
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            with suppress(ConnectionError):  # the client may leave a reply that is too long or too slow
                if isinstance(body, bytes):
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                    return
                self.send_header("Connection", "close")
                self.end_headers()
                for part in body:
                    self.wfile.write(part)
                    self.wfile.flush()

    class Server(ThreadingHTTPServer):
        def handle_error(self, *args: object) -> None:
            """A client that leaves in the middle is no fault."""

    endpoint = RawEndpoint()
    with Server(("127.0.0.1", 0), Handler) as server:
        endpoint.base_url = f"http://127.0.0.1:{server.server_port}/v1"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield endpoint
        finally:
            server.shutdown()
