"""From a reply's tokens to a grade: expected values by hand, mass, spans that hit the right token, samples."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmpo.annotate.client import Choice, Token
from mmpo.annotate.judge import Reader, Reading, combined, expected
from mmpo.annotate.replies import Unparsable
from mmpo.annotate.scales import PREFERENCE, Scale, numbers
from mmpo.pipeline.errors import UserError


def logs(**probabilities: float) -> tuple[tuple[str, float], ...]:
    return tuple((token, math.log(p)) for token, p in probabilities.items())


def reply(*parts: str | tuple[str, tuple[tuple[str, float], ...]], finish: str = "stop") -> Choice:
    tokens = tuple(Token(part) if isinstance(part, str) else Token(part[0], part[1]) for part in parts)
    return Choice("".join(token.text for token in tokens), finish, tokens)


def read(choices: list[Choice], form: str, scale: Scale, names: tuple[str, ...], direct: bool = True) -> Reading:
    return combined(Reader(form, scale, names, direct, 0.5).each(choices))


def one(choice: Choice, scale: Scale = PREFERENCE, *, direct: bool = True) -> tuple[float, float | None, float | None]:
    """Value, standard deviation and label probability of the one grade of a reply."""
    [grade] = read([choice], "grade", scale, ("grade",), direct).grades.values()
    return grade.value, grade.std, grade.label_probability


DIRECT: dict[str, tuple[Choice, Any]] = {
    # Renormalised .625 and .375 of +3 and +2: mean 2.625, variance .625·.375.
    "the expected grade": (reply(("A", logs(A=0.5, B=0.3, The=0.2))), (2.625, 0.234375**0.5, 0.8)),
    # The letter written is D, but its distribution leans to A: 3·.35 + 2·.25, and 9·.35 + 4·.25 less its square.
    "as much as it is likely": (reply(("D", logs(D=0.4, A=0.35, B=0.25))), (1.55, 1.7475**0.5, 1.0)),
    # 3·(.5 - .3)/.8, and 9 less its square.
    "the first token decides": (reply(("**", logs(A=0.5, G=0.3, The=0.2)), "well"), (0.75, 8.4375**0.5, 0.8)),
    "little mass is no grade": (reply(("C", logs(C=0.3, The=0.7))), "low_mass"),
    "the first token is no grade": (reply(("I", logs(I=0.9, The=0.1)), " think", finish="length"), "cut_off"),
    "one token was all that was allowed": (Choice("A", "length"), (3.0, None, None)),
}
REASONED: dict[str, tuple[Choice, Any]] = {
    # F .75 and G .25: -2·.75 - 3·.25, variance .75·.25. An A stands before it.
    "the verdict's own token": (
        reply(("A", logs(A=0.9, B=0.1)), " is short", ".", "\n", "Ver", "dict", ":", (" F", logs(F=0.75, G=0.25))),
        (-2.25, 0.1875**0.5, 1.0),
    ),
    "thinking moves no span": (
        reply("<think>", ("A", logs(A=1.0)), "</think>", "Verdict", ": ", ("E", logs(E=0.5, D=0.5))), (-0.5, 0.5, 1.0)
    ),
    "tokens that do not spell the reply": (
        Choice("Verdict: C", "stop", (Token("something"), Token("else", logs(A=1.0)))), (1.0, None, None)
    ),
    # What was cut off may have held another verdict.
    "cut off": (Choice("Verdict: A. But then", "length"), "cut_off"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("direct", "choice", "expected"),
    [(way is DIRECT, *case) for way in (DIRECT, REASONED) for case in way.values()],
    ids=[*DIRECT, *REASONED],
)
def test_grades_by_hand(direct: bool, choice: Choice, expected: Any) -> None:
    if isinstance(expected, str):
        with pytest.raises(Unparsable, match=expected):
            one(choice, direct=direct)
    else:
        assert one(choice, direct=direct) == pytest.approx(expected)


def test_a_label_of_two_tokens_keeps_its_plain_value() -> None:
    choice = reply("Rating: ", ("1", logs(**{"1": 0.9, "2": 0.1})), "0")
    assert one(choice, numbers(1, 10), direct=False) == (10.0, None, None)


def test_spellings_of_one_label_add_up_and_other_letters_do_not() -> None:
    tops = (("C", math.log(0.2)), (" C", math.log(0.2)), ('"C', math.log(0.1)), ("c", math.log(0.3)), ("CC", math.log(0.2)))
    grade = expected(tops, PREFERENCE)
    assert (grade.value, grade.label_probability) == (1.0, 0.5)
    with pytest.raises(Unparsable, match="no_label"):
        expected(logs(The=0.9, I=0.1), PREFERENCE)


def test_every_label_of_a_list_reads_its_own_token() -> None:
    choice = reply('{"', "B", '": ', ("5", logs(**{"5": 0.5, "3": 0.5})), ', "', "A", '": ', ("1", logs(**{"1": 1.0})), "}")
    found = read([choice], "labelled", numbers(1, 5), ("A", "B"))
    assert (found.grades["A"].value, found.grades["B"].value) == (1.0, 4.0)


def test_several_replies_are_averaged_and_their_spread_is_that_of_one() -> None:
    choices = [Choice(letter) for letter in ("A", "A", "B", "D")]
    found = read(choices, "grade", PREFERENCE, ("grade",))
    # 3, 3, 2, 0: mean 2, squared deviations 1 + 1 + 0 + 4 = 6 over 3.
    assert found.grades["grade"].value == 2.0 and found.grades["grade"].std == pytest.approx(math.sqrt(2))
    # Half of them will do.
    few, none = [Choice(text) for text in ("A", "B", "nothing to say", "C")], [Choice("x y")] * 3
    assert read(few, "grade", PREFERENCE, ("grade",)).grades["grade"].value == 2.0
    with pytest.raises(Unparsable):
        read([*few, *none], "grade", PREFERENCE, ("grade",))


def test_ranks_become_shares() -> None:
    text = '[{"model": "A", "rank": 2}, {"model": "B", "rank": 1}, {"model": "C", "rank": 3}]'
    found = read([Choice(text)], "ranking", numbers(1, 5), ("A", "B", "C"), direct=False)
    assert {name: grade.value for name, grade in found.grades.items()} == {"A": 0.5, "B": 1.0, "C": 0.0}


@given(st.lists(st.floats(0.001, 1.0), min_size=7, max_size=7))
def test_turning_the_distribution_around_turns_the_grade_around(weights: list[float]) -> None:
    total = sum(weights)
    tops = [(label, math.log(weight / total)) for label, weight in zip("ABCDEFG", weights)]
    turned = [(label, logprob) for label, (_, logprob) in zip("GFEDCBA", tops)]
    here, there = expected(tops, PREFERENCE), expected(turned, PREFERENCE)
    assert here.value == pytest.approx(-there.value, abs=1e-9) and here.std == pytest.approx(there.std, abs=1e-9)
    assert here.label_probability == pytest.approx(1.0) and -3 <= here.value <= 3


def test_what_is_kept_of_the_tokens_reads_the_same() -> None:
    choice = reply(("I", logs(I=1.0)), (" prefer", logs(x=1.0)), "\nVerdict: ", ("C", logs(C=0.5, B=0.5)))
    kept = Choice(choice.text, choice.finish, Reader("grade", PREFERENCE, ("grade",), False, 0.5).trimmed(choice.tokens))
    assert one(kept, direct=False) == one(choice, direct=False)
    assert sum(bool(token.top) for token in kept.tokens) == 2


def test_scales_that_can_not_be() -> None:
    with pytest.raises(UserError, match="two different values"):
        Scale({"A": 1.0})
    with pytest.raises(UserError, match="empty"):
        Scale({" ": 1.0, "B": 2.0})
