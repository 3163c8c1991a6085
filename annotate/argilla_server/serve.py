"""An Argilla on this machine in one command: the real server and its page, SQLite, nothing else to run.

The parent (this module) checks everything that can be wrong, binds the port, and starts the launcher in the server's own
environment. What the launcher has to know goes through its standard input, never through arguments or the environment, which
others on the machine may read; while that pipe is open the parent lives, and when it closes the launcher leaves.
"""

import ipaddress
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmpo.annotate.argilla_server.environment import SERVER_VERSION, ensure, python_of
from mmpo.annotate.argilla_server.home import (
    LOG,
    SCRATCH,
    NewUser,
    holding,
    known_users,
    new_users,
    password_variable,
    prepare,
    secret_key,
)
from mmpo.pipeline.errors import UserError

DEFAULT_PORT = 6900
DEFAULT_WORKSPACE = "team"
LAUNCHER = Path(__file__).with_name("launcher.py")
STOP_SECONDS = 15.0
TAIL_LINES = 12
NOT_PASSED_ON = ("ARGILLA_", "MMPO_ARGILLA_PASSWORD_", "PYTHON", "HF_TOKEN")


def serve(
    home: Path,
    *,
    agree: Callable[[str], bool],
    ready: Callable[[dict[str, Any]], None],
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    owner: str | None = None,
    annotators: Iterable[str] = (),
    renewed: Iterable[str] = (),
    workspace: str = DEFAULT_WORKSPACE,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Serve the Argilla of the folder `home` until it is interrupted (Ctrl-C or SIGTERM), then return.

    agree: see `environment.ensure`. ready: called once, when the server answers, with url, host, home, workspace, version,
    pid, log and users: a list of {name, role, created} with, for those that this start made or gave a new password, password
    (only where it was generated) and api_key. port 0 is any free one. owner, annotators: made where they are missing. renewed:
    users who get a new password. Raises UserError: a busy port, another server on the same folder, a host that others reach
    with passwords that were not chosen, an installation that failed, a server that did not start or left.
    """
    if not workspace.strip():
        raise UserError("--workspace: the name is empty; leave it out for 'team'")
    home = prepare(home)
    annotators = list(dict.fromkeys(annotators))
    with holding(home) as lock, _terminating():
        known = known_users(home)
        fresh = new_users(known, owner, annotators, list(dict.fromkeys(renewed)), environment)
        _check_host(host, fresh)
        with listen(host, port) as listening:
            url = f"http://{_in_url(listening)}"
            python = python_of(ensure(agree))
            order = {
                "home": str(home),
                "socket": listening.fileno(),
                "secret_key": secret_key(home),
                "workspace": workspace,
                "users": [{"name": user.name, "role": user.role, "password": user.password} for user in fresh],
                "members": [*annotators, *([owner] if owner else [])],
            }
            child = _start(python, home, order, (lock, listening.fileno()), environment)
        try:
            keys = _until_ready(child, home)
            ready(_facts(url, host, home, workspace, known, fresh, keys, child.pid))
            child.wait()
            raise UserError(f"Argilla's server left with status {child.returncode}; {_end_of_log(home)}")
        except KeyboardInterrupt:
            _stop(child)
        finally:
            _end(child)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host that a server listens on.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    return all(ipaddress.ip_address(address[4][0]).is_loopback for address in _resolve(host, 0))


def _resolve(host: str, port: int) -> list[Any]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise UserError(f"--host {host}: {error}; take 127.0.0.1, or an address of this machine") from None
    return sorted(found, key=lambda address: address[0] != socket.AF_INET)


def _check_host(host: str, fresh: list[NewUser]) -> None:
    if is_loopback(host):
        return
    unset = [password_variable(user.name) for user in fresh if user.generated]
    if unset:
        raise UserError(
            f"--host {host} lets other machines in, and then every new user needs a password that you chose; set {', '.join(unset)} "
            "(8 to 72 characters), or leave --host out"
        )


@contextmanager
def listen(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens on the first address of the host. The child gets a copy; ours is closed at the end.

    Bound here, so that a busy port is known before anything is started and nobody can take it in between. Raises UserError.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"--port {port} is no port; take 1 to 65535, or 0 for any free one")
    family, kind, protocol, _, address = _resolve(host, port)[0]
    with socket.socket(family, kind, protocol) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(address)
            listening.listen(128)
        except PermissionError:
            raise UserError(f"--port {port} may not be used by this account; take one above 1023, or 0 for any free one") from None
        except OSError as error:
            raise UserError(
                f"{host}:{port} cannot be listened on ({error.strerror}); stop what uses it, or take another --port, 0 for any free one"
            ) from None
        yield listening


def _in_url(listening: socket.socket) -> str:
    address, port = listening.getsockname()[:2]
    if ipaddress.ip_address(address).is_unspecified:
        address = "127.0.0.1" if listening.family == socket.AF_INET else "::1"
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


@contextmanager
def _terminating() -> Iterator[None]:
    """SIGTERM and a closed terminal stop the server as Ctrl-C does."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(
    python: Path, home: Path, order: dict[str, Any], descriptors: tuple[int, ...], environment: Mapping[str, str]
) -> "subprocess.Popen[bytes]":
    kept = {name: value for name, value in environment.items() if not name.startswith(NOT_PASSED_ON)}
    kept |= {"TMPDIR": str(home / SCRATCH), "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    with open(os.open(home / LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as log:
        # -I: neither the user's PYTHONPATH nor this folder, whose names are common ones, may shadow what the server imports.
        # A session of its own: Ctrl-C reaches the parent only, which stops the child in good order.
        child = subprocess.Popen(
            (str(python), "-I", str(LAUNCHER)),
            cwd=home, env=kept, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            pass_fds=descriptors, start_new_session=True,
        )  # fmt: skip
    assert child.stdin is not None
    try:
        child.stdin.write(json.dumps(order).encode() + b"\n")
        child.stdin.flush()
    except BrokenPipeError:
        child.wait()
    return child


def _until_ready(child: "subprocess.Popen[bytes]", home: Path) -> dict[str, str]:
    """The API key of each user made, when the server answers."""
    assert child.stdout is not None
    keys: dict[str, str] = {}
    for line in child.stdout:
        event = json.loads(line)
        if event["event"] == "ready":
            return keys
        keys[event["name"]] = event["api_key"]
    child.wait()
    raise UserError(f"Argilla's server did not start (status {child.returncode}); {_end_of_log(home)}")


def _end_of_log(home: Path) -> str:
    lines = (home / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    return (
        f"{home / LOG} ends:\n"
        + "\n".join(lines[-TAIL_LINES:])
        + "\nThe same command starts it again; all that was answered is kept."
    )


def _facts(
    url: str, host: str, home: Path, workspace: str, known: Mapping[str, str], fresh: list[NewUser], keys: dict[str, str], pid: int
) -> dict[str, Any]:
    users: list[dict[str, Any]] = []
    for user in fresh:
        row: dict[str, Any] = {"name": user.name, "role": user.role, "created": user.name not in known, "api_key": keys[user.name]}
        users.append(row | ({"password": user.password} if user.generated else {}))
    made = {user.name for user in fresh}
    users += [{"name": name, "role": role, "created": False} for name, role in sorted(known.items()) if name not in made]
    facts = {"url": url, "host": host, "home": str(home), "workspace": workspace, "version": SERVER_VERSION, "pid": pid}
    return facts | {"log": str(home / LOG), "users": users}


def _stop(child: "subprocess.Popen[bytes]") -> None:
    """Lets the server finish what it is answering. A second Ctrl-C is not waited for: what is committed is safe."""
    child.terminate()
    try:
        child.wait(STOP_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        child.kill()


def _end(child: "subprocess.Popen[bytes]") -> None:
    if child.poll() is None:
        child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()
