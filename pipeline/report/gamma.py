"""`mmpo gamma`: which γ to train with, and what each γ makes of the margins at hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.margins import MEAN_TARGET, Floats, gamma_for_mean_target, target_probability
from mmpo.pipeline.storage import part_files, read_parts
from mmpo.pipeline.validate import SATURATED

PUBLISHED = (0.3, 1.1, 2.2)
"""The paper's γ; they hold for margins between grades from 1 to 10, not normalised."""


def suggest_gamma(data: str | Path | pa.Table) -> dict[str, Any]:
    """The γ at which the mean target over the non-tied training pairs is `MEAN_TARGET` (a convention, not a fit), and its company.

    data: a dataset folder (its train split; all splits where train is empty) or a PAIRS table. Returns gamma (in
    1/margin-unit), mean_target, pairs, ties, margin_quantiles and `what_each_gamma_makes`, rows of `gamma_table`.
    UserError where every pair is a tie.
    """
    columns = ["quality_margin", "margin_se"]
    if not isinstance(data, pa.Table):
        files = part_files(data)
        data = read_parts(files["train"] or [file for part in files.values() for file in part], columns=columns)
    table: pa.Table = data
    margins, errors = (table[name].cast(pa.float64()).to_numpy() for name in columns)
    decided = margins > 0
    if not decided.any():
        raise UserError(f"none of the {len(margins)} pairs has a margin above 0: there is nothing to scale by gamma")
    gamma = gamma_for_mean_target(margins[decided], MEAN_TARGET)
    levels = (0.05, 0.25, 0.5, 0.75, 0.95)
    return {
        "gamma": gamma,
        "mean_target": MEAN_TARGET,
        "pairs": len(margins),
        "ties": int((~decided).sum()),
        "margin_quantiles": [
            {"share": q, "margin": float(v)} for q, v in zip(levels, np.quantile(margins[decided], levels), strict=True)
        ],
        "what_each_gamma_makes": gamma_table(margins[decided], errors[decided], gamma),
    }


def gamma_table(margins: Floats, errors: Floats | None, suggested: float) -> list[dict[str, Any]]:
    """A row per γ, ascending: gamma, note, mean_target, the targets' 10%, 50% and 90% quantiles, the share saturated
    (> .95).

    margins: those above 0, shape (pairs,). errors: their margin_se, NaN where unknown, or None; with any known,
    `noise_aware` is the mean target that takes them into account, else None. The γ: a quarter to four times the
    suggestion, and the published ones.
    """
    known = errors is not None and bool((~np.isnan(errors)).any())
    notes = {suggested * factor: "" for factor in (0.25, 0.5, 2.0, 4.0)}
    notes |= dict.fromkeys(PUBLISHED, "published, for 1–10 grades") | {suggested: "suggested"}
    rows = []
    for gamma in sorted(notes):
        p = target_probability(margins, gamma)
        low, middle, high = np.quantile(p, (0.1, 0.5, 0.9))
        rows.append(
            {
                "gamma": float(gamma),
                "note": notes[gamma],
                "mean_target": float(p.mean()),
                "p10": float(low),
                "p50": float(middle),
                "p90": float(high),
                "saturated": float((p > SATURATED).mean()),
                "noise_aware": float(target_probability(margins, gamma, errors).mean()) if known else None,
            }
        )
    return rows
