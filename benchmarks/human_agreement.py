"""benchmarks/human.py: agreement of real people in signed margins, and whether it matters which completion is called first."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from human_cases import agreed
from human_sets import HUMAN_SETS, flipped

__all__ = ["run"]

ALLOWED = 1e-9
FEWEST = 20
"""Units from which on a rater counts in the ranges of the last two columns."""

ROW = "{:25} {:>6} {:>6} {:>7} {:>8} {:>8} {:>8} {:>8} {:>8} {:>15}  {:>11}  {:>11} {:>8}"
ALPHAS = ("alpha_nominal", "alpha_ordinal", "alpha_interval")


def run(folder: Path, quick: bool) -> dict[str, float]:
    """Prints a row a set. Raises RuntimeError where calling the other completion first changes a figure by more than 1e-9."""
    print(
        "agreement of people in signed margins; accuracy and rho over the pairs of raters, weighted by what they share; in [] the 95% "
        "interval of alpha interval over prompts;\n  ties and severity (mean |margin|) from the lowest to the highest rater; flip: the "
        "largest change of any figure when all units, or a random half, are named the other way round"
    )
    print(
        ROW.format(
            "", "raters", "units", "prompts", "accuracy", "rho", "nominal", "ordinal", "interval", "", "ties", "severity", "flip"
        )
    )
    worst = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "rows.jsonl"
        for name, (read, scale) in HUMAN_SETS.items():
            rows = read(folder)
            half = np.random.default_rng(0).random(len(rows)) < 0.5
            found = agreed(path, rows, scale, bootstrap=200 if quick else 1000)
            turned = [agreed(path, flipped(rows, which), scale, bootstrap=0) for which in (np.ones(len(rows), bool), half)]
            change = max(_difference(_figures(found), _figures(other)) for other in turned)
            worst = max(worst, change)
            print(_row(name, found, change))
    if worst > ALLOWED:
        raise RuntimeError(f"calling the other completion first changed a figure by {worst}")
    return {"flip_difference": worst}


def _figures(found: Mapping[str, Any]) -> dict[str, Any]:
    """What may not depend on the names: all but the lean toward what was shown first, and intervals, which the second run leaves out."""
    raters = [{key: value for key, value in row.items() if key != "position"} for row in found["raters"]]
    tables = {name: found[name] for name in ("pairs", "against", "length", "overall")}
    return {"raters": raters, **tables}


def _difference(one: Any, other: Any) -> float:
    """The largest difference of two figures at the same place; inf where the places differ. Intervals are passed over."""
    if isinstance(one, Mapping):
        if not isinstance(other, Mapping) or one.keys() != other.keys():
            return float("inf")
        return max((_difference(one[key], other[key]) for key in one if not key.endswith("_95")), default=0.0)
    if isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return float("inf")
        return max((_difference(a, b) for a, b in zip(one, other)), default=0.0)
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other)
    return 0.0 if one == other else float("inf")


def _row(name: str, found: Mapping[str, Any], change: float) -> str:
    everyone = found["overall"]["people"]
    many = [row for row in found["raters"] if row["units"] >= FEWEST]
    low, high = everyone["alpha_interval_95"] or (float("nan"), float("nan"))
    return ROW.format(
        name,
        everyone["raters"],
        everyone["units"],
        everyone["prompts"],
        f"{_weighted(found['pairs'], 'accuracy', 'decided'):.3f}",
        f"{_weighted(found['pairs'], 'spearman', 'units'):.3f}",
        *(f"{everyone[alpha]:.3f}" for alpha in ALPHAS),
        f"[{low:.3f}, {high:.3f}]",
        _range([row["ties"] for row in many]),
        _range([row["mean_margin"] for row in many]),
        f"{change:.0e}",
    )


def _weighted(pairs: Sequence[Mapping[str, Any]], name: str, by: str) -> float:
    known = [row for row in pairs if row[name] is not None]
    return float(np.average([row[name] for row in known], weights=[row[by] for row in known])) if known else float("nan")


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.2f} - {max(values):.2f}"
