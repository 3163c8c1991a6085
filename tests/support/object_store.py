"""An object store on 127.0.0.1 that speaks the protocol of Amazon S3, moto in an environment of its own: it needs python-dateutil < 3;
and a proxy before it that fails every so many requests, each time in another way."""

import http.client
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mmpo.pipeline.storage import file_lock, text_digest

ROOT = Path(__file__).resolve().parents[2]
PINS = Path(__file__).with_name("object_store.txt")
START_SECONDS = 60
FAILURES = ("slow down", "reset", "reply cut", "reply lost")
"""How requests fail: refused with 503, not answered at all, and done while the client hears half of the reply, or an error."""
ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>planned</Message></Error>"


def environment_of_store() -> Path:
    """The folder of the server's environment, made where there is none with these pins; skips where it can't be."""
    folder = Path(os.environ.get("MMPO_STORE_ENV") or ROOT / ".venv" / "object-store")
    done = folder / f"complete-{text_digest(PINS.read_text(), size=4)}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(folder.with_name(folder.name + ".lock"), "another test run makes it", seconds=600):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
            for words in (("-m", "venv", folder), ("-m", "pip", "install", "-q", "--no-input", "-r", PINS)):
                python = sys.executable if words[1] == "venv" else str(folder / "bin" / "python")
                made = subprocess.run([python, *map(str, words)], env=clean, capture_output=True, text=True, check=False)
                if made.returncode:
                    shutil.rmtree(folder, ignore_errors=True)
                    pytest.skip(f"the server of the object store can't be installed here: {made.stderr.strip().splitlines()[-1:]}")
            done.touch()
    return folder


def free_port() -> int:
    """One that nobody listens on just now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass
class Store:
    """A running store. url: its endpoint."""

    url: str

    def files(self) -> Any:
        """pyarrow's file system of it, which may make buckets."""
        from pyarrow import fs

        keys = {"access_key": "testing", "secret_key": "testing", "region": "us-east-1"}
        return fs.S3FileSystem(endpoint_override=self.url, allow_bucket_creation=True, **keys)

    def put(self, key: str, content: bytes) -> None:
        """Write an object, BUCKET/KEY."""
        with self.files().open_output_stream(key, compression=None) as out:
            out.write(content)

    def read(self, key: str) -> bytes:
        """The content of an object."""
        with self.files().open_input_file(key) as file:
            return bytes(file.readall())

    def names(self, prefix: str) -> list[str]:
        """The names of all objects below a key."""
        from pyarrow import fs

        found = self.files().get_file_info(fs.FileSelector(prefix, recursive=True, allow_not_found=True))
        return sorted(one.path.removeprefix(f"{prefix}/") for one in found if one.type == fs.FileType.File)


def variables(url: str) -> dict[str, str]:
    """What points a process at a store."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextmanager
def running_store(log: Path, **environment: str) -> Iterator[Store]:
    """A store of no buckets, ended with the block."""
    port = free_port()
    command = [str(environment_of_store() / "bin" / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    with log.open("w") as said, subprocess.Popen(command, stdout=said, stderr=said, env={**os.environ, **environment}) as process:
        try:
            for _ in range(START_SECONDS * 20):
                with socket.socket() as one:
                    if one.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert process.poll() is None, log.read_text()
                threading.Event().wait(0.05)
            yield Store(f"http://127.0.0.1:{port}")
        finally:
            process.terminate()


@dataclass(eq=False)
class Failing(ThreadingHTTPServer):
    """A proxy before a store. every: which requests fail, all where it is 1, none where it is 0; before: called with method and path of
    every request, its result, a code of the protocol, is the answer where it is one."""

    target: str
    every: int = 10
    before: Callable[[str, str], str | None] = lambda method, path: None
    asked: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    daemon_threads = True

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), Forwarding)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def failure(self) -> str | None:
        """How the request at hand fails."""
        with self.lock:
            self.asked += 1
            if not self.every or self.asked % self.every:
                return None
            way = FAILURES[self.failed.total() % len(FAILURES)]
            self.failed[way] += 1
            return way


class Forwarding(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Failing

    def log_message(self, *words: object) -> None:
        """Say nothing."""

    def forward(self) -> None:
        """Send the request on and its reply back, or fail."""
        body = self.body()
        if code := self.server.before(self.command, self.path):
            self.answer(403, {"Content-Type": "application/xml"}, ERROR.format(code).encode())
            return
        way = self.server.failure()
        if way == "reset":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if way == "slow down":
            self.answer(503, {"Content-Type": "application/xml"}, ERROR.format("SlowDown").encode())
            return
        connection = http.client.HTTPConnection(self.server.target.removeprefix("http://"), timeout=10)
        own = ("expect", "connection", "transfer-encoding", "content-length")
        kept = {name: value for name, value in self.headers.items() if name.lower() not in own}
        connection.request(self.command, self.path, body if body or self.command in ("PUT", "POST") else None, kept)
        reply = connection.getresponse()
        content = reply.read()
        connection.close()
        if way == "reply lost":
            self.answer(500, {}, b"")
        else:
            self.answer(reply.status, dict(reply.getheaders()), content, half=way == "reply cut")

    def body(self) -> bytes:
        """Of the request, whether its size is told before or piece by piece."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def answer(self, status: int, headers: dict[str, str], content: bytes, *, half: bool = False) -> None:
        """Reply; half: the connection breaks before the end."""
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        length = headers.get("Content-Length", str(len(content))) if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if half else content)
        if half:
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = forward


@contextmanager
def failing(store: Store, every: int = 10) -> Iterator[Failing]:
    """A proxy before the store, closed at the end."""
    with Failing(store.url, every) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
