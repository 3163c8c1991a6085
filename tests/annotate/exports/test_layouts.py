"""Exports: the right columns, what is left out and lost is counted, whole or nothing."""

import dataclasses
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import orjson
import pytest
from datasets import load_dataset
from folders import pairs_folder, split_folder, write_rows

from mmpo.annotate.exports import EXPORTS, ExportOptions, export
from mmpo.pipeline import build_pairs, read_feedback
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.tables import PAIRS


def pair(number: int, margin: float, turns: int = 1) -> dict[str, Any]:
    """A pair whose texts hold a line separator that is no end of line in JSON lines."""
    prompt = [{"role": ("user", "assistant")[i % 2], "content": f"turn {i} of {number}\u2028"} for i in range(turns)]
    margin_and_source = {"quality_margin": margin, "margin_se": 0.5, "preferring": 1, "raters": 1, "kind": "ai", "source": "ours"}
    return {
        "prompt_id": f"{number:032x}",
        "chosen_id": "c" * 32,
        "rejected_id": "d" * 32,
        "prompt": prompt,
        "chosen": [{"role": "assistant", "content": f"reply {number}"}],
        "rejected": [{"role": "assistant", "content": "worse"}],
        **margin_and_source,
    }


def dataset(folder: Path, turns: int = 1) -> Path:
    """Five pairs in two train files, one of them tied, and two in test, one tied; no validation."""
    write_rows(folder / "train/part-00001.parquet", [pair(3, 3.0), pair(4, 4.0)], PAIRS)
    train, test = [pair(0, 1.0), pair(1, 0.0), pair(2, 2.0)], [pair(5, 0.0), pair(6, 1.5, turns)]
    return split_folder(folder, train=train, test=test)


def lines(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


@pytest.mark.parametrize("to", ["trl-dpo", "trl-reward"])
def test_trl(tmp_path: Path, to: str) -> None:
    summary = export(dataset(tmp_path / "data"), to, tmp_path / "out")
    assert summary["pairs"] == {"train": 4, "test": 1} and summary["left_out"] == {"tie": 2}
    loaded = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in loaded.items()} == summary["pairs"]
    assert "margin" not in loaded["train"].column_names
    assert loaded["train"][0]["chosen"] == [{"role": "assistant", "content": "reply 0"}]
    assert min(loaded["train"]["quality_margin"]) > 0


def test_jsonl_keeps_every_column_and_ties(tmp_path: Path) -> None:
    summary = export(dataset(tmp_path / "data"), "jsonl", tmp_path / "pairs.jsonl")
    rows = lines(tmp_path / "pairs.jsonl")
    assert [row["split"] for row in rows] == ["train"] * 5 + ["test"] * 2 and summary["left_out"] == {}
    assert set(rows[0]) == {*PAIRS.names, "split"}
    assert rows[4]["prompt"] == pair(4, 4.0)["prompt"]


@pytest.mark.parametrize("format", ["trl", "jsonl"])
def test_what_is_exported_is_read_again_though_its_scores_are_empty(tmp_path: Path, format: str) -> None:
    """As those of pairs that were made of comparisons are; a row that has scores goes by these."""
    export(dataset(tmp_path / "data"), "jsonl", tmp_path / "pairs.jsonl")
    pairs = build_pairs(read_feedback(tmp_path / "pairs.jsonl", format))
    assert sorted(pairs["quality_margin"].to_pylist()) == [0, 0, 1, 1.5, 2, 3, 4]
    rows = lines(tmp_path / "pairs.jsonl")
    path = write_rows(tmp_path / "mixed.jsonl", [{**row, "score_chosen": 5, "score_rejected": 3} for row in rows[:2]] + rows[2:])
    mixed = read_feedback(path, format)
    assert [sum(map(len, mixed[grades].to_pylist())) for grades in ("ratings", "comparisons")] == [4, 5]


def test_rewardbench_prompts_are_text_or_messages_never_both(tmp_path: Path) -> None:
    summary = export(dataset(tmp_path / "one"), "rewardbench", tmp_path / "one.jsonl")
    (row,) = lines(tmp_path / "one.jsonl")
    assert summary["pairs"] == {"test": 1} and summary["left_out"] == {"tie": 1, "other_split": 5}
    expected = {"prompt": "turn 0 of 6\u2028", "chosen": "reply 6", "rejected": "worse", "subset": "ours", "id": 0}
    assert row == {**expected, "chosen_model": "unknown", "rejected_model": "unknown"}
    export(dataset(tmp_path / "three", turns=3), "rewardbench", tmp_path / "three.jsonl")
    assert len(lines(tmp_path / "three.jsonl")[0]["prompt"]) == 3


def turns(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": f"{role} {place}"} for place, role in enumerate(roles)]


def test_rewardbench_gets_only_prompts_that_it_can_show(tmp_path: Path) -> None:
    """It gives roles by place, user first, and stops at a prompt that does not end in the user's."""
    prompts = [
        turns("system", "user"),
        turns("user", "assistant", "user"),
        turns("user", "assistant"),
        turns("user", "tool", "user"),
    ]
    rows = [pair(number, 1.0) | {"prompt": prompt} for number, prompt in enumerate(prompts)]
    summary = export(split_folder(tmp_path / "data", test=rows), "rewardbench", tmp_path / "out.jsonl")
    assert summary["left_out"] == {"prompt_roles": 2} and summary["pairs"] == {"test": 2}
    folded, whole = lines(tmp_path / "out.jsonl")
    assert folded["prompt"] == [{"role": "user", "content": "system 0\n\nuser 1"}] and whole["prompt"] == prompts[1]


HELD = [
    ("jsonl", {}),
    ("trl-dpo", {"scores": 2, "raters": 3, "preferring": 3, "kind": 3, "models": 1, "prefixes": 1}),
    ("judge", {"scores": 2, "raters": 4, "preferring": 4, "kind": 4, "models": 1}),
    ("argilla", {"scores": 2, "preferring": 4, "kind": 4, "splits": 4}),
    (
        "label-studio",
        {"order": 4, "margins": 3, "errors": 3, "scores": 2, "raters": 4, "preferring": 4, "kind": 4, "models": 1, "splits": 4},
    ),
]


@pytest.mark.parametrize(("to", "lost"), HELD, ids=[to for to, _ in HELD])
def test_what_a_format_has_no_place_for_is_counted(to: str, lost: dict[str, int], tmp_path: Path) -> None:
    """Four pairs of two raters: one tied, one without an error, two scored, one by a known model, one that goes on from a reply."""
    rows = [pair(number, float(number)) | {"raters": 2} for number in range(4)]
    rows[3] |= {"margin_se": None, "prompt": turns("system", "user", "assistant"), "chosen_model": "large"}
    for row in rows[1:3]:
        row |= {"score_chosen": 5.0, "score_rejected": 5.0 - row["quality_margin"]}
    assert export(split_folder(tmp_path / "data", train=rows), to, tmp_path / "out")["lost"] == lost


def test_of_tools_and_thinking_the_pairs_that_have_them_are_counted(tmp_path: Path) -> None:
    """Of three pairs one comes with thinking and one with tools."""
    thinks = [{"role": "assistant", "content": "a", "reasoning_content": "hm"}]
    plain = {"prompt": "Q", "chosen": "a", "rejected": "b", "margin": 1}
    rows = [
        plain | {"prompt": "P"},
        plain | {"chosen": thinks, "rejected": [{"role": "assistant", "content": "b"}]},
        plain | {"prompt": "R", "tools": [{"name": "f"}]},
    ]
    data = pairs_folder(tmp_path / "data", rows, format="trl", split=(1, 0, 0))
    lost = {to: export(data, to, tmp_path / to)["lost"] for to in ("judge", "openrlhf", "jsonl")}
    assert lost == {"judge": {"kind": 3, "thinking": 1}, "openrlhf": {"kind": 3, "tools": 1}, "jsonl": {}}


def test_replies_that_read_the_same_in_a_format_are_left_out(tmp_path: Path) -> None:
    """Of three pairs one differs in thinking alone, one in calls alone, and one in its texts."""

    def said(**more: Any) -> list[dict[str, Any]]:
        return [{"role": "assistant", "content": "Let me see.", **more}]

    paris, rome = (
        [{"id": "c", "type": "function", "function": {"name": "f", "arguments": {"city": one}}}] for one in ("Paris", "Rome")
    )
    rows = [
        {"prompt": "P", "chosen": said(reasoning_content="hm"), "rejected": said(), "margin": 1},
        {"prompt": "Q", "chosen": said(tool_calls=paris), "rejected": said(tool_calls=rome), "margin": 1},
        {"prompt": "R", "chosen": said(), "rejected": said(content="No."), "margin": 1},
    ]
    data = pairs_folder(tmp_path / "data", rows, format="trl", split=(0, 0, 1))
    found = {}
    for to in ("rewardbench", "judge", "label-studio", "argilla", "trl-dpo", "openrlhf", "jsonl"):
        summary = export(data, to, tmp_path / to)
        found[to] = summary["pairs"]["test"], summary["left_out"]
    one, two, none = (2, {"same_replies": 1}), (1, {"same_replies": 2}), (3, {})
    assert found == {"rewardbench": two, **dict.fromkeys(("judge", "label-studio", "argilla"), one),
    **dict.fromkeys(("trl-dpo", "openrlhf", "jsonl"), none)}  # fmt: skip
    assert [(row["chosen"], row["rejected"]) for row in lines(tmp_path / "rewardbench")] == [("Let me see.", "No.")]
    assert len(lines(tmp_path / "judge" / "test.jsonl")) == 4


@pytest.mark.parametrize("to", ["trl-reward", "openrlhf"])
def test_a_margin_to_be_subtracted_is_there_only_where_gamma_scales_it(to: str, tmp_path: Path) -> None:
    data = dataset(tmp_path / "data")
    assert export(data, to, tmp_path / "plain")["gamma"] is None
    assert export(data, to, tmp_path / "scaled", ExportOptions(gamma=0.5))["gamma"] == 0.5
    plain, scaled = (load_dataset(str(tmp_path / name), cache_dir=str(tmp_path / "cache"))["train"] for name in ("plain", "scaled"))
    assert "margin" not in plain.column_names
    assert scaled["margin"] == [0.5, 1.0, 1.5, 2.0] and scaled["quality_margin"] == [1.0, 2.0, 3.0, 4.0]
    with pytest.raises(UserError, match="would subtract an infinite margin"):
        export(data, to, tmp_path / "x", ExportOptions(gamma="inf"))
    with pytest.raises(UserError, match=r"--gamma 0\.5: trl-dpo has nothing that depends on γ"):
        export(data, "trl-dpo", tmp_path / "x", ExportOptions(gamma=0.5))


def test_openrlhf_adds_the_reply_to_the_prompt_as_lists_of_messages(tmp_path: Path) -> None:
    """What `preprocess_data` reads of a row: data[prompt_key] + data[chosen_key], rendered by the tokenizer's template."""
    export(dataset(tmp_path / "data", turns=3), "openrlhf", tmp_path / "out")
    rows = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {split: len(part) for split, part in rows.items()} == {"train": 4, "test": 1}
    [row] = rows["test"]
    assert [message["role"] for message in row["prompt"] + row["chosen"]] == ["user", "assistant", "user", "assistant"]
    assert (row["prompt"] + row["rejected"])[-1] == {"role": "assistant", "content": "worse"}


def test_judge_rows_show_both_orders_with_the_probability_of_each_verdict(tmp_path: Path) -> None:
    """σ(γ·m) by hand at γ = ln 3: ¾ for a margin of 1, ½ for a tie."""
    data = split_folder(tmp_path / "data", train=[pair(0, 1.0), *(pair(number, 0.0) for number in range(1, 9))])
    export(data, "judge", tmp_path / "out", ExportOptions(gamma=math.log(3)))
    first, second, *tied = lines(tmp_path / "out/train.jsonl")
    assert first["verdicts"] == pytest.approx({"A": 0.75, "B": 0.25}) and second["verdicts"] == pytest.approx(
        {"A": 0.25, "B": 0.75}
    )
    assert (first["first_id"], first["second_id"]) == (second["second_id"], second["first_id"]) == ("c" * 32, "d" * 32)
    assert [row["completion"][0]["content"] for row in (first, second)] == ["A", "B"]
    shown = [row["prompt"][-1]["content"] for row in (first, second)]
    assert [text.index("reply 0") < text.index("worse") for text in shown] == [True, False]
    assert {row["verdicts"]["A"] for row in tied} == {0.5}
    letters = [row["completion"][0]["content"] for row in tied]
    assert letters[::2] == letters[1::2]


def test_people_see_nothing_of_what_was_found_before(tmp_path: Path) -> None:
    """Sides are drawn, so that the chosen reply is on either; no margin, no model, no word of which was chosen."""
    rows = [pair(number, 2.5) | {"chosen_id": f"{number:032x}", "chosen_model": "secret-model"} for number in range(40)]
    export(split_folder(tmp_path / "data", train=rows), "label-studio", tmp_path / "out")
    [path] = (tmp_path / "out").glob("*.json")
    tasks = [task["data"] for task in orjson.loads(path.read_bytes())]
    left = sum(task["reply_a"].startswith("reply") for task in tasks)
    assert 10 <= left <= 30
    assert all((task["first_id"] == "d" * 32) == (task["reply_a"] == "worse") for task in tasks)
    assert not {"chosen", "rejected", "quality_margin"} & set(tasks[0]) and b"secret-model" not in path.read_bytes()
    config = ElementTree.parse(tmp_path / "out/config.xml")
    shown = {element.get("value", "").removeprefix("$") for element in config.iter("Text")}
    assert shown == {"prompt", "reply_a", "reply_b"} and shown <= set(tasks[0])
    assert [choice.get("value") for choice in config.iter("Choice")][3] == "tie"


def test_refusals_leave_nothing(tmp_path: Path) -> None:
    data = dataset(tmp_path / "data")
    (tmp_path / "taken").write_text("mine")
    for source, to, out, message in (
        (data, "trl-dp", "x", "did you mean 'trl-dpo'"),
        (tmp_path / "nowhere", "jsonl", "x", "is not a folder"),
        (data, "jsonl", "taken", "exists already"),
        (data, "jsonl", "data/x.jsonl", "is inside the dataset folder"),
        (data, "trl-dpo", "data/train/../test/x", "is inside the dataset folder"),
    ):
        with pytest.raises(UserError, match=message):
            export(source, to, tmp_path / out)
    assert {path.name for path in data.rglob("*")} == {"train", "test", "part-00000.parquet", "part-00001.parquet"}
    (data / "test" / "part-00000.parquet").write_bytes(b"PAR1 cut short")
    for to in EXPORTS:
        with pytest.raises(UserError, match=r"cannot read .*part-00000\.parquet"):
            export(data, to, tmp_path / "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "taken"]


def test_a_failure_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(pairs: object, target: Path) -> None:
        target.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(EXPORTS, "jsonl", dataclasses.replace(EXPORTS["jsonl"], write=write))
    with pytest.raises(UserError, match="the disk is full"):
        export(dataset(tmp_path / "data"), "jsonl", tmp_path / "x.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
