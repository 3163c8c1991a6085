"""Row groups of parts: as dictionaries where few texts stand in many rows, also where the group is large; else in rows of about a size."""

from pathlib import Path

import pyarrow as pa
import pytest
from folders import pairs_folder

from mmpo.pipeline.storage import part_files
from mmpo.pipeline.storage.parts import row_groups


@pytest.mark.parametrize(("replies", "dictionaries"), [(12, True), (2, False)])
def test_large_groups_are_dictionaries_where_texts_repeat(
    replies: int, dictionaries: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {
            "prompt": f"q{p} " + "why " * 50,
            "completion": f"{j} {p} " + " ".join(str((p * 37 + j * 11 + k) ** 3) for k in range(60)),
            "score": j,
        }
        for p in range(240 // replies**2 + 12)
        for j in range(replies)
    ]
    folder = pairs_folder(tmp_path / "pairs", rows, split=(1, 0, 0), workers=1)
    monkeypatch.setattr("mmpo.pipeline.storage.parts.DISTINCT_BYTES", 1000)
    batches = [batch for path in part_files(folder)["train"] for _, group in row_groups(path) for batch in group]
    content = batches[0].schema.field("chosen").type.value_type.field("content").type
    assert pa.types.is_dictionary(content) == dictionaries
    assert sum(batch.num_rows for batch in batches) == len(rows) * (replies - 1) // 2
