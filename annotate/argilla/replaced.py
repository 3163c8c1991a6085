"""What a pull into a folder with grades replaces there: what the same people said of the same replies before."""

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mmpo.annotate.argilla.answers import Answer, Answers, Raters

__all__ = ["without_replaced"]

Said = tuple[str, str, str, frozenset[str]]
"""Prompt, rater, aspect, and the completions in any order: one where it was rated, two where they were compared."""


def without_replaced(base: pa.Table, answers: Iterable[Answer], now: Answers, raters: Raters) -> tuple[pa.Table, int]:
    """The base without people's grades that answers replace or that were taken back in Argilla, and how many those are.

    A rater of the base may stand there under the pseudonym or the real name: it is the same user.
    """
    alike = raters.alike()
    replaced = {
        (one.prompt_id, alike.get(one.rater, one.rater), one.aspect, frozenset({one.first_id, one.second_id or one.first_id}))
        for one in answers
    } | _taken_back(now, alike)
    if not replaced:
        return base, 0
    prompts = pa.array(sorted({said[0] for said in replaced}), base.schema.field("prompt_id").type)
    touched = pc.is_in(base["prompt_id"], value_set=prompts)
    rows, count = base.filter(touched).to_pylist(), 0
    for row in rows:
        ids = [one["id"] for one in row["completions"] or ()]
        for table, places in (("ratings", ("completion",)), ("comparisons", ("first", "second"))):
            grades = row[table] or []
            row[table] = [one for one in grades if _said(row["prompt_id"], one, ids, places, alike) not in replaced]
            count += len(grades) - len(row[table])
    if not count:
        return base, 0
    return pa.concat_tables([base.filter(pc.invert(touched)), pa.Table.from_pylist(rows, base.schema)]), count


def _said(prompt: str, grade: Mapping[str, Any], ids: list[str], places: tuple[str, ...], alike: Mapping[str, str]) -> Said | None:
    """What a grade of the base says who said of what; None where it is nobody's of Argilla."""
    if grade["kind"] != "human":
        return None
    return prompt, alike.get(grade["rater"], grade["rater"]), grade["aspect"], frozenset(ids[grade[place]] for place in places)


def _taken_back(now: Answers, alike: Mapping[str, str]) -> set[Said]:
    """All that a draft, a discard or a new answer without it takes back."""
    found: set[Said] = set()
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
