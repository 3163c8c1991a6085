"""`mmpo validate`, `mmpo rejects`, `mmpo gamma`: looking at a dataset."""

from pathlib import Path
from typing import Annotated

import orjson
import typer

from mmpo.cli.output import AsJson, print_json, print_rows, say, shown

FITS = (
    "A fit is the γ under which those votes are most likely: what the margins are worth to those voters, and no promise of accuracy. "
    "Margins with a rater left out are noisier than those of all raters, whose γ is a little larger."
)
Dataset = Annotated[Path, typer.Argument(metavar="DIR", help="A dataset folder that `mmpo build` wrote.")]


def validate(
    dataset: Dataset,
    gamma: Annotated[
        str | None, typer.Option(metavar="NUMBER", help="Check the saturation of the targets at this γ, or at auto, auto:.9.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings fail too.")] = False,
    as_json: AsJson = False,
) -> int:
    """Check a dataset: the tables, leakage across splits, duplicates, margins, saturation, length bias, ties.

    Exit status 2 if a check fails (with --strict: or warns).
    """
    from mmpo.pipeline import validate as run_checks
    from mmpo.pipeline.storage import name_of

    summary = run_checks(dataset, gamma=gamma, strict=strict)
    print_rows("", summary["checks"], {"status": "status", "name": "check", "count": "count", "message": ""})
    print_json(summary, as_json)
    failed = [check["name"] for check in summary["checks"] if check["status"] == "fail"]
    warned = [check["name"] for check in summary["checks"] if check["status"] == "warn"]
    if summary["ok"]:
        say(f"{name_of(dataset)}: ok" + (f", {len(warned)} warnings" if warned else ""))
        return 0
    say(f"error: {name_of(dataset)} does not pass: {', '.join(failed or warned)}")
    return 2


def rejects(
    dataset: Dataset,
    examples: Annotated[int, typer.Option(min=0, help="How many examples of each reason.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Show what a build left out: how many for each reason, and the first of them with file, row and details."""
    from mmpo.pipeline.report import rejects as left_out

    summary = left_out(dataset, examples)
    rows = [{"reason": reason, **entry} for reason, entry in summary["reasons"].items()]
    for title, kept in (("left out", False), ("repaired and kept", True)):
        some = [row for row in rows if (row["stage"] == "repair") == kept]
        print_rows(title, some, {name: name for name in ("reason", "unit", "stage", "count", "share")})
    for row in rows:
        for example in row["examples"]:
            where = f"{example['file']}, row {example['row']}" if example["file"] else ""
            details = orjson.dumps(example["details"]).decode() if example["details"] else ""
            say(": ".join(filter(None, (row["reason"], where, details))))
    if not rows:
        say("nothing was left out")
    print_json(summary, as_json)


def gamma(
    dataset: Annotated[
        Path, typer.Argument(metavar="DIR", help="A dataset folder of pairs, or of FEEDBACK: then single grades are fitted to.")
    ],
    votes: Annotated[
        Path | None,
        typer.Option(help="Parquet with chosen_id, rejected_id, preferring, raters of raters outside the margins, to fit γ to."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Suggest γ: the conventions, the fits to independent votes with 95% intervals, and what each γ makes of the margins.

    The suggestion is a convention (the γ of a stated mean target over the non-tied training pairs), not a fit.
    """
    from mmpo.pipeline.report import suggest_gamma

    summary = suggest_gamma(dataset, votes)
    of, voted = summary["pairs_of"], summary["votes_on"]
    for name in ("gamma", "mean_target", "pairs", "ties"):
        say(f"{name.replace('_', ' ')}: {shown(summary[name])}" + f" ({of})" * (name == "pairs"))
    print_rows(f"margin quantiles of {of}", summary["margin_quantiles"])
    columns = {"name": "convention", "gamma": "γ", "mean_target": "mean target", "saturated": "past .95", "unit": "unit"}
    print_rows(f"conventions, on {of}", summary["conventions"], columns)
    columns = {"source": "source", "margins_of": "margins of", "votes_of": "votes of", "pairs": "pairs", "prompts": "prompts"}
    columns |= {
        "with_margin": "with margin",
        "gamma": "γ",
        "mean_target": "mean target",
        "cross_entropy": "nats per vote",
        "interval": "interval",
    }
    also = "" if voted == of else f"; mean target: of {of}"
    print_rows(f"fits to votes that made no part of the margin, on {voted}, with 95% intervals{also}", summary["fits"], columns)
    if summary["fits"]:
        say(f"{FITS} A coin has {shown(summary['fits'][0]['coin'])} nats per vote.")
    else:
        say(summary["not_fitted"])
    print_rows(f"what each γ makes of the untied margins of {of}", summary["what_each_gamma_makes"])
    for one in summary["warnings"]:
        say(f"warning: {one}")
    print_json(summary, as_json)
