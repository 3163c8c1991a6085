"""The section of docs/when-margins-help.md on pretrained models that are fine-tuned, from what claims_pretrained.py measured."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from claims_pretrained import WAYS_OF, rows_at

SHOWN = {"accuracy": "accuracy, points", "nll": "NLL", "nll_scaled": "NLL, scaled", "ece": "ECE", "ece_scaled": "ECE, scaled"}
NAMES = {"bt": "Bradley–Terry", "matched": "matched", "shuffled": "shuffled"}
WAYS = {"top:2": "reward model, its two uppermost layers", "lora": "reward model by LoRA", "policy": "policy"}
FEW_PAIRS = 100
MISSING = """
## Pretrained models, fine-tuned

This part has not been run: `make models`, then `python benchmarks/claims.py --part pretrained`."""


def page(part: dict[str, Any] | None) -> str:
    """The section of docs/when-margins-help.md on what `run` returned; None where it has not been run."""
    from scipy.stats import t

    rows = (part or {}).get("rows")
    if not part or not rows:
        return MISSING
    measured = {(row["set"], row["way"]) for row in rows}
    lines = [
        "",
        "## Pretrained models, fine-tuned",
        "",
        "SmolLM2-135M-Instruct, fine-tuned with every objective on the same prompts in the same order: MMPO at a mean target minus what it",
        "is compared with, means over seeds with 95% intervals (t). *Best*: each objective at its own epoch of the best likelihood on",
        "validation prompts; *last*: after the last epoch, far into overfitting. *Scaled*: at the temperature that suits validation",
        "prompts best. Accuracy is better above 0, the rest below. Computed in bfloat16, on texts of some hundred tokens.",
        "",
        in_short(part),
        *_too_few(part),
    ]
    for name, way in dict.fromkeys((row["set"], row["way"]) for row in rows):
        own = [row for row in rows if (row["set"], row["way"]) == (name, way)]
        seeds, epochs = (len({row[key] for row in own}) for key in ("seed", "epoch"))
        pairs = max(row["pairs"] for row in own)
        lines += [
            "",
            f"**{name}, {WAYS[way]}**: {seeds} seed{'s' * (seeds != 1)}, {pairs:,} training pairs, {epochs} epochs; "
            f"Bradley–Terry's accuracy {_learned(own)}",
            "",
            "| epoch | MMPO | minus | " + " | ".join(SHOWN.values()) + " |",
            "|---" * (3 + len(SHOWN)) + "|",
        ]
        reach = float(t.ppf(0.975, seeds - 1)) if seeds > 1 else math.nan
        for row in (row for row in part["compared"] if (row["set"], row["way"]) == (name, way)):
            cells = [_cell(row["differences"].get(measure), reach, measure == "accuracy") for measure in SHOWN]
            start = f"{row['mmpo']:g}".removeprefix("0"), NAMES[row["minus"].split("@")[0]]
            lines.append(f"| {row['epoch']} | {' | '.join(start)} | {' | '.join(cells)} |")
    left = [f"{name} ({WAYS[way]})" for name, ways in WAYS_OF.items() for way in ways if (name, way) not in measured]
    return "\n".join(lines) + (f"\n\nNot run: {', '.join(left)}." if left else "")


def _too_few(part: dict[str, Any]) -> list[str]:
    """The runs of too few pairs to tell anything by, with how wide their widest interval of accuracy is."""
    from scipy.stats import t

    found = []
    for name, way in dict.fromkeys((row["set"], row["way"]) for row in part["rows"]):
        own = [row for row in part["rows"] if (row["set"], row["way"]) == (name, way)]
        seeds, pairs = len({row["seed"] for row in own}), max(row["pairs"] for row in own)
        errors = [row["differences"]["accuracy"][1] for row in part["compared"] if (row["set"], row["way"]) == (name, way)]
        if pairs < FEW_PAIRS and seeds > 1:
            found.append(
                f"{name}, {WAYS[way]} ({pairs} pairs, accuracy to ±{100 * float(t.ppf(0.975, seeds - 1)) * max(errors):.1f} points)"
            )
    return ["", f"Runs on fewer than {FEW_PAIRS} pairs can show nothing either way:", ";\n".join(found) + "."] if found else []


def in_short(part: dict[str, Any]) -> str:
    """How many of the differences are told from 0 by their intervals."""
    from scipy.stats import t

    def told(minus: tuple[str, ...], measure: str) -> str:
        signs = []
        for row in part["compared"]:
            seeds = len({one["seed"] for one in part["rows"] if (one["set"], one["way"]) == (row["set"], row["way"])})
            if row["epoch"] == "last" and row["minus"].split("@")[0] in minus and measure in row["differences"] and seeds > 1:
                value, error = row["differences"][measure]
                signs.append(math.copysign(1, value) if abs(value) > float(t.ppf(0.975, seeds - 1)) * error else 0)
        return f"above 0 in {signs.count(1)}, below in {signs.count(-1)} of {len(signs)}"

    bt, controls = ("bt",), ("matched", "shuffled")
    return (
        f"In short, after the last epoch, by intervals: accuracy over Bradley–Terry is {told(bt, 'accuracy')}, over the controls "
        f"{told(controls, 'accuracy')};\nNLL as it stands over Bradley–Terry {told(bt, 'nll')}, over the controls {told(controls, 'nll')}; "
        f"scaled, {told(bt, 'nll_scaled')}\nand {told(controls, 'nll_scaled')}."
    )


def _learned(rows: Sequence[dict[str, Any]]) -> str:
    """Bradley–Terry's accuracy at its best epochs and at the last, means over seeds."""
    best, last = (100 * float(np.mean([row["accuracy"] for row in rows_at(rows, "bt", at)])) for at in ("best", "last"))
    return f"{best:.0f}% (best), {last:.0f}% (last)"


def _cell(difference: list[float | None] | None, reach: float, points: bool) -> str:
    """A mean and its interval; the mean alone, of one seed."""
    if difference is None or difference[0] is None:
        return "–"
    (value, error), digits = difference, 1 if points else 3
    numbers = [value] if error is None else [value, value - reach * error, value + reach * error]
    first, *ends = (f"{(100 if points else 1) * one:+.{digits}f}".replace("-", "−") for one in numbers)
    return f"{first} ({ends[0]} to {ends[1]})" if ends else f"{first} (one seed)"
