"""Tables of other libraries in and out: pandas DataFrames, datasets.Dataset, pyarrow Tables; each is read as a file of the same rows."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path, PurePath
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
        raise UserError(
            f"{name}: it gives its rows one by one: write it to Parquet and name the file, or load it without streaming"
        )
    if hasattr(given, "__arrow_c_stream__"):
        raise UserError(f"a {type(given).__module__}.{name} is none of {', '.join(TABLES)}: pyarrow.table(...) makes a Table of it")
    rows = given if isinstance(given, list | tuple) else ()
    if isinstance(given, Mapping) or any(isinstance(row, Mapping) for row in rows):
        raise UserError(f"rows in a {name}: pandas.DataFrame(...) makes a table of them, or write them to a file and name that")
    if not isinstance(given, str | PurePath) and not (isinstance(given, Iterable) and not isinstance(given, bytes)):
        raise UserError(f"{name} is neither a path nor a table ({', '.join(TABLES)})")


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


def check_table(given: Any, schema: pa.Schema, caller: str) -> pa.Table:
    """The table, where it is one of pyarrow with the columns of FEEDBACK or PAIRS (`schema`). Raises UserError naming the `caller`."""
    what, made = ("PAIRS", "build_pairs") if "quality_margin" in schema.names else ("FEEDBACK", "read_feedback")
    if not isinstance(given, pa.Table):
        raise UserError(f"{caller}: {type(given).__name__} is no table of {what}; {made}(...) makes one")
    if missing := [name for name in schema.names if name not in given.column_names]:
        raise UserError(f"{caller}: the table lacks {', '.join(missing)}; it must be {what}, as {made} returns it")
    return given


def _check_arrow(given: Any) -> None:
    if not isinstance(given, pa.Table):
        raise UserError(f"{type(given).__name__} is no Table of pyarrow, such as read_feedback, build_pairs and load_pairs return")


def to_pandas(table: pa.Table) -> "DataFrame":
    """FEEDBACK or PAIRS as a DataFrame, a row a prompt or pair; messages are lists of dicts, null is None or NaN.

    `read_feedback(frame, "feedback")` and `write_dataset(frame, out)` take it back. Raises ModuleNotFoundError without pandas.

    >>> from mmpo.pipeline import read_feedback, build_pairs
    >>> frame = to_pandas(build_pairs(read_feedback("data/human_graded_pairs.jsonl", "jsonl", scale=(-2, 2))))
    >>> len(frame), float(frame["quality_margin"].max())
    (183, 2.0)
    """
    import pandas

    _check_arrow(table)
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

    _check_arrow(table)
    return Dataset(table)
