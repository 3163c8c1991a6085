"""What comes a second time: pulls beside the same people's answers, answers submitted anew, smaller prompts; and refusals."""

from pathlib import Path
from typing import Any

import pytest
from argilla_cases import Asked, answer, comparisons, feedback, name, pairs, pulled, pushed, ratings, unlocked
from argilla_fixture import Argilla, ready_facts

from mmpo.annotate.argilla import KnownMargin, PushOptions, api_url_of, suggestion_of
from mmpo.annotate.argilla_server.home import new_users
from mmpo.annotate.argilla_server.serve import serve
from mmpo.cli.commands.argilla import say_ready
from mmpo.pipeline.errors import UserError


@pytest.fixture(autouse=True)
def _key(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "argilla" in request.fixturenames:
        unlocked(request.getfixturevalue("argilla"), monkeypatch)


@pytest.mark.parametrize("real_names", [False, True])
def test_a_folder_that_has_the_same_answers_counts_them_once(argilla: Argilla, tmp_path: Path, real_names: bool) -> None:
    """Two of four as before, one changed, one taken back: three stay, whichever names the first pull wrote."""
    dataset = name()
    pushed(argilla, feedback(tmp_path / "f", 4), dataset)
    records = Asked(argilla, dataset).records()
    for record in records:
        answer(argilla, "anna", record, grade="2")
    pulled(argilla, dataset, tmp_path / "p0", real_names=real_names)
    same = pulled(argilla, dataset, tmp_path / "same", feedback=str(tmp_path / "p0"))
    assert (same["grades"], same["replaced"]) == (4, 4)
    assert [one["gap"] for one in comparisons(tmp_path / "same")] == [2.0] * 4
    answer(argilla, "anna", records[0], grade="-3")
    answer(argilla, "anna", records[1], "discarded")
    then = pulled(argilla, dataset, tmp_path / "then", feedback=str(tmp_path / "p0"))
    assert (then["grades"], then["replaced"]) == (3, 4)
    assert sorted(one["gap"] for one in comparisons(tmp_path / "then")) == [-3.0, 2.0, 2.0]
    again = pulled(argilla, dataset, tmp_path / "then", feedback=str(tmp_path / "p0"))
    assert (again["unchanged"], again["replaced"]) == (3, 4) and len(comparisons(tmp_path / "then")) == 3


def test_a_limit_does_not_narrow_what_the_dataset_can_hold(argilla: Argilla, tmp_path: Path) -> None:
    """Prompts of 2 to 5 replies, one pushed first: all others fit in afterwards, and only two replies are asked for in any case."""
    rows = [{"prompt": f"Q{i}", "completions": [f"reply {j} of {i}" for j in range(i)]} for i in (2, 3, 4, 5)]
    dataset, data = name(), feedback(tmp_path / "f", rows)
    assert pushed(argilla, data, dataset, questions="ratings", limit=1)["sent"] == 1
    assert pushed(argilla, data, dataset, questions="ratings")["sent"] == 3
    asked = Asked(argilla, dataset)
    required = [one["name"] for one in asked.get(f"{asked.path}/fields")["items"] if one["required"]]
    assert required == ["prompt", "reply_a", "reply_b"]
    answer(argilla, "anna", asked.record("Q2"), rating_a=1, rating_b=5)


def test_a_rating_left_out_of_a_new_answer_is_taken_back(argilla: Argilla, tmp_path: Path) -> None:
    rows = [{"prompt": "Q", "completions": [f"reply {j}" for j in range(3)]}]
    dataset, out = name(), tmp_path / "out"
    pushed(argilla, feedback(tmp_path / "f", rows), dataset, questions="ratings")
    [record] = Asked(argilla, dataset).records()
    answer(argilla, "anna", record, rating_a=1, rating_b=5, rating_c=4)
    assert pulled(argilla, dataset, out)["grades"] == 3
    pulled(argilla, dataset, tmp_path / "p0")
    answer(argilla, "anna", record, rating_a=1, rating_b=5)
    summary = pulled(argilla, dataset, out)
    assert (summary["grades"], summary["withdrawn"], summary["kept"]) == (2, 1, {})
    assert sorted(one["score"] for one in ratings(out)) == [1.0, 5.0]
    assert pulled(argilla, dataset, tmp_path / "pd", feedback=str(tmp_path / "p0"))["replaced"] == 3
    assert sorted(one["score"] for one in ratings(tmp_path / "pd")) == [1.0, 5.0]


def test_answers_to_a_question_that_was_reworded_later_are_kept_for_that(argilla: Argilla, tmp_path: Path) -> None:
    dataset, out = name(), tmp_path / "out"
    pushed(argilla, feedback(tmp_path / "f", 2), dataset)
    asked = Asked(argilla, dataset)
    for record in asked.records():
        answer(argilla, "anna", record, grade="3")
    pulled(argilla, dataset, out)
    question = asked.get(f"{asked.path}/questions")["items"][0]
    asked.change("PATCH", f"/api/v1/questions/{question['id']}", title="Which is worse?")
    summary = pulled(argilla, dataset, out)
    assert (summary["kept"], summary["withdrawn"], summary["grades"]) == ({"question_edited": 2}, 0, 2)


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999", "http://[::1", "http://me:secret@host:port"])
def test_an_address_that_cannot_be_read_is_not_repeated(url: str) -> None:
    with pytest.raises(UserError, match="cannot be read") as caught:
        api_url_of(url)
    assert url not in str(caught.value) and "secret" not in str(caught.value)


def test_suggested_ratings_need_ratings(argilla: Argilla, tmp_path: Path) -> None:
    rows = [{"prompt": f"Q{i}", "first": "x", "second": "y", "gap": 1} for i in range(3)]
    judged = feedback(tmp_path / "judged", rows, kind="ai", rater="judge-a", scale=(-3, 3))
    with pytest.raises(UserError, match="needs AI ratings"):
        pushed(argilla, judged, name(), questions="ratings", suggest=True)


def test_nobody_has_two_roles(tmp_path: Path) -> None:
    for known, owner, annotators in (
        ({}, None, ["owner"]),
        ({}, "kim", ["kim"]),
        ({"kim": "owner"}, None, ["kim"]),
        ({"kim": "owner", "anna": "annotator"}, "anna", []),
    ):
        with pytest.raises(UserError, match=r"as owner|as annotator"):
            new_users(known, owner, annotators, [], {})
    with pytest.raises(UserError, match="--workspace: the name is empty"):
        serve(tmp_path / "home", agree=lambda question: False, ready=lambda facts: None, workspace="")
    assert not (tmp_path / "home").exists()


def test_names_in_printed_commands_are_quoted(capsys: pytest.CaptureFixture[str]) -> None:
    say_ready(ready_facts(workspace="our team; ls"), only_here=True)
    assert capsys.readouterr().err.count("--workspace 'our team; ls'") == 2


@pytest.mark.parametrize("se", [None, 0.0, 0.5])
def test_a_tiny_measure_of_much_better_is_the_outermost_grade(se: float | None) -> None:
    known = KnownMargin("a", 2.0, se, 0.0, 1, "ai")
    grade, score = suggestion_of(known, ("b", "a"), 1e-320)
    assert grade == "-3" and (score is None if se is None else score == pytest.approx(1.0, abs=1e-3))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"scale": (0, 10)}, "--scale is for --questions ratings"),
        ({"much_better": 2.0}, "it needs --suggest"),
        ({"seed": -1}, "seed: -1 is not 0 or more"),
    ],
)
def test_options_that_do_nothing_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        PushOptions(**options)


def test_a_tiny_measure_reaches_argilla(argilla: Argilla, tmp_path: Path) -> None:
    summary = pushed(argilla, pairs(tmp_path / "p", 2), name(), suggest=True, much_better=1e-320)
    assert summary["suggested"] == 2
