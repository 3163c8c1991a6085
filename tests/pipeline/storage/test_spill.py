"""Spill files: every row comes back once, in its partition, and partitions without rows cost nothing."""

from pathlib import Path

import pyarrow as pa
import pytest

from mmpo.pipeline.arrow import LARGE_FEEDBACK
from mmpo.pipeline.storage.spill import read_partition, write_spill


@pytest.mark.parametrize("partitions", [1, 7, 300])
def test_every_row_comes_back_once_and_empty_partitions_cost_nothing(tmp_path: Path, partitions: int) -> None:
    ids = sorted(f"{i * 0x9E3779B97F4A7C15 % 2**64:016x}" * 2 for i in range(1, 41))
    table = pa.Table.from_pylist([dict.fromkeys(LARGE_FEEDBACK.names) | {"prompt_id": one} for one in ids], schema=LARGE_FEEDBACK)
    for name, rows in (("a", table.slice(0, 30)), ("b", table.slice(30)), ("none", table.slice(0, 0))):
        write_spill(rows, tmp_path / name, partitions)
    parts = [read_partition(sorted(tmp_path.iterdir()), partition) for partition in range(partitions)]
    assert [one for part in parts for one in part["prompt_id"].to_pylist()] == ids
    assert all(part.schema.equals(LARGE_FEEDBACK, check_metadata=True) for part in parts)
    write_spill(table.slice(0, 0), tmp_path / "one", 1)
    assert (tmp_path / "none").stat().st_size == (tmp_path / "one").stat().st_size
