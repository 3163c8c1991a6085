"""From people's answers to FEEDBACK: what is new since the last pull, what was taken back, and the rows that carry the grades."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mmpo.annotate.argilla.answers import HumanGrade, Key, PulledAnswers, Raters
from mmpo.pipeline.arrow import large, narrow
from mmpo.pipeline.grades import merge_prompts
from mmpo.pipeline.tables import FEEDBACK, OPTIONAL_KEYS, TOOLS, with_keys


@dataclass
class Merged:
    """The table and the answers in it, and what became of those of an earlier pull; each counts grades.

    kept: by why Argilla no longer has them. homeless: answers whose prompt or completions the base does not hold. replaced: grades
    of the base by people who answered the same anew, or took it back.
    """

    table: pa.Table
    answers: list[HumanGrade]
    new: int = 0
    changed: int = 0
    unchanged: int = 0
    withdrawn: int = 0
    replaced: int = 0
    kept: Counter[str] = field(default_factory=Counter)
    homeless: list[HumanGrade] = field(default_factory=list)


def merge_answers(
    now: PulledAnswers,
    earlier: Mapping[Key, HumanGrade],
    raters: Raters,
    *,
    before: pa.Table | None,
    base: pa.Table | None,
    source: str,
) -> Merged:
    """What Argilla has now, and of what was pulled before whatever nobody took back, as FEEDBACK with one row a prompt.

    before: the FEEDBACK of the earlier pull, from which the texts of answers come that Argilla no longer has. base: FEEDBACK that
    the grades are added to; all of its rows stay, and of its grades all but those that the same people's answers replace. source:
    where rows came from whose record does not say.
    """
    result = Merged(FEEDBACK.empty_table(), [])
    wanted = list(now.answers.values())
    for key, old in earlier.items():
        if key in now.answers:
            continue
        if _taken_back(old, now):
            result.withdrawn += 1
            continue
        result.kept[_why_gone(old, now, raters)] += 1
        wanted.append(old)
    wanted.sort(key=lambda one: (one.prompt_id, one.record, one.rater, one.aspect, one.first_id))
    rows = _Rows(now, before, base, source)
    for answer in wanted:
        (result.answers if rows.place(answer) else result.homeless).append(answer)
    for answer in result.answers:
        old = earlier.get(answer.key)
        if old is None:
            result.new += 1
        elif answer.key in now.answers:
            same = (old.value, old.note, old.first_id) == (answer.value, answer.note, answer.first_id)
            result.unchanged += same
            result.changed += not same
    tables = [large(pa.Table.from_pylist(list(rows.rows.values()), with_keys(FEEDBACK, OPTIONAL_KEYS)))]
    if base is not None:
        rest, result.replaced = _without_replaced(base, result.answers, now, raters)
        tables.insert(0, large(rest))
    whole, _ = merge_prompts(pa.concat_tables(tables).combine_chunks())
    result.table = narrow(whole)
    return result


def _taken_back(old: HumanGrade, now: PulledAnswers) -> bool:
    """Whether the rater discarded the answer, or submitted it anew without this grade."""
    own = (old.record, old.rater)
    return own in now.withdrawn or (own in now.read and old.aspect in now.aspects and old.key not in now.unread)


def _why_gone(old: HumanGrade, now: PulledAnswers, raters: Raters) -> str:
    if old.record not in now.present:
        return "record_deleted"
    if old.record not in now.found:
        return "record_edited"
    if (old.record, old.rater) in now.submitted:
        return now.unread.get(old.key, "no_grade")
    return "answer_deleted" if old.rater in raters.known else "user_deleted"


class _Rows:
    """FEEDBACK rows that come into being with the first grade of their prompt."""

    def __init__(self, now: PulledAnswers, before: pa.Table | None, base: pa.Table | None, source: str) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self._now, self._based, self._source = now, base is not None, source
        self._places: dict[str, dict[str, int]] = {}
        self._known = _texts(base if base is not None else before)

    def place(self, answer: HumanGrade) -> bool:
        """Put a grade into its row; False where no text is known for what it is about."""
        row = self.rows.get(answer.prompt_id) or self._row(answer)
        # Of a row that comes to nothing no trace stays: its places would be taken for those of the next one.
        places = self._places.get(answer.prompt_id, {})
        ids = [answer.first_id] if answer.second_id is None else [answer.first_id, answer.second_id]
        if row is None or not all(self._add(row, places, one, answer) for one in ids):
            return False
        self.rows[answer.prompt_id], self._places[answer.prompt_id] = row, places
        shared = {"rater": answer.rater, "kind": "human", "aspect": answer.aspect, "spread": None, "note": answer.note}
        first = places[answer.first_id]
        if answer.second_id is None:
            row["ratings"].append({**shared, "completion": first, "score": answer.value, "low": answer.low, "high": answer.high})
        else:
            second = places[answer.second_id]
            row["comparisons"].append({**shared, "first": first, "second": second, "gap": answer.value, "limit": answer.high})
        return True

    def _row(self, answer: HumanGrade) -> dict[str, Any] | None:
        """A row of the answer's prompt without grades, None where the prompt is not known."""
        found, there = self._now.found.get(answer.record), self._known.get(answer.prompt_id)
        grades: dict[str, Any] = {"prompt_id": answer.prompt_id, "completions": [], "ratings": [], "comparisons": [], "extra": None}
        if there is not None and (self._based or found is None):
            return {**grades, "prompt": there[0], "source": there[1], "tools": there[3]}
        if found is None or self._based:
            return None
        return {**grades, "prompt": found.prompt, "source": found.source or self._source, "tools": found.tools}

    def _add(self, row: dict[str, Any], places: dict[str, int], own: str, answer: HumanGrade) -> bool:
        """Whether the row has a completion, added from the base, the record or the earlier pull where it was missing."""
        if own in places:
            return True
        _, _, texts, _ = self._known.get(answer.prompt_id, (None, None, {}, None))
        found = None if self._based else self._now.found.get(answer.record)
        if found is not None:
            carried = found.carried or [{}] * len(found.ids)
            shown = zip(found.ids, found.texts, found.models, carried, strict=True)
            texts = {**texts, **{one: {"text": text, "model": model, **more} for one, text, model, more in shown}}
        # Everything that a rater saw belongs to the row, rated or not.
        for one in dict.fromkeys([own, *(found.ids if found is not None else ())]):
            if one in texts and one not in places:
                places[one] = len(row["completions"])
                row["completions"].append({**texts[one], "id": one})
        return own in places


Texts = dict[str, dict[str, Any]]


def _texts(table: pa.Table | None) -> dict[str, tuple[Any, str | None, Texts, str | None]]:
    """By prompt id: the prompt, its source, its completions by their ids, and its tools."""
    if table is None:
        return {}
    return {
        row["prompt_id"]: (
            row["prompt"],
            row["source"],
            {one["id"]: one for one in row["completions"] or ()},
            row.get(TOOLS),
        )
        for row in table.drop_columns(["ratings", "comparisons", "extra"]).to_pylist()
    }


GradedBy = tuple[str, str, str, frozenset[str]]
"""Prompt, rater, aspect, and the completions in any order: one where it was rated, two where they were compared."""


def _without_replaced(base: pa.Table, answers: Iterable[HumanGrade], now: PulledAnswers, raters: Raters) -> tuple[pa.Table, int]:
    """The base without people's grades that answers replace or that were taken back in Argilla, and how many those are.

    A rater of the base may stand there under the pseudonym or the real name: it is the same user.
    """
    alike = raters.alike()
    replaced = {
        (one.prompt_id, alike.get(one.rater, one.rater), one.aspect, frozenset({one.first_id, one.second_id or one.first_id}))
        for one in answers
    } | _all_taken_back(now, alike)
    if not replaced:
        return base, 0
    prompts = pa.array(sorted({one[0] for one in replaced}), base.schema.field("prompt_id").type)
    touched = pc.is_in(base["prompt_id"], value_set=prompts)
    rows, count = base.filter(touched).to_pylist(), 0
    for row in rows:
        ids = [one["id"] for one in row["completions"] or ()]
        for table, places in (("ratings", ("completion",)), ("comparisons", ("first", "second"))):
            grades = row[table] or []
            row[table] = [one for one in grades if _graded_by(row["prompt_id"], one, ids, places, alike) not in replaced]
            count += len(grades) - len(row[table])
    if not count:
        return base, 0
    return pa.concat_tables([base.filter(pc.invert(touched)), pa.Table.from_pylist(rows, base.schema)]), count


def _graded_by(
    prompt: str, grade: Mapping[str, Any], ids: list[str], places: tuple[str, ...], alike: Mapping[str, str]
) -> GradedBy | None:
    """What a grade of the base says who said of what; None where it is nobody's of Argilla."""
    if grade["kind"] != "human":
        return None
    return prompt, alike.get(grade["rater"], grade["rater"]), grade["aspect"], frozenset(ids[grade[place]] for place in places)


def _all_taken_back(now: PulledAnswers, alike: Mapping[str, str]) -> set[GradedBy]:
    """All that a draft, a discard or a new answer without it takes back."""
    found: set[GradedBy] = set()
    for record, rater in now.withdrawn | now.read:
        shown = now.found.get(record)
        if shown is None:
            continue
        ratings = record.startswith("ratings-")
        for aspect in now.aspects:
            for own in shown.ids if ratings else ("",):
                if (record, rater, aspect, own) not in now.unread:
                    about = frozenset({own}) if ratings else frozenset(shown.ids)
                    found.add((shown.prompt_id, alike.get(rater, rater), aspect, about))
    return found
