"""What annotation tools have in common: a row per person's answers, whose texts and questions have the user's own names (--columns)."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from mmpo.pipeline.sources.base import RowReader, SourceOptions
from mmpo.pipeline.sources.cells import given_columns, top_column
from mmpo.pipeline.sources.generic import prepare_generic


def answers_reader(format: str, defaults: Mapping[str, str]) -> Callable[[Collection[str], SourceOptions, str], RowReader]:
    """`Source.prepare` of a tool whose unfolded rows are read as generic ones; a question that a row does not answer is no grade.

    format: its name. defaults: field → column, where the file has the column and --columns does not name another one.
    """

    def prepare(columns: Collection[str], options: SourceOptions, file: str) -> RowReader:
        given = given_columns(options.columns, columns)
        named = {name: one for name, one in defaults.items() if top_column(one, columns) in columns and one not in given}
        return prepare_generic(columns, replace(options, columns={**named, **options.columns}), file, text=True, tool=format)

    return prepare


def asked_columns(options: SourceOptions, fields: Collection[str] | None = None) -> set[str]:
    """The columns that --columns names (for these fields), sums and products taken apart."""
    given = [column for name, column in options.columns.items() if fields is None or name in fields]
    return {part.strip().removeprefix("-") for column in given for part in re.split(r"[+*]", column)}


def as_object(value: Any) -> Mapping[str, Any]:
    """An object of a tool's layout; an empty one where something else stands in its place."""
    return value if isinstance(value, Mapping) else {}


def as_list(value: Any) -> list[Any]:
    """A list of a tool's layout; an empty one where something else stands in its place."""
    return value if isinstance(value, list) else []


def as_note(value: Any) -> str | None:
    """A text that explains a grade; None of anything else."""
    return value if isinstance(value, str) and value else None
