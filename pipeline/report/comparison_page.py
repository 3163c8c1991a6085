"""The page that `mmpo run` ends with: trained models side by side, with plots, from what `mmpo evaluate` measured."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmpo.pipeline.metrics import METRICS
from mmpo.pipeline.report.page import COLOURS, Picture, draw, number, points, render, table, trained_words, write_whole


def write_comparison(runs: Sequence[Mapping[str, Any]], out: str | Path, title: str) -> Path:
    """Write the page to the file `out` (PNGs of its plots beside it, OUT.NAME.png) and return it.

    runs: one per trained model: "name", "kind" (policy or reward), "loss", and what `mmpo train` and `mmpo evaluate`
    returned ("gamma", "steps", "pairs", "accuracy", "ece_target", ..., "by_margin"); absent or null measures are
    shown as a dash. The loss curve is "history" {"steps": [...], "loss": [...]}, or read from the run's own record
    under "out". UserError where the page can't be written.
    """
    page = Path(out)
    curves = {str(run["name"]): _curve(run) for run in runs}
    pictures = [
        *(_calibration(runs, kind) for kind in dict.fromkeys(str(run.get("kind")) for run in runs)),
        *_curves({name: curve for name, curve in curves.items() if curve}),
    ]
    pictures = [picture for picture in pictures if picture is not None]
    for picture in pictures:
        write_whole(page.with_name(f"{page.stem}.{picture.name}.png"), picture.png)
    pairs = sorted({run["pairs"] for run in runs if run.get("pairs") is not None})
    numbers = [("models", number(len(runs))), *(("held-out pairs", number(count)) for count in pairs)]
    values = {
        "title": title,
        "dataset_page": "dataset.html" if (page.parent / "dataset.html").is_file() else None,
        "numbers": numbers,
        "measures": _measures(runs),
        "plots": pictures,
        "by_margin": [{"name": run["name"], **table(list(rows[0]), rows)} for run in runs if (rows := run.get("by_margin"))],
    }
    return write_whole(page, render("comparison.html.j2", values))


def _measures(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    shown = [name for name in METRICS if any(run.get(name) is not None for run in runs)]
    rows = []
    for run in runs:
        row: dict[str, Any] = {name: run.get(name) for name in ("name", "kind", "loss", "gamma", "steps")}
        row["trained on"] = trained_words(run.get("trained_on"))
        for name in shown:
            row[name] = (run.get(name), "best" if _is_best(run, name, runs) else "")
        rows.append(row)
    first = ("name", "kind", *(("trained on",) if any(row["trained on"] for row in rows) else ("loss", "gamma")), "steps")
    return table((*first, *shown), rows, text=("name", "kind", "loss", "trained on"))


def _is_best(run: Mapping[str, Any], name: str, runs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether no other run of the same kind is better; a run alone of its kind is not best of anything."""
    rivals = [other[name] for other in runs if other.get("kind") == run.get("kind") and other.get(name) is not None]
    return len(rivals) > 1 and run.get(name) == min(rivals, key=METRICS[name].distance)


def _calibration(runs: Sequence[Mapping[str, Any]], kind: str) -> Picture | None:
    """What the models of a kind say: by margin, beside the targets; and what the targets are where they say so."""
    shown = [run for run in runs if str(run.get("kind")) == kind and run.get("by_margin")]
    if not shown:
        return None
    bins = [(row["low"], row["high"]) for row in shown[0]["by_margin"]]
    shown = [run for run in shown if [(row["low"], row["high"]) for row in run["by_margin"]] == bins]
    few = 0.01 * sum(row["pairs"] for row in shown[0]["by_margin"])  # of fewer pairs nothing is seen
    kept = [at for at, row in enumerate(shown[0]["by_margin"]) if row["pairs"] >= few]

    def by_margin(axes: Any) -> None:
        targets = [shown[0]["by_margin"][at]["mean_p"] for at in kept]
        axes.plot(range(len(kept)), targets, color="#5b6675", linestyle="--", label="target")
        for at, run in enumerate(shown):
            aside = 0.5 * (at - (len(shown) - 1) / 2) / max(len(shown), 3)
            rows = [run["by_margin"][one] for one in kept]
            points(axes, at, [place + aside for place in range(len(kept))], rows, "mean_q", str(run["name"]))
        axes.set(xlabel="quality margin of the pair", ylabel="mean prediction q", xticks=range(len(kept)))
        axes.set_xticklabels(["tie" if bins[at][1] == 0 else _span(*bins[at]) for at in kept])
        axes.legend(fontsize=9, loc="upper left")

    def reliability(axes: Any) -> None:
        found = [run["reliability"]["target"]["raw"] for run in shown]
        found = [[row for row in rows if row["weight"] >= few] for rows in found]
        most = max(row["mean_x"] for rows in found for row in rows)
        axes.plot((0.5, most), (0.5, most), color="#5b6675", linestyle="--")
        for at, (run, rows) in enumerate(zip(shown, found, strict=True)):
            points(axes, at, [row["mean_x"] for row in rows], rows, "mean_y", str(run["name"]))
        axes.set(xlabel="prediction q, the side above ½", ylabel="mean target p of those pairs")

    words = (
        f"{kind.capitalize()} models on held-out pairs, with 95% intervals over prompts. Left: the mean prediction for the better "
        "completion, by margin; dashed: the targets. Right: the mean target where a model says q; a calibrated one lies on the dashed "
        "line, one that is too sure below it. Bins of less than 1% of the pairs are left out."
    )
    both = all(run.get("reliability", {}).get("target") for run in shown)
    return draw(f"calibration-{kind}", words, by_margin, *([reliability] if both else []), size=(4.8, 3.7))


def _span(low: float, high: float) -> str:
    return f"{low:.3g}" if low == high else f"{low:.3g}–{high:.3g}"


def by_target(runs: Sequence[Mapping[str, Any]], kind: str) -> Picture | None:
    """Mean prediction against mean target by margin bin, a line a run: how much of the margin the model sees."""
    drawn = [
        (str(run["name"]), [row for row in run.get("by_margin") or [] if {"mean_p", "mean_q"} <= set(row)])
        for run in runs
        if str(run.get("kind")) == kind
    ]
    drawn = [(name, rows) for name, rows in drawn if rows]
    if not drawn:
        return None

    def plot(axes: Any) -> None:
        values = [row[key] for _, rows in drawn for row in rows for key in ("mean_p", "mean_q")]
        low, high = min(0.45, *values), max(0.8, *values)
        axes.plot((low, high), (low, high), color="#9aa4b1", linewidth=1, linestyle="--")
        for colour, (name, rows) in zip(COLOURS * len(drawn), drawn, strict=False):
            axes.plot([r["mean_p"] for r in rows], [r["mean_q"] for r in rows], marker="o", color=colour, label=name)
        axes.set(xlabel="mean target p of the margin bin", ylabel="mean prediction q")
        axes.legend(fontsize=8.5)

    words = (
        f"{kind.capitalize()} models: mean prediction against mean target by margin bin. A perfect model lies on the dashed line; "
        "one that cannot tell pairs apart stays at ½, however well calibrated."
    )
    return draw(f"by-target-{kind}", words, plot)


def _curve(run: Mapping[str, Any]) -> Mapping[str, list[float]] | None:
    """The loss by step, as given or from the run's own record; None where there is none."""
    curve = run.get("history")
    if curve is None and run.get("out"):
        record = Path(str(run["out"])) / "mmpo.json"
        try:
            curve = json.loads(record.read_text(encoding="utf-8")).get("history")
        except (OSError, ValueError, AttributeError):
            return None
    return curve if isinstance(curve, Mapping) and curve.get("steps") and curve.get("loss") else None


def _curves(curves: Mapping[str, Mapping[str, list[float]]]) -> list[Picture]:
    if not curves:
        return []

    def plot(axes: Any) -> None:
        for colour, (name, curve) in zip(COLOURS * len(curves), curves.items(), strict=False):
            axes.plot(curve["steps"], curve["loss"], color=colour, label=name, linewidth=1.4)
        axes.set(xlabel="step", ylabel="training loss")
        axes.legend(fontsize=8.5)

    return [draw("loss", "Training loss by step. Objectives differ in scale: compare shapes, not heights.", plot)]
