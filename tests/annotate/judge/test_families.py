"""Adding a mode, a way to read replies or a way to choose pairs is one entry of its table; which fit together follows from the entries."""

from dataclasses import replace
from itertools import product
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mmpo.annotate.client import Answer, Choice
from mmpo.annotate.judge import MODES, Capabilities, Judge, JudgeOptions, Questions
from mmpo.annotate.judge.reading import loads
from mmpo.annotate.pairings import PAIRINGS, Pairing
from mmpo.annotate.replies import REPLIES, ParsedReply, ReplyFormat
from mmpo.annotate.rows import FeedbackRow
from mmpo.pipeline.errors import UserError

ROW = FeedbackRow("0" * 32, [{"role": "user", "content": "?"}], ["a", "b", "c"], ["x", "y", "z"], [None] * 3)


def asker(**options: Any) -> Questions:
    """Of these options, also of members that stand in no table yet when the options are declared."""
    return Questions(Judge("m"), cast(Any, SimpleNamespace(**{**vars(JudgeOptions()), **options})), Capabilities())


def test_a_new_member_of_each_family_is_asked_and_read(monkeypatch: pytest.MonkeyPatch) -> None:
    first_only = replace(MODES["pointwise"], orders=lambda row, options: iter([(0,)]), count=lambda n, options: 1)
    stars = ReplyFormat(lambda text, scale, names: ParsedReply({"grade": float(text.count("*"))}, {}, ""), "stars", "one")
    monkeypatch.setitem(MODES, "first-only", first_only)
    monkeypatch.setitem(REPLIES, "stars", stars)
    monkeypatch.setitem(PAIRINGS, "ends", Pairing(lambda given: [(0, len(given.ids) - 1)], lambda n, k: 1, "first and last"))
    for options, count in (({"mode": "first-only"}, 1), ({"pairs": "ends"}, 2)):
        one = asker(reply="stars", **options)
        posed = list(one.of(ROW))
        assert len(posed) == one.count([3]) == count
        answer = one.checked(posed[0].requests[0], Answer((Choice("***"),), 1, 1, 0.0))
        assert isinstance(answer, Answer) and answer.reading
        [grade] = one.grades(posed[0], loads(answer.reading[1]))[0]
        assert (grade.value, grade.second is None) == (3.0, "mode" in options)


@pytest.mark.parametrize(("mode", "reply"), list(product(MODES, REPLIES)))
def test_a_mode_takes_the_formats_that_grade_what_it_shows_and_refuses_the_others(mode: str, reply: str) -> None:
    if REPLIES[reply].grades not in MODES[mode].takes:
        with pytest.raises(UserError, match=f"--reply {reply} does not fit --mode {mode}; it is for "):
            asker(mode=mode, reply=reply)
        return
    for rubrics in (("overall",), ("overall", "honesty")):
        questions = asker(mode=mode, reply=reply, rubrics=rubrics)
        posed = list(questions.of(ROW))
        assert sum(len(one.requests) for one in posed) == questions.count([3]) > 0
        for one in posed:
            reader = questions.reader(one.question)
            assert len(reader.names) == len(set(reader.names)) > 0 and {rubric.name for rubric in one.question.rubrics} <= set(
                rubrics
            )
