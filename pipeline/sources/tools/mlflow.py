"""MLflow's traces with their assessments, as `search_traces()` gives them, written as JSON lines.

A corrected rating stays beside its correction with `valid: false`, a judge that failed is a feedback without a value, and what the answer
should have been (an expectation) stands among the feedbacks of the same name: each is counted by its name and none is a grade.
"""

from collections.abc import Callable, Mapping
from typing import Any

from mmpo.pipeline.errors import BadRow
from mmpo.pipeline.sources.base import FormatSample, Source, SourceOptions, Unfolded, column_sets
from mmpo.pipeline.sources.cells import reader
from mmpo.pipeline.sources.generic import FIELDS
from mmpo.pipeline.sources.literals import structure
from mmpo.pipeline.sources.tools.answers import answers_reader, as_object

KINDS = {"HUMAN": "human", "LLM_JUDGE": "ai", "AI_JUDGE": "ai", "CODE": "reward_model"}
"""Who assesses, as MLflow and as we call it; code that gives a score is a model of rewards."""
WORDS = {"yes": 1.0, "no": 0.0}
"""What MLflow's own judges say, as MLflow itself takes it in its means."""
TEXTS = {"prompt": "request", "completion": "response"}
INSIDE = tuple(f"{column}{mark}" for column in TEXTS.values() for mark in ".[")
OWN = ("rater", "kind")
"""What the rows have beside a trace's columns and the feedback."""
NAMES = ("assessment_name", "name")
"""Under what an assessment's name stands: in search_traces(), and in a trace's own JSON."""


def unfold_mlflow(row: Mapping[str, Any], options: SourceOptions, count: Callable[[str], None]) -> Unfolded:
    """A row per assessor of a trace: the trace's columns, each feedback under its name, `rater` and `kind`.

    BadRow: superseded, expectation, judge_failed, no_value, no_name, name_taken, not_assessed; of a whole trace trace_STATE, not_text.
    """
    given = row.get("assessments")
    given = structure(given) if isinstance(given, str) else given
    if not isinstance(given, list) or not all(isinstance(one, Mapping) for one in given):
        hint = "a CSV holds objects as Python prints them" if given is not None else "traces have assessments, runs have none"
        hint += ": write search_traces() by to_json(orient='records', lines=True)"
        raise BadRow("not_a_list", {"assessments": repr(row.get("assessments"))[:80], "hint": hint})
    if row.get("state") not in (None, "OK"):
        raise BadRow(f"trace_{str(row['state']).lower()}", {"trace_id": row.get("trace_id")}, limited=False)
    inside = [path for path in options.columns.values() if path not in row and path.startswith(INSIDE)]
    paths = {path: reader(path, row)(row) for path in inside}  # what is inside the request as it was sent, and not as it is read
    texts = {**row, **paths, "request": _request(row.get("request")), "response": _response(row.get("response"))}
    for name, column in TEXTS.items():
        if name in options.columns and any(path.startswith(column) for path in paths) and column not in options.columns.values():
            del texts[column]  # which nothing reads as a whole
            continue
        if name not in options.columns and isinstance(texts[column], Mapping) and "role" not in texts[column]:
            keys = list(texts[column])
            raise BadRow("not_text", {column: keys[:8], "hint": f"--columns {name}={column}.KEY names the text inside"})
    people: dict[tuple[str, str], dict[str, list[Any]]] = {}
    overridden = {str(one["overrides"]) for one in given if one.get("overrides")}
    words = {word.strip().casefold() for word in options.gap_of}
    for one in given:
        value, error = _value(one) if str(one.get("assessment_id")) not in overridden else (None, "superseded")
        word = value.strip().casefold() if isinstance(value, str) else ""
        value = WORDS.get(word, value) if word not in words else value
        if error:
            yield 0, BadRow(error, {name: one[name] for name in (*NAMES, "assessment_id") if name in one}, limited=False)
            continue
        name = next((str(one[name]) for name in NAMES if one.get(name) is not None), None)
        if name is None:
            yield 0, BadRow("no_name", {"assessment": list(one)[:8], "hint": f"an assessment is named by {' or '.join(NAMES)}"})
            continue
        if name in texts or name in OWN:
            hint = "an assessment and a column of the trace have one name: rename one of them in the file"
            yield 0, BadRow("name_taken", {"assessment": name, "hint": hint}, limited=False)
            continue
        source = as_object(one.get("source"))
        by = str(source.get("source_id") or ""), str(source.get("source_type") or "")
        people.setdefault(by, {}).setdefault(name, []).append(value)
    if not given:
        yield 0, BadRow("not_assessed", {"trace_id": row.get("trace_id")}, limited=False)
    for (rater, kind), answers in people.items():
        flat = {name: values[0] if len(values) == 1 else values for name, values in answers.items()}
        yield 0, {**texts, **flat, "rater": rater or None, "kind": KINDS.get(kind, kind.lower() or None)}


def _value(assessment: Mapping[str, Any]) -> tuple[Any, str]:
    """A feedback's value, a passed check as 1 and a failed one as 0; or why there is none."""
    feedback = assessment.get("feedback")
    if assessment.get("valid") is False:
        return None, "superseded"
    if not isinstance(feedback, Mapping):
        return None, "expectation" if "expectation" in assessment else "no_value"
    value = feedback.get("value")
    if value is None:
        return None, "judge_failed" if feedback.get("error") else "no_value"
    if isinstance(value, bool):
        return float(value), ""
    return tuple(value) if isinstance(value, list) else value, ""  # a list of several answers is made above


def _request(value: Any) -> Any:
    """The messages of a chat request; all else as it is."""
    found = structure(value) if isinstance(value, str) and value[:1] == "{" else value
    messages = found.get("messages") if isinstance(found, Mapping) else None
    return messages if isinstance(messages, list) else value if found is None else found


def _response(value: Any) -> Any:
    """The message of a chat completion; all else as it is."""
    found = structure(value) if isinstance(value, str) and value[:1] == "{" else value
    choices = found.get("choices") if isinstance(found, Mapping) else None
    if isinstance(choices, list) and choices and isinstance(choices[0], Mapping) and choices[0].get("message"):
        return choices[0]["message"]
    return value if found is None else found


def _trace(response: str, value: float) -> dict[str, Any]:
    source = {"source_type": "HUMAN", "source_id": "anna"}
    assessment = {"assessment_name": "quality", "source": source, "feedback": {"value": value}, "valid": True}
    return {"state": "OK", "request": {"question": "Name a planet."}, "response": response, "assessments": [assessment]}


MLFLOW = Source(
    "mlflow",
    "MLflow traces with the feedback of people, judges and code, as search_traces() gives them",
    prepare=answers_reader("mlflow", {**TEXTS, "rater": "rater", "kind": "kind"}),
    requires=column_sets("request response assessments"),
    fields=FIELDS,
    scaled=True,
    samples=(
        FormatSample(
            "traces, and the feedback `quality` of each",
            (_trace("Mars, the red one.", 5.0), _trace("The moon.", 2.0)),
            "--columns prompt=request.question,score=quality --scale 1:5",
        ),
    ),
    unfold=unfold_mlflow,
    range="as the feedback has it; a passed check (true, yes) is 1, a failed one (false, no) 0",
    direction="higher is better",
    traps={
        "corrections": "a corrected rating stays beside its correction, with `valid: false`",
        "expectations": "what an answer should have been stands among the feedbacks, under the same name",
        "failed judges": "a judge that failed is a feedback without a value",
        "repeats": "a list may be one feedback's value or several answers by one assessor: only the second are grades",
    },
)
