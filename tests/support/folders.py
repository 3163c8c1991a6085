"""The one place where tests make files of rows and dataset folders of them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mmpo.pipeline import PAIRS, BuildOptions, build

Row = Mapping[str, Any]


def write_rows(path: Path, rows: Iterable[Row], schema: pa.Schema | None = None) -> Path:
    """The rows as a file of the kind that its name says: .jsonl, .json (one array), .csv, .tsv or .parquet; its folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [dict(row) for row in rows]
    match path.suffix:
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(rows, schema), path)
        case ".csv" | ".tsv":
            pd.DataFrame(rows).to_csv(path, index=False, sep="," if path.suffix == ".csv" else "\t")
        case ".json":
            path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        case _:
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def made_up_prompts(count: int, completions: int = 2, **more: Any) -> list[dict[str, Any]]:
    """Rows of the format jsonl, one per prompt, without grades."""
    return [
        {"prompt": f"Question {i}?", "completions": [f"Answer {j} to question {i}." for j in range(completions)], **more}
        for i in range(count)
    ]


def feedback_folder(folder: Path, rows: Iterable[Row] | int = 6, **options: Any) -> Path:
    """A FEEDBACK folder built of rows of the format jsonl (in FOLDER.jsonl), or of so many made-up prompts. options: BuildOptions'."""
    return pairs_folder(folder, made_up_prompts(rows) if isinstance(rows, int) else rows, feedback_only=True, **options)


def pairs_folder(folder: Path, rows: Iterable[Row], **options: Any) -> Path:
    """A PAIRS folder built of rows of the format jsonl (in FOLDER.jsonl). options: BuildOptions'."""
    source = write_rows(folder.with_name(folder.name + ".jsonl"), rows)
    build(source, folder, options=BuildOptions(**{"format": "jsonl"} | options))
    return folder


def split_folder(folder: Path, **splits: pa.Table | Sequence[Row]) -> Path:
    """A folder with one part file a split, of rows as they shall stand in PAIRS (columns that a row lacks are null) or of a table."""
    for name, rows in splits.items():
        path = folder / name / "part-00000.parquet"
        if isinstance(rows, pa.Table):
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(rows, path)
        else:
            write_rows(path, rows, PAIRS)
    return folder


def changed(table: pa.Table, name: str, values: Mapping[int, Any]) -> pa.Table:
    """The table with some of a column's values replaced: {row: value}."""
    column, place = table[name].to_pylist(), table.column_names.index(name)
    for row, value in values.items():
        column[row] = value
    return table.set_column(place, PAIRS.field(name), pa.array(column, PAIRS.field(name).type))


def read_table(path: Path) -> pa.Table:
    """A Parquet file; of a folder of a split its first part."""
    return pq.ParquetFile(path if path.is_file() else path / "part-00000.parquet").read()


def contents(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder: what each file holds, None of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
