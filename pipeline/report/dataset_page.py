"""`mmpo report`: a self-contained HTML page about a dataset."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmpo.pipeline.margins import MEAN_TARGET, Floats, gamma_for_mean_target, target_probability
from mmpo.pipeline.report.dataset_figures import PairFigures, longer_wins, read_figures, samples, source_rows
from mmpo.pipeline.report.gamma import gamma_table
from mmpo.pipeline.report.left_out import rejects
from mmpo.pipeline.report.page import COLOURS, Picture, draw, number, render, table, write_whole
from mmpo.pipeline.storage import identity, read_manifest
from mmpo.pipeline.validate import SATURATED


def write_report(
    dataset: str | Path, out: str | Path, checks: Sequence[Mapping[str, Any]] | None = None, title: str | None = None
) -> Path:
    """Write the page about a dataset folder to the file `out`, whole, and return it.

    checks: rows {"name", "status", "count", "message"}; by default `mmpo.pipeline.validate` makes them. It holds what the build
    warned of, margins, what each γ makes of them, lengths, sources, checks, what was left out and three samples; every text is
    escaped, no script is in it, nothing is loaded from elsewhere. UserError where the folder is no dataset or the
    page can't be written.
    """
    folder, stood = Path(dataset), identity(out)
    figures = read_figures(folder)
    if checks is None:
        from mmpo.pipeline import validate  # pages are part of the package that its __init__ brings together

        checks = validate(folder)["checks"]
    training = figures.margin[figures.training]
    decided = training[training > 0]
    gamma = gamma_for_mean_target(decided) if decided.size else None
    longer = longer_wins(figures)
    manifest = read_manifest(folder) if (folder / "manifest.json").is_file() else {}
    reasons = rejects(folder, 0)["reasons"] if manifest else {}
    left_out = [{"reason": reason, **entry} for reason, entry in reasons.items()]
    values = {
        "title": title or f"Dataset {folder.resolve().name}",
        "numbers": [*_numbers(figures, gamma), *_ends(manifest.get("saturated", {}))],
        "suggested": gamma,
        "mean_target": MEAN_TARGET,
        "gamma": _gamma_rows(figures, gamma) if gamma else None,
        "margin_plots": [_margin_plot(figures), *([_saturation(decided, gamma)] if gamma else [])],
        "longer": longer,
        "length_plots": _length_plots(figures) if longer is not None else [],
        "sources": _sources(figures),
        "checks": _checks(checks),
        "warnings": manifest.get("warnings", []),
        "rejects": table(("unit", "stage", "reason", "count"), left_out, text=("unit", "stage", "reason")),
        "samples": samples(folder, figures),
    }
    return write_whole(Path(out), render("dataset.html.j2", values), stood)


def _numbers(figures: PairFigures, gamma: float | None) -> list[tuple[str, str]]:
    ties = float((figures.margin == 0).mean())
    known = float((~np.isnan(figures.margin_se)).mean())
    return [
        ("prompts", number(figures.prompts)),
        *((f"pairs in {split}", number(count)) for split, count in figures.splits.items()),
        ("ties", f"{ties:.1%}"),
        ("with a standard error", f"{known:.0%}"),
        ("suggested γ", number(gamma)),
    ]


def _ends(saturated: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Grades at an end of their scale, over all sources, and those of them that a source clipped there."""
    known = [one for one in saturated.values() if one["at_ends"] is not None]
    grades = sum(one["grades"] for one in known)
    if not grades:
        return []
    clipped = sum(one["at_ends"] for one in known if one["transform"])
    share = f"{sum(one['at_ends'] for one in known) / grades:.1%}"
    return [("grades at an end of their scale", share), *([("clipped grades", number(clipped))] if clipped else [])]


def _margin_plot(figures: PairFigures) -> Picture:
    ties = int((figures.margin == 0).sum())

    def plot(axes: Any) -> None:
        top = float(np.quantile(figures.margin, 0.995)) or 1.0
        axes.hist(np.clip(figures.margin, 0, top), bins=40, color=COLOURS[0], edgecolor="white", linewidth=0.4)
        axes.set(xlabel="quality margin", ylabel="pairs")
        axes.grid(axis="x", visible=False)

    words = f"Quality margins. {number(ties)} pairs are ties; the largest .5% are drawn at the right end."
    return draw("margins", words, plot)


def _saturation(margins: Floats, suggested: float) -> Picture:
    gammas = suggested * np.geomspace(0.1, 10, 41)
    targets = [target_probability(margins, float(gamma)) for gamma in gammas]
    quantiles = np.array([np.quantile(p, (0.1, 0.5, 0.9)) for p in targets])

    def plot(axes: Any) -> None:
        axes.fill_between(gammas, quantiles[:, 0], quantiles[:, 2], color=COLOURS[0], alpha=0.15, linewidth=0)
        axes.plot(gammas, quantiles[:, 1], color=COLOURS[0], label="median target (band: 10% to 90%)")
        axes.plot(gammas, [(p > SATURATED).mean() for p in targets], color=COLOURS[1], label="share above .95")
        axes.axvline(suggested, color="#5b6675", linestyle="--", linewidth=1, label=f"suggested γ = {suggested:.3g}")
        axes.set(xscale="log", xlabel="γ", ylim=(0, 1.02))
        axes.set_xticks(suggested * np.array([0.1, 0.3, 1, 3, 10]), labels=[f"{suggested * f:.2g}" for f in (0.1, 0.3, 1, 3, 10)])
        axes.minorticks_off()
        axes.legend(fontsize=8.5, loc="upper left")

    return draw("saturation", "What γ makes of the margins: targets between ½ and 1, and how many saturate.", plot)


def _gamma_rows(figures: PairFigures, gamma: float) -> dict[str, Any]:
    margin, margin_se = figures.margin[figures.training], figures.margin_se[figures.training]
    rows = gamma_table(margin[margin > 0], margin_se[margin > 0], gamma)
    columns = ["gamma", "mean_target", "p10", "p50", "p90", "saturated", "noise_aware", "note"]
    if rows[0]["noise_aware"] is None:
        columns.remove("noise_aware")
    shown = [{**row, "marked": row["note"] == "suggested"} for row in rows]
    return table(columns, shown, text=("note",), marked="marked")


def _length_plots(figures: PairFigures) -> list[Picture]:
    decided = figures.margin > 0
    ratio = np.log2((figures.chosen_length[decided] + 1) / (figures.rejected_length[decided] + 1))
    edges = np.unique(np.quantile(figures.margin[decided], np.linspace(0, 1, 7)))
    which = np.searchsorted(edges[1:-1], figures.margin, side="right")
    groups = [(decided & (which == i)) for i in range(max(1, len(edges) - 1))]
    shares = [(group, longer_wins(figures, group)) for group in groups]
    points = [(float(figures.margin[group].mean()), share) for group, share in shares if share is not None]

    def histogram(axes: Any) -> None:
        axes.hist(np.clip(ratio, -4, 4), bins=41, color=COLOURS[0], edgecolor="white", linewidth=0.4)
        axes.axvline(0, color="#5b6675", linewidth=1)
        axes.set(xlabel="chosen length / rejected length", ylabel="pairs")
        axes.set_xticks([-4, -2, 0, 2, 4], ["1/16", "1/4", "1", "4", "16"])
        axes.grid(axis="x", visible=False)

    def line(axes: Any) -> None:
        axes.axhline(0.5, color="#5b6675", linewidth=1)
        axes.plot(*zip(*points, strict=True), marker="o", color=COLOURS[1])
        axes.set(xlabel="mean quality margin of the bin", ylabel="longer one chosen", ylim=(0, 1))

    return [
        draw("length", "Lengths in characters, untied pairs; right of 1 the chosen one is longer.", histogram),
        draw("longer", "How often the longer completion is the chosen one, by margin. ½ is no bias.", line),
    ]


def _sources(figures: PairFigures) -> dict[str, Any]:
    rows = [{**row, "ties": f"{row['ties']:.1%}", "longer_wins": number(row["longer_wins"])} for row in source_rows(figures)]
    columns = ("source", "kind", "pairs", "ties", "mean_margin", "median_margin", "mean_se", "longer_wins")
    return table(columns, rows, text=("source", "kind"))


def _checks(checks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    rows = [{**row, "status": (row["status"], f"status {row['status']}")} for row in checks]
    return table(("status", "name", "count", "message"), rows, text=("status", "name", "message"))
