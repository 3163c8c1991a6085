"""The part files of a dataset folder, for whoever reads it a piece at a time."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.tables import SPLITS

__all__ = ["batches", "part_files", "read_columns"]


def part_files(dataset: str | Path) -> dict[str, list[Path]]:
    """Split → its part files, in order; splits without pairs have none. UserError where the folder is no dataset."""
    folder = Path(dataset)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give a dataset folder that `mmpo build` wrote")
    found = {split: sorted((folder / split).glob("part-*.parquet")) for split in SPLITS}
    if not any(found.values()):
        raise UserError(f"{folder} holds no pairs ({', '.join(SPLITS)}); give a dataset folder that `mmpo build` wrote")
    return found


def batches(files: Sequence[Path], columns: Sequence[str], rows: int = 2048) -> Iterator[pa.RecordBatch]:
    """The rows of the files in their order, at most `rows` at once. UserError, naming the file, where one can't be
    read.
    """
    for file in files:
        try:
            with pq.ParquetFile(file) as parquet:
                yield from parquet.iter_batches(rows, columns=list(columns))
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{file} can't be read as Parquet: {error}") from None


def read_columns(files: Sequence[Path], columns: Sequence[str]) -> pa.Table:
    """A few columns of all rows in one table; meant for numbers, not for texts. UserError where a column is missing."""
    for file in files[:1]:
        missing = [name for name in columns if name not in pq.read_schema(file).names]
        if missing:
            raise UserError(f"{file} has no column {missing[0]!r}: it is not a table of pairs that `mmpo build` wrote")
    pieces = list(batches(files, columns, 65536))
    return pa.Table.from_batches(pieces) if pieces else pa.table({name: [] for name in columns})
