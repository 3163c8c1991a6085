"""`mmpo judge --show N`: what would be sent, and what came back to it, without a request."""

import json
from typing import Any

import pytest
from own_judges import GRADE, GRADE_TOKEN, bodies, chat

from mmpo.annotate.judge import JudgeOptions, prepared, rendered


def test_requests_are_shown_as_they_are_sent_and_none_is(judging_by: Any) -> None:
    job = judging_by(lambda body: chat(body, "C", [GRADE_TOKEN]), 5, 2)
    done = job.mmpo("--show", 3, "--json")
    assert done.returncode == 0 and not bodies(job.server) and not job.journal.exists() and not job.out.exists()
    shown = json.loads(done.stdout)["shown"]
    assert len({one["prompt_id"] for one in shown}) == 3 and not any(one["replies"] or one["probed"] for one in shown)
    assert "Question" in done.stderr and "not probed yet" in done.stderr
    job.judge()
    assert all(one["body"] in bodies(job.server) for one in shown)


def test_after_a_pilot_its_replies_come_first(judging_by: Any) -> None:
    job = judging_by(lambda body: chat(body, "\x1b[1mC", [GRADE_TOKEN], reasoning_content="A \x1b[1mbold\x1b[0m thought"), 30, 2)
    job.judge(limit=1)
    asked = len(bodies(job.server))
    done = job.mmpo("--show", 3, "--json")
    assert done.returncode == 0 and len(bodies(job.server)) == asked
    shown = json.loads(done.stdout)["shown"]
    assert [len(one["replies"]) for one in shown] == [1, 1, 0] and shown[0]["prompt_id"] == shown[1]["prompt_id"]
    assert shown[0]["replies"][0]["grades"] == pytest.approx({"grade": GRADE[0]}) and "bold" in shown[0]["replies"][0]["thinking"]
    assert "read as: grade 1.24" in done.stderr and "\x1b" not in done.stderr


def test_a_reply_without_a_grade_says_why(judging_by: Any) -> None:
    job = judging_by(
        lambda body: chat(body, "no letter" if "Question 1?" in body["messages"][-1]["content"] else "C", [GRADE_TOKEN]), 2, 2
    )
    job.judge()
    options = JudgeOptions(model="judge-a", base_url=job.server.base_url)
    found = rendered(prepared(job.feedback, job.out, options), 10)
    reasons = [reply.get("reason") for one in found for reply in one["replies"]]
    assert len(found) == 4 and sorted(map(str, reasons)) == ["None", "None", "no_verdict", "no_verdict"]
