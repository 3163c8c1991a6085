"""People's answers, read out of the records of a dataset: one grade a submitted answer and question, everything else counted by
reason."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import pyarrow as pa

from mmpo.annotate.argilla.dataset import GRADES, RATIONALE, AskedQuestion
from mmpo.annotate.argilla.records import LETTERS, NotOurs, ShownRecord, read_record
from mmpo.pipeline.errors import printable
from mmpo.pipeline.storage import text_digest

Key = tuple[str, str, str, str]
"""Record, rater, aspect, and the reply that is rated ("" where two are compared)."""

NOT_SUBMITTED = ("draft", "discarded")

ANSWERS = pa.schema(
    [
        *(pa.field(name, pa.string()) for name in ("record", "rater", "aspect", "prompt_id", "first_id", "second_id")),
        *(pa.field(name, pa.float64()) for name in ("value", "low", "high")),
        *(pa.field(name, pa.string()) for name in ("note", "answered")),
    ]
)
"""One row a grade that came from Argilla, kept beside the FEEDBACK: by it the next pull knows what is new. second_id: null for a
rating."""


@dataclass(frozen=True)
class HumanGrade:
    """One grade by a person. value: the gap toward `first_id`, shown as A, or the rating of `first_id` where second_id is None."""

    record: str
    rater: str
    aspect: str
    prompt_id: str
    first_id: str
    second_id: str | None
    value: float
    low: float
    high: float
    note: str | None
    answered: str

    @property
    def key(self) -> Key:
        """What one grade is: a rater's of an aspect of a record, and of which reply where replies are rated."""
        return (self.record, self.rater, self.aspect, "" if self.second_id is not None else self.first_id)


class Raters:
    """Names of raters by user id: pseudonyms by default, which only Argilla's random user ids lead to."""

    def __init__(self, users: Mapping[str, str], *, real_names: bool) -> None:
        self._users, self._real = users, real_names
        self.known = {self.name(user) for user in users}
        self.nameless: set[str] = set()

    def name(self, user: str) -> str:
        """The rater's name; a user who is gone has a pseudonym in any case."""
        if self._real and user in self._users:
            return printable(self._users[user])
        return f"rater-{text_digest(user, size=5)}"

    def alike(self) -> dict[str, str]:
        """Both names that a user may have in FEEDBACK, each with the pseudonym."""
        hidden = Raters({}, real_names=False)
        pseudonyms = {user: hidden.name(user) for user in self._users}
        return {printable(self._users[user]): own for user, own in pseudonyms.items()} | {own: own for own in pseudonyms.values()}

    def of(self, user: str) -> str:
        """The name of a user who answered; those that Argilla does not list are remembered as `nameless`."""
        if user not in self._users:
            self.nameless.add(self.name(user))
        return self.name(user)


@dataclass
class PulledAnswers:
    """What the records say. answers: by key; found: the records by id; withdrawn: (record, rater) of drafts and discards.

    submitted: (record, rater) of submitted answers in records that can be read, read: of those that gave a grade at least; unread:
    by key, why what was submitted there gives none. aspects: all that the dataset asks about.

    records, responses: counts by what became of them ("used" or a reason); rejects: rows for rejects.parquet.
    """

    answers: dict[Key, HumanGrade] = field(default_factory=dict)
    found: dict[str, ShownRecord] = field(default_factory=dict)
    present: set[str] = field(default_factory=set)
    withdrawn: set[tuple[str, str]] = field(default_factory=set)
    submitted: set[tuple[str, str]] = field(default_factory=set)
    read: set[tuple[str, str]] = field(default_factory=set)
    unread: dict[Key, str] = field(default_factory=dict)
    aspects: set[str] = field(default_factory=set)
    records: Counter[str] = field(default_factory=Counter)
    responses: Counter[str] = field(default_factory=Counter)
    rejects: list[dict[str, Any]] = field(default_factory=list)
    metadata_missing: int = 0

    def reject(self, reason: str, prompt: str | None, evidence: Mapping[str, Any]) -> None:
        """Count a response that gives no grade, with what it said."""
        self.responses[reason] += 1
        self.rejects.append(reject_row("response", reason, prompt, evidence))


def reject_row(unit: str, reason: str, prompt: str | None, evidence: Mapping[str, Any]) -> dict[str, Any]:
    """A row of rejects.parquet: a response or a grade that was left out, and what it said."""
    about = {"unit": unit, "stage": "pull", "reason": reason, "file": None, "row": None, "prompt_id": prompt}
    return {**about, "evidence": orjson.dumps(evidence).decode()}


def read_answers(
    records: Sequence[Mapping[str, Any]], asked: Mapping[str, AskedQuestion], raters: Raters, *, trust_labels: bool
) -> PulledAnswers:
    """The answers in records, as Argilla lists them with their responses; asked: the dataset's questions by name.

    A submitted answer is left out where its record's texts are not those that were pushed (record_edited, foreign_record), where
    its question was reworded (question_edited, unless `trust_labels`), or where it holds no grade that the question offers
    (no_grade).
    """
    result = PulledAnswers(aspects={one.aspect for one in asked.values()})
    for record in records:
        responses = record.get("responses") or ()
        external = str(record.get("external_id") or record["id"])
        result.present.add(external)
        try:
            found = read_record(record)
        except NotOurs as error:
            result.records[error.reason] += 1
            for response in responses:
                _count(response, external, raters, result, reason=error.reason)
            continue
        result.records["used"] += 1
        result.metadata_missing += found.metadata_missing
        result.found[external] = found
        for response in responses:
            if _count(response, external, raters, result, prompt=found.prompt_id):
                _read(response, found, asked, raters, result, trust_labels)
    return result


def _count(
    response: Mapping[str, Any], record: str, raters: Raters, result: PulledAnswers, *, prompt: str | None = None, reason: str = ""
) -> bool:
    """Whether a response is to be read: drafts, discards, and those of unusable records are counted here."""
    rater = raters.of(response["user_id"])
    status = response["status"]
    if status in NOT_SUBMITTED:
        result.withdrawn.add((record, rater))
    if status in NOT_SUBMITTED or reason:
        evidence = {"record": record, "rater": rater, "values": response.get("values")}
        result.reject(status if status in NOT_SUBMITTED else reason, prompt, evidence)
    return status not in NOT_SUBMITTED and not reason


def _read(
    response: Mapping[str, Any],
    found: ShownRecord,
    asked: Mapping[str, AskedQuestion],
    raters: Raters,
    result: PulledAnswers,
    trust_labels: bool,
) -> None:
    """The grades of one submitted response; it counts as used where it gives one at least."""
    values = {name: one.get("value") for name, one in (response.get("values") or {}).items() if isinstance(one, Mapping)}
    rater, grades, reasons = raters.of(response["user_id"]), 0, Counter[str]()
    note = values.get(RATIONALE)
    result.submitted.add((found.record, rater))
    for name, value in values.items():
        question = asked.get(name)
        if question is None:
            continue
        number = _number(value, question)
        place = LETTERS.index(question.letter) if question.letter else 0
        placed = place < len(found.ids) and (question.letter or len(found.ids) == 2)
        reason = "question_edited" if question.reworded and not trust_labels else "no_grade"
        if reason == "question_edited" or number is None or not placed:
            reasons[reason] += 1
            if placed:
                result.unread[found.record, rater, question.aspect, found.ids[place] if question.letter else ""] = reason
            continue
        second = None if question.letter else found.ids[1]
        answer = HumanGrade(
            found.record, rater, question.aspect, found.prompt_id, found.ids[place], second, number, float(question.low),
            float(question.high), note if isinstance(note, str) and note else None, str(response.get("updated_at") or ""),
        )  # fmt: skip
        result.answers[answer.key] = answer
        grades += 1
    if grades:
        result.read.add((found.record, rater))
        result.responses["used"] += 1
    else:
        reason = reasons.most_common(1)[0][0] if reasons else "no_grade"
        evidence = {"record": found.record, "rater": rater, "values": values}
        result.reject(reason, found.prompt_id, evidence)


def _number(value: Any, question: AskedQuestion) -> float | None:
    """The grade as a number, None where it is none of those offered."""
    if question.letter:
        fits = isinstance(value, int) and not isinstance(value, bool) and question.low <= value <= question.high
        return float(value) if fits else None
    return float(value) if isinstance(value, str) and value in GRADES else None
