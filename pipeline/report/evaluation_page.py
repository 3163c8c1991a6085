"""The page of one evaluation, `mmpo evaluate --out DIR`: measures with intervals beside length and a coin, reliability, two models."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmpo.pipeline.metrics import METRICS
from mmpo.pipeline.report.comparison_page import by_target
from mmpo.pipeline.report.page import (
    COLOURS,
    Picture,
    draw,
    number,
    render,
    table,
    temperature_words,
    trained_words,
    with_interval,
    write_whole,
)

RELIABILITY = {
    "label": ("confidence max(q, 1 − q)", "share of pairs ordered right", "Against the labels, ties left out"),
    "target": ("q, the orientation above ½", "mean target p", "Against the targets, ties included"),
    "vote": ("q, the orientation above ½", "share of votes", "Against votes of raters that made no part of the margins"),
}
"""Axes and words of each reliability diagram."""
FITTED = {"validation": "fitted on the validation split"}
BY_SOURCE = ("accuracy", "ece_target", "cross_entropy", "ece_label", "nll")
BY_MARGIN = ("low", "high", "pairs", "accuracy", "mean_q", "mean_p", "longest wins")


def write_evaluation_page(found: Mapping[str, Any], out: str | Path, title: str) -> Path:
    """Write the page to the file `out`, whole, and return it. found: what `mmpo evaluate` returned. UserError where it can't be written."""
    temperature = found.get("temperature")
    kind = str(found.get("kind"))
    pictures = [*_reliability(found), by_target([{**found, "name": kind}], kind)]
    shown = [name for name in METRICS if found.get(name) is not None]
    columns = {_named("this model", found.get("trained_on")): found} | (
        {f"at temperature {number(temperature)}": found["scaled"]} if temperature is not None else {}
    )
    columns |= {row["name"]: row for row in found["baselines"]}
    rows = [{"measure": name, **{column: with_interval(row, name) for column, row in columns.items()}} for name in shown]
    few = [name for name in BY_SOURCE if name in shown][:3]
    by_source = [
        {"source": row["source"], "pairs": row["pairs"], **_cells(row, few), **_longest(row)} for row in found["by_source"]
    ]
    bins = [{**row, **_longest(row)} for row in found.get("by_margin") or []]
    values = {
        "title": title,
        "about": {
            **{n: number(found[n]) for n in ("model", "data", "gamma", "target", "suite") if found.get(n) is not None},
            **({"trained on": words} if (words := trained_words(found.get("trained_on"))) else {}),
        },
        "numbers": _numbers(found),
        "measures": table(("measure", *columns), rows, text=("measure",)),
        "temperature_from": FITTED.get(found["temperature_from"], found["temperature_from"]),
        "temperature": temperature,
        "temperature_words": temperature_words(found),
        "suite": _suite(found) if "suite" in found else None,
        "against": _against(found["against"]) if found.get("against") else None,
        "plots": [picture for picture in pictures if picture is not None],
        "length": {name: with_interval(found["length"], name) for name in ("spearman", "longest_wins")},
        "by_margin": table(BY_MARGIN, bins) if bins else None,
        "by_source": table(("source", "pairs", *few, "longest wins"), by_source, text=("source",)),
    }
    return write_whole(Path(out), render("evaluation.html.j2", values))


def _named(name: str, trained_on: Mapping[str, Any] | None) -> str:
    """With the control that a model is."""
    control = (trained_on or {}).get("control")
    return f"{name} (control {control})" if control else name


def _cells(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, str]:
    return {name: with_interval(row, name) for name in names}


def _longest(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"longest wins": row.get("longest_wins")}


def _numbers(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        *((name, number(found[name])) for name in ("prompts", "pairs", "ties")),
        ("accuracy", number(found.get("accuracy"))),
        ("longest wins", number(found["length"]["longest_wins"])),
        *([("average of the sections", number(found["average"]))] if "average" in found else []),
    ]


def _suite(found: Mapping[str, Any]) -> dict[str, Any]:
    longest = found["longest_wins"]
    rows = [
        {
            "section": name,
            "figure": with_interval({"": value, "_95": found["sections_95"][name]}, ""),
            "longest wins": longest["sections"].get(name),
        }
        for name, value in found["sections"].items()
    ]
    rows.append(
        {"section": "average", "figure": with_interval(found, "average"), "longest wins": longest["average"], "marked": True}
    )
    subsets = [{**row, "accuracy": with_interval(row, "accuracy")} for row in found["subsets"]]
    matrix = None
    if "matrix" in found:
        names = ("concise", "detailed", "markdown")
        cells = [{"chosen": name, **dict(zip(names, row, strict=True))} for name, row in zip(names, found["matrix"], strict=True)]
        matrix = table(("chosen", *names), cells, text=("chosen",))
    return {
        "name": found["suite"],
        "sections": table(("section", "figure", "longest wins"), rows, text=("section",), marked="marked"),
        "subsets": table(("subset", "section", "rows", "accuracy", "chance"), subsets, text=("subset", "section")),
        "styles": found.get("styles"),
        "matrix": matrix,
    }


def _against(found: Mapping[str, Any]) -> dict[str, Any]:
    """The differences, raw and scaled; those whose interval leaves out 0 are marked."""

    def rows(of: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        shown = [
            {
                **row,
                "difference": with_interval(row, "difference"),
                "marked": bool(row["difference_95"] and not _spans_0(row["difference_95"])),
            }
            for row in of
        ]
        return table(("measure", "this", "other", "difference"), shown, text=("measure",), marked="marked")

    return {
        "other": _named(found["other"], found.get("other_trained_on")),
        **{name: found[name] for name in ("pairs", "prompts")},
        "raw": rows(found["raw"]),
        "scaled": rows(found["scaled"]) if "scaled" in found else None,  # one prompt has no halves to fit on
    }


def _spans_0(bounds: Sequence[float]) -> bool:
    return bounds[0] <= 0 <= bounds[1]


def _reliability(found: Mapping[str, Any]) -> list[Picture]:
    """A diagram for each kind, raw and scaled; the area of a point is the share of the pairs in its bin."""

    def picture(kind: str, series: Mapping[str, Sequence[Mapping[str, float]]]) -> Picture:
        across, up, words = RELIABILITY[kind]

        def plot(axes: Any) -> None:
            axes.plot((0.5, 1), (0.5, 1), color="#9aa4b1", linewidth=1, linestyle="--")
            for colour, (name, rows) in zip(COLOURS, series.items(), strict=False):
                total = sum(row["weight"] for row in rows)
                x, y = ([row[key] for row in rows] for key in ("mean_x", "mean_y"))
                axes.plot(x, y, color=colour, linewidth=1.2, alpha=0.7)
                axes.scatter(
                    x, y, s=[12 + 240 * row["weight"] / total for row in rows], color=colour, alpha=0.75, label=name, linewidths=0
                )
            axes.set(xlabel=across, ylabel=up, xlim=(0.48, 1.02))
            axes.legend(fontsize=8.5, markerscale=0.6)

        return draw(
            f"reliability-{kind}", f"{words}: a calibrated model lies on the dashed line; larger points hold more pairs.", plot
        )

    return [picture(kind, series) for kind, series in found["reliability"].items()]
