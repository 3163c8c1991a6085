"""Working with nested Arrow columns as flat arrays and offsets: building, flattening, gathering, without a loop over rows.

Inside the pipeline text has 64-bit offsets (large_string), so that a column may pass 2 GiB; what is stored has the types of
`mmpo.pipeline.tables`.
"""

import sys
from collections.abc import Collection, Mapping, Sequence
from importlib.abc import MetaPathFinder
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmpo.pipeline.tables import FEEDBACK, MESSAGE_KEYS, OPTIONAL_KEYS, REPLY_KEYS, TOOLS, as_text, held_keys, with_keys

UNREADABLE = (pa.ArrowException, OSError, ValueError, KeyError, MemoryError)
"""What pyarrow raises for files that are damaged in one way or another; ArrowInvalid and UnicodeDecodeError are ValueErrors."""
_LONG_TEXT = {"content", "text", "note", "extra", "reasoning_content", "tool_calls", TOOLS}


def leave_pandas_out() -> None:
    """Keep pyarrow from importing pandas at its first conversion, which costs more than reading thousands of rows and serves only arrays
    of pandas. Where pandas is asked for by name, it is imported all the same."""
    if "pandas" in sys.modules:
        return
    finder = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        pa.array([0])  # pyarrow looks once
    finally:
        sys.meta_path.remove(finder)


class _NoPandas(MetaPathFinder):
    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError(name=fullname)


def _large_field(field: pa.Field) -> pa.Field:
    if pa.types.is_list(field.type):
        return pa.field(field.name, pa.list_(_large_field(field.type.value_field)))
    if pa.types.is_struct(field.type):
        children = [_large_field(field.type.field(i)) for i in range(field.type.num_fields)]
        return pa.field(field.name, pa.struct(children))
    return pa.field(field.name, pa.large_string()) if field.name in _LONG_TEXT else field


LARGE_FEEDBACK = pa.schema([_large_field(field) for field in with_keys(FEEDBACK, OPTIONAL_KEYS)])
"""FEEDBACK as it is held in memory: long texts with 64-bit offsets, and with all of OPTIONAL_KEYS, mostly null."""


def large(table: pa.Table) -> pa.Table:
    """A FEEDBACK table of any readable version with 64-bit text offsets; other columns and metadata are left behind.

    Optional fields that it has not become null.
    """
    if TOOLS not in table.column_names:
        table = table.append_column(TOOLS, pa.nulls(table.num_rows, pa.large_string()))
    return table.select(LARGE_FEEDBACK.names).replace_schema_metadata(None).cast(LARGE_FEEDBACK)


def narrow(table: pa.Table, keys: Collection[str] | None = None) -> pa.Table:
    """FEEDBACK in the types that are stored, with fields for these of OPTIONAL_KEYS: those that it holds, unless given."""
    schema = with_keys(FEEDBACK, held_keys(table) if keys is None else keys)
    return table.select(schema.names).cast(schema)


def structs(rows: Sequence[tuple[Any, ...]], kind: pa.StructType) -> pa.StructArray:
    """A struct array from tuples in the order of the type's fields, of which the last ones may be left out as null; long texts get
    64-bit offsets."""
    kind = _large_field(pa.field("row", kind)).type
    columns = list(zip(*rows, strict=True))
    fields = [kind.field(i) for i in range(kind.num_fields)]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, fields[: len(columns)], strict=True)]
    arrays += [pa.nulls(len(rows), field.type) for field in fields[len(columns) :]]
    return pa.StructArray.from_arrays(arrays, fields=fields)


def lists(starts: np.ndarray, values: pa.Array) -> pa.ListArray:
    """A list array from each row's first position in `values`; rows follow one another without gaps."""
    offsets = np.empty(len(starts) + 1, dtype=np.int32)
    offsets[:-1] = starts
    offsets[-1] = len(values)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def with_added(column: pa.ListArray, added: pa.Array, rows: np.ndarray, keep: np.ndarray | None = None) -> pa.ListArray:
    """The list array with values added behind those that a row has, each to its row of `rows`, (added,); keep: a mask of the old values.

    >>> with_added(pa.array([[1, 2], []]), pa.array([7, 8, 9]), np.array([1, 0, 1])).to_pylist()
    [[1, 2, 8], [7, 9]]
    """
    old, old_rows = column.flatten(), parents(offsets_of(column))
    if keep is not None:
        old, old_rows = old.filter(pa.array(keep)), old_rows[keep]
    owner = np.concatenate([old_rows, rows]).astype(np.int64)
    order = np.argsort(owner, kind="stable")
    values = pa.concat_arrays([old.cast(added.type), added]).take(pa.array(order))
    return lists(np.searchsorted(owner[order], np.arange(len(column))), values)


def with_fields(rows: pa.StructArray, new: Mapping[str, pa.Array]) -> pa.StructArray:
    """The struct array with these fields replaced, each in its old type."""
    fields = [rows.type.field(i) for i in range(rows.type.num_fields)]
    arrays = [new[f.name].cast(f.type) if f.name in new else rows.field(f.name) for f in fields]
    return pa.StructArray.from_arrays(arrays, fields=fields)


def without_texts(table: pa.Table) -> pa.Table:
    """FEEDBACK with 64-bit text offsets, the same ids and grades, ids in the place of texts, and no prompts, notes, probabilities and
    extras: grades of millions of pairs fit in memory."""
    columns = {name: flat(table[name]) for name in LARGE_FEEDBACK.names if name != TOOLS}
    columns["prompt"] = lists(np.zeros(table.num_rows, dtype=np.int64), columns["prompt"].flatten().slice(0, 0))
    columns["extra"] = columns[TOOLS] = pa.nulls(table.num_rows)
    for name, text in (("completions", "text"), ("ratings", "note"), ("comparisons", "note")):
        inner = columns[name].flatten()
        left = inner.field("id") if text == "text" else pa.nulls(len(inner))
        nulls = dict.fromkeys(("probabilities", *REPLY_KEYS), pa.nulls(len(inner)))
        columns[name] = lists(offsets_of(columns[name])[:-1], with_fields(inner, {text: left, **nulls}))
    return pa.table([columns[name].cast(LARGE_FEEDBACK.field(name).type) for name in LARGE_FEEDBACK.names], schema=LARGE_FEEDBACK)


def texts_of(completions: pa.StructArray, identity: np.ndarray, kept: np.ndarray) -> pa.Array:
    """The texts of the completions in the places `kept`, of which only one of each id need have it; null where none has. identity: of each
    completion the number of its id."""
    said = np.flatnonzero(np.asarray(completions.field("text").is_valid()))
    holders = np.full(int(identity.max(initial=-1)) + 1, -1)
    holders[identity[said]] = said
    places = holders[identity[kept]]
    return completions.field("text").take(pa.array(places, mask=places < 0))


def with_texts(table: pa.Table) -> pa.Table:
    """FEEDBACK rows as a source collects them, each completion with its text, which only one row of a prompt need have."""
    column = flat(table["completions"])
    rows = column.flatten()
    if not rows.field("text").null_count:
        return table
    identity = np.asarray(rows.field("id").dictionary_encode().indices)
    texts = texts_of(rows, identity, np.arange(len(rows)))
    place = table.schema.get_field_index("completions")
    return table.set_column(place, table.schema.field(place), lists(offsets_of(column)[:-1], with_fields(rows, {"text": texts})))


def flat(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """One contiguous array of a column."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def offsets_of(column: pa.ListArray) -> np.ndarray:
    """Offsets of a list array into `column.flatten()`, shape (rows + 1,), starting at 0. Null lists count as empty."""
    lengths = np.asarray(column.value_lengths().fill_null(0)).astype(np.int64)
    return np.concatenate([[0], np.cumsum(lengths)])


def parents(offsets: np.ndarray) -> np.ndarray:
    """The row that each flat value belongs to, shape (values,)."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def row_sums(column: pa.ListArray, values: pa.Array) -> np.ndarray:
    """The sum of the whole numbers `values`, one for each of a list column's flat values, in each of its rows, shape (rows,)."""
    ends = np.concatenate([[0], np.cumsum(np.asarray(values).astype(np.int64))])
    return np.diff(ends[offsets_of(column)])


def text_lengths(messages: pa.ListArray | pa.ChunkedArray) -> np.ndarray:
    """Characters of all messages of each row of a column of messages, float64, shape (rows,)."""
    column = flat(messages) if isinstance(messages, pa.ChunkedArray) else messages
    texts = column.flatten().field("content")
    if not pa.types.is_dictionary(texts.type):
        return row_sums(column, pc.fill_null(pc.utf8_length(texts), 0)).astype(np.float64)
    numbers, distinct = coded(texts)
    return row_sums(column, np.append(np.asarray(pc.fill_null(pc.utf8_length(distinct), 0)), 0)[numbers]).astype(np.float64)


def whole_texts(messages: pa.StructArray, text: str = "content", *, thinking: bool = True) -> pa.Array:
    """All that each message, or completion, says: what it thought apart from its text, its text (the field of that name) and its tool calls
    as `as_text` has them, a line each; large strings, "" for null. thinking: whether what it thought is among it."""
    said = pc.fill_null(messages.field(text).cast(pa.large_string()), "")
    there = {field.name for field in messages.type.fields}
    keys = [key for key in REPLY_KEYS if key in there and (thinking or key != "reasoning_content")]
    carried = {key: messages.field(key).cast(pa.large_string()) for key in keys}
    mask = np.zeros(len(said), dtype=bool)
    for values in carried.values():
        mask |= np.asarray(values.is_valid())
    if not mask.any():
        return said
    at = pa.array(np.flatnonzero(mask))
    columns = {"content": said.take(at), **{key: values.take(at) for key, values in carried.items()}}
    rows = pa.table(columns).to_pylist()  # few carry any, and calls are JSON
    whole = ["\n".join(filter(None, (row.pop("reasoning_content", None), as_text(row)))) for row in rows]
    return pc.replace_with_mask(said, pa.array(mask), pa.array(whole, pa.large_string()))


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The concatenation of arange(start, start + length) over all rows.

    >>> ranges(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - (ends - lengths), lengths)


def gather_lists(offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions in the flat values, and new offsets, that select whole lists `rows` from a list column."""
    lengths = offsets[rows + 1] - offsets[rows]
    return ranges(offsets[rows], lengths), np.concatenate([[0], np.cumsum(lengths)])


def codes(column: pa.Array) -> tuple[np.ndarray, list[Any]]:
    """Integer codes in the sorted order of the distinct values (null first, as None), and those values."""
    encoded = column.dictionary_encode()
    none = int(column.null_count > 0)
    if len(encoded.dictionary) == 1 and not none:  # as raters, kinds and sources often are
        return np.zeros(len(column), dtype=np.int64), encoded.dictionary.to_pylist()
    order = pc.array_sort_indices(encoded.dictionary)
    rank = np.zeros(len(order) + 1, dtype=np.int64)  # the last one is that of null
    rank[np.asarray(order)] = np.arange(len(order)) + none
    index = rank[np.asarray(encoded.indices.fill_null(len(order)))]
    return index, [None] * none + encoded.dictionary.take(order).to_pylist()


def coded(column: pa.Array) -> tuple[np.ndarray, pa.Array]:
    """Numbers for the values, −1 for null, and the distinct values."""
    column = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    return column.indices.fill_null(-1).to_numpy(zero_copy_only=False), column.dictionary


def to_numpy(column: pa.Array) -> np.ndarray:
    """A float64 numpy array of a numeric column, null as NaN."""
    return column.cast(pa.float64()).to_numpy(zero_copy_only=False)


def differing_messages(messages: pa.ChunkedArray, first: np.ndarray) -> np.ndarray:
    """Which lists of messages are others than the one in their place `first`, by all that they carry; both (n,)."""
    lengths = pc.fill_null(pc.list_value_length(messages), 0).to_numpy().astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    differs = lengths != lengths[first]
    flat = pc.list_flatten(messages)
    for part in ("role", "content", *(field.name for field in flat.type.fields if field.name in MESSAGE_KEYS)):
        # numbers for the texts: comparing those is quick, however often each of them stands there
        texts = pc.fill_null(pc.struct_field(flat, part).cast(pa.large_string()), "")
        coded = pc.dictionary_encode(texts)
        numbers = np.concatenate([np.zeros(0, np.int64), *(chunk.indices.to_numpy() for chunk in coded.chunks)])
        for place in range(int(lengths.max(initial=0))):
            rows = np.flatnonzero((lengths > place) & ~differs)
            differs[rows] = numbers[starts[rows] + place] != numbers[starts[first[rows]] + place]
    return differs


def leaves(field: pa.Field, path: str = "") -> list[tuple[str, pa.DataType]]:
    """The columns below a field, each with its type, by their paths as Parquet names them.

    >>> leaves(pa.field("prompt", pa.list_(pa.struct({"role": pa.string()}))))
    [('prompt.list.element.role', DataType(string))]
    """
    path = f"{path}{field.name}"
    if pa.types.is_list(field.type):
        return leaves(pa.field("element", field.type.value_type), f"{path}.list.")
    if pa.types.is_struct(field.type):
        return [leaf for i in range(field.type.num_fields) for leaf in leaves(field.type.field(i), f"{path}.")]
    return [(path, field.type)]
