"""Judging at its edges: twins, parts of what was judged before, ways to read that do not fit, odd replies and odd keys."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from cases import asked, built, candidates, comparisons, environment, judged, mmpo, ratings, words

from mmpo.annotate.client import Answer, Choice, answer_of
from mmpo.annotate.judge import Reader, combined
from mmpo.annotate.replies import Unparsable
from mmpo.annotate.scales import PREFERENCE
from mmpo.pipeline import load_pairs
from mmpo.pipeline.errors import UserError


def test_one_model_at_two_addresses_is_two_judges(openai_server: Any, tmp_path: Path) -> None:
    one = openai_server({"defaults": {"noise": 0.0, "scale": 1.0}})
    other = openai_server({"defaults": {"noise": 0.0, "scale": -1.0}})
    judges = [f"m,base_url={server.base_url},rater={name}" for server, name in ((one, "A"), (other, "B"))]
    judged(candidates(tmp_path / "in", 5, 3), tmp_path / "out", one, judges=judges)
    found = comparisons(tmp_path / "out")
    gaps = {name: {c["first_id"] + c["second_id"]: c["gap"] for c in found if c["rater"] == name} for name in "AB"}
    assert len(gaps["A"]) == 30 and all(gaps["B"][key] == pytest.approx(-gap, abs=1e-3) for key, gap in gaps["A"].items())


def test_a_part_judged_again_takes_nothing_from_the_rest(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server()
    judged(candidates(tmp_path / "in", 20, 3), tmp_path / "all", server)
    again = judged(tmp_path / "all", tmp_path / "part", server, limit=5)
    assert again["replaced"] == 30 and len(comparisons(tmp_path / "part")) == 120
    assert sorted(map(str, comparisons(tmp_path / "part"))) == sorted(map(str, comparisons(tmp_path / "all")))


def test_two_scores_of_a_pair_are_on_the_rubrics_own_scale(openai_server: Any, tmp_path: Path) -> None:
    template = tmp_path / "two.j2"
    marked = (
        "<reply-{label}-{{{{ shown.nonce }}}}>\n{{{{ shown.replies[{place}].text }}}}\n</reply-{label}-{{{{ shown.nonce }}}}>\n"
    )
    both = "".join(marked.format(label=label, place=place) for place, label in enumerate("AB"))
    template.write_text("{% block user %}Score both, from 1 to 5, as JSON:\n" + both + "{% endblock %}")
    server = openai_server({"defaults": {"noise": 0.0}})
    judged(candidates(tmp_path / "in", 4, 2), tmp_path / "out", server, template=str(template), reply="labelled")
    found = comparisons(tmp_path / "out")
    assert len(found) == 8 and all(one["limit"] == 4.0 and abs(one["gap"]) <= 4.0 for one in found)
    first = {one["first_id"] + one["second_id"]: one["gap"] for one in found}
    assert all(one["gap"] == pytest.approx(-first[one["second_id"] + one["first_id"]], abs=1e-3) for one in found)


OWN = {
    "two.yaml": "- {name: a, criterion: x, scale: {1: l, 5: h}}\n- {name: b, criterion: y, scale: {1: l, 3: h}}\n",
    "divides.j2": "{% block user %}{{ 1 / 0 }}{% endblock %}",
    "adds.j2": "{% block user %}{{ rubric.criterion + 1 }}{% endblock %}",
    "blank.j2": "{% block user %}  {% endblock %}",
}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "pointwise", "reply": "aspects-json", "rubrics": ("two.yaml",)}, "one scale"),
        ({"template": "divides.j2"}, r"divides\.j2"),
        ({"template": "adds.j2"}, r"adds\.j2"),
        ({"template": "blank.j2"}, r"blank\.j2"),
        ({"reference": "nope"}, "--reference nope"),
        ({"max_cost": 1.0}, "--prices"),
    ],
)
def test_what_can_not_work_is_refused_before_anything_is_asked(
    options: dict[str, Any], message: str, openai_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in OWN.items():
        Path(name).write_text(text)
    server = openai_server()
    with pytest.raises(UserError, match=message):
        judged(candidates(tmp_path / "in", 2, 2), tmp_path / "out", server, **options)
    assert server.counts()["requests"] == 0 and not (tmp_path / "out").exists()


def test_words_that_look_like_a_key_stay_words() -> None:
    reply = {"choices": [{"message": {"content": "The key-features matter.\nVerdict: C"}, "finish_reason": "stop"}]}
    found = answer_of(reply, {"messages": []}, 0.0, "sk-1234567890abcdef")
    assert isinstance(found, Answer) and found.choices[0].text == "The key-features matter.\nVerdict: C"
    told = answer_of({"choices": [{"message": {"content": "sk-1234567890abcdef C"}}]}, {"messages": []}, 0.0, "sk-1234567890abcdef")
    assert isinstance(told, Answer) and told.choices[0].text == "[key] C"


def test_alternatives_that_are_no_numbers_are_left_out() -> None:
    tops = [{"token": "C", "logprob": None}, {"token": None, "logprob": -1.0}, {"token": "D", "logprob": -0.5}, {"logprob": "x"}]
    reply = {"choices": [{"message": {"content": "C"}, "logprobs": {"content": [{"token": "C", "top_logprobs": tops}]}}]}
    found = answer_of(reply, {"messages": []}, 0.0)
    assert isinstance(found, Answer) and found.choices[0].tokens[0].top == (("D", -0.5),)


def test_a_higher_mass_asks_for_what_it_can_no_longer_use(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server({"faults": [{"kind": "low_mass", "mass": 0.6, "contains": "Question 1?"}]})
    feedback, out = candidates(tmp_path / "in"), tmp_path / "out"
    assert judged(feedback, out, server)["finished"]
    before = asked(server)
    server.plan({"faults": []})
    assert judged(feedback, out, server, min_mass=0.8)["finished"]
    assert server.counts()["requests"] - before <= 6 + 6 and asked(server) > before


def test_log_probabilities_that_are_needed_are_needed_of_every_reply(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server({"faults": [{"kind": "no_logprobs", "contains": "Question 1?"}]})
    told = judged(candidates(tmp_path / "in"), tmp_path / "out", server, logprobs="need")["judges"][0]
    assert told["failed"] == {"no_logprobs": 6}


def test_a_judge_that_never_answers_one_order_is_called_out(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server()
    feedback = candidates(tmp_path / "in", 4, 2)
    judged(feedback, tmp_path / "first", server, orders="one")
    server.plan({"faults": [{"kind": "refusal"}]})
    # The journal has one order of each pair; the other one is refused throughout.
    done = mmpo(*words(feedback, tmp_path / "both", server, "--journal", tmp_path / "first.judge.sqlite"))
    assert done.returncode == 3 and "answered no pair in both orders" in done.stderr


@pytest.mark.parametrize("key", ["ключ", "abc\ndef-secret"])
def test_a_key_that_can_be_none_is_not_shown(key: str, openai_server: Any, tmp_path: Path) -> None:
    server = openai_server()
    feedback = candidates(tmp_path / "in", 2, 2)
    done = mmpo(*words(feedback, tmp_path / "out", server), env=environment(OPENAI_API_KEY=key))
    assert done.returncode == 2 and "OPENAI_API_KEY" in done.stderr and "secret" not in done.stderr and "ключ" not in done.stderr


def test_a_journal_that_was_killed_in_its_first_moment_is_an_empty_one(openai_server: Any, tmp_path: Path) -> None:
    server, feedback = openai_server(), candidates(tmp_path / "in", 2, 2)
    (tmp_path / "out.judge.sqlite").touch()
    done = mmpo(*words(feedback, tmp_path / "out", server, "--status", "--json"))
    assert done.returncode == 0 and json.loads(done.stdout)["left"] == 4


def test_a_budget_that_judges_share_is_used_up(openai_server: Any, tmp_path: Path) -> None:
    server = openai_server({"latency": 0.05})
    prices = tmp_path / "prices.yaml"
    prices.write_text("models:\n  m: [1, 1]\n  n: [1, 1]\n")
    summary = judged(
        candidates(tmp_path / "in", 40, 3), tmp_path / "out", server, judges=["m", "n"], prices=str(prices), max_cost=0.03
    )
    assert summary["stopped"] == "budget" and 0.028 < summary["cost"] <= 0.03


def test_best_worst_counts_what_it_will_ask(openai_server: Any, tmp_path: Path) -> None:
    rows = [{"prompt": f"Q{i}?", "completions": ["a", "b", "c"], **({"scores": [1, 2, 3]} if i % 2 else {})} for i in range(8)]
    half = built(tmp_path / "in", rows)
    done = mmpo(*words(half, tmp_path / "out", openai_server(), "--pairs", "best-worst", "--dry-run", "--json"))
    assert json.loads(done.stdout)["requests"] == 8


def test_half_of_the_drawn_replies_will_do() -> None:
    few = [Choice(text) for text in ("A", "B", "nothing to say", "C")]
    reader = Reader("grade", PREFERENCE, ("grade",), True, 0.5)
    assert combined(reader.each(few)).grades["grade"].value == 2.0
    with pytest.raises(Unparsable):
        combined(reader.each([*few, Choice("x y"), Choice("x y"), Choice("x y")]))


def test_judging_inside_a_running_event_loop(openai_server: Any, tmp_path: Path) -> None:
    server, feedback = openai_server(), candidates(tmp_path / "in", 3, 2)

    async def notebook() -> dict[str, Any]:
        return judged(feedback, tmp_path / "out", server)

    assert asyncio.run(notebook())["finished"] and len(comparisons(tmp_path / "out")) == 6


def test_pointwise_rubrics_in_a_recipe_score_what_they_grade(openai_server: Any, tmp_path: Path) -> None:
    from mmpo.cli.main import run

    server = openai_server()
    source = tmp_path / "in.jsonl"
    rows = [{"prompt": f"Q{i}?", "completion": f"a{j} of {i}", "score": 1 + j} for i in range(30) for j in range(2)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"out: {tmp_path / 'run'}\nbuild: {{inputs: ['{source}'], format: jsonl}}\n"
        f"judge: {{model: m, base_url: '{server.base_url}', mode: pointwise, rubrics: [helpfulness, honesty]}}\n"
    )
    assert run(["run", str(recipe)]) == 0
    assert load_pairs(tmp_path / "run" / "pairs").num_rows == 30 and len(ratings(tmp_path / "run" / "judged")) == 60 + 120
