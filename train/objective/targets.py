"""How quality margins become target probabilities, by name. Targets are data: computed once, in numpy, float64."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from mmpo.pipeline.errors import UserError, unknown_name
from mmpo.pipeline.margins import fill_standard_errors, measured_probability, target_probability

Columns = Callable[[str], np.ndarray]
Targets = tuple[np.ndarray, dict[str, int]]


def _plain(column: Columns, gamma: float) -> Targets:
    """p = σ(γm)."""
    return target_probability(column("quality_margin"), gamma), {}


def _noise_aware(column: Columns, gamma: float) -> Targets:
    """p = E σ(γM), M ~ N(m, se²): a margin nobody is sure of pulls less. Unknown errors take the median, counted."""
    errors = fill_standard_errors(column("margin_se"))
    return target_probability(column("quality_margin"), gamma, errors.values), {"margin_se_filled": errors.filled}


def _measured(column: Columns, gamma: float) -> Targets:
    """p = (preferring + ½)/(raters + 1), from the votes alone; γ is not used."""
    raters = column("raters")
    return measured_probability(column("preferring"), raters), {"pairs_without_raters": int((raters == 0).sum())}


TARGETS: dict[str, Callable[[Columns, float], Targets]] = {
    "plain": _plain,
    "noise-aware": _noise_aware,
    "measured": _measured,
}


def targets(name: str, table: pa.Table, gamma: float) -> Targets:
    """The targets p of every pair, float64 in [0, 1], shape (pairs,), and counts of what had to be filled in.

    table: PAIRS, or as many of its columns as the target reads. gamma: in 1/margin-unit, ≥ 0 or inf. Raises UserError
    for an unknown name, a missing column, γ < 0, or a noise-aware target where no margin_se is known.

    >>> targets("plain", pa.table({"quality_margin": [0.0, 1e9]}), 1.0)[0].tolist()
    [0.5, 1.0]
    """
    if name not in TARGETS:
        raise unknown_name("target", name, TARGETS)

    def column(wanted: str) -> np.ndarray:
        if wanted not in table.column_names:
            raise UserError(f"the {name} target needs the column {wanted!r}; there are: {', '.join(table.column_names)}")
        return table[wanted].cast(pa.float64()).to_numpy()

    return TARGETS[name](column, gamma)
