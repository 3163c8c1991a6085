"""Prompts that stand alone beside rows that have replies: candidates are to be written for them."""

import pytest
from folders import write_rows
from source_cases import collected, graded_texts, reasons

GRADED = {
    "ratings": {"prompt": "Name a planet.", "completion": "Mars.", "score": 5},
    "prompts": {"prompt": "Name a planet.", "completions": ["Mars.", "The moon."], "scores": [5, 2]},
    "objects": {"prompt": "Name a planet.", "completions": [{"text": "Mars.", "score": 5}, {"text": "The moon.", "score": 2}]},
    "pairs": {"prompt": "Name a planet.", "chosen": "Mars.", "rejected": "The moon.", "score_chosen": 5, "score_rejected": 2},
}
BARE = {"prompt": "Name a colour."}


@pytest.mark.parametrize("name", GRADED)
@pytest.mark.parametrize("first", ["bare", "graded"])
def test_a_prompt_may_stand_alone_beside_rows_with_replies(name, first, tmp_path):
    rows = [BARE, GRADED[name], {**BARE, "prompt": "Name a river."}]
    path = write_rows(tmp_path / "rows.jsonl", rows if first == "bare" else rows[1:])
    (tmp_path / "alone").mkdir()
    alone = collected(write_rows(tmp_path / "alone" / "rows.jsonl", [GRADED[name]]), "jsonl", bare_prompts=True)
    mixed = collected(path, "jsonl", bare_prompts=True)
    assert reasons(mixed) == {} and graded_texts(mixed) == graded_texts(alone) != []
    assert len(mixed.feedback) - len(alone.feedback) == (2 if first == "bare" else 1)
    assert reasons(collected(path, "jsonl")) != {}  # unless asked for, a reply is lacking


def test_a_grade_without_its_reply_is_no_bare_prompt(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [GRADED["ratings"], {**BARE, "score": 3}])
    assert sum(reasons(collected(path, "jsonl", bare_prompts=True)).values()) == 1
