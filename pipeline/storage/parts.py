"""The parts of a dataset folder, opened and checked in one place for every command: what can't be read is named with its fault.

A part is a Parquet file of a split. Which there are stands in the manifest; what rows must be stands in `mmpo.pipeline.contract`.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmpo.pipeline.arrow import UNREADABLE, flat, leaves
from mmpo.pipeline.contract import NULLABLE, check_names, feedback_faults, key_faults, misfits, null_faults
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.storage.dataset import MANIFEST, manifest_files, read_manifest
from mmpo.pipeline.storage.objects import on_disk
from mmpo.pipeline.tables import (
    METADATA_KEY,
    PAIRS,
    SCHEMA_VERSION,
    SPLITS,
    TOOLS,
    is_readable,
    keys_of,
    readable_versions,
    with_keys,
)

BATCH_ROWS = 32_768
DISTINCT_BYTES = 8 << 20
"""Of a row group, encoded: up to so many it is read with its texts as dictionaries, else in batches of about this size."""
IN_DICTIONARIES = 0.7
"""Of a row group's compressed bytes."""
AGAIN = "build the dataset again from its sources with `mmpo build`"


def cannot_read(path: str | Path, error: BaseException | str) -> UserError:
    """The error for a file that is no readable Parquet file."""
    told = "it is a folder" if Path(path).is_dir() else str(error).partition("\n")[0] or type(error).__name__
    return UserError(f"cannot read {path}: no readable Parquet file, truncated or damaged ({told})")


def split_files(folder: Path, split: str) -> list[Path]:
    """The parts of a split, in order; empty where there is none.

    Raises UserError where the folder's manifest names a part that is gone, or does not name one that is there: neither vanishes.
    """
    folder = on_disk(folder)
    found = sorted((folder / split).glob("*.parquet"))
    files = manifest_files(read_manifest(folder)) if (folder / MANIFEST).is_file() else {}
    if files:
        here, named = {f"{split}/{path.name}" for path in found}, {name for name in files if name.startswith(f"{split}/")}
        for names, what in ((named - here, "is gone"), (here - named, "is no part of the dataset: its manifest does not name it")):
            if names:
                raise UserError(f"{folder / min(names)} {what}. Put the folder back as it was, or {AGAIN}")
    return found


def part_files(dataset: str | Path) -> dict[str, list[Path]]:
    """Split → its parts, in order; splits without pairs have none. UserError where the folder is no dataset of pairs."""
    folder = on_disk(dataset)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give a dataset folder that `mmpo build` wrote")
    found = {split: split_files(folder, split) for split in SPLITS}
    if not any(found.values()) and (folder / "feedback").is_dir():
        raise UserError(
            f"{folder} holds FEEDBACK, no pairs; `mmpo build {quote(str(folder))} --format feedback --out PAIRS` makes pairs of it"
        )
    if not any(found.values()):
        raise UserError(f"{folder} holds no pairs ({', '.join(SPLITS)}); give a dataset folder that `mmpo build` wrote")
    return found


def part_schema(path: Path) -> pa.Schema:
    """The columns of a Parquet file. UserError where it can't be read, or what mmpo wrote beside them (`about_part`)."""
    schema = _footer(path)
    about_part(schema, path)
    return schema


def _footer(path: Path) -> pa.Schema:
    try:
        with pq.ParquetFile(path) as parquet:
            schema = parquet.schema_arrow
    except UNREADABLE as error:
        raise cannot_read(path, error) from error
    check_names(schema, path)
    return schema


def about_part(schema: pa.Schema, path: str | Path) -> dict[str, Any]:
    """What mmpo wrote beside a table under the key `mmpo`, {} where there is none. UserError where it is damaged or of another version."""
    raw = (schema.metadata or {}).get(METADATA_KEY)
    if raw is None:
        return {}
    try:
        about = json.loads(raw)
    except ValueError as error:
        raise UserError(f"{path}: the metadata under the key `mmpo` are damaged ({error}): {AGAIN}") from error
    if not isinstance(about, dict):
        raise UserError(f"{path}: the metadata under the key `mmpo` are no JSON object: {AGAIN}")
    version = about.get("schema_version", SCHEMA_VERSION)
    if not is_readable(version):
        raise UserError(f"{path}: schema version {version!r}; this mmpo reads {readable_versions()}: {AGAIN}")
    return about


def row_groups(path: Path, columns: Sequence[str] | None = None) -> Iterator[tuple[int, Iterator[pa.RecordBatch]]]:
    """The row groups of a part: the bytes of each, encoded, and its rows in batches. Where few texts stand in many rows they come as
    dictionaries: each is there once. What can't be read raises pyarrow's own errors (UNREADABLE). columns: all unless given."""
    texts = [leaf for field in pq.read_schema(path) for leaf, kind in leaves(field) if pa.types.is_string(kind)]
    with (
        pq.ParquetFile(path, page_checksum_verification=True) as plain,
        pq.ParquetFile(path, read_dictionary=texts, page_checksum_verification=True) as repeating,
    ):
        for group in range(plain.num_row_groups):  # over several groups at once nested dictionaries can't be read
            about = plain.metadata.row_group(group)
            few = about.total_byte_size <= DISTINCT_BYTES or _in_dictionaries(about)
            rows = BATCH_ROWS if few else max(64, about.num_rows * DISTINCT_BYTES // about.total_byte_size)
            yield (
                about.total_byte_size,
                (repeating if few else plain).iter_batches(rows, row_groups=[group], columns=columns, use_threads=False),
            )


def _in_dictionaries(group: pq.RowGroupMetaData) -> bool:
    """Whether a row group's bytes are nearly all of dictionaries: then its texts stand in many rows, and rows in full are far larger."""
    chunks = [group.column(at) for at in range(group.num_columns)]
    held = [one.data_page_offset - one.dictionary_page_offset for one in chunks if one.has_dictionary_page]
    return sum(held) >= IN_DICTIONARIES * sum(one.total_compressed_size for one in chunks)


def check_columns(given: pa.Schema, wanted: pa.Schema, path: str | Path) -> None:
    """Raise UserError where a file lacks columns of the table `wanted`, or has them in types that can't hold its values."""
    table = "FEEDBACK" if "ratings" in wanted.names else "PAIRS" if "quality_margin" in wanted.names else "the table"
    missing = [name for name in wanted.names if name not in given.names and name != TOOLS]
    if missing:
        raise UserError(f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(given.names)}: {AGAIN}")
    for name in misfits(given, wanted):
        kinds = f"{name} is of type {given.field(name).type}, {table} has {wanted.field(name).type}"
        raise UserError(f"{path}: {kinds}: {AGAIN}")


def part_batches(
    path: Path,
    schema: pa.Schema,
    columns: Sequence[str] | None = None,
    rows: int = 2048,
    *,
    nullable: Collection[str] | None = NULLABLE,
) -> Iterator[pa.RecordBatch]:
    """The rows of one part, in the types of `schema` with those of OPTIONAL_KEYS that the part has, at most `rows` at once.

    columns: of the schema, all unless given; "a.list.element.b" is one field of a nested one. nullable: where a null is a value; any
    other is refused, and with None no null is. Raises UserError naming the part, and for rows the first that breaks a rule (from 1).
    """
    given = part_schema(path)
    check_columns(given, schema, path)
    schema = with_keys(schema, keys_of(given))
    wanted = list(columns or schema.names)
    whole = [name for name in wanted if "." not in name]
    there = [name for name in wanted if name != TOOLS or name in given.names]
    first = 1
    for batch in _read(path, there, rows):
        if len(there) < len(wanted):
            batch = batch.append_column(TOOLS, pa.nulls(batch.num_rows, pa.string()))
        for name in whole:
            place, kind = batch.schema.get_field_index(name), schema.field(name).type
            if batch.column(place).type != kind:
                batch = batch.set_column(place, schema.field(name), _cast(batch.column(place), kind, name, path))
        if nullable is not None:
            refuse_faults(batch, path, first, nullable, grades="ratings" in whole and len(whole) == len(schema))
        yield batch.select(whole) if len(whole) == len(wanted) else batch
        first += batch.num_rows


def _read(path: Path, columns: list[str] | None, rows: int) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as parquet:
            for batch in parquet.iter_batches(rows, columns=columns):
                batch.validate(full=True)  # text is UTF-8, offsets lie inside
                yield batch
    except UNREADABLE as error:
        raise cannot_read(path, error) from error


def _cast(column: pa.Array, kind: pa.DataType, name: str, path: Path) -> pa.Array:
    try:
        return column.cast(kind)
    except UNREADABLE as error:
        raise UserError(f"{path}: {name} does not fit its type, {kind} ({error}): {AGAIN}") from error


def refuse_faults(
    rows: pa.Table | pa.RecordBatch, path: str | Path, first: int = 1, nullable: Collection[str] = NULLABLE, *, grades: bool = False
) -> None:
    """Raise UserError at the first row (counted from `first`) that has a null outside `nullable` or, with `grades`, a grade that breaks a
    rule."""
    nulls = (null_faults(flat(rows.column(name)), name, nullable) for name in rows.schema.names)
    for rule, words, bad in chain(*nulls, feedback_faults(rows) if grades else (), key_faults(rows)):
        if bad.any():
            row = f"{path}: row {first + int(np.argmax(bad))}"
            what = "" if rule == "messages" else "a grade can't be used: "
            raise UserError(f"{row} has {words} (null): {AGAIN}" if rule == "nulls" else f"{row}: {what}{words}")


def batches(
    files: Sequence[Path], columns: Sequence[str] | None = None, rows: int = 2048, schema: pa.Schema = PAIRS, **options: Any
) -> Iterator[pa.RecordBatch]:
    """The rows of the parts in their order, at most `rows` at once; see `part_batches`."""
    for file in files:
        yield from part_batches(file, schema, columns, rows, **options)


def read_parts(files: Sequence[Path], schema: pa.Schema = PAIRS, columns: Sequence[str] | None = None, **options: Any) -> pa.Table:
    """All rows of the parts in one table, in the types of `schema` and with the first part's `mmpo` metadata; see `part_batches`."""
    given = [part_schema(file) for file in files]
    schema = with_keys(schema, {key for one in given for key in keys_of(one)})
    wanted = pa.schema([schema.field(name) for name in columns or schema.names])
    about = (given[0].metadata or {}).get(METADATA_KEY) if files else None
    kept: Mapping[bytes, bytes] | None = {METADATA_KEY: about} if about else None
    table = pa.Table.from_batches(list(batches(files, wanted.names, 65_536, schema, **options)), wanted)
    return table.replace_schema_metadata(kept)


def read_parquet(path: str | Path) -> pa.Table:
    """A Parquet file of any columns, whole. UserError where it can't be read."""
    path = Path(path)
    schema = _footer(path)
    return pa.Table.from_batches(list(_read(path, None, 65_536)), schema)
