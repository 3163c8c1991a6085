"""`mmpo formats` and `mmpo losses`: each family lists its members with one line each, on standard output."""

from typing import Annotated

import typer

from mmpo.cli.output import print_json

__all__ = ["formats", "losses"]

AsJson = Annotated[bool, typer.Option("--json", help="Print name and summary as JSON on standard output.")]


def formats(as_json: AsJson = False) -> None:
    """List the input formats that `mmpo build --format` takes."""
    from mmpo.pipeline.sources import SOURCES

    _list({name: source.summary for name, source in SOURCES.items()}, as_json)


def losses(as_json: AsJson = False) -> None:
    """List the training objectives that `mmpo train --loss` takes."""
    from mmpo.train.losses import LOSSES

    _list({name: f"{loss.summary} ({loss.source})" for name, loss in LOSSES.items()}, as_json)


def _list(family: dict[str, str], as_json: bool) -> None:
    if as_json:
        print_json(family)
        return
    width = max(map(len, family))
    for name, summary in family.items():
        print(f"{name:<{width}}  {summary}")
