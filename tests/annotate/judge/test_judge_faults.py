"""Bad days, against a real server: every planned fault, what is asked again, what is given up, and what is never taken for an answer."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from cases import asked, candidates, comparisons, environment, judged, mmpo, of, words

from mmpo.annotate.client import retry_after, scrub
from mmpo.pipeline.errors import PartialResult, UserError

REQUESTS = 6 * 3 * 2
PASSING = {
    "500": {"kind": "server_error"},
    "502": {"kind": "bad_gateway"},
    "503": {"kind": "unavailable"},
    "429 without Retry-After": {"kind": "rate_limit"},
    "429 with Retry-After": {"kind": "rate_limit", "retry_after": 1},
    "429 with Retry-After as a date": {"kind": "rate_limit", "retry_after_date": 1},
    "429 with retry-after-ms": {"kind": "rate_limit", "retry_after_ms": 200},
    "reset in mid-body": {"kind": "reset"},
    "closed before the status line": {"kind": "close"},
    "invalid JSON": {"kind": "bad_json"},
    "truncated JSON": {"kind": "cut_json"},
    "empty choices": {"kind": "empty_choices"},
    "no reply at all": {"kind": "hang"},
}


@pytest.mark.parametrize("name", PASSING)
def test_passing_faults_are_asked_again_until_every_request_has_its_answer(name: str, openai_server: Any, tmp_path: Path) -> None:
    feedback = candidates(tmp_path / "in")
    judged(feedback, tmp_path / "clean", openai_server())
    # Strikes the first try of a third of the requests.
    server = openai_server({"faults": [{**PASSING[name], "probability": 0.34, "attempts": 1}], "seed": 3})
    summary = judged(feedback, tmp_path / "out", server, timeout=2.0)
    counts = server.counts()
    struck = sum(counts["by_fault"].values())
    assert summary["finished"] and struck >= 3 and struck - 3 <= summary["judges"][0]["retried"] <= struck
    assert comparisons(tmp_path / "out") == comparisons(tmp_path / "clean")
    assert counts["answered"] in (REQUESTS + 1, REQUESTS + 2) and counts["answered_again"] == 0


def test_retry_after_is_waited_for(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server()
    feedback = candidates(tmp_path / "in", 2, 2)
    judged(feedback, tmp_path / "probe", server, limit=1)
    server.plan({"faults": [{"kind": "rate_limit", "retry_after": 2, "times": 1}]})
    started = time.monotonic()
    summary = judged(feedback, tmp_path / "out", server, journal=str(tmp_path / "probe.judge.sqlite"))
    assert summary["finished"] and time.monotonic() - started >= 2.0


def test_headers_that_say_when() -> None:
    assert retry_after({"retry-after": "3"}) == 3.0
    assert retry_after({"retry-after": "3", "retry-after-ms": "250"}) == 0.25
    assert retry_after({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, now=40.0) == 60.0
    assert retry_after({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, now=400.0) == 0.0
    assert retry_after({"retry-after": "soon"}) is None and retry_after({}) is None and retry_after({"retry-after": "nan"}) is None
    assert retry_after({"retry-after": "1e9"}) == 600.0


GIVEN_UP = {
    "content filter": ({"kind": "content_filter"}, "content_filter"),
    "content policy": ({"kind": "content_policy"}, "content_filter"),
    "refusal": ({"kind": "refusal"}, "refused"),
    "too long for the model": ({"kind": "context"}, "context_length_exceeded"),
    "unparsable": ({"kind": "unparsable"}, None),
    "log-probabilities cover little": ({"kind": "low_mass", "mass": 0.1}, "low_mass"),
}


@pytest.mark.parametrize("name", GIVEN_UP)
def test_what_can_not_be_answered_is_counted_kept_and_never_an_answer(name: str, openai_server: Any, tmp_path: Path) -> None:
    fault, reason = GIVEN_UP[name]
    server = openai_server({"faults": [{**fault, "contains": "Question 1?"}]})
    feedback, out = candidates(tmp_path / "in"), tmp_path / "out"
    summary = judged(feedback, out, server)
    [told] = summary["judges"]
    assert not summary["finished"] and sum(told["failed"].values()) == 6 and told["answered"] == REQUESTS - 6
    assert reason is None or set(told["failed"]) == {reason}
    assert len(comparisons(out)) == REQUESTS - 6
    counts = json.loads((out / "manifest.json").read_text())["counts"]["judge"]["request"]
    assert counts["created"] == counts["out"] + sum(counts["dropped"].values()) == REQUESTS
    assert of(summary["journal"], "SELECT count(*) FROM answers") == [(REQUESTS - 6,)]
    assert of(summary["journal"], "SELECT count(*) FROM failures") == [(6,)]
    # The same command asks for these six only, and takes them when they come.
    server.plan({"faults": []})
    before = asked(server)
    again = judged(feedback, out, server)
    assert again["finished"] and asked(server) - before == 6 and len(comparisons(out)) == REQUESTS


def test_a_reply_of_little_mass_is_paid_once_and_read_again_when_less_is_asked(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server({"defaults": {"mass": 0.4}})
    feedback, out = candidates(tmp_path / "in", 2, 2), tmp_path / "out"
    with pytest.raises(UserError, match="low_mass"):
        judged(feedback, out, server)
    before = asked(server)
    summary = judged(feedback, out, server, min_mass=0.3)
    assert summary["finished"] and asked(server) == before and summary["judges"][0]["mean_mass"] == pytest.approx(0.4)
    # What was read with less is no answer any more when more is asked for; it is counted, not written.
    with pytest.raises(UserError, match="low_mass"):
        judged(feedback, out, server, min_mass=0.5)


def test_log_probabilities_missing_from_one_reply_leave_its_letter(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server({"faults": [{"kind": "no_logprobs", "contains": "Question 1?"}]})
    summary = judged(candidates(tmp_path / "in"), tmp_path / "out", server)
    assert summary["finished"]
    bare = [one for one in comparisons(tmp_path / "out") if one["spread"] is None]
    assert len(bare) == 6 and all(one["gap"] == round(one["gap"]) for one in bare)


def test_truncated_reasoning_is_no_verdict(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server({"faults": [{"kind": "length", "contains": "Question 1?"}]})
    summary = judged(candidates(tmp_path / "in"), tmp_path / "out", server, reasoning=True)
    assert summary["judges"][0]["failed"] == {"cut_off": 6}


FATAL = {
    "wrong key": ({"kind": "auth"}, "key"),
    "no access": ({"kind": "forbidden"}, "access"),
    "unknown model": ({"kind": "model"}, "model"),
    "no credit": ({"kind": "quota"}, "credit"),
}


@pytest.mark.parametrize("name", FATAL)
def test_what_is_wrong_with_all_requests_stops_at_the_first(name: str, openai_server: Any, tmp_path: Path) -> None:
    fault, told = FATAL[name]
    server = openai_server({"faults": [fault]})
    with pytest.raises(UserError, match=told):
        judged(candidates(tmp_path / "in", 40, 3), tmp_path / "out", server)
    assert server.counts()["requests"] == 1 and not (tmp_path / "out").exists()


def test_credit_that_runs_out_keeps_what_there_is(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server({"latency": 0.02})
    feedback, out = candidates(tmp_path / "in", 40, 3), tmp_path / "out"
    judged(feedback, tmp_path / "first", server, limit=1, journal=str(tmp_path / "j.sqlite"))
    server.plan({"faults": [{"kind": "quota", "contains": "Question 39?"}]})
    summary = judged(feedback, out, server, concurrency=4, journal=str(tmp_path / "j.sqlite"))
    [told] = summary["judges"]
    assert summary["stopped"] == "insufficient_quota" and told["left"] > 0 and told["failed"] == {}
    assert len(comparisons(out)) == told["answered"] > 0
    server.plan({"faults": []})
    assert judged(feedback, out, server, journal=str(tmp_path / "j.sqlite"))["finished"]
    assert server.counts()["answered_again"] == 0


def test_a_run_that_gets_nothing_but_refusals_stops_itself(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server()
    judged(candidates(tmp_path / "ok", 1, 2), tmp_path / "probe", server, journal=str(tmp_path / "j.sqlite"))
    server.plan({"faults": [{"kind": "unparsable"}]})
    with pytest.raises(PartialResult, match="none was answered"):
        judged(
            candidates(tmp_path / "in", 200, 3, start=500),
            tmp_path / "out",
            server,
            journal=str(tmp_path / "j.sqlite"),
            concurrency=4,
        )
    assert server.counts()["requests"] < 100


@pytest.mark.parametrize("seconds", [6, pytest.param(60, marks=pytest.mark.slow)])
def test_an_endpoint_that_is_away_for_a_while_costs_nothing_but_time(seconds: int, openai_server: Any, tmp_path: Path) -> None:
    server = openai_server({"latency": 0.01})
    feedback, out = candidates(tmp_path / "in", 40, 3), tmp_path / "out"
    judged(feedback, tmp_path / "first", server, limit=1, journal=str(tmp_path / "j.sqlite"))
    server.plan({"faults": [{"kind": "down", "seconds": seconds, "contains": "Question 30?", "times": 1}]})
    started = time.monotonic()
    # Fewer retries than the outage has seconds: waiting for the endpoint is not counted against a request.
    summary = judged(feedback, out, server, retries=1, journal=str(tmp_path / "j.sqlite"))
    assert summary["finished"] and time.monotonic() - started >= seconds
    assert len(comparisons(out)) == 240 and server.counts()["answered_again"] == 0


def test_an_endpoint_that_is_not_there(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server()
    server.stop()
    feedback = candidates(tmp_path / "in", 2, 2)
    done = mmpo(*words(feedback, tmp_path / "out", server))
    assert done.returncode == 3 and "does not answer" in done.stderr and "Traceback" not in done.stderr


def test_the_rates_that_were_given_are_kept(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server({"rate_limit": {"requests_per_minute": 600, "burst_seconds": 6}})
    summary = judged(candidates(tmp_path / "in", 20, 3), tmp_path / "out", server, requests_per_minute=600)
    assert summary["finished"] and "429" not in server.counts()["by_status"]


def test_limits_that_were_not_given_are_found(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server({"latency": 0.01, "rate_limit": {"requests_per_minute": 1200, "burst_seconds": 1}})
    summary = judged(candidates(tmp_path / "in", 20, 3), tmp_path / "out", server)
    counts = server.counts()
    assert summary["finished"] and counts["by_status"]["429"] > 0 and counts["answered_again"] == 0


def test_the_key_stands_in_no_file_and_in_no_message(openai_server: Any, tmp_path: Path) -> None:
    key = "sk-proj-Very0Secret9Key4711abcdef"
    server = openai_server(
        {
            "api_keys": [key],
            "faults": [
                {"kind": "status", "status": 400, "message": f"bad request by {key}", "contains": "Question 1?"},
                {"kind": "status", "status": 500, "message": f"error for {key}", "contains": "Question 2?", "attempts": 1},
            ],
        }
    )
    feedback, out = candidates(tmp_path / "in"), tmp_path / "out"
    arguments = words(feedback, out, server)
    done = mmpo(*arguments, "--json", env=environment(OPENAI_API_KEY=key))
    assert done.returncode == 3, done.stderr
    wrong = mmpo(*arguments[:-1], tmp_path / "wrong", "--no-cache", env=environment(OPENAI_API_KEY=key + "x"))
    assert wrong.returncode == 2 and "key" in wrong.stderr
    texts = [
        done.stderr,
        done.stdout,
        wrong.stderr,
        *(path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()),
    ]
    for text in texts:
        assert key not in text and "Very0Secret" not in text
    assert scrub("as sk-abcdefgh12 says", "other") == "as [key] says"


def test_a_full_disk_loses_no_answer(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server({"latency": 0.01})
    feedback, out = candidates(tmp_path / "in", 60, 4), tmp_path / "out"
    arguments = words(feedback, out, server)
    done = mmpo(*arguments, disk=150_000)
    assert done.returncode == 3, done.stderr
    assert "are safe" in done.stderr and "Traceback" not in done.stderr and not out.exists()
    [(kept,)] = of(tmp_path / "out.judge.sqlite", "SELECT count(*) FROM answers")
    assert kept > 0
    before = asked(server)
    assert mmpo(*arguments).returncode == 0
    assert asked(server) - before == 720 - kept and len(comparisons(out)) == 720
