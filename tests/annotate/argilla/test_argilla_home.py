"""The pieces of `mmpo argilla serve` that need no server: environment, folder, users, words of a query."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmpo.annotate.argilla_server.environment import PINS, digest_of_pins, ensure, environment_folder, is_complete, python_of
from mmpo.annotate.argilla_server.home import holding, known_users, new_users, prepare, secret_key
from mmpo.annotate.argilla_server.serve import is_loopback, serve
from mmpo.annotate.argilla_server.text_query import matches, pack, terms_of
from mmpo.pipeline.errors import UserError


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
