"""Records and pulls without a server: texts to the letter, ids, orders, grades, certainty, choices; merging one pull with the next."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmpo.annotate.argilla import (
    DISPLAYS,
    HumanGrade,
    KnownMargin,
    PulledAnswers,
    Raters,
    RecordItem,
    ShownRecord,
    certainty,
    fields_of,
    grade_of,
    merge_answers,
    metadata_of,
    order_of,
    read_record,
    record_id,
    suggestion_of,
)
from mmpo.pipeline.errors import printable
from mmpo.pipeline.tables import FEEDBACK, completion_id, prompt_id

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.text("<&$![a:;\u2060 ltgmpdjvscriptxb", max_size=40)


def item(prompt: list[dict[str, str]], texts: tuple[str, ...], **more: Any) -> RecordItem:
    own = prompt_id(prompt)
    return RecordItem(own, prompt, tuple(completion_id(own, text) for text in texts), texts, (None,) * len(texts), "s", **more)


@given(TEXTS, st.sampled_from(sorted(DISPLAYS)))
def test_texts_come_back_to_the_letter(text: str, display: str) -> None:
    way = DISPLAYS[display]
    assert way.written(way.shown(text)) == text


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4), st.lists(TEXTS, min_size=2, max_size=4, unique=True),
       st.sampled_from(sorted(DISPLAYS)), st.integers(0, 3))  # fmt: skip
def test_a_record_gives_back_what_was_pushed(messages: list[tuple[str, str]], texts: list[str], display: str, seed: int) -> None:
    one = item([{"role": role, "content": content} for role, content in messages], tuple(texts))
    questions = "pairs" if len(texts) == 2 else "ratings"
    order = order_of(one, questions, seed)
    record = {
        "external_id": record_id(questions, one.prompt_id, one.ids),
        "fields": fields_of(one, order, display),
        "metadata": json.loads(json.dumps(metadata_of(one, order, display))),
    }
    found = read_record(record)
    assert (found.prompt, found.ids, found.metadata_missing) == (one.prompt, order, False)
    assert dict(zip(found.ids, found.texts)) == dict(zip(one.ids, one.texts))
    assert all(0 < len(one["content"]) <= 20_000 and 0 < len(one["role"]) <= 20 for one in record["fields"]["prompt"])


def test_a_long_message_is_shown_in_pieces_that_make_up_the_whole() -> None:
    long = "".join(f"line {i} <b>&\n" for i in range(9_000))
    one = item([{"role": "user", "content": long}], ("a", "b"))
    order = order_of(one, "pairs", 0)
    for display, way in DISPLAYS.items():
        shown = fields_of(one, order, display)["prompt"]
        assert len(shown) > 1 and max(len(piece["content"]) for piece in shown) <= 20_000
        assert "".join(way.written(piece["content"]) for piece in shown) == long
        assert all(piece["content"].endswith("\n") for piece in shown)
        record = {"external_id": record_id("pairs", one.prompt_id, one.ids), "fields": fields_of(one, order, display)}
        assert read_record({**record, "metadata": metadata_of(one, order, display)}).prompt == one.prompt


def test_orders_are_balanced_and_do_not_depend_on_the_order_given() -> None:
    first = 0
    for i in range(2_000):
        one, turned = (item([{"role": "user", "content": str(i)}], tuple(texts)) for texts in ("ab", "ba"))
        assert order_of(one, "pairs", 0) == order_of(turned, "pairs", 0)
        first += order_of(one, "pairs", 0)[0] == min(one.ids)
    assert abs(first - 1_000) < 4 * np.sqrt(500)  # four standard deviations of a fair coin


def test_grades_and_their_certainty_by_hand() -> None:
    """A full margin is 3, a sixth of it is half a grade and goes outward; the bins of a normal margin sum to one."""
    assert [grade_of(share) for share in (1.0, 5.0, 1 / 6, -1 / 6, 0.16, 0.0, -0.5, -1.0)] == [3, 3, 1, -1, 0, 0, -2, -3]
    assert sum(certainty(0.4, 0.3, grade) or 0 for grade in range(-3, 4)) == pytest.approx(1)
    assert certainty(0.0, None, 0) is None and certainty(0.2, 0.0, 1) == 1.0
    assert certainty(1.0, 1 / 3, 3) == pytest.approx(0.6915, abs=1e-4)  # P(z > −½)


def test_printable_spells_out_what_moves_a_terminal() -> None:
    assert printable("a\x1b[2J\u202eb\x9b\nc") == "a\\x1b[2J\\u202eb\\x9b\\nc"
    assert printable("x" * 300).endswith("…") and len(printable("x" * 300)) == 200


@pytest.mark.parametrize("se", [None, 0.0, 0.5])
def test_a_tiny_measure_of_much_better_is_the_outermost_grade(se: float | None) -> None:
    known = KnownMargin("a", 2.0, se, 0.0, 1, "ai")
    grade, score = suggestion_of(known, ("b", "a"), 1e-320)
    assert grade == "-3" and (score is None if se is None else score == pytest.approx(1.0, abs=1e-3))


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


@pytest.mark.slow
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
    counts = (len(set(two) - set(one)), len(gone), len(set(one) & set(two)))
    assert (then.new, then.withdrawn, then.changed + then.unchanged) == counts
    kept = merge_answers(state({}, raters), earlier, raters, before=first.table, base=None, source="s")
    assert kept.table.equals(first.table) and kept.kept.total() == len(one)


def test_a_judges_probabilities_stay_and_people_have_none() -> None:
    raters = Raters({"u1": "x"}, real_names=False)
    judged = {"first": 0, "second": 1, "rater": "j", "kind": "ai", "aspect": "overall", "gap": 1.0, "limit": 3.0}
    judged["probabilities"] = [0.0, 0.4, 0.5, 0.0, 0.08, 0.0, 0.0]
    completions = [{"id": one, "text": text, "model": None} for one, text in zip(IDS, "abc")]
    row = {"prompt_id": OWN, "prompt": PROMPT, "completions": completions, "ratings": [], "comparisons": [judged], "source": "s"}
    base = pa.Table.from_pylist([row], FEEDBACK)
    merged = merge_answers(state({("pairs-2", "u1"): 1}, raters), {}, raters, before=None, base=base, source="s")
    [found] = merged.table.to_pylist()
    assert {one["kind"]: one["probabilities"] for one in found["comparisons"]} == {"ai": judged["probabilities"], "human": None}
    assert merged.table.schema.equals(FEEDBACK)


def test_answers_without_a_place_leave_no_trace() -> None:
    """The base has a and b of the prompt, no c: of three pairs one has a place, whatever is tried first."""
    raters = Raters({"u1": "x"}, real_names=False)
    completions = [{"id": IDS[j], "text": "ab"[j], "model": "m"} for j in range(2)]
    empty: dict[str, Any] = {"ratings": [], "comparisons": [], "source": "base", "extra": None}
    base = pa.Table.from_pylist([{"prompt_id": OWN, "prompt": PROMPT, "completions": completions, **empty}], FEEDBACK)
    now = state({(own, "u1"): 1 for own in RECORDS}, raters)
    merged = merge_answers(now, {}, raters, before=None, base=base, source="s")
    assert (len(merged.answers), len(merged.homeless), merged.new) == (1, 2, 1)
    [row] = merged.table.to_pylist()
    assert len(row["completions"]) == 2 and len(row["comparisons"]) == 1 and row["source"] == "base"
