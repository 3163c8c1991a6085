"""`mmpo export`: a dataset of pairs taken elsewhere; one flag for every field of ExportOptions."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mmpo.annotate.exports import EXPORTS, TOLD, ExportOptions
from mmpo.annotate.exports import export as write_export
from mmpo.cli.flags import with_flags
from mmpo.cli.output import AsJson, print_json, print_rows, say
from mmpo.pipeline.options import in_words, options_from

WHY = {
    "tie": "ties, which have no better reply",
    "prompt_roles": "prompts that do not alternate between user and assistant up to the user's last message",
    "other_split": "pairs of splits that the format does not take",
    "too_many_messages": "conversations of more messages than the page shows",
}


@with_flags(ExportOptions)
def export(
    dataset: Annotated[Path, typer.Argument(metavar="DIR", help="A dataset folder that `mmpo build` wrote.")],
    *,
    to: Annotated[str, typer.Option(help=f"{in_words(EXPORTS)}; `mmpo list exports` says more.")],
    out: Annotated[Path, typer.Option(help="File or folder to write.")],
    as_json: AsJson = False,
    given: dict[str, Any],
) -> None:
    """Write a dataset in another tool's format; what is left out, and what the format has no place for, is counted.

    Example: mmpo export pairs --to label-studio --out tasks
    """
    summary = write_export(dataset, to, out, options_from(ExportOptions, given, flags=True))
    say(f"{out}: " + ", ".join(f"{count:,} {split}" for split, count in summary["pairs"].items()))
    if summary["gamma"] is not None:
        say(f"γ: {summary['gamma']:.6g}")
    print_rows("left out", [{"pairs": count, "why": WHY.get(reason, reason)} for reason, count in summary["left_out"].items()])
    print_rows(
        f"{to} has no place for", [{"pairs": count, "what": TOLD.get(name, name)} for name, count in summary["lost"].items()]
    )
    say(f"next: {summary['next']}")
    print_json(summary, as_json)
