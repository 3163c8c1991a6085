"""Bad days, against a real server: every planned fault, what is asked again, what is given up, and what is never taken for an answer."""

import json
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from cases import candidates
from command import environment

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


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_passing_faults_are_asked_again_until_every_request_has_its_answer(
    fault: dict[str, Any], judging: Any, openai_server: Any
) -> None:
    job = judging()
    job.judge("clean")
    # Strikes the first try of a third of the requests.
    job.server = openai_server({"faults": [{**fault, "probability": 0.34, "attempts": 1}], "seed": 3})
    summary = job.judge(timeout=2.0)
    struck = sum(job.count("by_fault").values())
    assert summary["finished"] and struck >= 3 and struck - 3 <= summary["judges"][0]["retried"] <= struck
    assert job.comparisons() == job.comparisons("clean")
    assert job.count("answered") in (REQUESTS + 1, REQUESTS + 2) and job.count("answered_again") == 0


def test_retry_after_is_waited_for(judging: Any) -> None:
    job = judging({}, 2, 2)
    probed = job.judge("probe", limit=1)["journal"]
    job.server.plan({"faults": [{"kind": "rate_limit", "retry_after": 2, "times": 1}]})
    started = time.monotonic()
    assert job.judge(journal=probed)["finished"] and time.monotonic() - started >= 2.0


@pytest.mark.parametrize(
    ("headers", "now", "seconds"),
    [
        ({"retry-after": "3"}, 0.0, 3.0),
        ({"retry-after": "3", "retry-after-ms": "250"}, 0.0, 0.25),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 40.0, 60.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 400.0, 0.0),
        ({"retry-after": "soon"}, 0.0, None),
        ({"retry-after": "nan"}, 0.0, None),
        ({"retry-after": "1e9"}, 0.0, 600.0),
        ({}, 0.0, None),
    ],
)
def test_headers_that_say_when(headers: dict[str, str], now: float, seconds: float | None) -> None:
    assert retry_after(headers, now=now) == seconds


GIVEN_UP = {
    "content filter": ({"kind": "content_filter"}, {}, "content_filter"),
    "content policy": ({"kind": "content_policy"}, {}, "content_filter"),
    "refusal": ({"kind": "refusal"}, {}, "refused"),
    "too long for the model": ({"kind": "context"}, {}, "context_length_exceeded"),
    "unparsable": ({"kind": "unparsable"}, {}, None),
    "log-probabilities cover little": ({"kind": "low_mass", "mass": 0.1}, {}, "low_mass"),
    "log-probabilities are needed": ({"kind": "no_logprobs"}, {"logprobs": "need"}, "no_logprobs"),
    "truncated reasoning": ({"kind": "length"}, {"reasoning": True}, "cut_off"),
}


@pytest.mark.parametrize(("fault", "options", "reason"), GIVEN_UP.values(), ids=GIVEN_UP)
def test_what_can_not_be_answered_is_counted_kept_and_never_an_answer(
    fault: dict[str, Any], options: dict[str, Any], reason: str | None, judging: Any
) -> None:
    job = judging({"faults": [{**fault, "contains": "Question 1?"}]})
    summary = job.judge(**options)
    [told] = summary["judges"]
    assert not summary["finished"] and sum(told["failed"].values()) == 6 and told["answered"] == REQUESTS - 6
    assert reason is None or set(told["failed"]) == {reason}
    assert len(job.comparisons()) == REQUESTS - 6
    counts = json.loads((job.out / "manifest.json").read_text())["counts"]["judge"]["request"]
    assert counts["created"] == counts["out"] + sum(counts["dropped"].values()) == REQUESTS
    assert job.rows("SELECT count(*) FROM answers") == [(REQUESTS - 6,)]
    assert job.rows("SELECT count(*) FROM failures") == [(6,)]
    rejects = pq.read_table(job.out / "rejects.parquet").to_pylist()
    assert len(rejects) == 6 and {one["stage"] for one in rejects} == {"judge"}
    if fault["kind"] == "unparsable":
        assert "hard to say more" in json.loads(rejects[0]["evidence"])["reply"]
    # The same command asks for these six only, and takes them when they come.
    job.server.plan({"faults": []})
    before = job.count("answered")
    assert job.judge(**options)["finished"]
    assert job.count("answered") - before == 6 and len(job.comparisons()) == REQUESTS


def test_a_reply_of_little_mass_is_paid_once_and_read_again_when_less_is_asked(judging: Any) -> None:
    job = judging({"defaults": {"mass": 0.4}}, 2, 2)
    with pytest.raises(UserError, match="low_mass"):
        job.judge()
    before = job.count("answered")
    summary = job.judge(min_mass=0.3)
    assert summary["finished"] and job.count("answered") == before and summary["judges"][0]["mean_mass"] == pytest.approx(0.4)
    # What was read with less is no answer any more when more is asked for; it is counted, not written.
    with pytest.raises(UserError, match="low_mass"):
        job.judge(min_mass=0.5)


def test_log_probabilities_missing_from_one_reply_leave_its_letter(judging: Any) -> None:
    job = judging({"faults": [{"kind": "no_logprobs", "contains": "Question 1?"}]})
    assert job.judge()["finished"]
    bare = [one for one in job.comparisons() if one["spread"] is None]
    assert len(bare) == 6 and all(one["gap"] == round(one["gap"]) for one in bare)


@pytest.mark.parametrize(("kind", "told"), [("auth", "key"), ("forbidden", "access"), ("model", "model"), ("quota", "credit")])
def test_what_is_wrong_with_all_requests_stops_at_the_first(kind: str, told: str, judging: Any) -> None:
    job = judging({"faults": [{"kind": kind}]}, 40)
    with pytest.raises(UserError, match=told):
        job.judge()
    assert job.count("requests") == 1 and not job.out.exists()


def probed(judging: Any, latency: float, *rows: Any) -> Any:
    """A job whose journal knows already what the endpoint can do, and one prompt's answers."""
    job = judging({"latency": latency}, *rows)
    job.judge("first", limit=1, journal=str(job.journal))
    return job


def test_credit_that_runs_out_keeps_what_there_is(judging: Any) -> None:
    job = probed(judging, 0.02, 40)
    job.server.plan({"faults": [{"kind": "quota", "contains": "Question 39?"}]})
    summary = job.judge(concurrency=4)
    [told] = summary["judges"]
    assert summary["stopped"] == "insufficient_quota" and told["left"] > 0 and told["failed"] == {}
    assert len(job.comparisons()) == told["answered"] > 0
    job.server.plan({"faults": []})
    assert job.judge()["finished"]
    assert job.count("answered_again") == 0


def test_a_run_that_gets_nothing_but_refusals_stops_itself(judging: Any) -> None:
    job = probed(judging, 0.0, 1, 2)
    job.server.plan({"faults": [{"kind": "unparsable"}]})
    with pytest.raises(PartialResult, match="none was answered"):
        job.judge(feedback=candidates(job.folder / "others", 200, start=500), concurrency=4)
    assert job.count("requests") < 100


@pytest.mark.parametrize("seconds", [6, pytest.param(60, marks=pytest.mark.slow)])
def test_an_endpoint_that_is_away_for_a_while_costs_nothing_but_time(seconds: int, judging: Any) -> None:
    job = probed(judging, 0.01, 40)
    job.server.plan({"faults": [{"kind": "down", "seconds": seconds, "contains": "Question 30?", "times": 1}]})
    started = time.monotonic()
    # Fewer retries than the outage has seconds: waiting for the endpoint is not counted against a request.
    assert job.judge(retries=1)["finished"] and time.monotonic() - started >= seconds
    assert len(job.comparisons()) == 240 and job.count("answered_again") == 0


def test_an_endpoint_that_is_not_there(judging: Any) -> None:
    job = judging({}, 2, 2)
    job.server.stop()
    done = job.mmpo()
    assert done.returncode == 3 and "does not answer" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("given", [True, False], ids=["given", "found"])
def test_the_rates_that_were_given_are_kept_and_others_are_found(given: bool, judging: Any) -> None:
    limit = {"requests_per_minute": 600, "burst_seconds": 6} if given else {"requests_per_minute": 1200, "burst_seconds": 1}
    job = judging({"latency": 0.0 if given else 0.01, "rate_limit": limit}, 20)
    summary = job.judge(**({"requests_per_minute": 600} if given else {}))
    assert summary["finished"] and ("429" in job.count("by_status")) != given and job.count("answered_again") == 0


def test_the_key_stands_in_no_file_and_in_no_message(judging: Any, tmp_path: Path) -> None:
    key = "sk-proj-Very0Secret9Key4711abcdef"
    faults = [
        {"kind": "status", "status": 400, "message": f"bad request by {key}", "contains": "Question 1?"},
        {"kind": "status", "status": 500, "message": f"error for {key}", "contains": "Question 2?", "attempts": 1},
    ]
    job = judging({"api_keys": [key], "faults": faults})
    done = job.mmpo("--json", env=environment(OPENAI_API_KEY=key))
    assert done.returncode == 3, done.stderr
    wrong = job.mmpo("--out", tmp_path / "wrong", "--no-cache", env=environment(OPENAI_API_KEY=key + "x"))
    assert wrong.returncode == 2 and "key" in wrong.stderr
    assert "Very0Secret" not in job.written() + done.stderr + done.stdout + wrong.stderr
    assert scrub("as sk-abcdefgh12 says", "other") == "as [key] says"


def test_a_full_disk_loses_no_answer(judging: Any) -> None:
    job = judging({"latency": 0.01}, 60, 4)
    done = job.mmpo(disk=150_000)
    assert done.returncode == 3, done.stderr
    assert "are safe" in done.stderr and "Traceback" not in done.stderr and not job.out.exists()
    [(kept,)] = job.rows("SELECT count(*) FROM answers")
    assert kept > 0
    before = job.count("answered")
    assert job.mmpo().returncode == 0
    assert job.count("answered") - before == 720 - kept and len(job.comparisons()) == 720
