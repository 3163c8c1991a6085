"""`mmpo build`: feedback files into a dataset of pairs; one flag for every field of BuildOptions."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mmpo.cli.flags import with_flags
from mmpo.cli.output import AsJson, print_json, print_rows, print_table, say
from mmpo.pipeline.build import BuildOptions
from mmpo.pipeline.build import build as build_dataset
from mmpo.pipeline.errors import printable
from mmpo.pipeline.options import options_from
from mmpo.pipeline.progress import ProgressReporter

EXAMPLE_WIDTH = 70


@with_flags(BuildOptions)
def build(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="Files, folders, globs or Hub datasets.")],
    *,
    out: Annotated[Path, typer.Option(help="The dataset folder to write; written whole or not at all.")],
    as_json: AsJson = False,
    given: dict[str, Any],
) -> None:
    """Build a dataset: feedback in a named format into pairs with quality margins, split into train, validation, test.

    Example: mmpo build ratings.jsonl --format jsonl --columns prompt=question,completion=answer,score=grade --out pairs
    """
    print_json(run_build("build", sources, out, options_from(BuildOptions, given, flags=True)), as_json)


def run_build(title: str, sources: list[str], out: Path, options: BuildOptions) -> dict[str, Any]:
    """Build a dataset with progress under the title; the summary, which is also said."""
    with ProgressReporter(title, "parts") as progress:
        summary = build_dataset(sources, out, options=options, progress=progress)
    _say_built(summary)
    return summary


def _say_built(summary: dict[str, Any]) -> None:
    """What a build made, on standard error: pairs a split, rejects a reason, what it found of raters."""
    pairs = summary.get("pairs") or {}
    if pairs:
        counts = ", ".join(f"{count:,} {split}" for split, count in pairs.items())
        say(f"{summary['prompts']:,} prompts, {sum(pairs.values()):,} pairs ({counts})")
    else:
        say(f"{summary['prompts']:,} prompts")
    rejected = sorted(summary["rejected"].items(), key=lambda item: -item[1])
    if rejected:
        print_table("left out", ("reason", "count"), rejected)
    _say_raters(summary)
    for warning in summary.get("warnings", []):
        say(f"warning: {warning}")
    for example in summary.get("examples", []):
        better, worse = (_short(example[side]) for side in ("better", "worse"))
        by = f"is better than {worse} by {example['margin']:.4g}" if example["margin"] else f"is as good as {worse}"
        say(f"{better} {by}")
    say(f"dataset: {summary['out']}")


def _short(text: str) -> str:
    return f"'{printable(' '.join(text.split()), EXAMPLE_WIDTH)}'"


def _say_raters(summary: dict[str, Any]) -> None:
    """Position biases of judges, and raters' own biases and scales, where the build found any."""
    orders = [{"name": name, **found} for name, found in summary.get("position_bias", {}).items()]
    columns = {"name": "rater/aspect", "bias": "towards the first", "order_sd": "order noise", "pairs": "pairs"}
    print_rows("position bias", orders, columns)
    notes = {(False, True): "no signal", (True, False): "shares no item", (True, True): ""}
    effects = [
        {"name": name, **e, "note": notes[e["signal"], e["connected"]]} for name, e in summary.get("rater_effects", {}).items()
    ]
    columns = {"name": "rater", **{name: name for name in ("bias", "scale", "noise", "weight", "items")}, "note": ""}
    print_rows("raters", effects, columns)
