"""An OpenAI-compatible server of our own for tests, the demo and the benchmark: planned faults, a simulated judge, batches.

    python tests/support/openai/openai_server.py --port 0 --plan plan.json --grades grades.jsonl.gz --ready-file ready.json

prints "http://127.0.0.1:PORT/v1" when it is ready; SIGTERM, SIGINT and POST /control/shutdown end it. What a plan may hold stands in
server_plan.py, the faults in server_faults.py, what the judge thinks in server_judge.py. Beside the API it answers

    GET /control/log        {"requests": [record of each chat request], "batch_requests": [record of each line of a batch]}
    GET /control/counts     figures, see server_log.Ledger.counts
    POST /control/plan      replaces the top-level keys given; answers the plan that now holds
    POST /control/shutdown

Tests start it as a process of its own by `serving`, or by the fixture `openai_server`.
"""

import argparse
import asyncio
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from server_app import App
from server_gate import LOOPBACK
from server_judge import Qualities
from server_plan import PlanError

__all__ = ["Server", "main", "serving"]

READY_WITHIN = 20.0
CONTROL_WITHIN = 20.0
STOP_WITHIN = 5.0
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Opens without the proxy that the environment may name."""


class Server:
    """A running server, as a test holds it. base_url: for a client, ends in /v1. Control calls wait while it is down."""

    def __init__(self, process: "subprocess.Popen[str]", base_url: str, errors: IO[str]) -> None:
        self.process, self.base_url, self.errors = process, base_url, errors
        self.pid = process.pid
        self.port = int(base_url.rsplit(":", 1)[1].split("/")[0])

    def _control(self, name: str, body: Mapping[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://{LOOPBACK}:{self.port}/control/{name}", data)
        until = time.monotonic() + CONTROL_WITHIN
        while True:
            try:
                with DIRECT.open(request, timeout=CONTROL_WITHIN) as reply:
                    return json.load(reply)
            except urllib.error.HTTPError as refused:
                with refused:
                    raise ValueError(json.load(refused)["error"]["message"]) from None
            except (urllib.error.URLError, ConnectionError):
                if self.process.poll() is not None or time.monotonic() > until:
                    raise
                time.sleep(0.02)

    def log(self) -> list[dict[str, Any]]:
        """A record of each chat request in order of arrival, see server_log.Record."""
        return self._control("log")["requests"]

    def batch_log(self) -> list[dict[str, Any]]:
        """The same of each line of a batch."""
        return self._control("log")["batch_requests"]

    def counts(self) -> dict[str, Any]:
        """Figures over everything that came."""
        return self._control("counts")

    def plan(self, change: Mapping[str, Any]) -> dict[str, Any]:
        """Replaces those top-level keys of the plan; returns the whole plan. ValueError where it is wrong."""
        return self._control("plan", change)

    def stop(self) -> int:
        """Ends it by SIGTERM (SIGKILL if it hangs) and returns its exit status: 0, or 1 if it met a bug of its own."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_WITHIN)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.process.returncode

    def kill(self) -> None:
        """Ends it by SIGKILL, as a machine that fails."""
        self.process.kill()
        self.process.wait()

    def said(self) -> str:
        """What it wrote to standard error."""
        self.errors.seek(0)
        return self.errors.read()


def _start(plan: Mapping[str, Any], grades: Path | None, state: Path | None, port: int, errors: IO[str]) -> Server:
    command = [sys.executable, str(Path(__file__).resolve()), "--port", str(port), "--plan", "-", "--parent", str(os.getpid())]
    command += ["--grades", str(grades)] if grades else []
    command += ["--state", str(state)] if state else []
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(plan))
    process.stdin.close()
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    output = process.stdout
    threading.Thread(target=lambda: lines.put(output.readline()), daemon=True).start()
    try:
        line = lines.get(timeout=READY_WITHIN).strip()
    except queue.Empty:
        line = ""
    server = Server(process, line or f"http://{LOOPBACK}:0/v1", errors)
    if not line:
        server.kill()
        output.close()
        raise RuntimeError(f"the test server did not start: {server.said()}")
    return server


@contextmanager
def serving(
    plan: Mapping[str, Any] | None = None, *, grades: Path | None = None, state: Path | None = None, port: int = 0
) -> Iterator[Server]:
    """Runs the server as a process of its own while the block runs. RuntimeError where it does not start or met a bug.

    grades: file of latent qualities, see server_judge.Qualities. state: file that keeps batches over restarts.
    """
    with tempfile.TemporaryFile("w+") as errors:
        server = _start(plan or {}, grades, state, port, errors)
        try:
            yield server
        finally:
            status = server.stop()
            if server.process.stdout is not None:
                server.process.stdout.close()
        if status not in (0, -signal.SIGKILL):
            raise RuntimeError(f"the test server ended with {status}: {server.said()}")


async def _run(options: argparse.Namespace, plan: dict[str, Any]) -> int:
    app = App(plan, Qualities(options.grades), options.state)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, app.stopping.set)
    port = await app.gate.listen(options.port)
    base_url = f"http://{LOOPBACK}:{port}/v1"
    if options.ready_file is not None:
        part = options.ready_file.with_name(options.ready_file.name + ".part")
        part.write_text(json.dumps({"base_url": base_url, "port": port, "pid": os.getpid()}) + "\n")
        part.replace(options.ready_file)
    print(base_url, flush=True)
    while not app.stopping.is_set() and options.parent in (None, os.getppid()):
        try:
            await asyncio.wait_for(app.stopping.wait(), 1.0)
        except TimeoutError:
            continue
    return 1 if app.ledger.bugs else 0


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status: 0, 1 after a bug of its own, 2 for options that are wrong."""
    parser = argparse.ArgumentParser(description="OpenAI-compatible server for tests: planned faults, a simulated judge, batches.")
    parser.add_argument("--host", default=LOOPBACK, help=f"only {LOOPBACK} is allowed")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--plan", help="JSON file, - for standard input; see server_plan.py")
    parser.add_argument("--grades", type=Path, help="JSON or JSON lines (.gz) with completion and score: what the judge believes")
    parser.add_argument("--state", type=Path, help="file that keeps files and batches over restarts")
    parser.add_argument("--ready-file", type=Path, help="written with base_url, port and pid when ready")
    parser.add_argument("--parent", type=int, help="process id: ends when that process is no longer the parent")
    options = parser.parse_args(arguments)
    if options.host != LOOPBACK:
        parser.error(f"--host is {options.host!r}; this server has no protection and listens on {LOOPBACK} only: leave it out")
    try:
        text = "{}" if options.plan is None else sys.stdin.read() if options.plan == "-" else Path(options.plan).read_text()
        return asyncio.run(_run(options, json.loads(text)))
    except (PlanError, json.JSONDecodeError) as problem:
        parser.error(f"--plan: {problem}")
    except OSError as problem:
        parser.error(f"cannot start: {problem}")


if __name__ == "__main__":
    sys.exit(main())
