"""The preference format of Hugging Face TRL: chosen and rejected as texts or messages, prompt outside or inside.

The grades are in columns of the user's own: `--columns score_chosen=...,score_rejected=...` or `--columns margin=...`.
"""

from collections.abc import Collection

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.sources.base import RowParser, SourceOptions, missing_columns
from mmpo.pipeline.sources.generic import FIELDS, LAYOUTS, RowFields, pair_parser

_PAIR = next(layout for layout in LAYOUTS if "score_chosen" in layout.grades)
TRL_FIELDS = tuple(name for name in FIELDS if name in (*_PAIR.texts, *_PAIR.grades, *_PAIR.others, "margin"))


def prepare_trl(columns: Collection[str], options: SourceOptions, file: str) -> RowParser:
    """The parser of a TRL file. Raises UserError: no chosen or rejected, no column with grades."""
    absent = [f"{column} (for {name})" for name, column in options.columns.items() if column not in columns]
    needed = [options.columns.get(name, name) for name in ("chosen", "rejected")]
    absent += [column for column in needed if column not in columns and column not in options.columns.values()]
    if absent:
        raise missing_columns(file, "format 'trl'", absent, columns)
    fields = RowFields(columns, options, file, text=False)
    if options.need_scores and "margin" not in fields.column and not set(_PAIR.grades) <= set(fields.column):
        told = ", ".join(map(repr, sorted(columns)))
        raise UserError(
            f"{file}: pairs without grades have no margin. Columns present: {told}. Name those with the scores by "
            "--columns score_chosen=COLUMN,score_rejected=COLUMN, or the one with their difference by --columns "
            "margin=COLUMN; --feedback-only reads the pairs without grades, for a judge or people to grade"
        )
    scored = set(_PAIR.grades) <= set(fields.column)
    by_margin = "margin" in fields.column and (not scored or "margin" in options.columns)
    return pair_parser(fields, by_margin)
