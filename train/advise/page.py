"""The page of a look: self-contained HTML with plots."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmpo.pipeline.report import COLOURS, Picture, draw, number, render, table, write_whole

DIFFERENCES = {
    "minus_bradley_terry": "− Bradley–Terry",
    "minus_matched": "− matched smoothing",
    "minus_shuffled": "− shuffled margins",
}


def write_page(summary: Mapping[str, Any], out: str | Path) -> Path:
    """Write the page of what `advise` returned to the file `out` and return it. UserError where it can't be written."""
    effects = summary["effects"]
    columns = ("objective", "accuracy", "nll", "ece", "untuned", *DIFFERENCES.values())
    values = {
        "title": "Do these margins help?",
        "data": summary["data"],
        "numbers": [
            ("prompts", number(summary["prompts"])),
            ("pairs", number(summary["pairs"])),
            ("ties", number(summary["ties"])),
            ("R² of signed margins", number(summary["r2"], 2)),
        ],
        "sentences": summary["sentences"],
        "recipe": summary["recipe"],
        "effects": table(columns, [_row(row) for row in effects], text=("objective", *DIFFERENCES.values())),
        "plots": [picture for picture in (_differences(effects), _curve(summary["learning_curve"])) if picture],
        "not_measurable": table(("what", "why", "command"), summary["not_measurable"], text=("what", "why", "command")),
    }
    return write_whole(Path(out), render("advise.html.j2", values))


def name_of(row: Mapping[str, Any]) -> str:
    """An effect in a few words.

    >>> name_of({"objective": "mmpo", "mean_target": 0.75, "options": {"ties": "keep", "target": "plain"}})
    'mmpo .75, ties kept'
    """
    options = row["options"]
    if "chosen" in options:
        return "mmpo, γ chosen"
    mean = "" if row["mean_target"] is None or row["objective"] == "dpo" else f" {row['mean_target']:.2f}".replace(" 0.", " .")
    target = "" if options.get("target", "plain") == "plain" else f" {options['target']}"
    return f"{row['objective']}{mean}{target}" + (", ties kept" if options.get("ties") == "keep" else "")


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    found = {"objective": name_of(row), "untuned": row["untuned"]["accuracy"]} | {
        name: row[name] for name in ("accuracy", "nll", "ece")
    }
    for key, title in DIFFERENCES.items():
        found[title] = "–" if row[key] is None else "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * v for v in row[key]["accuracy"]))
        found[title] = found[title].replace("-", "−").replace(" ", "\u00a0")
    return found


def _differences(effects: list[Mapping[str, Any]]) -> Picture:
    rows = [row for row in effects if row["objective"] == "mmpo" and row["minus_matched"]]

    def plot(axes: Any) -> None:
        for shift, colour, (key, title) in zip((0.22, 0, -0.22), COLOURS, DIFFERENCES.items(), strict=False):
            for place, row in enumerate(rows[::-1]):
                value, low, high = (100 * one for one in row[key]["accuracy"])
                axes.plot((low, high), (place + shift, place + shift), color=colour, linewidth=1.6)
                axes.plot(value, place + shift, "o", color=colour, markersize=4, label=title if not place else None)
        axes.axvline(0, color="#9aa4b1", linewidth=1)
        axes.set_yticks(range(len(rows)), [name_of(row) for row in rows[::-1]])
        axes.set(xlabel="points of accuracy on held-out prompts, 95% intervals")
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.4, -0.14), ncols=3)

    words = "MMPO by mean target against Bradley–Terry and its two controls. What both controls lack too, margins add."
    return draw("differences", words, plot, size=(7.2, 1.4 + 0.42 * len(rows)))


def _curve(rows: list[Mapping[str, Any]]) -> Picture:
    def plot(axes: Any) -> None:
        for colour, (key, title) in zip(
            COLOURS, {"bradley_terry": "Bradley–Terry", "mmpo": "MMPO, mean target .9"}.items(), strict=False
        ):
            pairs = [row["pairs"] for row in rows]
            axes.plot(pairs, [100 * row[key][0] for row in rows], marker="o", color=colour, label=title)
            axes.fill_between(
                pairs, [100 * row[key][1] for row in rows], [100 * row[key][2] for row in rows], color=colour, alpha=0.12
            )
        axes.set(xlabel="untied training pairs", ylabel="accuracy on held-out prompts, %")
        axes.legend(fontsize=8.5)

    return draw("learning-curve", "Accuracy by the number of training pairs: a curve that still rises asks for more prompts.", plot)
