"""`mmpo report`, `mmpo gamma`, `mmpo export`: looking at a dataset and taking it elsewhere."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mmpo.cli.output import print_json, print_table, say, shown

Dataset = Annotated[Path, typer.Argument(metavar="DIR", help="A dataset folder that `mmpo build` wrote.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as JSON on standard output.")]


def report(
    dataset: Dataset,
    out: Annotated[Path | None, typer.Option(help="The page to write (DIR.html).")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a self-contained HTML page about a dataset: margins, ties, scores, lengths, sources, rejects."""
    from mmpo.pipeline.report import write_report

    page = write_report(dataset, out or dataset.with_name(dataset.resolve().name + ".html"))
    say(f"page: {page}")
    if as_json:
        print_json({"out": str(page)})


def gamma(dataset: Dataset, as_json: AsJson = False) -> None:
    """Suggest γ and show what each γ makes of the margins.

    The suggestion is a convention (the γ at which the mean target over the non-tied training pairs is .75), not a fit.
    """
    from mmpo.pipeline.report import suggest_gamma

    summary = suggest_gamma(dataset)
    _print_gamma(summary)
    if as_json:
        print_json(summary)


def _print_gamma(summary: dict[str, Any]) -> None:
    for name, value in summary.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            columns = list(value[0])
            print_table(name.replace("_", " "), columns, [[row.get(column) for column in columns] for row in value])
        else:
            say(f"{name.replace('_', ' ')}: {shown(value)}")


def export(
    dataset: Dataset,
    to: Annotated[str, typer.Option(help="trl-dpo, trl-reward, rewardbench or jsonl.")],
    out: Annotated[Path, typer.Option(help="File or folder to write.")],
    as_json: AsJson = False,
) -> None:
    """Write a dataset in another tool's format; ties are left out where the target has no place for them, counted."""
    from mmpo.pipeline.storage import export as write

    summary = write(dataset, to, out)
    left = summary["ties_left_out"]
    say(f"{out}: " + ", ".join(f"{count:,} {split}" for split, count in _by_split(summary["pairs"]).items()))
    if left:
        say(f"{left:,} ties left out: {to} has no place for them")
    if as_json:
        print_json(summary)


def _by_split(pairs: Any) -> dict[str, int]:
    return pairs if isinstance(pairs, dict) else {"pairs": pairs}
