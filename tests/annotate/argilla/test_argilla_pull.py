"""Pull: submitted answers as grades, in the order shown; incremental; with judges; and what people changed in the meantime."""

import json
from pathlib import Path
from typing import Any

import pytest
from argilla_cases import Asked, feedback, rejected
from cases import comparisons, ratings

from mmpo.annotate.agreement import agree
from mmpo.pipeline import BuildOptions, build, load_feedback, load_pairs, validate
from mmpo.pipeline.errors import UserError


def toward(record: dict[str, Any], better: str, size: int) -> str:
    """The grade that says that the reply with this text is better by `size`."""
    return str(size if record["fields"]["reply_a"].startswith(better) else -size)


def test_submitted_answers_become_grades_in_the_order_shown(asked: Asked) -> None:
    """anna: `Answer 0` better by i % 4 in every pair; ben: a draft, a discard and one answer. First is what A showed."""
    asked.push()
    records = {one["fields"]["prompt"][0]["content"]: one for one in asked.records()}
    for i in range(6):
        record = records[f"Question {i}?"]
        asked.answer("anna", record, grade=toward(record, "Answer 0", i % 4), rationale=f"reason {i}")
    asked.answer("ben", records["Question 0?"], "draft", grade="3")
    asked.answer("ben", records["Question 1?"], "discarded")
    asked.answer("ben", records["Question 2?"], grade=toward(records["Question 2?"], "Answer 0", 1))
    summary = asked.pull()
    assert (summary["grades"], summary["new"], summary["finished"]) == (7, 7, True)
    assert summary["responses"] == {"used": 7, "draft": 1, "discarded": 1}
    found = comparisons(asked.out)
    assert len(found) == 7
    for one in found:
        i = int(one["prompt"].split()[1].rstrip("?"))
        sign = 1 if one["first_text"].startswith("Answer 0") else -1
        assert one["gap"] * sign == (i % 4 if one["note"] else 1)
        assert (one["kind"], one["limit"], one["aspect"], one["spread"]) == ("human", 3.0, "overall", None)
        assert one["first_text"] == records[one["prompt"]]["fields"]["reply_a"]
        assert one["note"] == (f"reason {i}" if one["note"] else None)
    assert {one["first_text"].split()[1] for one in found} == {"0", "1"}
    assert rejected(asked.out) == {"draft": 1, "discarded": 1}
    models = {one["text"]: one["model"] for row in load_feedback(asked.out).to_pylist() for one in row["completions"]}
    assert models["Answer 0 to question 0."] == "small" and models["Answer 1 to question 0."] == "large"
    counts = json.loads((asked.out / "manifest.json").read_text())["counts"]["pull"]["response"]
    assert counts == {"in": 9, "created": 0, "out": 7, "merged": 0, "dropped": {"discarded": 1, "draft": 1}}
    assert {check["status"] for check in validate(asked.out)["checks"]} == {"pass"}


def test_raters_are_pseudonyms_unless_asked(asked: Asked) -> None:
    asked.push(2)
    asked.answer_all("anna", grade="1")
    asked.pull()
    [rater] = {one["rater"] for one in comparisons(asked.out)}
    assert rater.startswith("rater-") and len(rater) == 16
    written = b"".join(path.read_bytes() for path in asked.out.rglob("*") if path.is_file())
    assert b"anna" not in written and asked.argilla.owner_key.encode() not in written
    asked.pull("real", real_names=True)
    assert {one["rater"] for one in comparisons(asked.folder / "real")} == {"anna"}
    with pytest.raises(UserError, match="was pulled with --real-names"):
        asked.pull("real")


def test_a_second_pull_adds_what_is_new_and_takes_changes(asked: Asked) -> None:
    asked.push(4)
    records = asked.records()
    for record, grade in zip(records, "321"):
        asked.answer("anna", record, grade=grade)
    assert asked.pull()["new"] == 3
    before = load_feedback(asked.out)
    same = asked.pull()
    assert (same["new"], same["unchanged"], same["changed"]) == (0, 3, 0)
    assert load_feedback(asked.out).equals(before)
    asked.answer("anna", records[0], grade="-3", rationale="on second thoughts")
    asked.answer("anna", records[1], "discarded")
    asked.answer("anna", records[3], grade="0")
    asked.answer("ben", records[0], grade="1")
    then = asked.pull()
    assert (then["new"], then["changed"], then["unchanged"], then["withdrawn"], then["kept"]) == (2, 1, 1, 1, {})
    assert sorted(one["gap"] for one in comparisons(asked.out)) == [-3.0, 0.0, 1.0, 1.0]
    assert [one["note"] for one in comparisons(asked.out) if one["gap"] == -3.0] == ["on second thoughts"]
    asked.pull("fresh")
    assert load_feedback(asked.folder / "fresh").equals(load_feedback(asked.out))


def test_ratings_come_back_to_their_replies(asked: Asked) -> None:
    rows = [{"prompt": f"Q{i}", "completions": [f"reply {j} of {i}" for j in range(4)]} for i in range(3)]
    asked.push(rows, questions="ratings", aspects=("overall", "tone"))
    for record in asked.records():
        values: dict[str, Any] = {}
        for letter in "abcd":
            place = int(record["fields"][f"reply_{letter}"].split()[1])
            values |= {f"rating_{letter}": place + 1, f"rating_{letter}_tone": 5 - place}
        asked.answer("anna", record, **values)
    summary = asked.pull()
    assert (summary["grades"], summary["responses"]) == (24, {"used": 3})
    for one in ratings(asked.out):
        place = int(one["text"].split()[1])
        assert one["score"] == (place + 1 if one["aspect"] == "overall" else 5 - place)
        assert (one["low"], one["high"], one["kind"]) == (1.0, 5.0, "human")
    build(asked.out, asked.folder / "p", options=BuildOptions(format="feedback", aspects=("overall",)))
    table = load_pairs(asked.folder / "p")
    assert table.num_rows == 18
    assert all(row["chosen"][0]["content"] > row["rejected"][0]["content"] for row in table.to_pylist())


def test_people_beside_judges(asked: Asked) -> None:
    """--feedback adds people's grades to a folder with a judge's, so that `mmpo agree` compares them; people who agree with it."""
    rows = [{"prompt": f"Q{i}?", "first": "Answer 0", "second": "Answer 1", "gap": (-1) ** i * (i % 3 + 1)} for i in range(8)]
    judged = feedback(asked.folder / "judged", rows, kind="ai", rater="judge-a", scale=(-3, 3))
    asked.push(judged, suggest=True)
    for record in asked.records():
        asked.answer("anna", record, grade=record["suggestions"][0]["value"])
    summary = asked.pull(feedback=str(judged))
    assert summary["finished"] and summary["grades"] == 8
    table = load_feedback(asked.out)
    assert table.num_rows == 8
    assert all({one["kind"] for one in row["comparisons"]} == {"ai", "human"} for row in table.to_pylist())
    assert set(table["source"].to_pylist()) == set(load_feedback(judged)["source"].to_pylist())
    found = agree(asked.out, bootstrap=0)
    assert found["overall"]["all"]["alpha_interval"] == pytest.approx(1.0)
    assert [row["accuracy"] for row in found["against"] if row["kind"] == "ai"] == [1.0]
    again = asked.pull(feedback=str(judged))
    assert (again["new"], again["unchanged"]) == (0, 8) and load_feedback(asked.out).equals(table)
    with pytest.raises(UserError, match="was pulled with --feedback judged"):
        asked.pull()


def test_an_answer_for_a_pair_that_is_no_longer_in_the_data(asked: Asked) -> None:
    """The feedback was made anew without one of its prompts, and one reply of another was replaced: 2 of 6 find no place."""
    asked.push()
    asked.answer_all("anna", grade="1")
    rows = [{"prompt": f"Question {i}?", "completions": [f"Answer {j} to question {i}." for j in (0, 7 if i == 1 else 1)]}
            for i in range(1, 6)]  # fmt: skip
    summary = asked.pull(feedback=str(feedback(asked.folder / "new", rows)))
    assert (summary["grades"], summary["left_out"], summary["finished"]) == (4, {"not_in_feedback": 2}, False)
    assert rejected(asked.out) == {"not_in_feedback": 2}
    assert load_feedback(asked.out).num_rows == 5
    assert {one["prompt"] for one in comparisons(asked.out)} == {f"Question {i}?" for i in (2, 3, 4, 5)}


def test_edited_foreign_and_wiped_records(asked: Asked) -> None:
    """A record whose text was edited proves nothing any more; one without metadata still proves its texts, but has lost its models."""
    asked.push(3)
    fields = {"prompt": [{"role": "user", "content": "Mine"}], "reply_a": "x", "reply_b": "y"}
    asked.change("PUT", f"{asked.path}/records/bulk", items=[{"external_id": "17", "fields": fields}, {"fields": fields}])
    records = asked.answer_all("anna", grade="2")
    edited, wiped = [one for one in records if "Question" in one["fields"]["prompt"][0]["content"]][:2]
    asked.edit(edited, reply_b="polished by somebody")
    asked.change("PATCH", f"/api/v1/records/{wiped['id']}", metadata={})
    summary = asked.pull()
    assert (summary["grades"], summary["metadata_missing"], summary["finished"]) == (2, 1, False)
    assert summary["left_out"] == {"record_edited": 1, "foreign_record": 2}
    assert summary["records"] == {"used": 2, "record_edited": 1, "foreign_record": 2}
    by_prompt = {row["prompt"][0]["content"]: row for row in load_feedback(asked.out).to_pylist()}
    row = by_prompt[wiped["fields"]["prompt"][0]["content"]]
    assert [one["model"] for one in row["completions"]] == [None, None] and row["source"] == f"argilla:{asked.name}"


def test_a_reworded_question_is_not_guessed_at(asked: Asked) -> None:
    """Somebody swapped two labels on Argilla's page: what answers mean is not known, unless the user says so. Those that were pulled
    before stay.
    """
    asked.push(2)
    asked.answer_all("anna", grade="3")
    asked.pull("before")
    question = asked.get(f"{asked.path}/questions")["items"][0]
    swapped = {"3": "B much better", "-3": "A much better"}
    options = [{**one, "text": swapped.get(one["value"], one["text"])} for one in question["settings"]["options"]]
    asked.change("PATCH", f"/api/v1/questions/{question['id']}", settings={"type": "label_selection", "options": options})
    with pytest.raises(UserError, match="no answer gives a grade \\(question_edited 2\\)"):
        asked.pull()
    assert not asked.out.exists()
    kept = asked.pull("before")
    assert (kept["kept"], kept["withdrawn"], kept["grades"]) == ({"question_edited": 2}, 0, 2)
    summary = asked.pull(trust_labels=True)
    assert (summary["grades"], summary["reworded"]) == (2, ["grade"])


@pytest.mark.slow
def test_deleted_users_and_records_keep_what_was_pulled(asked: Asked) -> None:
    """Argilla deletes a user's answers with the user: those that were pulled before stay, and it is told why they are gone."""
    asked.push(3)
    records = asked.answer_all("anna", grade="1")
    asked.answer_all("leaver", grade="-2")
    assert asked.pull()["grades"] == 6
    with asked.argilla.as_user("leaver") as leaver:
        own = leaver.get("/api/v1/me").json()["id"]
    asked.change("DELETE", f"/api/v1/users/{own}")
    asked.argilla.passwords.pop("leaver"), asked.argilla.keys.pop("leaver")
    asked.change("DELETE", f"/api/v1/records/{records[0]['id']}")
    summary = asked.pull()
    assert summary["kept"] == {"user_deleted": 2, "record_deleted": 2}
    assert (summary["grades"], summary["unchanged"], summary["finished"]) == (6, 2, True)
    assert sorted(one["gap"] for one in comparisons(asked.out)) == [-2.0] * 3 + [1.0] * 3
    again = asked.pull()
    assert (again["grades"], again["kept"]) == (6, summary["kept"])


def test_an_admin_may_pull_and_an_annotator_may_not(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    asked.push(2)
    asked.answer_all("anna", grade="1")
    with asked.argilla.as_user("anna") as anna:
        key = anna.get("/api/v1/me").json()["api_key"]
    monkeypatch.setenv("ARGILLA_API_KEY", key)
    with pytest.raises(UserError, match="belongs to 'anna', annotator, who may not do this") as caught:
        asked.pull()
    assert key not in str(caught.value)


@pytest.mark.slow
def test_the_command(asked: Asked) -> None:
    """Two raters of opposite opinions: α is negative, and the exit status says that one answer was left out."""
    asked.push(5)
    for i, record in enumerate(asked.records()):
        asked.answer("anna", record, grade=str(i % 3 + 1))
        asked.answer("ben", record, grade=str(-(i % 3) - 1))
    done = asked.mmpo("pull", "--out", asked.out, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["agreement"]["overall"]["all"]["alpha_interval"] < 0
    assert "all raters at once: α interval -" in done.stderr and "10 grades of 2 raters" in done.stderr
    asked.edit(asked.records()[0], reply_a="edited")
    done = asked.mmpo("pull", "--out", asked.out, "--json")
    assert done.returncode == 3 and "left out: record_edited 2" in done.stderr
    assert "kept from an earlier pull, gone from Argilla: record_edited 2" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("real_names", [False, True])
def test_a_folder_that_has_the_same_answers_counts_them_once(asked: Asked, tmp_path: Path, real_names: bool) -> None:
    """Two of four as before, one changed, one taken back: three stay, whichever names the first pull wrote."""
    asked.push(4)
    records = asked.answer_all("anna", grade="2")
    asked.pull("p0", real_names=real_names)
    same = asked.pull("same", feedback=str(tmp_path / "p0"))
    assert (same["grades"], same["replaced"]) == (4, 4)
    assert [one["gap"] for one in comparisons(tmp_path / "same")] == [2.0] * 4
    asked.answer("anna", records[0], grade="-3")
    asked.answer("anna", records[1], "discarded")
    then = asked.pull(feedback=str(tmp_path / "p0"))
    assert (then["grades"], then["replaced"]) == (3, 4)
    assert sorted(one["gap"] for one in comparisons(asked.out)) == [-3.0, 2.0, 2.0]
    again = asked.pull(feedback=str(tmp_path / "p0"))
    assert (again["unchanged"], again["replaced"]) == (3, 4) and len(comparisons(asked.out)) == 3


def test_a_rating_left_out_of_a_new_answer_is_taken_back(asked: Asked, tmp_path: Path) -> None:
    asked.push([{"prompt": "Q", "completions": [f"reply {j}" for j in range(3)]}], questions="ratings")
    [record] = asked.answer_all("anna", rating_a=1, rating_b=5, rating_c=4)
    assert asked.pull()["grades"] == 3
    asked.pull("p0")
    asked.answer("anna", record, rating_a=1, rating_b=5)
    summary = asked.pull()
    assert (summary["grades"], summary["withdrawn"], summary["kept"]) == (2, 1, {})
    assert sorted(one["score"] for one in ratings(asked.out)) == [1.0, 5.0]
    assert asked.pull("pd", feedback=str(tmp_path / "p0"))["replaced"] == 3
    assert sorted(one["score"] for one in ratings(tmp_path / "pd")) == [1.0, 5.0]
