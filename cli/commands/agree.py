"""`mmpo agree FEEDBACK`: agreement among raters, judges against people; `mmpo calibrate FEEDBACK`: graders' margins onto people's; `mmpo
select FEEDBACK`: which pairs deserve a person next.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mmpo.annotate.calibrate import CalibrateOptions
from mmpo.annotate.select import SelectOptions
from mmpo.cli.asking import counted
from mmpo.cli.flags import with_flags
from mmpo.cli.output import AsJson, print_json, print_rows, say
from mmpo.cli.selecting import featurize
from mmpo.pipeline.errors import printable
from mmpo.pipeline.options import LISTED, NUMBER, Flags, options, options_from
from mmpo.pipeline.progress import ProgressReporter

MOST = 40
"""Rows of a table that are printed; --json has all."""

MEASURES = {
    "accuracy": "accuracy",
    "spearman": "Spearman",
    "alpha_nominal": "α nominal",
    "alpha_ordinal": "α ordinal",
    "alpha_interval": "α interval",
}
BEST_GAMMA = (
    "best γ: the one at which σ(γ·margin) makes people's votes on these same pairs most likely, in 1/score-point of that judge. "
    "`mmpo gamma FEEDBACK` gives the γ of the judges' mean margin with its interval, beside the conventions and what they make of the "
    "margins; `mmpo train --gamma` takes it\n"
)
SCALES = {
    "range": "margins divided by the widest possible one of each rater's scale",
    "rms": "margins divided by each rater's root mean square margin, because a scale is unbounded",
}


@options
class AgreeOptions:
    """Which grades are compared; `mmpo.annotate.agree` takes the same by name."""

    evidence: Annotated[str, Flags("--from", "--evidence")] = "auto"
    """auto (all there is), comparisons, ratings or both."""
    kinds: Annotated[tuple[str, ...] | None, LISTED, Flags("--kind", "--kinds")] = None
    """Keep raters of these kinds only: human,ai,reward_model."""
    raters: Annotated[tuple[str, ...] | None, LISTED, Flags("--rater")] = None
    """Keep these raters only, separated by commas."""
    aspects: Annotated[tuple[str, ...] | None, LISTED, Flags("--aspect", "--aspects")] = None
    """Keep these aspects only, separated by commas."""
    against: str | None = None
    """The reference rater: a rater, or human for people's mean (the default where people are among them)."""
    bootstrap: Annotated[int, NUMBER] = 1000
    """Draws of prompts behind each 95% interval; 0 for none."""
    seed: Annotated[int, NUMBER] = 0
    """Seed of the draws."""


@with_flags(AgreeOptions)
def agree(
    feedback: Annotated[
        Path, typer.Argument(metavar="FEEDBACK", help="A folder that `mmpo build --feedback-only` or a judge wrote.")
    ],
    *,
    as_json: AsJson = False,
    given: dict[str, Any],
) -> None:
    """Agreement among raters in signed margins: accuracy, rank correlation, Krippendorff's α; position and length bias; calibration.

    A margin and its mirror image count both, so that it doesn't matter which completion is called the first.
    """
    chosen = options_from(AgreeOptions, given, flags=True)
    from mmpo.annotate.agreement import agree as measure

    with ProgressReporter("agree", "comparisons") as progress:
        summary = measure(feedback, **vars(chosen), progress=progress)
    _print_raters(summary)
    _print_agreement(summary)
    _print_biases(summary)
    _print_judges(summary)
    print_json(summary, as_json)


def _table(title: str, columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> None:
    print_rows(title, rows, columns, MOST)
    if rows:
        say("")


def _print_raters(summary: Mapping[str, Any]) -> None:
    say(f"{summary['units']:,} pairs of completions on {summary['prompts']:,} prompts; aspects: {', '.join(summary['aspects'])}\n")
    columns = {"name": "rater", "kind": "kind", "units": "pairs", "ties": "ties", "mean_margin": "mean |margin|"}
    columns |= {"mean_share": "of its range"} if summary["scale"] == "range" else {}
    _table("raters", {**columns, "spread": "spread", "position": "toward first", "longer": "prefers longer"}, summary["raters"])


def _print_agreement(summary: Mapping[str, Any]) -> None:
    if not summary["pairs"] and not summary["against"]:
        say(f"agreement needs two raters; {summary['raters'][0]['name']} is the only one here\n")
        return
    counts = {"units": "pairs", "decided": "no ties"}
    _table("two by two, with 95% intervals", {"first": "rater", "second": "rater", **counts, **MEASURES}, summary["pairs"])
    # With one rater behind the reference the table of twos has said it all.
    if any(row["others"] > 1 for row in summary["against"]) or not summary["pairs"]:
        title = f"against {_reference(summary)}"
        _table(title, {"name": "rater", "kind": "kind", "others": "raters in it", **counts, **MEASURES}, summary["against"])
    groups = [{"group": name, **row} for name, row in summary["overall"].items() if row]
    groups = [row for row in groups if row["group"] == "all" or row["raters"] < summary["overall"]["all"]["raters"]]
    alphas = {key: heading for key, heading in MEASURES.items() if key.startswith("alpha")}
    _table("all at once", {"group": "group", "raters": "raters", "units": "pairs", **alphas}, groups)
    say(f"α interval and ordinal: {SCALES[summary['scale']]}; α nominal: better, tie or worse\n")


def _reference(summary: Mapping[str, Any]) -> str:
    return "the mean of people (of the other people for a person)" if summary["yardstick"] == "human" else summary["yardstick"]


def _print_biases(summary: Mapping[str, Any]) -> None:
    columns = {"name": "rater", "orders": "orders", "units": "pairs", "toward_first": "toward first", "se": "se"}
    columns |= {"flips": "verdict flips", "to_first": "to first", "to_second": "to second"}
    severe = {
        "name": "rater",
        "kind": "kind",
        "items": "rated",
        "scale": "scale",
        "mean": "mean score",
        "shared": "rated on it by others too",
    }
    _table("severity: how much lower than others", {**severe, "severity": "severity", "se": "se"}, summary["severity"])
    _table("position: mean gap toward the completion shown first", columns, summary["position"])
    columns = {
        "name": "rater",
        "kind": "kind",
        "units": "pairs",
        "longer": "prefers longer",
        "spearman_length": "Spearman with length",
    }
    if summary["yardstick"] is not None:
        columns |= {"decided": "against reference", "accuracy": "accuracy", "longest": "longest wins"}
        columns |= {"accuracy_longer": "better is longer", "accuracy_shorter": "better is shorter"}
    title = "length" if summary["yardstick"] is None else f"length, and accuracy against {_reference(summary)}"
    _table(title, columns, summary["length"])


def _print_judges(summary: Mapping[str, Any]) -> None:
    columns = {"name": "judge", "units": "pairs", "votes": "votes", "gamma": "best γ", "ece_vote": "ECE to votes"}
    columns |= {"cross_entropy": "cross-entropy", "coin": "of a coin"}
    _table("judges' margins against people's votes, as probabilities σ(γ·margin)", columns, summary["calibration"])
    if summary["calibration"]:
        say(BEST_GAMMA)
    bins = {"low": "from", "high": "to", "units": "pairs", "predicted": "predicted", "observed": "observed"}
    for row in summary["calibration"][:MOST]:
        _table(f"{row['name']}, by |margin|", bins, row["bins"])
    columns = {
        "name": "rater",
        "items": "asked again",
        "grades": "grades",
        "mean_difference": "mean difference",
        "equal": "the same",
    }
    _table("the same question again", columns, summary["consistency"])


@with_flags(CalibrateOptions)
def calibrate(
    feedback: Annotated[
        Path, typer.Argument(metavar="FEEDBACK", help="A folder with people's grades and others' of the same completions.")
    ],
    *,
    as_json: AsJson = False,
    given: dict[str, Any],
) -> None:
    """Map each judge's or reward model's margins onto people's, by the pairs that both graded; say what is known of them.

    Every map is odd and never falls; held-out prompts choose it. With --out, NAME@human (NAME@RATER with --to RATER) stands in the FEEDBACK
    written: `mmpo build OUT --format feedback --rater NAME@human --out pairs` makes pairs with margins in people's units and their errors.
    """
    print_json(run_calibrate(feedback, options_from(CalibrateOptions, given, flags=True)), as_json)


def run_calibrate(feedback: Path, options: CalibrateOptions) -> dict[str, Any]:
    """Calibrate, with progress; the summary, which is also said."""
    from mmpo.annotate.calibrate import calibrate as measure
    from mmpo.annotate.calibrate import sentences, shown_rows

    with ProgressReporter("calibrate", "graders") as progress:
        summary = measure(feedback, **vars(options), progress=progress)
    print_rows(f"onto {', '.join(summary['people'])}, on held-out prompts", shown_rows(summary["graders"]))
    for name, figures in summary["graders"].items():
        for sentence in sentences(name, figures):
            say(sentence)
    for name, reason in summary["left_out"].items():
        say(f"{name} is not calibrated: {reason}")
    if "out" in summary:
        say(f"page: {summary['page']}")
        for name, rows in summary["rows"].items():
            say(f"{name}: {rows:,} calibrated margins in {summary['out']}")
        if not summary["rows"]:
            say(
                f"no grader is shown to know anything of {summary['onto']}, and none was written; --unproven keep writes them all the same"
            )
    return summary


SHOWN = 10
"""Chosen pairs that are printed; the file has all."""


@with_flags(SelectOptions)
def select(
    feedback: Annotated[Path, typer.Argument(metavar="FEEDBACK", help="A FEEDBACK folder, with or without grades.")],
    *,
    out: Annotated[Path, typer.Option(help="The list to write, .jsonl or .csv, the most urgent pair first.")],
    as_json: AsJson = False,
    given: dict[str, Any],
) -> None:
    """List the pairs of completions that deserve a person next, with the reason and what it was made of.

    A column `gap` filled in (above 0: the first is better), `mmpo build OUT --format csv --scale=-3:3` reads the list; `mmpo argilla push
    --select` hands the same pairs out on a page. Example: mmpo select scored --by model-disagreement --limit 200 --out next.jsonl
    """
    chosen = options_from(SelectOptions, given, flags=True)
    from mmpo.annotate.select import select as choose

    with ProgressReporter("select", "pairs") as progress:
        summary = choose(feedback, out, featurize=featurize, progress=progress, **vars(chosen))
    columns = ("rank", "score", "first_model", "second_model")
    rows = [{**{name: row[name] for name in columns}, "prompt": _start(row["prompt"])} for row in summary["pairs"]]
    print_rows(f"by {summary['by']}", rows, most=SHOWN)
    say(f"{len(rows):,} of {summary['candidates']:,} pairs of {summary['prompts']:,} prompts: {counted(summary['reasons'])}")
    if summary["left_out"]:
        say(f"left out: {counted(summary['left_out'])}")
    if about := summary["fitted"]:
        say(
            f"head on {about['width']} features ({about['features']}), fitted to {about['people']:,} pairs graded by "
            f"{', '.join(chosen.to)} and begun from {about['others']:,} graded by others; {about['looked_at']:,} pairs looked at"
        )
    say(f"pairs: {summary['out']}")
    print_json({**summary, "pairs": len(rows)}, as_json)


def _start(prompt: list[dict[str, Any]]) -> str:
    """The beginning of what the user says last."""
    text = next((one["content"] for one in reversed(prompt) if one["role"] == "user"), "")
    return printable(" ".join(text.split()), 60)
