"""What a build says at its end: margins nobody witnessed, odd scales, raters against the others, splits, two pairs in words."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import write_rows

from mmpo.pipeline import BuildOptions, UserError, build, build_pairs, load_pairs, read_feedback, validate
from mmpo.pipeline.storage import read_manifest


def rated(prompt: Any, completion: str, score: float, rater: str = "r", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, "score": score, "rater": rater, **more}


def built(folder: Path, *files: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    paths = [write_rows(folder / f"file{i}.jsonl", rows) for i, rows in enumerate(files)]
    return build(paths, folder / "out", options=BuildOptions(**{"format": "jsonl", "kind": "human"} | options))


def panel(*scales: float, noise: float = 0.5, prompts: int = 40) -> list[dict[str, Any]]:
    """Three answers of each prompt by raters whose grades are the truth times their scale, and noise."""
    rng = np.random.default_rng(0)
    return [
        rated(f"question {p}", f"answer {c} to {p}", round(5 + scale * (truth + rng.normal(0, noise)), 2), f"r{i}")
        for p in range(prompts)
        for c, truth in enumerate(rng.normal(0, 1, 3))
        for i, scale in enumerate(scales)
    ]


UNWITNESSED = [rated("q", "left", 9, "ann"), rated("q", "right", 2, "ben"), rated("q", "middle", 5, "ann")]


def test_a_margin_that_nobody_witnessed_is_said_counted_and_left_out_on_demand(tmp_path: Path) -> None:
    """ann grades left and middle, ben right: two of three pairs have raters 0."""
    summary = built(tmp_path, UNWITNESSED, scale=(1, 10))
    assert summary["unwitnessed"] == read_manifest(tmp_path / "out")["unwitnessed"] == 2
    assert "2 of 3 pairs have a margin that no rater witnessed" in summary["warnings"][0]
    assert read_manifest(tmp_path / "out")["warnings"] == summary["warnings"]
    summary = built(tmp_path, UNWITNESSED, scale=(1, 10), min_raters=1)
    assert (summary["unwitnessed"], summary["rejected"], sum(summary["pairs"].values())) == (0, {"min_raters": 2}, 1)
    assert load_pairs(tmp_path / "out")["raters"].to_pylist() == [1]


def test_the_kind_of_a_margin_that_nobody_witnessed_is_that_of_its_own_two_sides(tmp_path: Path) -> None:
    """Whoever graded other prompts, which a part of the input holds beside it or not."""
    people = [rated(f"q{p}", *side) for p in range(9) for side in (("left", 9, "ann"), ("right", 2, "ben"))]
    both = [rated("both", "left", 9, "ann"), rated("both", "right", 2, "gpt", kind="ai")]
    judged = [rated("judged", text, score, "gpt", kind="ai") for text, score in (("left", 9), ("right", 2))]
    built(tmp_path, people + both + judged)
    whole = build_pairs(read_feedback(tmp_path / "file0.jsonl", "jsonl", kind="human"))
    for table in (load_pairs(tmp_path / "out"), whole):
        kinds = {row["prompt"][0]["content"]: row["kind"] for row in table.to_pylist()}
        assert kinds == {**{f"q{p}": "human" for p in range(9)}, "both": "mixed", "judged": "ai"}


def test_two_pairs_in_words_show_which_way_the_scale_goes(tmp_path: Path) -> None:
    rows = [rated(f"q{p}", f"{text} {p}", score) for p in range(4) for text, score in (("good", 5 + p), ("bad" * 200, 1))]
    summary = built(tmp_path, rows)
    assert [(e["better"], e["worse"][:3], e["margin"]) for e in summary["examples"]] == [("good 3", "bad", 7), ("good 2", "bad", 6)]
    assert all(len(example["worse"]) <= 200 for example in summary["examples"])


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        (panel(1, 25), {}, "do not look like one: rater 'r0' grades"),
        (panel(1, 1, -1), {}, "rater 'r2' goes against the others"),
        (panel(1, 1) + [row | {"rater": "flat", "score": 3} for row in panel(1)], {}, "rater 'flat': gave everything the same grade"),
        (
            panel(1) + [row | {"aspect": "style", "score": 3} for row in panel(1)], {"score": "overall=1,style=1"},
            "rater 'r0': gave everything the same grade in style",
        ),
        ([rated(f"q{p}", text, 3) for p in range(5) for text in "ab"], {}, "all 5 pairs are ties"),
        ([{"prompt": f"q{p}", "chosen": "a", "rejected": "b", "margin": 2} for p in range(12)], {}, "every gap is the same"),
        ([rated("Hi", f"a{i}", i) for i in range(5)], {}, "validation and test hold no pair: splits follow 1 distinct first user message"),
    ],
)  # fmt: skip
def test_what_the_reader_of_margins_should_know(rows: list, options: dict, said: str, tmp_path: Path) -> None:
    assert [warning for warning in built(tmp_path, rows, **options)["warnings"] if said in warning]


@pytest.mark.parametrize("options", [{}, {"scale": (-10, 20)}, {"normalise": "zscore"}])
def test_raters_who_agree_on_one_scale_are_not_warned_of(options: dict, tmp_path: Path) -> None:
    rows = panel(1, 1.3, 0.9, prompts=120)
    assert built(tmp_path, rows, split=(0.8, 0.1, 0.1), **options)["warnings"] == []
    assert all(row["raters"] == 3 for row in load_pairs(tmp_path / "out").to_pylist())


def turns(p: int, conversation: int) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": f"q {p} {conversation}"},
    ]


CONVERSATIONS = [
    rated(turns(p, p % 20), f"answer {c}", c, conversation=p % 20, note=None if p else "x") for p in range(60) for c in range(2)
]


def sides(folder: Path) -> dict[str, set[str]]:
    """By conversation, the splits that its pairs are in."""
    found: dict[str, set[str]] = {}
    for split in ("train", "validation", "test"):
        if (folder / split).is_dir():
            for row in load_pairs(folder, split).to_pylist():
                found.setdefault(row["prompt"][-1]["content"].split()[-1], set()).add(split)
    return found


def test_conversations_that_all_begin_alike_are_split_by_another_rule(tmp_path: Path) -> None:
    by_message = built(tmp_path, CONVERSATIONS)
    assert by_message["pairs"]["train"] == 60
    shares = {"split": (0.5, 0.25, 0.25)}
    by_prompt = built(tmp_path, CONVERSATIONS, split_by="prompt", **shares)
    assert 0 not in by_prompt["pairs"].values()
    assert "1 first user messages lie in more than one split" in "\n".join(by_prompt["warnings"])
    assert max(len(found) for found in sides(tmp_path / "out").values()) > 1
    by_column = built(tmp_path, CONVERSATIONS, split_by="column:conversation", **shares)
    assert 0 not in by_column["pairs"].values()
    assert {len(found) for found in sides(tmp_path / "out").values()} == {1}
    assert read_manifest(tmp_path / "out")["recipe"]["split_by"] == "column:conversation"


def test_a_column_to_split_by_is_kept_through_feedback(tmp_path: Path) -> None:
    direct = built(tmp_path / "direct", CONVERSATIONS, split_by="column:conversation", split=(0.5, 0.25, 0.25))
    built(tmp_path / "first", CONVERSATIONS, split_by="column:conversation", feedback_only=True)
    options = BuildOptions(format="feedback", split_by="column:conversation", split=(0.5, 0.25, 0.25))
    assert build(tmp_path / "first" / "out", tmp_path / "second", options=options)["pairs"] == direct["pairs"]
    assert sides(tmp_path / "second") == sides(tmp_path / "direct" / "out")


@pytest.mark.parametrize(
    ("rows", "by", "said"),
    [
        (CONVERSATIONS, "colum", "--split-by.*column:NAME"),
        (CONVERSATIONS, "column:missing", "missing"),
        (CONVERSATIONS, "column:note", "no_split_value"),
        (
            [rated("q", "a", 1, topic="x"), rated("q", "b", 2, topic="y")],
            "column:topic",
            r"'q' has two values there, \"x\" and \"y\"",
        ),
    ],
)
def test_rules_that_cannot_be_followed_are_refused_by_name(rows: list, by: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        built(tmp_path, rows, split_by=by)
    assert not (tmp_path / "out").exists()


def test_the_summary_is_the_same_on_one_core_and_on_many(tmp_path: Path) -> None:
    rows = panel(1, 1.2, prompts=300)
    one, two = (built(tmp_path / str(workers), rows, workers=workers) for workers in (1, 2))
    assert json.dumps({**one, "out": ""}) == json.dumps({**two, "out": ""})


def test_validate_says_the_same_of_witnesses_and_raters(tmp_path: Path) -> None:
    built(tmp_path, [*UNWITNESSED, *panel(1, 1, -1)])
    found = {check["name"]: check for check in validate(tmp_path / "out")["checks"]}
    assert (found["witnesses"]["status"], found["witnesses"]["count"]) == ("warn", 2)
    assert found["raters"]["status"] == "warn"
    assert "r2" in found["raters"]["message"]
    built(tmp_path, panel(1, 1.2))
    found = {check["name"]: check["status"] for check in validate(tmp_path / "out")["checks"]}
    assert (found["witnesses"], found["raters"]) == ("pass", "pass")
