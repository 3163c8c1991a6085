"""Leaving pairs out: ties, over-long texts, small margins and the cap, in that order, each counted and kept as evidence."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmpo.pipeline.arrow import flat, offsets_of
from mmpo.pipeline.grades.rules import Margins, PairRules
from mmpo.pipeline.pairs.strategies import STRATIFIED_DEFAULT, cap, stratify

__all__ = ["filtered"]


def _lengths(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Characters of each prompt (all its messages) and of each completion."""
    prompts = flat(table["prompt"])
    ends = np.concatenate([[0], np.cumsum(np.asarray(pc.utf8_length(prompts.flatten().field("content"))))])
    offsets = offsets_of(prompts)
    texts = flat(table["completions"]).flatten().field("text")
    return ends[offsets[1:]] - ends[offsets[:-1]], np.asarray(pc.utf8_length(texts))


def filtered(table: pa.Table, margins: Margins, rules: PairRules, ids: list[str]) -> Margins:
    """The pairs that the rules keep; `dropped` and `evidence` of the result say what was left out and why."""
    keep = np.ones(len(margins.prompt), dtype=bool)

    def leave_out(reason: str, mask: np.ndarray) -> None:
        out = keep & mask
        if out.any():
            margins.dropped["pair", reason] = int(out.sum())
            margins.evidence.append((reason, *(getattr(margins, n)[out] for n in ("prompt", "chosen", "rejected"))))
            keep[out] = False

    if rules.ties == "drop":
        leave_out("tie", margins.quality_margin == 0)
    if rules.max_chars is not None:
        lengths = _lengths(table)
        leave_out(
            "over_long",
            np.maximum(lengths[0][margins.prompt], np.maximum(*(lengths[1][p] for p in (margins.chosen, margins.rejected))))
            > rules.max_chars,
        )
    leave_out("min_margin", margins.quality_margin < rules.min_margin)
    most = rules.max_per_prompt or (STRATIFIED_DEFAULT if rules.strategy == "stratified" else None)
    if most is not None:
        kept = np.flatnonzero(keep)
        crowded = np.bincount(margins.prompt[kept], minlength=1)[margins.prompt[kept]] > most if len(kept) else kept > 0
        kept = kept[crowded]
        chosen, rejected = ([ids[i] for i in values[kept]] for values in (margins.chosen, margins.rejected))
        if rules.strategy == "stratified":
            mask = stratify(margins.prompt[kept], margins.quality_margin[kept], chosen, rejected, most, rules.seed)
        else:
            mask = cap(margins.prompt[kept], chosen, rejected, most, rules.seed)
        over = np.zeros(len(keep), dtype=bool)
        over[kept[~mask]] = True
        leave_out("max_per_prompt", over)
    for name in ("prompt", "chosen", "rejected", "score_chosen", "score_rejected", "quality_margin", "margin_se"):
        setattr(margins, name, getattr(margins, name)[keep])
    margins.preferring, margins.raters = margins.preferring[keep], margins.raters[keep]
    margins.kind = margins.kind[keep]
    return margins
