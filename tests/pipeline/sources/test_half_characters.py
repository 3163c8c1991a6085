"""Half a character (a lone surrogate) fits into no file: rows are rejected by that name, options and names of files refused."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from command import mmpo

from mmpo.annotate.judge import Judge, JudgeOptions
from mmpo.pipeline.build import BuildOptions, build
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.sources import BadRow, FeedbackBuilder

HALF = "b\ud800"
GOOD = [{"prompt": "q", "completion": text, "score": score} for text, score in (("a", 1), ("b", 2), ("日本", 3))]


@pytest.mark.parametrize("field", ["prompt", "completion", "model", "rater", "aspect", "kind"])
def test_a_row_with_half_a_character_is_rejected_with_its_field(field: str, tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completion": "a", "score": 1, field: HALF}, *GOOD]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = BuildOptions(format="jsonl", feedback_only=True, max_rejects=0.5)
    build([tmp_path / "in.jsonl"], out=tmp_path / "out", options=options)
    [reject] = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    assert (reject["reason"], reject["row"]) == ("unknown_kind" if field == "kind" else "lone_surrogate", 1)


@pytest.mark.parametrize("field", ["rater", "kind", "aspect", "note"])
def test_a_grade_with_half_a_character_is_refused_by_its_field(field: str) -> None:
    out = FeedbackBuilder("source")
    out.prompt("q")
    one, two = out.completion("a"), out.completion("b")
    given: dict[str, Any] = {"rater": "ann", field: HALF}
    for grade in (lambda: out.rating(one, 1, **given), lambda: out.comparison(one, two, 1, **given)):
        with pytest.raises(BadRow) as refused:
            grade()
        assert (refused.value.reason, refused.value.evidence) == ("lone_surrogate", {"where": field})
    with pytest.raises(BadRow):
        FeedbackBuilder(HALF).prompt("q")


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: BuildOptions(format="jsonl", rater=HALF), "rater"),
        (lambda: BuildOptions(format="jsonl", columns={"score": HALF}), "columns"),
        (lambda: JudgeOptions(model=HALF), "model"),
        (lambda: JudgeOptions(model="m", extra_body=json.dumps({"user": HALF})), "--extra-body"),
        (lambda: Judge("m", rater=HALF), "rater"),
    ],
)
def test_an_option_with_half_a_character_is_refused_by_its_name(make: Any, name: str) -> None:
    with pytest.raises(UserError) as refused:
        make()
    assert str(refused.value).startswith(f"{name}: 'b\\ud800'")


def test_a_name_that_is_no_text_is_refused_wherever_it_is_given(tmp_path: Path) -> None:
    data = tmp_path / "in.jsonl"
    data.write_text("\n".join(map(json.dumps, GOOD)))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text('out: out\nbuild: {inputs: [in.jsonl], format: jsonl, rater: "b\\ud800"}\n')
    wrong = tmp_path / "folder" / "\udcff.jsonl"
    wrong.parent.mkdir()
    wrong.write_bytes(data.read_bytes())
    rubric = tmp_path / "rubric.yaml"
    rubric.write_text('{name: own, criterion: "which is b\\ud800etter"}')
    out = ("--out", tmp_path / "out")
    read = ("--format", "jsonl", "--feedback-only", *out)
    judge = ("judge", data, "--model", "m", "--rubric", rubric, *out)
    for words in (("build", data, "--rater-name", "\udcff", *read), ("build", wrong.parent, *read), ("run", recipe), judge):
        done = mmpo(*words)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert "\\udcff" in done.stderr or "\\ud800" in done.stderr
