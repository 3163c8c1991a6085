"""The end of a judging run: FEEDBACK with the judges' grades in it, its manifest, and the summary of each judge.

A second pass over the input looks every answer up in the journal.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from mmpo.annotate.asking import MAX_REJECT_REPLY, most_common, recorded, refuse
from mmpo.annotate.client import Answer, Journal, Stop
from mmpo.annotate.judge.modes import MODES, NewGrade
from mmpo.annotate.judge.one_judge import JudgeRun
from mmpo.annotate.judge.options import JudgeOptions
from mmpo.annotate.judge.questions import WHY, PosedQuestion, Questions
from mmpo.annotate.judge.reading import differ
from mmpo.annotate.pairings import PAIRINGS
from mmpo.annotate.replies import Unparsable
from mmpo.annotate.rows import Feedback, FeedbackRow, rows_of
from mmpo.pipeline.arrow import flat, offsets_of, parents, structs, with_added
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.storage import FileDigest, RowAccounting, describe, made_of, name_of, read_manifest, replacing, write_feedback
from mmpo.pipeline.tables import COMPARISON, FEEDBACK, RATING

LEAST_SAMPLED = 20
"""Questions whose drawn replies must all be the same before an endpoint is said not to sample."""


@dataclass
class JudgeTotals:
    """What came of one judge's requests. left: not asked (yet). failed: by reason.

    label_probability: sum and count over questions of what lay on the offered labels. position_bias: sum and count over pairs of
    ½(gap + gap in the other order), the mean of which is how much the judge favours what is shown first.
    samples_differ: whether replies drawn to one question do (None: none were drawn, or too few questions tell); sampled_alike: questions
    whose drawn replies are all the same, as far as was looked.
    """

    requests: int = 0
    answered: int = 0
    left: int = 0
    grades: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    label_probability: tuple[float, int] = (0.0, 0)
    position_bias: tuple[float, int] = (0.0, 0)
    samples_differ: bool | None = None
    sampled_alike: int = 0


@dataclass
class OutputTotals:
    """What came out. prompts: rows. replaced: grades that the same judges gave earlier. not_asked: prompts without a question."""

    judges: list[JudgeTotals]
    prompts: int = 0
    replaced: int = 0
    not_asked: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class GradeInRow:
    """A grade for a row of the table at hand."""

    row: int
    grade: NewGrade
    rater: str
    note: str


def finish(
    feedback: Feedback, out: Path, options: JudgeOptions, runs: Sequence[JudgeRun], journal: Journal, stop: Stop
) -> dict[str, Any]:
    """Write FEEDBACK with the grades; the summary. Raises where there is no grade at all to write."""
    before = read_manifest(feedback.folder)
    recipe = {
        "judge": recorded(options),
        "judges": [_described(run) for run in runs],
        "feedback": before.get("recipe"),
    }
    inputs = made_of(feedback.folder, feedback.files)
    metadata = {"recipe": recipe, "inputs": inputs}
    with replacing(out) as folder:
        totals, digests = _write(feedback, [run.questions for run in runs], journal, folder, metadata)
        if not any(one.grades for one in totals.judges):
            _refuse(options, stop, totals, journal)
        spent = journal.spent()
        judges = [_summary(run, one, spent.get(run.judge.name, {})) for run, one in zip(runs, totals.judges)]
        describe(folder, metadata, totals.prompts, _accounted(totals), digests, judges=judges)
    finished = not stop.reason and not any(row["left"] or row["failed"] for row in judges)
    return {
        "out": name_of(out), "prompts": totals.prompts, "finished": finished, "stopped": stop.reason or None,
        "message": stop.message or None, "replaced": totals.replaced, "not_asked": dict(+totals.not_asked),
        "cost": sum(row["cost"] or 0.0 for row in judges), "journal": str(journal.path), "judges": judges,
    }  # fmt: skip


def nothing_to_ask(options: JudgeOptions) -> str:
    """Why no question came of the input."""
    mode, pairing = MODES[options.mode], PAIRINGS[options.pairs.partition(":")[0]]
    if mode.signed and pairing.needs:
        return f"there is nothing to ask: {pairing.needs}"
    return f"there is nothing to ask: {options.mode} needs {mode.needs}"


def _refuse(options: JudgeOptions, stop: Stop, totals: OutputTotals, journal: Journal) -> None:
    """Nothing was graded: raise why."""
    if not any(one.requests for one in totals.judges):
        raise UserError(nothing_to_ask(options))
    failed = sum((one.failed for one in totals.judges), Counter())
    known = "".join(f" ({WHY[reason]})" for reason, _ in failed.most_common(1) if reason in WHY)
    refuse(stop, "answer", f"no request was answered: {most_common(failed)}{known}", journal)


def _accounted(totals: OutputTotals) -> RowAccounting:
    accounting = RowAccounting()
    for one in totals.judges:
        dropped = {**one.failed, **({"not_asked_yet": one.left} if one.left else {})}
        accounting.count("judge", "request", created=one.requests, out=one.answered, dropped=dropped)
    not_asked = dict(+totals.not_asked)
    accounting.count("judge", "prompt", into=totals.prompts, out=totals.prompts - sum(not_asked.values()), dropped=not_asked)
    return accounting


def _described(run: JudgeRun) -> dict[str, Any]:
    judge, template = run.judge, run.questions.template
    return {
        "rater": judge.name, "model": judge.model, "base_url": judge.public, "headers": dict(judge.headers),
        "extra_body": dict(judge.extra_body),
        "template": template.name, "template_digest": template.digest, "rubrics": [rubric.name for rubric in run.questions.rubrics],
        "abilities": dataclasses.asdict(run.questions.capabilities), "samples": run.questions.samples,
    }  # fmt: skip


def _summary(run: JudgeRun, totals: JudgeTotals, spent: dict[str, float]) -> dict[str, Any]:
    """The figures of one judge; tokens and cost are those of all runs on this journal."""
    pairs = totals.position_bias[1]
    asked_twice = run.questions.mode.signed and run.options.orders != "one"
    return {
        "rater": run.judge.name, "model": run.judge.model, "requests": totals.requests, "answered": totals.answered,
        "failed": dict(totals.failed), "left": totals.left, "grades": totals.grades,
        "prompt_tokens": int(spent.get("prompt_tokens", 0)), "reply_tokens": int(spent.get("reply_tokens", 0)),
        "cost": spent.get("cost", 0.0) if run.price else None, "mean_mass": _mean(totals.label_probability),
        "seconds_a_request": _mean((spent.get("seconds", 0.0), int(spent.get("requests", 0)))), "retried": run.counts.retried,
        "position_bias": _mean(totals.position_bias), "pairs_both_orders": pairs,
        "one_order_only": asked_twice and totals.grades > 0 and not pairs, "samples": run.questions.samples,
        "thinks": run.questions.thinks, "samples_differ": totals.samples_differ, "sampled_alike": totals.sampled_alike,
        "limited": bool(run.questions.capabilities.length),
    }  # fmt: skip


def _mean(sum_and_count: tuple[float, int]) -> float | None:
    return sum_and_count[0] / sum_and_count[1] if sum_and_count[1] else None


# The second pass


def _write(
    feedback: Feedback, judges: Sequence[Questions], journal: Journal, folder: Path, metadata: dict[str, Any]
) -> tuple[OutputTotals, dict[str, FileDigest]]:
    """Write the parts and rejects.parquet of a FEEDBACK folder; grades that the same judges gave earlier are replaced. Also returns the
    parts' digests."""
    totals = OutputTotals([_first_look(feedback, one, journal) for one in judges])

    def parts() -> Iterator[tuple[pa.Table, list[dict[str, Any]]]]:
        for table in feedback.tables():
            graded, rejected = _graded(table, feedback, judges, journal, totals)
            totals.prompts += graded.num_rows
            yield graded, rejected

    return totals, write_feedback(folder, metadata, parts())


def _first_look(feedback: Feedback, one: Questions, journal: Journal) -> JudgeTotals:
    """Totals that say whether the endpoint samples: an even mind and a greedy endpoint look alike at one question, not at many.

    Looks no further than the first question whose replies differ.
    """
    totals = JudgeTotals()
    if one.samples < 2:
        return totals
    for rows in feedback.rows(scores=one.needs_scores, reference=one.options.reference):
        asked = [posed for row in rows for posed in one.of(row)]
        known = one.known([request for posed in asked for request in posed.requests], journal).replies
        for posed in asked:
            found = differ([reply for request in posed.requests for reply in known.get(request.key, ())])
            if found:
                totals.samples_differ = True
                return totals
            totals.sampled_alike += found is False
    totals.samples_differ = False if totals.sampled_alike >= LEAST_SAMPLED else None
    return totals


def _graded(
    table: pa.Table, feedback: Feedback, judges: Sequence[Questions], journal: Journal, totals: OutputTotals
) -> tuple[pa.Table, list[dict[str, Any]]]:
    first = judges[0]
    rows = [
        (i, row)
        for i, row in enumerate(rows_of(table, scores=first.needs_scores, reference=first.options.reference))
        if feedback.wanted(row.prompt_id)
    ]
    totals.not_asked["not_drawn"] += table.num_rows - len(rows)
    totals.not_asked.update(reason for _, row in rows if (reason := _not_asked(first, row)))
    grades: list[GradeInRow] = []
    rejected: list[dict[str, Any]] = []
    for one, own in zip(judges, totals.judges):
        _look_up(one, rows, journal, own, grades, rejected)
    for name, two in (("ratings", False), ("comparisons", True)):
        table, replaced = _with_grades(table, name, [one for one in grades if (one.grade.second is not None) == two])
        totals.replaced += replaced
    return table, rejected


def _not_asked(one: Questions, row: FeedbackRow) -> str:
    """Why nothing is asked about a prompt; "" where something is."""
    if next(one.mode.questions(row, one.options, one.rubrics), None) is not None:
        return ""
    if len(row.ids) < 2:
        return "single_completion" if row.ids else "no_completion"
    return "too_many_completions" if one.mode.most is not None else "no_pair"


def _look_up(
    one: Questions,
    rows: Sequence[tuple[int, FeedbackRow]],
    journal: Journal,
    totals: JudgeTotals,
    grades: list[GradeInRow],
    rejected: list[dict[str, Any]],
) -> None:
    """The grades of one judge for these rows; questions without all of their answers are failed or left, and counted."""
    asked = [(i, row, posed) for i, row in rows for posed in one.of(row)]
    requests = [request for _, _, posed in asked for request in posed.requests]
    known = one.known(requests, journal)
    totals.requests += len(requests)
    totals.answered += sum(request.key in known.replies for request in requests)
    totals.failed.update(known.failures[request.key].reason for request in requests if request.key in known.failures)
    totals.left += sum(request.key not in known.replies and request.key not in known.failures for request in requests)
    gaps: dict[tuple[int, int, int, str], float] = {}
    for i, row, posed in asked:
        keys = [request.key for request in posed.requests]
        failure = next((known.failures[key] for key in keys if key in known.failures), None)
        if failure:
            rejected.append(_reject(one, row, posed, failure.reason, failure.message, failure.answer))
        elif all(key in known.replies for key in keys):
            try:
                replies = [reply for key in keys for reply in known.replies[key]]
                found, note, probability = one.grades(posed, replies, drawn=totals.samples_differ is True)
            except Unparsable as error:  # another --min-mass or reader than when it was asked
                totals.answered -= len(keys)
                totals.failed[error.reason] += len(keys)
                rejected.append(_reject(one, row, posed, error.reason, "", None))
                continue
            grades += [GradeInRow(i, grade, one.judge.name, note) for grade in found]
            totals.grades += len(found)
            _count_orders(i, found, gaps, totals)
            if probability is not None:
                total, count = totals.label_probability
                totals.label_probability = (total + probability, count + 1)


def _count_orders(row: int, grades: Sequence[NewGrade], gaps: dict[tuple[int, int, int, str], float], totals: JudgeTotals) -> None:
    # Running sums, not `position_biases` of mmpo.pipeline.grades: a journal may be of any size, and FEEDBACK is not written yet.
    for grade in grades:
        if grade.second is None:
            continue
        other = gaps.pop((row, grade.second, grade.first, grade.aspect), None)
        if other is None:
            gaps[row, grade.first, grade.second, grade.aspect] = grade.value
        else:
            total, count = totals.position_bias
            totals.position_bias = (total + (grade.value + other) / 2, count + 1)


def _reject(
    one: Questions, row: FeedbackRow, posed: PosedQuestion, reason: str, message: str, answer: Answer | None
) -> dict[str, Any]:
    shown = [row.ids[place] for place in posed.question.shown]
    details = {"judge": one.judge.name, "aspect": posed.question.aspect, "shown": shown, "message": message}
    thinking = "\n".join(choice.thinking for choice in answer.choices) if answer else ""
    if answer and answer.text:
        details["reply"] = answer.text[:MAX_REJECT_REPLY]
    if thinking.strip():
        details["thinking"] = thinking[-MAX_REJECT_REPLY:]
    return {
        "unit": "request", "stage": "judge", "reason": reason, "file": None, "row": None, "prompt_id": row.prompt_id,
        "evidence": orjson.dumps(details).decode(),
    }  # fmt: skip


def _with_grades(table: pa.Table, name: str, found: Sequence[GradeInRow]) -> tuple[pa.Table, int]:
    """The table with grades added to a list column, behind those that a row has; how many of these were replaced."""
    if not found:
        return table, 0
    kind = COMPARISON if name == "comparisons" else RATING
    column = flat(table[name])
    old, old_rows = column.flatten(), parents(offsets_of(column))
    keep = ~_given_before(old, old_rows, found)
    new = structs([_struct(one) for one in found], kind).cast(kind)
    merged = with_added(column, new, np.array([one.row for one in found], dtype=np.int64), keep)
    index = table.schema.get_field_index(name)
    return table.set_column(index, FEEDBACK.field(name), merged.cast(FEEDBACK.field(name).type)), int((~keep).sum())


def _struct(one: GradeInRow) -> tuple[Any, ...]:
    grade, note = one.grade, one.note or None
    if grade.second is None:
        return (
            grade.first,
            one.rater,
            "ai",
            grade.aspect,
            grade.value,
            grade.low,
            grade.high,
            grade.std,
            note,
            grade.probabilities,
        )
    return (grade.first, grade.second, one.rater, "ai", grade.aspect, grade.value, grade.high, grade.std, note, grade.probabilities)


def _given_before(grades: pa.StructArray, rows: np.ndarray, found: Sequence[GradeInRow]) -> np.ndarray:
    """Which grades `found` gives again: same row, rater, aspect and completions. A second run replaces these and no others."""
    if not len(grades):
        return np.zeros(0, dtype=bool)
    new = {
        (one.row, one.rater, one.grade.aspect, *sorted((one.grade.first, -1 if one.grade.second is None else one.grade.second)))
        for one in found
    }
    two = "second" in [field.name for field in grades.type]
    columns = [grades.field(key).to_pylist() for key in ("rater", "kind", "aspect", "first" if two else "completion")]
    columns.append(grades.field("second").to_pylist() if two else [-1] * len(grades))
    return np.array(
        [
            kind == "ai" and (row, rater, aspect, *sorted((first, second))) in new
            for row, (rater, kind, aspect, first, second) in zip(rows.tolist(), zip(*columns))
        ],
        dtype=bool,
    )
