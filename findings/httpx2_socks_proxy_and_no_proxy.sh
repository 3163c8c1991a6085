#!/bin/sh
# httpx2 2.16.2, without its extra for socks: ALL_PROXY=socks5://... makes every client fail when it is made, also for hosts that NO_PROXY excepts.
# One would expect NO_PROXY=127.0.0.1 to keep a request to 127.0.0.1 off the proxy, as it does with ALL_PROXY=http://...; but all proxies of the environment are
# built first, and the socks one raises ImportError. The openai client sits on httpx2, so a local endpoint can't be reached from a shell with such a proxy.
# Seen: "http proxy: status 200; socks proxy: ImportError".
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q httpx2==2.16.2
env -u HTTP_PROXY -u HTTPS_PROXY -u http_proxy -u https_proxy -u all_proxy -u no_proxy "$folder/venv/bin/python" - <<'PYTHON'
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2


class Here(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *words: object) -> None:
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Here)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["NO_PROXY"] = "127.0.0.1"
seen = {}
for kind in ("http", "socks5"):
    os.environ["ALL_PROXY"] = f"{kind}://127.0.0.1:9"
    try:
        with httpx2.Client() as client:
            seen[kind] = f"status {client.get(f'http://127.0.0.1:{server.server_port}/').status_code}"
    except ImportError as error:
        seen[kind] = type(error).__name__
print(f"http proxy: {seen['http']}; socks proxy: {seen['socks5']}")
assert seen == {"http": "status 200", "socks5": "ImportError"}
server.shutdown()
PYTHON
