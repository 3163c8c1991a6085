"""Tokens laid along a reply from its end: what lies before it or behind it is none of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmpo.annotate.client import Token
from mmpo.annotate.replies import placed

PIECES = st.lists(st.text(st.sampled_from("AB :\n<é"), min_size=1, max_size=4), max_size=8)


def spelled(text: str, pieces: list[str]) -> list[str]:
    return [text[one.start : one.end] for one in placed(text, [Token(piece) for piece in pieces])]


@given(PIECES, PIECES)
def test_the_tokens_of_a_whole_reply_are_found_behind_any_thought(thought: list[str], reply: list[str]) -> None:
    text = "".join(reply)
    found = spelled(text, [*thought, *reply])
    assert "".join(found) == text[text.rstrip().rfind("".join(found)) :].rstrip()
    assert "".join(found).strip() == text.strip()


@given(PIECES, st.sampled_from(["</s>", "<|im_end|>", "<|return|>", "<｜end▁of▁sentence｜>", "", "\n"]))
def test_the_end_of_a_turn_is_passed_over(reply: list[str], end: str) -> None:
    text = "".join(reply)
    assert spelled(text, [*reply, end]) == spelled(text, reply)


@pytest.mark.parametrize(
    ("text", "pieces", "found"),
    [
        ("C", ["A", " C"], ["C"]),
        ("the C", ["▁the", "▁C"], ["the", " C"]),
        ("the\nC", ["the", "Ċ", "C"], ["the", "\n", "C"]),
        ("é: C", ["\ufffd", "\ufffd", ":", " C"], [":", " C"]),
        ("C", ["A", "B"], []),
        ("", ["A"], []),
        ("C", [], []),
        ("<b>", ["A", "<b>"], ["<b>"]),
    ],
)
def test_tokens_by_hand(text: str, pieces: list[str], found: list[str]) -> None:
    assert spelled(text, pieces) == found
