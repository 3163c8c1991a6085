"""Two versions of a dataset beside one another, by hand: what came, went, turned and moved, and what their manifests say differs."""

from pathlib import Path

import numpy as np
import pytest
from folders import pairs_folder, write_rows
from pair_cases import pair, pairs_by_hand

from mmpo.cli.main import run
from mmpo.pipeline import BuildOptions, build
from mmpo.pipeline.report import read_figures, write_versions
from mmpo.pipeline.report.dataset.versions import change_rows, changes, options_rows
from mmpo.pipeline.storage import read_manifest


def test_changes_by_hand(tmp_path: Path) -> None:
    """Of five pairs of A one goes; of B's one is new. One keeps its margin, one grows by 2, one turns, one becomes a tie."""
    one = [pair("p", "a", "b", 1), pair("p", "a", "c", 2), pair("q", "a", "b", 3), pair("q", "a", "c", 4), pair("r", "a", "b", 5)]
    # a tie's chosen reply is the one of the smaller id: here it may stand either way round
    tie = pair("q", "a", "c", 0)
    if tie["chosen_id"] > tie["rejected_id"]:
        tie = pair("q", "c", "a", 0)
    other = [pair("p", "a", "b", 1), pair("p", "a", "c", 4), tie, pair("s", "a", "b", 9)]
    a = read_figures(pairs_by_hand(tmp_path / "a", *one))
    b = read_figures(pairs_by_hand(tmp_path / "b", *other, test=[pair("q", "b", "a", 3)]))
    change = changes(a, b)
    left = change.kept[0]
    assert dict(zip(left.tolist(), change.before.tolist(), strict=True)) == {0: 1, 1: 2, 2: 3, 3: 4}
    assert dict(zip(left.tolist(), change.after.tolist(), strict=True)) == {0: 1, 1: 4, 2: -3, 3: 0}
    assert (change.went.tolist(), change.came.tolist()) == ([4], [3])
    assert sorted(left[change.turned].tolist()) == [2] and sorted(left[change.moved].tolist()) == [1, 2, 3]
    assert {row["what"]: row["pairs"] for row in change_rows(a, b, change)} == {
        "went: in A only": 1, "came: in B only": 1, "in both": 4, "in both, with another margin": 3, "in both, the other reply chosen": 1,
        "a tie in B alone": 1, "a tie in A alone": 0, "in another split": 1, "prompts that went": 1, "prompts that came": 1,
    }  # fmt: skip


def test_a_version_beside_itself_has_no_change(tmp_path: Path) -> None:
    figures = read_figures(pairs_by_hand(tmp_path / "a", *(pair(f"q{i}", f"a{i}", f"b{i}", i) for i in range(30))))
    change = changes(figures, figures)
    assert (
        not len(change.went)
        and not len(change.came)
        and not change.moved.any()
        and np.array_equal(change.after, figures.margin[change.kept[0]])
    )


def test_what_manifests_say_differs(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"q{i}", "completion": f"a{j} {i}", "score": 1 + j, "rater": rater}
        for i in range(30)
        for j in range(3)
        for rater in "ab"
    ]
    pairs_folder(tmp_path / "a", rows, scale=(1, 5))
    pairs_folder(tmp_path / "b", rows[:90], scale=(1, 5), normalise="minmax", merge_raters="median")
    found = {
        row["option"]: (row["A"], row["B"]) for row in options_rows(read_manifest(tmp_path / "a"), read_manifest(tmp_path / "b"))
    }
    assert found.pop("normalise") == ("none", "minmax") and found.pop("normalisation") == ("none", "minmax")
    assert found.pop("merge_raters") == ("mean", "median") and found.pop("score_range") == ("1.0, 5.0", "0.0, 1.0")
    inputs = {name: found.pop(name) for name in list(found) if name.startswith("input ")}
    assert sorted(there == "absent" for both in inputs.values() for there in both) == [False, False, True, True] and not found


@pytest.mark.parametrize(
    ("one", "other", "differ"),
    [
        ({}, {}, False),
        ({"normalise": "zscore"}, {"normalise": "minmax"}, True),  # in both manifests "by source"
        ({}, {"margin_times": 10}, True),
        ({}, None, False),  # the same source alone
        ({"margin_times": 10}, None, True),
    ],
)
def test_a_mixture_s_units_are_those_of_its_sources(
    one: dict[str, object], other: dict[str, object] | None, differ: bool, tmp_path: Path
) -> None:
    rows = [{"prompt": f"q{i}", "completion": f"a{j} {i}", "score": 1 + (i + j) % 5} for i in range(12) for j in range(3)]
    for name, options in (("a", one), ("b", other)):
        source = {"inputs": str(write_rows(tmp_path / f"{name}.jsonl", rows)), "format": "jsonl", "scale": [1, 5]}
        first, second = ({**source, "name": called, **(options or {})} for called in ("first", "second"))
        given = BuildOptions(format="jsonl", scale=(1, 5)) if options is None else BuildOptions(sources=[first, second])
        build(() if options is not None else source["inputs"], tmp_path / name, options=given)
    text = write_versions(tmp_path / "a", tmp_path / "b", tmp_path / "page.html").read_text(encoding="utf-8")
    assert ("give the margins of A and B different units" in text) == differ


def test_the_command_compares_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": f"q{i}", "completion": f"a{j} {i}", "score": (i * j) % 5} for i in range(30) for j in range(3)]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    for name, strategy in (("old", "all"), ("new", "best-worst")):
        build(source, tmp_path / name, options=BuildOptions(format="jsonl", strategy=strategy))
    assert run(["report", str(tmp_path / "old"), str(tmp_path / "new")]) == 0
    text = (tmp_path / "old-new.html").read_text(encoding="utf-8")
    assert '<td class="">strategy</td><td class="">all</td><td class="">best-worst</td>' in text
    assert "<b>90</b>" not in text and "went" in text
    capsys.readouterr()
    assert run(["report", *3 * [str(tmp_path / "old")]]) == 2
    assert "one dataset, or two versions of one; given were 3" in capsys.readouterr().err
    assert run(["report", str(tmp_path / "old"), str(tmp_path / "new"), "--feedback", str(tmp_path)]) == 2


def test_two_sets_without_a_pair_in_common_are_said_to_be_that(tmp_path: Path) -> None:
    for name in "ab":
        pairs_by_hand(tmp_path / name, *(pair(f"{name}{i}", "yes", "no", i) for i in range(12)))
    text = write_versions(tmp_path / "a", tmp_path / "b", tmp_path / "page.html").read_text(encoding="utf-8")
    assert "no pair in common" in text and "100.0% of A&#39;s pairs" in text
