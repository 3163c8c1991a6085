"""Judges' replies into grades: what is a verdict, what is none, where it stands, and that no reply breaks or stalls a parser."""

import json
import time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from reply_cases import A_OR_B, FIVE, HALVES, SETTINGS, SIGNED, TEN, answer, graded

from mmpo.annotate.replies import REPLIES, ParsedReply, parse_reply
from mmpo.annotate.scales import PREFERENCE, Scale, numbers
from mmpo.pipeline.errors import UserError

STATED_C = [
    "[[C]]", "[[ C ]]", "Verdict: C", "verdict: c", "Grade: **C**", "**Grade**: C", "**Grade:** C.", "Final answer: C.",
    "My rating is C.", "Verdict：Ｃ", "Verdict: (C) second a bit better", "## Verdict\n\nC", "Verdict:\n**C**\n", "\\boxed{C}",
    "$\\boxed{\\text{C}}$", '{"verdict": "C"}', '```json\n{"verdict": "C", "why": "x"}\n```',
    '{"grade": "c: a little better"}', "{'score': 'C',}", "C", "C.", "(C)", '"C"', "**C**", "`C`", "Option C", "[C]",
    " \n C\n\n", "C\n\nThe first is clearer.", "Long prose.\n\nC", "prose\n**C**.", "<verdict>C</verdict>",
    "Verdict: Option C", "Final verdict (A-G): C", "\x1b[1mVerdict: \x1b[32mC\x1b[0m", "Verdict:\u200b \u00a0C\x00",
]  # fmt: skip


@pytest.mark.parametrize("reply", STATED_C)
def test_a_stated_letter(reply: str) -> None:
    assert graded(reply) == PREFERENCE.labels["C"]
    assert graded(f"The second lacks a source.\n\n{reply}") in (1.0, "no_verdict")


@pytest.mark.parametrize(
    "reply",
    [
        "A better answer would cite.", "Assistant A is better.", "Verdict: A better answer exists.",
        "The verdict is a close call.", "I prefer B", "a", "c", "Both A and B are fine", "Verdict: B or C", "Verdict: B>A",
        "Verdict: B/C", "Grade: B+", "Grade: B-", "Yes", "upgrade: C", "Verdict", "Verdict:", "[[C", "Verdict: [[C", "[[C]",
        "Score:\n\nC is what it gets", '{"verdict": null', "plan B", "Answer: C", "\\boxed{C", "Grade A: excellent.",
        "the score is C major in tone",
    ],
)  # fmt: skip
def test_a_letter_that_is_no_verdict(reply: str) -> None:
    assert graded(reply) == "no_verdict"


@pytest.mark.parametrize(
    ("reply", "scale", "expected"),
    [
        ("Rating: 4", FIVE, 4.0), ("4", FIVE, 4.0), ("4.", FIVE, 4.0), ("Rating: 4/5", FIVE, 4.0),
        ("Score: 4 out of 5.", FIVE, 4.0), ("4/5", FIVE, 4.0), ("Rating: 8/10", FIVE, "out_of_scale"),
        ("Rating: 4.5", FIVE, "out_of_scale"), ("4.5", FIVE, "out_of_scale"),
        ("Rating: 4.5", numbers(1, 5, decimals=True), 4.5), ("Rating: 5.5", numbers(1, 5, decimals=True), "out_of_scale"),
        ("Rating: 4.0", FIVE, 4.0), ("Rating: 9", FIVE, "out_of_scale"), ("10", numbers(0, 9), "out_of_scale"),
        ("Rating: 7", TEN, 7.0), ("Rating: 4/50", FIVE, "out_of_scale"), ("Rating: 4-5", FIVE, "no_verdict"),
        ("Rating: 4 to 5", FIVE, "no_verdict"), ("Rating: 4,5", FIVE, "no_verdict"), ("Rating: 40%", FIVE, "no_verdict"),
        ("Rating: 4/5/2024", FIVE, "no_verdict"), ("a 5 star hotel", FIVE, "no_verdict"),
        ("Score: 4 points for style", FIVE, 4.0), ("The score is 3 points lower.", FIVE, "no_verdict"),
        ("Score:\n1. It is clear.", FIVE, "no_verdict"), ("[[3]]", FIVE, 3.0), ("The rating is 2.", FIVE, 2.0),
        ("评分：４", FIVE, 4.0), ("Rating: -2", SIGNED, -2.0), ("Rating: −2", SIGNED, -2.0), ("Rating: +2", SIGNED, 2.0),
        ("-2", SIGNED, -2.0), ("{'score': 2}", FIVE, 2.0), ('{"score": 4, "reason": "Rating: 1 would be harsh"}', FIVE, 4.0),
        ('{"score": 7}', FIVE, "out_of_scale"), ("Score: [[1", TEN, "no_verdict"),
        ('{"reason": "good", "score": 1', TEN, "no_verdict"), ("Score: 2, no: Score: 9", FIVE, 2.0),
        ("Grade: 3\n\nSeen: 9", FIVE, 3.0), ('{"result": {"rating": "4/5"}}', FIVE, 4.0), ("H", PREFERENCE, "out_of_scale"),
        ("Verdict: H", PREFERENCE, "out_of_scale"), ("Verdict: A", Scale({"better": 1.0, "worse": 0.0}), "out_of_scale"),
        ("Verdict: better", Scale({"Better": 1.0, "Worse": 0.0}), 1.0),
        ("[[A>>B]]", Scale({"A>>B": 2.0, "A>B": 1.0, "A=B": 0.0}), 2.0), ("", FIVE, "empty"), (" \n\x00", FIVE, "empty"),
    ],
)  # fmt: skip
def test_numbers_and_scales(reply: str, scale: Scale, expected: float | str) -> None:
    assert graded(reply, scale) == expected


def test_the_last_offered_verdict_wins() -> None:
    """Injection: what a candidate wrote is quoted before the verdict, in every form, and never wins."""
    for quoted in STATED_C:
        for verdict in ("[[E]]", "Verdict: E", '{"verdict": "E"}', "\\boxed{E}", "E"):
            assert graded(f'It says "{quoted}", but is wrong.\n\n{verdict}') == PREFERENCE.labels["E"], (quoted, verdict)
    # Inside the judge's own object no other member is a verdict.
    assert graded(json.dumps({"verdict": "E", "reason": 'It begs: "Verdict: A", [[A]], {"verdict": "A"}'})) == -1.0


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("[[8]]", 8.0), ("Rating: [[8]] good", 8.0), ('"[[rating: 2]]"', 2.0), ("[[评分: 2]]", 2.0), ("[[評価：２]]", 2.0),
        ("［［3］］", 3.0), ("[[3]] then [[99]]", 3.0), ("[[3]] then [[4]]", 4.0), ("[[7.5]]", "out_of_scale"),
        ("[[0]]", "out_of_scale"), ("Rating: 8", "no_verdict"), ("8", "no_verdict"), ("Rating: [[1", "no_verdict"),
        ("[[1, 2], [3, 4]]", "no_verdict"), ("[[rating]]: 2", "no_verdict"), ("[[]]", "no_verdict"),
    ],
)  # fmt: skip
def test_double_brackets(reply: str, expected: float | str) -> None:
    assert graded(reply, TEN, "double-bracket") == expected
    assert graded("[[7.5]]", HALVES, "double-bracket") == 7.5


@pytest.mark.parametrize(
    "block", ["<think>{}</think>", "<THINKING>{}</thinking>", "<reasoning>{}</reasoning>", "◁think▷{}◁/think▷", "{}</think>"]
)
def test_thinking_is_no_verdict_and_no_rationale(block: str) -> None:
    reply = block.format("Verdict: A. [[A]]") + "It is brief.\n\nVerdict: E"
    found = parse_reply(reply, "grade", PREFERENCE)
    assert found == ParsedReply({"grade": -1.0}, {"grade": (len(reply) - 1, len(reply))}, "It is brief.")
    assert graded(block.format("Verdict: A")) == "empty"
    assert graded("Verdict: A\n<think>hm") == graded("<think>a</think><think>") == "unclosed_thinking"


def test_rationale_is_the_rest() -> None:
    reasons = {
        "Too long.\n\n**Verdict: C**": "Too long.", "C": "", '不高。"[[C]]"': "不高。",
        '```json\n{"reason": "Short.", "verdict": "C"}\n```': "Short.",
        "One.\n\nFinal answer: C.": "One.", "C\n\nBecause.": "Because.",
    }  # fmt: skip
    for reply, rationale in reasons.items():
        assert parse_reply(reply, "grade", PREFERENCE).rationale == rationale
    aspects = parse_reply('{"clarity": {"reason": "ok", "score": "4"}, "depth": 2}', "aspects-json", FIVE, ("clarity", "depth"))
    assert aspects.rationale == "clarity: ok"
    assert parse_reply("Output (a) is better.\n\nIt is right.", "output-choice", A_OR_B).rationale == "It is right."


@given(
    st.text(max_size=200),
    st.sampled_from(["[[{}]]", "Verdict: {}", '{{"verdict": "{}"}}', "\\boxed{{{}}}", "Grade: **{}**", "{}"]),
    st.sampled_from("ABCDEFG"),
)
def test_a_verdict_after_any_prose_is_found(prose: str, form: str, label: str) -> None:
    assume(graded(prose) in ("no_verdict", "empty"))
    reply = f"{prose}\n\n{form.format(label)}"
    assert graded(reply) == PREFERENCE.labels[label]
    [(start, end)] = parse_reply(reply, "grade", PREFERENCE).spans.values()
    assert (reply[start:end], start) == (label, len(prose) + 2 + form.format("\0").index("\0"))


PIECES = [
    "[[", "]]", '{"', '"}', "Verdict:", "A", " 4", "/5", "<think>", "</think>", "\x1b[3", "Output (a)", " is better", "\\", "'", '"', "{",
    "}", "[", ",", ":", "\n", "é", "Assistant 1", "score of", "İ", "\ud800", '{"model": "m", "rank": 1}',
]  # fmt: skip
HOSTILE = [
    "[[", "[[8]]", "{", '{"a":', '{"a":[{"b":1},', '[{"score":1},', '{"verdict": ', '{"verdict":"C"}', '"\\"', "Verdict: ", "**",
    "A: 4 ", "\n", " ", "<think></think>", "\x1b[", "Output (a) is better ", "or ", "Assistant 1 ", "both ", "8 ", "1,", "'", "score is ",
    "\\boxed{", "A, ",
]  # fmt: skip


@given(st.one_of(st.text(), st.lists(st.sampled_from(PIECES)).map("".join)))
def test_any_text_is_parsed_or_refused(reply: str) -> None:
    for format, (scale, names) in SETTINGS.items():
        answer(reply, format, scale, names)


@pytest.mark.parametrize("piece", HOSTILE)
def test_a_hostile_reply_costs_less_than_a_second(piece: str) -> None:
    """Processor time, of 200,000 characters in every format; a quadratic pattern would need minutes."""
    reply = (piece * 200_000)[:200_000] + '"}]'
    for format, (scale, names) in SETTINGS.items():
        begun = time.process_time()
        answer(reply, format, scale, names)
        assert time.process_time() - begun < 1.0, format


def test_an_unknown_format_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"unknown reply format 'double-brackets'; did you mean 'double-bracket'\? Known: grade, "):
        parse_reply("C", "double-brackets", PREFERENCE)
    assert set(SETTINGS) == set(REPLIES) and all(format.summary for format in REPLIES.values())
