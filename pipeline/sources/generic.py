"""Files of any columns (jsonl, csv, parquet): one row per rating, per prompt, per pair or per comparison.

Which one a file holds follows from its columns, once per file; `--columns field=column` names columns that are called otherwise. Another
layout of rows is a function that makes its parser and one line in LAYOUTS.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.sources.base import RowParser, SourceOptions, missing_columns, stem
from mmpo.pipeline.sources.builder import KINDS, BadRow, FeedbackBuilder
from mmpo.pipeline.sources.pair_rows import split_pair

GRADE = ("rater", "aspect", "kind")


class RowFields:
    """Reads the fields of one file's rows by the names of its columns. text: all cells are text (CSV)."""

    def __init__(self, columns: Collection[str], options: SourceOptions, file: str, text: bool) -> None:
        present = set(columns)
        names = {name: options.columns.get(name, name) for name in FIELDS}
        self.column = {name: column for name, column in names.items() if column in present or name in options.columns}
        self.grade_columns = [(name, self.column[name]) for name in GRADE if name in self.column]
        self.usual_grade = {"rater": options.rater or stem(file), "kind": options.kind or "human", "aspect": "overall"}
        self.need_scores = options.need_scores
        self.low, self.high = options.scale or (None, None)
        self.number: Callable[[Any], Any] = _number_in_text if text else _same
        self.list_of: Callable[[Any], Any] = _list_in_text if text else _same

    def get(self, row: Mapping[str, Any], name: str) -> Any:
        """The value of a field, None where the file has no such column."""
        column = self.column.get(name)
        return None if column is None else row.get(column)

    def grade(self, row: Mapping[str, Any]) -> dict[str, str]:
        """Rater, kind and aspect of the row's grade. Raises BadRow: unknown_kind."""
        found = dict(self.usual_grade)
        for name, column in self.grade_columns:
            given = row.get(column)
            if given is not None:
                found[name] = str(given)
        if found["kind"] not in KINDS:
            raise BadRow("unknown_kind", {"kind": found["kind"][:80], "allowed": list(KINDS)})
        return found

    def score(self, row: Mapping[str, Any], name: str, out: FeedbackBuilder) -> Any:
        """The value of a score field; None for null (counted as no_grade). Raises BadRow: missing_column."""
        column = self.column.get(name)
        if column is None:
            return None
        if column not in row and self.need_scores:
            raise BadRow("missing_column", {"missing": column})
        value = self.number(row.get(column))
        if value is None and self.need_scores:
            out.reject("no_grade", unit="grade", limited=False)
        return value


def _rating_parser(fields: RowFields) -> RowParser:
    prompt_column, completion_column = fields.column["prompt"], fields.column["completion"]
    low, high = fields.low, fields.high

    def parse(row: Mapping[str, Any], out: FeedbackBuilder) -> None:
        try:
            prompt, completion = row[prompt_column], row[completion_column]
        except KeyError as error:
            raise BadRow("missing_column", {"missing": error.args[0]}) from error
        out.prompt(prompt)
        index = out.completion(completion, fields.get(row, "model"))
        score = fields.score(row, "score", out)
        if score is not None:
            out.rating(index, score, **fields.grade(row), low=low, high=high)

    return parse


def _prompt_parser(fields: RowFields) -> RowParser:
    def parse(row: Mapping[str, Any], out: FeedbackBuilder) -> None:
        texts = fields.list_of(row.get(fields.column["completions"]))
        if not isinstance(texts, list):
            raise BadRow("not_a_list", {"completions": type(texts).__name__})
        scores = _as_long(fields.list_of(fields.get(row, "scores")), texts, "scores")
        models = _as_long(fields.list_of(fields.get(row, "models")), texts, "models")
        out.prompt(row.get(fields.column["prompt"]))  # type: ignore[arg-type]
        graded = fields.grade(row)
        ungraded = 0
        for text, score, model in zip(texts, scores, models):
            unit = "completion"
            try:
                index = out.completion(text, model)
                unit = "grade"
                if score is None:
                    ungraded += 1
                else:
                    out.rating(index, score, **graded, low=fields.low, high=fields.high)
            except BadRow as error:
                out.reject(error.reason, unit=unit, limited=error.limited, evidence=error.evidence)
        for _ in range(ungraded if fields.need_scores else 0):
            out.reject("no_grade", unit="grade", limited=False)

    return parse


def pair_parser(fields: RowFields, by_margin: bool = False) -> RowParser:
    """A pair with two scores becomes two ratings; one with a margin becomes a comparison of that gap, sign and all."""
    # Scores low..high can be at most high - low apart.
    limit = None if fields.low is None or fields.high is None else fields.high - fields.low

    def parse(row: Mapping[str, Any], out: FeedbackBuilder) -> None:
        prompt, chosen, rejected = split_pair(*(fields.get(row, name) for name in ("prompt", "chosen", "rejected")))
        out.prompt(prompt)
        first = out.completion(chosen, fields.get(row, "chosen_model"))
        second = out.completion(rejected, fields.get(row, "rejected_model"))
        graded = fields.grade(row)
        if by_margin:
            gap = fields.score(row, "margin", out)
            if gap is not None:
                out.comparison(first, second, gap, **graded, limit=limit)
            return
        for index, name in ((first, "score_chosen"), (second, "score_rejected")):
            score = fields.score(row, name, out)
            if score is not None:
                out.rating(index, score, **graded, low=fields.low, high=fields.high)

    return parse


def _comparison_parser(fields: RowFields) -> RowParser:
    low, high = fields.low, fields.high
    if low is not None and high is not None and low != -high:
        raise UserError(f"--scale {low:g}:{high:g}: the scale of a gap must be symmetric, such as -3:3")

    def parse(row: Mapping[str, Any], out: FeedbackBuilder) -> None:
        out.prompt(row.get(fields.column["prompt"]))  # type: ignore[arg-type]
        first = out.completion(row.get(fields.column["first"]), fields.get(row, "first_model"))
        second = out.completion(row.get(fields.column["second"]), fields.get(row, "second_model"))
        if first == second:
            raise BadRow("identical_texts", limited=False)
        gap = fields.score(row, "gap", out)
        if gap is not None:
            out.comparison(first, second, gap, **fields.grade(row), limit=fields.high)

    return parse


@dataclass(frozen=True)
class RowLayout:
    """A way to lay out feedback in rows. texts and grades: the fields that it needs; others: those that it also takes."""

    name: str
    texts: tuple[str, ...]
    grades: tuple[str, ...]
    others: tuple[str, ...]
    parser: Callable[[RowFields], RowParser]


_PAIR = ("prompt", "chosen", "rejected")
_MODELS = ("chosen_model", "rejected_model")
LAYOUTS = (
    RowLayout("one row per rating", ("prompt", "completion"), ("score",), ("model", *GRADE), _rating_parser),
    RowLayout("one row per prompt", ("prompt", "completions"), ("scores",), ("models", *GRADE), _prompt_parser),
    RowLayout("one row per pair", _PAIR, ("score_chosen", "score_rejected"), (*_MODELS, *GRADE), pair_parser),
    RowLayout("one row per pair with its margin", _PAIR, ("margin",), (*_MODELS, *GRADE), partial(pair_parser, by_margin=True)),
    RowLayout("one row per comparison", ("prompt", "first", "second"), ("gap",), ("first_model", "second_model", *GRADE),
              _comparison_parser),
)  # fmt: skip
FIELDS = tuple(dict.fromkeys(name for layout in LAYOUTS for name in (*layout.texts, *layout.grades, *layout.others)))


def prepare_generic(columns: Collection[str], options: SourceOptions, file: str, *, text: bool = False) -> RowParser:
    """The parser of the rows whose layout the columns make. text: all cells are text (CSV), lists are JSON in a cell.

    Raises UserError where no layout of rows fits the columns.
    """
    layout = _layout(columns, options, file)
    fields = RowFields(columns, options, file, text)
    if not all(name in fields.column for name in layout.grades):
        fields.column = {name: column for name, column in fields.column.items() if name not in layout.grades}
    return layout.parser(fields)


def _layout(columns: Collection[str], options: SourceOptions, file: str) -> RowLayout:
    """The layout whose fields are there; of several, the one with most fields named in --columns, then the first."""
    absent = [f"{column} (for {name})" for name, column in options.columns.items() if column not in columns]
    if absent:
        raise missing_columns(file, "what --columns names", absent, columns)
    there = {name for name in FIELDS if options.columns.get(name, name) in columns}

    def missing(layout: RowLayout) -> list[str]:
        needed = layout.texts + (layout.grades if options.need_scores else ())
        return [name for name in needed if name not in there]

    def rank(layout: RowLayout) -> tuple[int, int]:
        graded = sum(name not in there for name in layout.grades)
        return -sum(name in options.columns for name in (*layout.texts, *layout.grades)), graded

    fits = [layout for layout in LAYOUTS if not missing(layout)]
    if fits:
        return min(fits, key=rank)
    close = min(LAYOUTS, key=lambda layout: (len(missing(layout)), rank(layout)))
    hint = "Name columns that are called otherwise by --columns field=column,..."
    if set(close.texts) <= there:
        hint += " Without grades only --feedback-only reads the file."
    raise missing_columns(file, f"{close.name} ({', '.join(close.texts + close.grades)})", missing(close), columns, hint)


def _as_long(values: Any, texts: list[Any], name: str) -> list[Any]:
    if values is None:
        return [None] * len(texts)
    if not isinstance(values, list):
        raise BadRow("not_a_list", {name: type(values).__name__})
    if len(values) != len(texts):
        raise BadRow("lengths_differ", {"completions": len(texts), name: len(values)})
    return values


def _same(value: Any) -> Any:
    return value


def _number_in_text(value: Any) -> Any:
    """The number in a CSV cell; what is none stays text, which is then refused (1_000 too, which float() would take)."""
    if not isinstance(value, str) or "_" in value:
        return value
    try:
        return float(value)
    except ValueError:
        return value if value.strip() else None


def _list_in_text(value: Any) -> Any:
    """The JSON list in a CSV cell; anything else stays what it is."""
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        return value
