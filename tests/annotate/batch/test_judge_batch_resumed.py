"""Bad days of `mmpo judge --batch`, against an emulator of ours: kills, Ctrl-C, lost replies, an endpoint that is away, a budget."""

import json
import signal
from pathlib import Path
from random import Random
from typing import Any

import pytest
from batch_cases import BATCH, CALLS, FAST, REQUESTS, answered, calls, paid_once, reached, using
from cases import candidates
from command import environment, mmpo, stopped
from openai_server import serving

from mmpo.pipeline.errors import PartialResult


@pytest.mark.slow
def test_killed_at_any_moment_it_is_resumed_and_nothing_is_paid_twice(judging: Any) -> None:
    slow = [{"kind": "slow", "route": route, "seconds": 0.03} for route in CALLS]
    job = judging({"batch_seconds": 0.4, "faults": slow}, 90)
    command = job.words(*BATCH, "--batch-requests", "6")
    moments = Random(11)
    for _ in range(12):
        # Before, within and after the answer to a call.
        times = calls(job.server, *CALLS) + moments.randint(1, 24)
        stopped(*command, when=reached(job.server, *CALLS, times=times), after=moments.uniform(0, 0.05))
    before = job.rows("SELECT status, count(*) FROM batches GROUP BY status ORDER BY status")
    assert {status for status, _ in before} >= {"read", "submitted"}  # killed in the middle of it
    last = mmpo(*command)
    assert last.returncode == 0, last.stderr
    assert len(job.comparisons()) == 540 and paid_once(job.server, 540)
    assert job.rows("SELECT requests FROM spent") == [(540,)]
    assert job.rows("SELECT count(*) FROM batched") == [(0,)]
    left = {path.name for path in job.folder.iterdir()}
    assert left == {"in", "in.jsonl", "out", "out.judge.sqlite", "out.judge.sqlite.lock"}


@pytest.mark.parametrize("kind", ["close", "reset", "bad_json", "cut_json"])
def test_a_batch_whose_creation_was_not_heard_of_is_found_and_not_made_again(kind: str, judging: Any) -> None:
    job = judging({"faults": [{"kind": kind, "route": "batches.create", "times": 2}]})
    assert job.judge(batch_requests=18, **FAST)["finished"] and job.count("batches") == 2 and paid_once(job.server)


@pytest.mark.parametrize(
    ("route", "batches", "then"),
    [("batches.create", [(None, "submitting")], ["read"]), ("files.create", None, ["lost", "read"])],
    ids=["its batch is found by its token", "its batch was not made and is made again"],
)
def test_a_run_that_died_before_it_knew_its_batch(
    route: str, batches: list[tuple[None, str]] | None, then: list[str], judging: Any
) -> None:
    job = judging({"faults": [{"kind": "hang", "route": route}]})
    stopped(*job.words(*BATCH), when=reached(job.server, route))
    if batches:
        assert job.rows("SELECT batch, status FROM batches") == batches and job.count("batches") == 1
    job.server.plan({"faults": []})
    assert job.mmpo(*BATCH).returncode == 0
    assert job.count("batches") == 1 and paid_once(job.server) and len(job.comparisons()) == REQUESTS
    assert job.rows("SELECT status FROM batches ORDER BY at") == [(status,) for status in then]


def test_ctrl_c_leaves_the_batches_running_and_the_same_command_takes_them_in(judging: Any) -> None:
    job = judging({"batch_seconds": 60})
    arguments = job.words(*BATCH, "--batch-requests", "12")
    done = stopped(*arguments, when=reached(job.server, "batches.get", times=4), by=signal.SIGINT)
    assert done.returncode == 3 and "Traceback" not in done.stderr and not job.out.exists()
    assert "3 batches go on at the provider" in done.stderr and "same command" in done.stderr
    looked = mmpo(*arguments, "--status", "--json")
    assert "3 batches under way" in looked.stderr and json.loads(looked.stdout)["judges"][0]["batches_open"] == 3
    # One by one, these requests would be paid a second time.
    alone = mmpo(*[word for word in arguments if word != "--batch"])
    assert alone.returncode == 2 and "run with --batch" in alone.stderr
    with serving({"batch_seconds": 0}) as other:  # another address does not know these batches: they are not taken for lost
        elsewhere = mmpo(*[str(word).replace(job.server.base_url, other.base_url) for word in arguments])
    assert elsewhere.returncode == 3 and "not known there" in elsewhere.stderr
    assert using(job.server, _cancelled) == 3
    last = mmpo(*arguments)
    assert last.returncode == 3 and "cancelled at the provider" in last.stderr
    job.server.plan({"batch_seconds": 0})
    last = mmpo(*arguments)
    assert last.returncode == 0, last.stderr
    assert paid_once(job.server) and len(job.comparisons()) == REQUESTS


async def _cancelled(client: Any) -> int:
    found = [batch.id async for batch in client.batches.list()]
    for batch in found:
        await client.batches.cancel(batch)
    return len(found)


def test_ctrl_c_and_then_all_is_there(judging: Any) -> None:
    job = judging({"batch_seconds": 4})
    assert stopped(*job.words(*BATCH), when=reached(job.server, "batches.get"), by=signal.SIGINT).returncode == 3
    assert job.mmpo(*BATCH).returncode == 0 and job.count("batches") == 1 and paid_once(job.server)


@pytest.fixture
def prices(tmp_path: Path) -> str:
    path = tmp_path / "prices.yaml"
    path.write_text("batch: 0.5\nmodels:\n  judge-a: [1000, 2000]\n")
    return str(path)


def test_a_budget_is_kept_at_half_the_price(judging: Any, prices: str) -> None:
    job = judging({"batch_seconds": 0.2})
    alone = job.judge("alone", prices=prices)["cost"]
    budget = alone / 2 * 0.6
    for most in (budget * 0.5, budget):  # the second one resumes the first: the budget is that of the journal
        summary = job.judge(prices=prices, max_cost=most, batch_requests=5, **FAST)
        assert summary["stopped"] == "budget" and 0.75 * most < summary["cost"] <= most
        [told] = summary["judges"]
        assert told["failed"] == {} and told["answered"] + told["left"] == REQUESTS
        assert sum(answered(job.server).values()) == told["answered"]
    whole = job.judge(prices=prices, batch_requests=5, **FAST)
    assert whole["finished"] and whole["cost"] == pytest.approx(alone / 2) and paid_once(job.server)


def test_a_budget_counts_what_a_killed_run_left_at_the_provider(judging: Any, prices: str) -> None:
    job = judging({"batch_seconds": 2})
    cost = job.judge("alone", prices=prices)["cost"] / 2
    arguments = job.words(*BATCH, "--prices", prices, "--max-cost", cost * 0.7)
    stopped(*arguments, when=reached(job.server, "batches.get"))
    last = mmpo(*arguments, "--json")
    told = json.loads(last.stdout)
    assert last.returncode == 3 and told["stopped"] == "budget" and told["cost"] <= cost * 0.7
    assert max(answered(job.server).values()) == 1


def test_a_wrong_key_stops_with_one_message(judging: Any) -> None:
    job = judging()
    others = candidates(job.folder / "others", 1, start=500)
    job.judge("first", feedback=others, journal=str(job.journal))  # what the probe found is known
    job.server.plan({"api_keys": ["sk-another-key-0001"]})
    done = job.mmpo(*BATCH)
    assert done.returncode == 2 and "key" in done.stderr and "Traceback" not in done.stderr
    assert job.count("batches") == 0 and "sk-test-of-the-run" not in done.stderr


@pytest.mark.parametrize("route", CALLS)
@pytest.mark.parametrize("kind", ["down", "unavailable", "rate_limit", "reset", "bad_json", "cut_json"])
def test_an_endpoint_that_is_away_or_stumbles_costs_nothing_but_time(kind: str, route: str, judging: Any) -> None:
    job = judging({"faults": [{"kind": kind, "route": route, "times": 1, "seconds": 1.5 if kind == "down" else 0.0}]})
    assert job.judge(retries=1, batch_requests=18, **FAST)["finished"] and job.count("batches") == 2 and paid_once(job.server)
    assert job.rows("SELECT requests FROM spent") == [(REQUESTS,)]


def test_an_endpoint_that_stays_away_leaves_the_batches(judging: Any) -> None:
    job = judging({"batch_seconds": 1, "faults": [{"kind": "down", "route": "batches.get", "seconds": 3, "times": 1}]})
    with pytest.raises(PartialResult, match="1 batch goes on at the provider"):
        job.judge(retries=0, patience=0.5, **FAST)
    assert job.judge(**FAST)["finished"] and paid_once(job.server)


def test_batches_that_the_provider_has_forgotten_are_asked_again(judging: Any, openai_server: Any) -> None:
    job = judging({"batch_seconds": 60})
    stopped(*job.words(*BATCH), when=reached(job.server, "batches.get"))
    job.server = openai_server()
    assert job.mmpo(*BATCH).returncode == 3 and job.count("batches") == 0
    job.rows("UPDATE batches SET at = at - 31 * 86400")
    assert job.mmpo(*BATCH).returncode == 0 and paid_once(job.server)


def test_answers_that_a_smaller_run_has_no_use_for_are_kept(judging: Any) -> None:
    job = judging({"batch_seconds": 2})
    stopped(*job.words(*BATCH), when=reached(job.server, "batches.get"))
    pilot = job.judge("pilot", limit=2, journal=str(job.journal), **FAST)
    assert pilot["finished"] and len(job.comparisons("pilot")) == 12
    whole = job.judge(**FAST)
    assert whole["finished"] and job.count("batches") == 1 and paid_once(job.server) and len(job.comparisons()) == REQUESTS


def test_the_key_stands_in_no_file_and_in_no_message(judging: Any, tmp_path: Path) -> None:
    key = "sk-proj-Very0Secret9Key4711abcdef.tail"
    faults = [
        {"kind": "status", "status": 400, "message": f"bad request by {key}", "route": "batch_line", "contains": "Question 1?"},
        {"kind": "status", "status": 400, "message": f"no batch for {key}", "route": "batches.create", "at": [2]},
    ]
    job = judging({"api_keys": [key], "faults": faults})
    done = job.mmpo(*BATCH, "--batch-requests", "18", "--json", env=environment(OPENAI_API_KEY=key))
    assert done.returncode == 3 and "no batch for [key]" in done.stderr
    for text in (
        done.stderr,
        done.stdout,
        *(path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()),
    ):
        assert "Very0Secret" not in text and "abcdef.tail" not in text and ".tail" not in text.replace("abcdef.tail", "")
