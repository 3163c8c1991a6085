"""Judging against a real server: what each mode asks and what becomes of the answers, what both orders buy, and edges."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import Judging, candidates, comparisons, ratings
from command import environment
from folders import write_rows
from simulated_judge import Qualities

from mmpo.annotate.client import Answer, Choice, answer_of
from mmpo.annotate.scales import PREFERENCE
from mmpo.cli.main import run
from mmpo.pipeline import BuildOptions, build, load_feedback, load_pairs, validate
from mmpo.pipeline.errors import UserError

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
    assert {check["status"] for check in validate(job.out)["checks"]} == {"pass"}


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
    assert (sent == 2 or schema != "500") and (sent > 10 or schema != "honoured")  # a status 500 is asked once more


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
    direct = gaps(job.comparisons("direct"))
    for one in job.comparisons():
        assert one["note"] and "Verdict" not in one["note"] and "<think" not in one["note"]
        assert np.sign(round(one["gap"], 3)) == np.sign(round(direct[one["first_id"], one["second_id"]], 3))


def test_a_jury_writes_every_judges_grades_and_the_build_takes_their_effects_out(judging: Any) -> None:
    models = {"mild": {"scale": 0.5, "noise": 0.3, "tau": 0.4}, "plain": {"scale": 1.0, "noise": 0.3, "tau": 0.4},
              "strong": {"scale": 1.0, "bias": 1.0, "noise": 0.6, "tau": 0.4}}  # fmt: skip
    job = judging({"models": models}, 30)
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


def gaps(found: list[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """By the ids of the completion that was shown first and of the other one."""
    return {(one["first_id"], one["second_id"]): one["gap"] for one in found}


SCALE, NOISE = 0.5, 0.5


@pytest.mark.slow
@pytest.mark.parametrize("bias", [0.0, 0.5, 1.0])
def test_margins_in_both_orders_are_free_of_the_judges_liking(bias: float, judging: Any, tmp_path: Path) -> None:
    job, quality = judging({"defaults": {"bias": bias, "noise": NOISE, "scale": SCALE, "tau": 0.4}}, 150), Qualities().of
    rms, wrong, ses = {}, {}, {}
    for name in ("both", "one"):
        [told] = job.judge(name, orders=name, journal=str(tmp_path / "answers.sqlite"))["judges"]
        build(tmp_path / name, tmp_path / f"{name}-pairs", options=BuildOptions(format="feedback"))
        pairs, gap = load_pairs(tmp_path / f"{name}-pairs").to_pylist(), gaps(job.comparisons(name))
        # In grades: what a judge without noise and without liking would say.
        better, worse = ([quality(pair[side][0]["content"]) for pair in pairs] for side in ("chosen", "rejected"))
        truth = SCALE * (np.array(better) - worse)
        margin, se = (np.array([pair[column] for pair in pairs], float) for column in ("quality_margin", "margin_se"))
        assert len(pairs) == 450 and {(pair["raters"], pair["kind"]) for pair in pairs} == {(1, "ai")}
        rms[name], ses[name] = np.sqrt(np.mean((margin - truth) ** 2)), np.sqrt(np.mean(se**2))
        wrong[name] = np.mean(truth < 0)
        if name == "both":
            assert told["position_bias"] == pytest.approx(bias, abs=0.1) and told["pairs_both_orders"] == 450
            halves = [(gap[ids] - gap[ids[::-1]]) / 2 for pair in pairs if (ids := (pair["chosen_id"], pair["rejected_id"]))]
            assert margin == pytest.approx(halves, abs=1e-9) and (se > 0).all()
        else:
            assert len(gap) == 450 and np.mean(list(gap.values())) == pytest.approx(bias, abs=0.25)
    print(
        f"\nbias {bias:.1f}, noise {NOISE}: RMS error of the margin {rms['both']:.3f} in both orders, {rms['one']:.3f} in one; "
        f"wrong sign {wrong['both']:.3f}, {wrong['one']:.3f}; RMS margin_se {ses['both']:.3f}, {ses['one']:.3f}"
    )
    # Two independent answers halve the variance; the liking is gone whatever it was, and stays whole in one order.
    assert rms["both"] == pytest.approx(NOISE / np.sqrt(2), rel=0.15)
    assert rms["one"] == pytest.approx(np.hypot(NOISE, bias), rel=0.15)
    assert wrong["both"] < wrong["one"] - 0.02
    # What the pair says of its own uncertainty covers the error that it has.
    assert 0.9 <= ses["both"] / rms["both"] <= 1.6


def test_one_model_at_two_addresses_is_two_judges(judging: Any, openai_server: Any) -> None:
    job = judging({"defaults": {"noise": 0.0, "scale": 1.0}}, 5)
    other = openai_server({"defaults": {"noise": 0.0, "scale": -1.0}})
    job.judge(judges=[f"m,base_url={server.base_url},rater={name}" for server, name in ((job.server, "A"), (other, "B"))])
    a, b = (gaps([one for one in job.comparisons() if one["rater"] == name]) for name in "AB")
    assert len(a) == 30 and all(b[key] == pytest.approx(-gap, abs=1e-3) for key, gap in a.items())


def test_a_part_judged_again_takes_nothing_from_the_rest(judging: Any) -> None:
    job = judging({}, 20)
    job.judge("all")
    again = job.judge("part", feedback=job.folder / "all", limit=5)
    assert again["replaced"] == 30 and len(job.comparisons("part")) == 120
    assert sorted(map(str, job.comparisons("part"))) == sorted(map(str, job.comparisons("all")))


def test_two_scores_of_a_pair_are_on_the_rubrics_own_scale(judging: Any, tmp_path: Path) -> None:
    template = tmp_path / "two.j2"
    marked = "<reply-L-{{ shown.nonce }}>\n{{ shown.replies[N].text }}\n</reply-L-{{ shown.nonce }}>\n"
    both = "".join(marked.replace("L", label).replace("N", str(place)) for place, label in enumerate("AB"))
    template.write_text("{% block user %}Score both, from 1 to 5, as JSON:\n" + both + "{% endblock %}")
    job = judging({"defaults": {"noise": 0.0}}, 4, 2)
    job.judge(template=str(template), reply="labelled")
    found = job.comparisons()
    assert len(found) == 8 and all(one["limit"] == 4.0 and abs(one["gap"]) <= 4.0 for one in found)
    assert all(gap == pytest.approx(-gaps(found)[b, a], abs=1e-3) for (a, b), gap in gaps(found).items())


OWN = {
    "two.yaml": "- {name: a, criterion: x, scale: {1: l, 5: h}}\n- {name: b, criterion: y, scale: {1: l, 3: h}}\n",
    "divides.j2": "{% block user %}{{ 1 / 0 }}{% endblock %}",
    "adds.j2": "{% block user %}{{ rubric.criterion + 1 }}{% endblock %}",
    "blank.j2": "{% block user %}  {% endblock %}",
}


@pytest.mark.parametrize(
    ("completions", "options", "message"),
    [
        (2, {"mode": "pointwise", "reply": "aspects-json", "rubrics": ("two.yaml",)}, "one scale"),
        (2, {"template": "divides.j2"}, r"divides\.j2"),
        (2, {"template": "adds.j2"}, r"adds\.j2"),
        (2, {"template": "blank.j2"}, r"blank\.j2"),
        (2, {"reference": "nope"}, "--reference nope"),
        (2, {"max_cost": 1.0}, "--prices"),
        (1, {}, "at least two completions"),  # known only when the rows are read: the probe may have gone out
        (3, {"pairs": "best-worst"}, "best-worst compares graded"),
    ],
)
def test_what_can_not_work_is_refused_before_anything_is_asked(
    completions: int, options: dict[str, Any], message: str, judging: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in OWN.items():
        Path(name).write_text(text)
    job = judging({}, 3, completions)
    with pytest.raises(UserError, match=message):
        job.judge(**options)
    assert job.count("requests") <= (completions != 2) and not job.out.exists()


def read_of(text: str, *top: dict[str, Any], key: str = "") -> Choice:
    """What is kept of a reply of this text, whose first token could have been others."""
    tokens = {"content": [{"token": text, "top_logprobs": top}]}
    found = answer_of(
        {"choices": [{"message": {"content": text}, "logprobs": tokens}]}, {"messages": []}, 0.0, (key,) if key else ()
    )
    assert isinstance(found, Answer)
    return found.choices[0]


def test_what_is_kept_of_a_reply() -> None:
    """The key is taken out, words that look like one stay, and alternatives that are no numbers are left out."""
    key, words = "sk-1234567890abcdef", "The key-features matter.\nVerdict: C"
    assert read_of(words, key=key).text == words and read_of(f"{key} C", key=key).text == "[key] C"
    tops = [{"token": "C", "logprob": None}, {"token": None, "logprob": -1.0}, {"token": "D", "logprob": -0.5}, {"logprob": "x"}]
    assert read_of("C", *tops).tokens[0].top == (("D", -0.5),)


def test_a_higher_mass_asks_for_what_it_can_no_longer_use(judging: Any) -> None:
    job = judging({"faults": [{"kind": "low_mass", "mass": 0.6, "contains": "Question 1?"}]})
    assert job.judge()["finished"]
    before = job.count("answered")
    job.server.plan({"faults": []})
    assert job.judge(min_mass=0.8)["finished"]
    assert job.count("requests") - before <= 6 + 6 and job.count("answered") > before


@pytest.mark.slow
def test_a_judge_that_never_answers_one_order_is_called_out(judging: Any) -> None:
    job = judging({}, 4, 2)
    first = job.judge("first", orders="one")
    job.server.plan({"faults": [{"kind": "refusal"}]})
    # The journal has one order of each pair; the other one is refused throughout.
    done = job.mmpo("--journal", first["journal"])
    assert done.returncode == 3 and "answered no pair in both orders" in done.stderr


@pytest.mark.parametrize("key", ["ключ", "abc\ndef-secret"])
def test_a_key_that_can_be_none_is_not_shown(key: str, judging: Any) -> None:
    done = judging({}, 2, 2).mmpo(env=environment(OPENAI_API_KEY=key))
    assert done.returncode == 2 and "OPENAI_API_KEY" in done.stderr and "secret" not in done.stderr and "ключ" not in done.stderr


def test_a_journal_that_was_killed_in_its_first_moment_is_an_empty_one(judging: Any) -> None:
    job = judging({}, 2, 2)
    job.journal.touch()
    done = job.mmpo("--status", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["left"] == 4


def test_a_budget_that_judges_share_is_used_up(judging: Any, prices: str) -> None:
    summary = judging({"latency": 0.05}, 40).judge(judges=["judge-b", "judge-c"], prices=prices, max_cost=0.03)
    assert summary["stopped"] == "budget" and 0.028 < summary["cost"] <= 0.03


def test_best_worst_counts_what_it_will_ask(judging: Any) -> None:
    rows = [{"prompt": f"Q{i}?", "completions": ["a", "b", "c"], **({"scores": [1, 2, 3]} if i % 2 else {})} for i in range(8)]
    done = judging({}, rows).mmpo("--pairs", "best-worst", "--dry-run", "--json")
    assert json.loads(done.stdout)["requests"] == 8


def test_judging_inside_a_running_event_loop(judging: Any) -> None:
    job = judging({}, 3, 2)

    async def notebook() -> dict[str, Any]:
        return job.judge()

    assert asyncio.run(notebook())["finished"] and len(comparisons(job.out)) == 6


def test_pointwise_rubrics_in_a_recipe_score_what_they_grade(openai_server: Any, tmp_path: Path) -> None:
    rows = [{"prompt": f"Q{i}?", "completion": f"a{j} of {i}", "score": 1 + j} for i in range(30) for j in range(2)]
    source, recipe = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "recipe.yaml"
    recipe.write_text(
        f"out: {tmp_path / 'run'}\nbuild: {{inputs: ['{source}'], format: jsonl}}\n"
        f"judge: {{model: m, base_url: '{openai_server().base_url}', mode: pointwise, rubrics: [helpfulness, honesty]}}\n"
    )
    assert run(["run", str(recipe)]) == 0
    assert load_pairs(tmp_path / "run" / "pairs").num_rows == 30 and len(ratings(tmp_path / "run" / "judged")) == 60 + 120
