"""From an options class to the flags of a command and to the pydantic model of a recipe's section.

The fields of one class (BuildOptions, TrainOptions) are the source of both, so a flag and a recipe key can't drift apart.
"""

import inspect
import os
from collections.abc import Callable, Collection
from functools import cache
from typing import Annotated, Any

import typer
from pydantic import BaseModel, ConfigDict, TypeAdapter, create_model
from pydantic.fields import FieldInfo

from mmpo.cli.help import VERBOSE
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.options import Flags, fields_of, flags_of
from mmpo.pipeline.progress import say


def with_flags(options: type, *, without: Collection[str] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: the command gets one flag for every field of `options`; its `given` holds those that were used.

    The signature keeps its own parameters and must end with `given: dict`. Values arrive as text, bools as bools, `null` as None where a
    field may be None (`none` too, of numbers).
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        own = list(inspect.signature(command).parameters.values())[:-1]
        types = TypeAdapter(options).json_schema()["properties"]
        # What a class says itself comes before what it shares with others.
        names = sorted(fields_of(options), key=lambda name: name not in options.__annotations__)
        fields = {name: fields_of(options)[name] for name in names if name not in without}

        found = {name: [one.once for one in field.metadata if isinstance(one, Flags)] for name, field in fields.items()}
        once = {name: hints[0] for name, hints in found.items() if any(hints)}

        def call(**arguments: Any) -> Any:
            given = {name: arguments.pop(name) for name in fields}
            given = {name: value for name, value in given.items() if value not in (None, [])}
            given |= {name: _only(given[name], flags_of(options, name)[0], hint) for name, hint in once.items() if name in given}
            nothing = {name: None for name, value in given.items() if _is_nothing(value, _types(types[name]))}
            if os.environ.get(VERBOSE):
                _say_in_force(fields, given | nothing)
            return command(**arguments, given=given | nothing)

        added = [_parameter(name, field, flags_of(options, name), types[name], name in once) for name, field in fields.items()]
        call.__doc__ = command.__doc__
        call.__name__ = command.__name__
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *added]}
        call.__dict__["__signature__"] = inspect.Signature(
            [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in [*own, *added]]
        )
        return call

    return decorate


def _say_in_force(fields: dict[str, FieldInfo], given: dict[str, Any]) -> None:
    """Every option and its value: those that were given, and the defaults."""
    defaults = {name: field.get_default(call_default_factory=True) for name, field in fields.items() if not field.is_required()}
    say("options given: " + (", ".join(f"{name}={value}" for name, value in given.items()) or "none"))
    say("defaults: " + ", ".join(f"{name}={value}" for name, value in defaults.items() if name not in given))


def _only(values: list[str] | str, flag: str, hint: str) -> str:
    """The value of a flag that counts once, as the command line lists it or alone. Raises UserError."""
    if isinstance(values, str):
        return values
    if len(values) > 1:
        raise UserError(f"{flag} is given {len(values)} times ({', '.join(values)}): {hint}")
    return values[0]


def _is_nothing(value: Any, types: set[str]) -> bool:
    """Whether `null` was given to a field that may be None, or `none` where no text may stand."""
    return "null" in types and (value == "null" or (value == "none" and "string" not in types))


def _types(schema: dict[str, Any]) -> set[str]:
    """The types of JSON that a field takes."""
    return {one.get("type", "") for one in (schema, *schema.get("anyOf", ()))}


def _names(schema: dict[str, Any]) -> list[str]:
    """The names to choose from that a field's JSON Schema lists, also of lists of them."""
    parts = [schema, *schema.get("anyOf", ()), schema.get("items") or {}]
    return [name for one in parts for name in one.get("enum", ()) if isinstance(name, str)]


def _parameter(name: str, field: FieldInfo, flags: list[str], schema: dict[str, Any], once: bool) -> inspect.Parameter:
    types, names = _types(schema), _names(schema)
    help_text = " ".join((field.description or "").split())
    default = field.get_default(call_default_factory=True)
    if default not in (None, (), {}, "") and not field.is_required() and not isinstance(default, bool):
        help_text += f" [default: {','.join(map(str, default)) if isinstance(default, tuple) else default}]"
    if "boolean" in types:
        flags = [f"{flags[0]}/--no-{flags[0].removeprefix('--')}"]
        annotation: Any = Annotated[bool | None, typer.Option(*flags, help=help_text, show_default=False)]
    elif "object" in types and "string" not in types:  # a mapping, whose entries may be given one by one
        annotation = Annotated[list[str] | None, typer.Option(*flags, help=help_text, metavar="NAME=VALUE", show_default=False)]
    else:
        metavar = "NUMBER" if types & {"number", "integer"} else "TEXT"
        kind = list[str] | None if once else str | None  # all that are given, so that a second one is seen
        complete = (lambda: names) if names else None
        annotation = Annotated[
            kind, typer.Option(*flags, help=help_text, metavar=metavar, show_default=False, autocompletion=complete)
        ]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


@cache
def model_of(options: type, *, without: tuple[str, ...] = (), optional: bool = False) -> type[BaseModel]:
    """The pydantic model with the fields of the options class; unknown keys are errors. `optional`: none is required."""
    fields: dict[str, Any] = {}
    for name, field in fields_of(options).items():
        if name in without:
            continue
        default = {"default": None} if optional and field.is_required() else {}
        fields[name] = (field.annotation, FieldInfo.merge_field_infos(field, **default))
    return create_model(options.__name__, __config__=ConfigDict(extra="forbid", frozen=True), **fields)
