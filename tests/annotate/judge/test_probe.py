"""What one probe finds out: by the words of a refusal, whatever its status and shape; with the run's own limit; numbers that can be."""

import json
import math
import sys
from typing import Any

import pytest
from own_judges import GRADE, GRADE_TOKEN, bodies, chat, refusal

from mmpo.pipeline.errors import PartialResult, UserError


def refuses(status: int, key: str = "error") -> Any:
    """An endpoint that gives no log-probabilities, says so by this status, and takes everything else."""
    words = "parameter logprobs: not offered for this model"
    return lambda body: refusal(status, words, key) if "logprobs" in body else chat(body, "C")


@pytest.mark.parametrize("key", ["error", "detail"])
@pytest.mark.parametrize("status", [400, 403, 422, 500])
def test_refused_log_probabilities_are_left_out_and_nothing_else(status: int, key: str, judging_by: Any) -> None:
    job = judging_by(refuses(status, key), 2, 2)
    job.judge()
    sent = bodies(job.server)[-1]
    assert sent["temperature"] == 1.0 and sent["max_tokens"] == 8 and sent["n"] == 5 and "logprobs" not in sent
    assert sum("logprobs" in body for body in bodies(job.server)) == 1, "the words are believed at once"


def test_each_refusal_takes_what_it_names(judging_by: Any) -> None:
    def strict(body: dict[str, Any]) -> Any:
        if "max_tokens" in body:
            return refusal(400, "max_tokens is unknown here, max_completion_tokens is known")
        if body.get("temperature", 1) != 1:
            return refusal(400, "temperature must be left at 1", "detail")
        return refusal(403, "parameter logprobs: not offered") if "logprobs" in body else chat(body, "C")

    job = judging_by(strict, 2, 2)
    job.judge()
    assert bodies(job.server)[-1].keys() == {"model", "messages", "max_completion_tokens", "n"}


def test_a_limit_that_is_too_large_is_refused_as_the_endpoint_says(judging_by: Any) -> None:
    """Left out, replies would be as long as the endpoint likes, and the run would not say so."""

    def strict(body: dict[str, Any]) -> Any:
        if body.get("max_tokens", 0) > 4096:
            return refusal(400, "max_tokens is too large: 100000. This model supports at most 4096 completion tokens")
        return chat(body, "C")

    job = judging_by(strict, 2, 2)
    with pytest.raises(
        UserError, match=r"--max-tokens 100000 is more than its endpoint gives: max_tokens is too large.*Give fewer"
    ):
        job.judge(max_tokens=100_000)
    assert all(body["max_tokens"] == 100_000 for body in bodies(job.server))


def test_an_endpoint_without_a_limit_is_told(judging_by: Any) -> None:
    def strict(body: dict[str, Any]) -> Any:
        named = next((name for name in ("max_tokens", "max_completion_tokens") if name in body), None)
        return refusal(400, f"{named}: not here") if named else chat(body, "C")

    assert judging_by(strict, 2, 2).judge()["judges"][0]["limited"] is False


def test_a_refused_temperature_leaves_the_log_probabilities(judging_by: Any) -> None:
    def answer(body: dict[str, Any]) -> Any:
        return refusal(400, "temperature: not here", "detail") if "temperature" in body else chat(body, "C", [GRADE_TOKEN])

    job = judging_by(answer, 2, 2)
    assert job.judge()["judges"][0]["samples"] == 1
    assert [one["gap"] for one in job.comparisons()] == pytest.approx([GRADE[0]] * 4)


@pytest.mark.parametrize(("status", "error"), [(403, UserError), (500, PartialResult)])
def test_a_refusal_that_names_nothing_of_ours_is_what_it_was(status: int, error: Any, judging_by: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys.modules["mmpo.annotate.asking.run"], "backoff", lambda tries: 0.0)
    job = judging_by(lambda body: refusal(status, "not today"))
    with pytest.raises(error, match="not today"):
        job.judge()


@pytest.mark.parametrize(
    ("options", "tokens"), [({}, 8), ({"max_tokens": 3}, 3), ({"reasoning": True}, 1032), ({"mode": "listwise"}, 32)]
)
def test_the_probe_asks_with_the_runs_own_limit(options: dict[str, Any], tokens: int, judging_by: Any) -> None:
    job = judging_by(
        lambda body: chat(body, "Verdict: C" if options.get("mode") != "listwise" else '{"A": 1, "B": 2}', [GRADE_TOKEN])
    )
    job.judge(**options)
    assert bodies(job.server)[0]["max_tokens"] == tokens


def test_a_model_that_thinks_gets_what_room_the_endpoint_has(judging_by: Any) -> None:
    def answer(body: dict[str, Any]) -> Any:
        if body["max_tokens"] > 1500:
            return refusal(400, "maximum context length is 1500 tokens; reduce max_tokens")
        return chat(body, "C", [GRADE_TOKEN], reasoning="Hm") if body["max_tokens"] > 99 else chat(body, None, [], "length")

    job = judging_by(answer, 2, 2)
    assert job.judge(logprobs="need")["finished"] and bodies(job.server)[-1]["max_tokens"] == 8 + 1024


def test_one_that_only_talks_gets_no_room_to_think(judging_by: Any) -> None:
    job = judging_by(lambda body: chat(body, "I think that the", [GRADE_TOKEN], "length"), 2, 2)
    with pytest.raises(UserError, match="cut_off"):
        job.judge()
    assert [body["max_tokens"] for body in bodies(job.server)][:2] == [8, 4104] and bodies(job.server)[-1]["max_tokens"] == 8


SURE = {"C": 0.5, "B": 0.4, "E": 0.08}
IMPOSSIBLE = {
    "logits": {"C": 12.5, "B": 11.0, "E": -3.0},
    "logits below 0": {"C": -0.2, "B": -0.5, "E": -1.5},
    "probabilities": SURE,
    "huge": {"C": 1e300, "B": -1.0},
    "minus infinity": {"C": -9999.0, "B": -9999.0, "E": -9999.0},
    "minus infinity of 32 bits": {"C": -3.4e38, "B": -3.4e38},
    "certain of what was drawn": {"C": 0.0, "B": -9999.0, "E": -9999.0},
    "next to nothing": {"C": -30.0, "B": -31.0},
    "signs turned": {label: -math.log(p) for label, p in SURE.items()},
}


def given(numbers: dict[str, float]) -> dict[str, Any]:
    return {"token": "C", "logprob": 0.0, "top_logprobs": [{"token": label, "logprob": value} for label, value in numbers.items()]}


@pytest.mark.parametrize("retries", [0, 1, 2])
def test_the_first_requests_are_asked_again_as_often_as_retries_says(retries: int, judging_by: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys.modules["mmpo.annotate.asking.run"], "backoff", lambda tries: 0.01)
    job = judging_by(lambda body: refusal(500, "not today"))
    with pytest.raises(PartialResult, match="not today"):
        job.judge(retries=retries)
    assert len(bodies(job.server)) == retries + 1


def test_a_small_letter_counts_with_its_capital(judging_by: Any) -> None:
    """.3 of C and .5 of c are .8, and no failure for want of them."""
    token = given({"c": math.log(0.5), "C": math.log(0.3), "E": math.log(0.1), "The": math.log(0.05)}) | {"token": "c"}
    job = judging_by(lambda body: chat(body, "c", [token]), 2)
    [told] = job.judge(orders="one")["judges"]
    assert told["mean_mass"] == pytest.approx(0.9)
    assert [abs(one["gap"]) for one in job.comparisons()] == pytest.approx([(0.8 * 1 - 0.1) / 0.9] * 6)


@pytest.mark.parametrize("numbers", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_log_probabilities_that_can_be_none_are_not_used(numbers: dict[str, float], judging_by: Any) -> None:
    job = judging_by(lambda body: chat(body, "C", [given(numbers)]), 2, 2)
    [told] = job.judge()["judges"]
    assert told["samples"] == 5 and told["mean_mass"] is None and {one["gap"] for one in job.comparisons()} == {1.0}
    assert json.loads((job.out / "manifest.json").read_text())["recipe"]["judges"][0]["abilities"]["logprobs"] is False


def test_impossible_numbers_that_the_probe_did_not_see_are_failures_by_name(judging_by: Any) -> None:
    def answer(body: dict[str, Any]) -> Any:
        return chat(body, "C", [given(IMPOSSIBLE["logits"])] if "Question 1?" in body["messages"][-1]["content"] else [GRADE_TOKEN])

    job = judging_by(answer, 3, 2)
    [told] = job.judge()["judges"]
    assert told["failed"] == {"impossible_logprobs": 2} and told["mean_mass"] == pytest.approx(0.98)
    assert [one["gap"] for one in job.comparisons()] == pytest.approx([GRADE[0]] * 4)
