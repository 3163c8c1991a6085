"""What all formats share: real files as they were published, columns that are missing, options that mean nothing."""

import json
from math import log
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folders import write_rows
from source_cases import DATA, collected, reasons, ultrafeedback

from mmpo.cli.main import run
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.sources import SOURCES, get_source
from mmpo.pipeline.tables import FEEDBACK


@pytest.mark.parametrize(
    ("path", "lines", "found"),
    [
        ("claude-2/weighted_alpaca_eval_gpt4_turbo", 643, {"identical_texts": 1}),
        ("LMCocktail-10.7B-v1/alpaca_eval_gpt4", 83, {"not_annotated": 3}),
        ("Mistral-7B-Instruct-v0.2/alpaca_eval_cot_gpt4_turbo_fn", 80, {}),
    ],
)
def test_real_alpaca_eval(real_data: Path, path: str, lines: int, found: dict[str, int]) -> None:
    file = real_data / "raw/alpaca_eval/results" / path / "annotations.json"
    result = collected(file, "alpaca-eval")
    assert (result.lines, reasons(result), result.limited) == (lines, found, 0)
    kept = [row for row in json.loads(file.read_text()) if row["preference"] and row["output_1"] != row["output_2"]]
    scores = [row["ratings"][1]["score"] for row in result.feedback.to_pylist()]
    clipped = {1: -6.0, 2: 6.0}
    expected = [clipped[p] if p in clipped else max(-6, min(6, log((p - 1) / (2 - p)))) for p in (r["preference"] for r in kept)]
    assert scores == pytest.approx(expected, abs=1e-12)


def test_real_layouts(real_data: Path) -> None:
    layouts = real_data / "raw/layouts"
    assert collected(layouts / "shp_train.jsonl", "shp").counts["grade"] == 2
    # Four aspects; the row of the Hub also has an overall score.
    assert collected(layouts / "ultrafeedback_row_1completion.json", "ultrafeedback").counts["grade"] == 4
    row = collected(layouts / "ultrafeedback_row_HF_fields_truncated.json", "ultrafeedback").feedback.to_pylist()[0]
    assert json.loads(row["extra"])["contaminates"] == "truthful_qa"
    assert {rating["aspect"]: rating["score"] for rating in row["ratings"]} == {
        "helpfulness": 4,
        "honesty": 5,
        "instruction_following": 4,
        "truthfulness": 5,
        "overall": 7.5,
    }


def test_a_wrong_format_names_columns_and_what_would_fit(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [ultrafeedback()])
    with pytest.raises(UserError) as caught:
        collected(path, "shp")
    for told in ("rows.jsonl", "'history'", "Columns present: 'completions', 'instruction'", "--format ultrafeedback"):
        assert told in str(caught.value)
    with pytest.raises(UserError, match="They fit --format jsonl"):
        collected(DATA / "human_graded_pairs.jsonl", "shp")


def test_columns_are_judged_on_the_first_rows_of_a_file_together(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"instruction": "no completions here"}, ultrafeedback()])
    result = collected(path, "ultrafeedback")
    assert (result.lines, result.dropped, result.limited, reasons(result)["malformed_row"]) == (2, 1, 1, 1)


@pytest.mark.parametrize(
    ("format", "options", "told"),
    [
        ("shp", {"columns": {"prompt": "history"}}, "fixed columns"),
        ("shp", {"scale": (1, 10)}, "scale of its own"),
        ("jsonl", {"columns": {"promt": "x"}}, "did you mean 'prompt'"),
        ("jsonl", {"scale": (10, 1)}, "must be the smaller"),
        ("jsonl", {"scale": (1, float("inf"))}, "both finite"),
        ("jsonl", {"kind": "robot"}, "human, ai, reward_model"),
        ("ultrafeedback", {"rater": "me"}, "takes no rater"),
        ("ultrafeedback-binarized", {"kind": "ai"}, "takes no kind"),
    ],
)
def test_options_that_mean_nothing_are_refused(tmp_path: Path, format: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        collected(write_rows(tmp_path / "rows.jsonl", [{}]), format, **options)


def test_names_of_formats(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["formats"]) == 0
    listed = capsys.readouterr().out
    assert [name for name in SOURCES if f"\n{name} " not in f"\n{listed}"] == []
    assert [name for name, source in SOURCES.items() if name != source.name or "\n" in source.summary] == []
    with pytest.raises(UserError, match="did you mean 'ultrafeedback'"):
        get_source("ultrafedback")
    assert get_source("mmpo.pipeline.sources.shp:parse_shp").parse is SOURCES["shp"].parse
    for name, told in (("no_such_module:f", "can't be imported"), ("json:f", "has no 'f'"), ("json:__name__", "no function")):
        with pytest.raises(UserError, match=told):
            get_source(name)


def test_feedback_is_read_as_it_is_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "part-00000.parquet"
    made = collected(DATA / "judge_samples.jsonl.gz", "jsonl", scale=(1.0, 5.0), kind="ai").feedback
    pq.write_table(made.cast(FEEDBACK), path)
    result = collected(tmp_path, "feedback")
    assert result.feedback.equals(made) and result.counts["grade"] == made.num_rows
    row = made.slice(0, 1).to_pylist()[0]
    for change, told in (
        ({"score": 9.0}, "outside low..high"),
        ({"score": float("nan")}, "no finite number"),
        ({"completion": 1}, "none of the row's completions"),
        ({"kind": "robot"}, "kind"),
        ({"rater": None}, "no rater"),
    ):
        bad = {**row, "ratings": [{**row["ratings"][0], **change}]}
        pq.write_table(pa.Table.from_pylist([row, bad], made.schema), path)
        with pytest.raises(UserError, match=f"row 2: .*{told}"):
            collected(tmp_path, "feedback")
    pq.write_table(made.drop_columns(["extra"]), path)
    with pytest.raises(UserError, match="'extra'"):
        collected(tmp_path, "feedback")
