"""`mmpo argilla status`: what is complete, who has done how much and what is left to whom, agreement so far; nothing is written."""

import json

import pytest
from argilla_cases import Asked
from folders import contents

from mmpo.annotate.argilla import status
from mmpo.cli.main import run
from mmpo.pipeline.errors import UserError


def test_status_counts_records_people_and_agreement(asked: Asked) -> None:
    """Six records for two people each: anna answers four, ben the first two alike, discards the third and drafts the fourth."""
    asked.push(6, raters=2)
    records = asked.records()
    for record, grade in zip(records, ("2", "-1", "3", "1")):
        asked.answer("anna", record, grade=grade)
    for record, grade in zip(records, ("2", "-1")):
        asked.answer("ben", record, grade=grade)
    asked.answer("ben", records[2], "discarded")
    asked.answer("ben", records[3], "draft", grade="1")
    found = status(asked.name, asked.argilla.workspace, api_url=asked.argilla.api_url, real_names=True)
    assert (found["records"], found["raters_wanted"], found["complete"], found["begun"], found["untouched"]) == (6, 2, 2, 2, 2)
    people = {one["name"]: one for one in found["people"]}
    # of the four that are open anna has done two, ben has discarded one; a draft is still to be done
    assert [people["anna"][key] for key in ("submitted", "draft", "discarded", "left")] == [4, 0, 0, 2]
    assert [people["ben"][key] for key in ("submitted", "draft", "discarded", "left")] == [2, 1, 1, 3]
    assert people["anna"]["last"] and found["grades"] == 6
    [two] = found["agreement"]["pairs"]
    assert (two["units"], two["accuracy"]) == (2, 1.0)


def test_the_command_hides_names_unless_asked_and_writes_nothing(asked: Asked) -> None:
    asked.push(2)
    asked.answer("anna", asked.records()[0], grade="1")
    before = contents(asked.folder)
    words = ["argilla", "status", asked.name, "--workspace", asked.argilla.workspace]
    done = asked.run(*words)
    assert done.returncode == 0 and "1 of 2 records complete (50%), with 1 answer each" in done.stderr
    assert "anna" not in done.stderr and "--real-names" in done.stderr
    assert asked.run("argilla", "status", "--dataset", asked.name, *words[3:]).stderr == done.stderr
    named = asked.run(*words, "--real-names", "--json")
    assert "anna" in named.stderr and "pseudonyms" not in named.stderr
    assert json.loads(named.stdout)["people"][0]["submitted"] == 1
    assert contents(asked.folder) == before
    assert "--real-names" in asked.mmpo("pull", "--out", asked.out).stderr


def test_before_anybody_answers_and_of_no_dataset(asked: Asked) -> None:
    asked.push(2)
    found = status(asked.name, asked.argilla.workspace, api_url=asked.argilla.api_url)
    assert (found["complete"], found["untouched"], found["agreement"]) == (0, 2, None)
    assert found["agreement_note"] == "nobody has submitted an answer yet"
    assert all(one["submitted"] == 0 and one["left"] == 2 for one in found["people"])
    with pytest.raises(UserError, match="no dataset 'other'"):
        status("other", asked.argilla.workspace, api_url=asked.argilla.api_url)


@pytest.mark.parametrize(
    ("words", "said"), [((), "no dataset is named"), (("one", "--dataset", "two"), "two datasets are named (one, --dataset two)")]
)
def test_the_one_dataset_is_named_once(words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["argilla", "status", *words]) == 2
    told = capsys.readouterr().err
    assert said in told and "mmpo argilla status --dataset NAME" in told
