"""`mmpo formats`, `mmpo losses`, ...: each family lists its members with one line each, on standard output."""

from typing import Annotated

import typer

from mmpo.cli.output import print_json

__all__ = ["formats", "losses", "pairings", "replies", "rubrics"]

AsJson = Annotated[bool, typer.Option("--json", help="Print name and summary as JSON on standard output.")]


def formats(as_json: AsJson = False) -> None:
    """List the input formats that `mmpo build --format` takes."""
    from mmpo.pipeline.sources import SOURCES

    _list({name: source.summary for name, source in SOURCES.items()}, as_json)


def losses(as_json: AsJson = False) -> None:
    """List the training objectives that `mmpo train --loss` takes."""
    from mmpo.train.objective import LOSSES, SFT_SUMMARY

    _list({**{name: f"{loss.summary} ({loss.source})" for name, loss in LOSSES.items()}, "sft": SFT_SUMMARY}, as_json)


def rubrics(as_json: AsJson = False) -> None:
    """List the rubrics that `mmpo judge --rubric` takes; a .yaml file brings your own."""
    from mmpo.annotate.judge import RUBRICS

    _list({name: rubric.criterion for name, rubric in RUBRICS.items()}, as_json)


def pairings(as_json: AsJson = False) -> None:
    """List the ways to choose pairs that `mmpo judge --pairs` takes."""
    from mmpo.annotate.pairings import PAIRINGS

    _list({name + (":k" if way.takes_k else ""): way.summary for name, way in PAIRINGS.items()}, as_json)


def replies(as_json: AsJson = False) -> None:
    """List the ways to read a judge's reply that `mmpo judge --reply` takes."""
    from mmpo.annotate.replies import REPLIES

    _list({name: reply.summary for name, reply in REPLIES.items()}, as_json)


def _list(family: dict[str, str], as_json: bool) -> None:
    if as_json:
        print_json(family)
        return
    width = max(map(len, family))
    for name, summary in family.items():
        print(f"{name:<{width}}  {summary}")
