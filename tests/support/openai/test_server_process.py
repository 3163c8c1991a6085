"""The test server as a process: what it remembers, how it starts and ends, and how fast it is."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from openai_server import Server, serving
from server_client import ask, pair

Start = Callable[..., Server]
SCRIPT = Path(__file__).with_name("openai_server.py")


def test_the_log_tells_what_came(openai_server: Start) -> None:
    server = openai_server({"keep_bodies": True})
    for _ in range(2):
        ask(server, pair("a", "b"))
    ask(server, pair("b", "a"))
    first, second, third = server.log()
    assert [record["seq"] for record in (first, second, third)] == [1, 2, 3] and [second["attempt"], third["attempt"]] == [2, 1]
    assert first["digest"] == second["digest"] != third["digest"] and first["body"]["temperature"] == 0
    assert first["key"] == "key-1" and first["model"] == "judge-a" and first["sent"] and first["status"] == 200
    assert first["arrived"] <= first["finished"] <= second["arrived"]
    counts = server.counts()
    assert (counts["requests"], counts["distinct_bodies"], counts["answered_again"], counts["in_flight"]) == (3, 2, 1, 0)


def test_it_listens_on_loopback_only_and_says_what_is_wrong(tmp_path: Path) -> None:
    for arguments, said in (
        (["--host", "0.0.0.0"], "listens on 127.0.0.1 only"),
        (["--plan", str(tmp_path / "none.json")], "cannot start"),
    ):
        done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
    with pytest.raises(RuntimeError, match="no key 'lattency'; known: models"), serving({"lattency": 1}):
        pass


def test_it_starts_anywhere_and_ends_cleanly(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    command = [sys.executable, str(SCRIPT), "--ready-file", str(ready)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        assert json.loads(ready.read_text())["base_url"] == line and line.startswith("http://127.0.0.1:")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_it_ends_when_whoever_started_it_is_gone() -> None:
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); import openai_server; "
        "running = openai_server.serving({}); print(running.__enter__().port, flush=True); os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(SCRIPT.parent)], capture_output=True, text=True, timeout=60, check=True)
    until = time.monotonic() + 10
    with pytest.raises(ConnectionRefusedError):
        while time.monotonic() < until:
            socket.create_connection(("127.0.0.1", int(done.stdout)), timeout=5).close()
            time.sleep(0.1)


def test_a_wrong_plan_changes_nothing(openai_server: Start) -> None:
    server = openai_server({"seed": 5})
    with pytest.raises(ValueError, match=r"faults\[0\]: unknown fault 'typo'; known: rate_limit"):
        server.plan({"seed": 6, "faults": [{"kind": "typo"}]})
    assert server.plan({})["seed"] == 5


def test_it_is_fast_enough_to_measure_a_client(openai_server: Start) -> None:
    """Pipelined, so that this process costs next to nothing: thousands a second on a free core, far above the bound here."""
    server = openai_server()
    message = {"role": "user", "content": pair("some words", "some other words")}
    body = json.dumps({"model": "m", "logprobs": True, "top_logprobs": 20, "max_tokens": 1, "messages": [message]}).encode()
    one = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    rates = []
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        for _ in range(5):
            start, received = time.perf_counter(), b""
            connection.sendall(one * 200)
            while received.count(b"HTTP/1.1 200") < 200:
                received += connection.recv(1 << 20)
            rates.append(200 / (time.perf_counter() - start))
    assert max(rates) > 1000, f"{max(rates):.0f} requests a second"
