"""Judging against a real server: what each mode asks and what becomes of the answers in FEEDBACK and in PAIRS."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from cases import asked, built, candidates, comparisons, judged, ratings

from mmpo.annotate.scales import PREFERENCE
from mmpo.pipeline import BuildOptions, build, load_feedback, load_pairs
from mmpo.pipeline.errors import UserError

EXACT: dict[str, Any] = {"defaults": {"bias": 0.5, "noise": 0.0, "tau": 0.8, "mass": 0.9}, "keep_bodies": True}


def softmax_mean(margin: float, tau: float) -> tuple[float, float]:
    """Mean and standard deviation of the simulated judge's distribution over the seven grades around a latent margin."""
    values = np.array(list(PREFERENCE.labels.values()))
    weights = np.exp(-((values - margin) ** 2) / (2 * tau**2))
    mean = float((weights * values).sum() / weights.sum())
    return mean, math.sqrt(float((weights * (values - mean) ** 2).sum() / weights.sum()))


def test_pairwise_asks_every_pair_in_both_orders_and_keeps_the_expected_grade(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server(EXACT)
    feedback, out = candidates(tmp_path / "in", 5, 3), tmp_path / "out"
    summary = judged(feedback, out, server)
    found = comparisons(out)
    assert summary["finished"] and summary["judges"][0]["requests"] == 5 * 3 * 2 == len(found)
    assert {(one["prompt_id"], one["first_id"], one["second_id"]) for one in found} == {
        (one["prompt_id"], one["second_id"], one["first_id"]) for one in found
    }
    # The mean and the spread are those of the whole distribution; junk tokens take a tenth of the probability and no part.
    for one in found:
        other = next(two for two in found if two["first_id"] == one["second_id"] and two["second_id"] == one["first_id"])
        latent = np.linspace(-6, 7, 260_001)
        # The judge's distribution is a function of one latent margin: mean and spread must lie on its curve.
        values = np.array(list(PREFERENCE.labels.values()))
        weights = np.exp(-((values[None, :] - latent[:, None]) ** 2) / (2 * 0.8**2))
        means = (weights * values).sum(1) / weights.sum(1)
        at = int(np.argmin(np.abs(means - one["gap"])))
        mean, spread = softmax_mean(float(latent[at]), 0.8)
        assert one["gap"] == pytest.approx(mean, abs=1e-3) and one["spread"] == pytest.approx(spread, abs=2e-3)
        # Without noise the other order's latent margin is this one's, turned around, with the bias on the other side.
        mirrored = softmax_mean(-(float(latent[at]) - 0.5) + 0.5, 0.8)[0]
        assert other["gap"] == pytest.approx(mirrored, abs=2e-3)
        assert (one["limit"], one["kind"], one["rater"], one["aspect"]) == (3.0, "ai", "judge-a", "overall")
    assert summary["judges"][0]["mean_mass"] == pytest.approx(0.9, abs=1e-6)


def test_swapping_removes_the_position_bias_that_one_order_keeps(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server({"defaults": {"bias": 1.0, "noise": 0.0, "tau": 0.5, "scale": 0.4}})
    feedback = candidates(tmp_path / "in", 30, 3)
    both, one = tmp_path / "both", tmp_path / "one"
    told = judged(feedback, both, server)["judges"][0]
    judged(feedback, one, server, orders="one")
    assert told["position_bias"] == pytest.approx(1.0, abs=0.05) and told["pairs_both_orders"] == 90
    assert len(comparisons(one)) == 90
    first = [c["gap"] for c in comparisons(one)]
    assert np.mean(first) == pytest.approx(1.0, abs=0.25)
    pairs = tmp_path / "pairs"
    build(both, pairs, options=BuildOptions(format="feedback"))
    table = load_pairs(pairs).to_pylist()
    truth = {c["first_id"] + c["second_id"]: c["gap"] for c in comparisons(both)}
    for pair in table:
        ab, ba = truth[pair["chosen_id"] + pair["rejected_id"]], truth[pair["rejected_id"] + pair["chosen_id"]]
        assert pair["quality_margin"] == pytest.approx((ab - ba) / 2, abs=1e-9)
        assert pair["raters"] == 1 and pair["kind"] == "ai" and pair["margin_se"] > 0


def test_pointwise_grades_every_reply_by_every_rubric(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server(EXACT)
    feedback, out = candidates(tmp_path / "in", 4, 3), tmp_path / "out"
    summary = judged(feedback, out, server, mode="pointwise", rubrics=("helpfulness", "honesty"))
    found = ratings(out)
    assert summary["judges"][0]["requests"] == 24 == len(found)
    assert {one["aspect"] for one in found} == {"helpfulness", "honesty"}
    assert all((one["low"], one["high"]) == (1.0, 5.0) and 1 < one["score"] < 5 and one["spread"] > 0 for one in found)
    pairs = tmp_path / "pairs"
    build(out, pairs, options=BuildOptions(format="feedback", score="mean"))
    assert load_pairs(pairs).num_rows == 12


@pytest.mark.parametrize("schema", ["honoured", "ignored", "500"])
def test_listwise_binds_every_grade_to_its_reply(schema: str, openai_server: Any, tmp_path: Path) -> None:
    server = openai_server({**EXACT, "capabilities": {"json_schema": schema}})
    feedback, out = candidates(tmp_path / "in", 6, 4), tmp_path / "out"
    summary = judged(feedback, out, server, mode="listwise", orders="both")
    assert summary["judges"][0]["requests"] == 12 and summary["finished"]
    single = tmp_path / "single"
    judged(feedback, single, server, mode="pointwise")
    # A judge without noise gives a reply the same grade wherever it stands in the list: its label followed it.
    alone = {one["text"]: one["score"] for one in ratings(single)}
    found = ratings(out)
    assert len(found) == 48
    assert np.corrcoef([one["score"] for one in found], [alone[one["text"]] for one in found])[0, 1] > 0.999
    bodies = [record["body"] for record in server.log() if record.get("body")]
    sent = sum("response_format" in body for body in bodies)
    assert sent == (1 if schema == "500" else sent) and (sent > 10 or schema != "honoured")


@pytest.mark.parametrize("way", ["off", "empty", "no_content", "400"])
@pytest.mark.parametrize("several", ["honoured", "ignored"])
def test_without_log_probabilities_several_replies_are_drawn(way: str, several: str, openai_server: Any, tmp_path: Path) -> None:
    server = openai_server({"defaults": {"noise": 0.0, "tau": 1.0}, "capabilities": {"logprobs": way, "n": several}})
    feedback, out = candidates(tmp_path / "in", 4, 2), tmp_path / "out"
    summary = judged(feedback, out, server, samples=6)
    told, found = summary["judges"][0], comparisons(out)
    assert told["requests"] == (8 if several == "honoured" else 48) and told["mean_mass"] is None
    assert len(found) == 8 and any(one["gap"] != round(one["gap"]) for one in found) and any(one["spread"] > 0 for one in found)
    assert all(abs(one["gap"] * 6 - round(one["gap"] * 6)) < 1e-9 for one in found)


def test_endpoints_that_refuse_parameters_are_asked_without_them(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server({"capabilities": {"max_tokens": "400", "temperature": "400", "logprobs": "400"}, "keep_bodies": True})
    summary = judged(candidates(tmp_path / "in", 2, 2), tmp_path / "out", server)
    assert summary["finished"]
    body = server.log()[-1]["body"]
    assert "max_completion_tokens" in body and not {"max_tokens", "temperature", "logprobs"} & set(body)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["recipe"]["judges"][0]["abilities"]["length"] == "max_completion_tokens"


def test_a_template_without_system_messages_gets_all_in_one(openai_server: Any, tmp_path: Path) -> None:
    fault = {"kind": "status", "status": 400, "message": "System role not supported", "times": 1}
    server = openai_server({"faults": [fault], "keep_bodies": True})
    assert judged(candidates(tmp_path / "in", 2, 2), tmp_path / "out", server)["finished"]
    first, *rest = [record["body"]["messages"] for record in server.log()]
    assert len(first) == 2 and all([message["role"] for message in messages] == ["user"] for messages in rest)
    assert rest[0][0]["content"].startswith(first[0]["content"])


def test_fewer_alternatives_are_asked_for_before_none(openai_server: Any, tmp_path: Path) -> None:
    fault = {"kind": "status", "status": 400, "message": "top_logprobs must be at most 5", "times": 1}
    server = openai_server({"faults": [fault], "keep_bodies": True})
    summary = judged(candidates(tmp_path / "in", 2, 2), tmp_path / "out", server)
    assert {record["body"]["top_logprobs"] for record in server.log()[1:]} == {5} and summary["judges"][0]["mean_mass"] > 0.8


@pytest.mark.parametrize("thinking", [False, True])
def test_reasoning_ends_in_a_verdict_and_its_words_are_kept(thinking: bool, openai_server: Any, tmp_path: Path) -> None:
    server = openai_server({"defaults": {"noise": 0.0, "thinking": thinking}})
    feedback = candidates(tmp_path / "in", 3, 2)
    judged(feedback, tmp_path / "out", server, reasoning=True)
    judged(feedback, tmp_path / "direct", server)
    direct = {one["first_id"] + one["second_id"]: one["gap"] for one in comparisons(tmp_path / "direct")}
    for one in comparisons(tmp_path / "out"):
        assert one["note"] and "Verdict" not in one["note"] and "<think" not in one["note"]
        assert np.sign(round(one["gap"], 3)) == np.sign(round(direct[one["first_id"] + one["second_id"]], 3))


def test_a_jury_writes_every_judges_grades_and_the_build_takes_their_effects_out(openai_server: Any, tmp_path: Path) -> None:
    models = {"mild": {"scale": 0.5, "noise": 0.3, "tau": 0.4}, "plain": {"scale": 1.0, "noise": 0.3, "tau": 0.4},
              "strong": {"scale": 1.0, "bias": 1.0, "noise": 0.6, "tau": 0.4}}  # fmt: skip
    server = openai_server({"models": models, "any_model": False})
    feedback, out, pairs = candidates(tmp_path / "in", 30, 3), tmp_path / "out", tmp_path / "pairs"
    summary = judged(feedback, out, server, judges=["mild", "plain,rater=simple", {"model": "strong"}])
    assert [row["rater"] for row in summary["judges"]] == ["mild", "simple", "strong"]
    assert [row["answered"] for row in summary["judges"]] == [180, 180, 180]
    built = build(out, pairs, options=BuildOptions(format="feedback", merge_raters="rater-effects"))
    effects = built["rater_effects"]
    assert effects["mild"]["scale"] < 0.75 * effects["simple"]["scale"]
    table = load_pairs(pairs)
    assert set(table["raters"].to_pylist()) == {3} and table["margin_se"].null_count == 0


def test_other_grades_stay_and_a_judges_own_are_replaced(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server(EXACT)
    rows = [{"prompt": f"Q{i}?", "completions": ["a", "b"], "scores": [1, 5], "rater": "ann", "kind": "human"} for i in range(4)]
    built(tmp_path / "in", rows, scale=(1, 5))
    judged(tmp_path / "in", tmp_path / "one", server, mode="pointwise")
    again = judged(tmp_path / "one", tmp_path / "two", server, mode="pointwise", rubrics=("overall", "honesty"))
    assert again["replaced"] == 8
    found = ratings(tmp_path / "two")
    assert sum(one["rater"] == "ann" for one in found) == 8 and sum(one["rater"] == "judge-a" for one in found) == 16
    judged(tmp_path / "two", tmp_path / "three", server, pairs="best-worst")
    assert len(comparisons(tmp_path / "three")) == 8
    assert load_feedback(tmp_path / "three").schema == load_feedback(tmp_path / "in").schema


def test_a_pilot_is_a_part_of_the_whole(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server()
    feedback = candidates(tmp_path / "in", 20, 2)
    first = judged(feedback, tmp_path / "pilot", server, limit=5)
    assert first["judges"][0]["requests"] == 10 and first["prompts"] == 20
    before = asked(server)
    judged(feedback, tmp_path / "all", server, journal=first["journal"])
    assert asked(server) - before == 30


def test_added_prompts_and_completions_cost_only_themselves_and_changes_are_asked_anew(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server()
    journal = str(tmp_path / "answers.sqlite")
    judged(candidates(tmp_path / "three", 5, 3), tmp_path / "o1", server, journal=journal)
    before = asked(server)
    judged(candidates(tmp_path / "more", 8, 3), tmp_path / "o2", server, journal=journal)
    assert asked(server) - before == 3 * 6
    before = asked(server)
    judged(candidates(tmp_path / "wide", 8, 4), tmp_path / "o3", server, journal=journal)
    assert asked(server) - before == 8 * 6
    before = asked(server)
    judged(tmp_path / "wide", tmp_path / "o4", server, journal=journal, rubrics=("honesty",))
    assert asked(server) - before == 8 * 12
    before = asked(server)
    judged(tmp_path / "wide", tmp_path / "o5", server, journal=journal, cache=False)
    assert asked(server) - before == 8 * 12


def test_prompts_without_a_question_are_counted(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server()
    sizes = [1, 2, 3, 27]
    rows = [{"prompt": f"Q{i}?", "completions": [f"a{j}" for j in range(size)]} for i, size in enumerate(sizes)]
    mixed = built(tmp_path / "in", rows)
    assert judged(mixed, tmp_path / "lists", server, mode="listwise")["not_asked"] == {
        "single_completion": 1,
        "too_many_completions": 1,
    }
    assert judged(mixed, tmp_path / "pairs", server, pairs="random:1", limit=3)["not_asked"]["not_drawn"] == 1
    counts = json.loads((tmp_path / "lists" / "manifest.json").read_text())["counts"]["judge"]["prompt"]
    assert (counts["in"], counts["out"]) == (4, 2)


def test_nothing_to_ask_is_said(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server()
    single = candidates(tmp_path / "single", 3, 1)
    with pytest.raises(UserError, match="at least two completions"):
        judged(single, tmp_path / "out", server)
    with pytest.raises(UserError, match="best-worst compares graded"):
        judged(candidates(tmp_path / "in", 3, 3), tmp_path / "out", server, pairs="best-worst")
    assert not (tmp_path / "out").exists()


def test_rejects_hold_the_reply_that_could_not_be_read(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server({"faults": [{"kind": "unparsable", "contains": "Question 1?"}]})
    summary = judged(candidates(tmp_path / "in", 3, 2), tmp_path / "out", server)
    assert not summary["finished"] and sum(summary["judges"][0]["failed"].values()) == 2
    rejects = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    assert len(rejects) == 2 and {one["stage"] for one in rejects} == {"judge"}
    assert "hard to say more" in json.loads(rejects[0]["evidence"])["reply"]
    assert len(comparisons(tmp_path / "out")) == 4
