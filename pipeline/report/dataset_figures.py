"""What a report says of a dataset, in numbers: margins, lengths, sources, what was dropped, a few samples."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from mmpo.pipeline.arrow import text_lengths
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.margins import Floats
from mmpo.pipeline.storage import batches, part_files
from mmpo.pipeline.tables import as_text

_COLUMNS = ("prompt_id", "chosen", "rejected", "quality_margin", "margin_se", "source", "kind")


@dataclass(frozen=True)
class PairFigures:
    """Every pair's figures over all splits, each of shape (pairs,): margin and standard error in score units (NaN:
    unknown), lengths in characters; and the counts of pairs by split.
    """

    margin: Floats
    margin_se: Floats
    chosen_length: Floats
    rejected_length: Floats
    source: np.ndarray
    kind: np.ndarray
    prompts: int
    splits: dict[str, int]

    @property
    def training(self) -> slice:
        """The pairs that γ is suggested from: the train split, which comes first; all pairs where it is empty."""
        return slice(self.splits["train"] or None)


def read_figures(dataset: Path) -> PairFigures:
    """One pass over the part files; texts are measured and let go. UserError where the folder is no dataset."""
    parts: list[dict[str, np.ndarray]] = []
    prompts: set[str] = set()
    splits = {}
    for split, files in part_files(dataset).items():
        splits[split] = 0
        for batch in batches(files, _COLUMNS, 8192):
            splits[split] += batch.num_rows
            prompts.update(pc.unique(batch.column("prompt_id")).to_pylist())
            parts.append(
                {
                    "margin": batch.column("quality_margin").to_numpy(zero_copy_only=False),
                    "margin_se": batch.column("margin_se").to_numpy(zero_copy_only=False).astype(np.float64),
                    **{f"{side}_length": text_lengths(batch.column(side)) for side in ("chosen", "rejected")},
                    "source": batch.column("source").to_numpy(zero_copy_only=False),
                    "kind": batch.column("kind").to_numpy(zero_copy_only=False),
                }
            )
    if not parts:
        raise UserError(f"{dataset} holds no pairs: there is nothing to report on")
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return PairFigures(**joined, prompts=len(prompts), splits=splits)


def longer_wins(figures: PairFigures, kept: np.ndarray | None = None) -> float | None:
    """Share of pairs (margin above 0, lengths that differ) whose chosen completion is the longer one; ½ is no bias."""
    difference = figures.chosen_length - figures.rejected_length
    used = (figures.margin > 0) & (difference != 0)
    used = used if kept is None else used & kept
    return float((difference[used] > 0).mean()) if used.any() else None


def source_rows(figures: PairFigures) -> list[dict[str, Any]]:
    """A row per source, largest first: pairs, ties, mean and median margin, mean standard error, longer wins."""
    rows = []
    for source, count in Counter(figures.source.tolist()).most_common():
        mine = figures.source == source
        margin, se = figures.margin[mine], figures.margin_se[mine]
        rows.append(
            {
                "source": str(source),
                "kind": ", ".join(sorted({str(kind) for kind in figures.kind[mine]})),
                "pairs": count,
                "ties": float((margin == 0).mean()),
                "mean_margin": float(margin.mean()),
                "median_margin": float(np.median(margin)),
                "mean_se": None if np.isnan(se).all() else float(np.nanmean(se)),
                "longer_wins": longer_wins(figures, mine),
            }
        )
    return rows


def samples(dataset: Path, figures: PairFigures, most: int = 420) -> list[dict[str, Any]]:
    """The pairs of the largest, the median and the smallest margin, their texts cut to `most` characters."""
    order = np.argsort(figures.margin, kind="stable")
    wanted = {int(order[-1]): "Largest margin", int(order[len(order) // 2]): "Median margin", int(order[0]): "Smallest margin"}
    files = [file for part in part_files(dataset).values() for file in part]
    found, first = {}, 0
    for batch in batches(files, ["prompt", "chosen", "rejected", "quality_margin", "source"], 8192):
        for index in wanted:
            if first <= index < first + batch.num_rows:
                found[index] = batch.slice(index - first, 1).to_pylist()[0]
        first += batch.num_rows
    return [
        {
            "title": title,
            "margin": f"{found[index]['quality_margin']:.4g}",
            "source": found[index]["source"],
            "prompt": _cut("\n".join(f"{m['role']}: {as_text(m, thinking=True)}" for m in found[index]["prompt"]), most),
            "chosen": _cut(as_text(found[index]["chosen"][-1], thinking=True), most),
            "rejected": _cut(as_text(found[index]["rejected"][-1], thinking=True), most),
        }
        for index, title in wanted.items()
    ]


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[:most].rstrip() + " …"
