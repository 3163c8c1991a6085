"""`mmpo argilla serve` as its users meet it: log-ins, restarts, kills, and everything that is refused."""

import os
import pty
import signal
import sqlite3
import stat
import subprocess
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from argilla_cases import Asked
from argilla_fixture import Argilla, Serving, environment_folder, ready_facts, serve_argilla
from command import environment, mmpo, wait_for

from mmpo.cli.commands.argilla import say_ready

PASSWORDS = {"owner": "owner-pass-1", "anna": "anna-pass-1"}


def refused(home: Path, *options: object, **variables: str) -> str:
    """What a start that must be refused says; it has to leave with 2 and no traceback."""
    env = environment(**{"MMPO_ARGILLA_ENV": environment_folder()} | variables)
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


def test_a_second_server_and_a_busy_port_are_refused(home: Path, tmp_path: Path) -> None:
    with serve_argilla(home, passwords=PASSWORDS, messages=tmp_path / "said") as serving:
        said = refused(home, "--port", "0", "--yes")
        assert f"process {serving.process.pid}" in said and "--home" in said
        port = serving.ready["url"].rsplit(":", 1)[1]
        said = refused(tmp_path / "other", "--port", port, "--yes")
        assert f"127.0.0.1:{port}" in said and "--port" in said
        assert log_in(serving.ready["url"], "owner", PASSWORDS["owner"]).status_code == 201


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
