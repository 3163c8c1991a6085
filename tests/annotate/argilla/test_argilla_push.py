"""Push: what people are shown, in which order, chosen how; and that pushing again changes nothing that is there."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from argilla_cases import Asked, feedback, pairs

from mmpo.annotate import select
from mmpo.annotate.argilla import GRADES, grade_of
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.tables import completion_id
from mmpo.train import completion_features


def test_what_annotators_see(asked: Asked) -> None:
    """Conversation, two replies, seven grades from A to B, a reason; no metadata, no model; guidelines; raters."""
    summary = asked.push(raters=2)
    assert (summary["sent"], summary["unchanged"], summary["finished"], summary["new"]) == (6, 0, True, True)
    assert asked.dataset["distribution"] == {"strategy": "overlap", "min_submitted": 2}
    assert "by how much" in asked.dataset["guidelines"]
    [grade, why] = asked.get(f"{asked.path}/questions")["items"]
    assert [option["text"] for option in grade["settings"]["options"]] == list(GRADES.values())
    assert grade["required"] and not why["required"]
    assert [one["name"] for one in asked.get(f"{asked.path}/fields")["items"]] == ["prompt", "reply_a", "reply_b"]
    asked.argilla.annotator("anna")
    with asked.argilla.as_user("anna") as anna:
        seen = anna.post(f"/api/v1/me/datasets/{asked.dataset['id']}/records/search", json={}).raise_for_status()
    assert seen.json()["total"] == 6
    assert all(not one["record"]["metadata"] for one in seen.json()["items"])
    assert "small" not in seen.text and "large" not in seen.text
    for record in asked.records():
        metadata = record["metadata"]
        assert {metadata["model_a"], metadata["model_b"]} == {"small", "large"}
        texts = [record["fields"][f"reply_{letter}"] for letter in "ab"]
        assert metadata["ids"] == [completion_id(metadata["prompt_id"], text) for text in texts]


def test_pushing_again_changes_nothing(asked: Asked, tmp_path: Path) -> None:
    first = asked.push(pairs(tmp_path / "p"), suggest=True)
    asked.answer("anna", asked.record("Question 2?"), grade="2", rationale="because")
    before = asked.records()
    again = asked.push(suggest=True)
    assert (first["sent"], again["sent"], again["updated"], again["unchanged"]) == (6, 0, 0, 6)
    assert asked.records() == before


def test_another_seed_never_turns_what_is_there(asked: Asked) -> None:
    """Answers stand beside the order in which they were given: a push with another seed must not turn it."""
    asked.push(12, limit=6)
    before = {one["external_id"]: one["fields"] for one in asked.records()}
    summary = asked.push(seed=7)
    after = {one["external_id"]: one["fields"] for one in asked.records()}
    assert (summary["sent"], summary["unchanged"]) == (6, 6)
    assert {own: after[own] for own in before} == before and len(after) == 12


def test_suggestions_point_at_the_better_reply_and_come_later_too(asked: Asked, tmp_path: Path) -> None:
    """Margin i % 9 + 1 of 9 toward `Answer 1`: grade round(3·m/9), positive where Answer 1 is shown as A."""
    assert asked.push(pairs(tmp_path / "p", 9))["suggested"] == 0
    summary = asked.push(suggest=True)
    assert (summary["updated"], summary["suggested"], summary["sent"]) == (9, 9, 0)
    seen = Counter[str]()
    for record in asked.records():
        margin = int(record["fields"]["prompt"][0]["content"].split()[1].rstrip("?")) % 9 + 1
        size = grade_of(margin / 9)
        sign = 1 if record["fields"]["reply_a"].startswith("Answer 1") else -1
        [suggestion] = record["suggestions"]
        assert suggestion["value"] == str(sign * size)
        assert suggestion["agent"] == "ai"
        assert record["metadata"]["margin"] == sign * margin
        seen["A" if sign > 0 else "B"] += 1
    assert len(seen) == 2
    turned = asked.push(suggest=True, much_better=1.0)
    assert turned["updated"] == 7  # 8 and 9 of 9 round to 3 already
    assert {abs(int(one["suggestions"][0]["value"])) for one in asked.records()} == {3}


def test_selection_and_limit_put_the_closest_pairs_first(asked: Asked, tmp_path: Path) -> None:
    asked.push(pairs(tmp_path / "p", 9), select="small-margin", limit=4)
    margins = [abs(one["metadata"]["margin"]) for one in asked.records()]
    assert margins == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["information", "gap", "model-disagreement"])
def test_models_choose_which_pairs_come_first(way: str, asked: Asked, tmp_path: Path) -> None:
    """The records are those of `mmpo select`, and a larger limit adds to them."""
    rows = [
        {
            "prompt": f"Q{i}",
            "completion": f"Answer {j} {'and more ' * (i * j)}",
            "score": (1 - 2 * (r * i % 2)) * j * (i + 1),
            "rater": f"rm{r}",
        }
        for i in range(8)
        for j in range(2)
        for r in range(2)
    ]
    data = feedback(tmp_path / "f", rows, kind="reward_model")
    listed = select(data, by=way, limit=5, featurize=completion_features)["pairs"]
    asked.push(data, select=way, limit=3)
    assert {one["metadata"]["prompt_id"] for one in asked.records()} == {row["prompt_id"] for row in listed[:3]}
    assert asked.push(select=way, limit=5)["sent"] == 2
    assert {one["metadata"]["prompt_id"] for one in asked.records()} == {row["prompt_id"] for row in listed}


def test_pairs_that_say_nothing_of_graders_are_chosen_by_features(asked: Asked, tmp_path: Path) -> None:
    data = pairs(tmp_path / "p", 9)
    assert asked.push(data, select="prediction", limit=4)["sent"] == 4
    with pytest.raises(UserError, match="PAIRS do not say who graded"):
        asked.push(select="model-disagreement", limit=4)


def test_ratings_of_four_replies(asked: Asked, tmp_path: Path) -> None:
    counts = enumerate((4, 3, 4, 3))
    rows = [
        {"prompt": f"Q{i}", "completions": [f"reply {j} of {i}" for j in range(n)], "scores": [1, 2, 4, 5][:n]} for i, n in counts
    ]
    data = feedback(tmp_path / "f", rows, scale=(1, 5), kind="ai")
    summary = asked.push(data, questions="ratings", suggest=True, scale=(0, 10))
    assert (summary["sent"], summary["suggested"]) == (4, 4)
    questions = {one["name"]: one for one in asked.get(f"{asked.path}/questions")["items"]}
    assert set(questions) == {*(f"rating_{letter}" for letter in "abcd"), "rationale"}
    assert [questions[f"rating_{letter}"]["required"] for letter in "abcd"] == [True, True, False, False]
    expected = {0: 0, 1: 3, 2: 8, 3: 10}  # score 2 of 1..5 is a quarter, 2.5 of 0..10, and halves go up
    for record in asked.records():
        given_ = {one["question_id"]: one["value"] for one in record["suggestions"]}
        for letter in "abcd":
            text = record["fields"].get(f"reply_{letter}")
            if text is not None:
                assert given_[questions[f"rating_{letter}"]["id"]] == expected[int(text.split()[1])]
    orders = {tuple(record["fields"][f"reply_{letter}"].split()[1] for letter in "abc") for record in asked.records()}
    assert len(orders) > 1


def test_several_aspects_are_a_question_each(asked: Asked) -> None:
    asked.push(2, aspects=("overall", "tone"), rationale=False)
    found = [(one["name"], one["title"]) for one in asked.get(f"{asked.path}/questions")["items"]]
    assert [own for own, _ in found] == ["grade", "grade_tone"] and found[1][1].startswith("tone: ")
    with pytest.raises(UserError, match=r"there already, one that asks grade .*grade_tone"):
        asked.push(2)


def half_made(asked: Asked, field: dict[str, Any]) -> str:
    """The id of a draft of this name with one field."""
    spaces = asked.get("/api/v1/me/workspaces")["items"]
    space = next(one["id"] for one in spaces if one["name"] == asked.argilla.workspace)
    made = asked.change("POST", "/api/v1/datasets", name=asked.name, workspace_id=space).json()["id"]
    asked.change("POST", f"/api/v1/datasets/{made}/fields", **field)
    return made


def test_a_dataset_of_others_is_left_alone(asked: Asked) -> None:
    made = half_made(asked, {"name": "text", "title": "x", "required": True, "settings": {"type": "text"}})
    options = [{"value": value, "text": value} for value in "ab"]
    asks = {"name": "label", "title": "x", "required": True, "settings": {"type": "label_selection", "options": options}}
    asked.change("POST", f"/api/v1/datasets/{made}/questions", **asks)
    asked.change("PUT", f"/api/v1/datasets/{made}/publish")
    with pytest.raises(UserError, match="there already, one that asks nothing that mmpo asks"):
        asked.push()


def test_a_half_made_dataset_is_completed(asked: Asked) -> None:
    """What a push leaves that is killed between its first requests: a draft with some of its fields."""
    half_made(asked, {"name": "prompt", "title": "x", "required": True, "settings": {"type": "chat", "use_markdown": True}})
    assert asked.push()["sent"] == 6
    assert len(asked.records()) == 6


def test_an_edited_record_is_reported_and_not_touched(asked: Asked) -> None:
    asked.push()
    edited = asked.record("Question 3?")
    fields = asked.edit(edited, reply_a="something else")
    summary = asked.push()
    assert (summary["left_out"], summary["unchanged"], summary["finished"]) == ({"edited_in_argilla": 1}, 5, False)
    assert asked.record("Question 3?")["fields"] == fields


def test_wiped_metadata_is_put_back_beside_what_others_added(asked: Asked) -> None:
    asked.push(2)
    before = {one["external_id"]: one["metadata"] for one in asked.records()}
    for one in asked.records():
        asked.change("PATCH", f"/api/v1/records/{one['id']}", metadata={"reviewer": "eva"})
    assert asked.push()["updated"] == 2
    assert {one["external_id"]: one["metadata"] for one in asked.records()} == {
        own: {**metadata, "reviewer": "eva"} for own, metadata in before.items()
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"questions": "pair"}, "did you mean 'pairs'"),
        ({"select": "least"}, "select: 'least' is not 'random'"),
        ({"limit": 0}, "limit: 0 is not 1 or more"),
        ({"scale": (5, 5)}, "LOW:HIGH"),
        ({"scale": (0, 11)}, "LOW:HIGH"),
        ({"scale": (0, 10)}, "--scale is for --questions ratings"),
        ({"much_better": 2.0}, "it needs --suggest"),
        ({"seed": -1}, "seed: -1 is not 0 or more"),
        ({"aspects": ("Tone!",)}, "small letters"),
        ({"pairs": "random"}, "random:k"),
        ({"suggest": True}, "no judge or reward model graded"),
        ({"select": "uncertain"}, "needs margins with a standard error"),
        ({"judge": "gpt"}, "unknown rater"),
        ({"guidelines": "/nowhere/g.md"}, "can't be read"),
    ],
)
def test_wrong_options_are_told_before_anything_is_made(asked: Asked, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        asked.push(**options)
    with pytest.raises(StopIteration):
        _ = asked.dataset


def test_the_command(asked: Asked) -> None:
    done = asked.mmpo("push", feedback(asked.folder / "f"), "--raters", "3", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["sent"] == 6 and "6 new records" in done.stderr
    assert asked.argilla.owner_key not in done.stdout + done.stderr
    assert asked.dataset["distribution"]["min_submitted"] == 3


def test_a_limit_does_not_narrow_what_the_dataset_can_hold(asked: Asked) -> None:
    """Prompts of 2 to 5 replies, one pushed first: all others fit in afterwards, and only two replies are asked for in any case."""
    rows = [{"prompt": f"Q{i}", "completions": [f"reply {j} of {i}" for j in range(i)]} for i in (2, 3, 4, 5)]
    assert asked.push(rows, questions="ratings", limit=1)["sent"] == 1
    assert asked.push(questions="ratings")["sent"] == 3
    required = [one["name"] for one in asked.get(f"{asked.path}/fields")["items"] if one["required"]]
    assert required == ["prompt", "reply_a", "reply_b"]
    asked.answer("anna", asked.record("Q2"), rating_a=1, rating_b=5)


def test_suggested_ratings_need_ratings(asked: Asked, tmp_path: Path) -> None:
    rows = [{"prompt": f"Q{i}", "first": "x", "second": "y", "gap": 1} for i in range(3)]
    judged = feedback(tmp_path / "judged", rows, kind="ai", rater="judge-a", scale=(-3, 3))
    with pytest.raises(UserError, match="needs AI ratings"):
        asked.push(judged, questions="ratings", suggest=True)
