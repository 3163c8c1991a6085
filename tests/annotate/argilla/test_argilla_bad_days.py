"""Bad days of push and pull, on the real server: no server, wrong keys and names, cuts in the middle, kills, contradictions."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from argilla_cases import Asked, answer, comparisons, feedback, name, pairs, pulled, pushed
from argilla_fixture import Argilla
from argilla_proxy import proxy_to
from cases import environment, mmpo

from mmpo.annotate.agreement import agree
from mmpo.annotate.argilla import PullOptions, PushOptions, connect, pull, push, upsert
from mmpo.pipeline import BuildOptions, build, load_feedback, load_pairs
from mmpo.pipeline.errors import PartialResult, UserError


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def web_server(status: int, body: bytes) -> Iterator[str]:
    """A web server that is no Argilla: one answer to everything."""

    class Answering(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_server_down(argilla: Argilla, tmp_path: Path) -> None:
    """Told within seconds, with the next move, by both commands; exit status 2."""
    url, data = f"http://127.0.0.1:{closed_port()}", feedback(tmp_path / "f")
    started = time.monotonic()
    with pytest.raises(UserError, match=f"no Argilla answers at {url}.*mmpo argilla serve"):
        push(data, "any", options=PushOptions(api_url=url))
    assert time.monotonic() - started < 6
    env = environment(ARGILLA_API_KEY=argilla.owner_key, ARGILLA_API_URL=url)
    done = mmpo("argilla", "pull", "--dataset", "any", "--out", str(tmp_path / "out"), env=env)
    assert done.returncode == 2 and "no Argilla answers" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (200, b"<html>hello</html>", "is no Argilla"),
        (200, b"{}", "is no Argilla"),
        (404, b"nothing here", "is no Argilla"),
        (503, b"starting \x1b[31mup", "is not ready"),
        (302, b"", "not as Argilla does"),
    ],
)
def test_something_else_answers(tmp_path: Path, status: int, body: bytes, message: str) -> None:
    with web_server(status, body) as url, pytest.raises(UserError, match=message) as caught:
        push(feedback(tmp_path / "f"), "any", options=PushOptions(api_url=url))
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("key", ["owner.apikey.wrong", "", "with space", "schlüssel", "two\nlines"])
def test_wrong_keys_are_told_and_not_repeated(argilla: Argilla, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("ARGILLA_API_KEY", key)
    with pytest.raises(UserError, match="ARGILLA_API_KEY") as caught:
        pushed(argilla, feedback(tmp_path / "f"), name())
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("127.0.0.1:6900", "http://HOST:PORT"),
        ("http://me:secret@127.0.0.1:6900", "http://HOST:PORT"),
        ("http://127.0.0.1:6900/?api_key=secret", "http://HOST:PORT"),
        ("http://127.0.0.1:99999", "cannot be read"),
        ("http://[::1", "cannot be read"),
        ("http://me:secret@host:port", "cannot be read"),
    ],
)
def test_an_address_that_is_refused_is_not_repeated_with_its_secrets(tmp_path: Path, url: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        push(tmp_path, "any", options=PushOptions(api_url=url))
    assert "secret" not in str(caught.value)
    assert url not in str(caught.value) or message != "cannot be read"


def test_a_missing_workspace_names_those_that_are_there(argilla: Argilla, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no workspace 'teem' .*there are: .*team"):
        push(feedback(tmp_path / "f"), name(), "teem", options=PushOptions(api_url=argilla.api_url))
    with pytest.raises(UserError, match="no workspace 'teem'"):
        pull("any", tmp_path / "out", "teem", options=PullOptions(api_url=argilla.api_url))


def test_a_missing_dataset_names_those_that_are_there(argilla: Argilla, tmp_path: Path) -> None:
    dataset = name()
    pushed(argilla, feedback(tmp_path / "f"), dataset)
    with pytest.raises(UserError, match=f"no dataset 'other' .*{dataset}"):
        pulled(argilla, "other", tmp_path / "out")
    with pytest.raises(UserError, match="nobody has submitted an answer yet"):
        pulled(argilla, dataset, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_dataset_deleted_between_push_and_pull(argilla: Argilla, tmp_path: Path) -> None:
    """What was pulled stays; pushed anew, the same answers are not lost and new ones are added."""
    dataset, data, out = name(), feedback(tmp_path / "f", 3), tmp_path / "out"
    pushed(argilla, data, dataset)
    for record in Asked(argilla, dataset).records():
        answer(argilla, "anna", record, grade="1")
    pulled(argilla, dataset, out)
    before = load_feedback(out)
    Asked(argilla, dataset).delete()
    with pytest.raises(UserError, match=r"renamed or deleted.*What was pulled before is still in"):
        pulled(argilla, dataset, out)
    assert load_feedback(out).equals(before)
    assert pushed(argilla, data, dataset)["sent"] == 3
    answer(argilla, "ben", Asked(argilla, dataset).records()[0], grade="-1")
    summary = pulled(argilla, dataset, out)
    assert (summary["grades"], summary["new"], summary["kept"]) == (4, 1, {"answer_deleted": 3})


@pytest.mark.slow
def test_a_network_cut_in_the_middle_of_two_thousand_records(argilla: Argilla, tmp_path: Path) -> None:
    """The cut leaves whole batches; the same command sends the rest, and nothing is there twice."""
    data, dataset, size = feedback(tmp_path / "f", 2_000), name(), 2_000
    with proxy_to(argilla.api_url) as proxy:
        proxy.cut_after = 600_000
        with pytest.raises(PartialResult, match=r"records are safe.*the same command again"):
            push(data, dataset, argilla.workspace, options=PushOptions(api_url=proxy.url))
        assert proxy.cuts == 1
        there = len(Asked(argilla, dataset).records())
        assert 0 < there < size and there % 500 == 0
        proxy.heal()
        summary = push(data, dataset, argilla.workspace, options=PushOptions(api_url=proxy.url))
    assert (summary["sent"], summary["unchanged"], summary["finished"]) == (size - there, there, True)
    records = Asked(argilla, dataset).records()
    assert len(records) == size == len({one["external_id"] for one in records})
    assert len({one["fields"]["prompt"][0]["content"] for one in records}) == size


@pytest.mark.slow
def test_replies_that_get_lost_are_asked_for_again(argilla: Argilla, tmp_path: Path) -> None:
    """Argilla has the batch, its reply is lost: asked again by itself, nothing twice, no error."""
    data, dataset = feedback(tmp_path / "f", 600), name()
    with proxy_to(argilla.api_url) as proxy:
        proxy.drop_replies = 2
        summary = push(data, dataset, argilla.workspace, options=PushOptions(api_url=proxy.url))
        assert proxy.cuts == 2 and summary["sent"] == 600
    records = Asked(argilla, dataset).records()
    assert len(records) == 600 == len({one["external_id"] for one in records})


def test_a_pull_that_is_cut_writes_nothing(argilla: Argilla, tmp_path: Path) -> None:
    dataset, out = name(), tmp_path / "out"
    pushed(argilla, feedback(tmp_path / "f", 3), dataset)
    for record in Asked(argilla, dataset).records():
        answer(argilla, "anna", record, grade="1")
    pulled(argilla, dataset, out)
    before = load_feedback(out)
    with proxy_to(argilla.api_url) as proxy:
        proxy.cut_after = 1_700  # enough for the first requests, each about 300 bytes
        with pytest.raises(PartialResult, match="Nothing was written"):
            pull(dataset, out, argilla.workspace, options=PullOptions(api_url=proxy.url))
        assert proxy.cuts == 1
    assert load_feedback(out).equals(before)


@pytest.mark.slow
def test_a_push_killed_in_the_middle_is_finished_by_the_same_command(argilla: Argilla, tmp_path: Path) -> None:
    data, dataset = feedback(tmp_path / "f", 1_500), name()
    code = "from mmpo.cli.main import main; main()"
    command = [sys.executable, "-c", code, "argilla", "push", str(data), "--dataset", dataset, "--workspace", argilla.workspace]
    env = environment(ARGILLA_API_KEY=argilla.owner_key, ARGILLA_API_URL=argilla.api_url)
    with subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL) as process:
        there = 0
        while not there and process.poll() is None:
            time.sleep(0.1)
            try:
                there = len(Asked(argilla, dataset).records())
            except StopIteration:
                continue
        os.kill(process.pid, signal.SIGKILL)
    summary = pushed(argilla, data, dataset)
    assert 0 < there < 1_500 and summary["unchanged"] >= there and summary["sent"] + summary["unchanged"] == 1_500
    records = Asked(argilla, dataset).records()
    assert len(records) == 1_500 == len({one["external_id"] for one in records})


def test_a_record_that_argilla_refuses_does_not_hold_up_the_others(argilla: Argilla, tmp_path: Path) -> None:
    """Argilla refuses a whole batch for one record: the others go all the same, and its reason stands beside those that do not."""
    dataset = name()
    pushed(argilla, feedback(tmp_path / "f", 40), dataset)
    asked = Asked(argilla, dataset)
    limited = {"name": "length", "title": "length", "settings": {"type": "integer", "max": 1}}
    asked.change("POST", f"{asked.path}/metadata-properties", **limited)
    items = [
        {"external_id": one["external_id"], "metadata": {"length": 2 if i % 20 == 7 else 1}}
        for i, one in enumerate(asked.records())
    ]
    with connect(argilla.api_url) as client:
        [(taken, refused)] = list(upsert(client, asked.dataset["id"], items))
    assert taken == 38
    assert [record["external_id"] for record, _ in refused] == [items[i]["external_id"] for i in (7, 27)]
    assert all("greater than the maximum" in why for _, why in refused)
    assert [one["metadata"]["length"] for one in asked.records() if "length" in one["metadata"]] == [1] * 38


def test_contradictory_answers_of_a_rater(argilla: Argilla, tmp_path: Path) -> None:
    """a beats b, b beats c, c beats a: three grades as they were given; the second opinion of one of them replaces the first."""
    rows = [{"prompt": "Which?", "completions": ["aa", "bb", "cc"]}]
    dataset = name()
    pushed(argilla, feedback(tmp_path / "f", rows), dataset)
    records = Asked(argilla, dataset).records()
    assert len(records) == 3
    beats = {("aa", "bb"), ("bb", "cc"), ("cc", "aa")}
    for record in records:
        shown = (record["fields"]["reply_a"], record["fields"]["reply_b"])
        answer(argilla, "anna", record, grade="-2" if shown in beats else "2")  # the first opinion, the wrong way round
        answer(argilla, "anna", record, grade="2" if shown in beats else "-2")
    summary = pulled(argilla, dataset, tmp_path / "out")
    assert summary["grades"] == 3
    found = {(one["first_text"], one["second_text"]): one["gap"] for one in comparisons(tmp_path / "out")}
    assert all(gap == (2.0 if shown in beats else -2.0) for shown, gap in found.items())
    build(tmp_path / "out", tmp_path / "p", options=BuildOptions(format="feedback"))
    won = {(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in load_pairs(tmp_path / "p").to_pylist()}
    assert won == beats
    assert agree(tmp_path / "out", bootstrap=0)["raters"][0]["units"] == 3


def test_folders_that_hold_something_else(argilla: Argilla, tmp_path: Path) -> None:
    one, two = name(), name()
    data = pairs(tmp_path / "p", 2)
    for dataset in (one, two):
        pushed(argilla, data, dataset)
        answer(argilla, "anna", Asked(argilla, dataset).records()[0], grade="1")
    with pytest.raises(UserError, match=r"not pulled from Argilla.*--feedback"):
        pulled(argilla, one, feedback(tmp_path / "f"))
    with pytest.raises(UserError, match="not pulled from Argilla"):
        pulled(argilla, one, data)
    pulled(argilla, one, tmp_path / "out")
    with pytest.raises(UserError, match=f"holds the answers of '{one}'"):
        pulled(argilla, two, tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="holds something else"):
        pulled(argilla, one, tmp_path / "mine")
