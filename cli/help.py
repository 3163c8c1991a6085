"""Help: what matters first, the rest by group with --help-all; whole words, in at most 80 columns."""

import inspect
import os
import re
import shutil
import textwrap
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from mmpo.cli.groups import COMMAND_GROUPS, groups_of

WIDEST, WIDEST_NAME = 80, 26
QUIET, VERBOSE = "MMPO_QUIET", "MMPO_VERBOSE"
"""What -q and -v set in the environment, so that processes that a command starts keep to it."""
COMMON = ("help_all", "verbose", "quiet", "help")
"""Options of every command."""


def _help_all(context: typer.Context, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        print(help_of(context.command, context, everything=True))
        raise typer.Exit()


def _set(name: str) -> Callable[[bool], None]:
    def set_it(wanted: bool) -> None:
        if wanted:
            os.environ[name] = "1"

    return set_it


HelpAll = Annotated[bool, typer.Option("--help-all", is_eager=True, callback=_help_all, help="Explain every option.")]
Verbose = Annotated[
    bool,
    typer.Option(
        "-v", "--verbose", callback=_set(VERBOSE), help="Say more: options in force, time and memory, where an error arose."
    ),
]
Quiet = Annotated[
    bool,
    typer.Option("-q", "--quiet", callback=_set(QUIET), help="Say warnings and errors only: no progress, no tables, no notes."),
]


def with_common(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with the options that all have: --help-all, -v and -q."""
    own = inspect.signature(command)
    types = {"help_all": HelpAll, "verbose": Verbose, "quiet": Quiet}

    @wraps(command)
    def call(*, help_all: bool = False, verbose: bool = False, quiet: bool = False, **arguments: Any) -> Any:
        return command(**arguments)

    kind = inspect.Parameter.KEYWORD_ONLY
    added = [inspect.Parameter(name, kind, default=False, annotation=hint) for name, hint in types.items()]
    call.__dict__["__signature__"] = own.replace(parameters=[*(one.replace(kind=kind) for one in own.parameters.values()), *added])
    call.__annotations__ = {**getattr(command, "__annotations__", {}), **types}
    return call


class Command(TyperCommand):
    """A command with this help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write what `--help` says."""
        formatter.write(help_of(self, ctx))


class Group(TyperGroup):
    """A group of commands, each on a line of its own."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write what `--help` says."""
        formatter.write(help_of(self, ctx))


def help_of(command: Any, context: Any, *, everything: bool = False, width: int | None = None) -> str:
    """A command's help, of the options that matter most or of all; a group's, with its commands.

    width: columns, else those of the terminal, at most 80.
    """
    width = width or max(40, min(WIDEST, shutil.get_terminal_size().columns))
    path = context.command_path
    parameters = {one.name: one for one in command.get_params(context)}
    arguments = [one for one in parameters.values() if one.param_type_name == "argument"]
    options = [name for name, one in parameters.items() if one.param_type_name == "option" and name not in COMMON]
    members = getattr(command, "commands", {})
    usage = [*(_shown(one) for one in arguments), *(["COMMAND ..."] if members else [])]
    parts = [*_wrapped(" ".join(["Usage:", path, "[OPTIONS]", *usage]), width, "", " " * 4), "", *_text(command.help or "", width)]
    if arguments:
        parts += _section("Arguments", [(_shown(one), _record(one, context)[1]) for one in arguments], width)
    for title, names in (COMMAND_GROUPS if path == "mmpo" else {"commands": " ".join(members)}).items() if members else ():
        lines = [(name, members[name].short_help or "") for name in names.split() if name in members]
        parts += _section(title.capitalize(), lines, width)
    groups, first = groups_of(path.removeprefix("mmpo").strip(), options)
    if everything or len(first) == len(options):
        for title, names in groups.items():
            parts += _section(title.capitalize(), [_record(parameters[name], context) for name in names], width)
    else:
        parts += _section("Options that matter most", [_record(parameters[name], context) for name in first], width)
        rest = {
            title: ", ".join(parameters[name].opts[0] for name in names if name not in first) for title, names in groups.items()
        }
        lines = [(title, flags) for title, flags in rest.items() if flags]
        parts += _section(f"Further options ({path} --help-all explains them)", lines, width)
    shown = COMMON if len(first) < len(options) else COMMON[1:]
    common = [parameters[name] for name in shown if name in parameters]
    parts += _section("Messages and help", [_record(one, context) for one in common], width)
    return "\n".join(parts) + "\n"


def _shown(argument: Any) -> str:
    """An argument in the line of usage: [NAME...] where it may be left out, NAME... where it may be repeated."""
    name = (argument.metavar or argument.name.upper()).strip("[]").removesuffix("...")
    name += "..." if argument.nargs != 1 else ""
    return name if argument.required else f"[{name}]"


def _record(parameter: Any, context: Any) -> tuple[str, str]:
    """An option's flags with what they take, and its help."""
    names, told = parameter.get_help_record(context) or ("", "")
    kinds = (
        r"<list\[(.*?)\]>|<(.*?)>",
        lambda found: {"int": "NUMBER", "float": "NUMBER", "str": "TEXT"}.get(kind := found[1] or found[2], kind.upper()),
    )
    return re.sub(*kinds, names).replace("INTEGER", "NUMBER"), " ".join(told.split())


def _section(title: str, lines: Iterable[tuple[str, str]], width: int) -> list[str]:
    """A title, and names with their texts beside them, or below them where a name is long."""
    lines = list(lines)
    if not lines:
        return []
    column = min(WIDEST_NAME, max(len(name) for name, _ in lines) + 2)
    parts = ["", f"{title}:"]
    for name, told in lines:
        beside = len(name) + 2 <= column
        text = _wrapped(told, width, " " * (column + 2), " " * (column + 2))
        parts += (
            [f"  {name:<{column}}{text[0][column + 2 :] if text else ''}".rstrip(), *text[1:]] if beside else [f"  {name}", *text]
        )
    return parts


def _text(text: str, width: int) -> list[str]:
    """A docstring's paragraphs; an example stands by itself, and can be copied as it is."""
    parts: list[str] = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        words, sign, example = paragraph.partition("Example:")
        parts += _wrapped(" ".join(words.split()), width, "  ", "  ")
        if sign:
            if parts and parts[-1]:
                parts.append("")
            lines = _wrapped(re.sub(r"\s+", " ", example.strip()), width - 2, "    ", "      ", quoted=True)
            parts += ["  Example:", *(f"{line} \\" for line in lines[:-1]), lines[-1]]
        parts.append("")
    return parts[:-1]


def _wrapped(text: str, width: int, first: str, later: str, *, quoted: bool = False) -> list[str]:
    """Lines of at most `width` columns that cut no word, no short [default: ...], and with `quoted` nothing in quotes."""
    whole = r"'[^']*'|\"[^\"]*\"" if quoted else r"\[[^][]{,40}\]$"
    joined = re.sub(whole, lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}"), text)
    lines = textwrap.wrap(
        joined, width, initial_indent=first, subsequent_indent=later, break_long_words=False, break_on_hyphens=False
    )
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]
