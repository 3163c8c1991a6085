"""Adding a mode, a way to read replies or a way to choose pairs is one entry of its table; which fit together follows from the entries."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from cases import candidates, comparisons, judged, ratings

from mmpo.annotate.judge import MODES, Capabilities, Judge, JudgeOptions, Questions
from mmpo.annotate.pairings import PAIRINGS, Pairing
from mmpo.annotate.replies import REPLIES
from mmpo.annotate.rows import FeedbackRow
from mmpo.pipeline.errors import UserError

ROW = FeedbackRow("0" * 32, [{"role": "user", "content": "?"}], ["a", "b", "c"], ["x", "y", "z"], [None] * 3)


def test_a_new_member_of_each_family_is_asked_and_read(openai_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first_only = replace(MODES["pointwise"], orders=lambda row, options: iter([(0,)]), count=lambda n, options: 1)
    monkeypatch.setitem(MODES, "first-only", first_only)
    monkeypatch.setitem(REPLIES, "mine", replace(REPLIES["grade"], summary="as a grade"))
    monkeypatch.setitem(PAIRINGS, "ends", Pairing(lambda given: [(0, len(given.ids) - 1)], lambda n, k: 1, "first and last"))
    server, feedback = openai_server(), candidates(tmp_path / "in", 4, 3)
    assert judged(feedback, tmp_path / "one", server, mode="first-only", reply="mine")["judges"][0]["requests"] == 4
    assert judged(feedback, tmp_path / "two", server, pairs="ends", reply="mine")["judges"][0]["requests"] == 8
    assert (len(ratings(tmp_path / "one")), len(comparisons(tmp_path / "two"))) == (4, 8)


@pytest.mark.parametrize(("mode", "reply"), list(product(MODES, REPLIES)))
def test_a_mode_takes_the_formats_that_grade_what_it_shows_and_refuses_the_others(mode: str, reply: str) -> None:
    if REPLIES[reply].grades not in MODES[mode].takes:
        with pytest.raises(UserError, match=f"--reply {reply} does not fit --mode {mode}; it is for "):
            Questions(Judge("m"), JudgeOptions(mode=mode, reply=reply), Capabilities())
        return
    for rubrics in (("overall",), ("overall", "honesty")):
        options = JudgeOptions(mode=mode, reply=reply, rubrics=rubrics)
        asker = Questions(Judge("m"), options, Capabilities())
        posed = list(asker.of(ROW))
        assert sum(len(one.requests) for one in posed) == asker.count([3]) > 0
        for one in posed:
            reader = asker.reader(one.question)
            assert len(reader.names) == len(set(reader.names)) > 0 and {rubric.name for rubric in one.question.rubrics} <= set(
                rubrics
            )
