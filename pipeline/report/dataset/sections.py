"""The sections of a dataset's page: tables and charts made of its figures, each with what to do where it looks bad."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmpo.pipeline.margins import MEAN_TARGET, Floats, gamma_for_mean_target, target_probability
from mmpo.pipeline.metrics import FEWEST_CLUSTERS
from mmpo.pipeline.report.charts import Chart, counted, histogram, line_chart
from mmpo.pipeline.report.dataset.figures import PairFigures, shortened, source_rows
from mmpo.pipeline.report.dataset.measures import (
    HEAT_MODELS,
    MODELS,
    duplicate_rows,
    length_figures,
    meeting_map,
    model_rows,
    near_duplicates,
    score_map,
    votes_rows,
)
from mmpo.pipeline.report.gamma import gamma_table
from mmpo.pipeline.report.page import number, table, with_interval

SOURCES = 60
"""Sources that the table names."""
MANY_DUPLICATES = 0.01
NEAR_SHOWN = 12
FEW_PAIRS = 50
"""Below, a rater's agreement is not called doubtful."""
LENGTH_LEANS = 0.55
DEEPEST = 0.55
"""Of shades: text on it is still read."""
SATURATED = 0.95
CONDENSED = 50_000


def percent(value: Any, digits: int = 1) -> str:
    """A share in percent, with an interval where it is a pair of bounds; an en dash for none.

    >>> percent(0.125), percent([0.1, 0.2]), percent(None)
    ('12.5%', '[10.0%, 20.0%]', '–')
    """
    if value is None:
        return "–"
    return f"[{percent(value[0], digits)}, {percent(value[1], digits)}]" if isinstance(value, list) else f"{value:.{digits}%}"


def share(row: Mapping[str, Any], name: str, digits: int = 1) -> str:
    """The share of that name in percent with its interval, `NAME_95`, where it has one.

    >>> share({"x": 0.5, "x_95": [0.25, 0.75]}, "x"), share({"x": None}, "x")
    ('50.0% [25.0%, 75.0%]', '–')
    """
    bounds = row.get(f"{name}_95")
    return percent(row.get(name), digits) + (f" {percent(bounds, digits)}" if bounds else "")


def margins_section(figures: PairFigures, gamma: float | None) -> dict[str, Any]:
    """The distribution of margins, what each γ makes of those of the training pairs."""
    top = float(np.quantile(figures.margin, 0.995)) or 1.0
    edges = np.linspace(0, top, 41)
    ties = int((figures.margin == 0).sum())
    charts = [
        histogram(
            [("pairs", counted(figures.margin, edges))], edges, x_label="quality margin",
            caption=f"Quality margins of all pairs. {number(ties)} are ties (margin 0, in the first bar); the largest .5% stand "
            f"in the last.",
            advice="One tall bar means few different grades: the margins say little more than labels; add raters, or a finer "
            "scale. A long thin "
            "tail means one γ can't suit all: normalise (--normalise zscore, log or rank).",
        )
    ]  # fmt: skip
    training = figures.margin[figures.training]
    margin_se = figures.margin_se[figures.training]
    decided = np.sort(training[training > 0])
    rows = []
    if gamma:
        charts.append(_targets(decided, gamma))
        errors = margin_se[training > 0]
        rows = gamma_table(*((_condensed(decided), None) if np.isnan(errors).all() else (training[training > 0], errors)), gamma)
    columns = ["gamma", "mean_target", "p10", "p50", "p90", "saturated", "noise_aware", "note"]
    if rows and rows[0]["noise_aware"] is None:
        columns.remove("noise_aware")
    again = f"mean target {MEAN_TARGET:g}"  # of condensed margins the suggested γ comes twice, a few digits apart
    shown = [{**row, "marked": row["note"] == "suggested"} for row in rows if row["note"] != again]
    titles = {
        "gamma": "γ",
        "p10": "10%",
        "p50": "median",
        "p90": "90%",
        "saturated": "above .95",
        "noise_aware": "mean, errors heeded",
    }
    return {"charts": charts, "gamma": table(columns, shown, text=("note",), marked="marked", titles=titles) if rows else None}


def _condensed(margins: Floats) -> Floats:
    """Sorted margins, of very many the means of neighbours, so few that what is read of them to three digits stays as it is."""
    size = len(margins) // CONDENSED
    if size < 2:
        return margins
    starts = np.arange(0, len(margins), size)
    return np.add.reduceat(margins, starts) / np.diff(np.append(starts, len(margins)))


def _targets(margins: Floats, gamma: float) -> Chart:
    """margins: sorted, above 0. A target rises with its margin, so that quantiles and shares are those of the margins."""
    gammas = [float(one) for one in gamma * np.geomspace(0.1, 10, 41)]
    low, middle, high = np.quantile(margins, (0.1, 0.5, 0.9))

    def target(margin: float) -> list[float]:
        return [float(1 / (1 + np.exp(-one * margin))) for one in gammas]

    ends = [float(np.log(SATURATED / (1 - SATURATED))) / one for one in gammas]
    above = 1 - np.searchsorted(margins, ends, side="right") / len(margins)
    return line_chart(
        [
            {"name": "median target (band: 10% to 90%)", "x": gammas, "y": target(middle), "low": target(low), "high": target(high)},
            {"name": "share of targets above .95", "x": gammas, "y": above.tolist()},
        ],
        caption=f"What each γ makes of the training margins; the dashed line is the suggested γ, {gamma:.3g}.",
        advice="Where the second line is high, targets are nearly labels and margins are lost: take a smaller γ. Where the band hugs ½, "
        "training hears next to nothing: take a larger one.",
        x_label="γ (log scale)", y_label="target", log=True, rules=(gamma,),
        labels={gamma * times: f"{gamma * times:.2g}" for times in (0.1, 0.3, 1, 3, 10)},
    )  # fmt: skip


def length_section(figures: PairFigures) -> dict[str, Any]:
    """Length and margins: shares with intervals, the rank correlation, two charts; {"longer": None} where no pair can say."""
    found = length_figures(figures)
    if found["longer"] is None:
        return {"longer": None, "charts": [], "sentence": ""}
    edges = np.linspace(-4, 4, 42)
    charts = [
        histogram(
            [("pairs", counted(found["ratio"] / np.log(2), edges))], edges, x_label="chosen length ÷ rejected length",
            labels={-4: "1/16", -2: "1/4", 0: "1", 2: "4", 4: "16"}, rules=(0.0,),
            caption="Lengths in characters of untied pairs; right of 1 the chosen reply is the longer one.",
            advice="A heap far from 1 that is no trait of the task: look at it below under “chosen though far shorter” and "
            "“chosen and far longer”.",
        )
    ]  # fmt: skip
    rows = found["by_margin"]
    if len(rows) > 1:
        charts.append(
            line_chart(
                [{"name": "longer chosen", "x": [row["margin"] for row in rows], "y": [row["share"] for row in rows],
                "bounds": [row["share_95"] for row in rows]}],
                caption="How often the longer reply is the chosen one, by size of margin, with 95% intervals over prompts; ½ is no bias.",
                advice="A rise to the right means that large margins are earned by length: a model will learn to write more. "
                "Balance lengths "
                "(mmpo evaluate shows accuracy beside “longest wins”), or grade with length hidden.",
                x_label="mean quality margin", y_label="longer chosen", levels=(0.5,),
            )
        )  # fmt: skip
    bounds = found["longer_95"] or [found["longer"]] * 2
    leans = (
        "the grades favour length"
        if bounds[0] > LENGTH_LEANS
        else "the grades favour brevity"
        if bounds[1] < 1 - LENGTH_LEANS
        else "no clear lean"
    )
    sentence = (
        f"The chosen reply is the longer one in {share(found, 'longer')} of {number(found['pairs'])} untied pairs of different "
        f"length ({leans}). "
        f"Rank correlation of margin and log length ratio: {with_interval(found, 'correlation')}. A model that only measures "
        f"length would be "
        "right as often: hold every accuracy against it."
    )
    return {
        "longer": found["longer"],
        "leans": leans,
        "charts": charts,
        "sentence": sentence,
        "correlation": found["correlation"],
    }


def votes_section(figures: PairFigures) -> dict[str, Any] | None:
    """Raters' votes as PAIRS hold them; None where every pair has one rater."""
    rows = votes_rows(figures)
    if not rows or all(row["raters"] == 1 for row in rows):
        return None
    shown = [
        {"raters": row["raters"], "pairs": row["pairs"], "all": share(row, "all"), "half": share(row, "half")} for row in rows[:12]
    ]
    titles = {"raters": "raters of a pair", "all": "all prefer the chosen", "half": "at most half prefer it"}
    return table(("raters", "pairs", "all", "half"), shown, titles=titles)


def raters_section(overview: Any | None) -> dict[str, Any] | None:
    """Raters beside one another: a table, and sentences; None without an overview."""
    if overview is None:
        return None
    first = any(row["first"] is not None for row in overview.raters)
    again = any(row["again"] for row in overview.raters)
    strict = any(row["severity"] is not None for row in overview.raters)
    shown = []
    for row in overview.raters:
        doubtful = row["agrees_95"] is not None and row["agrees_95"][0] <= 0.5 and row["decided"] >= FEW_PAIRS
        shown.append(
            {
                "rater": shortened(row["name"]), "kind": row["kind"].replace("_", " "), "grades": row["grades"],
                "share": percent(row["share"]),
                "agrees": (_unbroken(share(row, "agrees")), "warn" if doubtful else ""), "on": row["decided"],
                **{name: _unbroken(with_interval(row, of, 2)) for name, of in
                (("order", "spearman"), ("severity", "severity"), ("first", "first"))},
                "ties": percent(row["ties"]), "longer": percent(row["longer"]), "flips": percent(row["flips"]),
                "same": _unbroken(share(row, "same")), "again": row["again"],
            }
        )  # fmt: skip
    columns = ["rater", "kind", "grades", "share", "agrees", "on", "order"] + ["severity"] * strict + ["ties", "longer"]
    columns += ["first", "flips"] * first + ["same", "again"] * again
    who = (
        "the mean of people (of the other people for a person)" if overview.against == "people" else "the mean of the other raters"
    )
    titles = {
        "share": "of all grades", "agrees": "sides with the others", "on": "on pairs", "order": "rank correlation", "severity": "severity",
        "longer": "prefers the longer", "first": "lean to the first shown", "flips": "turns with the order", "same": "same grade again",
        "again": "asked again",
    }  # fmt: skip
    alone = len(overview.raters) == 1
    return {
        "table": table(columns, shown, text=("rater", "kind"), titles=titles),
        "who": who, "alone": alone, "first": first, "again": again, "strict": strict,
        "aspects": ", ".join(map(shortened, overview.measured)) if len(overview.measured) < len(overview.named) else "",
        "counted": overview.counted, "busiest": percent(overview.busiest), "named": len(overview.raters), "overall": overview.overall and {
            "alpha": with_interval(overview.overall, "alpha_interval", 2), "pairs": number(overview.overall["units"]),
            "verdicts": with_interval(overview.overall, "alpha_nominal", 2),
        },
    }  # fmt: skip


def _unbroken(text: str) -> str:
    """A value with its interval, of which a narrow cell puts the interval, whole, on a line of its own.

    >>> _unbroken("0.5 [0.1, 0.9]")
    '0.5 [0.1,\xa00.9]'
    """
    return text.replace(", ", ",\u00a0")


def aspects_section(overview: Any | None) -> dict[str, Any] | None:
    """Aspects that contradict each other; None where fewer than two were graded."""
    if overview is None or not overview.aspects:
        return None
    rows = [
        {
            "one": shortened(row["first"]), "other": shortened(row["second"]), "pairs": row["pairs"], "decided": row["decided"],
            "contradict": (share(row, "contradict"), "warn" if (row["contradict_95"] or [0])[0] > 0.5 else "", min(DEEPEST,
            row["contradict"] or 0.0)),
            "order": with_interval(row, "spearman", 2),
        }
        for row in overview.aspects
    ]  # fmt: skip
    titles = {
        "one": "aspect",
        "other": "beside",
        "decided": "both decide",
        "contradict": "prefer opposite replies",
        "order": "rank correlation",
    }
    return table(("one", "other", "pairs", "decided", "contradict", "order"), rows, text=("one", "other"), titles=titles)


def models_section(figures: PairFigures) -> dict[str, Any] | None:
    """Models: a table, and two heat maps; None where no model is named."""
    rows = model_rows(figures)
    if not rows:
        return None
    by_size = sorted(rows, key=lambda row: (-row["completions"], row["model"]))
    named = {row["number"] for row in by_size[:MODELS]}
    shown = [{**row, "wins": share(row, "wins"), "margin": with_interval(row, "margin")} for row in rows if row["number"] in named]
    titles = {
        "completions": "replies",
        "pairs": "pairs with others",
        "wins": "chosen in",
        "margin": "mean margin over others",
        "score": "mean score",
    }
    columns = ("model", "completions", "pairs", "wins", "margin", "score")
    largest = {row["number"] for row in by_size[:HEAT_MODELS]}
    heat = [row for row in rows if row["number"] in largest]
    names = {row["number"]: row["model"] for row in heat}
    return {
        "table": table(columns, shown, text=("model",), titles=titles),
        "counted": len(rows), "named": len(shown), "heat": len(heat),
        "scores": _score_table(figures, names), "meetings": _meeting_table(figures, names) if len(names) > 1 else None,
    }  # fmt: skip


def _score_table(figures: PairFigures, names: Mapping[int, str]) -> dict[str, Any] | None:
    bins, shares = score_map(figures, list(names))
    if not bins:
        return None
    keys = [f"bin {at}" for at in range(len(bins))]
    titles = {key: _span(*span) for key, span in zip(keys, bins, strict=True)}
    rows = [
        {
            "model": name,
            **{key: (percent(one, 0) if one else "", "", DEEPEST * one) for key, one in zip(keys, mine.tolist(), strict=True)},
        }
        for name, mine in zip(names.values(), shares, strict=True)
    ]
    return table(("model", *keys), rows, text=("model",), titles=titles)


def _span(low: float, high: float) -> str:
    """A bin of scores in words.

    >>> _span(1.0, 1.0), _span(-2.5, 0.0)
    ('1', '-2.5 to 0')
    """
    step = (high - low) * 1e-6
    low, high = (0.0 if abs(value) < step else value for value in (low, high))
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def _meeting_table(figures: PairFigures, names: Mapping[int, str]) -> dict[str, Any]:
    margins, counts = meeting_map(figures, list(names))
    margins = np.where(counts < FEWEST_CLUSTERS, np.nan, margins)  # what a few pairs say is chance
    largest = float(np.nanmax(np.abs(margins))) if np.isfinite(margins).any() else 1.0
    keys = [f"model {at}" for at in range(len(names))]
    rows = [
        {
            "model": f"{row + 1}. {name}",
            **{
                key: ("", "")
                if np.isnan(margins[row, at])
                else (f"{margins[row, at]:.2g}", "", DEEPEST * float(margins[row, at]) / (largest or 1.0))
                for at, key in enumerate(keys)
            },
        }
        for row, name in enumerate(names.values())
    ]
    return table(("model", *keys), rows, text=("model",), titles={key: str(at + 1) for at, key in enumerate(keys)})


def sources_section(figures: PairFigures, gamma: float | None) -> dict[str, Any]:
    """A row per source, the largest ones; of several also the γ that each would have by itself, and its mean target at the γ of all."""
    rows = source_rows(figures)
    shown = [{**row, "ties": percent(row["ties"]), "longer_wins": share(row, "longer_wins")} for row in rows[:SOURCES]]
    columns = ["source", "kind", "pairs", "ties", "mean_margin", "median_margin", "mean_se", "longer_wins"]
    titles = {"mean_se": "mean standard error", "longer_wins": "longer one chosen", "gamma": "γ auto", "target": "mean target"}
    if len(rows) > 1 and gamma:
        columns[6:6] = ["gamma", "target"]
        numbers = {name: at for at, name in enumerate(figures.names["source"])}
        for row in shown:
            mine = _condensed(np.sort(figures.margin[(figures.source == numbers[row["source"]]) & (figures.margin > 0)]))
            if len(mine):
                row |= {"gamma": gamma_for_mean_target(mine), "target": float(target_probability(mine, gamma).mean())}
    return {"table": table(columns, shown, text=("source", "kind"), titles=titles), "counted": len(rows), "named": len(shown)}


def duplicates_section(figures: PairFigures) -> dict[str, Any]:
    """Duplicates, exact ones and of not too many prompts near ones, as a table; whether there are many; the first near ones."""
    near, found = near_duplicates(figures)
    rows = [*duplicate_rows(figures), *near]
    shown = [{**row, "share": percent(row["count"] / row["of"] if row["of"] else None, 2)} for row in rows]
    many = [row["what"] for row in rows if row["of"] and row["count"] > MANY_DUPLICATES * row["of"]]
    alike = [
        {"similarity": one.details["similarity"], "prompt": one.details["text"], "like": one.details["near_text"]}
        for one in sorted(found, key=lambda one: (one.details["similarity"], one.row))[:NEAR_SHOWN]
    ]
    return {
        "table": table(("what", "count", "of", "share"), shown, text=("what",)), "many": many, "near": bool(near),
        "alike": table(("similarity", "prompt", "like"), alike, text=("prompt", "like")),
    }  # fmt: skip


def checks_section(checks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Checks that did not pass, worst first, and those that did."""
    order = ("fail", "warn", "unknown", "pass")
    rows = sorted(checks, key=lambda row: order.index(row["status"]))

    def shown(kept: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        cells = [{**row, "status": (row["status"], f"status {row['status']}")} for row in kept]
        return table(("status", "name", "count", "message"), cells, text=("status", "name", "message"))

    return {
        "open": shown([row for row in rows if row["status"] != "pass"]), "passed": shown([row for row in rows if row["status"] == "pass"]),
    }  # fmt: skip


def left_out_section(reasons: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What was left out by reason, and the first examples of each."""
    rows = [{"reason": reason, **entry, "share": percent(entry["share"], 2)} for reason, entry in reasons.items()]
    examples = [
        {"reason": reason, "file": one["file"] or "", "row": one["row"], "details": _details(one["details"])}
        for reason, entry in reasons.items() for one in entry["examples"]
    ]  # fmt: skip
    return {
        "table": table(
            ("unit", "stage", "reason", "count", "share"), rows, text=("unit", "stage", "reason"), titles={"share": "of its kind"}
        ),
        "examples": table(("reason", "file", "row", "details"), examples[:40], text=("reason", "file", "details")),
    }


def _details(details: Mapping[str, Any] | None, most: int = 300) -> str:
    said = "; ".join(f"{name}: {value}" for name, value in (details or {}).items())
    return said if len(said) <= most else said[:most].rstrip() + " …"
