"""PAIRS written by hand: a row per pair with ids as mmpo makes them, so that pages and checks take the folder for a built one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from folders import split_folder

from mmpo.pipeline.tables import completion_id, prompt_id


def pair(prompt: str, chosen: str, rejected: str, margin: float, **more: Any) -> dict[str, Any]:
    """One pair of texts; more: other columns, model: those of both sides."""
    asked = [{"role": "user", "content": prompt}]
    number = prompt_id(asked)
    models = dict(zip(("chosen_model", "rejected_model"), more.pop("models", (None, None)), strict=True))
    return {
        "prompt_id": number, "chosen_id": completion_id(number, chosen), "rejected_id": completion_id(number, rejected), "prompt": asked,
        "chosen": [{"role": "assistant", "content": chosen}], "rejected": [{"role": "assistant", "content": rejected}],
        "quality_margin": float(margin), "preferring": 1, "raters": 1, "kind": "human", "source": "made up", **models, **more,
    }  # fmt: skip


def pairs_by_hand(folder: Path, *train: Mapping[str, Any], **splits: Sequence[Mapping[str, Any]]) -> Path:
    """A folder without a manifest, of train pairs and of those of other splits."""
    return split_folder(folder, train=list(train), **{name: list(rows) for name, rows in splits.items()})


def frame(folder: Path) -> pd.DataFrame:
    """All pairs of a folder as pandas reads them, in the order of its parts, lengths in characters beside the texts."""
    parts = [path for split in ("train", "validation", "test") for path in sorted((folder / split).glob("*.parquet"))]
    table = pd.concat([pd.read_parquet(path).assign(split=path.parent.name) for path in parts], ignore_index=True)
    for side in ("chosen", "rejected"):
        table[f"{side}_text"] = [messages[-1]["content"] for messages in table[side]]
        table[f"{side}_length"] = table[f"{side}_text"].str.len()
    return table
