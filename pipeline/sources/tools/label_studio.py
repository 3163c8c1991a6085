"""Label Studio's exports (JSON, JSON_MIN, CSV, TSV): one row per task, or per person's answers to it.

A task's texts and the labelling tags have the project's own names, so --columns says which are which. Left of a Pairwise is the reply that
its `toName` names first. JSON also carries what was skipped, drafts and model predictions: counted, never read as grades.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

from mmpo.pipeline.errors import BadRow, UserError
from mmpo.pipeline.sources.base import FormatSample, RowReader, Source, SourceOptions, Unfolded, column_sets
from mmpo.pipeline.sources.generic import FIELDS
from mmpo.pipeline.sources.literals import structure
from mmpo.pipeline.sources.tools.answers import answers_reader, as_list, as_object, asked_columns

READ_TYPES = ("pairwise", "rating", "number", "ranker", "choices", "taxonomy")
"""Types of results that can grade. Of others a text area's remarks are left out, and all else is no grading of texts."""
_INNER = {"pairwise": "selected"}
_KEYS = frozenset(_INNER.get(name, name) for name in READ_TYPES)
_OPENERS = ('{"', '[{"')
DEFAULTS = {"rater": "annotator", "completions": "items[].body", "scores": "rank", "first": "answer1", "second": "answer2"}
SIDES = {"left": 1.0, "right": -1.0}
"""What a Pairwise's sides are worth as a gap: the left one is the first reply."""
UNRANKED = "_"
GRADES = ("gap", "margin", "score", "score_first", "score_second", "score_chosen", "score_rejected")
"""The fields that hold one grade; a Ranker's `scores` are a list."""


def unfold_label_studio(row: Mapping[str, Any], options: SourceOptions, count: Callable[[str], None]) -> Unfolded:
    """A row per annotation: the task's data, each tag's answer under the tag's name, `annotator` and `annotation_id`.

    BadRow: skipped, draft, empty_annotation, not_annotated, answered_twice, several_answers, ranked_twice; of a whole task not_an_object,
    unknown_result_type.
    """
    if "annotations" not in row and "completions" in row and "data" in row:
        raise UserError("the key `completions` is Label Studio's before 1.0: export the project anew from a current version")
    if "annotations" not in row:
        flat = {name: _simple(value) for name, value in row.items()}
        yield 0, {name: _read_value(name, value, flat, options, count) for name, value in flat.items()}
        return
    data, annotations = row.get("data"), row["annotations"]
    if not isinstance(data, Mapping) or not isinstance(annotations, list):
        told = {"data": type(data).__name__, "annotations": type(annotations).__name__}
        raise BadRow("not_an_object", {**told, "hint": "a task has `data` (an object) and `annotations` (a list): export as JSON"})
    if row.get("predictions"):
        count("predictions_left_out")
    for draft in map(as_object, as_list(row.get("drafts"))):
        yield 0, _left_out("draft", draft)
    if not annotations:
        yield 0, BadRow("not_annotated", {"task": row.get("id")}, limited=False)
    for annotation in annotations:
        if not isinstance(annotation, Mapping):
            told = {"annotation": annotation, "hint": "JSON has whole annotations, the API without `fields=all` only their numbers"}
            yield 0, BadRow("not_an_object", told)
        elif annotation.get("was_cancelled"):
            yield 0, _left_out("skipped", annotation)
        elif not as_list(annotation.get("result")):
            yield 0, _left_out("empty_annotation", annotation)
        else:
            try:
                yield 0, _answers(annotation, data, options, count)
            except BadRow as error:
                yield 0, error


def _left_out(reason: str, annotation: Mapping[str, Any]) -> BadRow:
    return BadRow(reason, {name: annotation.get(name) for name in ("id", "completed_by")}, limited=False)


def _answers(
    annotation: Mapping[str, Any], data: Mapping[str, Any], options: SourceOptions, count: Callable[[str], None]
) -> Mapping[str, Any]:
    answers: dict[str, Any] = {}
    others: list[dict[str, Any]] = []
    for result in map(as_object, as_list(annotation["result"])):
        kind, name, value = result.get("type"), result.get("from_name"), result.get("value")
        if kind not in (*READ_TYPES, "textarea") or not isinstance(value, Mapping) or not isinstance(name, str):
            others.append({"type": kind, "from_name": name})
            continue
        if name in data:
            raise BadRow(
                "name_taken", {"from_name": name, "hint": "a tag and a key of the task's data have one name; rename the tag"}
            )
        if name in answers:
            hint = "a tag that is asked of every region has an answer for each, and nothing says for which reply: one tag a reply"
            raise BadRow("answered_twice", {"from_name": name, "annotation": annotation.get("id"), "hint": hint})
        if kind == "textarea":
            count("remarks_left_out")
        else:
            key = _INNER.get(kind, kind)
            answers[name] = _read_value(name, _answer(key, value.get(key)), data, options, count)
    if others and not answers:
        hint = "read are Pairwise, Rating, Number, Ranker, Choices and Taxonomy; a project with other tags alone grades no texts"
        raise BadRow("unknown_result_type", {**others[0], "hint": hint})
    if others:
        count("other_results_left_out")
    by = annotation.get("completed_by")
    about = {"annotator": by.get("id") if isinstance(by, Mapping) else by, "annotation_id": annotation.get("id")}
    return {**data, **answers, **about}


class _Ranked:
    """A Ranker's answer: ids in their order, or a list of ids for each bucket."""

    def __init__(self, value: Any) -> None:
        self.value = value


class _Side:
    """A Pairwise's answer."""

    def __init__(self, value: Any) -> None:
        self.value = value


_ANSWERS: dict[str, Callable[[Any], Any]] = {"ranker": _Ranked, "selected": _Side}


def _answer(key: str, value: Any) -> Any:
    """What stands under a result's key; of choices the only one, several stay a list."""
    if key in _ANSWERS:
        return _ANSWERS[key](value)
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _simple(value: Any) -> Any:
    """What stands in a cell of JSON_MIN or CSV: a list of one object for a rating, a bare word or an object for choices."""
    if isinstance(value, str) and value.startswith(_OPENERS):
        spelled = structure(value)
        value = value if spelled is None else spelled
    inner = value[0] if isinstance(value, list) and len(value) == 1 else value
    if not isinstance(inner, Mapping) or len(inner) != 1:
        return value
    [(key, found)] = inner.items()
    return _answer(key, found) if key in _KEYS else value


def _read_value(name: str, value: Any, data: Mapping[str, Any], options: SourceOptions, count: Callable[[str], None]) -> Any:
    """A side as ±1. Of a Ranker's answer a score for each item in the order of the data: the best has as many as there are items, or a
    bucket's worth (--gap-of good=1,bad=0); what was not ranked has none. All else as it is."""
    if isinstance(value, list) and name in asked_columns(options, GRADES):
        hint = "several ticks, or stars for several regions, are no grade: ask for one answer"
        raise BadRow("several_answers", {name: repr(value)[:200], "hint": hint})
    if isinstance(value, _Side):
        return SIDES.get(str(value.value), value.value)
    if not isinstance(value, _Ranked):
        return value
    if name != options.columns.get("scores", DEFAULTS["scores"]):
        return None
    given = value.value if isinstance(value.value, Mapping) else {"rank": value.value}
    lists = {name: list(map(str, as_list(ids))) for name, ids in given.items()}
    placed = [one for ids in lists.values() for one in ids]
    if len(set(placed)) < len(placed):
        hint = "an item has one place in a ranking, and stands in one bucket"
        raise BadRow("ranked_twice", {"ranker": repr(value.value)[:200], "hint": hint})
    items = next(_items(placed, data), None)
    if items is None:
        hint = "no list in the task's data has items with these `id`s: export tasks and answers together"
        raise BadRow("unknown_items", {"ranker": repr(value.value)[:200], "hint": hint})
    if set(lists) - {UNRANKED} <= {"rank"}:
        ranked = lists.get("rank", [])
        if ranked == items:
            count("ranking_in_display_order")
        worth = {one: float(len(items) - place) for place, one in enumerate(ranked)}
    else:
        unknown = [name for name in lists if name not in options.gap_of and name != UNRANKED]
        if unknown:
            hint = "--gap-of BUCKET=SCORE,... says what each bucket is worth"
            raise BadRow("unknown_bucket", {"buckets": unknown, "known": list(options.gap_of), "hint": hint})
        worth = {one: options.gap_of[name] for name, ids in lists.items() if name != UNRANKED for one in ids}
    return [worth.get(one) for one in items]


def _items(placed: list[str], data: Mapping[str, Any]) -> Iterator[list[str]]:
    """The ids, as texts, of the lists in a task's data that hold all the ids."""
    for value in data.values():
        ids = [str(as_object(one).get("id")) for one in as_list(value)]
        if ids and all(one in ids for one in placed):
            yield ids


def prepare_label_studio(columns: Collection[str], options: SourceOptions, file: str) -> RowReader:
    """The parser of unfolded rows. Raises UserError where the columns that --columns names are not there."""
    LABEL_STUDIO.check(columns, file)
    words = options.gap_of if "gap" in options.columns else {}  # else they are what a Ranker's buckets are worth
    return _read(columns, replace(options, gap_of=words), file)


_read = answers_reader("label-studio", DEFAULTS)
_TASK = {"prompt": "Name a planet.", "answer1": "Mars, the red one.", "answer2": "The moon."}


def _result(kind: str, name: str, key: str, value: Any) -> dict[str, Any]:
    return {"type": kind, "from_name": name, "to_name": name, "value": {key: value}}


def _exported(data: Mapping[str, Any], *results: Mapping[str, Any]) -> dict[str, Any]:
    annotation = {"id": 6, "completed_by": 1, "was_cancelled": False, "result": list(results)}
    return {"id": 5, "data": data, "annotations": [annotation], "drafts": [], "predictions": []}


_PAIRWISE = FormatSample(
    "JSON: a Pairwise `better` and a Rating `by` of how much; without one, gap=better",
    (_exported(_TASK, _result("pairwise", "better", "selected", "left"), _result("rating", "by", "rating", 4)),),
    "--columns gap=better*by --scale -5:5",
)
_RATINGS = FormatSample(
    "JSON_MIN: a Rating for each of two replies",
    ({**_TASK, "id": 5, "s1": [{"rating": 5}], "s2": [{"rating": 2}], "annotator": 1, "annotation_id": 6},),
    "--columns score_first=s1,score_second=s2 --scale 1:5",
)
_RANKER = FormatSample(
    "JSON: a Ranker over items; with buckets, --gap-of says what each is worth",
    (
        _exported(
            {"prompt": "Name a planet.", "items": [{"id": "a", "body": "The moon."}, {"id": "b", "body": "Mars, the red one."}]},
            _result("ranker", "rank", "ranker", {"rank": ["b", "a"]}),
        ),
    ),
    "--columns completions=items[].body,scores=rank",
)

LABEL_STUDIO = Source(
    "label-studio",
    "Label Studio's exports (JSON, JSON_MIN, CSV): Pairwise with or without Rating, a Rating per reply, Ranker, Number, Choices",
    prepare=prepare_label_studio,
    requires=column_sets("annotator annotation_id"),
    folded=column_sets("annotations data"),
    fields=FIELDS,
    scaled=True,
    samples=(_PAIRWISE, _RATINGS, _RANKER),
    unfold=unfold_label_studio,
    export="Tasks have answers once they are annotated: export the project as JSON, JSON_MIN or CSV.",
    range="as the project's tags have it: --scale 1:5 for stars, -5:5 for a side times stars",
    direction="left of a Pairwise, the first of a ranking and more stars are better",
    traps={
        "sides": "the side of a Pairwise is one result and the stars beside it another: stars alone do not say which reply they are for",
        "skipped": "JSON has skipped annotations, drafts and empty ones among the others",
        "bare words": "JSON_MIN and CSV have one choice as a bare word and several as an object, but stars always as a list of an object",
        "places": "a ranking is a list of ids: the first is the best, though its place is the smallest number",
        "untouched ranking": "a Ranker that nobody touched is sent as a ranking in the order in which the items were shown",
    },
)
