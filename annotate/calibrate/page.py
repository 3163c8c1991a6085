"""The page of a calibration: reliability before and after, the maps, what human grades bought and what more would buy."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmpo.annotate.calibrate.overlap import PEOPLE
from mmpo.pipeline.report import COLOURS, Picture, draw, number, render, table, with_interval, write_whole

RIVALS = ("jury", "in its place", "cross-entropy", "more than the jury")


class Words(NamedTuple):
    """How those are called whose margins are the measure: people, or raters by name. person: one of them; graded, grades: the pairs that
    they graded too, and how many grades these have.
    """

    who: str
    person: str
    graded: str
    grades: str

    @classmethod
    def of(cls, who: str) -> "Words":
        """The words for what figures call `onto`."""
        people = who == PEOPLE
        return cls(who, *(("a person", "human pairs", "human grades") if people else (who, "shared pairs", f"grades by {who}")))

    @property
    def held_out(self) -> tuple[str, ...]:
        """Headings of figures on held-out pairs."""
        return ("grader", "pairs", self.graded, "map", "cross-entropy raw", "calibrated", "ECE raw", "ECE calibrated")

    @property
    def units(self) -> tuple[str, ...]:
        """Headings of what a map does."""
        return ("grader", "scale", "bias", f"γ of {self.who}'s votes", "error of a margin", "outside")

    @property
    def more(self) -> tuple[str, ...]:
        """Headings of what further pairs would buy."""
        return ("grader", self.graded, "cross-entropy, final map", "error of the fit", "standard error of a margin")

    @property
    def estimates(self) -> tuple[str, ...]:
        """Headings of estimates over all pairs."""
        return ("grader", "of", "estimate", f"{self.who} alone", "pairs", self.graded)


def write_page(summary: Mapping[str, Any], out: str | Path) -> Path:
    """Write the page of what `calibrate` returned to the file `out` and return it. UserError where it can't be written."""
    graders: Mapping[str, Mapping[str, Any]] = summary["graders"]
    rows, words = shown_rows(graders), Words.of(summary["onto"])
    values = {
        "title": f"Graders calibrated to {words.who}",
        "words": words,
        "about": f"{', '.join(graders)} onto {', '.join(summary['people'])}",
        "numbers": [
            ("prompts", number(summary["prompts"])),
            ("graders", number(len(graders))),
            (words.graded, number(max(one["human_pairs"] for one in graders.values()))),
            (words.grades, number(max(one["human_grades"] for one in graders.values()))),
        ],
        "sentences": [sentence for name, one in graders.items() for sentence in sentences(name, one)],
        "held_out": table(words.held_out, rows, text=("grader", "map")),
        "units": table(words.units, rows, text=("grader",)),
        "more": table(words.more, [row for name, one in graders.items() for row in _more(name, one)], text=("grader",)),
        "jury": table(
            ("instead of the jury", "cross-entropy", "more than the jury"), _rivals(graders), text=("instead of the jury",)
        ),
        "estimates": table(words.estimates, _estimates(graders, words), text=("grader", "of")),
        "left_out": table(
            ("grader", "why"), [{"grader": k, "why": v} for k, v in summary["left_out"].items()], text=("grader", "why")
        ),
        "plots": [_picture(name, one) for name, one in graders.items()],
    }
    return write_whole(Path(out), render("calibration.html.j2", values))


def sentences(name: str, one: Mapping[str, Any]) -> list[str]:
    """What the figures of a grader say, in words."""
    (low, high), words = one["gain_over_coin_95"], Words.of(one["onto"])
    gain = f"{_signed(one['gain_over_coin'])} nats a pair over a coin (95% interval {_signed(low)} to {_signed(high)})"
    if one["knows"]:
        said = [
            f"{name} tells something of {words.who}: {gain}. Cross-entropy {one['cross_entropy']['raw']:.3f} → "
            f"{one['cross_entropy']['calibrated']:.3f}, ECE {one['ece']['raw']:.3f} → {one['ece']['calibrated']:.3f} on held-out pairs."
        ]
    else:
        said = [
            f"{name} can't be told from a coin on {one['human_pairs']:,} {words.graded}: {gain}. Don't train on it as if it knew something "
            f"of {words.who}, unless more of them show that it does."
        ]
    said += [*_worse(name, one), *_position(name, one, words)]
    if (known := one["agreement"]["people_only_95"]) is not None and known[1] < 0.5:
        said.append(
            f"{name} and {words.who} agree in {100 * one['agreement']['people_only']:.0f}% of the pairs, less often than with a coin: is "
            "its scale the other way round?"
        )
    if one["margin_se"]["upper_bound"]:
        said.append(
            f"The error of {name}'s margins is an upper bound: too few pairs have two grades by {words.who}, so that {words.who}'s own "
            "noise is still in it."
        )
    if one["outside"]:
        said.append(
            f"{one['outside']:,} of its {one['pairs']:,} margins are larger than any that {words.who} graded too: the map is stretched "
            "there."
        )
    return said


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _worse(name: str, one: Mapping[str, Any]) -> list[str]:
    """That γ auto does better on held-out pairs, where it does."""
    gain, (low, high), ece = one["gain_over_auto"], one["gain_over_auto_95"], one["ece"]
    eces = f"ECE {ece['raw']:.3f} against {ece['calibrated']:.3f}"
    written = f" {name}'s calibrated margins are written all the same." if one.get("written") else ""
    if gain < 0:
        interval = f"95% interval {_signed(-high)} to {_signed(-low)}" + ("; it may be chance" if high > 0 else "")
        return [f"γ auto did better than the map on held-out pairs, by {-gain:.3f} nats a pair ({interval}), {eces}." + written]
    if ece["calibrated"] > ece["raw"]:
        lower = f"the map's cross-entropy is lower by {gain:.3f} (95% interval {_signed(low)} to {_signed(high)})"
        return [f"γ auto has the lower ECE on held-out pairs, {eces}; {lower}." + written]
    return []


def _position(name: str, one: Mapping[str, Any], words: Words) -> list[str]:
    """From how many pairs the position bias comes, or why it is not known."""
    said = []
    if one["order_is_quality"]:
        tail = "only pairs asked about in both orders do" if one["bias_pairs"] else "none is taken off; ask it in both orders"
        said = [
            f"{words.who}'s votes prefer what {name} was shown first in {100 * one['first_preferred']:.0f}% of the pairs that it was asked "
            f"about in one order: these can't tell its position bias from quality, and {tail}."
        ]
    if one["bias"] is None:
        return said
    both, theirs = one["bias_pairs"]["both_orders"], one["bias_pairs"]["one_order"]
    error = "unknown" if one["bias_se"] is None else f"{one['bias_se']:.3f}"
    parts = [f"{both:,} pair{'s' * (both != 1)} asked about in both orders"] * bool(both)
    parts += [f"{theirs:,} asked about in one that {words.who} graded"] * bool(theirs)
    return [
        *said,
        f"The position bias of {name}, {_signed(one['bias'])} (standard error {error}), comes from {' and '.join(parts)}.",
    ]


def _row(name: str, one: Mapping[str, Any]) -> dict[str, Any]:
    bound = "≤ " if one["margin_se"]["upper_bound"] else ""
    entropy, ece = one["cross_entropy"], one["ece"]
    method = one["method"] + (" + length" if one["length"] is not None else "")
    held_out = name, one["pairs"], one["human_pairs"], method, entropy["raw"], entropy["calibrated"], ece["raw"], ece["calibrated"]
    units = name, one["scale"], one["bias"], one["gamma"], bound + number(one["margin_se"]["mean"]), one["outside"]
    words = Words.of(one["onto"])
    return dict(zip((*words.held_out, *words.units), (*held_out, *units), strict=True))


def _more(name: str, one: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows, headings = [], Words.of(one["onto"]).more
    for row in one["more"]["foretold"]:
        pairs = f"{one['human_pairs']:,}" + (f" + {row['more']}" if row["more"] else "")
        rows.append(dict(zip(headings, (name, pairs, row["cross_entropy"], row["fit_error"], row["margin_se"]), strict=True)))
    return rows


def _rivals(graders: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for name, one in graders.items():
        for rival, row in one.get("against", {}).items():
            more = "{:+.3f} [{:+.3f}, {:+.3f}]".format(row["more_than_jury"], *row["more_than_jury_95"]).replace("-", "−")
            rows.append(dict(zip(RIVALS, (name, rival, row["cross_entropy"], more), strict=True)))
    return rows


def _estimates(graders: Mapping[str, Mapping[str, Any]], words: Words) -> list[dict[str, Any]]:
    rows = []
    for name, one in graders.items():
        for of, row in [(f"agreement with {words.person}", one["agreement"]), *((m["model"], m) for m in one.get("models", ()))]:
            shown = (name, of, with_interval(row, "value"), with_interval(row, "people_only"), row["pairs"], row["human_pairs"])
            rows.append(dict(zip(words.estimates, shown, strict=True)))
    return rows


def _picture(name: str, one: Mapping[str, Any]) -> Picture:
    words = Words.of(one["onto"])

    def reliability(axes: Any) -> None:
        axes.plot((0.5, 1), (0.5, 1), color="#9aa4b1", linewidth=1, linestyle="--")
        series = {"raw, γ auto": one["reliability"]["raw"], "calibrated": one["reliability"]["calibrated"]}
        for colour, (label, rows) in zip(COLOURS[1::-1], series.items(), strict=True):
            total = sum(row["weight"] for row in rows)
            x, y = ([row[key] for row in rows] for key in ("mean_x", "mean_y"))
            axes.plot(x, y, color=colour, linewidth=1.2, alpha=0.7)
            axes.scatter(
                x, y, s=[12 + 240 * row["weight"] / total for row in rows], color=colour, alpha=0.75, label=label, linewidths=0
            )
        axes.set(xlabel="said: chance of the better one", ylabel=f"share of {words.who}'s votes", xlim=(0.48, 1.02))
        axes.set_title(name, fontsize=10)
        axes.legend(fontsize=8.5, markerscale=0.6)

    def curve(axes: Any) -> None:
        rows = one["map"]
        axes.axhline(0, color="#9aa4b1", linewidth=0.8)
        axes.axvline(0, color="#9aa4b1", linewidth=0.8)
        axes.plot([row["margin"] for row in rows], [row["expected"] for row in rows], color=COLOURS[0])
        axes.set(xlabel=f"margin of {name}", ylabel=f"{words.who}'s expected margin")

    def learning(axes: Any) -> None:
        rows = one["more"]["curve"]
        axes.plot(
            [row["human_pairs"] for row in rows],
            [row["cross_entropy"] for row in rows],
            marker="o",
            color=COLOURS[0],
            label="final map",
        )
        ahead = one["more"]["foretold"]
        x = [one["human_pairs"] + row["more"] for row in ahead]
        axes.plot(x, [row["cross_entropy"] for row in ahead], marker="o", linestyle="--", color=COLOURS[1], label="foretold")
        axes.axhline(one["coin"], color="#9aa4b1", linewidth=1, linestyle=":")
        axes.set(xlabel=words.graded, ylabel="cross-entropy, nats")
        axes.legend(fontsize=8.5)

    plots = [reliability, *([curve] if one["map"] else []), learning]
    shown = "held-out pairs before and after, a calibrated grader lies on the dashed line; " + (
        "the map, for texts of one length; " if one["map"] else ""
    )
    caption = f"{name}: {shown}cross-entropy by {words.graded}, dotted: a coin."
    return draw(f"calibration-{name}", caption, *plots, size=(12.6 / len(plots), 3.3))


def shown_rows(graders: Mapping[str, Mapping[str, Any]]) -> Sequence[dict[str, Any]]:
    """A row per grader, for a terminal."""
    return [_row(name, one) for name, one in graders.items()]
