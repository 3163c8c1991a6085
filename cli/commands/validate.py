"""`mmpo validate DIR`: every rule of the data contract, as a table."""

from pathlib import Path
from typing import Annotated

import typer

from mmpo.cli.output import AsJson, print_json, print_rows, say


def validate(
    dataset: Annotated[Path, typer.Argument(metavar="DIR", help="A dataset folder that `mmpo build` wrote.")],
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

    summary = run_checks(dataset, gamma=gamma, strict=strict)
    print_rows("", summary["checks"], {"status": "status", "name": "check", "count": "count", "message": ""})
    print_json(summary, as_json)
    failed = [check["name"] for check in summary["checks"] if check["status"] == "fail"]
    warned = [check["name"] for check in summary["checks"] if check["status"] == "warn"]
    if summary["ok"]:
        say(f"{dataset}: ok" + (f", {len(warned)} warnings" if warned else ""))
        return 0
    say(f"error: {dataset} does not pass: {', '.join(failed or warned)}")
    return 2
