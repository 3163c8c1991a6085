"""benchmarks/claims.py, part (b): grade = part that the features explain + noise, so that what share is explained is known."""

from typing import Any

import numpy as np
from planted import planted_evidence
from scipy.stats import t

from mmpo.train.advise import (
    BRADLEY_TERRY,
    CHOSEN,
    MATCHED,
    OWN,
    SHUFFLED,
    Measured,
    joined,
    margins_add,
    one_thread,
    run_split,
    settings_for,
    splits,
)  # fmt: skip

SHARES = (0.1, 0.3, 0.5, 0.6, 0.75, 0.85, 0.9, 0.97, 0.99)
PROMPTS, COMPLETIONS, FEATURES = 300, 4, 120
MEASURES = ("accuracy", "nll", "ece")


def run(quick: bool) -> list[dict[str, Any]]:
    """One row a share of explained variance: what MMPO has over Bradley–Terry and its controls, means over data sets with intervals."""
    return [_share(share, 2 if quick else 8) for share in ((0.1, 0.97) if quick else SHARES)]


def look(share: float, seed: int) -> Measured:
    """One data set."""
    found, features = planted_evidence(share, seed, PROMPTS, COMPLETIONS, FEATURES)
    rows = settings_for(found, others=False)
    turns: dict[int, list[Any]] = {}
    keys = []
    with one_thread():
        for number, split in enumerate(splits(found, 5, seed)):
            keys, fold = run_split(found, features, rows, split, np.random.default_rng([seed, number]))
            turns.setdefault(split.number, []).append(fold)
    measured = Measured(keys, [joined(folds) for folds in turns.values()], len(found.group))
    return measured.with_choice([row for row in rows if row.is_mmpo], CHOSEN)


def _share(share: float, sets: int) -> dict[str, Any]:
    rows: dict[str, dict[str, dict[str, list[float]]]] = {}
    said = []
    for seed in range(sets):
        measured = look(share, seed)
        settings = list(dict.fromkeys(setting for setting, _ in measured.keys if setting.is_mmpo))
        for setting in settings:
            name = "chosen" if setting == CHOSEN else f"{setting.mean_target:g}"
            own = measured.keys.index((setting, OWN))
            others = {"bradley_terry": (BRADLEY_TERRY, OWN), "matched": (setting, MATCHED), "shuffled": (setting, SHUFFLED)}
            for title, other in others.items():
                at = measured.keys.index(other)
                for end, values in (("", measured.values), ("untuned_", measured.untuned)):
                    for which, measure in enumerate(MEASURES):
                        cell = rows.setdefault(name, {}).setdefault(f"minus_{title}", {}).setdefault(end + measure, [])
                        cell.append(float(values[own, which] - values[at, which]))
        differences = {f"minus_{role}": measured.difference((CHOSEN, OWN), (CHOSEN, role)) for role in (MATCHED, SHUFFLED)}
        said.append(margins_add(differences)["accuracy"])
    means = {
        name: {title: {measure: _interval(values) for measure, values in cells.items()} for title, cells in parts.items()}
        for name, parts in rows.items()
    }
    return {"r2": share, "sets": sets, "mmpo": means, "adds_accuracy": said}


def _interval(values: list[float]) -> list[float]:
    """[mean, low, high] over independent data sets."""
    mean, half = float(np.mean(values)), float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return [mean, mean - half, mean + half]
