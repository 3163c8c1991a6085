"""Merging one pull with the next, without a server: what counts, what stays, and what leaves no trace."""

from typing import Any

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from mmpo.annotate.argilla import HumanGrade, PulledAnswers, Raters, ShownRecord, merge_answers
from mmpo.pipeline.tables import FEEDBACK, completion_id, prompt_id

PROMPT = [{"role": "user", "content": "Hi"}]
OWN = prompt_id(PROMPT)
IDS = tuple(completion_id(OWN, text) for text in "abc")
RECORDS = {f"pairs-{i}": tuple(IDS[j] for j in range(3) if j != i) for i in range(3)}
STATES = st.dictionaries(st.tuples(st.sampled_from(sorted(RECORDS)), st.sampled_from(["u1", "u2"])), st.integers(-3, 3))


def state(grades: dict[tuple[str, str], int], raters: Raters, gone: frozenset[tuple[str, str]] = frozenset()) -> PulledAnswers:
    """What a server says that holds these answers; `gone`: those that their rater discarded."""
    now = PulledAnswers(present=set(RECORDS))
    for own, ids in RECORDS.items():
        texts = tuple("abc"[IDS.index(one)] for one in ids)
        now.found[own] = ShownRecord(own, OWN, PROMPT, ids, texts, (None, None), "s", "plain", False)
    for (record, user), grade in grades.items():
        ids = RECORDS[record]
        one = HumanGrade(record, raters.name(user), "overall", OWN, ids[0], ids[1], float(grade), -3.0, 3.0, None, "now")
        now.answers[one.key] = one
    now.withdrawn = {(record, raters.name(user)) for record, user in gone}
    return now


@given(STATES.filter(bool), STATES)
def test_what_a_second_pull_writes_depends_on_what_argilla_has_now(
    one: dict[tuple[str, str], int], two: dict[tuple[str, str], int]
) -> None:
    """All that was there first and is there no more was taken back: then the result is that of a fresh pull, and every grade is counted."""
    raters = Raters({"u1": "x", "u2": "y"}, real_names=False)
    first = merge_answers(state(one, raters), {}, raters, before=None, base=None, source="s")
    gone = frozenset(set(one) - set(two))
    earlier = {answer.key: answer for answer in first.answers}
    then = merge_answers(state(two, raters, gone), earlier, raters, before=first.table, base=None, source="s")
    fresh = merge_answers(state(two, raters), {}, raters, before=None, base=None, source="s")
    assert then.table.equals(fresh.table) and then.answers == fresh.answers
    assert (then.new, then.withdrawn, then.changed + then.unchanged) == (
        len(set(two) - set(one)),
        len(gone),
        len(set(one) & set(two)),
    )
    kept = merge_answers(state({}, raters), earlier, raters, before=first.table, base=None, source="s")
    assert kept.table.equals(first.table) and kept.kept.total() == len(one)


def test_answers_without_a_place_leave_no_trace() -> None:
    """The base has a and b of the prompt, no c: of three pairs one has a place, whatever is tried first."""
    raters = Raters({"u1": "x"}, real_names=False)
    empty: dict[str, Any] = {"ratings": [], "comparisons": [], "source": "base", "extra": None}
    rows = [
        {
            "prompt_id": OWN,
            "prompt": PROMPT,
            "completions": [{"id": IDS[j], "text": "ab"[j], "model": "m"} for j in range(2)],
            **empty,
        }
    ]
    base = pa.Table.from_pylist(rows, FEEDBACK)
    now = state({(own, "u1"): 1 for own in RECORDS}, raters)
    merged = merge_answers(now, {}, raters, before=None, base=base, source="s")
    assert (len(merged.answers), len(merged.homeless), merged.new) == (1, 2, 1)
    [row] = merged.table.to_pylist()
    assert len(row["completions"]) == 2 and len(row["comparisons"]) == 1 and row["source"] == "base"
