"""Spill files: FEEDBACK rows cut by the hash of their prompt, so that all grades of a prompt meet in one partition.

Every chunk of input writes one Arrow file with one record batch per partition that it has rows of; a partition is read back from all
files. Memory is then bounded by a chunk while writing and by a partition while reading, whatever the input's size.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc

from mmpo.pipeline.arrow import LARGE_FEEDBACK, flat

_HELD = b"partitions"
"""Key of the file's metadata: the partitions of its batches, ascending, as int32."""
_HEX = np.zeros(256, dtype=np.int64)
_HEX[np.frombuffer(b"0123456789abcdef", dtype=np.uint8)] = np.arange(16)


def partition_of(ids: pa.Array, partitions: int) -> np.ndarray:
    """The partition of each prompt id (32 hex digits), shape (rows,): by its first 16 bits, in the order of the ids."""
    if not len(ids):
        return np.zeros(0, dtype=np.int64)
    letters = np.array(ids.cast(pa.string()).to_numpy(zero_copy_only=False), dtype="S4")
    digits = _HEX[letters.view(np.uint8).reshape(-1, 4)]
    return (digits @ np.array([4096, 256, 16, 1])) * partitions >> 16


def write_spill(table: pa.Table, path: Path, partitions: int) -> None:
    """Write a FEEDBACK table (64-bit text offsets) as one record batch per partition that has rows."""
    if partitions > 1:
        partition = partition_of(flat(table["prompt_id"]), partitions)
        order = np.argsort(partition, kind="stable")
        table = table.take(pa.array(order))
        bounds = np.searchsorted(partition[order], np.arange(partitions + 1))
    else:
        bounds = np.array([0, table.num_rows])
    held = np.flatnonzero(np.diff(bounds)).astype(np.int32)
    whole = table.combine_chunks().to_batches()
    with ipc.new_file(str(path), LARGE_FEEDBACK.with_metadata({_HELD: held.tobytes()})) as writer:
        for low, high in zip(bounds[held].tolist(), bounds[held + 1].tolist(), strict=True):
            writer.write_batch(whole[0].slice(low, high - low))


TOGETHER = 4
"""Partitions that a file is opened for at once."""


def read_partitions(paths: Sequence[Path], partitions: Sequence[int]) -> Iterator[pa.Table]:
    """All rows of each partition, as one FEEDBACK table. Opening a file takes longer than reading what it has of a partition."""
    for start in range(0, len(partitions), TOGETHER):
        batches: dict[int, list[pa.RecordBatch]] = {partition: [] for partition in partitions[start : start + TOGETHER]}
        for path in paths:
            with pa.memory_map(str(path)) as source:
                reader = ipc.open_file(source)
                held = np.frombuffer((reader.schema.metadata or {})[_HELD], dtype=np.int32)
                for place in np.flatnonzero(np.isin(held, list(batches))).tolist():
                    batches[int(held[place])].append(reader.get_batch(place))
        for partition in list(batches):
            yield pa.Table.from_batches(batches.pop(partition), schema=LARGE_FEEDBACK).combine_chunks()
