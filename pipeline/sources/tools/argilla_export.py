"""Argilla's exports that mmpo did not make: folders of `to_disk` and `to_json` (records), frames of `to_datasets` (JSON, Parquet, CSV).

Fields and questions have the dataset's own names, so --columns says which are which. Only submitted answers are grades. Records do not say
which answers were submitted; `to_datasets` does. A ranking's ranks are in neither: what stands there is the order in which it was shown.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from mmpo.pipeline.errors import BadRow, UserError
from mmpo.pipeline.sources.base import FormatSample, Source, SourceOptions, Unfolded, column_sets
from mmpo.pipeline.sources.generic import FIELDS
from mmpo.pipeline.sources.literals import structure
from mmpo.pipeline.sources.tools.answers import answers_reader, as_list, as_object, asked_columns

RESPONSES = ".responses"
BESIDE = re.compile(r"\.(responses(\.users|\.status)?|suggestion(\.score|\.agent)?)$|-suggestion(-metadata)?$")
SUGGESTED = (".suggestion", "-suggestion")
STATUS_HINT = (
    "records do not say which answers were submitted, and drafts and discarded ones stand among them: export by to_datasets()"
)
_QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"")


def unfold_argilla(row: Mapping[str, Any], options: SourceOptions, count: Callable[[str], None]) -> Unfolded:
    """A row per person who submitted: fields and metadata, each question's answer under its name, `user_id`.

    BadRow: draft, discarded, status_unknown, not_annotated; of a whole record missing_column, lengths_differ. Raises UserError where the
    question that is asked for is a ranking.
    """
    if isinstance(row.get("fields"), Mapping) and "responses" in row:
        texts = {**row["fields"], **as_object(row.get("metadata"))}
        given = _of_records(row)
        suggested = bool(row.get("suggestions"))
    else:
        older = _questions(row)
        if any(name.endswith(RESPONSES) and value is not None for name, value in row.items()):
            older = [name for name in older if row[name] is not None]  # in a table of both versions the other's columns are null
        texts = {name: value for name, value in row.items() if not BESIDE.search(name) and name not in older}
        given = _of_version_1(row, older) if older else _of_frames(row)
        suggested = any(value is not None for name, value in row.items() if name.endswith(SUGGESTED))
    if suggested:
        count("suggestions_left_out")
    people: dict[tuple[str | None, int], dict[str, Any]] = {}
    status: dict[tuple[str | None, int], str | None] = {}
    answered: Counter[tuple[str, str | None]] = Counter()
    for question, value, user, state in given:
        person = user, answered[question, user]  # of people whose accounts are gone there may be several, all without an id
        answered[question, user] += 1
        people.setdefault(person, {})[question] = value
        status[person] = state
    if not people:
        yield 0, BadRow("not_annotated", {"id": row.get("id")}, limited=False)
    asked = asked_columns(options)
    for person, answers in people.items():
        user, state = person[0], status[person]
        about = {"id": row.get("id"), "user_id": user}
        lists = [question for question, value in answers.items() if question in asked and isinstance(value, list)]
        if state is None and row.get("status") != "completed":
            yield 0, BadRow("status_unknown", {**about, "hint": STATUS_HINT}, limited=False)
        elif state not in (None, "submitted"):
            yield 0, BadRow(str(state), about, limited=False)
        elif lists:
            raise UserError(
                f"the answer to {lists[0]!r} is a list ({answers[lists[0]]!r}): of a ranking Argilla 2 exports no ranks but the order in "
                "which it was shown, that of Argilla 1 is not read, and several labels are no grade. Name a rating, or a label with "
                "--gap-of, in --columns"
            )
        else:
            if state is None:
                count("argilla_status_unknown")
            yield 0, {**texts, **answers, "user_id": user}


_Given = list[tuple[str, Any, str | None, str | None]]
"""Question, value, user and status (None: not known) of each answer."""


def _user(value: Any) -> str | None:
    return None if value is None else str(value)


def _of_records(row: Mapping[str, Any]) -> _Given:
    responses = row["responses"] or {}
    if not isinstance(responses, Mapping):
        told = {
            "responses": type(responses).__name__,
            "hint": "records hold `responses` as an object, a list of answers per question",
        }
        raise BadRow("not_an_object", told)
    return [
        (name, one.get("value"), _user(one.get("user_id")), one.get("status"))
        for name, many in responses.items()
        for one in map(as_object, as_list(many))
    ]


def _questions(row: Mapping[str, Any]) -> list[str]:
    """The questions of a frame of Argilla 1 (looked at: 1.29.1): columns that hold a list of answers with their users, and a suggestion
    beside them."""
    return [name for name, value in row.items() if f"{name}-suggestion" in row or {"user_id", "value"} <= set(_first(value))]


def _first(value: Any) -> Mapping[str, Any]:
    return as_object(value[0]) if isinstance(value, list) and value else as_object(value)


def _of_version_1(row: Mapping[str, Any], questions: Sequence[str]) -> _Given:
    given: _Given = []
    for question in questions:
        cell = _cell(row[question])
        if isinstance(cell, Mapping):  # older releases of datasets turn a list of objects into an object of lists
            keys, columns = list(cell), [as_list(one) for one in cell.values()]
            cell = [dict(zip(keys, values)) for values in zip(*columns)]
        given += [
            (question, one.get("value"), _user(one.get("user_id")), one.get("status")) for one in map(as_object, as_list(cell))
        ]
    return given


def _of_frames(row: Mapping[str, Any]) -> _Given:
    questions = [name.removesuffix(RESPONSES) for name in row if name.endswith(RESPONSES)]
    if not questions:
        raise UserError(
            "holds neither `fields` and `responses` (records) nor columns QUESTION.responses (to_datasets). An Argilla dataset is "
            "exported by dataset.records.to_datasets(), or by to_disk()"
        )
    given: _Given = []
    for question in questions:
        values, users, states = (_cell(row.get(f"{question}{RESPONSES}{end}")) for end in ("", ".users", ".status"))
        if values is None:
            continue
        if users is None:
            raise BadRow("missing_column", {"missing": f"{question}{RESPONSES}.users", "hint": "export by to_datasets()"})
        states = [None] * len(as_list(users)) if states is None else states
        if not len(as_list(values)) == len(as_list(users)) == len(as_list(states)):
            told = {"values": repr(values)[:80], "users": repr(users)[:80], "status": repr(states)[:80]}
            raise BadRow("lengths_differ", {**told, "hint": "CSV spoils lists of lists: export as JSON or Parquet"})
        given += zip([question] * len(values), values, map(_user, users), states)
    return given


def _cell(value: Any) -> Any:
    """A list as it is, as JSON, or as Python and NumPy print it in CSV: [{...}], [5 2], ['a' 'b']; of lists inside it as many texts."""
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:  # Python would join what NumPy prints side by side
        pass
    inner = value.strip().removeprefix("[").removesuffix("]")
    if inner[:1] == "{":
        return structure(value) or structure(re.sub(r"\}\s+\{", "}, {", value))
    if "array(" in inner:
        return [[part] for part in inner.split("array(")[1:]]
    if _QUOTED.search(inner):
        return [one or other for one, other in _QUOTED.findall(inner)]
    return [structure(part) for part in inner.split()]


def _answer(value: Any, user: str = "anna", status: str = "submitted") -> dict[str, Any]:
    return {"user_id": user, "value": value, "status": status}


_QUALITY = {"quality.responses": [5], "quality.responses.users": ["anna"], "quality.responses.status": ["submitted"]}
ARGILLA_EXPORT = Source(
    "argilla-export",
    "Argilla's own exports (to_datasets, to_disk): ratings, or a label for the better of two fields",
    prepare=answers_reader("argilla-export", {"rater": "user_id"}),
    folded=column_sets("fields responses", "_server_id status"),
    fields=FIELDS,
    scaled=True,
    samples=(
        FormatSample(
            "to_datasets: a rating question `quality` about the field `reply`",
            (
                {"prompt": "Name a planet.", "reply": "Mars, the red one.", **_QUALITY},
                {"prompt": "Name a planet.", "reply": "The moon.", **_QUALITY, "quality.responses": [2]},
            ),
            "--columns completion=reply,score=quality --scale 1:5",
        ),
        FormatSample(
            "Argilla 1: answers with their users in the question's own column",
            tuple(
                {
                    "prompt": "Name a planet.",
                    "reply": text,
                    "quality": [_answer(score)],
                    "quality-suggestion": None,
                    "metadata": "{}",
                }
                for text, score in (("Mars, the red one.", 5), ("The moon.", 2))
            ),
            "--columns completion=reply,score=quality --scale 1:5",
        ),
        FormatSample(
            "records: a label question `better` about the fields `a` and `b`",
            (
                {
                    "id": "r1",
                    "fields": {"prompt": "Name a planet.", "a": "The moon.", "b": "Mars, the red one."},
                    "responses": {"better": [{"value": "b_better", "user_id": "anna"}]},
                    "status": "completed",
                },
            ),
            "--columns first=a,second=b,gap=better --gap-of a_better=1,b_better=-1,tie=0",
        ),
    ),
    unfold=unfold_argilla,
    range="as the question has it: --scale 1:5 for a rating of five",
    direction="higher ratings are better; --gap-of says what a label is worth",
    traps={
        "drafts": "records (to_disk, to_json) write drafts and discarded answers like submitted ones; to_datasets says which are which",
        "rankings": "of a ranking there are no ranks but the order in which the options were shown",
        "printed lists": "in CSV two users are ['a' 'b'], which Python reads as one text, 'ab'",
        "versions": "Argilla 1 has a list of answers in the question's column, drafts and discarded ones among them, where Argilla 2 has "
        "columns beside it",
        "suggestions": "a model's suggestion stands beside people's answers to the same question",
    },
)
