"""Which aspect makes the margins where nobody says: the format's own, or the one that --aspect leaves; and what is said where none does."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from folders import pairs_folder, write_rows

from mmpo.pipeline import BuildOptions, UserError, build, build_pairs, load_pairs, read_feedback
from mmpo.pipeline.sources import SOURCES
from mmpo.pipeline.tables import FEEDBACK, metadata

PKU = {
    "prompt": "Q", "response_0": "a", "response_1": "b", "is_response_0_safe": True, "is_response_1_safe": False,
    "response_0_severity_level": 0, "response_1_severity_level": 2, "better_response_id": 1, "safer_response_id": 0,
}  # fmt: skip
ASPECTS = {"helpfulness": 4, "correctness": 3, "coherence": 4, "complexity": 2, "verbosity": 1}
HELPSTEER = [
    {"prompt": "Q", "response": "a", **ASPECTS},
    {"prompt": "Q", "response": "b", **ASPECTS, "helpfulness": 1, "verbosity": 3},
]
STYLED = [{"prompt": "Q", "completion": text, "score": n, "aspect": "style"} for n, text in enumerate("ba")]
# Format, rows, aspects, and the better reply with its margin. In the first the safer reply is a though the better one is b.
ONE: list[tuple[str, list[dict[str, Any]], str, tuple[str, float]]] = [
    ("pku-saferlhf", [PKU], "safety", ("a", 1.0)),
    ("pku-saferlhf", [PKU], "overall", ("b", 1.0)),
    ("helpsteer", HELPSTEER, "helpfulness", ("a", 3.0)),
    ("jsonl", STYLED, "style", ("a", 1.0)),
]


@pytest.mark.parametrize(("format", "rows", "aspect", "better"), ONE)
def test_one_chosen_aspect_needs_no_score(
    format: str, rows: list[dict[str, Any]], aspect: str, better: tuple[str, float], tmp_path: Path
) -> None:
    [pair] = load_pairs(pairs_folder(tmp_path / "out", rows, format=format, aspects=(aspect,))).to_pylist()
    assert (pair["chosen"][0]["content"], pair["quality_margin"]) == better
    source = {"inputs": str(tmp_path / "out.jsonl"), "format": format, "aspects": [aspect]}
    build((), tmp_path / "mixed", options=BuildOptions(sources=[source], workers=1))
    [pair] = load_pairs(tmp_path / "mixed").to_pylist()
    assert (pair["chosen"][0]["content"], pair["quality_margin"]) == better


def test_an_aspect_that_the_format_takes_for_worse_needs_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--aspect verbosity: the format takes more of it for worse.*verbosity=-1 or verbosity=1"):
        pairs_folder(tmp_path / "out", HELPSTEER, format="helpsteer", aspects=("verbosity",))
    out = pairs_folder(tmp_path / "out", HELPSTEER, format="helpsteer", aspects=("verbosity",), score="verbosity=-1")
    [pair] = load_pairs(out).to_pylist()
    assert (pair["chosen"][0]["content"], pair["quality_margin"]) == ("a", 2.0)


def scored(sample: dict[str, Any]) -> dict[str, Any]:
    """A sample of an inspect log with a second scorer."""
    return sample | {"scores": sample["scores"] | {"exact": {"value": sample["epoch"]}}}


def test_aspects_of_the_users_own_are_no_columns_that_are_gone(tmp_path: Path) -> None:
    [log] = SOURCES["inspect"].samples[0].content
    two = {**log, "samples": [scored(one) for one in log["samples"]]}  # type: ignore[index]
    with pytest.raises(UserError, match=r"present: exact, model_graded_qa \(they are the scorers\)\. --score names") as told:
        pairs_folder(tmp_path / "log", [two], format="inspect")
    styles = [{**row, "aspect": aspect} for row in STYLED for aspect in ("style", "truth")]
    with pytest.raises(
        UserError, match=r"present: style, truth\. --score names what shall count: style, or weights: style=1,"
    ) as other:
        pairs_folder(tmp_path / "styles", styles)
    assert "column gone" not in f"{told.value}{other.value}"
    annotated = [{"response": text, "annotations": {"honesty": {"Rating": rating}}} for text, rating in (("a", "5"), ("b", "2"))]
    with pytest.raises(UserError, match=r"present: honesty\. Is a column gone\? --score names what shall count: honesty, or mean"):
        pairs_folder(tmp_path / "ultra", [{"instruction": "Q", "completions": annotated}], format="ultrafeedback")


def test_the_aspects_of_a_mean_are_those_of_all_grades_however_prompts_are_cut(tmp_path: Path) -> None:
    """One prompt alone has `help`, which `mean` takes and leaves out `overall`: also where a part of the prompts has no other."""
    rows = [{"prompt": f"q{n}", "completion": text, "score": 1 + place} for n in range(20) for place, text in enumerate("ba")]
    rows += [{**row, "aspect": "help"} for row in rows[:2]]
    whole = build_pairs(read_feedback(write_rows(tmp_path / "in.jsonl", rows), "jsonl", scale=(1, 5)), score="mean")
    options = BuildOptions(format="jsonl", scale=(1, 5), score="mean", workers=1)
    summary = build(tmp_path / "in.jsonl", tmp_path / "out", options=options, partition_bytes=200)
    assert whole["quality_margin"].to_pylist() == load_pairs(tmp_path / "out")["quality_margin"].to_pylist() == [1.0]
    assert summary["rejected"] == {"aspect_not_chosen": 40, "no_pair": 19}


def test_the_range_of_a_mean_is_that_of_its_aspects(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": text, "score": 5.0, "aspect": aspect} for text in "ab" for aspect in ("overall", "help")]
    feedback = read_feedback(write_rows(tmp_path / "in.jsonl", rows), "jsonl", scale=(1, 5)).to_pylist()
    feedback[0]["ratings"] = [{**one, "high": 10.0 if one["aspect"] == "overall" else 5.0} for one in feedback[0]["ratings"]]
    table = pa.Table.from_pylist(feedback, FEEDBACK)
    assert metadata(build_pairs(table, score="mean").schema)["score_range"] == [1.0, 5.0]
