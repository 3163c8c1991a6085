"""Tables of other libraries in and out: pandas DataFrames, datasets.Dataset, pyarrow Tables; each is read as a file of the same rows."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.storage import InputFile

if TYPE_CHECKING:
    from datasets import Dataset
    from pandas import DataFrame, Series

GENERIC = ("jsonl", "csv", "parquet")
TABLES = {"DataFrame": "pandas", "Dataset": "datasets", "Table": "pyarrow"}
"""The classes that are taken as tables → the library that has them."""


def is_table(given: Any) -> bool:
    """Whether something is a table of one of these libraries, none of which is imported to find out."""
    return type(given).__name__ in TABLES and type(given).__module__.partition(".")[0] == TABLES[type(given).__name__]


def refuse_other(given: Any) -> None:
    """Raise UserError for what looks like a table and is none that can be read."""
    name = type(given).__name__
    if name == "DatasetDict":
        raise UserError(f"a DatasetDict holds several tables; name one of its splits: {', '.join(map(repr, given))}")
    if name in ("IterableDataset", "IterableDatasetDict", "LazyFrame"):
        raise UserError(f"a {name} gives its rows one by one: write it to Parquet and name the file, or load it without streaming")
    if hasattr(given, "__arrow_c_stream__"):
        raise UserError(f"a {type(given).__module__}.{name} is none of {', '.join(TABLES)}: pyarrow.table(...) makes a Table of it")


@contextmanager
def as_file(given: Any, format: str) -> Iterator[tuple[InputFile, str]]:
    """A temporary file that holds the table's rows, and the format that reads it: `format`, or of any columns that of the file.

    A DataFrame's cells may be of several types in one column, as those of JSON are; NaN is null. Raises UserError for what no file can
    hold, such as two columns of one name.
    """
    name = type(given).__name__
    with TemporaryDirectory(prefix="mmpo-table-") as folder:
        if name == "DataFrame" and format != "feedback":
            path, kind = Path(folder) / f"{name}.jsonl", "json"
            _write_lines(given, path)
        else:
            path, kind = Path(folder) / f"{name}.parquet", "parquet"
            pq.write_table(arrow_table(given), path)
        yield InputFile(str(path), kind, name), {"json": "jsonl"}.get(kind, kind) if format in ("", *GENERIC) else format


def _write_lines(frame: "DataFrame", path: Path) -> None:
    names = [str(name) for name in frame.columns]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"the DataFrame has two columns of the name {twice!r}: rename one of them")
    options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE
    with path.open("wb") as file:
        for number, row in enumerate(zip(*(_decimals(column) for _, column in frame.items()), strict=True)):
            try:
                file.write(orjson.dumps(dict(zip(names, row, strict=True)), default=_plain, option=options))
            except (TypeError, ValueError) as error:
                raise UserError(f"row {number} of the DataFrame holds what no file can: {error}") from None


def _decimals(column: "Series") -> Iterable[Any]:
    """A column's cells; numbers of less than double precision as the decimals they were written from, as those of Parquet are read."""
    size = getattr(column.dtype, "itemsize", 8) if column.dtype.kind == "f" else 8
    return column if size == 8 else column.to_numpy(f"float{8 * size}", na_value=float("nan")).astype(str).astype(float).tolist()


def _plain(value: Any) -> Any:
    """pandas' own values (NA, NaT, Timestamp, Interval, ...) as JSON has them; what cannot be, raises TypeError."""
    pandas = sys.modules["pandas"]
    if value is pandas.NA or value is pandas.NaT:
        return None
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, tuple | set | frozenset):
        return list(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "isoformat"):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} {value!r}")


def arrow_table(given: Any) -> pa.Table:
    """A DataFrame, a Dataset or a Table as a Table of pyarrow. Raises UserError for cells of several types in one column."""
    name = type(given).__name__
    if name == "Dataset":
        return given.with_format("arrow")[:]
    if name == "DataFrame":
        try:
            return pa.Table.from_pandas(given, preserve_index=False)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise UserError(f"a column of the DataFrame holds values of several types: {error}") from None
    return given


def to_pandas(table: pa.Table) -> "DataFrame":
    """FEEDBACK or PAIRS as a DataFrame, a row a prompt or pair; messages are lists of dicts, null is None or NaN.

    `read_feedback(frame, "feedback")` and `write_dataset(frame, out)` take it back. Raises ModuleNotFoundError without pandas.

    >>> from mmpo.pipeline import read_feedback, build_pairs
    >>> frame = to_pandas(build_pairs(read_feedback("data/human_graded_pairs.jsonl", "jsonl", scale=(-2, 2))))
    >>> len(frame), float(frame["quality_margin"].max())
    (183, 2.0)
    """
    import pandas

    columns = {name: table[name] for name in table.column_names}
    nested = {
        name: column.to_pylist() if pa.types.is_nested(column.type) else column.to_pandas() for name, column in columns.items()
    }
    return pandas.DataFrame(nested, copy=False)


def to_dataset(table: pa.Table) -> "Dataset":
    """FEEDBACK or PAIRS as a Dataset of `datasets`, which trl's trainers take (PAIRS are in the conversational preference format).

    `read_feedback(dataset, "feedback")` and `write_dataset(dataset, out)` take it back.

    >>> from mmpo.pipeline import read_feedback
    >>> to_dataset(read_feedback("data/judge_samples.jsonl.gz", "jsonl")).num_rows
    45
    """
    from datasets import Dataset

    return Dataset(table)
