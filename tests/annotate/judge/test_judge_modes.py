"""Judging against a real server: what each mode asks and what becomes of the answers in FEEDBACK and in PAIRS."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import Judging, candidates
from simulated_judge import Qualities

from mmpo.annotate.scales import PREFERENCE
from mmpo.pipeline import BuildOptions, build, load_feedback, load_pairs

EXACT: dict[str, Any] = {"defaults": {"bias": 0.5, "noise": 0.0, "tau": 0.8, "mass": 0.9}, "keep_bodies": True}


def built(job: Judging, out: str = "out", **options: Any) -> tuple[dict[str, Any], Any]:
    """The summary and the pairs of what was judged."""
    summary = build(job.folder / out, job.folder / "pairs", options=BuildOptions(format="feedback", **options))
    return summary, load_pairs(job.folder / "pairs")


def graded(margin: float, tau: float) -> tuple[float, float]:
    """Mean and standard deviation of the simulated judge's distribution over the seven grades around a latent margin."""
    values = np.array(list(PREFERENCE.labels.values()))
    weights = np.exp(-((values - margin) ** 2) / (2 * tau**2))
    mean = np.average(values, weights=weights)
    return mean, np.sqrt(np.average((values - mean) ** 2, weights=weights))


def test_pairwise_asks_every_pair_in_both_orders_and_keeps_the_expected_grade(judging: Any) -> None:
    """Mean and spread are those of the judge's whole distribution; junk tokens take a tenth of the probability and no part."""
    job, quality = judging(EXACT, 5), Qualities().of
    summary, found = job.judge(), job.comparisons()
    [told] = summary["judges"]
    assert summary["finished"] and told["requests"] == 5 * 3 * 2 == len(found) and told["mean_mass"] == pytest.approx(0.9, abs=1e-6)
    assert len({(one["prompt_id"], one["first_id"], one["second_id"]) for one in found}) == len(found)
    for one in found:
        expected = graded(quality(one["first_text"]) - quality(one["second_text"]) + 0.5, 0.8)
        assert (one["gap"], one["spread"]) == pytest.approx(expected, abs=1e-6)
        assert (one["limit"], one["kind"], one["rater"], one["aspect"]) == (3.0, "ai", "judge-a", "overall")


def test_pointwise_grades_every_reply_by_every_rubric(judging: Any) -> None:
    job = judging(EXACT, 4)
    summary = job.judge(mode="pointwise", rubrics=("helpfulness", "honesty"))
    found = job.ratings()
    assert summary["judges"][0]["requests"] == 24 == len(found)
    assert {one["aspect"] for one in found} == {"helpfulness", "honesty"}
    assert all((one["low"], one["high"]) == (1.0, 5.0) and 1 < one["score"] < 5 and one["spread"] > 0 for one in found)
    assert built(job, score="mean")[1].num_rows == 12


@pytest.mark.parametrize("schema", ["honoured", "ignored", "500"])
def test_listwise_binds_every_grade_to_its_reply(schema: str, judging: Any) -> None:
    job = judging({**EXACT, "capabilities": {"json_schema": schema}}, 6, 4)
    summary = job.judge(mode="listwise", orders="both")
    assert summary["judges"][0]["requests"] == 12 and summary["finished"]
    job.judge("single", mode="pointwise")
    # A judge without noise gives a reply the same grade wherever it stands in the list: its label followed it.
    alone = {one["text"]: one["score"] for one in job.ratings("single")}
    found = job.ratings()
    assert len(found) == 48
    assert np.corrcoef([one["score"] for one in found], [alone[one["text"]] for one in found])[0, 1] > 0.999
    sent = sum("response_format" in record["body"] for record in job.server.log())
    assert (sent == 1 or schema != "500") and (sent > 10 or schema != "honoured")


@pytest.mark.parametrize("way", ["off", "empty", "no_content", "400"])
@pytest.mark.parametrize("several", ["honoured", "ignored"])
def test_without_log_probabilities_several_replies_are_drawn(way: str, several: str, judging: Any) -> None:
    job = judging({"defaults": {"noise": 0.0, "tau": 1.0}, "capabilities": {"logprobs": way, "n": several}}, 4, 2)
    told, found = job.judge(samples=6)["judges"][0], job.comparisons()
    assert told["requests"] == (8 if several == "honoured" else 48) and told["mean_mass"] is None
    assert len(found) == 8 and any(one["gap"] != round(one["gap"]) for one in found) and any(one["spread"] > 0 for one in found)
    assert all(abs(one["gap"] * 6 - round(one["gap"] * 6)) < 1e-9 for one in found)


def test_endpoints_that_refuse_parameters_are_asked_without_them(judging: Any) -> None:
    job = judging({"capabilities": {"max_tokens": "400", "temperature": "400", "logprobs": "400"}, "keep_bodies": True}, 2, 2)
    assert job.judge()["finished"]
    body = job.server.log()[-1]["body"]
    assert "max_completion_tokens" in body and not {"max_tokens", "temperature", "logprobs"} & set(body)
    manifest = json.loads((job.out / "manifest.json").read_text())
    assert manifest["recipe"]["judges"][0]["abilities"]["length"] == "max_completion_tokens"


def test_what_one_refusal_teaches_is_kept_to(judging: Any) -> None:
    """A template without system messages gets all in one; fewer alternatives are asked for before none."""

    def asked(message: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        job = judging({"faults": [{"kind": "status", "message": message, "times": 1}], "keep_bodies": True}, 2, 2)
        summary = job.judge(cache=False)
        assert summary["finished"]
        return summary["judges"][0], [record["body"] for record in job.server.log()]

    first, *rest = [body["messages"] for body in asked("System role not supported")[1]]
    assert len(first) == 2 and all([message["role"] for message in messages] == ["user"] for messages in rest)
    assert rest[0][0]["content"].startswith(first[0]["content"])
    told, bodies = asked("top_logprobs must be at most 5")
    assert {body["top_logprobs"] for body in bodies[1:]} == {5} and told["mean_mass"] > 0.8


@pytest.mark.parametrize("thinking", [False, True])
def test_reasoning_ends_in_a_verdict_and_its_words_are_kept(thinking: bool, judging: Any) -> None:
    job = judging({"defaults": {"noise": 0.0, "thinking": thinking}}, 3, 2)
    job.judge(reasoning=True)
    job.judge("direct")
    direct = {one["first_id"] + one["second_id"]: one["gap"] for one in job.comparisons("direct")}
    for one in job.comparisons():
        assert one["note"] and "Verdict" not in one["note"] and "<think" not in one["note"]
        assert np.sign(round(one["gap"], 3)) == np.sign(round(direct[one["first_id"] + one["second_id"]], 3))


def test_a_jury_writes_every_judges_grades_and_the_build_takes_their_effects_out(judging: Any) -> None:
    models = {"mild": {"scale": 0.5, "noise": 0.3, "tau": 0.4}, "plain": {"scale": 1.0, "noise": 0.3, "tau": 0.4},
              "strong": {"scale": 1.0, "bias": 1.0, "noise": 0.6, "tau": 0.4}}  # fmt: skip
    job = judging({"models": models, "any_model": False}, 30)
    summary = job.judge(judges=["mild", "plain,rater=simple", {"model": "strong"}])
    assert [(row["rater"], row["answered"]) for row in summary["judges"]] == [("mild", 180), ("simple", 180), ("strong", 180)]
    made, table = built(job, merge_raters="rater-effects")
    assert made["rater_effects"]["mild"]["scale"] < 0.75 * made["rater_effects"]["simple"]["scale"]
    assert set(table["raters"].to_pylist()) == {3} and table["margin_se"].null_count == 0


def test_other_grades_stay_and_a_judges_own_are_replaced(judging: Any, tmp_path: Path) -> None:
    rows = [{"prompt": f"Q{i}?", "completions": ["a", "b"], "scores": [1, 5], "rater": "ann", "kind": "human"} for i in range(4)]
    job = judging(EXACT, rows, scale=(1, 5))
    job.judge("one", mode="pointwise")
    again = job.judge("two", feedback=tmp_path / "one", mode="pointwise", rubrics=("overall", "honesty"))
    assert again["replaced"] == 8
    raters = [one["rater"] for one in job.ratings("two")]
    assert raters.count("ann") == 8 and raters.count("judge-a") == 16
    job.judge("three", feedback=tmp_path / "two", pairs="best-worst")
    assert len(job.comparisons("three")) == 8
    assert load_feedback(tmp_path / "three").schema == load_feedback(job.feedback).schema


def test_only_what_is_new_costs(judging: Any) -> None:
    """A pilot is a part of the whole; prompts and completions that were added are asked alone; another rubric is asked anew."""
    job = judging({}, 5)
    pilot = job.judge("pilot", limit=2)
    assert pilot["judges"][0]["requests"] == 12 and pilot["prompts"] == 5
    more, wide = candidates(job.folder / "more", 8, 3), candidates(job.folder / "wide", 8, 4)
    for feedback, options, expected in (
        (job.feedback, {}, 3 * 6),
        (more, {}, 3 * 6),
        (wide, {}, 8 * 6),
        (wide, {"rubrics": ("honesty",)}, 8 * 12),
        (wide, {"cache": False}, 8 * 12),
    ):
        before = job.count("answered")
        job.judge(f"after-{before}", feedback=feedback, journal=pilot["journal"], **options)
        assert job.count("answered") - before == expected


def test_prompts_without_a_question_are_counted(judging: Any) -> None:
    rows = [{"prompt": f"Q{i}?", "completions": [f"a{j}" for j in range(size)]} for i, size in enumerate([1, 2, 3, 27])]
    job = judging({}, rows)
    assert job.judge(mode="listwise")["not_asked"] == {"single_completion": 1, "too_many_completions": 1}
    assert job.judge("pairs", pairs="random:1", limit=3)["not_asked"]["not_drawn"] == 1
    counts = json.loads((job.out / "manifest.json").read_text())["counts"]["judge"]["prompt"]
    assert (counts["in"], counts["out"]) == (4, 2)
