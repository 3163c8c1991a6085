"""Inputs that no grade or no pair is left of: what was left out, how often, and what keeps it; what was decided is not asked again."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from folders import write_rows

from mmpo.annotate.exports import export
from mmpo.pipeline import BuildOptions, build, build_pairs, load_pairs, read_feedback
from mmpo.pipeline.build import peek
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.tables import FEEDBACK

PAIR = {"prompt": "Q", "chosen": "a", "rejected": "b", "margin": 1}
SAME = PAIR | {"rejected": "a"}


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("assistant", "user")[place % 2], "content": text} for place, text in enumerate(texts)]


SEVERAL = PAIR | {"chosen": turns("a", "b", "c"), "rejected": turns("a", "b", "d")}


def refused(path: Path, rows: list[dict[str, Any]], format: str = "trl", **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        build(write_rows(path / "rows.jsonl", rows), path / "out", options=BuildOptions(format, **options))
    return str(caught.value)


def test_rows_that_are_all_left_out_are_counted_by_reason(tmp_path: Path) -> None:
    assert refused(tmp_path, [SAME, SEVERAL, SAME]) == (
        "no grade of the input is left, so that there are no pairs (3 of 3 lines left out). Left out: identical_texts 2 (both replies say "
        "the same, so that there is no margin); several_messages 1 (a reply is one message; put those before it into the prompt, where "
        f"both replies share them). First: {tmp_path}/rows.jsonl, line 1: identical_texts"
    )
    with pytest.raises(
        UserError, match=r"^no row of the input is left \(1 of 1 lines left out\)\. Left out: identical_texts 1 \(both"
    ):
        read_feedback(write_rows(tmp_path / "one.jsonl", [SAME]), "trl")
    empty = [{"prompt": "Q", "completion": text, "score": None} for text in "ab"]
    message = refused(tmp_path, empty, "jsonl")
    assert (
        "(0 of 2 lines left out). Left out: no_grade 2 (an empty grade; --columns names another column, --feedback-only reads"
        in message
    )


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ({"margin": 0}, {"ties": "drop"}, "tie 1 (margin 0; --ties keep keeps them)"),
        ({"chosen": "aa"}, {"max_chars": 1}, "over_long 1 (longer than --max-chars)"),
        ({}, {"min_margin": 2}, "min_margin 1 (a margin below --min-margin)"),
        ({}, {"min_raters": 2}, "min_raters 1 (fewer raters who graded both sides than --min-raters)"),
        (
            {"rejected": "<think>b</think>"},
            {"graded_part": "answer"},
            "thinking_only 1 (a reply is thinking without an answer; --thinking keep with --graded-part all keeps them)",
        ),
    ],
)
def test_pairs_that_are_all_left_out_come_with_what_keeps_them(
    change: dict[str, Any], options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    message = refused(tmp_path, [PAIR | change], **options)
    assert said in message and "no_pair 1 (prompts whose pairs were all left out)" in message
    assert not (tmp_path / "out").exists()


def test_candidates_without_grades_are_said(tmp_path: Path) -> None:
    rows = [{"prompt": "Q", "completions": ["a", "b"]}]
    feedback = read_feedback(write_rows(tmp_path / "rows.jsonl", rows), "jsonl", need_scores=False)
    with pytest.raises(UserError, match="the input holds no grades, only candidates: mmpo judge and mmpo argilla add some"):
        build_pairs(feedback)
    with pytest.raises(UserError, match="the input holds no grades"):
        build_pairs(pa.Table.from_pylist([], FEEDBACK))


@pytest.mark.parametrize(("options", "asked"), [({}, True), ({"thinking": "drop"}, False), ({"graded_part": "answer"}, False)])
def test_thinking_is_asked_about_until_it_is_decided(options: dict[str, str], asked: bool, tmp_path: Path) -> None:
    thinks = PAIR | {"chosen": [{"role": "assistant", "content": "a", "reasoning_content": "hm"}], "rejected": turns("b")}
    path = write_rows(tmp_path / "rows.jsonl", [thinks])
    given = BuildOptions("trl", **options)
    for warnings in (build(path, tmp_path / "out", options=given)["warnings"], peek([path], given)["warnings"]):
        assert any("--graded-part answer says" in line for line in warnings) == asked


@pytest.mark.parametrize("to", ["trl-dpo", "trl-reward"])
def test_our_own_exports_are_read_by_the_names_of_their_columns(to: str, tmp_path: Path) -> None:
    rows = [PAIR | {"prompt": f"Q{i}", "margin": i} for i in range(1, 30)]
    build(write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "pairs", options=BuildOptions("trl"))
    export(tmp_path / "pairs", to, tmp_path / "exported")
    build(tmp_path / "exported", tmp_path / "again", options=BuildOptions("trl"))
    columns = ["prompt_id", "chosen_id", "quality_margin"]
    assert load_pairs(tmp_path / "again").select(columns).equals(load_pairs(tmp_path / "pairs").select(columns))
    both = {**rows[0], "quality_margin": 9}
    [pair] = build_pairs(read_feedback(write_rows(tmp_path / "both.jsonl", [both]), "trl")).to_pylist()
    assert pair["quality_margin"] == 1
