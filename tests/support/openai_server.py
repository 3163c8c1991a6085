"""An OpenAI-compatible server for tests, the demo and the benchmark: planned faults, a simulated judge, batches.

Tests run it as a process of its own by `serving`, or by the fixture `openai_server`. What a plan may hold stands in openai_plan.py;
simulated_judge.py says how the judge thinks, openai_batches.py how batches go; openai_app.py is the server.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["Server", "serving"]

CONTROL_WITHIN, STOP_WITHIN = 20.0, 5.0
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Opens without the proxy that the environment may name."""


class Server:
    """A running server, as a test holds it. base_url: for a client, ends in /v1. Control calls wait while it is down."""

    def __init__(self, process: "subprocess.Popen[str]", base_url: str) -> None:
        self.process, self.base_url = process, base_url
        self.port = int(base_url.split(":")[2].removesuffix("/v1")) if base_url else 0

    def _control(self, name: str, change: Mapping[str, Any] | None = None) -> Any:
        data = None if change is None else json.dumps(change).encode()
        until = time.monotonic() + CONTROL_WITHIN
        while True:
            try:
                with DIRECT.open(self.base_url.replace("/v1", f"/control/{name}"), data, CONTROL_WITHIN) as reply:
                    return json.load(reply)
            except urllib.error.HTTPError as refused:
                raise ValueError(refused.read().decode()) from None
            except (urllib.error.URLError, ConnectionError):
                if self.process.poll() is not None or time.monotonic() > until:
                    raise
                time.sleep(0.02)

    def log(self) -> list[dict[str, Any]]:
        """A record of each chat request in order of arrival, see openai_app.Record."""
        return self._control("log")["chat"]

    def batch_log(self) -> list[dict[str, Any]]:
        """The same of each line of a batch."""
        return self._control("log")["batch_line"]

    def counts(self) -> dict[str, Any]:
        """Figures over chat requests: answered counts good replies, answered_again those whose body had one before."""
        return self._control("counts")

    def plan(self, change: Mapping[str, Any]) -> None:
        """Replaces those top-level keys of the plan; faults and limits that are given start counting anew. ValueError if wrong."""
        self._control("plan", change)

    def stop(self) -> int:
        """Ends it by SIGTERM (SIGKILL if it hangs) and returns its exit status: 0, or 1 if it met a bug of its own."""
        self.process.terminate()
        try:
            return self.process.wait(STOP_WITHIN)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


@contextmanager
def serving(plan: Mapping[str, Any] | None = None, *, grades: Path | None = None) -> Iterator[Server]:
    """Runs the server as a process of its own while the block runs. RuntimeError where it does not start or met a bug.

    grades: file of latent qualities, see simulated_judge.Qualities.
    """
    options = {"plan": plan or {}, "grades": grades, "parent": os.getpid()}
    command = [sys.executable, str(Path(__file__).with_name("openai_app.py")), json.dumps(options, default=str)]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        server = Server(process, process.stdout.readline().strip())
        try:
            if server.port:
                yield server
        finally:
            status = server.stop()
        if status:
            errors.seek(0)
            raise RuntimeError(f"the test server ended with {status}: {errors.read()}")
