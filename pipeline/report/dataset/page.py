"""`mmpo report`: a self-contained HTML page that one can judge a dataset by."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from mmpo.pipeline.margins import MEAN_TARGET, gamma_for_mean_target
from mmpo.pipeline.report.dataset.examples import choose, cut, payload, shown_pairs
from mmpo.pipeline.report.dataset.figures import FiguresReader, PairFigures, read_figures
from mmpo.pipeline.report.dataset.measures import margin_figures
from mmpo.pipeline.report.dataset.sections import (
    FEW_PAIRS,
    aspects_section,
    checks_section,
    duplicates_section,
    left_out_section,
    length_section,
    margins_section,
    models_section,
    percent,
    raters_section,
    share,
    sources_section,
    votes_section,
)
from mmpo.pipeline.report.dataset.summary import dataset_summary
from mmpo.pipeline.report.left_out import rejects
from mmpo.pipeline.report.page import number, render, script, write_whole
from mmpo.pipeline.storage import identity, on_disk, read_manifest

SAMPLE = 420
"""Characters of a text in the samples that stand there where scripts are off."""
SHOWN_IN = {"length bias": "length", "ties": "margins", "near leakage": "duplicates", "leakage": "duplicates"}
"""Checks with a section of their own."""
NEAR_PROMPTS = 20_000
"""Prompts that are compared with one another; of more, `mmpo build --duplicates` says what is nearly the same."""


def write_report(
    dataset: str | Path,
    out: str | Path,
    checks: Sequence[Mapping[str, Any]] | None = None,
    title: str | None = None,
    *,
    raters: Any | None = None,
    no_raters: str = "",
) -> Path:
    """Write the page about a dataset folder to the file `out`, whole, and return it.

    checks: rows {"name", "status", "count", "message"}; by default `mmpo.pipeline.validate` makes them. raters: what
    `mmpo.annotate.agreement.rater_overview` found in the FEEDBACK that the pairs were made of, which PAIRS do not hold; without it
    no_raters says why there is none. The page holds what the build warned of, checks, margins and what each γ makes of them,
    lengths, raters, aspects, models, sources, duplicates, what was left out, and a browser of some EXAMPLES pairs. Every text is
    escaped, the only script is ours, nothing is loaded from elsewhere. UserError where the folder is no dataset or the page can't be
    written.
    """
    found = report_on(dataset, out, checks=checks, title=title, raters=raters, no_raters=no_raters, summarise=False)
    return Path(found["out"])


def report_on(
    dataset: str | Path,
    out: str | Path,
    *,
    raters: Any | None = None,
    no_raters: str = "",
    checks: Sequence[Mapping[str, Any]] | None = None,
    title: str | None = None,
    summarise: bool = True,
) -> dict[str, Any]:
    """`write_report`, and what the page says in numbers: `dataset_summary`, with the page's path under "out", which alone is returned
    where summarise is False."""
    folder, stood = on_disk(dataset), identity(out)
    reader = FiguresReader(folder, NEAR_PROMPTS)
    if checks is None:
        from mmpo.pipeline import validate  # pages are part of the package that its __init__ brings together

        checks = validate(folder, watch=reader.add)["checks"]
    # what the checks could not read either is named by reading it
    figures = reader.figures() if reader.done == reader.size else read_figures(folder, NEAR_PROMPTS)
    manifest = read_manifest(folder) if (folder / "manifest.json").is_file() else {}
    reasons = rejects(folder, 2)["reasons"] if manifest else {}
    values = _values(folder, figures, manifest, checks, raters, reasons)
    values |= {"title": title or f"Dataset {folder.resolve().name}", "no_raters": no_raters}
    page = write_whole(Path(out), render("dataset.html.j2", values), stood)
    found = dataset_summary(figures, checks, values["looks"], values["warnings"], reasons, raters) if summarise else {}
    return {"out": str(page), **found}


def _values(
    folder: Path,
    figures: PairFigures,
    manifest: Mapping[str, Any],
    checks: Sequence[Mapping[str, Any]],
    overview: Any | None,
    reasons: Mapping[str, Any],
) -> dict[str, Any]:
    training = figures.margin[figures.training]
    decided = np.sort(training[training > 0])
    gamma = gamma_for_mean_target(decided) if decided.size else None
    about = margin_figures(figures)
    length, duplicates = length_section(figures), duplicates_section(figures)
    chosen = choose(figures)
    shown = shown_pairs(folder, figures, chosen, None if overview is None else overview.of_pairs)
    json, most = payload(shown)
    code, policy = script("examples.js.j2")
    return {
        "numbers": _numbers(figures, gamma, about) + _ends(manifest.get("saturated", {})),
        "looks": _looks(figures, checks, length, duplicates, about, overview),
        "warnings": manifest.get("warnings", []),
        "suggested": gamma,
        "mean_target": MEAN_TARGET,
        "margins": margins_section(figures, gamma),
        "unsure": share(about, "unsure") if about["unsure"] is not None else None,
        "length": length,
        "raters": raters_section(overview),
        "votes": votes_section(figures),
        "aspects": aspects_section(overview),
        "models": models_section(figures),
        "sources": sources_section(figures, gamma),
        "duplicates": duplicates,
        "checks": checks_section(checks),
        "rejects": left_out_section(reasons),
        "samples": _samples(figures, shown, chosen),
        "browser": {"json": Markup(json), "script": code, "about": _about_examples(figures, shown, most)},
        "policy": policy,
    }


def _about_examples(figures: PairFigures, shown: Sequence[Any], most: int) -> str:
    return (
        f"{number(len(shown))} of {number(len(figures.margin))} pairs: the ends of margins, lengths and errors, ties, what "
        f"raters are split on, and a "
        f"sample of every source and size of margin, the same in every run. Texts longer than {most:,} characters are cut in "
        f"the middle, and where "
        "both replies begin alike at length, at the beginning."
    )


def _numbers(figures: PairFigures, gamma: float | None, about: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("prompts", number(figures.prompts)),
        *((f"pairs in {split}", number(count)) for split, count in figures.splits.items()),
        ("ties", f"{about['ties']:.1%}"),
        ("with a standard error", f"{about['known']:.0%}"),
        ("suggested γ", number(gamma)),
    ]


def _ends(saturated: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Grades at an end of their scale, over all sources, and those of them that a source clipped there."""
    known = [one for one in saturated.values() if one["at_ends"] is not None]
    grades = sum(one["grades"] for one in known)
    if not grades:
        return []
    clipped = sum(one["at_ends"] for one in known if one["transform"])
    ends = f"{sum(one['at_ends'] for one in known) / grades:.1%}"
    return [("grades at an end of their scale", ends), *([("clipped grades", number(clipped))] if clipped else [])]


def _looks(
    figures: PairFigures,
    checks: Sequence[Mapping[str, Any]],
    length: Mapping[str, Any],
    duplicates: Mapping[str, Any],
    about: Mapping[str, Any],
    overview: Any | None,
) -> list[dict[str, str]]:
    """What to look at first: status, words and the section, worst first."""
    found = [
        {"status": row["status"], "words": f"{row['name']}: {row['message']}", "where": SHOWN_IN.get(row["name"], "checks")}
        for row in checks
        if row["status"] in ("fail", "warn")
    ]
    if (
        length["longer"] is not None
        and length["leans"] != "no clear lean"
        and not any(row["words"].startswith("length bias") for row in found)
    ):
        found.append(
            {
                "status": "warn",
                "words": f"{length['leans']}: the longer reply is chosen in {percent(length['longer'])}",
                "where": "length",
            }
        )
    untied = figures.margin[figures.margin > 0]
    if len(untied) > 1 and untied.min() == untied.max():
        words = f"every untied pair has the margin {number(float(untied[0]))}: they say which reply is better, and not by how much"
        found.append({"status": "warn", "words": words, "where": "margins"})
    if about["unsure"] is not None and about["unsure"] > 0.5:
        words = f"{percent(about['unsure'])} of the untied pairs have a margin below twice its standard error"
        found.append({"status": "warn", "words": words, "where": "margins"})
    if duplicates["many"]:
        found.append({"status": "warn", "words": f"more than 1%: {'; '.join(duplicates['many'])}", "where": "duplicates"})
    for row in overview.raters if overview is not None else ():
        if row["agrees_95"] is None or row["decided"] < FEW_PAIRS:
            continue
        words = f"{row['name']} sides with the others in {share(row, 'agrees')} of {number(row['decided'])} pairs"
        if row["agrees_95"][1] < 0.5:
            found.append({"status": "fail", "words": f"{words}: against them", "where": "raters"})
        elif row["agrees_95"][0] <= 0.5:
            found.append({"status": "warn", "words": f"{words}: no better than a coin", "where": "raters"})
    for row in overview.aspects if overview is not None else ():
        if row["contradict_95"] and row["contradict_95"][0] > 0.5:
            both, often = f"{row['first']} and {row['second']}", share(row, "contradict")
            words = f"{both} prefer opposite replies in {often} of the pairs that both decide"
            found.append({"status": "warn", "words": words, "where": "aspects"})
    return sorted(found, key=lambda row: row["status"] != "fail")


def _samples(figures: PairFigures, shown: Sequence[Mapping[str, Any]], chosen: Mapping[int, Any]) -> list[dict[str, Any]]:
    """The pairs of the largest, a middle and the smallest margin among those shown."""
    order = np.argsort(figures.margin[list(chosen)], kind="stable")
    wanted = {int(order[-1]): "Largest margin", int(order[len(order) // 2]): "Middle margin", int(order[0]): "Smallest margin"}
    return [
        {
            "title": title, "margin": f"{shown[at]['quality_margin']:.4g}", "source": shown[at]["source"],
            **{name: cut(shown[at][name], SAMPLE) for name in ("prompt", "chosen", "rejected")},
        }
        for at, title in wanted.items()
    ]  # fmt: skip
