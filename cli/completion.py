"""What the shells complete: commands as completions.json has them, so that an answer imports no command; `make docs` writes that file.

bash and zsh get it from here, without typer, whose import takes longer than a key should; other shells and rare lines through typer.
"""

import inspect
import json
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any

FILE = Path(__file__).with_name("completions.json")
FAMILY_OF = {"format": "formats", "loss": "losses", "rubrics": "rubrics", "to": "exports"}
"""Options that name members of a family and take more than these → the family of `mmpo list`."""


def known_of(commands: dict[str, tuple[Any, Any]], families: dict[str, list[str]]) -> dict[str, Any]:
    """What completions.json holds: of every command (name → typer's command and its context) the flags and what they may be; and those that
    all have."""
    from mmpo.cli.help import COMMON

    found, common = {}, {}
    for name, (command, context) in commands.items():
        parameters = {}
        common |= {"/".join(sorted(one.opts)): one.help for one in command.get_params(context) if one.name in COMMON}
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
    return {"commands": found, "common": dict(sorted(common.items())), "families": families}


def _pairs(option: Any) -> list[list[str]]:
    if option.secondary_opts:
        return [[yes, no] for yes, no in zip(option.opts, option.secondary_opts)]
    return [[name] for name in option.opts]


@cache
def _known() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def answer(asked: Mapping[str, str] = os.environ) -> str | None:
    """What the shell is told that asks with these variables, as typer's scripts for bash and zsh set them; None: typer has to say."""
    shell, line = asked["_MMPO_COMPLETE"], asked.get("_TYPER_COMPLETE_ARGS", "")
    try:
        if shell == "complete_bash":
            words, at = shlex.split(asked["COMP_WORDS"]), int(asked["COMP_CWORD"])
            found = _completions(words[1:at], "".join(words[at : at + 1]))
            return None if found is None else "\n".join(found)
        if shell == "complete_zsh":
            words = [*shlex.split(line)[1:], *([""] if line.endswith(" ") else [])] or [""]
            found = _completions(words[:-1], words[-1])
            shown = [
                f'"{_escaped(name)}":"{_escaped(text)}"' if text else f'"{_escaped(name)}"' for name, text in (found or {}).items()
            ]
            return None if found is None else f"_arguments '*: :(({chr(10).join(shown)}))'" if shown else "_files"
    except (KeyError, ValueError):  # a quotation that has not ended yet
        return None
    return None


def _escaped(text: str) -> str:
    """As typer's script for zsh takes it."""
    for one, instead in (('"', '""'), ("'", "''"), ("$", "\\$"), ("`", "\\`"), (":", r"\\:")):
        text = text.replace(one, instead)
    return text


def _completions(given: Sequence[str], word: str) -> dict[str, str] | None:
    """What a word may become behind those that are given, with the help of each."""
    known, common = _known()["commands"], {flag: both for both in _known()["common"] for flag in both.split("/")}
    name, rest = "", [one for one in given if one not in common]
    while members := {one: about["help"] for one, about in known.items() if one.rpartition(" ")[0] == name}:
        if not rest:
            found = {one.rpartition(" ")[2]: text for one, text in members.items()}
            return None if word.startswith("-") else _beginning(word, found)
        name = f"{name} {rest.pop(0)}".strip()
        if name not in known:
            return None
    parameters = {one: about for one, about in known[name].items() if one != "help"}
    of_flag = {flag: one for one, about in parameters.items() for pair in about["flags"] for flag in pair.split("/")}
    waits, used, values = "", {common[one] for one in given if one in common}, []
    for one in rest:
        flag, joined, _ = one.partition("=")
        if waits:
            waits = ""
        elif flag in of_flag:
            used.add(of_flag[flag])
            waits = "" if joined or parameters[of_flag[flag]].get("flag") else of_flag[flag]
        else:
            values.append(one)
    flag, joined, behind = word.partition("=")
    if joined and flag in of_flag:
        waits, word = of_flag[flag], behind
    elif word.startswith("-"):
        flags = {flag: parameters[one]["help"] for flag, one in of_flag.items() if one not in used}
        return _beginning(word, flags | {flag: _known()["common"][one] for flag, one in common.items() if one not in used})
    arguments = [one for one, about in parameters.items() if not about["flags"]]
    more = [*arguments[len(values) :], *(one for one in arguments if "several" in parameters[one]), ""]
    waits = waits or more[0]
    found = parameters.get(waits, {}).get("values", [])
    if (name, waits) == ("list", "name"):
        found = _known()["families"].get(values[0], [])
    return _beginning(word, dict.fromkeys(found, ""))


def _beginning(word: str, found: Mapping[str, str]) -> dict[str, str]:
    return {one: text for one, text in found.items() if one.startswith(word)}


def stub(name: str, where: str) -> Any:
    """In a command's place: a function with its options that does nothing; of a group its table."""
    commands = _known()["commands"]
    members = {one.rpartition(" ")[2]: (where, commands[one]["help"]) for one in commands if one.startswith(f"{name} ")}
    return members or _function(name, commands.get(name, {}))


def _function(name: str, known: dict[str, Any]) -> Callable[..., None]:
    import typer

    def members(context: typer.Context) -> list[str]:
        """The members of the family that the line names already."""
        return _known()["families"].get(context.params.get("family") or "", [])

    def command(**_: Any) -> None:
        raise AssertionError("a command was run where completions were asked for")

    parameters = []
    for parameter, one in known.items():
        if parameter == "help":
            continue
        complete = members if (name, parameter) == ("list", "name") else _always(one["values"]) if "values" in one else None
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
