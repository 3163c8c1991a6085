#!/bin/sh
# openai 3.54.0 (Python): a 429 whose Retry-After is above 120 seconds is never retried, whatever max_retries says.
# One would expect max_retries=3 to mean up to three more requests, sooner or later. With "Retry-After: 121" the client sends one request and
# raises RateLimitError at once; with "Retry-After: 1" it waits and sends four. A judge whose provider names long waits must wait by itself.
# Seen: "Retry-After: 1 -> 4 requests" and "Retry-After: 121 -> 1 requests".
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q openai==3.54.0
"$folder/venv/bin/python" - <<'PYTHON'
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai

asked: list[str] = []


class Busy(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        wait = self.path.split("/")[1]
        asked.append(wait)
        body = json.dumps({"error": {"message": "slow down", "type": "rate_limit", "code": "rate_limit"}}).encode()
        self.send_response(429)
        for name, value in (("Retry-After", wait), ("Content-Type", "application/json"), ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Busy)
threading.Thread(target=server.serve_forever, daemon=True).start()
for wait, expected in (("1", 4), ("121", 1)):
    client = openai.OpenAI(api_key="none", base_url=f"http://127.0.0.1:{server.server_port}/{wait}/v1", max_retries=3)
    try:
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hi"}])
    except openai.RateLimitError:
        pass
    print(f"Retry-After: {wait} -> {asked.count(wait)} requests")
    assert asked.count(wait) == expected
server.shutdown()
PYTHON
