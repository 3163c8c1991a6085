"""Judging at its edges: twins, parts of what was judged before, ways to read that do not fit, odd replies and odd keys."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from cases import comparisons, ratings
from command import environment
from folders import write_rows

from mmpo.annotate.client import Answer, Choice, answer_of
from mmpo.annotate.judge import Reader, combined
from mmpo.annotate.replies import Unparsable
from mmpo.annotate.scales import PREFERENCE
from mmpo.cli.main import run
from mmpo.pipeline import load_pairs
from mmpo.pipeline.errors import UserError


def gaps(found: list[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """By the ids of the completion that was shown first and of the other one."""
    return {(one["first_id"], one["second_id"]): one["gap"] for one in found}


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
    marked = (
        "<reply-{label}-{{{{ shown.nonce }}}}>\n{{{{ shown.replies[{place}].text }}}}\n</reply-{label}-{{{{ shown.nonce }}}}>\n"
    )
    both = "".join(marked.format(label=label, place=place) for place, label in enumerate("AB"))
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


@pytest.mark.parametrize(
    ("text", "key", "shown"),
    [
        ("The key-features matter.\nVerdict: C", "sk-1234567890abcdef", "The key-features matter.\nVerdict: C"),
        ("sk-1234567890abcdef C", "sk-1234567890abcdef", "[key] C"),
    ],
)
def test_the_key_is_taken_out_of_a_reply_and_words_that_look_like_one_stay(text: str, key: str, shown: str) -> None:
    found = answer_of({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}, {"messages": []}, 0.0, key)
    assert isinstance(found, Answer) and found.choices[0].text == shown


def test_alternatives_that_are_no_numbers_are_left_out() -> None:
    tops = [{"token": "C", "logprob": None}, {"token": None, "logprob": -1.0}, {"token": "D", "logprob": -0.5}, {"logprob": "x"}]
    reply = {"choices": [{"message": {"content": "C"}, "logprobs": {"content": [{"token": "C", "top_logprobs": tops}]}}]}
    found = answer_of(reply, {"messages": []}, 0.0)
    assert isinstance(found, Answer) and found.choices[0].tokens[0].top == (("D", -0.5),)


def test_a_higher_mass_asks_for_what_it_can_no_longer_use(judging: Any) -> None:
    job = judging({"faults": [{"kind": "low_mass", "mass": 0.6, "contains": "Question 1?"}]})
    assert job.judge()["finished"]
    before = job.count("answered")
    job.server.plan({"faults": []})
    assert job.judge(min_mass=0.8)["finished"]
    assert job.count("requests") - before <= 6 + 6 and job.count("answered") > before


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


def test_half_of_the_drawn_replies_will_do() -> None:
    few = [Choice(text) for text in ("A", "B", "nothing to say", "C")]
    reader = Reader("grade", PREFERENCE, ("grade",), True, 0.5)
    assert combined(reader.each(few)).grades["grade"].value == 2.0
    with pytest.raises(Unparsable):
        combined(reader.each([*few, Choice("x y"), Choice("x y"), Choice("x y")]))


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
