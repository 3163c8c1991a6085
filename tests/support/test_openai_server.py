"""The test server does what a plan says, on the wire, and counts what came: else the tests that lean on it prove nothing."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from command import wait_for
from openai_plan import REPLY, STATUS
from openai_server import Server, serving
from simulated_judge import JudgeModel, Qualities, _verdict, quality

PROMPT = "<first-0badc0de77>\n{}\n</first-0badc0de77>\n<second-0badc0de77>\n{}\n</second-0badc0de77>\nAnswer with one letter."


@pytest.fixture(scope="module")
def shared() -> Iterator[Server]:
    with serving({"defaults": {"noise": 0.0, "tau": 0.5, "mass": 0.9}}) as server:
        yield server


def ask(server: Server, first: str = "red", second: str = "blue", timeout: float = 0.4) -> tuple[str, Any, str]:
    """Head and body (parsed where it is JSON) of what came, and how the connection stood then: open, closed or reset."""
    message = {"role": "user", "content": PROMPT.format(first, second)}
    sent = json.dumps({"model": "m", "messages": [message], "temperature": 0, "logprobs": True, "top_logprobs": 20}).encode()
    received, end = b"", "closed"
    with socket.create_connection(("127.0.0.1", server.port), timeout=timeout) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (len(sent), sent))
        try:
            while part := connection.recv(1 << 16):
                received += part
                if received.endswith(b"}}") and b"transfer-encoding" not in received:
                    end = "open"
                    break
        except (ConnectionResetError, TimeoutError) as error:
            end = "reset" if isinstance(error, ConnectionResetError) else "open"
    head, _, body = received.decode().partition("\r\n\r\n")
    try:
        return head.lower(), json.loads(body), end
    except ValueError:
        return head.lower(), body, end


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("kind", [*STATUS, *REPLY])
def test_a_refusal_or_a_spoilt_reply_comes_as_often_as_planned(shared: Server, kind: str) -> None:
    shared.plan({"faults": [{"kind": kind, "times": 1, "headers": {"retry-after": "2"}}]})
    (head, spoilt, _), (well, good, _) = ask(shared), ask(shared)
    assert [head.split()[1], well.split()[1]] == [str(STATUS[kind][0]) if kind in STATUS else "200", "200"]
    assert len(good["choices"][0]["message"]["content"]) == 1 and (kind in STATUS or spoilt["choices"] != good["choices"])
    assert ("retry-after: 2\r" in head) == (kind in STATUS and kind != "bad_gateway")  # that one is a proxy's
    assert [record["fault"] for record in shared.log()[-2:]] == [kind, None]


def test_faults_of_the_wire_are_on_the_wire(shared: Server) -> None:
    kinds = ("reset", "close", "hang", "cut_json", "bad_json", "slow")
    shared.plan({"faults": [{"kind": kind, "times": 1, "seconds": 0.2} for kind in kinds]})
    (head, body, end), close, hang, cut, bad, slow = (ask(shared) for _ in kinds)
    assert "200 ok" in head and '"id"' in body and '"usage"' not in body and end == "reset"
    assert close == ("", "", "closed") and hang == ("", "", "open")
    for head, body, end in (cut, bad):
        assert f"content-length: {len(body)}" in head and isinstance(body, str) and end == "open"
    assert slow[1]["choices"] and shared.log()[-1]["latency"] == 0.2
    assert wait_for(lambda: shared.counts()["in_flight"] == 0)  # the server sees that the hanging request's client has gone
    log = [(record["sent"], record["status"]) for record in shared.log()[-6:]]
    assert log == [(False, 200), (False, None), (False, None), (True, 200), (True, 200), (True, 200)]


def test_an_outage_resets_who_waits_and_refuses_who_comes_and_ends() -> None:
    plan = {"latency": 0.5, "faults": [{"kind": "down", "contains": "red 7\n", "seconds": 0.7}]}
    with serving(plan) as server, ThreadPoolExecutor() as pool:
        waiting = pool.submit(ask, server, "red 1", timeout=9)
        assert wait_for(lambda: server.counts()["requests"] == 1)
        assert ask(server, "red 7")[2] == "reset" and waiting.result()[2] == "reset"
        with pytest.raises(ConnectionRefusedError):
            ask(server)
        assert server.counts()["answered"] == 0 and wait_for(lambda: listens(server.port))
        assert ask(server, timeout=9)[1]["choices"]
        assert [record["sent"] for record in server.log()] == [False, False, True]


def test_chances_and_conditions_depend_on_the_request_and_not_on_the_order() -> None:
    struck = []
    plan = {"seed": 3, "faults": [{"kind": "auth", "probability": 0.3}, {"kind": "context", "contains": "red 5\n", "attempts": 1}]}
    for numbers in (range(60), range(59, -1, -1)):
        with serving(plan) as server:
            for number in [*numbers, 5]:
                ask(server, f"red {number}")
            struck.append({(record["digest"], record["attempt"], record["fault"]) for record in server.log()})
            counts = server.counts()["by_fault"]
    assert struck[0] == struck[1] and 8 <= counts["auth"] <= 28 and counts["context"] == 1  # 18 expected, standard deviation 3.6


def test_rates_are_limited_and_counts_are_right() -> None:
    with serving({"rate_limit": {"requests_per_minute": 60, "burst_seconds": 3}, "latency": 0.05}) as server:
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda text: ask(server, text), ("red", "blue", "red")))
        head, _, _ = ask(server)
        assert "429" in head and "retry-after: 1\r" in head
        counts = server.counts()
    assert (counts["requests"], counts["answered"], counts["answered_again"], counts["most_in_flight"]) == (4, 3, 1, 3)
    assert counts["by_status"] == {"200": 3, "429": 1} and counts["completion_tokens"] == 3 and counts["in_flight"] == 0


def test_a_wrong_plan_is_refused_and_changes_nothing() -> None:
    with pytest.raises(RuntimeError, match="lattency"), serving({"lattency": 1}):
        pass
    with serving({"api_keys": ["other"]}) as server:
        with pytest.raises(ValueError, match="typo"):
            server.plan({"api_keys": None, "faults": [{"kind": "typo"}]})
        assert "401" in ask(server)[0]


def test_it_ends_when_whoever_started_it_is_gone() -> None:
    code = "import os, openai_server; running = openai_server.serving(); print(running.__enter__().port, flush=True); os._exit(0)"
    folder = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=60, check=True)
    assert wait_for(lambda: not listens(int(done.stdout)))


def test_a_judge_of_words_that_are_worth_something_bends_its_margins() -> None:
    """Four times the mean worth: 4 and 0, apart by 4; the square root of that is 2, and no more where another letter is nearer."""
    worth = {"good": 1.0, "bad": -1.0}
    texts = {"first": "good good", "second": "good bad"}
    prompt = "".join(f"<{name}-0123456789>\n{text}\n</{name}-0123456789>\n" for name, text in texts.items())
    model = JudgeModel(noise=0.0, bend=0.5, tau=0.2)
    [grades] = _verdict(prompt, "judge", model, Qualities(worth=worth)).values()
    assert (quality("Good, other.", worth), quality("", worth)) == (2.0, 0.0)
    assert max(grades, key=grades.__getitem__) == "B" and grades["B"] > -1e-4
