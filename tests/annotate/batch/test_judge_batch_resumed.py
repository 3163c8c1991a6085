"""Bad days of `mmpo judge --batch`, against an emulator of ours: kills, Ctrl-C, lost replies, an endpoint that is away, a budget."""

import contextlib
import json
import signal
import sqlite3
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest
from batch_cases import CALLS, FAST, REQUESTS, answered, batch_words, calls, paid_once, reached, using
from cases import candidates, comparisons, judged, mmpo, of
from command import ended, environment, started
from openai_server import serving

from mmpo.pipeline.errors import PartialResult


@pytest.mark.slow
def test_killed_at_any_moment_it_is_resumed_and_nothing_is_paid_twice(openai_server: Any, tmp_path: Path) -> None:
    slow = [{"kind": "slow", "route": route, "seconds": 0.03} for route in CALLS]
    server = openai_server({"batch_seconds": 0.4, "faults": slow})
    feedback, out = candidates(tmp_path / "in", 90), tmp_path / "out"
    arguments = batch_words(feedback, out, server, "--batch-requests", "6")
    moments = Random(11)
    for _ in range(12):
        process = started(*arguments)
        assert reached(server, process, *CALLS, times=calls(server, *CALLS) + moments.randint(1, 24))
        time.sleep(moments.uniform(0, 0.05))  # before, within and after the answer to a call
        process.kill()
        ended(process)
    before = of(f"{out}.judge.sqlite", "SELECT status, count(*) FROM batches GROUP BY status ORDER BY status")
    assert {status for status, _ in before} >= {"read", "submitted"}  # killed in the middle of it
    last = mmpo(*arguments)
    assert last.returncode == 0, last.stderr
    assert len(comparisons(out)) == 540 and paid_once(server, 540)
    assert of(f"{out}.judge.sqlite", "SELECT requests FROM spent") == [(540,)]
    assert of(f"{out}.judge.sqlite", "SELECT count(*) FROM batched") == [(0,)]
    assert {path.name for path in tmp_path.iterdir()} == {"in", "in.jsonl", "out", "out.judge.sqlite", "out.judge.sqlite.lock"}


@pytest.mark.parametrize("kind", ["close", "reset", "bad_json", "cut_json"])
def test_a_batch_whose_creation_was_not_heard_of_is_found_and_not_made_again(kind: str, openai_server: Any, tmp_path: Path) -> None:
    server = openai_server({"faults": [{"kind": kind, "route": "batches.create", "times": 2}]})
    summary = judged(candidates(tmp_path / "in"), tmp_path / "out", server, batch_requests=18, **FAST)
    assert summary["finished"] and server.counts()["batches"] == 2 and paid_once(server)


def test_a_run_that_died_before_it_knew_its_batch_finds_it_by_its_token(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server({"faults": [{"kind": "hang", "route": "batches.create"}]})
    feedback, out = candidates(tmp_path / "in"), tmp_path / "out"
    process = started(*batch_words(feedback, out, server))
    assert reached(server, process, "batches.create")
    process.kill()
    ended(process)
    assert (
        of(f"{out}.judge.sqlite", "SELECT batch, status FROM batches") == [(None, "submitting")] and server.counts()["batches"] == 1
    )
    server.plan({"faults": []})
    assert mmpo(*batch_words(feedback, out, server)).returncode == 0
    assert server.counts()["batches"] == 1 and paid_once(server) and len(comparisons(out)) == REQUESTS


def test_a_run_that_died_before_its_batch_was_made_makes_it_again(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server({"faults": [{"kind": "hang", "route": "files.create"}]})
    feedback, out = candidates(tmp_path / "in"), tmp_path / "out"
    process = started(*batch_words(feedback, out, server))
    assert reached(server, process, "files.create")
    process.kill()
    ended(process)
    server.plan({"faults": []})
    assert mmpo(*batch_words(feedback, out, server)).returncode == 0
    assert server.counts()["batches"] == 1 and paid_once(server)
    assert of(f"{out}.judge.sqlite", "SELECT status FROM batches ORDER BY at") == [("lost",), ("read",)]


def test_ctrl_c_leaves_the_batches_running_and_the_same_command_takes_them_in(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server({"batch_seconds": 60})
    feedback, out = candidates(tmp_path / "in"), tmp_path / "out"
    arguments = batch_words(feedback, out, server, "--batch-requests", "12")
    process = started(*arguments)
    assert reached(server, process, "batches.get", times=4)
    process.send_signal(signal.SIGINT)
    said = ended(process)
    assert (
        process.returncode == 3 and "3 batches go on at the provider" in said and "same command" in said and "Traceback" not in said
    )
    assert not out.exists()
    looked = mmpo(*arguments, "--status", "--json")
    assert "3 batches under way" in looked.stderr and json.loads(looked.stdout)["judges"][0]["batches_open"] == 3
    # One by one, these requests would be paid a second time.
    alone = mmpo(*[word for word in arguments if word != "--batch"])
    assert alone.returncode == 2 and "run with --batch" in alone.stderr
    with serving({"batch_seconds": 0}) as other:  # another address does not know these batches: they are not taken for lost
        elsewhere = mmpo(*[str(word).replace(server.base_url, other.base_url) for word in arguments])
    assert elsewhere.returncode == 3 and "not known there" in elsewhere.stderr
    assert using(server, _cancelled) == 3
    last = mmpo(*arguments)
    assert last.returncode == 3 and "cancelled at the provider" in last.stderr
    server.plan({"batch_seconds": 0})
    last = mmpo(*arguments)
    assert last.returncode == 0, last.stderr
    assert paid_once(server) and len(comparisons(out)) == REQUESTS


async def _cancelled(client: Any) -> int:
    found = [batch.id async for batch in client.batches.list()]
    for batch in found:
        await client.batches.cancel(batch)
    return len(found)


def test_ctrl_c_and_then_all_is_there(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server({"batch_seconds": 4})
    feedback, out = candidates(tmp_path / "in"), tmp_path / "out"
    process = started(*batch_words(feedback, out, server))
    assert reached(server, process, "batches.get")
    process.send_signal(signal.SIGINT)
    ended(process)
    assert process.returncode == 3
    last = mmpo(*batch_words(feedback, out, server))
    assert last.returncode == 0 and server.counts()["batches"] == 1 and paid_once(server)


PRICES = "batch: 0.5\nmodels:\n  judge-a: [1000, 2000]\n"


def test_a_budget_is_kept_at_half_the_price(openai_server: Any, tmp_path: Path) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text(PRICES)
    server, feedback, out = openai_server({"batch_seconds": 0.2}), candidates(tmp_path / "in"), tmp_path / "out"
    alone = judged(feedback, tmp_path / "alone", server, prices=str(prices))["cost"]
    budget = alone / 2 * 0.6
    for most in (budget * 0.5, budget):  # the second one resumes the first: the budget is that of the journal
        summary = judged(feedback, out, server, prices=str(prices), max_cost=most, batch_requests=5, **FAST)
        assert summary["stopped"] == "budget" and 0.75 * most < summary["cost"] <= most
        [told] = summary["judges"]
        assert told["failed"] == {} and told["answered"] + told["left"] == REQUESTS
        assert sum(answered(server).values()) == told["answered"]
    whole = judged(feedback, out, server, prices=str(prices), batch_requests=5, **FAST)
    assert whole["finished"] and whole["cost"] == pytest.approx(alone / 2) and paid_once(server)


def test_a_budget_counts_what_a_killed_run_left_at_the_provider(openai_server: Any, tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text(PRICES)
    server, feedback, out = openai_server({"batch_seconds": 2}), candidates(tmp_path / "in"), tmp_path / "out"
    cost = judged(feedback, tmp_path / "alone", server, prices=str(tmp_path / "prices.yaml"))["cost"] / 2
    arguments = batch_words(feedback, out, server, "--prices", str(tmp_path / "prices.yaml"), "--max-cost", str(cost * 0.7))
    process = started(*arguments)
    assert reached(server, process, "batches.get")
    process.kill()
    ended(process)
    last = mmpo(*arguments, "--json")
    told = json.loads(last.stdout)
    assert last.returncode == 3 and told["stopped"] == "budget" and told["cost"] <= cost * 0.7
    assert max(answered(server).values()) == 1


def test_a_wrong_key_stops_with_one_message(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server({"batch_seconds": 0})
    feedback, out = candidates(tmp_path / "in"), tmp_path / "out"
    others = candidates(tmp_path / "others", 1, start=500)
    judged(others, tmp_path / "first", server, journal=str(tmp_path / "j.sqlite"))  # what the probe found is known
    server.plan({"api_keys": ["sk-another-key-0001"]})
    done = mmpo(*batch_words(feedback, out, server, "--journal", str(tmp_path / "j.sqlite")))
    assert done.returncode == 2 and "key" in done.stderr and "Traceback" not in done.stderr
    assert server.counts()["batches"] == 0 and "sk-test-of-the-run" not in done.stderr


@pytest.mark.parametrize("route", CALLS)
@pytest.mark.parametrize("kind", ["down", "unavailable", "rate_limit", "reset", "bad_json", "cut_json"])
def test_an_endpoint_that_is_away_or_stumbles_costs_nothing_but_time(
    kind: str, route: str, openai_server: Any, tmp_path: Path
) -> None:
    feedback, journal = candidates(tmp_path / "in"), str(tmp_path / "j.sqlite")
    server = openai_server({"faults": [{"kind": kind, "route": route, "times": 1, "seconds": 1.5 if kind == "down" else 0.0}]})
    summary = judged(feedback, tmp_path / "out", server, retries=1, journal=journal, batch_requests=18, **FAST)
    assert summary["finished"] and server.counts()["batches"] == 2 and paid_once(server)
    assert of(journal, "SELECT requests FROM spent") == [(REQUESTS,)]


def test_an_endpoint_that_stays_away_leaves_the_batches(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server({"batch_seconds": 1, "faults": [{"kind": "down", "route": "batches.get", "seconds": 3, "times": 1}]})
    feedback = candidates(tmp_path / "in")
    with pytest.raises(PartialResult, match="1 batch goes on at the provider"):
        judged(feedback, tmp_path / "out", server, retries=0, patience=0.5, **FAST)
    assert judged(feedback, tmp_path / "out", server, **FAST)["finished"] and paid_once(server)


def test_batches_that_the_provider_has_forgotten_are_asked_again(openai_server: Any, tmp_path: Path) -> None:
    feedback, out = candidates(tmp_path / "in"), tmp_path / "out"
    with serving({"batch_seconds": 60}) as server:
        process = started(*batch_words(feedback, out, server))
        assert reached(server, process, "batches.get")
        process.kill()
        ended(process)
    after = openai_server({})
    arguments = batch_words(feedback, out, after)
    assert mmpo(*arguments).returncode == 3 and after.counts()["batches"] == 0
    with contextlib.closing(sqlite3.connect(f"{out}.judge.sqlite", isolation_level=None)) as journal:
        journal.execute("UPDATE batches SET at = at - 31 * 86400")
    assert mmpo(*arguments).returncode == 0 and paid_once(after)


def test_answers_that_a_smaller_run_has_no_use_for_are_kept(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server({"batch_seconds": 2})
    feedback, out = candidates(tmp_path / "in"), tmp_path / "out"
    process = started(*batch_words(feedback, out, server))
    assert reached(server, process, "batches.get")
    process.kill()
    ended(process)
    pilot = judged(feedback, tmp_path / "pilot", server, limit=2, journal=f"{out}.judge.sqlite", **FAST)
    assert pilot["finished"] and len(comparisons(tmp_path / "pilot")) == 12
    whole = judged(feedback, out, server, **FAST)
    assert whole["finished"] and server.counts()["batches"] == 1 and paid_once(server) and len(comparisons(out)) == REQUESTS


def test_the_key_stands_in_no_file_and_in_no_message(openai_server: Any, tmp_path: Path) -> None:
    key = "sk-proj-Very0Secret9Key4711abcdef.tail"
    faults = [
        {"kind": "status", "status": 400, "message": f"bad request by {key}", "route": "batch_line", "contains": "Question 1?"},
        {"kind": "status", "status": 400, "message": f"no batch for {key}", "route": "batches.create", "at": [2]},
    ]
    server = openai_server({"api_keys": [key], "faults": faults})
    arguments = batch_words(candidates(tmp_path / "in"), tmp_path / "out", server, "--batch-requests", "18", "--json")
    done = mmpo(*arguments, env=environment(OPENAI_API_KEY=key))
    assert done.returncode == 3 and "no batch for [key]" in done.stderr
    texts = [done.stderr, done.stdout, *(path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file())]
    for text in texts:
        assert "Very0Secret" not in text and "abcdef.tail" not in text and ".tail" not in text.replace("abcdef.tail", "")
