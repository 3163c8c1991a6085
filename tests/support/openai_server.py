"""An OpenAI-compatible server for tests, the demo and the benchmark, in a process of its own: planned faults, a simulated judge, batches.

What a plan may hold stands in openai_plan.py; simulated_judge.py says how the judge thinks; openai_app.py is the server.
"""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from warm import JUDGES, Forked


class Server:
    """A running server, as a test holds it; it ends when its standard input does. base_url: for a client, ends in /v1."""

    def __init__(self, process: Forked, port: str) -> None:
        self.process, self.port, self.base_url = process, int(port or 0), f"http://127.0.0.1:{port}/v1"

    def _control(self, name: str, change: Mapping[str, Any] | None = None) -> Any:
        self.process.stdin.write(json.dumps([name, change]) + "\n")
        self.process.stdin.flush()
        reply = json.loads(self.process.stdout.readline())
        if isinstance(reply, str):
            raise ValueError(reply)
        return reply

    def log(self, route: str = "chat") -> list[dict[str, Any]]:
        """What came in order of arrival, see openai_app.App.arrival: the chat requests, or the lines of batches ("batch_line")."""
        return self._control("log")[route]

    def counts(self) -> dict[str, Any]:
        """Figures over chat requests: answered counts good replies, answered_again those whose body had one before."""
        return self._control("counts")

    def plan(self, change: Mapping[str, Any]) -> None:
        """Replaces those top-level keys of the plan; faults and limits that are given start counting anew. ValueError if wrong."""
        self._control("plan", change)

    def stop(self) -> int:
        """Ends it (by SIGKILL if it hangs) and returns its exit status: 0, or 1 if it met a bug of its own."""
        self.process.stdin.close()
        try:
            return self.process.wait(5.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


@contextmanager
def serving(plan: Mapping[str, Any] | None = None, *, grades: Path | None = None) -> Iterator[Server]:
    """Runs the server while the block runs. grades: see simulated_judge.Qualities. RuntimeError where it does not start or met a bug."""
    words = [json.dumps(plan or {}), str(grades or "")]
    with JUDGES.begin("from openai_app import main; main()", words, os.environ) as process:
        server = Server(process, process.stdout.readline().strip())
        try:
            if server.port:
                yield server
        finally:
            status = server.stop()
        if status:
            raise RuntimeError(f"the test server ended with {status}: {process.stderr.read()}")
