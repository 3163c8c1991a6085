"""The folder of an embedded Argilla: its lock, its secret key, the users it has, and the passwords of those it is to get.

DIR/argilla.db      everything: users, datasets, records, answers (SQLite)
DIR/secret.key      signs the log-ins, made once, readable by its owner only
DIR/server.log      what the server had to say since the last start
DIR/lock            held while a server runs, with its process id
DIR/scratch/        emptied at every start
"""

import os
import re
import secrets
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from mmpo.annotate.argilla_server.environment import check_ours
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.storage import file_lock

DATABASE, SECRET, LOG, LOCK, SCRATCH = "argilla.db", "secret.key", "server.log", "lock", "scratch"
PREFIX = "MMPO_ARGILLA_PASSWORD_"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")
SHORTEST, LONGEST = 8, 72
"""Argilla asks for 8 characters; bcrypt reads no more than 72 bytes."""
GIVE_UP_SECONDS = 5.0


@dataclass(frozen=True)
class NewUser:
    """A user to be made (or given a new password). generated: nobody but us has seen the password yet."""

    name: str
    role: str
    password: str
    generated: bool


def prepare(home: Path) -> Path:
    """The folder, made where it is missing, readable by its owner only. Raises UserError where it holds somebody else's files."""
    home = home.expanduser().absolute()
    check_ours(home, (DATABASE, SECRET, LOCK), f"--home {home}", "name a folder that is new, empty, or an Argilla's of before")
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    return home


@contextmanager
def holding(home: Path) -> Iterator[int]:
    """Holds the lock of the folder and gives its file descriptor, for the child to hold it too.

    The system lets go when the last process that holds it is gone, however it went: there are no stale locks. Raises UserError
    naming the process id where a server runs on this folder.
    """
    path = home / LOCK
    holder = path.read_text(encoding="ascii", errors="replace").strip() if path.is_file() else ""
    taken = (
        f"an Argilla already runs on {home}, as process {holder or '(unknown)'}; stop that one (Ctrl-C, or kill {holder}), "
        "or name another --home"
    )
    path.touch(mode=0o600)
    # A server whose command was killed is on its way out: that takes a moment.
    with file_lock(path, taken, seconds=0.0 if _is_alive(holder) else GIVE_UP_SECONDS) as lock:
        assert lock is not None
        path.write_text(f"{os.getpid()}\n", encoding="ascii")
        shutil.rmtree(home / SCRATCH, ignore_errors=True)
        (home / SCRATCH).mkdir(mode=0o700)
        yield lock
        shutil.rmtree(home / SCRATCH, ignore_errors=True)


def _is_alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        pass
    return True


def secret_key(home: Path) -> str:
    """The key that signs log-ins: made once, so that who is logged in stays so over a restart."""
    path = home / SECRET
    if not path.is_file() or not path.read_text(encoding="ascii").strip():
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32) + "\n")
    return path.read_text(encoding="ascii").strip()


def known_users(home: Path) -> dict[str, str]:
    """Name → role (owner, admin, annotator) of the users that the folder has; none where it is new."""
    if not (home / DATABASE).is_file():
        return {}
    with closing(sqlite3.connect(home / DATABASE, timeout=10)) as database:
        try:
            return dict(database.execute("SELECT username, role FROM users").fetchall())
        except sqlite3.OperationalError as error:
            # The first start was cut off before the tables were made.
            if "no such table" in str(error):
                return {}
            raise
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"{home / DATABASE} is no database that can be read ({error}); restore it, or name another --home"
            ) from None


def password_variable(name: str) -> str:
    """The environment variable that may hold a user's password.

    >>> password_variable("anna-lena")
    'MMPO_ARGILLA_PASSWORD_ANNA_LENA'
    """
    return PREFIX + re.sub(r"[^A-Z0-9]", "_", name.upper())


def new_users(
    known: Mapping[str, str],
    owner: str | None,
    annotators: Iterable[str],
    renewed: Iterable[str],
    environment: Mapping[str, str],
) -> list[NewUser]:
    """The users that this start makes, and those that get a new password, each with its password.

    known: see `known_users`. owner: None means "owner" where there is no owner yet. renewed: users who are there and get a new
    password. Passwords come from the environment (8 to 72 bytes), else they are generated. Raises UserError.
    """
    if owner is None and "owner" not in known.values():
        owner = "owner"
    annotators = list(annotators)
    _check_roles(known, owner, annotators)
    wanted = dict.fromkeys(annotators, "annotator") | ({owner: "owner"} if owner else {})
    missing = [name for name in renewed if name not in known]
    if missing:
        raise UserError(f"--new-password {missing[0]}: no such user; there are {', '.join(sorted(known)) or 'none yet'}")
    chosen = {name: role for name, role in wanted.items() if name not in known} | {name: known[name] for name in renewed}
    _check_names(chosen)
    made = [_with_password(name, role, environment) for name, role in chosen.items()]
    return sorted(made, key=lambda user: (user.role != "owner", user.name))


def _check_roles(known: Mapping[str, str], owner: str | None, annotators: Iterable[str]) -> None:
    """Refuse a name that is asked for in two roles, or that has another already."""
    asked = [(name, "annotator") for name in annotators] + ([(owner, "owner")] if owner else [])
    for name, role in asked:
        if role == "annotator" and name == owner:
            raise UserError(f"{name!r} is asked for as owner and as annotator; give the annotator another name")
        if known.get(name, role) != role:
            raise UserError(f"--{role} {name}: {name!r} is there already, as {known[name]}; take another name")


def _check_names(names: Iterable[str]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        if not NAME.fullmatch(name):
            raise UserError(f"{name!r} is no name for a user; take letters, digits, '.', '-' and '_', 60 at most, no space")
        other = seen.setdefault(password_variable(name), name)
        if other != name:
            raise UserError(f"the users {other!r} and {name!r} would share {password_variable(name)}; add them in two starts")


def _with_password(name: str, role: str, environment: Mapping[str, str]) -> NewUser:
    given = environment.get(password_variable(name))
    if given is None:
        return NewUser(name, role, secrets.token_urlsafe(12), generated=True)
    if not SHORTEST <= len(given.encode()) <= LONGEST:
        raise UserError(
            f"{password_variable(name)} holds {len(given.encode())} bytes; a password takes {SHORTEST} to {LONGEST}. "
            "Set another, or unset it and one is generated"
        )
    return NewUser(name, role, given, generated=False)
