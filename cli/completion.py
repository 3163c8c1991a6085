"""What the shells complete: commands as completions.json has them, so that an answer imports no command; `make docs` writes that file."""

import inspect
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer

from mmpo.cli.help import COMMON

FILE = Path(__file__).with_name("completions.json")
FAMILY_OF = {"format": "formats", "loss": "losses", "rubrics": "rubrics", "to": "exports"}
"""Options that name members of a family and take more than these → the family of `mmpo list`."""


def known_of(commands: dict[str, tuple[Any, Any]], families: dict[str, list[str]]) -> dict[str, Any]:
    """What completions.json holds: of every command (name → typer's command and its context) the flags and what they may be."""
    found = {}
    for name, (command, context) in commands.items():
        parameters = {}
        for one in command.params:
            if one.name in COMMON:
                continue
            values = [item.value for item in one.shell_complete(context, "")]
            values = values or families.get(FAMILY_OF.get(one.name, ""), []) or (list(families) if one.name == "family" else [])
            parameters[one.name] = {
                "flags": [] if one.param_type_name == "argument" else ["/".join(pair) for pair in _pairs(one)],
                "help": " ".join((getattr(one, "help", None) or "").split()).partition(". ")[0],
                **({"values": values} if values else {}),
                **({"flag": True} if getattr(one, "is_flag", False) else {}),
                **({"several": True} if one.nargs == -1 else {}),
            }
        found[name] = {"help": command.short_help, **parameters}
    return {"commands": found, "families": families}


def _pairs(option: Any) -> list[list[str]]:
    if option.secondary_opts:
        return [[yes, no] for yes, no in zip(option.opts, option.secondary_opts)]
    return [[name] for name in option.opts]


@cache
def _known() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def stub(name: str, where: str) -> Any:
    """In a command's place: a function with its options that does nothing; of a group its table."""
    commands = _known()["commands"]
    members = {one.rpartition(" ")[2]: (where, commands[one]["help"]) for one in commands if one.startswith(f"{name} ")}
    return members or _function(name, commands.get(name, {}))


def _function(name: str, known: dict[str, Any]) -> Callable[..., None]:
    def command(**_: Any) -> None:
        raise AssertionError("a command was run where completions were asked for")

    parameters = []
    for parameter, one in known.items():
        if parameter == "help":
            continue
        complete = _members if (name, parameter) == ("list", "name") else _always(one["values"]) if "values" in one else None
        kind: Any = bool | None if one.get("flag") else list[str] | None if one.get("several") else str | None
        option = (
            typer.Option(*one["flags"], help=one["help"], autocompletion=complete)
            if one["flags"]
            else typer.Argument(help=one["help"], autocompletion=complete)
        )
        kind = Annotated[kind, option]
        parameters.append(inspect.Parameter(parameter, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind))
    command.__dict__["__signature__"] = inspect.Signature(parameters)
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


def _always(values: list[str]) -> Callable[[], list[str]]:
    return lambda: values


def _members(context: typer.Context) -> list[str]:
    """The members of the family that the line names already."""
    return _known()["families"].get(context.params.get("family") or "", [])
