"""What raters said is read again from a build's inputs where they are as they were, or from FEEDBACK; else the page says why there
is none."""

import json
from pathlib import Path

import pytest
from folders import feedback_folder, pairs_folder, write_rows

from mmpo.cli.main import run
from mmpo.pipeline import BuildOptions, build, read_feedback
from mmpo.pipeline.arrow import narrow
from mmpo.pipeline.report import feedback_of

ROWS = [
    {"prompt": f"q{i}", "completion": f"a{j} {i}", "score": 1 + (i * j + k) % 5, "rater": rater}
    for i in range(12)
    for j in range(3)
    for k, rater in enumerate(("ann", "bob"))
]


def page(folder: Path, *more: str) -> str:
    assert run(["report", str(folder), "--out", str(folder.with_suffix(".html")), *more]) == 0
    return folder.with_suffix(".html").read_text(encoding="utf-8").partition("<script")[0]


def test_inputs_that_are_as_they_were_are_read_again_as_they_were_read(tmp_path: Path) -> None:
    options = {"columns": {"score": "grade"}, "scale": (1, 5), "decimal": ","}
    folder = pairs_folder(tmp_path / "pairs", [{**row, "grade": f"{row['score']},0"} for row in ROWS], **options)
    found, why = feedback_of(folder)
    assert why == "" and found is not None and narrow(found).equals(read_feedback(tmp_path / "pairs.jsonl", "jsonl", **options))
    text = page(folder)
    assert "2 raters in the feedback" in text and '<td class="">ann</td>' in text


def test_of_pairs_built_from_feedback_it_is_that(tmp_path: Path) -> None:
    build(feedback_folder(tmp_path / "graded", ROWS, scale=(1, 5)), tmp_path / "pairs", options=BuildOptions("feedback"))
    (tmp_path / "graded.jsonl").unlink()
    assert "2 raters in the feedback" in page(tmp_path / "pairs")


@pytest.mark.parametrize(
    ("what", "words"), [("changed", "has changed since"), ("gone", "are no longer here"), ("large", "MiB, are not read again")]
)
def test_inputs_that_are_not_are_not(what: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, source = pairs_folder(tmp_path / "pairs", ROWS, scale=(1, 5)), tmp_path / "pairs.jsonl"
    if what == "changed":
        write_rows(source, ROWS[:-1])
    elif what == "gone":
        source.unlink()
    else:
        monkeypatch.setattr("mmpo.pipeline.report.dataset.feedback.MOST_BYTES", 10)
    found, why = feedback_of(folder)
    assert found is None and words in why
    assert words in page(folder)


def test_feedback_that_is_named_and_none_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = pairs_folder(tmp_path / "pairs", ROWS, scale=(1, 5))
    others = feedback_folder(tmp_path / "others", [{**row, "rater": f"{row['rater']} 2"} for row in ROWS], scale=(1, 5))
    assert '<td class="">bob 2</td>' in page(folder, "--feedback", str(others))
    assert "mmpo report --feedback FEEDBACK shows it" in page(folder, "--feedback", "none")
    capsys.readouterr()
    assert run(["report", str(folder), "--feedback", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_raters_that_the_build_left_out_are_no_part(tmp_path: Path) -> None:
    text = page(pairs_folder(tmp_path / "pairs", ROWS, scale=(1, 5), raters=("ann",)))
    assert "1 rater in the feedback" in text and "One rater: nothing says how far" in text and "bob" not in text


def test_raters_are_measured_by_what_the_scores_are_of(tmp_path: Path) -> None:
    """Two who agree on the aspect that was built from, and never on the other one."""
    rows = [
        {"prompt": f"q{i}", "completion": f"a{j} {i}", "score": score, "rater": rater, "aspect": aspect}
        for i in range(12)
        for j in range(2)
        for rater in ("ann", "bob")
        for aspect, score in (("use", 1 + j), ("taste", 2 + j if rater == "ann" else 3 - j))
    ]
    for name, options in (("aspect", {"aspects": ("use",)}), ("score", {"score": "use"})):
        text = page(pairs_folder(tmp_path / name, rows, scale=(1, 5), **options))
        assert (
            "Measured by what the pairs&#39; scores are of: use." in text
            or "Measured by what the pairs' scores are of: use." in text
        )
        assert text.count('data-of="sides with the others">100.0%') == 2 and "taste" in text
    assert "Measured by" not in page(pairs_folder(tmp_path / "both", rows, scale=(1, 5), score="mean"))


def test_a_manifest_that_names_no_inputs_is_said(tmp_path: Path) -> None:
    folder = pairs_folder(tmp_path / "pairs", ROWS, scale=(1, 5))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "inputs": []}))
    assert feedback_of(folder)[1].startswith(
        "What single raters said is not in a folder of pairs, and is not read again: the manifest names no"
    )


def test_raters_of_several_sources_are_told_apart(tmp_path: Path) -> None:
    """Both call a rater ann, on scales of their own, and grade the same replies."""
    for name, times in (("one", 1), ("two", 10)):
        write_rows(tmp_path / f"{name}.jsonl", [{**row, "score": row["score"] * times} for row in ROWS])
    sources = [
        {"inputs": str(tmp_path / f"{name}.jsonl"), "format": "jsonl", "name": name, "scale": scale, "normalise": "minmax"}
        for name, scale in (("one", [1, 5]), ("two", [10, 50]))
    ]
    build((), tmp_path / "pairs", options=BuildOptions(sources=sources))
    text = page(tmp_path / "pairs")
    assert "4 raters in the feedback" in text
    for rater in ("one: ann", "one: bob", "two: ann", "two: bob"):
        assert f'<td class="">{rater}</td>' in text
