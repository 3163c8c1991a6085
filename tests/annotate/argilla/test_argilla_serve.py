"""`mmpo argilla serve` as its users meet it: log-ins, restarts, kills, all that is refused; and its pieces that need no server."""

import json
import os
import pty
import re
import signal
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from argilla_cases import Asked
from argilla_fixture import Argilla, Serving, ready_facts, serve_argilla, server_environment
from command import environment, mmpo, wait_for
from hypothesis import given
from hypothesis import strategies as st

from mmpo.annotate.argilla_server.environment import PINS, digest_of_pins, ensure, environment_folder, is_complete, python_of
from mmpo.annotate.argilla_server.home import holding, known_users, new_users, prepare, secret_key
from mmpo.annotate.argilla_server.serve import is_loopback, serve
from mmpo.annotate.argilla_server.text_query import matches, pack, terms_of
from mmpo.cli.commands.argilla import say_ready
from mmpo.pipeline.errors import UserError

PASSWORDS = {"owner": "owner-pass-1", "anna": "anna-pass-1"}


def refused(home: Path, *options: object, **variables: str) -> str:
    """What a start that must be refused says; it has to leave with 2 and no traceback."""
    env = environment(**{"MMPO_ARGILLA_ENV": server_environment()} | variables)
    done = mmpo("argilla", "serve", "--home", home, *options, env=env, stdin=subprocess.DEVNULL, timeout=60)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith("error: "), done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def log_in(url: str, name: str, password: str) -> httpx.Response:
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
        return client.post("/api/v1/token", data={"username": name, "password": password})


def team(serving: Serving) -> Argilla:
    """The server of this start, as its users see it."""
    return Argilla(serving.ready["url"], PASSWORDS["owner"], passwords={"anna": PASSWORDS["anna"]})


def pushed(serving: Serving, folder: Path, records: int, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """A dataset of so many records at this server."""
    asked = Asked(team(serving), folder)
    monkeypatch.setenv("ARGILLA_API_KEY", asked.argilla.owner_key)
    asked.push(records)
    return asked


def progress(asked: Asked) -> tuple[int, int]:
    """(completed, pending)."""
    found = asked.get(f"{asked.path}/progress")
    return found["completed"], found["pending"]


def is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def home(argilla_environment: Path, tmp_path: Path) -> Path:
    """A folder to be, whose name holds what breaks addresses and settings."""
    return tmp_path / "an Argilla %s ? # é"


@pytest.mark.slow
def test_users_log_in_and_share_the_workspace(argilla: Argilla) -> None:
    for name in ("owner", "anna", "ben", "carla"):
        password = argilla.owner_password if name == "owner" else argilla.annotator(name)
        assert log_in(argilla.api_url, name, password).status_code == 201
        assert log_in(argilla.api_url, name, password + "x").status_code == 401
        with argilla.as_user(name) as user:
            assert user.get("/api/v1/me").json()["username"] == name
            assert "team" in [space["name"] for space in user.get("/api/v1/me/workspaces").json()["items"]]
    with argilla.as_user("anna") as anna:
        assert anna.post("/api/v1/workspaces", json={"name": "mine"}).status_code == 403
    assert argilla.client().me.role == "owner"
    assert argilla.api_url.startswith("http://127.0.0.1:")


def test_the_page_is_there_and_no_other_site_may_ask(argilla: Argilla) -> None:
    with httpx.Client(base_url=argilla.api_url, trust_env=False, headers={"Origin": "http://elsewhere.example"}) as client:
        page = client.get("/")
        assert "<html" in page.text
        assert "access-control-allow-origin" not in client.get("/api/v1/version").headers


@pytest.mark.slow
def test_generated_passwords_are_printed_once_and_stand_nowhere_else(home: Path, tmp_path: Path) -> None:
    with serve_argilla(home, "--annotator", "anna", messages=tmp_path / "first") as serving:
        users = {user["name"]: user for user in serving.ready["users"]}
        assert {(name, user["role"]) for name, user in users.items()} == {("owner", "owner"), ("anna", "annotator")}
        secrets = [users[name]["password"] for name in users]
        for name in users:
            assert log_in(serving.ready["url"], name, users[name]["password"]).status_code == 201
            assert serving.said().count(users[name]["password"]) == 1
        assert users["owner"]["api_key"] in serving.said()
        assert serving.interrupt() == 0
    kept = b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())
    assert not [secret for secret in secrets if secret.encode() in kept]
    log = (home / "server.log").read_text()
    assert not [user for user in users.values() if user["api_key"] in log]
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert {stat.S_IMODE((home / name).stat().st_mode) for name in ("argilla.db", "secret.key", "lock", "server.log")} == {0o600}
    with serve_argilla(home, "--new-password", "anna", messages=tmp_path / "second") as serving:
        again = {user["name"]: user for user in serving.ready["users"]}
        assert "password" not in again["owner"] and "api_key" not in again["owner"]
        assert not [secret for secret in secrets if secret in serving.said()]
        assert log_in(serving.ready["url"], "owner", users["owner"]["password"]).status_code == 201
        assert log_in(serving.ready["url"], "anna", users["anna"]["password"]).status_code == 401
        assert log_in(serving.ready["url"], "anna", again["anna"]["password"]).status_code == 201


@pytest.mark.slow
def test_a_restart_keeps_all_and_adds_an_annotator(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_argilla(home, "--annotator", "anna", passwords=PASSWORDS, messages=tmp_path / "first") as serving:
        assert not [user for user in serving.ready["users"] if "password" in user]
        token = log_in(serving.ready["url"], "anna", PASSWORDS["anna"]).json()["access_token"]
        asked = pushed(serving, tmp_path, 5, monkeypatch)
        for record, status in zip(asked.records(), ("submitted", "draft")):
            asked.answer("anna", record, status, grade="0")
        assert serving.interrupt() == 0
        assert serving.said().rstrip().endswith(f"stopped; everything is in {home}")
    assert not list(home.glob("argilla.db-*")), "a clean stop leaves one file to copy"
    with serve_argilla(home, "--annotator", "anna", "--annotator", "ben", messages=tmp_path / "second") as serving:
        url = serving.ready["url"]
        created = {user["name"]: user for user in serving.ready["users"] if user["created"]}
        assert list(created) == ["ben"]
        assert log_in(url, "ben", created["ben"]["password"]).status_code == 201
        with httpx.Client(base_url=url, trust_env=False, headers={"Authorization": f"Bearer {token}"}) as anna:
            assert anna.get("/api/v1/me").json()["username"] == "anna", "who was logged in stays so"
            own = anna.get(f"/api/v1/me/datasets/{asked.dataset['id']}/metrics").json()["responses"]
        assert (own["submitted"], own["draft"], own["pending"], own["total"]) == (1, 1, 3, 5)
        serving.process.send_signal(signal.SIGTERM)
        assert serving.process.wait(timeout=30) == 0


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["the command", "the server"])
def test_a_kill_loses_nothing_that_was_answered(home: Path, tmp_path: Path, victim: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_argilla(home, "--annotator", "anna", passwords=PASSWORDS, messages=tmp_path / "first") as serving:
        child = serving.ready["pid"]
        asked = pushed(serving, tmp_path, 20, monkeypatch)
        for record in (answered := asked.records()[:7]):
            asked.answer("anna", record, grade="0")
        if victim == "the command":
            serving.process.kill()
        else:
            os.kill(child, signal.SIGKILL)
            assert serving.process.wait(timeout=15) == 2
            assert "the same command starts it again" in serving.said().lower()
            assert str(home / "server.log") in serving.said()
        assert wait_for(lambda: not is_there(child)), "the server must not outlive the command"
    # As if the kill had come between answers and their records' status.
    with closing(sqlite3.connect(home / "argilla.db")) as database:
        database.execute("UPDATE records SET status = 'pending' WHERE external_id < 'pairs-8'")
        database.commit()
    with serve_argilla(home, passwords=PASSWORDS, messages=tmp_path / "second") as serving:
        asked.argilla = team(serving)
        assert progress(asked) == (7, 13)
        assert {one["id"] for one in asked.records() if one["responses"]} == {one["id"] for one in answered}


def test_a_changed_number_of_answers_is_counted_again(asked: Asked) -> None:
    asked.push(raters=2)
    records = asked.records()
    for name, count in (("anna", 4), ("ben", 1)):
        for record in records[:count]:
            asked.answer(name, record, grade="0")
    assert progress(asked) == (1, 5)
    for min_submitted, expected in ((1, (4, 2)), (3, (0, 6)), (2, (1, 5))):
        asked.change("PATCH", asked.path, distribution={"strategy": "overlap", "min_submitted": min_submitted})
        assert wait_for(lambda expected=expected: progress(asked) == expected)


@pytest.mark.slow
def test_a_second_server_and_a_busy_port_are_refused(home: Path, tmp_path: Path) -> None:
    with serve_argilla(home, passwords=PASSWORDS, messages=tmp_path / "said") as serving:
        said = refused(home, "--port", "0", "--yes")
        assert f"process {serving.process.pid}" in said and "--home" in said
        port = serving.ready["url"].rsplit(":", 1)[1]
        said = refused(tmp_path / "other", "--port", port, "--yes")
        assert f"127.0.0.1:{port}" in said and "--port" in said
        assert log_in(serving.ready["url"], "owner", PASSWORDS["owner"]).status_code == 201


@pytest.mark.slow
def test_other_hosts_want_chosen_passwords(tmp_path: Path) -> None:
    home, elsewhere = tmp_path / "home", ("--annotator", "anna-lena", "--host", "0.0.0.0", "--port", "0", "--yes")
    said = refused(home, *elsewhere, MMPO_ARGILLA_PASSWORD_OWNER="long enough")
    assert "MMPO_ARGILLA_PASSWORD_ANNA_LENA" in said and "MMPO_ARGILLA_PASSWORD_OWNER" not in said
    assert "8" in refused(home, "--yes", MMPO_ARGILLA_PASSWORD_OWNER="short")
    assert "--host" in refused(home, "--host", "no such host", "--yes")


def test_without_a_terminal_the_installation_wants_yes(tmp_path: Path) -> None:
    folder = tmp_path / "environment"
    said = refused(tmp_path / "home", "--port", "0", MMPO_ARGILLA_ENV=str(folder))
    assert "--yes" in said and "600 MB" in said and str(folder) in said and not folder.exists()


def test_on_a_terminal_it_asks_and_no_means_no(tmp_path: Path) -> None:
    terminal, its_end = pty.openpty()
    os.write(terminal, b"n\n")
    folder = tmp_path / "environment"
    env = environment(MMPO_ARGILLA_ENV=str(folder))
    done = mmpo("argilla", "serve", "--home", tmp_path / "home", "--port", "0", env=env, stdin=its_end, timeout=60)
    for end in (terminal, its_end):
        os.close(end)
    assert done.returncode == 2 and "600 MB" in done.stderr and "was not installed" in done.stderr and not folder.exists()


@pytest.mark.slow
def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    assert "holds other files" in refused(tmp_path, "--yes")
    assert "is a file" in refused(tmp_path / "thesis.tex", "--yes")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "argilla.db").write_text("no database at all")
    assert "argilla.db" in refused(tmp_path / "home", "--port", "0", "--yes")


def test_what_is_said_when_it_is_ready(capsys: pytest.CaptureFixture[str]) -> None:
    """Other hosts are warned of, and names in printed commands are quoted."""
    say_ready(ready_facts(host="0.0.0.0"), only_here=False)
    assert "WARNING" in capsys.readouterr().err
    say_ready(ready_facts(workspace="our team; ls"), only_here=True)
    said = capsys.readouterr().err
    assert "WARNING" not in said and said.count("--workspace 'our team; ls'") == 2


def versions(text: str) -> dict[str, str]:
    """By the normal form of each name, of lines NAME==VERSION."""
    lines = [line.split("==") for line in text.splitlines() if not line.startswith("#")]
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in lines}


def test_every_pin_is_exact_and_the_environment_is_what_they_say(argilla_environment: Path) -> None:
    pins = versions(PINS.read_text(encoding="utf-8"))
    assert pins["argilla-server"] == "2.8.0" and {"requests", "fakeredis", "sqlalchemy", "uvicorn"} <= set(pins)
    freeze = (str(python_of(argilla_environment)), "-I", "-m", "pip", "freeze")
    there = subprocess.run(freeze, capture_output=True, text=True, check=True).stdout
    assert versions(there) == pins


def test_where_the_environment_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMPO_ARGILLA_ENV", str(tmp_path / "here"))
    assert environment_folder() == tmp_path / "here"
    monkeypatch.delenv("MMPO_ARGILLA_ENV")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert environment_folder() == tmp_path / "mmpo" / f"argilla-server-2.8.0-{digest_of_pins()}"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert environment_folder().parent == tmp_path / "me" / ".cache" / "mmpo"


def test_a_complete_environment_is_taken_without_a_question(argilla_environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMPO_ARGILLA_ENV", str(argilla_environment))
    questions: list[str] = []
    assert ensure(lambda question: bool(questions.append(question))) == argilla_environment
    assert not questions


def test_an_environment_of_other_pins_or_half_made_is_not_complete(tmp_path: Path) -> None:
    python, marker = tmp_path / "bin" / "python", tmp_path / "mmpo-complete"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    for text, complete in (("", False), ("0123abcd\n", False), (digest_of_pins(), True)):
        assert not is_complete(tmp_path)
        marker.write_text(text)
        assert is_complete(tmp_path) == complete
    python.unlink()
    python.symlink_to(tmp_path / "gone")
    assert not is_complete(tmp_path)


@pytest.mark.slow
def test_an_installation_that_fails_says_why_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "environment"
    # Left by one that was killed: ours to remove.
    folder.mkdir()
    (folder / "mmpo-unfinished").touch()
    pip = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": "/dev/null", "PIP_FIND_LINKS": ""}
    for name, value in {"MMPO_ARGILLA_ENV": str(folder), **pip}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"(?s)argilla-server.*same command again"):
        ensure(lambda question: True)
    assert not folder.exists()
    with pytest.raises(UserError, match="--yes"):
        ensure(lambda question: False)
    folder.mkdir()
    (folder / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds other files"):
        ensure(lambda question: True)
    assert (folder / "thesis.tex").exists()


@pytest.mark.slow
def test_one_holds_a_folder_and_the_next_hears_who(tmp_path: Path) -> None:
    home = prepare(tmp_path / "home")
    code = "import sys; from pathlib import Path\nfrom mmpo.annotate.argilla_server.home import holding"
    code += "\nwith holding(Path(sys.argv[1])): pass"
    with holding(home):
        done = subprocess.run([sys.executable, "-c", code, str(home)], capture_output=True, text=True, check=False)
        assert "UserError" in done.stderr
    # Nothing is left to clean away, not even by one that died without letting go.
    dying = code.replace("pass", "import os; os._exit(9)")
    assert subprocess.run([sys.executable, "-c", dying, str(home)], check=False).returncode == 9
    with holding(home):
        assert (home / "scratch").is_dir()


def test_the_secret_key_is_made_once_and_is_nobody_elses(tmp_path: Path) -> None:
    key = secret_key(tmp_path)
    assert len(key) == 64 and secret_key(tmp_path) == key
    assert (tmp_path / "secret.key").stat().st_mode & 0o777 == 0o600
    assert secret_key(prepare(tmp_path / "other")) != key
    # A start that was killed in between leaves an empty file.
    (tmp_path / "secret.key").write_text("")
    assert len(secret_key(tmp_path)) == 64


def test_who_is_made() -> None:
    made = new_users({}, None, ["anna", "anna"], [], {"MMPO_ARGILLA_PASSWORD_ANNA": "long enough"})
    assert [(user.name, user.role, user.generated) for user in made] == [("owner", "owner", True), ("anna", "annotator", False)]
    assert made[1].password == "long enough" and len(made[0].password) >= 16
    known = {"kim": "owner", "anna": "annotator"}
    assert new_users(known, None, ["anna"], [], {}) == [], "an owner of another name is enough"
    assert [user.name for user in new_users(known, "lee", ["ben"], [], {})] == ["lee", "ben"]
    assert [(user.name, user.role) for user in new_users(known, None, [], ["kim"], {})] == [("kim", "owner")]


@pytest.mark.parametrize("known, owner, annotators, renewed, environment, words", [
    ({}, None, ["an na"], [], {}, "no name"),
    ({}, None, ["../x"], [], {}, "no name"),
    ({}, None, ["a-b", "a_b"], [], {}, "share"),
    ({}, None, ["anna"], [], {"MMPO_ARGILLA_PASSWORD_ANNA": "é" * 37}, "74 bytes"),
    ({}, None, [], ["zoe"], {}, "no such user"),
    # Nobody has two roles.
    ({}, None, ["owner"], [], {}, "as owner|as annotator"),
    ({}, "kim", ["kim"], [], {}, "as owner|as annotator"),
    ({"kim": "owner"}, None, ["kim"], [], {}, "as owner|as annotator"),
    ({"kim": "owner", "anna": "annotator"}, "anna", [], [], {}, "as owner|as annotator"),
])  # fmt: skip
def test_who_is_refused(
    known: dict[str, str], owner: str | None, annotators: list[str], renewed: list[str], environment: dict[str, str], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        new_users(known, owner, annotators, renewed, environment)


def test_a_workspace_without_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--workspace: the name is empty"):
        serve(tmp_path / "home", agree=lambda question: False, ready=lambda facts: None, workspace="")
    assert not (tmp_path / "home").exists()


def test_a_new_folder_has_no_users(tmp_path: Path) -> None:
    for name in ("nothing", "argilla.db"):
        (tmp_path / name).touch()
        assert known_users(tmp_path) == {}


def test_what_is_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.3.2.1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "192.0.2.1")))


@given(st.text(max_size=60))
def test_any_text_is_a_query(query: str) -> None:
    terms = terms_of(query)
    assert all(text and text == text.casefold() for group in terms for _, text in group)
    packed = pack(query, ["text"])
    assert bool(packed) == bool(terms)
    if packed:
        matches('{"text": "anything"}', packed)
        matches(None, packed)


@given(st.lists(st.text("abcéß日", min_size=1, max_size=5), min_size=1, max_size=4))
def test_words_of_a_text_find_it_and_their_negation_does_not(words: list[str]) -> None:
    fields = json.dumps({"text": " ".join(words).upper()})
    assert matches(fields, pack(" ".join(words), ["text"]))
    assert not matches(fields, pack(f"-{words[0]}", ["text"]))
    assert not matches(fields, pack(words[0], ["other"]))
