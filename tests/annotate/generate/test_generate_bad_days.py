"""Kills and Ctrl-C while candidates are written: nothing is asked twice but what was in flight."""

import os
import random
import signal
import time
from collections import Counter
from typing import Any

import pytest
from command import ended, mmpo, started, stopped, wait_for

IN_FLIGHT = 8
KILLS = int(os.environ.get("MMPO_KILLS", "5"))


@pytest.mark.slow
def test_killed_at_random_moments_nothing_is_asked_twice_but_what_was_in_flight(generating: Any) -> None:
    prompts = 12 * KILLS
    job, moments = generating({"latency": {"median": 0.05, "p99": 0.4}}, prompts), random.Random(4)
    command = job.words("--concurrency", IN_FLIGHT, "--n", 4)
    killed = 0
    for _ in range(KILLS):
        process = started(*command)
        assert wait_for(job.came(job.server.counts()["requests"] + IN_FLIGHT), process)
        time.sleep(moments.uniform(0.0, 0.3))
        killed += process.poll() is None
        process.kill()
        ended(process)
    done = mmpo(*command)
    assert done.returncode == 0, done.stderr
    assert killed == KILLS
    # Replies that arrived are never asked for again; those on their way at a kill may be.
    came = [one for one in job.server.log() if one["sent"] and one["body"]["messages"][-1]["content"] != "Say hello."]
    again = Counter(one["digest"] for one in came)
    assert len(again) == prompts * 4
    assert len(came) - len(again) <= KILLS * IN_FLIGHT
    assert len(set(job.texts())) == prompts * 4
    calm = job.generate("calm", n=4)
    assert calm["candidates"] == prompts * 4 and job.texts("calm") == job.texts()


def test_the_first_interrupt_finishes_what_is_in_flight_and_writes_what_there_is(generating: Any) -> None:
    job = generating({"latency": 0.2}, 40)
    done = stopped(*job.words("--concurrency", "10", "--n", 2), when=job.came(25), by=signal.SIGINT)
    assert done.returncode == 3 and "same command again" in done.stderr and "Traceback" not in done.stderr
    assert all(one["sent"] for one in job.server.log())
    assert len(job.texts()) == len(job.bodies()) < 80
    assert mmpo(*job.words("--n", 2)).returncode == 0
    assert len(job.texts()) == 80 and job.server.counts()["answered_again"] == 0
