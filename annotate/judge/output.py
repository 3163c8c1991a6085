"""Writing FEEDBACK with the judges' grades in it: a second pass over the input that looks every answer up in the journal."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from mmpo.annotate.client.journal import Journal
from mmpo.annotate.judge.modes import Graded, Row
from mmpo.annotate.judge.questions import Question, Questions
from mmpo.annotate.replies import Unparsable
from mmpo.annotate.rows import Feedback, rows_of
from mmpo.pipeline.arrow import flat, lists, offsets_of, parents, structs
from mmpo.pipeline.storage import PartWriter
from mmpo.pipeline.tables import COMPARISON, FEEDBACK, RATING, REJECTS

__all__ = ["Written", "write_feedback"]

BATCH_BYTES = 64 << 20
LONGEST_REPLY = 2_000
"""Characters of a reply that can't be read that go into rejects.parquet; the journal has all of it."""


@dataclass
class Written:
    """What came out. rows: prompts. grades, failed, left: by judge; failed by reason; left were not asked (yet).

    not_asked: prompts without a question, by reason. masses: sum and count of the probability on the offered labels. orders: sum and count
    of ½(gap + gap in the other order), the mean of which is the judge's liking for what is shown first.
    """

    rows: int = 0
    requests: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    failed: dict[str, Counter[str]] = field(default_factory=dict)
    grades: Counter[str] = field(default_factory=Counter)
    replaced: int = 0
    not_asked: Counter[str] = field(default_factory=Counter)
    masses: dict[str, tuple[float, int]] = field(default_factory=dict)
    orders: dict[str, tuple[float, int]] = field(default_factory=dict)


def write_feedback(
    feedback: Feedback, judges: Sequence[Questions], journal: Journal, folder: Path, metadata: dict[str, Any], *, scores: bool
) -> Written:
    """Write the parts and rejects.parquet of a FEEDBACK folder; grades that the same judges gave earlier are replaced."""
    result = Written(failed={one.judge.name: Counter() for one in judges})
    writer = PartWriter(folder / "feedback", "part", metadata)
    waiting: list[pa.Table] = []
    with pq.ParquetWriter(folder / "rejects.parquet", REJECTS, compression="zstd") as rejects:
        for table in feedback.tables():
            graded, lost = _graded(table, feedback, judges, journal, result, scores)
            result.rows += graded.num_rows
            if lost:
                rejects.write_table(pa.Table.from_pylist(lost, REJECTS))
            waiting.append(graded)
            if sum(part.nbytes for part in waiting) >= BATCH_BYTES:
                writer.write(pa.concat_tables(waiting).combine_chunks())
                waiting = []
    if waiting:
        writer.write(pa.concat_tables(waiting).combine_chunks())
    writer.close()
    return result


Found = tuple[int, Graded, str, str]  # row, grade, rater, note


def _graded(
    table: pa.Table, feedback: Feedback, judges: Sequence[Questions], journal: Journal, result: Written, scores: bool
) -> tuple[pa.Table, list[dict[str, Any]]]:
    rows = [(i, row) for i, row in enumerate(rows_of(table, scores=scores, reference=judges[0].options.reference))
            if feedback.wanted(row.prompt_id)]  # fmt: skip
    result.not_asked["not_drawn"] += table.num_rows - len(rows)
    for _, row in rows:
        reason = _not_asked(judges[0], row)
        if reason:
            result.not_asked[reason] += 1
    found: list[Found] = []
    lost: list[dict[str, Any]] = []
    for one in judges:
        _look_up(one, rows, journal, result, found, lost)
    for name, two in (("ratings", False), ("comparisons", True)):
        table = _with_grades(table, name, [item for item in found if (item[1].second is not None) == two], result)
    return table, lost


def _not_asked(one: Questions, row: Row) -> str:
    """Why nothing is asked about a prompt; "" where something is."""
    if next(one.mode.asks(row, one.options, one.rubrics), None) is not None:
        return ""
    if len(row.ids) < 2:
        return "single_completion" if row.ids else "no_completion"
    return "too_many_completions" if one.options.mode == "listwise" else "no_pair"


def _look_up(
    one: Questions,
    rows: Sequence[tuple[int, Row]],
    journal: Journal,
    result: Written,
    found: list[Found],
    lost: list[dict[str, Any]],
) -> None:
    """The grades of one judge for these rows; questions without all of their answers are failed or left, and counted."""
    name = one.judge.name
    questions = [(i, row, question) for i, row in rows for question in one.of(row)]
    keys = [request.key for _, _, question in questions for request in question.requests]
    answers = journal.answers(keys)
    missing = [key for key in keys if key not in answers]
    failures = journal.failures(missing)
    result.requests[name] += len(keys)
    result.answered[name] += len(keys) - len(missing)
    result.left[name] += sum(key not in failures for key in missing)
    for key in missing:
        if key in failures:
            result.failed[name][failures[key].reason] += 1
    gaps: dict[tuple[int, int, int, str], float] = {}
    for i, row, question in questions:
        own = [request.key for request in question.requests]
        if all(key in answers for key in own):
            try:
                grades, note, mass = one.grades(question, [answers[key] for key in own])
            except Unparsable as error:  # another --min-mass or reader than when it was asked
                result.answered[name] -= len(own)
                result.failed[name][error.reason] += len(own)
                lost.append(_reject(one, row, question, error.reason, "", ""))
                continue
            found += [(i, grade, name, note) for grade in grades]
            _count_orders(i, grades, gaps, result, name)
            result.grades[name] += len(grades)
            if mass is not None:
                total, count = result.masses.get(name, (0.0, 0))
                result.masses[name] = (total + mass, count + 1)
        elif any(key in failures for key in own):
            failure = next(failures[key] for key in own if key in failures)
            lost.append(_reject(one, row, question, failure.reason, failure.message, failure.reply))


def _count_orders(
    row: int, grades: Sequence[Graded], gaps: dict[tuple[int, int, int, str], float], result: Written, name: str
) -> None:
    for grade in grades:
        if grade.second is None:
            continue
        other = gaps.pop((row, grade.second, grade.first, grade.aspect), None)
        if other is None:
            gaps[row, grade.first, grade.second, grade.aspect] = grade.value
        else:
            total, count = result.orders.get(name, (0.0, 0))
            result.orders[name] = (total + (grade.value + other) / 2, count + 1)


def _reject(one: Questions, row: Row, question: Question, reason: str, message: str, reply: str) -> dict[str, Any]:
    shown = [row.ids[place] for place in question.asked.shown]
    evidence = {"judge": one.judge.name, "aspect": question.asked.aspect, "shown": shown, "message": message}
    if reply:
        evidence["reply"] = reply[:LONGEST_REPLY]
    return {
        "unit": "request", "stage": "judge", "reason": reason, "file": None, "row": None, "prompt_id": row.prompt_id,
        "evidence": orjson.dumps(evidence).decode(),
    }  # fmt: skip


def _with_grades(table: pa.Table, name: str, found: Sequence[Found], result: Written) -> pa.Table:
    """The table with grades added to a list column, behind those that a row has."""
    if not found:
        return table
    kind = COMPARISON if name == "comparisons" else RATING
    column = flat(table[name])
    old, old_rows = column.flatten(), parents(offsets_of(column))
    keep = ~_given_before(old, old_rows, found)
    result.replaced += int((~keep).sum())
    new = structs([_struct(grade, rater, note) for _, grade, rater, note in found], kind).cast(kind)
    values = pa.concat_arrays([old.filter(pa.array(keep)).cast(kind), new])
    rows = np.concatenate([old_rows[keep], np.array([i for i, *_ in found], dtype=np.int64)])
    order = np.argsort(rows, kind="stable")
    merged = lists(np.searchsorted(rows[order], np.arange(table.num_rows)), values.take(pa.array(order)))
    index = table.schema.get_field_index(name)
    return table.set_column(index, FEEDBACK.field(name), merged.cast(FEEDBACK.field(name).type))


def _struct(grade: Graded, rater: str, note: str) -> tuple[Any, ...]:
    told = note or None
    if grade.second is None:
        return (grade.first, rater, "ai", grade.aspect, grade.value, grade.low, grade.high, grade.spread, told)
    return (grade.first, grade.second, rater, "ai", grade.aspect, grade.value, grade.high, grade.spread, told)


def _given_before(grades: pa.StructArray, rows: np.ndarray, found: Sequence[Found]) -> np.ndarray:
    """Which grades say again what `found` says: same row, rater, aspect and completions. A second run replaces these and no others."""
    if not len(grades):
        return np.zeros(0, dtype=bool)
    new = {
        (row, rater, grade.aspect, *sorted((grade.first, -1 if grade.second is None else grade.second)))
        for row, grade, rater, _ in found
    }
    names = [field.name for field in grades.type]
    two = "second" in names
    columns = [grades.field(key).to_pylist() for key in ("rater", "kind", "aspect", "first" if two else "completion")]
    columns.append(grades.field("second").to_pylist() if two else [-1] * len(grades))
    return np.array(
        [
            kind == "ai" and (row, rater, aspect, *sorted((first, second))) in new
            for row, (rater, kind, aspect, first, second) in zip(rows.tolist(), zip(*columns))
        ],
        dtype=bool,
    )
