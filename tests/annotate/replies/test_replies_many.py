"""Judges' replies that say more than one thing: a choice of two, two scores, aspects, rankings, grades of labelled texts."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reply_cases import FIVE, SETTINGS, answer


def ranks(**entries: Any) -> str:
    return json.dumps([{"model": model, "rank": rank} for model, rank in entries.items()])


CASES: dict[str, list[tuple[str, Any]]] = {
    "output-choice": [
        ("Output (a)", (1,)), ("output (B).", (0,)), ("Output (b) is better.\n\nOutput (a) is vague.", (0,)),
        ("# Output (a) is better.", (1,)), ("Output (b) is not right. Therefore, Output (a) is better.", (1,)),
        ("Output (a) is better. On reflection, Output (b) is better.", (0,)),
        ("I must choose Output (b) as the better option. Output (a)", (0,)),
        ("So the better output for this is Output (b).", (0,)), ("Output (a) (Output (b) is rude)", (1,)),
        ("Which is better, Output (a) or Output (b)?\nOutput (a)", (1,)),
        ("Output (b) is better. Output (a) is better in terms of length.", (0,)),
        ("Assistant (a) argues that Output (a) is better.", "no_verdict"),
        ("Neither Output (a) nor Output (b) is better.", "no_verdict"),
        ("I cannot say that Output (a) or Output (b) is better", "no_verdict"),
        ("Both Output (a) and Output (b) are fine.", "no_verdict"), ("Therefore, Output (b)", "no_verdict"),
        ("# Output (a):\ntext", "no_verdict"), ("Output (a): Yes\nOutput (b): No", "no_verdict"),
        ("It is unclear whether Output (a) is better.", "no_verdict"), ("e5", "no_verdict"),
        ("Output (a) does not answer and Output (b) is better.", (0,)), ("It is not clear that Output (b) is better.", "no_verdict"),
    ],
    "two-scores": [
        ("8 10", (8, 10)), ("8.0, 9.5\n\nBoth are good.", (8, 9.5)), ("7/10 9/10", (7, 9)), ("(3, 9)", (3, 9)),
        ("Scores: 8 9\nfine", (8, 9)), ("8 9\nThe input\n1 2\nfails", (8, 9)),
        ("Assistant 1: 8/10\nAssistant 2: 9/10\n\nAssistant 1 has 3 errors.", (8, 9)),
        ("**Assistant 2**: 9\n**Assistant 1**: 8", (8, 9)),
        ("Assistant 1:\nScore: 7/10\n- ok\nAssistant 2:\nScore: 9/10", (7, 9)),
        ("I would give Assistant 1 a score of 4 out of 10 and Assistant 2 a score of 8.", (4, 8)),
        ("a score of 5 to Assistant 1 and a score of 9 to Assistant 2", (5, 9)),
        ("Both assistants receive a score of 10.", (10, 10)),
        ("the scores for Assistant 1 and Assistant 2 are 3 and 9, respectively", (3, 9)),
        ("Solve (2, -2), (10, 4).\n\nThe output tuple is (10, 4).", (10, 4)), ("Assistant A: 3\nAssistant B: 4", (3, 4)),
        ("text first\n7 8", (7, 8)), ("Assistant 1: 8", "missing_label"), ("Assistant 1: 11\nAssistant 2: 3", "out_of_scale"),
        ("8", "no_verdict"), ("8/10", "no_verdict"), ("Assistant 1 has 3 errors, Assistant 2 has 4.", "no_verdict"),
        ("both have a 3 step plan", "no_verdict"), ("Assistant 1: 3 errors\nAssistant 2: 4 errors", "no_verdict"),
    ],
    "aspects-json": [
        ('{"clarity": {"reason": "ok", "score": "4"}, "depth": 2}', {"clarity": 4, "depth": 2}),
        ("{'Depth': 2, 'Clarity': '4/5',}", {"clarity": 4, "depth": 2}),
        ('Sure:\n```json\n{"clarity": {"score": 4,}, "depth": {"score": "N/A"},}\n```\nDone.', {"clarity": 4}),
        ('{"clarity": null, "depth": 3}', {"depth": 3}), ('{"clarity": "N/A", "depth": "n/a"}', "not_applicable"),
        ('{"clarity": 4}', "missing_label"), ('{"clarity": {"reason": "x"}, "depth": 1}', "missing_label"),
        ('{"clarity": 4, "depth": 6}', "out_of_scale"), ('{"clarity": 4, "clarity": 5, "depth": 1}', "ambiguous"),
        ('{"clarity": {"reason": "a', "truncated"), ('{"clarity": {"reason": "a", "score": 4}, "depth": {"reas', "truncated"),
        ('{"clarity": 4, "depth": 3} or {"clarity": 5, "depth": 1}', {"clarity": 5, "depth": 1}),
        ('{"clarity": 4, "depth": 3} or {"clarity": 9, "depth": 1}', {"clarity": 4, "depth": 3}),
        ('{"all": {"clarity": 4, "depth": 3}}', {"clarity": 4, "depth": 3}), ("none", "no_verdict"),
    ],
    "ranking": [
        (ranks(m=1, M=2), {"m": 1, "M": 2}), (ranks(M=1, m=2), {"m": 2, "M": 1}),
        ("[{'model': 'm', 'rank': 1},\n{'model': 'M', 'rank': 1},]", {"m": 1, "M": 1}),
        ('{"concise_explanation": "it\'s", "ordered_models": ' + ranks(m=2, M=1) + "}", {"m": 2, "M": 1}),
        (ranks(m="1", M="2"), {"m": 1, "M": 2}), (ranks(m=2, M=2), "not_a_ranking"), (ranks(m=1, M=3), "not_a_ranking"),
        (ranks(m=0, M=1), "not_a_ranking"), (ranks(m=1), "missing_label"), (ranks(m=1, x=2), "not_a_ranking"),
        ('[{"model": "m", "rank": 1}, {"model": "m", "rank": 2}]', "ambiguous"),
        ('[{"model": "m", "rank": 1}, {"mod', "truncated"), ("__import__('os')", "no_verdict"),
        (ranks(m=1, M=2) + " no: " + ranks(m=2, M=1), {"m": 2, "M": 1}),
    ],
    "labelled": [
        ('{"A": 4, "B": 2, "C": 5}', (4, 2, 5)), ('{"C": 5, "A": "4/5", "B": {"grade": 2, "reason": "A: 1"}}', (4, 2, 5)),
        ('{"grades": {"B": 2, "C": 5, "A": 4}}', (4, 2, 5)), ("A: 4\nB: 2\nC: 5", (4, 2, 5)),
        ("Good.\n[C] 5\n[A] 4\n[B] 2\n", (4, 2, 5)), ("**B**: 2/5\n- **A**: 4/5, clear\n- **C**: 5", (4, 2, 5)),
        ("A: 4, B: 2, C: 5", (4, 2, 5)),
        ('[{"label": "C", "grade": 5}, {"label": "A", "grade": 4}, {"label": "B", "grade": 2}]', (4, 2, 5)),
        ("Response A: 4\nResponse B: 2\nResponse C: 5", (4, 2, 5)),
        ("A: 1\nB: 1\nC: 1\n\nFinal:\nC: 5\nB: 2\nA: 4", (4, 2, 5)), ("A: 4\nB: 2\nC: 5\n\nA: 3 or so", (4, 2, 5)),
        ("A: 4\nB: 2", "missing_label"), ("A: 4\nB: 2\nC: 9", "out_of_scale"), ("A: 4\nA: 3\nB: 2\nC: 1", "ambiguous"),
        ("A: 5\nB: 1\nC: 1\n\nA: 4\nA: 3\nB: 2\nC: 1", "ambiguous"), ('{"A": 4, "A": 3, "B": 2, "C": 1}', "ambiguous"),
        ("4 2 5", "no_verdict"), ("A: 4 typos\nB: 2 typos\nC: 5 typos", "no_verdict"),
        ('{"A": 4, "B": 2, "C"', "missing_label"), ('{"A"', "truncated"),
        ("A - 4\nB - 2\nC - 5", (4, 2, 5)), ("A: 1\nB: 1\nC: 1\n{'C': 5, 'B': 2, 'A': 4}", (4, 2, 5)),
    ],
}  # fmt: skip
"""What is read in a reply, in the order of the format's names (reply_cases.SETTINGS), or why nothing is."""


@pytest.mark.parametrize(("format", "reply", "expected"), [(format, *case) for format, cases in CASES.items() for case in cases])
def test_what_a_reply_says(format: str, reply: str, expected: Any) -> None:
    scale, names = SETTINGS[format]
    if isinstance(expected, tuple):
        expected = dict(zip(names, expected, strict=True))
    assert answer(reply, format, scale, names) == expected


@pytest.mark.parametrize("scores", [[1, 1, 2], [1, 1, 3], [1, 2, 2], [1, 1, 1], [2, 3, 1]])
def test_tied_ranks(scores: list[int]) -> None:
    assert answer(ranks(**dict(zip("xyz", scores))), "ranking", FIVE, tuple("xyz")) == dict(zip("xyz", scores))


@given(st.permutations("ABCDE"), st.lists(st.integers(1, 5), min_size=5, max_size=5), st.booleans())
def test_each_grade_is_bound_to_its_label(order: list[str], grades: list[int], as_json: bool) -> None:
    truth = dict(zip("ABCDE", map(float, grades)))
    given_ = {label: int(truth[label]) for label in order}
    reply = json.dumps(given_) if as_json else "\n".join(f"{label}: {value}" for label, value in given_.items())
    assert answer(reply, "labelled", FIVE, tuple("ABCDE")) == truth
