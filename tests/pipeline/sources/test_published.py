"""Published sets: every trap that a format declares, the real files, columns that are gone, and what the formats say of themselves."""

import json
from pathlib import Path
from typing import Any

import pytest
from folders import pairs_folder, write_rows
from source_cases import collected, graded_texts, reasons

from mmpo.cli.main import run
from mmpo.pipeline import load_pairs
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.sources import SOURCES

GOOD, BAD = "Mars, the red one.", "The moon."
Rows = list[dict[str, Any]]
Case = tuple[Rows, list[tuple[Any, ...]], dict[str, int]]
"""Rows, what is read of them (see `graded_texts`), and how much was left out for what reason."""


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 9, texts)]


HS = dict(zip(("correctness", "coherence", "complexity", "verbosity"), (4, 4, 2, 1)))
HS2 = {"prompt": "Ask", "response_1": "a", "response_2": "b"}
HS3 = {"context": "Ask", "response1": "a", "response2": "b", "overall_preference": -2}
MARKED = "Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nAsk\n"
STRENGTHS = [{"strength": -1, "justification": "it's a"}, {"strength": -100, "justification": "x"}, {"strength": 2}]


def helpsteer(response: str, helpfulness: Any, prompt: str = "Ask") -> dict[str, Any]:
    return {"prompt": prompt, "response": response, "helpfulness": helpfulness, **HS}


def rated(text: str, helpfulness: float, prompt: str = "Ask", rater: str = "annotators") -> list[tuple[Any, ...]]:
    return [(prompt, text, score, rater, aspect) for aspect, score in {"helpfulness": helpfulness, **HS}.items()]


CASES: dict[tuple[str, str], Case] = {
    ("helpsteer", "marked turns"): ([helpsteer("a", 3, MARKED)], rated("a", 3.0, "Hi|Hello|Ask"), {}),
    ("helpsteer2", "marked turns"): (
        [{**HS2, "prompt": MARKED, "preference_strength": -1}], [("Hi|Hello|Ask", "a", "b", 1.0, "annotators", "overall")], {}),
    **{(name, "scattered rows"): (
        [helpsteer("a", 3), helpsteer("x", 1, "Other"), helpsteer("b", 0)],
        [*rated("a", 3.0), *rated("x", 1.0, "Other"), *rated("b", 0.0)], {})
       for name in ("helpsteer", "helpsteer2")},
    ("helpsteer2", "sign"): ([{**HS2, "preference_strength": 3}], [("Ask", "a", "b", -3.0, "annotators", "overall")], {}),
    ("helpsteer2", "neither"): (
        [{**HS2, "preference_strength": 1, "all_preferences_unprocessed": STRENGTHS}],
        [("Ask", "a", "b", 1.0, "annotator 1", "overall"), ("Ask", "a", "b", -2.0, "annotator 3", "overall")],
        {"neither_reply_fits": 1}),
    ("helpsteer2", "preferences as text"): (
        [{**HS2, "preference_strength": 1, "all_preferences_unprocessed": repr(STRENGTHS)}],
        [("Ask", "a", "b", 1.0, "annotator 1", "overall"), ("Ask", "a", "b", -2.0, "annotator 3", "overall")],
        {"neither_reply_fits": 1}),
    ("helpsteer3", "sign"): ([HS3], [("Ask", "a", "b", 2.0, "annotators", "overall")], {}),
    ("helpsteer3", "ties"): ([{**HS3, "overall_preference": 0}], [("Ask", "a", "b", 0.0, "annotators", "overall")], {}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_traps(tmp_path: Path, case: tuple[str, str]) -> None:
    rows, expected, left_out = CASES[case]
    result = collected(write_rows(tmp_path / "rows.jsonl", rows), case[0])
    assert graded_texts(result) == expected
    assert reasons(result) == left_out


def test_every_trap_that_a_format_declares_has_a_test() -> None:
    declared = {(name, trap) for name, source in SOURCES.items() for trap in source.traps}
    assert declared == set(CASES)


PUBLISHED = [name for name, source in SOURCES.items() if source.direction]


@pytest.mark.parametrize("format", PUBLISHED)
def test_a_published_format_says_what_it_is(format: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = SOURCES[format]
    assert all((source.range, source.direction, source.licence, source.requires, source.samples))
    assert run(["formats", format]) == 0
    told = capsys.readouterr().out
    assert [name for name in ("requires", "range", "direction", "licence", "score", "evidence") if f"{name} " not in told] == []
    assert [text for text in (source.direction, source.licence, *source.traps.values()) if text not in told] == []
    assert [sample.title for sample in source.samples if sample.title not in told] == []


@pytest.mark.parametrize("format", PUBLISHED)
def test_a_column_that_is_gone_is_named_with_the_file(tmp_path: Path, format: str) -> None:
    """Of each layout, each column that it needs."""
    for sample in SOURCES[format].samples:
        rows = [json.loads(line) for line in sample.text.splitlines()]
        needed = next(columns for columns in SOURCES[format].requires if columns <= set().union(*rows))
        for column in sorted(needed):
            lacking = [{name: value for name, value in row.items() if name != column} for row in rows]
            if any(columns <= set().union(*lacking) for columns in SOURCES[format].requires):
                continue  # what is left is another layout
            with pytest.raises(UserError) as caught:
                collected(write_rows(tmp_path / "rows.jsonl", lacking), format)
            assert "rows.jsonl" in str(caught.value)
            assert repr(column) in str(caught.value)


@pytest.mark.parametrize("format", PUBLISHED)
def test_a_row_without_a_column_costs_that_row_and_is_counted(tmp_path: Path, format: str) -> None:
    """Behind a whole row one row that lacks one of the texts or the grades of its layout: counted, nothing made up in their place."""
    for sample in SOURCES[format].samples:
        rows = [json.loads(line) for line in sample.text.splitlines()]
        whole = collected(write_rows(tmp_path / "rows.jsonl", rows), format)
        needed = next(columns for columns in SOURCES[format].requires if columns <= set().union(*rows))
        for column in sorted(needed):
            lacking = [*rows, {name: value for name, value in rows[0].items() if name != column}]
            found = collected(write_rows(tmp_path / "rows.jsonl", lacking), format)
            assert found.lines == whole.lines + 1
            more = graded_texts(found)[len(graded_texts(whole)) :]
            assert found.rejects.num_rows > whole.rejects.num_rows or all(one in graded_texts(whole) for one in more), column
            if found.rejects.num_rows > whole.rejects.num_rows:
                assert found.rejects["row"].to_pylist()[-1] == len(lacking)


@pytest.mark.parametrize(
    ("file", "format", "found"),
    [
        ("layouts/helpsteer2_train.jsonl", "helpsteer2", {"grade": 10, "prompt": 2}),
        ("layouts/helpsteer2_train.jsonl", "helpsteer", {"grade": 10, "prompt": 2}),
        ("layouts/helpsteer2_disagreements.jsonl", "helpsteer2", {"grade": 15, "prompt": 1}),
        ("layouts/helpsteer2_preference.jsonl", "helpsteer2", {"grade": 1, "prompt": 1}),
    ],
)
def test_real_files(real_data: Path, file: str, format: str, found: dict[str, int]) -> None:
    result = collected(real_data / "raw" / file, format)
    assert {name: result.counts[name] for name in found} == found
    assert result.limited == 0


def test_helpsteer2_ratings_and_preferences_take_the_score_that_fits(tmp_path: Path) -> None:
    """Ratings by the published weights: 0.65 * (3 - 0) = 1.95; preferences, which have no aspects, as they are."""
    [pair] = load_pairs(pairs_folder(tmp_path / "a", [helpsteer("a", 3), helpsteer("b", 0)], format="helpsteer2")).to_pylist()
    assert (pair["chosen"][0]["content"], pair["quality_margin"]) == ("a", pytest.approx(1.95))
    both = [{**HS2, "preference_strength": 3}]
    [pair] = load_pairs(pairs_folder(tmp_path / "b", both, format="helpsteer2")).to_pylist()
    assert (pair["chosen"][0]["content"], pair["quality_margin"]) == ("b", 3.0)
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["score"]["helpfulness"] == 0.65
