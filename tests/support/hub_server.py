"""A Hub on 127.0.0.1 that has one dataset of one file, with as much of the real one's protocol as `datasets` asks for."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c0ffee" + "0" * 34


@contextmanager
def hub_server(name: str, file: str, content: bytes) -> Iterator[tuple[str, list[str]]]:
    """The server's address, and the paths that it was asked for. name: OWNER/NAME; file: its one file."""
    asked: list[str] = []
    tag = hashlib.sha1(content).hexdigest()

    class Answer(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            asked.append(self.path)

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            entry = {"type": "file", "oid": tag, "size": len(content), "path": file}
            if path.startswith(f"/datasets/{name}/resolve/") and path.endswith(f"/{file}"):
                self._send(content, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT})
            elif path.startswith(f"/api/datasets/{name}/tree/"):
                self._send(json.dumps([entry]).encode(), {})
            elif path == f"/api/datasets/{name}" or path.startswith(f"/api/datasets/{name}/revision/"):
                self._send(json.dumps({"id": name, "sha": COMMIT, "siblings": [{"rfilename": file}], "tags": []}).encode(), {})
            else:
                code = "EntryNotFound" if name in path else "RepoNotFound"
                self._send(b"", {"X-Error-Code": code}, 404)

        do_HEAD = do_GET

        def _send(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
            self.send_response(status)
            for key, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
