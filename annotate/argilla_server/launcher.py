"""Runs inside the environment of Argilla's server, by its path: `python -I launcher.py`, started by `serve`.

One line of JSON on standard input says what to serve; standard output answers with a line of JSON for every user made and one
when the server is ready. Everything happens in this one process: the redis is an object, the queue's worker a thread. mmpo is
not installed here, and the server is not where mmpo is: so what is imported of either stands inside functions.
"""

# pyright: reportMissingImports=false

import asyncio
import ctypes
import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

ENGINE = "mmpo"
BUSY_SECONDS = 30
QUEUE_EVERY_SECONDS = 0.5
DRAIN_SECONDS = 5
SETTLED = """
UPDATE records SET status = CASE status WHEN 'completed' THEN 'pending' ELSE 'completed' END
WHERE (status = 'completed') != (
    (SELECT count(*) FROM responses WHERE responses.record_id = records.id AND responses.status = 'submitted')
    >= (SELECT json_extract(distribution, '$.min_submitted') FROM datasets WHERE datasets.id = records.dataset_id)
)
"""
"""An answer and its record's status are two transactions of Argilla's: a kill between them leaves a status behind."""


def main() -> None:
    """Serve until SIGTERM, or until the parent is gone."""
    order = json.loads(_first_line())
    _die_with_parent()
    events = _take_output()
    os.umask(0o077)
    _set_environment(order)
    _take_redis_place()
    _migrate()
    _make_importable()
    _register()
    # Handlers that do nothing: uvicorn sends a signal that it has handled once more, to whoever was there before it.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    served = asyncio.run(_serve(order, events))
    # The worker's thread may be at work.
    os._exit(0 if served else 1)


def _first_line() -> bytes:
    with open(0, "rb", buffering=0, closefd=False) as pipe:
        return pipe.readline()


def _die_with_parent() -> None:
    """Leaves when the pipe from the parent closes; on Linux the kernel sees to it too. What is committed is safe."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _take_output() -> TextIO:
    """Standard output for our events alone; what libraries print goes into the log."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return events


def _say(events: TextIO, **event: Any) -> None:
    print(json.dumps(event), file=events, flush=True)


def _set_environment(order: dict[str, Any]) -> None:
    """Argilla reads its settings when it is imported."""
    os.environ.update(
        ARGILLA_HOME_PATH=order["home"],
        # Relative, in the folder we run in: a path with '%', '?' or '#' breaks as part of an address.
        ARGILLA_DATABASE_URL="sqlite+aiosqlite:///argilla.db?check_same_thread=False",
        ARGILLA_SEARCH_ENGINE=ENGINE,
        ARGILLA_AUTH_SECRET_KEY=order["secret_key"],
        # The page comes from the same address; no other site has any business here.
        ARGILLA_CORS_ORIGINS="[]",
    )


def _take_redis_place() -> None:
    """Argilla's queues in the memory of this process, from the moment that it asks for a redis.

    Not by fakeredis' own server: on a busy machine it closes connections, and its port is open to everyone on this machine.
    """
    import fakeredis
    import redis

    memory = fakeredis.FakeServer()
    redis.from_url = lambda url: fakeredis.FakeStrictRedis(server=memory)


def _make_importable() -> None:
    """`mmpo.annotate.argilla_server` as a package that holds the files beside this one and runs nothing of its own.

    This folder itself must not be on the path: its names are common ones and would shadow what the server imports.
    """
    for name, folders in (("mmpo", []), ("mmpo.annotate", []), ("mmpo.annotate.argilla_server", [str(Path(__file__).parent)])):
        package = sys.modules[name] = ModuleType(name)
        package.__path__ = folders


def _migrate() -> None:
    import sqlite3

    from alembic import command
    from alembic.config import Config
    from argilla_server.database import ALEMBIC_CONFIG_FILE

    with sqlite3.connect("argilla.db", timeout=BUSY_SECONDS) as database:
        # Readers and a writer at once; stays with the file. A file system that can't do it answers with another mode.
        database.execute("PRAGMA journal_mode = WAL")
    database.close()
    command.upgrade(Config(ALEMBIC_CONFIG_FILE), "head")


def _register() -> None:
    """Our search engine under its name, its functions in every connection, and a pool that never makes a request wait."""
    from argilla_server import database
    from argilla_server.search_engine.base import SearchEngine
    from sqlalchemy import event
    from sqlalchemy.engine import Engine
    from sqlalchemy.ext.asyncio import create_async_engine

    from mmpo.annotate.argilla_server.search import TablesEngine, add_functions

    event.listen(Engine, "connect", lambda connection, record: add_functions(connection))
    SearchEngine.registered_classes[ENGINE] = TablesEngine
    # A waiting pool belongs to the event loop that waited first, and the worker's thread has another loop than the server.
    engine = create_async_engine(database.settings.database_url, connect_args={"timeout": BUSY_SECONDS}, max_overflow=-1)
    database.AsyncSessionLocal.configure(bind=engine)
    database.async_engine = engine


async def _serve(order: dict[str, Any], events: TextIO) -> bool:
    """True where the server was up and left in good order."""
    import uvicorn
    from argilla_server import app, database
    from sqlalchemy import text

    async with database.AsyncSessionLocal() as session:
        await session.execute(text(SETTLED))
        await session.commit()
    await _settle_users(order, events)
    server = uvicorn.Server(uvicorn.Config(app, access_log=False, log_level="warning", timeout_graceful_shutdown=DRAIN_SECONDS))
    task = asyncio.create_task(server.serve(sockets=[socket.socket(fileno=order["socket"])]))
    while not (server.started or task.done()):
        await asyncio.sleep(0.02)
    if server.started:
        threading.Thread(target=_work, daemon=True).start()
        _say(events, event="ready")
    await task
    await database.async_engine.dispose()
    return server.started


async def _settle_users(order: dict[str, Any], events: TextIO) -> None:
    """The workspace, the users who are missing, and new passwords; everybody named belongs to the workspace."""
    from argilla_server.contexts import accounts
    from argilla_server.database import AsyncSessionLocal
    from argilla_server.models import Workspace, WorkspaceUser

    async with AsyncSessionLocal() as session:
        workspace = await Workspace.get_by(session, name=order["workspace"])
        workspace = workspace or await accounts.create_workspace(session, {"name": order["workspace"]})
        for wanted in order["users"]:
            user = await accounts.get_user_by_username(session, wanted["name"])
            if user is None:
                new = {"first_name": wanted["name"], "last_name": None, "username": wanted["name"], **wanted}
                user = await accounts.create_user(session, new, workspaces=[workspace.name])
            else:
                user = await accounts.update_user(session, user, {"password": wanted["password"]})
            _say(events, event="user", name=user.username, api_key=user.api_key)
        for name in order["members"]:
            user = await accounts.get_user_by_username(session, name)
            if await WorkspaceUser.get_by(session, workspace_id=workspace.id, user_id=user.id) is None:
                await accounts.create_workspace_user(session, {"workspace_id": workspace.id, "user_id": user.id})


def _work() -> None:
    """Does what Argilla puts into its queues (new statuses after a change of the dataset, webhooks), in this thread."""
    from argilla_server.jobs.queues import DEFAULT_QUEUE, HIGH_QUEUE, REDIS_CONNECTION
    from rq import SimpleWorker
    from rq.timeouts import TimerDeathPenalty

    class Worker(SimpleWorker):
        death_penalty_class = TimerDeathPenalty

        def _install_signal_handlers(self) -> None:
            """Only the main thread may have any, and uvicorn has them."""

    queues = [HIGH_QUEUE, DEFAULT_QUEUE]
    pause = threading.Event()
    while not pause.wait(QUEUE_EVERY_SECONDS):
        if any(queue.count for queue in queues):
            Worker(queues, connection=REDIS_CONNECTION).work(burst=True, logging_level="WARNING")


if __name__ == "__main__":
    main()
