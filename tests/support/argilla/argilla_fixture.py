"""The fixture `argilla`: one embedded Argilla for the whole run, started by `mmpo argilla serve` itself, on loopback.

Users are owner, anna and ben from the start; `annotator(name)` adds more. All belong to the workspace "team".
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from command import environment, started

ROOT = Path(__file__).resolve().parents[3]
START_SECONDS = 120
ANNOTATORS = ("anna", "ben")
WORKSPACE = "team"


def server_environment() -> str:
    """Where the server's own environment is kept between runs: inside .venv, so that it goes where .venv goes."""
    return os.environ.get("MMPO_ARGILLA_ENV") or str(ROOT / ".venv" / "argilla-server")


def ready_facts(**changes: Any) -> dict[str, Any]:
    """What `say_ready` is told of a server."""
    facts = {"version": "2.8.0", "url": "http://127.0.0.1:1", "home": "h", "log": "l", "host": "127.0.0.1", "users": []}
    return {**facts, "workspace": WORKSPACE, **changes}


@dataclass
class Serving:
    """A running `mmpo argilla serve`: its process, what it said when it was ready, and where its messages go."""

    process: subprocess.Popen[str]
    ready: dict[str, Any]
    messages: Path

    def interrupt(self) -> int:
        """Ctrl-C, and the exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=30)

    def said(self) -> str:
        """Everything on standard error so far."""
        return self.messages.read_text(encoding="utf-8")


@contextmanager
def serve_argilla(home: Path, *options: str, passwords: dict[str, str] | None = None, messages: Path) -> Iterator[Serving]:
    """`mmpo argilla serve --home home --port 0 ...`, ready to answer; stopped at the end whatever happened."""
    own = {f"MMPO_ARGILLA_PASSWORD_{name.upper()}": password for name, password in (passwords or {}).items()}
    with open(messages, "w", encoding="utf-8") as said:
        # A group of its own: Ctrl-C at the terminal of pytest must not end the server before the tests that use it.
        process = started(
            *("argilla", "serve", "--home", home, "--port", "0", "--yes", "--json", *options),
            env=environment(MMPO_ARGILLA_ENV=server_environment(), **own),
            stdin=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,
        )
        serving = Serving(process, {}, messages)
        assert process.stdout is not None
        with process.stdout:
            try:
                if not (line := process.stdout.readline()):
                    raise RuntimeError(f"mmpo argilla serve left with {process.wait(START_SECONDS)}: {serving.said()}")
                serving.ready = json.loads(line)
                yield serving
            finally:
                if process.poll() is None:
                    try:
                        serving.interrupt()
                    except subprocess.TimeoutExpired:
                        process.kill()
                        process.wait()


@dataclass
class Argilla:
    """The server of this run, as its users see it."""

    api_url: str
    owner_password: str
    workspace: str = WORKSPACE
    passwords: dict[str, str] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    clients: list[Any] = field(default_factory=list)

    @property
    def owner_key(self) -> str:
        """The API key of the owner."""
        return self._key("owner", self.owner_password)

    def client(self) -> Any:
        """`argilla.Argilla` as the owner."""
        import argilla

        self.clients.append(argilla.Argilla(api_url=self.api_url, api_key=self.owner_key))
        return self.clients[-1]

    def close(self) -> None:
        """Closes the connections of the clients given out."""
        for client in self.clients:
            client.api.http_client.close()

    def annotator(self, name: str) -> str:
        """The password of an annotator of the workspace, who is made first where there is none."""
        if name not in self.passwords:
            self.passwords[name] = secrets.token_urlsafe(12)
            with self.as_user("owner") as owner:
                new = {"first_name": name, "username": name, "role": "annotator", "password": self.passwords[name]}
                user = owner.post("/api/v1/users", json=new).raise_for_status().json()
                spaces = owner.get("/api/v1/me/workspaces").raise_for_status().json()["items"]
                space = next(space["id"] for space in spaces if space["name"] == self.workspace)
                owner.post(f"/api/v1/workspaces/{space}/users", json={"user_id": user["id"]}).raise_for_status()
        return self.passwords[name]

    def as_user(self, name: str) -> httpx.Client:
        """An HTTP client that answers as this user: `post(f"/api/v1/records/{id}/responses", json=...)`; close it after use."""
        password = self.owner_password if name == "owner" else self.annotator(name)
        headers = {"X-Argilla-Api-Key": self._key(name, password)}
        return httpx.Client(base_url=self.api_url, headers=headers, timeout=30, trust_env=False)

    def _key(self, name: str, password: str) -> str:
        if name not in self.keys:
            with httpx.Client(base_url=self.api_url, timeout=30, trust_env=False) as client:
                form = {"username": name, "password": password}
                token = client.post("/api/v1/token", data=form).raise_for_status().json()["access_token"]
                headers = {"Authorization": f"Bearer {token}"}
                self.keys[name] = client.get("/api/v1/me", headers=headers).raise_for_status().json()["api_key"]
        return self.keys[name]


@pytest.fixture(scope="session")
def argilla_environment() -> Iterator[Path]:
    """The environment of the server, installed where it is not yet; skips with the reason where it can't be."""
    pytest.importorskip("argilla", reason="the extra argilla is not installed: pip install 'mmpo[argilla]'")
    from mmpo.annotate.argilla_server.environment import ensure
    from mmpo.pipeline.errors import UserError

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMPO_ARGILLA_ENV", server_environment())
        try:
            yield ensure(agree=lambda question: True)
        except UserError as error:
            pytest.skip(f"Argilla's server cannot be installed here: {error}")


@pytest.fixture(scope="session")
def argilla(argilla_environment: Path) -> Iterator[Argilla]:
    """The embedded Argilla of this run. Datasets are shared by all tests: give yours names of their own."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="mmpo-argilla-", dir=memory if os.access(memory, os.W_OK) else None))
    passwords = {name: secrets.token_urlsafe(12) for name in ("owner", *ANNOTATORS)}
    options = [word for name in ANNOTATORS for word in ("--annotator", name)]
    try:
        with serve_argilla(folder / "home", *options, passwords=passwords, messages=folder / "said.txt") as serving:
            owner = passwords.pop("owner")
            with closing(Argilla(serving.ready["url"], owner, passwords=passwords)) as server:
                yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)
