"""What a dataset's page says, as numbers under names that JSON holds: `mmpo report --json`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmpo.pipeline.margins import gamma_for_mean_target
from mmpo.pipeline.report.dataset.figures import PairFigures, source_rows
from mmpo.pipeline.report.dataset.measures import (
    duplicate_rows,
    length_figures,
    margin_figures,
    model_rows,
    near_duplicates,
    votes_rows,
)

OF_RATERS = ("raters", "counted", "busiest", "against", "overall")


def pairs_summary(figures: PairFigures) -> dict[str, Any]:
    """prompts, pairs, pairs_in (by split), margin_mean, margin_median, suggested_gamma (None where every training pair is a tie), what
    `margin_figures` and, under length, `length_figures` found."""
    training = figures.margin[figures.training]
    decided = training[training > 0]
    length = length_figures(figures)
    return {
        "prompts": figures.prompts, "pairs": len(figures.margin), "pairs_in": figures.splits, **margin_figures(figures),
        "margin_mean": float(figures.margin.mean()), "margin_median": float(np.median(figures.margin)),
        "suggested_gamma": gamma_for_mean_target(decided) if decided.size else None,
        "length": {name: value for name, value in length.items() if name != "ratio"},
    }  # fmt: skip


def dataset_summary(
    figures: PairFigures,
    checks: Sequence[Mapping[str, Any]],
    looks: Sequence[Mapping[str, Any]],
    warnings: Sequence[str],
    reasons: Mapping[str, Mapping[str, Any]],
    overview: Any | None,
) -> dict[str, Any]:
    """`pairs_summary`, and first (what to look at first), warnings (of the build), checks, left_out (by reason), votes, models, sources,
    duplicates, and of an overview of raters these and aspects, None without one. NAME_95: 95% interval of NAME over prompts, None where
    there is none."""
    return {
        **pairs_summary(figures),
        "first": [{"status": row["status"], "words": row["words"]} for row in looks],
        "warnings": list(warnings),
        "checks": [{name: row[name] for name in ("name", "status", "count", "message")} for row in checks],
        "left_out": {reason: {name: row[name] for name in ("unit", "stage", "count", "share")} for reason, row in reasons.items()},
        "votes": votes_rows(figures),
        "models": [{name: value for name, value in row.items() if name != "number"} for row in model_rows(figures)],
        "sources": source_rows(figures),
        "duplicates": [*duplicate_rows(figures), *near_duplicates(figures)[0]],
        "raters": None if overview is None else {name: getattr(overview, name) for name in OF_RATERS},
        "aspects": None if overview is None else overview.aspects,
    }
