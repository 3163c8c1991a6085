"""How quality margins become target probabilities, by name. Targets are data: computed once, in numpy, float64."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from mmpo.pipeline.errors import UserError, unknown_name
from mmpo.pipeline.margins import fill_standard_errors, measured_probability, target_probability
from mmpo.train.objective.levels import VOTED, LevelTarget

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


def _levels(column: Columns, gamma: float) -> Targets:
    """p of each margin as votes of two raters or more say, never falling in the margin; γ is not used."""
    return _by_level(LevelTarget.fit(*map(column, VOTED)), column)


def _by_level(target: LevelTarget, column: Columns) -> Targets:
    few = int((column("raters") < 2).sum())
    return target(column("quality_margin")), {"pairs_without_two_raters": few} if few else {}


TARGETS: dict[str, Callable[[Columns, float], Targets]] = {
    "plain": _plain,
    "noise-aware": _noise_aware,
    "measured": _measured,
    "levels": _levels,
}


def fit_target(name: str, table: pa.Table) -> "str | LevelTarget":
    """What `targets` takes for this name: the name itself, or what it learns from the training pairs, to be used on others as well."""
    if name != "levels":
        return name
    return LevelTarget.fit(*(_column(name, table, wanted) for wanted in VOTED))


def _column(name: str, table: pa.Table, wanted: str) -> np.ndarray:
    if wanted not in table.column_names:
        raise UserError(f"the {name} target needs the column {wanted!r}; there are: {', '.join(table.column_names)}")
    return table[wanted].cast(pa.float64()).to_numpy()


def targets(name: str | LevelTarget, table: pa.Table, gamma: float) -> Targets:
    """The targets p of every pair, float64 in [0, 1], shape (pairs,), and counts of what had to be filled in.

    name: of TARGETS, or what `fit_target` learned from other pairs. table: PAIRS, or as many of its columns as the target reads. gamma: in
    1/margin-unit, ≥ 0 or inf. Raises UserError for an unknown name, a missing column, γ < 0, a noise-aware target where no margin_se is
    known, or levels where no pair has two raters.

    >>> targets("plain", pa.table({"quality_margin": [0.0, 1e9]}), 1.0)[0].tolist()
    [0.5, 1.0]
    """
    if isinstance(name, LevelTarget):
        return _by_level(name, lambda wanted: _column("levels", table, wanted))
    if name not in TARGETS:
        raise unknown_name("target", name, TARGETS)
    return TARGETS[name](lambda wanted: _column(name, table, wanted), gamma)
