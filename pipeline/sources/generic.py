"""Files of any columns (jsonl, csv, parquet): a row a rating, a row a prompt, a row a pair, or a row a comparison.

Which one a file holds follows from its columns, once a file; `--columns field=column` names columns that are called
otherwise.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.sources.base import RowParser, SourceOptions, missing_columns, stem
from mmpo.pipeline.sources.builder import KINDS, BadRow, FeedbackBuilder
from mmpo.pipeline.sources.pair_rows import split_pair

__all__ = ["FIELDS", "SHAPES", "Row", "Shape", "prepare_csv", "prepare_generic", "prepare_shape"]


@dataclass(frozen=True)
class Shape:
    """A way to lay out feedback. texts and grades: the fields that it needs; others: those that it also takes."""

    name: str
    texts: tuple[str, ...]
    grades: tuple[str, ...]
    others: tuple[str, ...]


GRADE = ("rater", "aspect", "kind")
SHAPES = (
    Shape("a row a rating", ("prompt", "completion"), ("score",), ("model", *GRADE)),
    Shape("a row a prompt", ("prompt", "completions"), ("scores",), ("models", *GRADE)),
    Shape(
        "a row a pair",
        ("prompt", "chosen", "rejected"),
        ("score_chosen", "score_rejected"),
        ("chosen_model", "rejected_model", *GRADE),
    ),
    Shape(
        "a row a pair with its margin",
        ("prompt", "chosen", "rejected"),
        ("margin",),
        ("chosen_model", "rejected_model", *GRADE),
    ),
    Shape("a row a comparison", ("prompt", "first", "second"), ("gap",), ("first_model", "second_model", *GRADE)),
)
FIELDS = tuple(dict.fromkeys(name for shape in SHAPES for name in (*shape.texts, *shape.grades, *shape.others)))


class Row:
    """Reads the fields of one file's rows by the names of its columns. text: all cells are text (CSV)."""

    def __init__(self, columns: Collection[str], options: SourceOptions, file: str, text: bool) -> None:
        present = set(columns)
        names = {name: options.columns.get(name, name) for name in FIELDS}
        self.column = {name: column for name, column in names.items() if column in present or name in options.columns}
        self.rater_column, self.aspect_column, self.kind_column = (self.column.get(name) for name in GRADE)
        self.rater = options.rater or stem(file)
        self.kind = options.kind or "human"
        self.need_scores = options.need_scores
        self.low, self.high = options.scale or (None, None)
        self.number: Callable[[Any], Any] = _number_in_text if text else _same
        self.list_of: Callable[[Any], Any] = _list_in_text if text else _same

    def model(self, row: Mapping[str, Any], name: str) -> Any:
        """A model's name, where the file has that column."""
        column = self.column.get(name)
        return None if column is None else row.get(column)

    def grade(self, row: Mapping[str, Any]) -> tuple[str, str, str]:
        """Rater, kind and aspect of the row's grade. Raises BadRow: unknown_kind."""
        rater, kind, aspect = self.rater, self.kind, "overall"
        if self.rater_column is not None:
            given = row.get(self.rater_column)
            rater = rater if given is None else str(given)
        if self.kind_column is not None:
            given = row.get(self.kind_column)
            kind = kind if given is None else given
            if kind not in KINDS:
                raise BadRow("unknown_kind", {"kind": str(kind)[:80], "allowed": list(KINDS)})
        if self.aspect_column is not None:
            given = row.get(self.aspect_column)
            aspect = aspect if given is None else str(given)
        return rater, kind, aspect

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


def prepare_generic(columns: Collection[str], options: SourceOptions, file: str) -> RowParser:
    """The parser of a file of typed rows (JSON, Parquet). Raises UserError where no row shape fits the columns."""
    return prepare_shape(columns, options, file, text=False)


def prepare_csv(columns: Collection[str], options: SourceOptions, file: str) -> RowParser:
    """The parser of a file whose cells are all text; lists are JSON in a cell."""
    return prepare_shape(columns, options, file, text=True)


def prepare_shape(columns: Collection[str], options: SourceOptions, file: str, *, text: bool) -> RowParser:
    """The parser for the row shape that the columns make. Raises UserError."""
    shape = _shape(columns, options, file)
    fields = Row(columns, options, file, text)
    if not all(name in fields.column for name in shape.grades):
        fields.column = {name: column for name, column in fields.column.items() if name not in shape.grades}
    if shape.texts[1] == "completion":
        return _rating_parser(fields)
    if shape.texts[1] == "completions":
        return _prompt_parser(fields)
    if shape.texts[1] == "chosen":
        return pair_parser(fields, by_margin="margin" in shape.grades)
    return _comparison_parser(fields, options)


def _shape(columns: Collection[str], options: SourceOptions, file: str) -> Shape:
    """The shape whose fields are there; of several, the one with most fields named in --columns, then the first."""
    absent = [f"{column} (for {name})" for name, column in options.columns.items() if column not in columns]
    if absent:
        raise missing_columns(file, "what --columns names", absent, columns)
    there = {name for name in FIELDS if options.columns.get(name, name) in columns}

    def missing(shape: Shape) -> list[str]:
        needed = shape.texts + (shape.grades if options.need_scores else ())
        return [name for name in needed if name not in there]

    def rank(shape: Shape) -> tuple[int, int]:
        graded = sum(name not in there for name in shape.grades)
        return -sum(name in options.columns for name in (*shape.texts, *shape.grades)), graded

    fits = [shape for shape in SHAPES if not missing(shape)]
    if fits:
        return min(fits, key=rank)
    close = min(SHAPES, key=lambda shape: (len(missing(shape)), rank(shape)))
    hint = "Name columns that are called otherwise by --columns field=column,..."
    if set(close.texts) <= there:
        hint += " Without grades only --feedback-only reads the file."
    raise missing_columns(file, f"{close.name} ({', '.join(close.texts + close.grades)})", missing(close), columns, hint)


def _rating_parser(fields: Row) -> RowParser:
    prompt_column, completion_column = fields.column["prompt"], fields.column["completion"]
    low, high = fields.low, fields.high

    def parse(row: Mapping[str, Any], out: FeedbackBuilder) -> None:
        try:
            prompt, completion = row[prompt_column], row[completion_column]
        except KeyError as error:
            raise BadRow("missing_column", {"missing": error.args[0]}) from error
        out.prompt(prompt)
        index = out.completion(completion, fields.model(row, "model"))
        score = fields.score(row, "score", out)
        if score is not None:
            rater, kind, aspect = fields.grade(row)
            out.rating(index, score, rater=rater, kind=kind, aspect=aspect, low=low, high=high)

    return parse


def _prompt_parser(fields: Row) -> RowParser:
    def parse(row: Mapping[str, Any], out: FeedbackBuilder) -> None:
        texts = fields.list_of(row.get(fields.column["completions"]))
        if not isinstance(texts, list):
            raise BadRow("not_a_list", {"completions": type(texts).__name__})
        scores = _as_long(fields.list_of(fields.model(row, "scores")), texts, "scores")
        models = _as_long(fields.list_of(fields.model(row, "models")), texts, "models")
        out.prompt(row.get(fields.column["prompt"]))  # type: ignore[arg-type]
        rater, kind, aspect = fields.grade(row)
        ungraded = 0
        for text, score, model in zip(texts, scores, models):
            unit = "completion"
            try:
                index = out.completion(text, model)
                unit = "grade"
                if score is None:
                    ungraded += 1
                else:
                    out.rating(index, score, rater=rater, kind=kind, aspect=aspect, low=fields.low, high=fields.high)
            except BadRow as error:
                out.reject(error.reason, unit=unit, limited=error.limited, evidence=error.evidence)
        for _ in range(ungraded if fields.need_scores else 0):
            out.reject("no_grade", unit="grade", limited=False)

    return parse


def pair_parser(fields: Row, by_margin: bool) -> RowParser:
    """A pair with two scores becomes two ratings; one with a margin becomes a comparison of that gap, sign and all."""
    # Scores low..high can be at most high - low apart.
    limit = None if fields.low is None or fields.high is None else fields.high - fields.low

    def parse(row: Mapping[str, Any], out: FeedbackBuilder) -> None:
        prompt = fields.model(row, "prompt")
        prompt, chosen, rejected = split_pair(prompt, fields.model(row, "chosen"), fields.model(row, "rejected"))
        out.prompt(prompt)
        first = out.completion(chosen, fields.model(row, "chosen_model"))
        second = out.completion(rejected, fields.model(row, "rejected_model"))
        rater, kind, aspect = fields.grade(row)
        if by_margin:
            gap = fields.score(row, "margin", out)
            if gap is not None:
                out.comparison(first, second, gap, rater=rater, kind=kind, aspect=aspect, limit=limit)
            return
        for index, name in ((first, "score_chosen"), (second, "score_rejected")):
            score = fields.score(row, name, out)
            if score is not None:
                out.rating(index, score, rater=rater, kind=kind, aspect=aspect, low=fields.low, high=fields.high)

    return parse


def _comparison_parser(fields: Row, options: SourceOptions) -> RowParser:
    if options.scale and options.scale[0] != -options.scale[1]:
        low, high = options.scale
        raise UserError(f"--scale {low:g}:{high:g}: the scale of a gap must be symmetric, such as -3:3")

    def parse(row: Mapping[str, Any], out: FeedbackBuilder) -> None:
        out.prompt(row.get(fields.column["prompt"]))  # type: ignore[arg-type]
        first = out.completion(row.get(fields.column["first"]), fields.model(row, "first_model"))
        second = out.completion(row.get(fields.column["second"]), fields.model(row, "second_model"))
        if first == second:
            raise BadRow("identical_texts", limited=False)
        gap = fields.score(row, "gap", out)
        if gap is not None:
            rater, kind, aspect = fields.grade(row)
            out.comparison(first, second, gap, rater=rater, kind=kind, aspect=aspect, limit=fields.high)

    return parse


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
