"""Feedback in, margin-annotated preference pairs out: the tables, the sources, the stages, the store and its checks."""

from typing import Any

from mmpo.pipeline.api import DatasetFolder, build_pairs, load_feedback, load_pairs, read_feedback, show, write_dataset
from mmpo.pipeline.build import BuildOptions, build
from mmpo.pipeline.errors import MmpoError, PartialResult, UserError
from mmpo.pipeline.interactive import shown_table, to_dataset, to_pandas
from mmpo.pipeline.margins import target_probability
from mmpo.pipeline.progress import ProgressReporter
from mmpo.pipeline.tables import FEEDBACK, PAIRS, completion_id, prompt_id
from mmpo.pipeline.validate import validate

__all__ = [
    "FEEDBACK",
    "PAIRS",
    "BuildOptions",
    "DatasetFolder",
    "MmpoError",
    "PartialResult",
    "ProgressReporter",
    "UserError",
    "build",
    "build_pairs",
    "completion_id",
    "load_feedback",
    "load_pairs",
    "prompt_id",
    "read_feedback",
    "show",
    "target_probability",
    "to_dataset",
    "to_pandas",
    "validate",
    "write_dataset",
]


def __dir__() -> list[str]:
    return sorted(__all__)


def load_ipython_extension(ipython: Any) -> None:
    """What `%load_ext mmpo.pipeline` does in a notebook: tables of FEEDBACK and PAIRS show themselves in short; others as before."""
    import pyarrow as pa

    def ours(table: pa.Table) -> bool:
        return {"prompt_id", "prompt"} <= set(table.column_names)

    def plain(table: pa.Table, printer: Any, cycle: bool) -> None:
        printer.text(repr(shown_table(table)) if ours(table) and not cycle else repr(table))

    formatters = ipython.display_formatter.formatters
    formatters["text/plain"].for_type(pa.Table, plain)
    formatters["text/html"].for_type(pa.Table, lambda table: shown_table(table)._repr_html_() if ours(table) else None)
