"""`mmpo report A B`: two versions of a dataset beside one another: what came, what went, whose margin or order changed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from mmpo.pipeline.margins import Floats, gamma_for_mean_target
from mmpo.pipeline.metrics import ratio_intervals
from mmpo.pipeline.metrics.summary import length_measures
from mmpo.pipeline.report.charts import Chart, counted, histogram
from mmpo.pipeline.report.dataset.examples import OF_EACH, first_rows, payload, scattered, shown_pairs
from mmpo.pipeline.report.dataset.figures import PairFigures, cluster_sums, ratio_rows, read_figures
from mmpo.pipeline.report.dataset.measures import DRAWS, length_figures, margin_figures
from mmpo.pipeline.report.dataset.sections import percent, share
from mmpo.pipeline.report.dataset.summary import pairs_summary
from mmpo.pipeline.report.page import number, render, script, table, with_interval, write_whole
from mmpo.pipeline.storage import identity, on_disk, read_manifest

BINS = 20
SAME = 1e-9
"""Of the larger of two margins: what differs by less is the same."""
IN_WORDS = ("normalisation", "evidence", "score", "score_range", "scales")
"""What of a manifest, beside its recipe, says what margins mean."""
UNITS = ("normalisation", "score", "scales", "margin_times")
"""Of a manifest, or of each source of a mixture: what gives margins their unit."""


@dataclass(frozen=True)
class Change:
    """The pairs of two versions, matched by their completions' ids, whichever of the two is chosen.

    kept: rows of A and of B, (kept,) each; went, came: rows of A, of B, that the other has not; before, after: margins of the kept
    pairs, both toward the reply that A chose, so that after < 0 is an order that turned.
    """

    kept: tuple[np.ndarray, np.ndarray]
    went: np.ndarray
    came: np.ndarray
    before: Floats
    after: Floats

    @property
    def turned(self) -> np.ndarray:
        """Which of the kept pairs have the other reply chosen now."""
        return (self.before > 0) & (self.after < 0)

    @property
    def moved(self) -> np.ndarray:
        """Which of the kept pairs have another margin, turned ones included."""
        return np.abs(self.before - self.after) > SAME * np.maximum(np.abs(self.before), np.abs(self.after))


def changes(one: PairFigures, other: PairFigures) -> Change:
    """What changed from one version to another."""
    _, left, right = np.intersect1d(one.pair, other.pair, return_indices=True)
    sign = np.where(one.turned[left] == other.turned[right], 1.0, -1.0)
    went, came = np.ones(len(one.pair), dtype=bool), np.ones(len(other.pair), dtype=bool)
    went[left], came[right] = False, False
    return Change((left, right), np.flatnonzero(went), np.flatnonzero(came), one.margin[left], sign * other.margin[right] + 0.0)


def write_versions(a: str | Path, b: str | Path, out: str | Path, title: str | None = None) -> Path:
    """Write the page about two versions of a dataset, the older one first, to the file `out`, whole, and return it. UserError where either
    is no dataset of pairs or the page can't be written."""
    return Path(compare_versions(a, b, out, title, summarise=False)["out"])


def compare_versions(
    a: str | Path, b: str | Path, out: str | Path, title: str | None = None, *, summarise: bool = True
) -> dict[str, Any]:
    """`write_versions`, and what the page says in numbers, the page's path alone where summarise is False.

    out; changes: rows {"what", "pairs", "of", "whose"}; options: rows {"option", "A", "B"} of what differs in the manifests, in words;
    sources: rows {"source", "A", "went", "kept", "came", "B"}; A, B: `pairs_summary` of each.
    """
    stood = identity(out)
    folders = (on_disk(a), on_disk(b))
    figures = [read_figures(folder) for folder in folders]
    manifests = [read_manifest(folder) if (folder / "manifest.json").is_file() else {} for folder in folders]
    change = changes(*figures)
    json, most = payload(_examples(folders, figures, change))
    code, policy = script("examples.js.j2")
    differing = options_rows(manifests[0], manifests[1])
    changed, sources = change_rows(figures[0], figures[1], change), _sources(figures[0], figures[1], change)
    values = {
        "title": title or f"{_name(folders[0])} and {_name(folders[1])}",
        "names": [str(folder) for folder in folders],
        "numbers": [
            ("pairs in both", number(len(change.before))), ("went", number(len(change.went))), ("came", number(len(change.came))),
            ("order turned", number(int(change.turned.sum()))), ("margin changed", number(int(change.moved.sum()))),
        ],
        "units": other_units(manifests[0], manifests[1]),
        "changes": table(("what", "pairs", "share"), changed, text=("what", "share")),
        "beside": table(("figure", "A", "B"), _beside(*figures), text=("figure", "A", "B")),
        "same": _agreement(figures[0], change),
        "options": table(("option", "A", "B"), differing, text=("option", "A", "B")),
        "sources": table(("source", "A", "went", "kept", "came", "B"), sources, text=("source",)),
        "charts": _charts(figures, change),
        "browser": {
            "json": Markup(json), "script": code,
            "about": "Of each kind of change up to "
            f"{2 * OF_EACH} pairs, the largest first. Texts longer than {most:,} characters are cut in the middle.",
        },
        "policy": policy,
    }  # fmt: skip
    page = str(write_whole(Path(out), render("versions.html.j2", values), stood))
    if not summarise:
        return {"out": page}
    rows = [{name: row[name] for name in ("what", "pairs", "of", "whose")} for row in changed]
    return {"out": page, "changes": rows, "options": differing, "sources": sources, **dict(zip("AB", map(pairs_summary, figures)))}


def _name(folder: Path) -> str:
    return folder.resolve().name


def change_rows(one: PairFigures, other: PairFigures, change: Change) -> list[dict[str, Any]]:
    """Rows {"what", "pairs", "of", "whose", "share"} of A's, of B's and of the kept pairs; share: in words."""
    left, right = change.kept
    both, before, after = len(left), change.before, change.after
    splits = int((one.split[left] != other.split[right]).sum())
    gone = len(np.setdiff1d(one.prompt_ids, other.prompt_ids))
    new = len(np.setdiff1d(other.prompt_ids, one.prompt_ids))

    def of(count: int, whole: int, whose: str) -> dict[str, Any]:
        return {"pairs": count, "of": whole, "whose": whose, "share": f"{percent(count / whole)} of {whose}" if whole else "–"}

    return [
        {"what": "went: in A only", **of(len(change.went), len(one.pair), "A's pairs")},
        {"what": "came: in B only", **of(len(change.came), len(other.pair), "B's pairs")},
        {"what": "in both", **of(both, len(one.pair), "A's pairs")},
        {"what": "in both, with another margin", **of(int(change.moved.sum()), both, "those in both")},
        {"what": "in both, the other reply chosen", **of(int(change.turned.sum()), both, "those in both")},
        {"what": "a tie in B alone", **of(int(((before > 0) & (after == 0)).sum()), both, "those in both")},
        {"what": "a tie in A alone", **of(int(((before == 0) & (after != 0)).sum()), both, "those in both")},
        {"what": "in another split", **of(splits, both, "those in both")},
        {"what": "prompts that went", **of(gone, one.prompts, "A's prompts")},
        {"what": "prompts that came", **of(new, other.prompts, "B's prompts")},
    ]


def options_rows(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[dict[str, str]]:
    """What differs between two manifests: options of the recipe, what margins mean, and the inputs by name and digest."""
    rows = []
    for mine, theirs in [
        (one.get("recipe") or {}, other.get("recipe") or {}),
        *[({k: one.get(k)}, {k: other.get(k)}) for k in IN_WORDS],
    ]:
        for name in sorted({*mine, *theirs}):
            if mine.get(name) != theirs.get(name):
                rows.append({"option": name, "A": _words(mine.get(name)), "B": _words(theirs.get(name))})
    files = [{entry["name"]: entry.get("digest") for entry in manifest.get("inputs") or []} for manifest in (one, other)]
    for name in sorted({*files[0], *files[1]}):
        mine, theirs = (known.get(name) for known in files)
        if mine != theirs:
            there = [("absent" if found is None else f"digest {found[:12]}") for found in (mine, theirs)]
            rows.append({"option": f"input {name}", "A": there[0], "B": there[1]})
    return rows


def other_units(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether margins of two datasets are in different units, by their manifests: those of a source that both have, else those of any
    two."""
    mine, theirs = ({name: _unit(about) for name, about in (of.get("mixture") or {"": of}).items()} for of in (one, other))
    if both := mine.keys() & theirs.keys():
        return any(mine[name] != theirs[name] for name in both)
    return any(unit != theirs[name] for unit in mine.values() for name in theirs)


def _unit(about: Mapping[str, Any]) -> list[Any]:
    return [about.get(key, 1.0 if key == "margin_times" else None) for key in UNITS]


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_words(one)}" for name, one in value.items()) or "–"
    if isinstance(value, list):
        return ", ".join(map(_words, value)) or "–"
    return "–" if value is None else str(value)


def _beside(*both: PairFigures) -> list[dict[str, str]]:
    columns = []
    for figures in both:
        about, length = margin_figures(figures), length_figures(figures)
        training = figures.margin[figures.training]
        decided = training[training > 0]
        [mean] = ratio_rows(
            *cluster_sums(figures, np.zeros(len(figures.margin), np.int8), 1, figures.margin, np.ones(len(figures.margin))),
            shares=False,
        )
        columns.append(
            {
                "prompts": number(figures.prompts), "pairs": number(len(figures.margin)),
                **{f"in {split}": number(count) for split, count in figures.splits.items()},
                "replies": number(len(figures.completions.text)), "models": number(len(figures.names["model"])),
                "ties": share(about, "ties"), "mean margin": with_interval(mean, "share"),
                "median margin": number(float(np.median(figures.margin))),
                "with a standard error": percent(about["known"]), "below twice that error": share(about, "unsure"),
                "longer reply chosen": share(length, "longer"), "rank correlation with length": with_interval(length, "correlation"),
                "suggested γ": number(gamma_for_mean_target(decided) if decided.size else None),
            }
        )  # fmt: skip
    return [{"figure": name, "A": columns[0][name], "B": columns[1][name]} for name in columns[0]]


def _agreement(one: PairFigures, change: Change) -> str:
    """How far the kept pairs' margins are in the same order, and how much they moved, in words."""
    if not len(change.before):
        return "The two have no pair in common: what stands below compares two sets of pairs, not two versions of one."
    rows = change.kept[0]
    found = length_measures(
        change.before, np.abs(change.before), change.after, np.unique(one.prompt[rows], return_inverse=True)[1], DRAWS
    )
    picked = np.zeros(len(one.margin))
    picked[rows] = 1.0
    moved = np.zeros(len(one.margin))
    moved[rows] = change.after - change.before
    [mean] = ratio_rows(*cluster_sums(one, np.zeros(len(moved), np.int8), 1, moved, picked), shares=False)
    return (
        f"Of the {number(len(rows))} pairs in both, margins changed by {with_interval(mean, 'share')} in the mean, toward the "
        f"reply that A chose; "
        f"rank correlation of the two margins: {with_interval(found, 'spearman')}."
    )


def _sources(one: PairFigures, other: PairFigures, change: Change) -> list[dict[str, Any]]:
    names = sorted({*one.names["source"], *other.names["source"]})
    place = {name: at for at, name in enumerate(names)}

    def sizes(figures: PairFigures, rows: np.ndarray | slice) -> np.ndarray:
        known = np.array([place[name] for name in figures.names["source"]], dtype=np.int64)
        return np.bincount(known[figures.source[rows]], minlength=len(names))

    every = slice(None)
    counts = {
        "A": sizes(one, every), "went": sizes(one, change.went), "kept": sizes(one, change.kept[0]), "came": sizes(other, change.came),
        "B": sizes(other, every),
    }  # fmt: skip
    rows = [{"source": name, **{key: int(values[at]) for key, values in counts.items()}} for at, name in enumerate(names)]
    return sorted(rows, key=lambda row: -max(row["A"], row["B"]))[:60]


def _charts(both: list[PairFigures], change: Change) -> list[Chart]:
    top = max(float(np.quantile(figures.margin, 0.995)) for figures in both) or 1.0
    edges = np.linspace(0, top, BINS + 1)
    charts = [
        histogram(
            [(name, counted(figures.margin, edges)) for name, figures in zip("AB", both, strict=True)], edges,
            x_label="quality margin", shares=True,
            intervals=[_bin_intervals(figures, edges) for figures in both],
            caption="Quality margins of all pairs of A and of B, as shares, with 95% intervals over prompts; the largest stand "
            "in the last bar.",
            advice="Bars whose intervals part: the versions differ by more than chance; look whether options or inputs explain it.",
        )
    ]  # fmt: skip
    if len(change.before):
        difference = change.after - change.before
        far = float(np.quantile(np.abs(difference), 0.995)) or 1.0
        edges = np.linspace(-far, far, 2 * BINS + 2)
        charts.append(
            histogram(
                [("pairs", counted(difference, edges))], edges, x_label="margin in B − margin in A, toward A's chosen reply", rules=(0.0,),
                caption="How the margins of the pairs in both changed.",
                advice="A heap off the middle: grades were added, left out or scaled otherwise. Nothing but the middle: the "
                "versions differ in their pairs alone.",
            )
        )  # fmt: skip
    return charts


def _bin_intervals(figures: PairFigures, edges: Floats) -> list[list[float]]:
    """The interval of the share of pairs in each bin; of too few prompts the share itself."""
    which = np.clip(np.searchsorted(edges, figures.margin, side="right") - 1, 0, len(edges) - 2)
    [value] = cluster_sums(figures, which, len(edges) - 1, np.ones(len(which)))
    weight = np.repeat(value.sum(axis=1, keepdims=True), value.shape[1], axis=1)
    shares = value.sum(axis=0) / max(float(value.sum()), 1.0)
    return [bounds or [one, one] for bounds, one in zip(ratio_intervals(value, weight), shares.tolist(), strict=True)]


def _examples(folders: tuple[Path, Path], both: list[PairFigures], change: Change) -> list[dict[str, Any]]:
    """Pairs that turned, whose margins changed most, that went and that came."""
    one, other = both
    moved = np.zeros(len(one.margin))
    moved[change.kept[0]] = np.abs(change.after - change.before)
    place = np.full(len(one.margin), -1)
    place[change.kept[0]] = np.arange(len(change.before))
    turned, differing = change.kept[0][change.turned], change.kept[0][change.moved]
    of_one: dict[int, list[str]] = {}
    for words, rows in (("the other reply is chosen in B", turned), ("the margin changed most", differing)):
        for row in first_rows(one, rows, -moved, scattered(one.pair), 2 * OF_EACH):
            of_one.setdefault(row, []).append(words)
    for row in first_rows(one, change.went, -one.margin, scattered(one.pair), 2 * OF_EACH):
        of_one.setdefault(row, []).append("went: in A only")
    of_other = {
        row: ["came: in B only"] for row in first_rows(other, change.came, -other.margin, scattered(other.pair), 2 * OF_EACH)
    }
    shown = shown_pairs(folders[0], one, of_one)
    for row, pair in zip(sorted(of_one), shown, strict=True):
        if (at := place[row]) >= 0:
            then, now = (number(float(margin[at])) for margin in (change.before, change.after))
            pair["note"] = f"Margin {then} in A and {now} in B, toward the reply that A chose"
    return [*shown, *shown_pairs(folders[1], other, of_other)]
