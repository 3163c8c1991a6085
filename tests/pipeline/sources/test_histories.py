"""Turns of conversations before which it is not known what was said: they are no prompts, and what was graded there is counted."""

import json
from pathlib import Path
from typing import Any

import pytest
from folders import write_rows
from source_cases import collected, graded_texts, reasons

from mmpo.pipeline import BuildOptions, UserError, build, validate

Rows = list[dict[str, Any]]
FIRST = [("Q", "a", 10.0, "u", "overall"), ("Q", "b", 5.0, "u", "overall")]
TWO_LEFT = ["a", "b"]


def said(turn: int, asked: str, chosen: bool | None = True, name: str = "c") -> Rows:
    """A turn of PRISM's utterances: two replies with the grades 10 and 5; the first is the chosen one (None: both)."""
    told = {"conversation_id": name, "user_id": "u", "turn": turn, "user_prompt": asked, "model_name": "m"}
    replies = ((TWO_LEFT if turn == 0 else [f"{turn}a", f"{turn}b"])[place] for place in range(2))
    graded = ((10, chosen is not False), (5, chosen is None))
    return [
        {**told, "utterance_id": f"{name}{turn}{place}", "within_turn_id": place, "model_response": reply, "score": score, "if_chosen": won}
        for place, (reply, (score, won)) in enumerate(zip(replies, graded, strict=True))
    ]  # fmt: skip


def whole(rows: Rows) -> Rows:
    """The same as PRISM's conversations."""
    history: Rows = []
    for one in rows:
        asked = {"turn": one["turn"], "role": "user", "content": one["user_prompt"]}
        history += [] if asked in history else [asked]
        history.append(
            {**{name: one[name] for name in ("turn", "score", "if_chosen")}, "role": "model", "content": one["model_response"]}
        )
    return [{"conversation_id": "c", "user_id": "u", "conversation_history": history}]


# Name → turns, what is graded, turns and grades without a history, and how many rows (or conversations) are faulty.
PRISM: dict[str, tuple[Rows, list[Any], tuple[int, int], bool]] = {
    "nothing was chosen": ([*said(0, "Q", False), *said(1, "R"), *said(2, "S"), *said(3, "T")], FIRST, (3, 6), False),
    "two were chosen": ([*said(0, "Q", None), *said(1, "R")], FIRST, (1, 2), False),
    "the last has no choice": (said(0, "Q", False), FIRST, (0, 0), False),
    "the first is gone": (said(1, "and tomorrow?"), [], (1, 2), True),
    "one between is gone": ([*said(0, "Q"), *said(2, "third"), *said(3, "T")], FIRST, (2, 4), False),
    "a later one has no reply of the model": ([*said(0, "Q", False), {**said(1, "R")[0], "score": None}], FIRST, (1, 0), False),
}


@pytest.mark.parametrize("layout", ["utterances", "conversations"])
@pytest.mark.parametrize("name", PRISM)
def test_turns_without_a_history_are_counted(name: str, layout: str, tmp_path: Path) -> None:
    rows, graded, (turns, grades), faulty = PRISM[name]
    found = collected(write_rows(tmp_path / "rows.jsonl", whole(rows) if layout == "conversations" else rows), "prism")
    assert graded_texts(found) == graded
    assert reasons(found) == {k: n for k, n in {"history_unknown": turns, "grade_of_unknown_history": grades}.items() if n}
    assert (found.limited, found.counts["grade"]) == (int(faulty), len(graded))


def test_a_conversation_over_two_files_is_no_conversation(tmp_path: Path) -> None:
    files = [
        write_rows(tmp_path / f"{n}.jsonl", rows)
        for n, rows in enumerate(([*said(0, "Q"), *said(0, "Q2", name="d")], [*said(1, "R"), *said(1, "R2", name="d")]))
    ]
    told = build(files, tmp_path / "out", options=BuildOptions(format="prism", max_rejects=1.0, split=(1, 0, 0), workers=1))
    assert (told["prompts"], told["rejected"]) == (2, {"grade_of_unknown_history": 4, "history_unknown": 2})
    assert [check for check in validate(tmp_path / "out")["checks"] if check["status"] == "fail"] == []


def test_a_file_without_first_turns_is_refused_with_what_to_do(tmp_path: Path) -> None:
    given = write_rows(tmp_path / "rows.jsonl", said(1, "and tomorrow?"))
    with pytest.raises(UserError, match=r"First: .*history_unknown .*: a conversation stands whole in one file, from turn 0 on"):
        build(given, tmp_path / "out", options=BuildOptions(format="prism", workers=1))


def chat(**turns: tuple[str | None, str | None]) -> dict[str, Any]:
    """A row of Community Alignment: of each turn its prompt and the preferred reply, of `TURNa` and `TURNb`."""
    row: dict[str, Any] = {"conversation_id": "1", "annotator_id": "x"}
    for turn, (asked, preferred) in turns.items():
        row |= {f"{turn}_turn_prompt": asked, f"{turn}_turn_preferred_response": preferred}
        row |= {f"{turn}_turn_response_{letter}": f"{turn} {letter}" for letter in "ab"}
    return row


FIRST_TURN = [("Q", "first a", "first b", 1.0, "x", "overall")]
A = "response_a"
COMMUNITY: dict[str, tuple[dict[str, Any], list[Any], dict[str, int]]] = {
    "no preference, then one": (
        chat(first=("Q", None), second=("R", A)), [], {"no_grade": 1, "history_unknown": 1, "grade_of_unknown_history": 1}),
    "two turns later": (
        chat(first=("Q", A), second=("R", None), third=("S", A), fourth=("T", None)), FIRST_TURN,
        {"no_grade": 1, "history_unknown": 2, "grade_of_unknown_history": 1}),
    "a prompt is gone": (
        chat(first=("Q", A), second=(None, None), third=("S", A)), FIRST_TURN,
        {"history_unknown": 1, "grade_of_unknown_history": 1}),
    "it ends there": (chat(first=("Q", A), second=(None, None)), FIRST_TURN, {}),
    "no first prompt": (chat(first=(None, None), second=("R", A)), [], {"empty_prompt": 1}),
}  # fmt: skip


@pytest.mark.parametrize("name", COMMUNITY)
def test_turns_after_an_unknown_preference_are_counted(name: str, tmp_path: Path) -> None:
    row, graded, left_out = COMMUNITY[name]
    found = collected(write_rows(tmp_path / "rows.jsonl", [chat(first=("Q", A)), row]), "community-alignment")
    assert graded_texts(found) == FIRST_TURN + graded
    assert reasons(found) == left_out


def places(path: Path, format: str) -> list[tuple[str, int, Any]]:
    """Reason, row and message_id of what was left out."""
    found = collected(path, format).rejects.to_pylist()
    return [(one["reason"], one["row"], json.loads(one["evidence"] or "{}").get("message_id")) for one in found]


def test_what_is_left_out_of_rows_of_one_message_has_its_own_row(tmp_path: Path) -> None:
    names = ("message_id", "parent_id", "role", "text", "rank")
    told = [
        ("t", None, "prompter", "Q", None), ("a", "t", "assistant", "x", 0), ("b", "t", "assistant", "y", 1),
        ("d", "t", "assistant", "gone", 2), ("e", "t", "assistant", "z", None), ("f", "t", "assistant", " ", 3), ("g", "t", "bot", "v", 4),
    ]  # fmt: skip
    rows = [{**dict(zip(names, one)), "message_tree_id": "t", "deleted": one[0] == "d"} for one in told]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    assert sorted(places(path, "oasst")) == [
        ("deleted", 4, "d"), ("empty_completion", 6, "f"), ("unknown_role", 7, "g"), ("unranked", 5, "e"),
    ]  # fmt: skip
    assert collected(path, "oasst").limited == 1  # of one tree
    tree = {"message_id": "t", "role": "prompter", "text": "Q", "parent_id": None}
    replies = [{"message_id": "a", "role": "assistant", "text": "x", "rank": 0, "replies": "none"}, "a text", None]
    path = write_rows(tmp_path / "trees.jsonl", [{"message_tree_id": "t", "prompt": {**tree, "replies": replies}}])
    assert sorted(places(path, "oasst")) == [("not_a_list", 1, "a"), ("not_an_object", 1, "t"), ("not_an_object", 1, "t")]
    utterances = [*said(0, "Q"), *said(1, "R", False), *said(2, "S")]
    utterances[1]["score"], utterances[2]["model_response"] = None, ""
    assert places(write_rows(tmp_path / "said.jsonl", utterances), "prism") == [
        ("no_grade", 2, None), ("empty_completion", 3, None), ("history_unknown", 5, None),
        ("grade_of_unknown_history", 5, None), ("grade_of_unknown_history", 6, None),
    ]  # fmt: skip
