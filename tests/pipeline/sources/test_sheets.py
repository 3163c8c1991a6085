"""Published sets and exports that were saved as CSV: every format's own example says the same there as in JSON lines."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from folders import write_rows
from source_cases import collected, graded_texts, reasons, sample_options

from mmpo.pipeline import build, load_pairs
from mmpo.pipeline.sources import SOURCES

SAMPLES = {
    f"{name} {place}": (name, one)
    for name, source in SOURCES.items()
    for place, one in enumerate(source.samples)
    if name not in ("jsonl", "csv") and not source.unfold and not isinstance(one.content, str)
}


@pytest.mark.parametrize("written", ["as pandas writes it", "with JSON in its cells"])
@pytest.mark.parametrize("name", SAMPLES)
def test_every_example_from_csv(name: str, written: str, tmp_path: Path) -> None:
    format, sample = SAMPLES[name]
    rows = [dict(row) for row in sample.content]  # type: ignore[arg-type]
    files = [write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "rows.csv"]
    if written == "with JSON in its cells":
        rows = [
            {key: json.dumps(value) if isinstance(value, (list, dict)) else value for key, value in row.items()} for row in rows
        ]
    pd.DataFrame(rows).to_csv(files[1], index=False)
    found = []
    for given in files:
        build(given, tmp_path / f"{given.suffix}.out", options=sample_options(format, sample))
        pairs = load_pairs(tmp_path / f"{given.suffix}.out").to_pylist()
        found.append([(pair["chosen"][0]["content"], pair["rejected"][0]["content"], pair["quality_margin"]) for pair in pairs])
    assert found[0] == found[1] and found[0][0][0] == "Mars, the red one."


HELPSTEER = "prompt,response,helpfulness,correctness,coherence,complexity,verbosity\n4,5,4,4,4,2,1\n4,True, 0,4,4,n/a,1\n"


def test_texts_stay_texts_and_other_words_are_refused(tmp_path: Path) -> None:
    """A prompt "4" with the replies "5" and "True"; a space before a number is none of it, and n/a is no number."""
    (tmp_path / "hs.csv").write_text(HELPSTEER)
    found = collected(tmp_path / "hs.csv", "helpsteer")
    assert graded_texts(found)[0] == ("4", "5", 4.0, "annotators", "helpfulness")
    assert [text for _, text, *_ in graded_texts(found)] == ["5"] * 5
    assert reasons(found) == {"score_not_a_number": 1}
    (tmp_path / "hs.csv").write_text(HELPSTEER.replace("n/a", "2"))
    assert graded_texts(collected(tmp_path / "hs.csv", "helpsteer"))[5] == ("4", "True", 0.0, "annotators", "helpfulness")


def test_columns_of_no_example_have_their_kinds(tmp_path: Path) -> None:
    """A deleted message is none, "False" is not true; a second evaluation of a chat is one."""
    message = {
        "message_id": "t",
        "parent_id": None,
        "message_tree_id": "t",
        "role": "prompter",
        "text": "Q",
        "rank": None,
        "deleted": False,
    }
    replies = [
        {**message, "message_id": text, "parent_id": "t", "role": "assistant", "text": text, "rank": n, "deleted": gone}
        for n, (text, gone) in enumerate((("a", False), ("b", True), ("c", False)))
    ]
    found = collected(write_rows(tmp_path / "oasst.csv", [message, *replies]), "oasst")
    assert graded_texts(found) == [("Q", "a", 0.0, "people", "overall"), ("Q", "c", -2.0, "people", "overall")]
    assert reasons(found) == {"deleted": 1}
    votes: list[dict[str, Any]] = [
        {"model_a": "m", "model_b": "n", "prompt": '["Q"]', "response_a": '["a"]', "response_b": '["b"]', "winner_model_a": 1,
         "winner_model_b": 0, "winner_tie": 0, "evaluation_order": order} for order in (1, 2)
    ]  # fmt: skip
    found = collected(write_rows(tmp_path / "arena.csv", votes), "arena")
    assert (len(graded_texts(found)), reasons(found)) == (1, {"earlier_turns_missing": 1})


def test_numbers_of_pairs_need_no_decimal_mark(tmp_path: Path) -> None:
    rows = [{"prompt": "Q", "chosen": "a", "rejected": "b", "score_chosen": 4.5, "score_rejected": 2}]
    found = graded_texts(collected(write_rows(tmp_path / "rows.csv", rows), "trl"))
    assert found == [("Q", "a", 4.5, "rows", "overall"), ("Q", "b", 2.0, "rows", "overall")]
