"""`mmpo list FAMILY [NAME]`: the members of every family that can be chosen from by name, one line each, on standard output."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from typing import Annotated, Any

import typer

from mmpo.cli.output import print_json
from mmpo.pipeline.errors import unknown_name

Name = Annotated[str | None, typer.Argument(metavar="NAME", help="One member, with all that is known of it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print name and summary as JSON on standard output.")]


@dataclass(frozen=True)
class Family:
    """A table of members by name, as `module:TABLE`, and where its names are used."""

    table: str
    summary: str


FAMILIES: dict[str, Family] = {
    "formats": Family("mmpo.pipeline.sources:SOURCES", "The input formats that `mmpo build --format` takes."),
    "normalisations": Family("mmpo.pipeline.grades:NORMALISATIONS", "What `mmpo build --normalise` does to each grade."),
    "mergers": Family("mmpo.pipeline.grades:RATER_MERGERS", "How `mmpo build --raters` makes one value of several raters'."),
    "strategies": Family("mmpo.pipeline.pairs:STRATEGIES", "The pairs of a prompt that `mmpo build --strategy` takes."),
    "filters": Family("mmpo.pipeline.pairs:FILTERS", "The reasons for which `mmpo build` leaves pairs out, in their order."),
    "checks": Family("mmpo.pipeline.validate:CHECKS", "What `mmpo validate` looks at."),
    "exports": Family("mmpo.annotate.exports:EXPORTS", "The formats that `mmpo export --to` writes."),
    "metrics": Family("mmpo.pipeline.metrics:METRICS", "What `mmpo evaluate` and `mmpo run` measure."),
    "suites": Family("mmpo.pipeline.metrics:SUITES", "The benchmarks of reward models that `mmpo evaluate --suite` takes."),
    "modes": Family("mmpo.annotate.judge:MODES", "The ways to ask a judge that `mmpo judge --mode` takes."),
    "rubrics": Family("mmpo.annotate.judge:RUBRICS", "The rubrics that `mmpo judge --rubric` takes; a .yaml file brings your own."),
    "pairings": Family("mmpo.annotate.pairings:PAIRINGS", "The ways to choose pairs that `mmpo judge --pairs` takes."),
    "replies": Family("mmpo.annotate.replies:REPLIES", "The ways to read a judge's reply that `mmpo judge --reply` takes."),
    "maps": Family("mmpo.annotate.calibrate:MAPS", "The maps of margins that `mmpo calibrate --method` takes."),
    "selections": Family("mmpo.annotate.select:SELECTIONS", "What `mmpo select --by` and `mmpo argilla push --select` put first."),
    "displays": Family("mmpo.annotate.argilla:DISPLAYS", "How `mmpo argilla push --display` shows texts."),
    "losses": Family("mmpo.train.losses:TERMS", "The training objectives that `mmpo train --loss` takes."),
    "targets": Family("mmpo.train.objective:TARGETS", "How `mmpo train --target` turns margins into probabilities."),
}
"""Every family: where its table is, and what it is for. The table is loaded when its members are asked for."""


TITLES = {
    "requires": "columns needed",
    "folded": "columns of whole files",
    "fields": "fields of --columns",
    "scaled": "takes --scale",
    "named": "takes --rater, --kind",
    "clipped": "takes --clip",
    "evidence": "--from auto is",
    "score": "--score auto is",
}
"""What is said of a format, in the words of the options that it is about."""


def members(family: str) -> Mapping[str, Any]:
    """The table of a family. Raises UserError for a family that is not there."""
    if family not in FAMILIES:
        raise unknown_name("family", family, FAMILIES)
    module, _, name = FAMILIES[family].table.partition(":")
    return getattr(import_module(module), name)


def list_(
    family: Annotated[str | None, typer.Argument(metavar="FAMILY", help="The family; without it, all families.")] = None,
    name: Name = None,
    as_json: AsJson = False,
) -> None:
    """List a family's members, one line each, or all that is known of one member; without a family, the families."""
    if family is None:
        _print({name: family.summary for name, family in FAMILIES.items()}, as_json)
        return
    known = members(family)
    if name is None:
        _print({_title(name, member): _line(member) for name, member in known.items()}, as_json)
    elif name not in known:
        raise unknown_name(family.removesuffix("s"), name, known)
    else:
        samples = getattr(known[name], "samples", ())
        shown = [{"title": one.title, "command": one.command(name), "text": one.text} for one in samples]
        _print(
            {
                name: _line(known[name]),
                **{title if as_json else TITLES.get(title, title): value for title, value in _facts(known[name]).items()},
                **({"licence": terms} if (terms := getattr(known[name], "terms", "")) else {}),
                **({"samples": shown, "traps": known[name].traps} if as_json and shown else {}),
            },
            as_json,
        )
        for trap, told in {} if as_json else getattr(known[name], "traps", {}).items():
            print(f"trap: {trap}: {told}")
        for one in [] if as_json else shown:
            print(f"\n{one['title']}\n    {one['command']}\n{one['text']}", end="")


def _alias(family: str) -> Callable[..., None]:
    def command(name: Name = None, as_json: AsJson = False) -> None:
        list_(family, name, as_json)

    command.__doc__ = FAMILIES[family].summary
    return command


formats, losses, pairings, replies, rubrics = map(_alias, ("formats", "losses", "pairings", "replies", "rubrics"))


def _title(name: str, member: Any) -> str:
    return f"{name}:k" if getattr(member, "takes_k", False) else name


def _line(member: Any) -> str:
    """A member's one line: itself, its summary or criterion, and source, or its docstring's first line."""
    if isinstance(member, str):
        return member
    line = getattr(member, "summary", None) or getattr(member, "criterion", None)
    line = line or (member.__doc__ or "").partition("\n")[0].rstrip(".")
    return f"{line} ({member.source})" if getattr(member, "source", None) else line


def _facts(member: Any) -> dict[str, str]:
    """What a member's fields say beside its line: words, numbers and their collections; functions and the like are left out."""
    names = [field.name for field in fields(member)] if is_dataclass(member) else getattr(member, "_fields", ())
    known = {name: getattr(member, name) for name in names}
    shown = ("name", "summary", "criterion", "source", "samples", "traps", "alone", "typed")
    plain = {name: value for name, value in known.items() if name not in shown and isinstance(value, int | float | Collection)}
    plain = {name: value for name, value in plain.items() if (name, value) != ("evidence", "auto")}  # "--from auto is auto"
    return {name.replace("_", " "): _words(value) for name, value in plain.items() if isinstance(value, int | float) or value}


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_words(item)}" for key, item in value.items())
    if isinstance(value, Iterable) and not isinstance(value, str):
        nested = any(isinstance(item, Collection) and not isinstance(item, str) for item in value)
        items = [_words(item) for item in value]
        return (" or ".join(items)) if nested else ", ".join(sorted(items) if isinstance(value, frozenset) else items)
    return str(value)


def _print(lines: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(lines)
        return
    width = max(map(len, lines))
    for name, line in lines.items():
        print(f"{name:<{width}}  {line}".rstrip())
