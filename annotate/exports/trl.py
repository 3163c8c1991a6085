"""`mmpo export`: a dataset of pairs in another tool's format, a batch at a time, whole or not at all."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmpo.pipeline.errors import UserError, unknown_name
from mmpo.pipeline.storage.files import atomic_file
from mmpo.pipeline.storage.parts import batches, part_files, part_schema
from mmpo.pipeline.tables import MESSAGE_COLUMNS, OPTIONAL_KEYS, PAIRS, SPLITS, TOOLS, keys_of, with_keys, without_nulls

Parts = dict[str, list[Path]]


@dataclass(frozen=True)
class Export:
    """One format: a line about it, whether ties are left out, which splits it holds, and the function that writes it.

    `write(parts, target, batches_of)` writes the file or folder `target`; `batches_of(split, columns)` gives the rows.
    """

    summary: str
    leaves_out_ties: bool
    splits: tuple[str, ...]
    write: Callable[[Parts, Path, Callable[[str, Sequence[str]], Iterator[pa.RecordBatch]]], None]


# `margin` never appears: TRL's RewardTrainer would read it as Llama 2's additive margin, silently another objective.
_TRL_COLUMNS = ("prompt", "chosen", "rejected", "quality_margin", "prompt_id", "source")


def _write_trl(parts: Parts, target: Path, rows: Callable[[str, Sequence[str]], Iterator[pa.RecordBatch]]) -> None:
    keys = _keys(parts)
    if keys:
        _write_trl_lines(parts, target, rows, [*_TRL_COLUMNS, *({TOOLS} & set(keys))])
        return
    schema = pa.schema([PAIRS.field(name) for name in _TRL_COLUMNS])
    for split in parts:
        (target / split).mkdir(parents=True)
        with pq.ParquetWriter(target / split / "part-00000.parquet", schema, compression="zstd") as writer:
            for batch in rows(split, _TRL_COLUMNS):
                writer.write_batch(batch.cast(schema))


def _write_trl_lines(
    parts: Parts, target: Path, rows: Callable[[str, Sequence[str]], Iterator[pa.RecordBatch]], columns: Sequence[str]
) -> None:
    """JSON lines, where messages carry more than role and content: each has the keys that are set and no others, as templates ask for
    them, and tool calls are lists. Tools stay text, which TRL reads."""
    for split in parts:
        (target / split).mkdir(parents=True)
        with (target / split / "part-00000.jsonl").open("wb") as file:
            for batch in rows(split, columns):
                file.writelines(_line(_as_said(row)) for row in batch.to_pylist())


def _line(row: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(row) + b"\n"
    except TypeError:  # of an integer of more than 64 bits, as the arguments of a call may hold
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _as_said(row: dict[str, Any]) -> dict[str, Any]:
    """The row with what its messages carry, and without tools where it has none."""
    said = {name: without_nulls(value) if name in MESSAGE_COLUMNS else value for name, value in row.items()}
    return {name: value for name, value in said.items() if name != TOOLS or value is not None}


def _keys(parts: Parts) -> tuple[str, ...]:
    found = {key for files in parts.values() for file in files for key in keys_of(part_schema(file))}
    return tuple(key for key in OPTIONAL_KEYS if key in found)


def _write_jsonl(parts: Parts, target: Path, rows: Callable[[str, Sequence[str]], Iterator[pa.RecordBatch]]) -> None:
    with target.open("wb") as file:
        for split in parts:
            for batch in rows(split, with_keys(PAIRS, _keys(parts)).names):
                file.writelines(_line({**_as_said(row), "split": split}) for row in batch.to_pylist())


def _write_rewardbench(parts: Parts, target: Path, rows: Callable[[str, Sequence[str]], Iterator[pa.RecordBatch]]) -> None:
    # One column has one type: prompts are strings where every one is a single user message, else lists of messages.
    prompts = (prompt for split in parts for batch in rows(split, ["prompt"]) for prompt in batch["prompt"].to_pylist())
    single = all([message["role"] for message in prompt] == ["user"] for prompt in prompts)
    columns = ["prompt", "chosen", "rejected", "chosen_model", "rejected_model", "source"]
    number = 0
    with target.open("wb") as file:
        for split in parts:
            for batch in rows(split, columns):
                for row in batch.to_pylist():
                    prompt = row["prompt"][0]["content"] if single else row["prompt"]
                    texts = {name: row[name][-1]["content"] for name in ("chosen", "rejected")}
                    models = {name: row[name] or "unknown" for name in ("chosen_model", "rejected_model")}
                    line = {"prompt": prompt, **texts, **models, "subset": row["source"], "id": number}
                    file.write(orjson.dumps(line) + b"\n")
                    number += 1


EXPORTS: dict[str, Export] = {
    "trl-dpo": Export("folder for TRL's DPOTrainer, prompts explicit; no ties", True, SPLITS, _write_trl),
    "trl-reward": Export("folder for TRL's RewardTrainer; no ties", True, SPLITS, _write_trl),
    "rewardbench": Export("JSON lines for rewardbench, test split; no ties", True, ("test",), _write_rewardbench),
    "jsonl": Export("JSON lines with every column and the split", False, SPLITS, _write_jsonl),
}


def export(dataset: str | Path, to: str, out: str | Path) -> dict[str, Any]:
    """Write the dataset folder in the format `to` (a key of EXPORTS) as `out`, a folder for trl-*, else a file.

    Returns {"out", "to", "pairs": {split: written}, "ties_left_out": n}; splits without pairs are not written.
    Written under a temporary name beside `out` and renamed, so that nothing half-written is left. UserError for an
    unknown format, a folder that is no dataset, an `out` that exists, nothing to write, or a full disk.
    """
    if to not in EXPORTS:
        raise unknown_name("export format", to, EXPORTS)
    kind, target = EXPORTS[to], Path(out)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target} exists already; name another file or folder by --out, or remove it first")
    parts = {split: files for split, files in part_files(dataset).items() if files and split in kind.splits}
    counts = {split: _count(files, kind.leaves_out_ties) for split, files in parts.items()}
    parts = {split: files for split, files in parts.items() if counts[split][0]}
    if not parts:
        raise UserError(f"{dataset} holds no pair that {to} can take (splits {', '.join(kind.splits)}, ties left out)")

    def rows(split: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        for batch in batches(parts[split], [*columns, *({"quality_margin"} - set(columns))]):
            kept = batch.filter(pc.field("quality_margin") > 0) if kind.leaves_out_ties else batch
            yield kept.select(list(columns))

    with atomic_file(target, over_empty_folder=True, stood=None) as temporary:
        kind.write(parts, temporary, rows)
    written = {split: counts[split][0] for split in parts}
    return {"out": str(target), "to": to, "pairs": written, "ties_left_out": sum(left for _, left in counts.values())}


def _count(files: Sequence[Path], leaves_out_ties: bool) -> tuple[int, int]:
    """Pairs that will be written and ties that will not."""
    kept = left = 0
    for batch in batches(files, ["quality_margin"], 65536):
        ties = pc.sum(pc.equal(batch.column("quality_margin"), 0.0)).as_py() or 0 if leaves_out_ties else 0
        kept, left = kept + batch.num_rows - ties, left + ties
    return kept, left
