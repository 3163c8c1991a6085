"""Bad days of push and pull, on the real server: none, wrong keys and names, cuts, kills, contradictions, text that is like markup."""

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any

import pytest
from argilla_browser import CONTROL, MARKERS
from argilla_cases import Asked, feedback, pairs, texts_of
from argilla_fixture import Argilla
from argilla_proxy import proxy_to
from cases import comparisons
from command import mmpo, stopped
from folders import write_rows

from mmpo.annotate.argilla import PushOptions, connect, push, upsert
from mmpo.pipeline import load_feedback
from mmpo.pipeline.errors import PartialResult, UserError


@contextmanager
def web_server(status: int, body: bytes) -> Iterator[str]:
    """A web server that is no Argilla: one answer to everything."""

    class Answering(StreamRequestHandler):
        def handle(self) -> None:
            self.request.recv(1 << 16)
            self.wfile.write(b"HTTP/1.0 %d Fine\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))

    with ThreadingTCPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.slow
def test_server_down(argilla: Argilla, tmp_path: Path) -> None:
    """Told within seconds, with the next move, by both commands; exit status 2."""
    with web_server(200, b"") as gone:
        pass
    asked = Asked(replace(argilla, api_url=gone), tmp_path)
    began = time.monotonic()
    with pytest.raises(UserError, match=f"no Argilla answers at {asked.argilla.api_url}.*mmpo argilla serve"):
        asked.push()
    assert time.monotonic() - began < 6
    done = asked.mmpo("pull", "--out", asked.out)
    assert done.returncode == 2 and "no Argilla answers" in done.stderr and "Traceback" not in done.stderr
    assert not asked.out.exists()


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
def test_wrong_keys_are_told_and_not_repeated(asked: Asked, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("ARGILLA_API_KEY", key)
    with pytest.raises(UserError, match="ARGILLA_API_KEY") as caught:
        asked.push()
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
    asked = Asked(replace(argilla, workspace="teem"), tmp_path)
    with pytest.raises(UserError, match=r"no workspace 'teem' .*there are: .*team"):
        asked.push()
    with pytest.raises(UserError, match="no workspace 'teem'"):
        asked.pull()


def test_a_missing_dataset_names_those_that_are_there(asked: Asked) -> None:
    asked.push()
    with pytest.raises(UserError, match="nobody has submitted an answer yet"):
        asked.pull()
    other = Asked(asked.argilla, asked.folder)
    with pytest.raises(UserError, match=f"no dataset '{other.name}' .*{asked.name}"):
        other.pull()
    assert not asked.out.exists()


@pytest.mark.slow
def test_a_dataset_deleted_between_push_and_pull(asked: Asked) -> None:
    """What was pulled stays; pushed anew, the same answers are not lost and new ones are added."""
    asked.push(3)
    asked.answer_all("anna", grade="1")
    asked.pull()
    before = load_feedback(asked.out)
    asked.change("DELETE", asked.path)
    with pytest.raises(UserError, match=r"renamed or deleted.*What was pulled before is still in"):
        asked.pull()
    assert load_feedback(asked.out).equals(before)
    assert asked.push()["sent"] == 3
    del asked.dataset  # another one of the same name
    asked.answer("ben", asked.records()[0], grade="-1")
    summary = asked.pull()
    assert (summary["grades"], summary["new"], summary["kept"]) == (4, 1, {"answer_deleted": 3})


def each_once(asked: Asked, size: int) -> bool:
    """Whether so many records are there and none twice."""
    records = asked.records()
    ids = {one["external_id"] for one in records}
    return len(records) == size == len(ids) == len({one["fields"]["prompt"][0]["content"] for one in records})


@pytest.mark.slow
@pytest.mark.whole
def test_a_network_cut_in_the_middle_of_two_thousand_records(asked: Asked) -> None:
    """The cut leaves whole batches; the same command sends the rest, and nothing is there twice."""
    with proxy_to(asked.argilla.api_url) as proxy:
        proxy.cut_after = 600_000
        with pytest.raises(PartialResult, match=r"records are safe.*the same command again"):
            asked.push(2_000, api_url=proxy.url)
        assert proxy.cuts == 1
        there = len(asked.records())
        assert 0 < there < 2_000 and there % 500 == 0
        proxy.cut_after = None
        summary = asked.push(api_url=proxy.url)
    assert (summary["sent"], summary["unchanged"], summary["finished"]) == (2_000 - there, there, True)
    assert each_once(asked, 2_000)


@pytest.mark.slow
def test_replies_that_get_lost_are_asked_for_again(asked: Asked) -> None:
    """Argilla has the batch, its reply is lost: asked again by itself, nothing twice, no error."""
    with proxy_to(asked.argilla.api_url) as proxy:
        proxy.drop_replies = 2
        assert asked.push(600, api_url=proxy.url)["sent"] == 600 and proxy.cuts == 2
    assert each_once(asked, 600)


@pytest.mark.slow
def test_a_pull_that_is_cut_writes_nothing(asked: Asked) -> None:
    asked.push(3)
    asked.answer_all("anna", grade="1")
    asked.pull()
    before = load_feedback(asked.out)
    with proxy_to(asked.argilla.api_url) as proxy:
        proxy.cut_after = 1_700  # enough for the first requests, each about 300 bytes
        with pytest.raises(PartialResult, match="Nothing was written"):
            asked.pull(api_url=proxy.url)
        assert proxy.cuts == 1
    assert load_feedback(asked.out).equals(before)


@pytest.mark.slow
def test_a_push_killed_in_the_middle_is_finished_by_the_same_command(asked: Asked) -> None:
    data = feedback(asked.folder / "f", 1_500)

    def some() -> bool:
        with suppress(StopIteration):
            return len(asked.records()) > 0
        return False

    stopped(*asked.words("push", data), when=some, env=asked.environment)
    there = len(asked.records())
    summary = asked.push(data)
    assert 0 < there < 1_500 and summary["unchanged"] >= there and summary["sent"] + summary["unchanged"] == 1_500
    assert each_once(asked, 1_500)


@pytest.mark.slow
def test_a_record_that_argilla_refuses_does_not_hold_up_the_others(asked: Asked) -> None:
    """Argilla refuses a whole batch for one record: the others go all the same, and its reason stands beside those that do not."""
    asked.push(40)
    limited = {"name": "length", "title": "length", "settings": {"type": "integer", "max": 1}}
    asked.change("POST", f"{asked.path}/metadata-properties", **limited)
    ids = [one["external_id"] for one in asked.records()]
    items = [{"external_id": own, "metadata": {"length": 2 if i % 20 == 7 else 1}} for i, own in enumerate(ids)]
    with connect(asked.argilla.api_url) as client:
        [(taken, refused)] = list(upsert(client, asked.dataset["id"], items))
    assert taken == 38 and [record["external_id"] for record, _ in refused] == [ids[7], ids[27]]
    assert all("greater than the maximum" in why for _, why in refused)
    assert [one["metadata"]["length"] for one in asked.records() if "length" in one["metadata"]] == [1] * 38


@pytest.mark.slow
def test_folders_that_hold_something_else(asked: Asked, tmp_path: Path) -> None:
    other = Asked(asked.argilla, tmp_path)
    for one in (asked, other):
        one.push(pairs(tmp_path / "p", 2))
        one.answer("anna", one.records()[0], grade="1")
    feedback(tmp_path / "f")
    with pytest.raises(UserError, match=r"not pulled from Argilla.*--feedback"):
        asked.pull("f")
    with pytest.raises(UserError, match="not pulled from Argilla"):
        asked.pull("p")
    asked.pull()
    with pytest.raises(UserError, match=f"holds the answers of '{asked.name}'"):
        other.pull()
    write_rows(tmp_path / "mine" / "thesis.jsonl", [])
    with pytest.raises(UserError, match="holds something else"):
        asked.pull("mine")


TEXTS = (
    *MARKERS,
    "![p][r]\n\n[r]: http://127.0.0.1:9/ref.png",
    "<\u2060b> already joined &\u2060amp; !\u2060[x](y) $\u2060 data\u2060: &amp;lt;",
)
BEGINS_MARKUP = re.compile(r"<[A-Za-z/!?]|&[#A-Za-z]|!\[|(?i:javascript|vbscript|data):")
"""What would begin a tag, an entity, a picture or a link of its own, were it not broken."""
NOTE = f"because {MARKERS[0]} {MARKERS[4]}"


def marked(folder: Path) -> Path:
    """FEEDBACK with such text as prompt, replies, models and the judge's name."""
    rows = [
        {"prompt": [{"role": "system", "content": text}, {"role": "user", "content": f"{text} {i}"}],
         "completion": text + end, "model": model + text, "score": score, "rater": text}
        for i, text in enumerate(TEXTS)
        for end, model, score in (("", "", 1), ("!", "m", 5))
    ]  # fmt: skip
    return feedback(folder, rows, scale=(1, 5), kind="ai")


def shown(record: dict[str, Any]) -> list[str]:
    """Every text that the page puts on the screen."""
    fields = record["fields"]
    return [one["content"] for one in fields["prompt"]] + [text for own, text in fields.items() if own.startswith("reply_")]


@pytest.mark.slow
@pytest.mark.parametrize("display", ["plain", "markdown"])
def test_the_data_of_the_page_is_inert_and_comes_back_to_the_letter(asked: Asked, display: str) -> None:
    data = marked(asked.folder / "f")
    summary = asked.push(data, suggest=True, display=display)
    assert (summary["sent"], summary["suggested"], summary["finished"]) == (len(TEXTS), len(TEXTS), True)
    asked.argilla.annotator("anna")
    with asked.argilla.as_user("anna") as anna:
        path = f"/api/v1/me/datasets/{asked.dataset['id']}/records/search"
        seen = anna.post(path, json={}, params={"include": ["suggestions"]}).raise_for_status().json()["items"]
    assert len(seen) == len(TEXTS)
    for one in seen:
        assert not one["record"]["metadata"]
        for text in shown(one["record"]):
            if display == "plain":
                assert "<" not in text and not re.search(r"&(?!amp;|lt;|gt;)", text)
            else:
                assert not BEGINS_MARKUP.search(text)
        assert re.fullmatch(r"[A-Za-z0-9_:./\s-]+", one["record"]["suggestions"][0]["agent"])
    asked.answer_all("anna", grade="1", rationale=NOTE)
    asked.pull()
    assert texts_of(asked.out) == texts_of(data)
    assert {one["note"] for one in comparisons(asked.out)} == {NOTE}


@pytest.mark.slow
def test_no_control_character_reaches_a_terminal(asked: Asked) -> None:
    """A user, a dataset, texts and reasons with escape sequences: neither push nor pull nor agree nor an error prints one."""
    asked.name += " \x1b]0;title\x07<b>"
    pushing = asked.mmpo("push", marked(asked.folder / "f"), "--suggest")
    assert pushing.returncode == 0, pushing.stderr
    asked.answer_all("eve\x1b[31m\u202e<b>", grade="2", rationale=MARKERS[4])
    asked.answer_all("anna", grade="1")
    pulling = asked.mmpo("pull", "--out", asked.out, "--real-names", "--json")
    assert pulling.returncode == 0, pulling.stderr
    assert len(json.loads(pulling.stdout)["raters"]) == 2
    outputs = [pushing.stderr, pulling.stderr, pulling.stdout, mmpo("agree", asked.out).stderr]
    for space in (asked.argilla.workspace, "w\x1b[2J"):
        wrong = ["--dataset", "no\x1b[2J", "--workspace", space, "--out", asked.folder / "none"]
        outputs.append(mmpo("argilla", "pull", *wrong, env=asked.environment).stderr)
    assert all(outputs)
    assert not [found for output in outputs for found in CONTROL.findall(output)]
    assert {one["rater"] for one in comparisons(asked.out)} == {"anna", "eve\\x1b[31m\\u202e<b>"}


def test_what_argilla_refuses_is_told_without_escape_sequences(asked: Asked) -> None:
    asked.name = "x\x1b[31m" * 60
    with pytest.raises(UserError) as caught:
        asked.push()
    assert not CONTROL.search(str(caught.value))
