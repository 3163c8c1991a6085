"""For TRL's DPOTrainer and RewardTrainer, and for OpenRLHF's: a folder with one folder or file per split, prompts explicit.

A column `margin` stands there only where a γ was given: RewardTrainer subtracts it from the difference of rewards without being asked,
OpenRLHF where --model.margin_loss_enable says so. That is Llama 2's additive margin, another objective than MMPO.
"""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmpo.annotate.exports.base import Export, ExportedPairs, as_said, line
from mmpo.pipeline.tables import PAIRS, TOOLS

COLUMNS = ("prompt", "chosen", "rejected", "quality_margin", "margin_se", "prompt_id", "source")
MARGIN = "margin"
KEEPS = frozenset(("order", "margins", "errors", "turns", "system", "splits", "thinking"))


def write_trl(pairs: ExportedPairs, target: Path) -> str:
    """Parquet; JSON lines where messages carry more than role and content, so that each has the keys that are set and no others."""
    if pairs.keys:
        return _write_lines(pairs, target, [*COLUMNS, *({TOOLS} & set(pairs.keys))], "{split}/part-00000.jsonl")
    schema = pa.schema([PAIRS.field(name) for name in COLUMNS])
    whole = schema if pairs.gamma is None else schema.append(pa.field(MARGIN, pa.float64()))
    for split in pairs.parts:
        (target / split).mkdir(parents=True)
        with pq.ParquetWriter(target / split / "part-00000.parquet", whole, compression="zstd") as writer:
            for batch in pairs.batches(split, COLUMNS):
                batch = batch.cast(schema)
                if pairs.gamma is not None:
                    batch = batch.append_column(MARGIN, pc.multiply(batch["quality_margin"], pairs.gamma))
                writer.write_batch(batch)
    return "datasets.load_dataset('{out}') has the splits"


def _write_lines(pairs: ExportedPairs, target: Path, columns: Sequence[str], name: str) -> str:
    for split in pairs.parts:
        path = target / name.format(split=split)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for row in pairs.rows(split, columns):
                scaled = {} if pairs.gamma is None else {MARGIN: pairs.gamma * row["quality_margin"]}
                file.write(line({**as_said(row), **scaled}))
    return "datasets.load_dataset('{out}') has the splits"


def write_openrlhf(pairs: ExportedPairs, target: Path) -> str:
    """JSON lines, as OpenRLHF reads a folder; messages, which it renders where --data.apply_chat_template stands."""
    _write_lines(pairs, target, COLUMNS, "{split}.jsonl")
    margin = " --model.margin_loss_enable" if pairs.gamma is not None else ""
    return "--data.dataset {out} --data.prompt_key prompt --data.apply_chat_template" + margin


TRL_DPO = Export(
    "folder for TRL's DPOTrainer, prompts explicit; no ties",
    write_trl,
    "TRL 1.16.0: a step of DPOTrainer",
    "folder",
    KEEPS | {"tools"},
    ties=False,
)
TRL_REWARD = Export(
    "folder for TRL's RewardTrainer, prompts explicit; no ties",
    write_trl,
    "TRL 1.16.0: a step of RewardTrainer, its loss with `margin` worked out by hand",
    "folder",
    KEEPS | {"tools"},
    ties=False,
    gamma="allowed",
)
OPENRLHF = Export(
    "folder for OpenRLHF's reward and DPO training; no ties",
    write_openrlhf,
    "not installed (it needs CUDA): `preprocess_data` of its reward_dataset.py at 3c3be62 was run on exported rows by hand",
    "folder",
    KEEPS,
    ties=False,
    gamma="allowed",
)
