"""An OpenAI-compatible endpoint of a test's own: a function from a request's body to what is answered, on 127.0.0.1."""

import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["GRADE", "GRADE_TOKEN", "OwnEndpoint", "chat", "own_endpoint", "refusal", "token"]

Reply = tuple[int, Any]
"""Status and JSON."""


def token(text: str, **probabilities: float) -> dict[str, Any]:
    """A token of a reply; probabilities: of what could have stood in its place (itself alone where none are given)."""
    tops = [(one, math.log(p)) for one, p in (probabilities or {text: 1.0}).items()]
    return {"token": text, "logprob": tops[0][1], "top_logprobs": [{"token": one, "logprob": p} for one, p in tops]}


GRADE_TOKEN = token("C", C=0.5, B=0.4, E=0.08)
"""A grade between "better" and "about the same", with a doubt: GRADE is what it stands for, by hand."""
GRADE = (1.22 / 0.98, math.sqrt((0.5 * 1 + 0.4 * 4 + 0.08 * 1) / 0.98 - (1.22 / 0.98) ** 2), [0, 0.4, 0.5, 0, 0.08, 0, 0])


def chat(
    body: Mapping[str, Any], content: Any, tokens: Sequence[Mapping[str, Any]] | None = None, finish: str = "stop", **message: Any
) -> Reply:
    """A chat completion. tokens: given where log-probabilities are asked for; message: further keys of it."""
    logprobs = {"content": list(tokens)} if tokens is not None and body.get("logprobs") else None
    choice = {"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish, "logprobs": logprobs}
    choices = [{"index": i, **choice} for i in range(body.get("n") or 1)]
    return 200, {
        "object": "chat.completion",
        "model": body["model"],
        "choices": choices,
        "usage": {"prompt_tokens": 9, "completion_tokens": 1},
    }


def refusal(status: int, words: str, key: str = "error") -> Reply:
    """A refusal in OpenAI's form, or {"detail": words}."""
    return status, {"error": {"message": words}} if key == "error" else {key: words}


class OwnEndpoint:
    """base_url: of the endpoint. bodies: of the requests that came, in order."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url
        self.bodies: list[dict[str, Any]] = []


@contextmanager
def own_endpoint(answer: Callable[[dict[str, Any]], Reply]) -> Iterator[OwnEndpoint]:
    """Answers chat requests by this function until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            """Says nothing."""

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found.bodies.append(body)
            status, value = answer(body)
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = OwnEndpoint(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
